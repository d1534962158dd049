"""A whole run of TF-CLIP: memory, epochs, files, resuming, and what it refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.data.clips import dense_clips
from ccafl_jax.methods.tfclip.config import (
    ClipsConfig,
    DiffusionConfig,
    LossConfig,
    PromptConfig,
    ScheduleConfig,
)
from ccafl_jax.methods.tfclip.dry_run import dry_run
from ccafl_jax.methods.tfclip.run import Run, identities
from ccafl_jax.training.loop import Loop
from ccafl_jax.training.preemption import Preempted
from ccafl_jax.training.state import merge_model
from tests.methods.small_run import decoded
from tests.methods.small_tfclip import SMALL, small_tfclip, small_tracklets


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tfclip")
    run = small_tfclip(workdir)
    return run, run.train(), workdir


def assert_same_end(run, other):
    for name in ("params", "batch_stats", "memory"):
        for path, value in getattr(other.state, name).items():
            np.testing.assert_array_equal(getattr(run.state, name)[path], value, err_msg=path)


def lines_of(workdir):
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: x for key, x in line.items() if key != "time"} for line in lines]


def test_summary(whole):
    _, summary, workdir = whole
    assert json.loads((workdir / "summary.json").read_text()) == summary
    (last,) = summary["stages"]
    assert last["name"] == "clips" and summary["final"]["mAP"] == last["mAP"]
    assert summary["method"] == "tfclip" and summary["train_tracklets"] == 12
    # The queries stand in the gallery of MARS, too.
    assert (last["queries"], last["gallery"], last["protocol"]) == (4, 12, "mars")
    assert (summary["zero_shot"]["clips"], last["clips"]) == ("dense", "dense")


def test_the_step_compiles_once(whole):
    assert whole[0].traces == ["clips"]


def test_log_has_one_line_an_epoch(whole):
    lines = lines_of(whole[2])
    assert [(x["stage"], x["epoch"]) for x in lines] == [("encoder", e) for e in range(3)]
    terms = {"id", "triplet", "memory", "frame", "accuracy_memory", "accuracy_frame", "grad_norm"}
    assert all(terms <= line.keys() for line in lines)
    for line in lines:
        parts = sum(line[name] for name in ("id", "triplet", "memory", "frame"))
        assert line["total"] == pytest.approx(parts, rel=1e-5)
    assert [x["learning_rate"] for x in lines] == pytest.approx([1e-4, 1e-3, 1e-4])
    assert ["mAP" in line for line in lines] == [False, True, True]


def test_memory_is_the_mean_of_the_items_of_each_identity(tmp_path):
    """By hand, frame by frame: each item counts alike, and padded frames of a clip count twice."""
    run = small_tfclip(tmp_path)
    tower = merge_model(run.graphdef, run.state.params, run.state.batch_stats).visual
    images = decoded(run.images).astype(np.float32) / 255
    normed = (images - SMALL.augment.mean) / np.array(SMALL.augment.std)
    frames = np.asarray(jax.jit(tower)(normed.astype(np.float32)))
    train = run.dataset.train
    by_item = {}
    for number in np.unique(train.tracklet):
        rows = np.flatnonzero(train.tracklet == number)
        clips = [rows[i : i + 2] for i in range(0, len(rows), 2)]
        clips = [clip if len(clip) == 2 else np.repeat(clip, 2) for clip in clips]
        of_item = np.mean([frames[clip].mean(0) for clip in clips], axis=0)
        by_item.setdefault(train.pid[rows[0]], []).append(of_item)
    expected = [np.mean(by_item[pid], axis=0) for pid in sorted(by_item)]
    np.testing.assert_allclose(run._build_memory(), expected, rtol=1e-4, atol=1e-5)


def test_memory_is_of_the_untuned_tower_and_kept(whole, tmp_path):
    run, _, workdir = whole
    fresh = small_tfclip(tmp_path)._build_memory()
    np.testing.assert_allclose(run.state.memory["identities"], fresh, rtol=1e-5, atol=1e-6)
    resumed = small_tfclip(workdir)
    resumed.train(resume=True)
    assert_same_end(resumed, run)


def test_features_of_tracklets_do_not_depend_on_their_neighbours(whole):
    """The release averages over whatever is in a batch; here each tracklet is itself."""
    run = whole[0]
    clips = dense_clips(run.tests, frames=2)
    together = run._means(run.extract_f, "test", clips, len(run.tests))
    model = merge_model(run.graphdef, run.state.params, run.state.batch_stats)
    pixels = decoded(run.test_images)
    number = int(np.argmax(run.tests.count))
    rows = clips.rows[clips.tracklet == number]
    normed = (pixels[rows] / np.float32(255) - SMALL.augment.mean) / SMALL.augment.std
    cameras = np.repeat(run.tests.camid[number], len(rows))
    alone = jax.jit(model.embed)(np.asarray(normed, np.float32), cameras).mean(0)
    np.testing.assert_allclose(together[number], alone, rtol=1e-3, atol=1e-4)


def test_batches_hold_whole_clips_of_few_identities(tmp_path):
    run = small_tfclip(tmp_path)
    plan = run._plan(0)
    assert plan.shape == (2, 2 * 2 * 2)
    train = run.dataset.train
    for batch in plan.reshape(2, 2, 2, 2):
        assert np.all(train.tracklet[batch] == train.tracklet[batch][..., :1])
        pid = train.pid[batch][..., 0]
        assert np.all(pid == pid[:, :1]) and len(set(pid[:, 0])) == 2
    whole_pass = small_tfclip(tmp_path, schedule=ScheduleConfig(epochs=1))._plan(0)
    shown = np.unique(train.tracklet[whole_pass.reshape(-1, 2)[:, 0]], return_counts=True)[1]
    assert shown.max() == 1


def test_an_epoch_may_take_several_passes(tmp_path):
    run = small_tfclip(tmp_path, schedule=ScheduleConfig(epochs=1, iterations=7))
    assert run._plan(0).shape == (7, 8)
    assert len(np.unique(run._plan(0), axis=0)) == 7


@pytest.mark.ci
@pytest.mark.parametrize("stopped_at", [2, 4, 6, 8, 11])
def test_a_run_that_was_stopped_ends_as_the_others(whole, tmp_path, stopped_at):
    """At dispatches of the memory, of steps, and of an evaluation."""
    with pytest.raises(Preempted):
        small_tfclip(tmp_path).train(loop=Loop(stop=lambda dispatch: dispatch == stopped_at))
    run = small_tfclip(tmp_path)
    run.train(resume=True)
    assert_same_end(run, whole[0])
    assert lines_of(tmp_path) == lines_of(whole[2])


class Killed(Exception):
    pass


@pytest.mark.ci
def test_a_run_that_was_killed_goes_on_from_its_last_epoch(whole, tmp_path):
    """Nothing is saved at the moment of the kill."""

    class Dying(Run):
        def _learning_rate(self, epoch):
            if epoch == 2:
                raise Killed
            return super()._learning_rate(epoch)

    with pytest.raises(Killed):
        small_tfclip(tmp_path, kind=Dying).train()
    run = small_tfclip(tmp_path)
    run.train(resume=True)
    assert_same_end(run, whole[0])
    assert lines_of(tmp_path) == lines_of(whole[2])


@pytest.mark.ci
def test_input_kinds_give_the_same_run(whole, tmp_path):
    config = dataclasses.replace(SMALL.input, kind="streaming")
    run = small_tfclip(tmp_path, input=config)
    run.train()
    assert not run.images.resident and whole[0].images.resident
    for path, value in whole[0].state.params.items():
        np.testing.assert_allclose(run.state.params[path], value, atol=2e-5, err_msg=path)


@pytest.mark.ci
def test_four_devices_are_one(whole, tmp_path):
    run = small_tfclip(tmp_path, devices=4)
    run.train()
    lines, expected = lines_of(tmp_path), lines_of(whole[2])
    for line, other in zip(lines, expected, strict=True):
        assert line["total"] == pytest.approx(other["total"], rel=1e-3)


@pytest.mark.ci
@pytest.mark.parametrize("vit", [True, False])
def test_parts_can_be_left_out(tmp_path, vit):
    model = dataclasses.replace(SMALL.model, camera_embedding=vit)
    run = small_tfclip(
        tmp_path,
        vit=vit,
        model=model,
        diffusion=DiffusionConfig(enabled=False),
        prompt=PromptConfig(enabled=False),
    )
    run.train()
    parts = {path.split("/")[0] for path in run.state.params}
    assert parts == {"visual", "necks", "classifiers"} | ({"camera_embedding"} if vit else set())
    assert "memory" in lines_of(tmp_path)[0]


@pytest.mark.ci
def test_a_resnet_is_trained_with_all_parts(tmp_path):
    model = dataclasses.replace(SMALL.model, camera_embedding=False)
    run = small_tfclip(tmp_path, vit=False, model=model)
    before = dict(run.state.params)
    before = {path: np.asarray(value) for path, value in before.items()}
    run.train()
    stood = [p for p, value in run.state.params.items() if np.array_equal(value, before[p])]
    # Shifts all keys alike, which no softmax sees; and no single step is of rounding alone.
    assert all("k_proj/bias" in path for path in stood)


def test_without_the_loss_there_is_no_memory(tmp_path):
    config = dataclasses.replace(SMALL, loss=LossConfig(memory=0.0), schedule=ScheduleConfig(1, 1))
    run = small_tfclip(tmp_path, config)
    run.train()
    assert not run.state.memory
    assert not any(path.startswith("prompt/") for path in run.state.params)
    again = small_tfclip(tmp_path, config)
    again.train(resume=True)
    assert_same_end(again, run)


def test_pieces_are_what_is_sampled(tmp_path):
    clips = ClipsConfig(frames=2, piece=2)
    run = small_tfclip(tmp_path, clips=clips)
    assert len(run.items) == 16  # one of 1 frame, two of 5 and one of 3, for each of 4 people
    windows = small_tfclip(tmp_path, clips=ClipsConfig(frames=2, piece=2, step=1))
    assert len(windows.items) == 4 * (1 + 4 + 2)
    np.testing.assert_array_equal(identities(np.array([7, 3, 9, 3])), [1, 0, 2, 0])


def test_the_step_is_told_what_it_takes(tmp_path):
    found = dry_run(small_tfclip(tmp_path))
    assert list(found) == ["clips"] and found["clips"]["flops"] > 0


def test_what_cannot_be_trained_is_refused(tmp_path):
    dataset = small_tracklets()
    few = dataclasses.replace(dataset, train=dataset.train.take(dataset.train.pid == 1))
    with pytest.raises(ValueError, match="has 1 training identities and a batch takes 2"):
        small_tfclip(tmp_path, dataset=few)
    pid = np.where(dataset.train.pid == 1, -2, dataset.train.pid).astype(np.int32)
    train = dataclasses.replace(dataset.train, pid=pid)
    with pytest.raises(ValueError, match="3 of 12 training tracklets of mars have no identity"):
        small_tfclip(tmp_path, dataset=dataclasses.replace(dataset, train=train))
    with pytest.raises(ValueError, match="set it to False"):
        small_tfclip(tmp_path, vit=False)
    assert isinstance(small_tfclip(tmp_path).graphdef, nnx.GraphDef)
