"""The study of a growing network: its recipes, its figures by camera, and its table."""

import importlib
import pathlib
import types

import numpy as np
import pytest

from ccafl_jax.data.names import Names
from ccafl_jax.data.records import Records
from ccafl_jax.data.sources import FolderSource

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    """Modules of the scripts, by name."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def test_runs_differ_in_cameras_labels_and_length(scripts):
    growth = scripts("growth")
    recipe = scripts("command").read_config(
        str(SCRIPTS.parent / "configs/ccafl_demo.py:ablation"), []
    )
    folder = pathlib.Path("somewhere")
    nodes = {node.name: node.config(recipe) for node in growth.nodes(recipe, folder)}
    assert nodes["five"].data.train_cameras == ("1", "2", "3", "4", "5")
    assert nodes[growth.GROWN].init_from == str(folder / "five")
    grown, scratch, whole = (
        nodes[name].schedule for name in (growth.GROWN, growth.SCRATCH, growth.WHOLE)
    )
    assert grown == scratch and grown.epochs == 10 and whole.epochs == 20
    assert grown.intra_epochs < grown.text_start < grown.ical_start < grown.ical_end <= 10
    rates = nodes[growth.SCRATCH].optimizer
    assert (rates.warmup_epochs, *rates.milestones) == (1, 8)
    assert len(nodes[growth.CLUSTERED].data.unlabelled_cameras) == 3
    assert len(nodes[growth.NONE].data.unlabelled_cameras) == 6
    assert nodes[growth.DROPPED].data.unlabelled == "drop"


def test_pairs_with_the_new_camera_stand_apart(scripts):
    """Everybody is found between old cameras, and nobody from or in the sixth."""
    growth = scripts("growth")
    pid = np.tile(np.arange(1, 9), 6).astype(np.int32)
    camid = np.repeat(np.arange(6), 8).astype(np.int32)
    features = np.eye(8, dtype=np.float32)[pid - 1]
    features[camid == 5] = np.roll(np.eye(8, dtype=np.float32), 1, axis=0)
    source = FolderSource("", Names.pack([str(number) for number in range(48)]))
    side = Records(source, np.arange(48), pid, camid)
    dataset = types.SimpleNamespace(query=side, gallery=side, camera_codes=(1, 2, 3, 4, 5, 6))
    found = growth.by_camera(np.concatenate([features, features]), dataset)
    assert found["old_pairs"] == 1
    assert found["new_camera"] < 0.3


def test_differences_are_paired(scripts):
    growth = scripts("growth")
    keys = [*growth.OF_RUNS]
    names = ["five", growth.WHOLE, growth.GROWN, growth.SCRATCH]
    names += [growth.CLUSTERED, growth.DROPPED, growth.NONE]
    results = {
        str(seed): {name: dict.fromkeys(keys, base + 0.01 * i) for i, name in enumerate(names)}
        for seed, base in enumerate((0.1, 0.4, 0.3))
    }
    found = growth.summarize(results)
    difference = found["differences"][f"{growth.GROWN} minus {growth.SCRATCH}"]["mAP"]
    assert difference["mean"] == pytest.approx(-0.01)
    assert difference["sd"] == pytest.approx(0, abs=1e-12)
    assert "| -1.0 (-1.0 to -1.0) |" in growth.table(found)
