"""The recipes of TF-CLIP, and the walks that the demonstration draws."""

import importlib.util
import pathlib

import numpy as np
import pytest

from ccafl_jax.data.opening import open_dataset
from ccafl_jax.data.records import tracklets
from ccafl_jax.methods.registry import method_of
from ccafl_jax.methods.tfclip.config import TFCLIPConfig
from ccafl_jax.methods.tfclip.setup import prepare_run
from data_prep.synthetic import write_layout
from data_prep.synthetic.layouts.ilidsvid import IlidsvidConfig
from data_prep.synthetic.layouts.lsvid import LsvidConfig
from data_prep.synthetic.layouts.mars import MarsConfig

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SIZE = {"height": 32, "width": 16}


def module(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def recipe(name, variant=None):
    raw = module(name).get_config(*([] if variant is None else [variant])).to_dict()
    return method_of(raw).config(raw)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("tfclip_*.py")))
def test_recipe_is_complete(name):
    config = recipe(name)
    assert isinstance(config, TFCLIPConfig)
    assert config.clips.piece == {"tfclip_lsvid": 48, "tfclip_ilidsvid": 8}.get(name, 0)


def test_recipes_have_the_published_values():
    config = recipe("tfclip_mars")
    assert (config.sampler.classes, config.sampler.tracklets, config.clips.frames) == (4, 4, 8)
    assert (config.schedule.epochs, config.schedule.iterations) == (80, 0)
    assert config.optimizer.milestones == (30, 50, 70) and config.optimizer.base_lr == 5e-6
    assert (config.loss.id, config.loss.triplet, config.loss.memory) == (0.25, 1.0, 1.0)
    assert config.augment.pad == 0 and config.augment.erase_area == (0.02, 0.2)
    for name in ("tfclip_lsvid", "tfclip_ilidsvid"):
        other = recipe(name)
        assert (other.loss, other.optimizer, other.schedule) == (
            config.loss,
            config.optimizer,
            config.schedule,
        )


@pytest.mark.parametrize("variant", ["", "smoke", "ablation"])
def test_variants_of_the_demonstration(variant):
    config = recipe("tfclip_synthetic", variant)
    assert config.data.name == "synthetic_tracklets" and not config.model.camera_embedding
    with pytest.raises(ValueError, match="choose smoke, ablation or nothing"):
        module("tfclip_synthetic").get_config("bench")


def prepared(tmp_path, name, layout, **settings):
    write_layout(tmp_path / "data", name, layout)
    raw = module(f"tfclip_{name}").get_config()
    raw.data.height, raw.data.width = 64, 32
    raw.model.weights, raw.model.camera_embedding = "tiny_clip", False
    raw.sampler.classes = 2
    for option, value in settings.items():
        group, _, key = option.partition("__")
        raw[group][key] = value
    config = method_of(raw.to_dict()).config(raw.to_dict())
    return prepare_run(config, workdir=tmp_path / "run", root=str(tmp_path / "data"))


@pytest.mark.ci
def test_walks_in_the_layout_of_mars(tmp_path):
    layout = MarsConfig(train_ids=3, test_ids=2, frames=6, **SIZE)
    run = prepared(tmp_path, "mars", layout)
    assert len(run.labels) == len(tracklets(run.dataset.train)) and set(run.labels) == {0, 1, 2}
    assert run.model_config.classes == 3 and run.config.data.name == "mars"
    result = run.evaluate()
    gallery = len(tracklets(run.dataset.query)) + len(tracklets(run.dataset.gallery))
    assert result["gallery"] == gallery and 0 < result["mAP"] <= 1


def test_walks_in_the_layout_of_lsvid(tmp_path):
    layout = LsvidConfig(train_ids=3, test_ids=2, frames=12, **SIZE)
    run = prepared(tmp_path, "lsvid", layout, clips__piece=6)
    whole = tracklets(run.dataset.train)
    np.testing.assert_array_equal(np.bincount(run.items.number), np.maximum(whole.count // 6, 1))


@pytest.mark.ci
def test_walks_in_the_layout_of_ilidsvid(tmp_path):
    layout = IlidsvidConfig(ids=8, frames=12, **SIZE)
    run = prepared(tmp_path, "ilidsvid", layout)
    other = open_dataset("ilidsvid", tmp_path / "data", split=1, orientation="tfclip")
    assert set(run.dataset.train.pid) == set(other.query.pid)
    assert set(run.dataset.query.camid) == {0} and set(run.dataset.gallery.camid) == {1}
    ends = run.items.start + run.items.count
    whole = tracklets(run.dataset.train)
    assert set(whole.start + whole.count) <= set(ends)
    result = run.evaluate()
    assert (result["queries"], result["gallery"]) == (4, 4)
    with pytest.raises(ValueError, match=r"split is 11, must be one of 1 to"):
        prepared(tmp_path, "ilidsvid", layout, data__split=11)
