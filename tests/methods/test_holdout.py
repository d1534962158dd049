"""Identities held out of training: the cut, the figures, the alarm, and that nothing leaks."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from PIL import Image

from ccafl_jax.data.sources import PixelFormat, load_image
from ccafl_jax.evaluation.intra_camera import rank_inside_cameras
from ccafl_jax.methods import holdout
from ccafl_jax.methods import run as shared_module
from ccafl_jax.methods.ccafl import prompts, setup
from ccafl_jax.methods.ccafl import run as run_module
from ccafl_jax.methods.ccafl.config import ICALConfig
from tests.methods.small_run import (
    SMALL,
    WordTokenizer,
    decoded,
    small_clip,
    small_dataset,
    small_run,
)

HELD = dataclasses.replace(
    SMALL,
    data=dataclasses.replace(SMALL.data, val_fraction=0.25),
    prompts=dataclasses.replace(SMALL.prompts, epochs=1),
    schedule=dataclasses.replace(
        SMALL.schedule, epochs=2, intra_epochs=0, text_start=0, ical_start=0, ical_end=2
    ),
    ical=ICALConfig(margin=0.3),
    stages=("prompts", "inter"),
    evaluation=dataclasses.replace(SMALL.evaluation, every=1),
)
HELD_IMAGES = 3 * 2 * 3  # cameras, a quarter of eight people, images of each


def test_the_cut():
    dataset = small_dataset()
    rest, held = holdout.split_held_out(dataset, 0.25, 1)
    assert (len(rest.train), len(held)) == (72 - HELD_IMAGES, HELD_IMAGES)
    both = np.concatenate([rest.train.index, held.index])
    np.testing.assert_array_equal(np.sort(both), np.arange(72))
    kept = set(zip(rest.train.pid, rest.train.camid, strict=True))
    assert kept.isdisjoint(zip(held.pid, held.camid, strict=True)) and len(kept) == 18
    assert rest.query is dataset.query and rest.gallery is dataset.gallery
    assert rest.report["train"] == {"held out for validation": HELD_IMAGES}
    assert "18 held out for validation" in rest.summary()
    assert holdout.split_held_out(dataset, 0.0, 1) == (dataset, None)


def test_a_set_too_small_to_hold_out():
    dataset = small_dataset()
    few = dataclasses.replace(dataset, train=dataset.train.take(dataset.train.pid <= 3))
    with pytest.raises(ValueError, match=r"val_fraction is 0\.5 and no training camera has four"):
        holdout.split_held_out(few, 0.5, 1)


@pytest.fixture(scope="module")
def compiled_once():
    """Runs of this file share compiled steps and extractors; only their arrays differ."""
    made = {}

    def cached(make, position):
        def get(*arguments, **options):
            key = make, arguments[position]
            if key not in made:
                made[key] = make(*arguments, **options)
            return made[key]

        return get

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "make_step", cached(run_module.make_step, 2))
        extractor = cached(shared_module.feature_extractor, 1)
        patch.setattr(shared_module, "feature_extractor", extractor)
        patch.setattr(prompts, "make_prompt_step", cached(prompts.make_prompt_step, 2))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compiled_once):
    workdir = tmp_path_factory.mktemp("held")
    run = small_run(workdir, HELD)
    return run, run.train(), workdir


def log_lines(workdir, stage="encoder"):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["stage"] == stage]


@pytest.mark.ci
def test_figures_of_every_evaluation(trained):
    run, summary, workdir = trained
    measured = [line["val_mAP"] for line in log_lines(workdir)]
    assert len(measured) == 2 and all(0 < value <= 1 for value in measured)
    assert run.progress.val_history == measured
    features = run._extract(run.extract_f, "val")
    expected = rank_inside_cameras(features, run.held_out.pid, run.held_out.camid)
    stages = {stage["name"]: stage for stage in summary["stages"]}
    assert stages["inter"]["val"] == expected.summary()
    assert expected.mAP == measured[-1] and stages["inter"]["val"]["queries"] == HELD_IMAGES
    assert stages["prompts"]["val"] == summary["zero_shot"]["val"]
    assert summary["train_images"] == 72 - HELD_IMAGES and summary["classes"] == 18
    stored = run.saves.borders.restore_meta()["progress"]
    assert stored["val_history"] == measured


def test_the_epoch_line_shows_it():
    scalars = {"total": 1.0, "gid_accuracy": 0.5, "mAP": 0.25, "rank1": 0.5, "val_mAP": 0.75}
    assert run_module.Run._shown(None, scalars)["val_mAP"] == 0.75


@pytest.mark.ci
def test_held_out_images_reach_nothing(trained, tmp_path):
    """Other pixels of held-out images change their own figures and nothing else."""
    run, _, workdir = trained
    other = small_run(tmp_path, HELD, negative=run.held_out.index)
    np.testing.assert_array_equal(decoded(other.val_images), 255 - decoded(run.val_images))
    other.train()
    different = {"time", "val_mAP"}
    for stage in ("prompts", "encoder"):
        for ours, theirs in zip(log_lines(workdir, stage), log_lines(tmp_path, stage), strict=True):
            assert {k: v for k, v in ours.items() if k not in different} == {
                k: v for k, v in theirs.items() if k not in different
            }
    for name in ("params", "batch_stats"):  # the neck's statistics are among the latter
        for key, value in getattr(run.state, name).items():
            np.testing.assert_array_equal(getattr(other.state, name)[key], value, err_msg=key)
    np.testing.assert_array_equal(other.progress.clusters, run.progress.clusters)
    assert other.progress.val_history != run.progress.val_history


@pytest.mark.ci
def test_training_images_do_reach_it(trained, tmp_path):
    """The comparison above can fail: one training image inverted changes the first loss."""
    run, _, workdir = trained
    other = small_run(tmp_path, HELD, negative=run.dataset.train.index[:1], stages=("prompts",))
    other.train()
    assert log_lines(tmp_path, "prompts")[0]["loss"] != log_lines(workdir, "prompts")[0]["loss"]


@pytest.mark.ci
def test_a_resumed_run_keeps_the_history(trained):
    run, summary, workdir = trained
    again = small_run(workdir, HELD)
    assert again.train(resume=True)["stages"] == summary["stages"]
    assert again.progress.val_history == run.progress.val_history


@pytest.mark.ci
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": SMALL.data}, r"data\.val_fraction=0\.25 and would go on with 0\.0, on other"),
        (
            # As many classes are left as before.
            {"data": dataclasses.replace(HELD.data, val_fraction=0.26)},
            r"data\.val_fraction=0\.25 and would go on with 0\.26",
        ),
        ({"seed": 2}, "seed=1, which also drew the held-out identities, and would go on with 2"),
    ],
)
def test_resuming_with_other_identities_is_refused(trained, changes, message):
    run = small_run(trained[2], HELD, **changes)
    with pytest.raises(ValueError, match=message):
        run.train(resume=True)


def test_a_run_from_before_the_option_is_resumed():
    stored = {"config": {"seed": 7, "data": {"name": "market1501"}}}
    holdout.check_same_hold_out(stored, SMALL, "W")
    with pytest.raises(ValueError, match=r"W was started with data\.val_fraction=0\.0"):
        holdout.check_same_hold_out(stored, HELD, "W")


@pytest.mark.parametrize(
    ("history", "alarm"),
    [
        ([], False),
        ([0.5, 0.4, 0.3], False),
        ([0.5, 0.4, 0.3, 0.2], True),
        ([0.1, 0.5, 0.4, 0.3, 0.2], True),
        ([0.5, 0.4, 0.3, 0.2, 0.1], False),  # given one evaluation ago
        ([0.5, 0.4, 0.4, 0.3, 0.2], False),
        ([0.5, 0.4, 0.3, 0.35, 0.2], False),
        ([0.9, 0.8, 0.7, 0.6, 0.7, 0.6, 0.5, 0.4], False),  # only the first row alarms
    ],
)
def test_the_first_three_falls_alarm(history, alarm):
    assert holdout.first_alarm(history) == alarm


def test_the_warning_is_given_once(caplog):
    history = []
    with caplog.at_level(logging.WARNING, "ccafl_jax"):
        for value in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
            holdout.watch(history, {"mAP": 0.1, "val": {"mAP": value}})
        holdout.watch(history, {"mAP": 0.1})  # nothing held out
    assert history == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    (record,) = caplog.records
    assert "fallen in 3 evaluations in a row (0.900 > 0.800 > 0.700 > 0.600)" in record.message


def test_from_a_folder_to_a_run(tmp_path, monkeypatch):
    """The set-up decodes the held-out files, and leaves them out of the training images."""
    rng = np.random.default_rng(0)
    for folder, people in (
        ("bounding_box_train", range(1, 6)),
        ("query", [9]),
        ("bounding_box_test", [9]),
    ):
        (tmp_path / folder).mkdir()
        for person in people:
            for camera in (1, 2):
                for frame in (1, 2):
                    name = f"{person:04d}_c{camera}s1_{frame:06d}_00.jpg"
                    pixels = rng.integers(0, 255, (32, 16, 3)).astype(np.uint8)
                    Image.fromarray(pixels).save(tmp_path / folder / name)
    monkeypatch.setattr(setup, "weights_directory", lambda name, kind: "")
    monkeypatch.setattr(setup, "load_towers", lambda config, directory: small_clip(config))
    monkeypatch.setattr(setup, "Tokenizer", lambda directory: WordTokenizer())
    data = dataclasses.replace(HELD.data, val_fraction=0.4)
    config = dataclasses.replace(HELD, data=data)
    run = setup.prepare_run(config, workdir=tmp_path / "w", root=str(tmp_path))
    assert len(run.held_out) == len(run.val_images) == 2 * 2 * 2
    assert len(run.images) == len(run.dataset.train) == 20 - 8 and run.num_classes == 6
    assert set(run.held_out.path).isdisjoint(run.dataset.train.path)
    held_out, train = decoded(run.val_images), decoded(run.images)
    for records, images in ((run.held_out, held_out), (run.dataset.train, train)):
        for row in range(len(records)):
            expected = load_image(records.locate(row), PixelFormat(32, 16))
            np.testing.assert_array_equal(images[row], expected)
