"""A whole run: phases, files, resuming, single stages, and what it refuses."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm

from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.run_folder import read_run, write_run
from ccafl_jax.methods.ccafl.config import (
    CameraHeadConfig,
    ICALConfig,
    ModelConfig,
    SamplerConfig,
    TextConfig,
)
from ccafl_jax.methods.ccafl.phases import phase_of
from ccafl_jax.training.features import query_then_gallery
from ccafl_jax.training.loop import Loop
from ccafl_jax.training.preemption import Preempted
from tests.deploy import tiny
from tests.methods.small_run import SMALL, decoded, small_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    run = small_run(workdir)
    return run, run.train(), workdir


def test_summary_holds_every_stage(whole):
    _, summary, workdir = whole
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert [stage["name"] for stage in summary["stages"]] == ["prompts", "intra", "inter"]
    for metrics in (summary["zero_shot"], summary["zero_shot"]["g"], *summary["stages"][1:]):
        assert 0 < metrics["mAP"] <= 1 and 0 <= metrics["same_camera_share"] <= 1
    inter = summary["stages"][-1]
    assert summary["final"]["mAP"] == inter["mAP"] and summary["seconds"] > inter["seconds"] > 0
    assert summary["classes"] == 24 and summary["dataset"] == inter["dataset"] == "small"


def test_every_phase_compiles_once(whole):
    run = whole[0]
    assert run.traces == ["prompts", "intra+text", "inter", "inter+text", "inter+text+ical"]


def test_log_has_one_line_an_epoch(whole):
    lines = [json.loads(x) for x in (whole[2] / "metrics.jsonl").read_text().splitlines()]
    assert [(x["stage"], x["epoch"]) for x in lines] == [
        *(("prompts", e) for e in range(2)),
        *(("encoder", e) for e in range(4)),
    ]
    last = lines[-1]
    assert {"total", "inter", "text_inter", "ical", "gid", "association_precision"} <= set(last)
    texts = {"dataset": "small", "stage": "encoder"}
    assert {key: last[key] for key in texts} == texts
    assert all(np.isfinite(value) for key, value in last.items() if key not in texts)
    assert "val_mAP" not in last  # nothing is held out


def test_trained_model_reproduces_the_final_figures(whole):
    run, summary, workdir = whole
    bundle = read_run(workdir)
    features = Embedder(bundle, batch=32, devices=0).embed(decoded(run.test_images))
    np.testing.assert_allclose(run._score(features)["mAP"], summary["final"]["mAP"], rtol=1e-6)
    assert bundle.source == "ccafl, checkpoint 6"
    assert bundle.metrics["mAP"] == summary["final"]["mAP"]
    assert bundle.metrics["checkpoint"] == 6
    assert read_run(workdir, number=5).metrics == {}  # nothing was measured there
    with pytest.raises(FileNotFoundError, match="train first, or check --workdir"):
        read_run(workdir / "nowhere")


@pytest.mark.ci
def test_resumed_run_ends_in_the_same_state(whole, tmp_path):
    finished = whole[0]
    assert small_run(tmp_path, stages=("prompts",)).train()["stages"][0]["name"] == "prompts"
    small_run(tmp_path, stages=("intra",)).train(resume=True)
    run = small_run(tmp_path)
    summary = run.train(resume=True)
    assert [stage["name"] for stage in summary["stages"]] == ["prompts", "intra", "inter"]
    for name, value in finished.state.params.items():
        np.testing.assert_array_equal(run.state.params[name], value, err_msg=name)
    np.testing.assert_array_equal(run.state.classifier, finished.state.classifier)
    np.testing.assert_array_equal(run.prompt_state.prompts, finished.prompt_state.prompts)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6


def test_a_folder_with_checkpoints_is_not_overwritten(whole):
    with pytest.raises(FileExistsError, match="--resume, start anew with --overwrite"):
        small_run(whole[2]).train()


def test_checkpoint_of_other_images_of_as_many_classes_is_refused(whole):
    run = small_run(whole[2])
    pid = run.dataset.train.pid.copy()
    pid[:3], pid[3:6] = pid[3:6].copy(), pid[:3].copy()  # the same identities, changed over
    train = dataclasses.replace(run.dataset.train, pid=pid)
    run.dataset = dataclasses.replace(run.dataset, train=train)
    with pytest.raises(ValueError, match="other images, identities or cameras, of as many classes"):
        run.train(resume=True)


def test_a_batch_of_more_classes_than_there_are_is_refused_at_once(tmp_path):
    sampler = SamplerConfig(classes=32, images=1)
    with pytest.raises(ValueError, match=r"has 24 \(camera, id\) classes: set --config.sampler.c"):
        small_run(tmp_path, sampler=sampler)


@pytest.mark.ci
def test_a_run_that_ends_in_stage_2_says_so(tmp_path):
    schedule = dataclasses.replace(SMALL.schedule, epochs=1, intra_epochs=2)
    summary = small_run(tmp_path, schedule=schedule).train()
    assert [stage["name"] for stage in summary["stages"]] == ["prompts", "intra"]


def test_checkpoint_of_another_set_is_refused(whole):
    run = small_run(whole[2])
    run.labels = dataclasses.replace(run.labels, cam_of=run.labels.cam_of[:-1])
    with pytest.raises(ValueError, match="24 classes, the training set has 23"):
        run.train(resume=True)


def test_text_losses_need_prompts(tmp_path):
    with pytest.raises(ValueError, match="--stages prompts first"):
        small_run(tmp_path, stages=("intra",)).train()


@pytest.mark.ci
def test_intra_alone_without_texts(tmp_path):
    run = small_run(tmp_path, stages=("intra",), text=TextConfig(intra=False, inter=False))
    assert [stage["name"] for stage in run.train()["stages"]] == ["intra"]
    assert run.traces == ["intra"]


def test_batch_that_the_devices_do_not_divide(tmp_path):
    with pytest.raises(ValueError, match="does not divide over 8 devices"):
        small_run(tmp_path, devices=8, sampler=SamplerConfig(classes=3, images=4))


@pytest.mark.ci
def test_vit_with_cameras_trains_resumes_and_comes_back(tmp_path):
    options = {
        "vit": True,
        "model": ModelConfig(
            bn_group=0, patch_stride=6, camera_embedding=True, camera_scale=2.0, remat=True
        ),
    }
    small_run(tmp_path, stages=("prompts", "intra"), **options).train()
    run = small_run(tmp_path, **options)
    table = np.asarray(run.state.params["camera_embedding"])
    summary = run.train(resume=True)
    assert run.traces == ["inter", "inter+text", "inter+text+ical"]
    assert table.shape == (3, 8) and run.model_config.vision.grid == (5, 2)
    assert np.abs(run.state.params["camera_embedding"] - table).max() > 1e-5
    assert run.state.classifier.shape == (24, 8 + 8)  # class token and projection
    bundle = read_run(tmp_path)
    cameras = query_then_gallery(run.dataset)[1]
    assert bundle.camera_codes == (1, 2, 3) and bundle.model.heads.camera_scale == 2.0
    model = Embedder(bundle, batch=32)
    features = model.embed(decoded(run.test_images), cameras)
    np.testing.assert_allclose(run._score(features)["mAP"], summary["final"]["mAP"], rtol=1e-6)
    swapped = model.embed(decoded(run.test_images), (cameras + 1) % 3)
    assert np.abs(features - swapped).max() > 1e-4


def test_a_resnet_takes_no_camera_embedding(tmp_path):
    with pytest.raises(ValueError, match=r"model\.camera_embedding needs a ViT"):
        small_run(tmp_path, model=ModelConfig(camera_embedding=True))


def test_a_step_trains_the_cameras_of_its_batch(tmp_path):
    """Without decay only the rows that the batch used may move."""
    options = {
        "vit": True,
        "model": ModelConfig(bn_group=0, camera_embedding=True),
        "optimizer": dataclasses.replace(SMALL.optimizer, weight_decay=0.0, warmup_factor=1.0),
    }
    run = small_run(tmp_path, **options)
    before = np.asarray(run.state.params["camera_embedding"])
    run._plan = lambda *_: np.tile(np.flatnonzero(run.dataset.train.camid == 1)[:16], (1, 1))
    run.class_text = jnp.ones((run.num_classes, 8))
    phase = phase_of(0, run.config)
    run._encoder_epoch(0, phase, run._make_step(phase), tqdm(disable=True))
    moved = np.abs(np.asarray(run.state.params["camera_embedding"]) - before).max(axis=1)
    assert moved[1] > 1e-4 and moved[0] == moved[2] == 0


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a ViT's run that was stopped after the prompts."""
    workdir = tmp_path_factory.mktemp("stopped")
    model = ModelConfig(bn_group=0, camera_embedding=True)
    small_run(workdir, vit=True, model=model, stages=("prompts",)).train()
    return workdir


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera_scale": 3.0}, r"model\.heads\.camera_scale is 1.0 there and 3.0 here"),
        ({"patch_stride": 6}, r"model\.vision\.stride is 8 there and 6 here"),
    ],
)
def test_resuming_another_model_is_refused(stopped, changes, message):
    model = ModelConfig(**({"bn_group": 0, "camera_embedding": True} | changes))
    with pytest.raises(ValueError, match=message):
        small_run(stopped, vit=True, model=model).train(resume=True)


