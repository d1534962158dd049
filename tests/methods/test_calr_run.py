"""A whole run of CALR: stages, files, resuming, and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest

from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.run_folder import read_run
from ccafl_jax.methods.calr import local_labels
from ccafl_jax.methods.calr.config import AlignmentConfig, LocalConfig, RefinementConfig
from ccafl_jax.methods.calr.dry_run import dry_run
from ccafl_jax.training.loop import Loop
from ccafl_jax.training.preemption import Preempted
from tests.methods.small_calr import SMALL, small_calr
from tests.methods.small_run import decoded, small_dataset


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("calr")
    run = small_calr(workdir)
    return run, run.train(), workdir


def assert_same_end(run, other):
    for name in ("params", "batch_stats", "head"):
        for path, value in getattr(other.state, name).items():
            np.testing.assert_array_equal(getattr(run.state, name)[path], value, err_msg=path)
    np.testing.assert_array_equal(run.progress.local, other.progress.local)
    np.testing.assert_array_equal(run.progress.labels, other.progress.labels)


def lines_of(workdir):
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: x for key, x in line.items() if key != "time"} for line in lines]


def test_summary_holds_both_stages(whole):
    _, summary, workdir = whole
    assert json.loads((workdir / "summary.json").read_text()) == summary
    local, last = summary["stages"]
    assert [camera["images"] for camera in local["cameras"]] == [24, 24, 24]
    assert [camera["clusters"] for camera in local["cameras"]] == [4, 4, 4]
    assert all(-1 <= camera["silhouette"] <= 1 for camera in local["cameras"])
    assert last["name"] == "global" and summary["final"]["mAP"] == last["mAP"]
    assert summary["method"] == "calr" and summary["zero_shot"]["mAP"] > 0


def test_every_phase_compiles_once(whole):
    assert whole[0].traces == ["local", "global+alignment", "global"]


def test_log_has_one_line_an_epoch(whole):
    lines = lines_of(whole[2])
    assert [(x["stage"], x["epoch"]) for x in lines] == [
        *(("local", e) for e in range(6)),
        *(("encoder", e) for e in range(3)),
    ]
    assert [x["camera"] for x in lines[:6]] == [0, 0, 1, 1, 2, 2]
    assert {"contrast", "alignment", "clusters", "removed", "precision"} <= lines[6].keys()
    assert "alignment" not in lines[7]
    assert lines[7]["learning_rate"] == pytest.approx(10 * lines[8]["learning_rate"])


def test_the_best_clusters_of_a_camera_are_kept(whole):
    run, _, workdir = whole
    lines = lines_of(workdir)[:6]
    for number, found in enumerate(run.progress.cameras):
        of_camera = [x["silhouette"] for x in lines if x["camera"] == number]
        assert found["silhouette"] == max(of_camera)
        assert found["epoch"] == int(np.argmax(of_camera))
    stored = np.load(workdir / "local" / "c2.npz")
    rows = run.camid == 1
    np.testing.assert_array_equal(stored["label"], run.progress.local[rows])
    np.testing.assert_array_equal(
        local_labels.read(workdir / "local", run.dataset), run.progress.local
    )


def test_trained_model_reproduces_the_final_figures(whole):
    run, summary, workdir = whole
    bundle = read_run(workdir)
    features = Embedder(bundle, batch=32, devices=0).embed(decoded(run.test_images))
    np.testing.assert_allclose(run._score(features)["mAP"], summary["final"]["mAP"], rtol=1e-6)
    assert bundle.source == "calr, checkpoint 9"


@pytest.mark.ci
@pytest.mark.parametrize("stopped_at", [3, 14, 20, 30])
def test_a_run_that_was_stopped_ends_as_the_others(whole, tmp_path, stopped_at):
    """At dispatches of extraction and of steps, in both stages."""
    with pytest.raises(Preempted):
        small_calr(tmp_path).train(loop=Loop(stop=lambda dispatch: dispatch == stopped_at))
    run = small_calr(tmp_path)
    run.train(resume=True)
    assert_same_end(run, whole[0])
    assert lines_of(tmp_path) == lines_of(whole[2])


@pytest.mark.ci
def test_stages_one_after_the_other_end_as_both(whole, tmp_path):
    assert small_calr(tmp_path, stages=("local",)).train()["stages"][0]["name"] == "local"
    run = small_calr(tmp_path, stages=("global",))
    run.train(resume=True)
    assert_same_end(run, whole[0])


@pytest.mark.ci
def test_clusters_of_an_earlier_run_stand_for_stage_1(whole, tmp_path):
    local = dataclasses.replace(SMALL.local, labels=str(whole[2] / "local"))
    run = small_calr(tmp_path, local=local)
    run.train()
    assert_same_end(run, whole[0])
    assert [stage["name"] for stage in run.progress.stages] == ["global"]


@pytest.mark.ci
def test_without_refinement_no_local_clusters_are_needed(tmp_path):
    run = small_calr(
        tmp_path,
        stages=("global",),
        refinement=RefinementConfig(enabled=False),
        alignment=AlignmentConfig(epochs=0),
    )
    summary = run.train()
    assert run.traces == ["global"]
    assert summary["final"]["mAP"] > 0
    assert "removed" not in lines_of(tmp_path)[0]


def test_refinement_needs_local_clusters(tmp_path):
    with pytest.raises(ValueError, match="run with --stages local first"):
        small_calr(tmp_path, stages=("global",)).train()


@pytest.mark.ci
def test_each_phase_is_told_what_it_takes(tmp_path):
    found = dry_run(small_calr(tmp_path, devices=1))
    assert list(found) == ["local", "global+alignment", "global"]
    assert all(costs["flops"] > 0 for costs in found.values())


@pytest.mark.parametrize("calibrate", [True, False])
def test_the_neck_starts_with_the_statistics_of_what_it_is_trained_on(tmp_path, calibrate):
    model = dataclasses.replace(SMALL.model, calibrate_neck=calibrate)
    run = small_calr(tmp_path, model=model, devices=1)
    rows = np.flatnonzero(run.camid == 1)
    pooled = np.asarray(run._extract(run.extract_pooled, chosen=rows))
    run._start_anew(0, rows)
    mean, var = (pooled.mean(0), pooled.var(0, ddof=1)) if calibrate else (0.0, 1.0)
    np.testing.assert_allclose(run.state.batch_stats["neck/mean"], mean, atol=1e-5)
    np.testing.assert_allclose(run.state.batch_stats["neck/var"], var, rtol=1e-4, atol=1e-9)


def test_published_folders_are_joined_by_name(tmp_path):
    dataset = small_dataset()
    names = np.array([str(path) for path in dataset.train.path])
    for camera in range(3):
        rows = np.flatnonzero(dataset.train.camid == camera)[::-1]
        table = [[f"/data/x_c9/{names[row]}", str(row % 4), str(camera + 1)] for row in rows]
        folder = tmp_path / f"cam{camera + 1}"
        folder.mkdir()
        np.save(folder / "pseudo_label.npy", np.array(table))
    found = local_labels.read(tmp_path, dataset)
    for camera in range(3):
        rows = np.flatnonzero(dataset.train.camid == camera)
        assert len({*zip(found[rows], rows % 4, strict=True)}) == len({*found[rows]})


def test_folders_that_do_not_fit_are_refused(tmp_path):
    dataset = small_dataset()
    with pytest.raises(FileNotFoundError, match="holds neither"):
        local_labels.read(tmp_path, dataset)
    (tmp_path / "cam1").mkdir()
    np.save(tmp_path / "cam1" / "pseudo_label.npy", np.array([["a.jpg", "0", "1"]]))
    with pytest.raises(ValueError, match="no cluster for 24 of 24 images"):
        local_labels.read(tmp_path, dataset)
    np.save(tmp_path / "cam1" / "pseudo_label.npy", np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"expected text \[images, 3\]"):
        local_labels.read(tmp_path, dataset)


def test_a_share_of_the_images_is_no_number_of_clusters():
    with pytest.raises(ValueError, match="clusters is 'n/5'"):
        LocalConfig(clusters="n/5")
