"""Training on some cameras: which images stay, and what is told of names that are wrong."""

import dataclasses
import importlib
import pathlib
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from ccafl_jax.methods import files
from ccafl_jax.methods.cameras import camera_names, keep_cameras
from ccafl_jax.methods.ccafl import phases, setup
from ccafl_jax.methods.ccafl.config import CameraHeadConfig, CCAFLConfig, DataConfig
from ccafl_jax.options import from_mapping
from ccafl_jax.pseudo_labels.associations import ASSOCIATIONS
from tests.methods.small_run import SMALL, small_dataset, small_run

SOME = dataclasses.replace(SMALL.data, train_cameras=(1, 3))


@pytest.mark.parametrize(
    "typed", [("1", "3"), (1, 3), ("c1", "c3"), ("1,3",), ("c1, 3",), (1, "1", 3)]
)
def test_names_are_codes_as_the_data_set_writes_them(typed):
    assert camera_names(typed) == DataConfig(train_cameras=typed).train_cameras == ("1", "3")


@pytest.mark.parametrize(
    ("typed", "names"), [("1,3", ("1", "3")), ("c1,c3", ("1", "3")), ("2", ("2",))]
)
def test_names_on_the_command_line(typed, names, monkeypatch):
    root = pathlib.Path(__file__).parents[2]
    monkeypatch.syspath_prepend(root / "scripts")
    command = importlib.import_module("command")
    path, option = str(root / "configs" / "ccafl_demo.py"), f"--config.data.train_cameras={typed}"
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", path, option])
    config = from_mapping(CCAFLConfig, command.read_config(path, [option]).to_dict())
    assert config.data.train_cameras == names


def test_only_training_images_are_left_out(caplog):
    whole = small_dataset()
    with caplog.at_level("INFO", logger="ccafl_jax"):
        kept = keep_cameras(whole, ("1", "3"))
    np.testing.assert_array_equal(kept.train.index, np.flatnonzero(whole.train.camid != 1))
    np.testing.assert_array_equal(np.unique(kept.train.camid), [0, 2])  # numbers do not change
    assert kept.camera_codes == (1, 2, 3)
    assert kept.query is whole.query and kept.gallery is whole.gallery
    assert caplog.messages == [
        "small: trained on cameras 1, 3; 24 of 72 training images are left out"
    ]
    assert "train: 24 of other cameras" in kept.summary() and "+ 0 (c2)" in kept.summary()
    assert keep_cameras(whole, ()) is whole


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("1", "7", "x"), "names 7, x, and the cameras of small are 1, 2, 3: name some of those"),
        (("1", "2"), "names 2, of which small has no training images: leave it out"),
    ],
)
def test_cameras_that_cannot_be_trained_on_are_told(names, message):
    dataset = small_dataset()
    rest = dataset.train.take(dataset.train.camid != 1)
    with pytest.raises(ValueError, match=message) as error:
        keep_cameras(dataclasses.replace(dataset, train=rest), names)
    assert "\n" not in str(error.value)


def test_the_training_set_is_opened_without_the_others(monkeypatch):
    dataset = dataclasses.replace(small_dataset(), root="ROOT", report={"warnings": ()})
    monkeypatch.setattr(files, "open_dataset", lambda *_, **options: dataset)
    assert len(setup.open_training_set(SOME, "ROOT").train) == 48
    one = dataclasses.replace(SOME, train_cameras=("2",))
    with pytest.raises(ValueError, match="from one camera"):  # the check sees what is left
        setup.check_training_cameras(setup.open_training_set(one, "ROOT"), one)


@pytest.mark.ci
def test_a_camera_in_the_middle_that_is_left_out_stays_out_of_the_camera_head():
    """Its row of the classifier of cameras is 0, takes no step and no share of the softmax."""
    rng = np.random.default_rng(0)
    f, head = (rng.normal(size=(n, 4)).astype(np.float32) for n in (8, 2))
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    found = []
    for cameras in ((0, 1), (0, 2)):
        camera = np.repeat(cameras, 4)
        table = np.zeros((max(cameras) + 1, 4), np.float32)
        table[list(cameras)] = head
        config = dataclasses.replace(SMALL, camera_head=CameraHeadConfig(weight=1.0))
        phase = phases.Phase("inter", text=False, camera_head=True)
        context = types.SimpleNamespace(
            cam_of=jnp.asarray(camera),
            cluster_of=jnp.asarray([0, 1, 2, 3] * 2),
            cluster_valid=jnp.ones(4, bool),
        )
        memory = {"clusters": jnp.asarray(f[:4]), "camera_head": jnp.asarray(table)}
        labels = jnp.arange(8)
        state = types.SimpleNamespace(memory=memory)
        terms = phases._losses(phase, config, state, context, f, f, labels, None)
        banks = phases._update_memory(phase, config, memory, context, f, labels, True)
        found.append((terms["camera_head"], banks["camera_head"][np.asarray(cameras)]))
        assert not np.any(np.delete(banks["camera_head"], cameras, axis=0))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert np.any(found[0][1] != head)


@pytest.mark.parametrize("method", sorted(ASSOCIATIONS))
def test_every_association_does_without_a_camera_in_the_middle(method, tmp_path):
    run = small_run(tmp_path, data=SOME)
    options = dataclasses.replace(SMALL.association, method=method)
    features = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    association = options.function()
    found = association(features, run.labels.label, run.labels.cam_of)
    assert found.labels.shape == (16,) and run.num_classes == 16