def test_resuming_with_other_colours_is_refused(stopped):
    augment = dataclasses.replace(SMALL.augment, mean=(0.5, 0.5, 0.5))
    model = ModelConfig(bn_group=0, camera_embedding=True)
    with pytest.raises(ValueError, match=r"preprocess\.mean is .* there and \[0.5"):
        small_run(stopped, vit=True, model=model, augment=augment).train(resume=True)


def test_a_folder_with_a_model_only_is_no_run_to_resume(tmp_path):
    bundle = tiny.bundle("resnet")
    write_run(tmp_path, dataclasses.replace(bundle, recipe={"method": "ccafl-like"}))
    with pytest.raises(ValueError, match=r"holds a model only \(ccafl-like\), no run to resume"):
        small_run(tmp_path).train(resume=True)


def test_missing_texts_are_noticed_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="need trained prompts"):
        small_run(tmp_path / "w", stages=("intra",)).train()
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_in_the_run_folder_moves_with_it(tmp_path):
    run = small_run(tmp_path / "a", stages=("prompts",))
    run.dataset = dataclasses.replace(run.dataset, root=str(tmp_path / "a" / "data"))
    run.train()
    (tmp_path / "a").rename(tmp_path / "b")
    assert read_run(tmp_path / "b").data_root == str(tmp_path / "b" / "data")
    run.dataset = dataclasses.replace(run.dataset, root=str(tmp_path / "elsewhere"))
    assert run._description()["data_root"] == str(tmp_path / "elsewhere")


@pytest.mark.ci
def test_gradient_reversal_takes_the_place_of_ical(tmp_path):
    """Stopped inside an epoch, the classifier of cameras is saved with the memory."""
    options = {
        "ical": ICALConfig(enabled=False),
        "camera_head": CameraHeadConfig(weight=1.0),
        "text": TextConfig(inter=False),
    }
    stopping = small_run(tmp_path, **options)
    with pytest.raises(Preempted):  # before the first step of the last epoch
        stopping.train(loop=Loop(stop=lambda _: "camera_head" in stopping.state.memory))
    saved = stopping.saves.inside.restore()["memory"]
    assert saved["camera_head"].shape == (3, stopping.model_config.features)
    run = small_run(tmp_path, **options)
    run.train(resume=True)
    assert run.traces == ["inter+camera_head"]
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(lines[-1]["camera_head"]) and "camera_head" not in lines[-2]
    assert np.any(run.state.memory["camera_head"] != saved["camera_head"])
