"""A whole run of CCLNet: stages, files, resuming, and what it refuses."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from ccafl_jax.data.records import INFRARED
from ccafl_jax.deploy import embedder
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.evaluate import open_test_set
from ccafl_jax.deploy.features import extract
from ccafl_jax.deploy.loading import load_bundle
from ccafl_jax.deploy.run_folder import read_run, write_run
from ccafl_jax.methods.cclnet import label_files
from ccafl_jax.methods.cclnet.config import ScheduleConfig, SwapConfig, TextConfig
from ccafl_jax.methods.cclnet.dry_run import dry_run
from ccafl_jax.methods.cclnet.setup import open_modalities, whole_test_set
from ccafl_jax.methods.run import Images
from ccafl_jax.training.description import read_description
from ccafl_jax.training.loop import Loop
from ccafl_jax.training.preemption import Preempted
from data_prep.synthetic import write_layout
from data_prep.synthetic.layouts.sysumm01 import SysuConfig
from tests.methods.small_cclnet import SMALL, small_cclnet, small_pairs
from tests.methods.small_run import decoded


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cclnet")
    run = small_cclnet(workdir)
    return run, run.train(), workdir


def assert_same_end(run, other):
    for name in ("params", "batch_stats"):
        for path, value in getattr(other.state, name).items():
            np.testing.assert_array_equal(getattr(run.state, name)[path], value, err_msg=path)
    for name, value in other.class_text.items():
        np.testing.assert_array_equal(run.class_text[name], value)
    np.testing.assert_array_equal(run.progress.labels, other.progress.labels)
    np.testing.assert_array_equal(run.progress.text_labels, other.progress.text_labels)


def lines_of(workdir):
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: x for key, x in line.items() if key != "time"} for line in lines]


@pytest.mark.ci
def test_summary_holds_all_stages(whole):
    _, summary, workdir = whole
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert [stage["name"] for stage in summary["stages"]] == ["prepare", "prompts", "train"]
    last = summary["stages"][-1]
    assert summary["final"]["mAP"] == last["mAP"]
    assert {"mAP", "mINP", "rank1", "rank20", "rank1_std", "same_modality_share"} <= last.keys()
    assert summary["method"] == "cclnet" and summary["zero_shot"]["mAP"] > 0


@pytest.mark.ci
def test_every_phase_compiles_once(whole):
    assert whole[0].traces == ["contrast", "swap", "prompts", "contrast+text"]


@pytest.mark.ci
def test_log_has_one_line_an_epoch(whole):
    lines = lines_of(whole[2])
    assert [(x["stage"], x["epoch"]) for x in lines] == [
        *(("encoder", e) for e in range(2)),
        *(("prompts", e) for e in range(2)),
        *(("encoder", e) for e in range(2, 4)),
    ]
    figures = ("contrast", "clusters", "labelled_share", "precision", "recall")
    for name in ("visible", "infrared"):
        assert {f"{figure}_{name}" for figure in figures} <= lines[0].keys()
    assert 0 <= lines[0]["matching_precision"] <= 1
    assert "text_visible" not in lines[1] and "text_visible" in lines[4]
    assert lines[0]["learning_rate"] == lines[4]["learning_rate"]  # both stages have one schedule


@pytest.mark.ci
def test_stage_2_starts_from_clip_again(whole):
    """Its first step changes weights by about the rate, from those of CLIP and not of stage 0."""
    run = whole[0]
    first = dict(run._initial[0])
    moved = max(np.abs(np.asarray(run.state.params[k]) - first[k]).max() for k in first)
    rates = [x["learning_rate"] for x in lines_of(whole[2]) if x["stage"] == "encoder"]
    assert moved <= 2.1 * 2 * sum(rates[2:])  # shifts move twice as fast, in two steps an epoch


@pytest.mark.ci
def test_labels_of_stage_0_are_written_as_published(whole):
    run, _, workdir = whole
    folder = workdir / "pseudo_labels"
    assert len(list(folder.iterdir())) == 4
    infrared = run.dataset.train.modality == INFRARED
    for short, rows in (("rgb", ~infrared), ("ir", infrared)):
        stored = np.load(folder / f"train_{short}_resized_pseudo_label.npy")
        assert stored.dtype == np.int64
        np.testing.assert_array_equal(stored, run.progress.text_labels[rows])
    np.testing.assert_array_equal(label_files.read(folder, run.dataset), run.progress.text_labels)


@pytest.mark.ci
def test_trained_model_reproduces_the_final_figures(whole):
    run, summary, workdir = whole
    bundle = read_run(workdir)
    assert bundle.model.dual_stream and bundle.source == "cclnet, checkpoint 6"
    kinds = np.concatenate([x.modality for x in (run.dataset.query, run.dataset.gallery)])
    features = Embedder(bundle, batch=32, devices=0).embed(decoded(run.test_images), kinds)
    np.testing.assert_allclose(run._score(features)["mAP"], summary["final"]["mAP"], rtol=1e-6)


@pytest.mark.ci
@pytest.mark.parametrize("stopped_at", [2, 9, 14, 20, 24, 30])
def test_a_run_that_was_stopped_ends_as_the_others(whole, tmp_path, stopped_at):
    """At dispatches of extraction, of steps with and without swap, and of prompts."""
    with pytest.raises(Preempted):
        small_cclnet(tmp_path).train(loop=Loop(stop=lambda dispatch: dispatch == stopped_at))
    run = small_cclnet(tmp_path)
    run.train(resume=True)
    assert_same_end(run, whole[0])
    assert lines_of(tmp_path) == lines_of(whole[2])


@pytest.mark.ci
def test_stages_one_after_the_other_end_as_all(whole, tmp_path):
    for stage in ("prepare", "prompts", "train"):
        run = small_cclnet(tmp_path, stages=(stage,))
        run.train(resume=stage != "prepare")
    assert_same_end(run, whole[0])


@pytest.mark.ci
def test_labels_of_an_earlier_run_stand_for_stage_0(whole, tmp_path):
    text = TextConfig(labels=str(whole[2] / "pseudo_labels"))
    run = small_cclnet(tmp_path, stages=("prompts", "train"), text=text)
    run.train()
    assert_same_end(run, whole[0])
    assert [stage["name"] for stage in run.progress.stages] == ["prompts", "train"]


@pytest.mark.ci
def test_without_text_no_prompts_are_needed(tmp_path):
    run = small_cclnet(
        tmp_path, stages=("train",), text=TextConfig(weight=0.0), swap=SwapConfig(start=-1)
    )
    summary = run.train()
    assert run.traces == ["contrast"] and summary["final"]["mAP"] > 0
    assert "text_visible" not in lines_of(tmp_path)[0]


@pytest.mark.ci
def test_a_vit_has_a_patch_embedding_for_each_modality(tmp_path):
    schedule = ScheduleConfig(prepare_epochs=1, train_epochs=1, iterations=1)
    run = small_cclnet(tmp_path, vit=True, schedule=schedule, swap=SwapConfig(start=0))
    before = dict(run._initial[0])
    run.train()
    stems = [path for path in before if path.endswith(("stem/kernel", "infrared/kernel"))]
    assert len(stems) == 2
    moved = [np.asarray(run.state.params[path]) - before[path] for path in stems]
    assert all(np.abs(x).max() > 0 for x in moved) and np.abs(moved[0] - moved[1]).max() > 0


@pytest.mark.ci
def test_each_phase_is_told_what_it_takes(tmp_path):
    found = dry_run(small_cclnet(tmp_path))
    assert list(found) == ["prompts", "prepare", "prepare+swap", "train+text", "train+text+swap"]
    assert all(costs["flops"] > 0 for costs in found.values())


def test_a_memory_grows_to_a_power_of_two_and_never_shrinks(tmp_path):
    run = small_cclnet(tmp_path)
    labels = np.zeros(len(run.dataset.train), np.int32)
    run.progress.labels = labels
    run._grow_memory()
    assert run.progress.rows == {"visible": 8, "infrared": 4}  # 64 and 48 images, of 12 or more
    run.progress.labels = np.where(run.infrared, 0, np.arange(len(labels)) % 9).astype(np.int32)
    run._grow_memory()
    assert run.progress.rows == {"visible": 16, "infrared": 4}
    run.progress.labels = labels
    run._grow_memory()
    assert run.progress.rows == {"visible": 16, "infrared": 4}


def test_an_epoch_has_as_many_steps_as_its_labels_fill(tmp_path):
    schedule = dataclasses.replace(SMALL.schedule, iterations=0)
    run = small_cclnet(tmp_path, schedule=schedule)
    labels = np.zeros(len(run.dataset.train), np.int32)
    labels[:5] = -1  # 59 of 64 visible images are left, in batches of 8
    run.progress.labels = labels
    assert run._plan().shape == (59 // 8 + 1, 16)


def test_what_a_stage_needs_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="run with --stages prepare first"):
        small_cclnet(tmp_path, stages=("prompts",)).train()
    with pytest.raises(ValueError, match="run with --stages prompts first"):
        text = TextConfig(labels=str(written(tmp_path)))
        small_cclnet(tmp_path, stages=("train",), text=text).train()
    dataset = small_pairs()
    visible = dataset.train.take(dataset.train.modality != INFRARED)
    with pytest.raises(ValueError, match="64 visible and 0 infrared images"):
        small_cclnet(tmp_path, dataset=dataclasses.replace(dataset, train=visible))


def test_evaluation_looks_at_the_pixels_of_training(tmp_path, monkeypatch):
    """A run on larger pictures, as `scripts/evaluate.py` opens it and finds its data set."""
    layout = SysuConfig(train_ids=2, val_ids=1, test_ids=2, images=2, height=64, width=40)
    write_layout(tmp_path / "data", "sysumm01", layout)
    collection = open_modalities(SMALL.data, str(tmp_path / "data"))
    dataset = whole_test_set(collection, SMALL.data)
    test = dataset.query.join(dataset.gallery)
    images = Images(train=dataset.train, test=test)
    run = small_cclnet(tmp_path / "run", dataset=dataset, images=images)
    meta = run._description()
    model, preprocess = read_description(meta, "the run")
    arrays = {"params": run.state.params, "batch_stats": run.state.batch_stats}
    recipe = {"method": "cclnet", "config": meta["config"]}
    bundle = ModelBundle(
        model, preprocess, **arrays, recipe=recipe, metrics={}, source="", data_root=dataset.root
    )
    write_run(tmp_path / "run", bundle)

    seen = []
    monkeypatch.setattr(embedder, "compiled_embed", lambda *_: watched)

    def watched(arrays, pixels, kinds):
        seen.append(np.asarray(pixels))
        return np.ones((len(pixels), model.features), np.float32)

    bundle = load_bundle(tmp_path / "run")
    found = extract(bundle, open_test_set(bundle), batch=8)
    expected = dict(zip(test.path, decoded(run.test_images), strict=True))
    assert sorted(found.names) == sorted(expected) and found.meta["preprocess"] == {
        **{"height": 32, "width": 16, "resample": "lanczos"},
        **{"mean": [*SMALL.augment.mean], "std": [*SMALL.augment.std]},
    }
    for name, pixels in zip(found.names, np.concatenate(seen), strict=False):
        np.testing.assert_array_equal(pixels, expected[name])


def written(folder):
    """Labels of the small data set, one cluster for each person."""
    dataset = small_pairs()
    label_files.write(folder, dataset, dataset.train.pid - 1)
    return folder / "pseudo_labels"


def test_published_labels_are_joined_by_their_paths(tmp_path):
    dataset = small_pairs()
    folder = written(tmp_path / "a")
    other = tmp_path / "b" / "pseudo_labels"
    shutil.copytree(folder, other)
    random = np.random.default_rng(0)
    for short in ("rgb", "ir"):
        label = np.load(folder / f"train_{short}_resized_pseudo_label.npy")
        path = np.load(folder / f"train_{short}_resized_path.npy")
        order = random.permutation(len(label))
        np.save(other / f"train_{short}_resized_pseudo_label.npy", label[order])
        (other / f"train_{short}_resized_path.npy").unlink()
        listed = np.array([rf"D:\data\SYSU-MM01\{p}".replace("/", "\\") for p in path[order]])
        np.save(other.parent / f"train_{short}_resized_path.npy", listed)  # one folder above
    np.testing.assert_array_equal(label_files.read(other, dataset), dataset.train.pid - 1)


def test_labels_without_paths_stand_in_the_order_of_the_images(tmp_path):
    dataset, folder = small_pairs(), written(tmp_path)
    for file in folder.glob("*_path.npy"):
        file.unlink()
    np.testing.assert_array_equal(label_files.read(folder, dataset), dataset.train.pid - 1)
    label = np.load(folder / "train_ir_resized_pseudo_label.npy")
    np.save(folder / "train_ir_resized_pseudo_label.npy", np.where(label == 3, -1, label))
    found = label_files.read(folder, dataset)
    infrared = dataset.train.modality == INFRARED
    pid = dataset.train.pid
    assert (found[infrared & (pid == 4)] == -1).all()
    assert found[infrared].max() == 6 and found[~infrared].max() == 7


def test_label_files_that_do_not_fit_are_refused(tmp_path):
    dataset, folder = small_pairs(), written(tmp_path)
    with pytest.raises(FileNotFoundError, match="lacks train_rgb_resized_pseudo_label"):
        label_files.read(tmp_path, dataset)
    file = folder / "train_rgb_resized_pseudo_label.npy"
    label = np.load(file)
    np.save(file, label[1:])
    with pytest.raises(ValueError, match="has 63 labels, and there are 64 paths"):
        label_files.read(folder, dataset)
    (folder / "train_rgb_resized_path.npy").unlink()
    with pytest.raises(ValueError, match="has 63 labels for 64 images"):
        label_files.read(folder, dataset)
    np.save(file, label.astype(np.float32))
    with pytest.raises(ValueError, match=r"expected int\[images\]"):
        label_files.read(folder, dataset)
    np.save(file, np.full_like(label, -1))
    with pytest.raises(ValueError, match="has no cluster"):
        label_files.read(folder, dataset)


@pytest.mark.ci
def test_two_devices_that_share_the_memories_do_as_one(whole, tmp_path):
    run = small_cclnet(
        tmp_path,
        devices=2,
        stages=("prepare",),
        scale=dataclasses.replace(SMALL.scale, shard_classes=True),
    )
    run.train()
    for found, expected in zip(lines_of(tmp_path), lines_of(whole[2])[:2], strict=True):
        for key in ("contrast_visible", "contrast_infrared", "grad_norm"):
            assert found[key] == pytest.approx(expected[key], rel=1e-3)
        assert found["clusters_visible"] == expected["clusters_visible"]
    memory = run.state.memory["visible"]
    assert len(memory.sharding.device_set) == 2 and not memory.sharding.is_fully_replicated
