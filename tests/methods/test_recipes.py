"""The recipes under configs/ are what they say."""

import importlib.util
import operator
import pathlib
import sys

import pytest

from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.methods.registry import METHODS
from ccafl_jax.options import flatten, from_mapping

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def module(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def recipe(name):
    return from_mapping(CCAFLConfig, module(name).get_config().to_dict())


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("ccafl_*.py")))
def test_recipe_is_complete(name):
    assert isinstance(recipe(name), CCAFLConfig)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("ccafl_*.py")))
def test_rate_is_a_number_or_auto_on_the_command_line(name, monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS.parent / "scripts")
    command = importlib.import_module("command")

    def read(value):
        path, option = str(CONFIGS / f"{name}.py"), f"--config.association.rate={value}"
        monkeypatch.setattr(sys, "argv", ["train.py", "--config", path, option])
        return from_mapping(CCAFLConfig, command.read_config(path, [option]).to_dict())

    assert read("auto").association.rate == "auto"
    assert read("1.25").association.rate == 1.25
    with pytest.raises(ValueError, match=r"rate is 'often', must be a number above 0 .* or auto"):
        read("often")


@pytest.mark.parametrize("method", METHODS)
def test_every_option_can_be_typed(method, monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS.parent / "scripts")
    command = importlib.import_module("command")
    path = sorted(CONFIGS.glob(f"{method}_*.py"))[0]
    options = flatten(module(path.stem).get_config().to_dict())
    changed = {name: value for name, value in options.items() if value not in ("", None, ())}
    typed = [f"--config.{name}={value}" for name, value in changed.items()]
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(path), *typed])
    assert flatten(command.read_config(str(path), typed).to_dict()) == options
    assert len(typed) > 60


PUBLISHED = {
    "market1501": {
        "data.name": "market1501",
        "association.rate": 1.7,
        "sampler.classes": 16,
        "sampler.images": 8,
        "icdl.w": 0.6,
        "schedule.text_start": 10.0,
        "schedule.ical_start": 40.0,
        "schedule.ical_end": 50.0,
        "ical.epsilon": 0.8,
        "ical.margin": 0.7,
        "ical.inflation": 0.2,
    },
    "dukemtmcreid": {
        "data.name": "dukemtmcreid",
        "association.rate": 1.5,
        "sampler.classes": 16,
        "sampler.images": 8,
        "icdl.w": 0.6,
        "schedule.text_start": 40.0,
        "schedule.ical_start": 40.0,
        "schedule.ical_end": 60.0,
        "ical.epsilon": 0.8,
        "ical.margin": 0.3,
        "ical.inflation": 0.2,
    },
    "msmt17": {
        "data.name": "msmt17_v1",
        "association.rate": 1.3,
        "sampler.classes": 32,
        "sampler.images": 8,
        "icdl.w": 0.0,
        "schedule.text_start": 40.0,
        "schedule.ical_start": 40.0,
        "schedule.ical_end": 60.0,
        "ical.epsilon": 0.8,
        "ical.margin": 0.5,
        "ical.inflation": 0.2,
    },
}
COMMON = {
    "ical.scale": 16.0,
    "icdl.temperature": 0.05,
    "inter.temperature": 0.05,
    "icdl.memory_momentum": 0.1,
    "inter.memory_momentum": 0.1,
    "icdl.instances": 32,
    "triplet.margin": 0.3,
    "text.smoothing": 0.1,
    "schedule.epochs": 80,
    "schedule.iterations": 200,
    "schedule.intra_epochs": 5.0,
    "prompts.epochs": 60,
    "data.val_fraction": 0.0,
    "association.method": "greedy_cc",
    "association.mutual": 0,
    "association.max_distance": 4.0,
    "association.center_cameras": False,
}
CLEAN = {
    "optimizer.idle": "hold",
    "text.inter_denominator": 0,
    "prompts.prefix_tokens": 4,
    "model.calibrate_neck": True,
    "evaluation.no_match": "skip",
    "published": "",
    "published_on": "",
}
RELEASE = {
    "optimizer.idle": "decay",
    "text.inter_denominator": 4821,
    "model.calibrate_neck": False,
    "evaluation.no_match": "zero",
}
LINEAGE = {
    "market1501": {
        "prompts.prefix_tokens": 5,
        "published": "mAP 90.1, rank-1 96.1, rank-5 98.6, rank-10 99.1",
        "published_on": "market1501",
    },
    "dukemtmcreid": {
        "prompts.prefix_tokens": 6,
        "published": "mAP 81.5, rank-1 90.8, rank-5 95.5, rank-10 97.3",
        "published_on": "dukemtmcreid",
    },
    "msmt17": {
        "prompts.prefix_tokens": 5,
        "published": "mAP 58.9, rank-1 82.9, rank-5 90.7, rank-10 92.8",
        "published_on": "msmt17_v1",
    },
}


def values(config, paths):
    return {path: operator.attrgetter(path)(config) for path in paths}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_recipe_has_the_published_settings(name):
    expected = PUBLISHED[name] | COMMON | CLEAN
    assert values(recipe(f"ccafl_{name}"), expected) == expected


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_release_lineage_differs_in_the_released_quirks_only(name):
    quirks = RELEASE | LINEAGE[name]
    config = recipe(f"ccafl_{name}_release")
    assert values(config, quirks) == quirks
    changed = module(f"ccafl_{name}").get_config()
    for path, value in quirks.items():
        group, _, key = path.rpartition(".")
        (changed[group] if group else changed)[key] = value
    assert from_mapping(CCAFLConfig, changed.to_dict()) == config


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_docstrings_name_the_published_figures_with_the_release_lineage_only(name):
    figures = LINEAGE[name]["published"]
    assert figures in module(f"ccafl_{name}_release").__doc__.replace("\n", " ")
    assert "this recipe has no published figure" in module(f"ccafl_{name}").__doc__.replace(
        "\n", " "
    )


def test_version_2_of_msmt17_is_told_by_its_name():
    for name in ("ccafl_msmt17", "ccafl_msmt17_release"):
        loaded = module(name)
        assert "--config.data.name=msmt17_v2" in loaded.__doc__
        raw = loaded.get_config()
        raw.data.name = "msmt17_v2"
        assert from_mapping(CCAFLConfig, raw.to_dict()).data.name == "msmt17_v2"


def test_vit_recipe_follows_clip_reid():
    config = recipe("ccafl_market1501_vitb16")
    assert config.augment.mean == config.augment.std == (0.5, 0.5, 0.5)
    assert config.optimizer.base_lr == 5e-6 and config.optimizer.weight_decay == 1e-4
    assert config.optimizer.milestones == (40, 67) and config.optimizer.warmup_factor == 0.1
    assert config.prompts.epochs == 120 and config.model.tower == "vit"
    plain = recipe("ccafl_market1501")
    assert config.schedule == plain.schedule and config.ical == plain.ical
    assert config.augment.erase_fill == plain.augment.erase_fill
