"""The study of TF-CLIP's parts: its figures, and a short one as a whole."""

import importlib
import json
import pathlib

import pytest

from ccafl_jax.methods.registry import method_of

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    """Modules of the scripts, by name."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def read(scripts, variant):
    return scripts("command").read_config(
        str(SCRIPTS.parent / f"configs/tfclip_synthetic.py:{variant}"), []
    )


def test_arms_differ_in_their_parts_and_in_nothing_else(scripts):
    study, tree = scripts("ablate_tfclip"), scripts("proving.tree")
    recipe = read(scripts, "ablation")
    found = {
        arm: tree.Node(arm, options=options).config(recipe)
        for arm, options in study.WITHOUT.items()
    }
    parts = {
        arm: (config.diffusion.enabled, config.prompt.enabled and config.loss.memory > 0)
        for arm, config in found.items()
    }
    assert parts == {
        study.MEAN: (False, False),
        study.MEMORY: (False, False),
        study.NO_DIFFUSION: (False, True),
        study.NO_PROMPT: (True, False),
        study.WHOLE: (True, True),
    }
    assert [config.loss.memory for config in found.values()] == [0.0, 1.0, 1.0, 1.0, 1.0]
    for config in found.values():  # equal fine-tuning
        assert config.schedule == found[study.WHOLE].schedule
        assert config.optimizer == found[study.WHOLE].optimizer
        assert config.seed == found[study.WHOLE].seed
    assert method_of(recipe.to_dict()).name == "tfclip"


def test_differences_are_paired(scripts):
    study = scripts("ablate_tfclip")
    results = {
        str(seed): {
            arm: {
                "mAP": base + 0.01 * i,
                "rank1": base,
                "zero_shot": {"mAP": base / 2, "rank1": base},
            }
            for i, arm in enumerate(study.WITHOUT)
        }
        for seed, base in enumerate((0.1, 0.4, 0.3))
    }
    found = study.summarize(results)
    difference = found["differences"][f"{study.WHOLE} minus {study.MEAN}"]["mAP"]
    assert difference["mean"] == pytest.approx(0.04)
    assert difference["sd"] == pytest.approx(0, abs=1e-12)
    assert found["runs"]["zero-shot"]["mAP"]["mean"] == pytest.approx(0.4 / 3)
    lines = study.table(found).splitlines()
    assert len(lines) == 2 + 1 + len(study.WITHOUT) + len(study.STUDY.compared)
    assert "| all parts minus mean of frames | +4.0 (4.0 to 4.0) |" in lines[-1]


@pytest.mark.slow
def test_a_seed(scripts, tmp_path):
    study = scripts("ablate_tfclip")
    recipe = read(scripts, "smoke")
    recipe.data.synthetic_ids, recipe.devices = 8, 1
    recipe.schedule.epochs = 1
    study.one_seed("seed100", tmp_path, recipe)
    found = json.loads((tmp_path / "seed100" / "results.json").read_text())
    assert list(found) == list(study.WITHOUT)
    assert found[study.MEAN]["zero_shot"] == found[study.MEMORY]["zero_shot"]
    assert all(0 < arm["mAP"] <= 1 for arm in found.values())
    assert study.summarize({"seed100": found, "seed101": found})["runs"].keys() >= found.keys()
