"""The page of results is made from the committed figures."""

import importlib
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("results")


def test_the_page_is_what_the_figures_say(results):
    page = results.PAGE.read_text()
    assert results.with_results(page, ROOT / "results") == page


def test_a_changed_figure_changes_the_page(results, tmp_path):
    presets = importlib.import_module("presets")
    interval = {"mean": 0.123, "low": 0.1, "high": 0.2}
    figures = dict.fromkeys(presets.COLUMNS, interval)
    summary = {
        "command": ["python", "scripts/presets.py", "--config", "configs/a.py:b c"],
        "jobs": ["overlap0.5_seed101", "seed100"],
        "runs": {name: figures for name in (presets.CLEAN, *presets.CHANGES)},
        "differences": {name: figures for name in presets.CHANGES},
    }
    (tmp_path / "presets.json").write_text(json.dumps(summary))
    page = "before\n<!-- presets table -->\nold\n<!-- end of presets table -->\nafter\n"
    made = results.with_results(page, tmp_path)
    assert "| no triplets | +12.3 (10.0 to 20.0) |" in made and "old" not in made
    assert "`python scripts/presets.py --config 'configs/a.py:b c'`, seeds 100, 101." in made
    assert made.startswith("before\n") and made.endswith("\nafter\n")


def test_every_study_has_its_place_on_the_page(results):
    page = results.PAGE.read_text()
    for study in results.STUDIES:
        assert f"<!-- {study} table -->" in page and f"<!-- end of {study} table -->" in page
