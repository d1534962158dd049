"""The study of overlaps: its sweep, and the arithmetic of its table."""

import importlib
import pathlib
import types

import numpy as np
import pytest

from ccafl_jax.methods.ccafl.config import AssociationConfig, CCAFLConfig
from ccafl_jax.options import to_config

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def overlap(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("overlap")


def test_every_rule_is_a_recipe(overlap):
    tree = importlib.import_module("proving.tree")
    for name, rule in overlap.RULES.items():
        node = tree.Node(name, "intra", rule)
        found = node.config(to_config(CCAFLConfig())).association
        assert (found == AssociationConfig()) == (name == "published")
    with pytest.raises(ValueError, match="rat"):  # an option that does not exist
        tree.Node("x", options={"association.rat": 1}).config(to_config(CCAFLConfig()))


def test_the_sweep_counts_pairs_of_the_published_rule(overlap):
    """Twelve people seen by three cameras each, well apart: any rate finds right pairs first."""
    pid_of, cam_of = np.tile(np.arange(12), 3), np.repeat(np.arange(3), 12)
    label = np.arange(36)
    random = np.random.default_rng(0)
    features = random.normal(size=(12, 32))[pid_of] + 0.1 * random.normal(size=(36, 32))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    run = types.SimpleNamespace(
        labels=types.SimpleNamespace(label=label, cam_of=cam_of, pid_of=pid_of),
        config=CCAFLConfig(association=AssociationConfig(method="dbscan", center_cameras=True)),
        extract_f=None,
        _extract=lambda _: features,
    )
    found = overlap.sweep(run)
    assert found.keys() == {str(rate) for rate in overlap.RATES}
    assert found["0.4"]["accepted"] == 14 and found["0.4"]["precision"] == 1
    assert found["2.5"]["recall"] == 1 and found["2.5"]["true_pairs"] == 36
    assert found["0.2"]["last_distance"] < found["0.2"]["stranger_distance"]


def test_differences_are_paired(overlap):
    def job(seed, gain):
        association = {"precision": 0.9, "recall": 0.5, "pure_share": 0.8}
        rules = {
            name: {"mAP": seed + gain * (name != "published"), "association": association}
            for name in overlap.RULES
        }
        figures = association | {"last_distance": 0.5, "stranger_distance": 1.0}
        sweep = {str(rate): figures for rate in overlap.RATES}
        return rules | {"intra": {"sweep": sweep}}

    results = {f"overlap{x:g}_seed{s}": job(s, x) for s in (1, 2, 3) for x in (1.0, 0.5)}
    summary = overlap.summarize(results, [1, 2, 3], [1.0, 0.5])
    for name, gain in (("1", 1.0), ("0.5", 0.5)):
        found = summary["overlaps"][name]["rules"]["auto"]["over_published"]
        assert found["mean"] == pytest.approx(gain) and found["sd"] == pytest.approx(0, abs=1e-12)
    page = overlap.table(summary)
    assert "| 0.5 | mutual | 250.0 (" in page and "| 1 | 1.7 | 90.0 (" in page
