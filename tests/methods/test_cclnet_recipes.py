"""The recipes of CCLNet are what they say."""

import importlib.util
import operator
import pathlib

import pytest

from ccafl_jax.methods.cclnet.config import CCLNetConfig
from ccafl_jax.methods.cclnet.phases import phase_of
from ccafl_jax.options import from_mapping

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
PUBLISHED = {
    "data.height": 288,
    "data.width": 144,
    "sampler.classes": 4,
    "sampler.images": 16,
    "clustering.min_samples": 4,
    "clustering.k1": 30,
    "clustering.k2": 6,
    "contrast.temperature": 0.05,
    "contrast.memory_momentum": 0.1,
    "contrast.memory_update": "each",
    "swap.start": 60,
    "swap.scale": 0.1,
    "swap.min_similarity": 0.0,
    "text.weight": 1.0,
    "text.smoothing": 0.1,
    "prompts.epochs": 60,
    "prompts.batch": 128,
    "schedule.prepare_epochs": 120,
    "schedule.train_epochs": 120,
    "schedule.iterations": 0,
    "optimizer.base_lr": 3.5e-4,
    "optimizer.bias_lr_factor": 2.0,
    "optimizer.weight_decay": 5e-4,
    "augment.grey": 0.5,
    "augment.erase_area": (0.02, 0.33),
    "augment.erase_fill": "zero",
    "evaluation.trials": 10,
}
RIGHT = {"swap.aliased": False, "sampler.draws": "stream", "model.calibrate_neck": True}


def recipe(name, *variant):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return from_mapping(CCLNetConfig, loaded.get_config(*variant).to_dict())


@pytest.mark.parametrize("name", ["cclnet_sysu_mm01", "cclnet_regdb"])
def test_recipe_has_the_published_settings(name):
    config, expected = recipe(name), PUBLISHED | RIGHT
    assert {path: operator.attrgetter(path)(config) for path in expected} == expected


def test_data_sets_differ_in_the_distance_of_clusters():
    assert recipe("cclnet_sysu_mm01").clustering.eps == 0.6
    config = recipe("cclnet_regdb")
    assert (config.data.name, config.data.split, config.clustering.eps) == ("regdb", 1, 0.3)


@pytest.mark.parametrize("variant", ["", "smoke", "regdb", "ablation"])
def test_every_variant_has_all_phases(variant):
    config = recipe("cclnet_synthetic", variant)
    names = {phase_of(epoch, config).name for epoch in range(config.schedule.epochs)}
    assert names == {"prepare", "prepare+swap", "train+text", "train+text+swap"}
    with pytest.raises(ValueError, match="choose smoke, regdb, ablation or nothing"):
        recipe("cclnet_synthetic", "other")
