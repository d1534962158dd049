"""The study of presets: its recipes, and the arithmetic of its table."""

import importlib
import pathlib

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    """Modules of the scripts, by name."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def test_every_run_differs_in_one_option(scripts):
    presets = scripts("presets")
    recipe = scripts("command").read_config(
        str(SCRIPTS.parent / "configs/ccafl_demo.py:ablation"), []
    )
    nodes = {node.name: node for node in presets.nodes(recipe)}
    assert list(nodes) == ["prompts", "intra", presets.CLEAN, *presets.CHANGES]
    clean = nodes[presets.CLEAN].config(recipe)
    for name in presets.CHANGES:
        (option,) = nodes[name].options
        assert nodes[name].parent in {"", "prompts", "intra"}
        assert nodes[name].config(recipe) != clean, option


def test_differences_are_paired(scripts):
    presets = scripts("presets")
    results = {}
    for seed, base in enumerate((0.1, 0.5, 0.3)):
        runs = {name: base + 0.02 for name in presets.CHANGES} | {presets.CLEAN: base}
        results[str(seed)] = {
            name: dict.fromkeys(presets.COLUMNS, value) for name, value in runs.items()
        }
    found = presets.summarize(results)
    for name in presets.CHANGES:
        assert found["differences"][name]["mAP"]["mean"] == pytest.approx(0.02)
        assert found["differences"][name]["mAP"]["sd"] == pytest.approx(0, abs=1e-12)
    table = presets.table(found)
    assert "| no triplets | +2.0 (2.0 to 2.0) |" in table
    assert "| `clean` itself | 30.0 (" in table
