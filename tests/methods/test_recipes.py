"""The recipes under configs/ are what they say."""

import importlib.util
import pathlib

import pytest

from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.options import from_mapping

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def recipe(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_mapping(CCAFLConfig, module.get_config().to_dict())


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("ccafl_*.py")))
def test_recipe_is_complete(name):
    assert isinstance(recipe(name), CCAFLConfig)


def test_vit_recipe_follows_clip_reid():
    config = recipe("ccafl_market1501_vitb16")
    assert config.augment.mean == config.augment.std == (0.5, 0.5, 0.5)
    assert config.optimizer.base_lr == 5e-6 and config.optimizer.weight_decay == 1e-4
    assert config.optimizer.milestones == (40, 67) and config.optimizer.warmup_factor == 0.1
    assert config.prompts.epochs == 120 and config.model.tower == "vit"
    plain = recipe("ccafl_market1501")
    assert config.schedule == plain.schedule and config.ical == plain.ical
    assert config.augment.erase_fill == plain.augment.erase_fill
