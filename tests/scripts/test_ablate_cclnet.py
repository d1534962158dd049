"""The study of CCLNet's parts: its figures, and a short one as a whole."""

import importlib
import json
import pathlib

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    """Modules of the scripts, by name."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def test_differences_are_paired(scripts):
    study = scripts("ablate_cclnet")
    figures = dict.fromkeys(study.STUDY.figures)
    results = {
        str(seed): {
            arm: {key: base + 0.01 * i for key in figures}
            | {"labels": dict.fromkeys(study.STUDY.labels, 0.5)}
            | {"zero_shot": dict.fromkeys(figures, base / 2)}
            for i, arm in enumerate(study.STUDY.names)
        }
        for seed, base in enumerate((0.1, 0.4, 0.3))
    }
    found = study.summarize(results)
    difference = found["differences"][f"{study.ALL} minus {study.TEXT}"]["mAP"]
    assert difference["mean"] == pytest.approx(0.02)
    assert difference["sd"] == pytest.approx(0, abs=1e-12)
    assert found["runs"]["zero-shot"]["mAP"]["mean"] == pytest.approx(0.4 / 3)
    table = study.table(found)
    assert "| all minus stage 0 | +3.0 (3.0 to 3.0) |" in table
    assert "| labels of | precision visible |" in table


@pytest.mark.slow
def test_a_seed(scripts, tmp_path):
    study = scripts("ablate_cclnet")
    recipe = scripts("command").read_config(
        str(SCRIPTS.parent / "configs/cclnet_synthetic.py:smoke"), []
    )
    recipe.devices = 1
    study.one_seed("seed100", tmp_path, recipe)
    found = json.loads((tmp_path / "seed100" / "results.json").read_text())
    assert all(found[arm]["mAP"] > 0 for arm in study.STUDY.names)
    assert len({found[arm]["mAP"] for arm in study.STUDY.names}) == len(study.STUDY.names)
    zero_shot = [found[arm]["zero_shot"]["mAP"] for arm in study.STUDY.names]
    assert zero_shot == zero_shot[:1] * 4  # all start from the same encoder
    summary = study.summarize({"seed100": found, "seed101": found})
    assert summary["differences"]["all minus stage 0"]["mAP"]["sd"] == 0
