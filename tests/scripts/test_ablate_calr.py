"""The study of CALR's parts: what its control drops, its figures, and a short one as a whole."""

import importlib
import json
import pathlib

import numpy as np
import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    """Modules of the scripts, by name."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def test_as_many_of_each_cluster_and_camera_are_dropped(scripts):
    random = np.random.default_rng(0)
    labels, camid = random.integers(-1, 6, 300), random.integers(0, 4, 300)
    removed = np.sort(random.permutation(np.flatnonzero(labels >= 0))[:90])
    drawn = scripts("proving.controls").drawn_inside(labels, camid, removed, random)
    assert len(np.unique(drawn)) == 90
    assert not np.array_equal(drawn, removed)

    def cells(images):
        return sorted(zip(labels[images], camid[images], strict=True))

    assert cells(drawn) == cells(removed)
    nothing = scripts("proving.controls").drawn_inside(labels, camid, removed[:0], random)
    assert nothing.shape == (0,)


def test_differences_are_paired(scripts):
    study = scripts("ablate_calr")
    arms = study.STUDY.names
    labels = dict.fromkeys(study.STUDY.labels, 0.5)
    results = {
        str(seed): {
            study.LOCAL: {"mAP": 0.9, "rank1": 0.9, "zero_shot": {"mAP": base / 2, "rank1": base}},
            **{
                arm: {"mAP": base + 0.01 * i, "rank1": base, "labels": dict(labels)}
                for i, arm in enumerate(arms)
            },
        }
        for seed, base in enumerate((0.1, 0.4, 0.3))
    }
    del results["0"][study.BASE]["labels"]["removed_share"]
    found = study.summarize(results)
    difference = found["differences"][f"{study.REFINED} minus {study.AT_RANDOM}"]["mAP"]
    assert difference["mean"] == pytest.approx(-0.03)
    assert difference["sd"] == pytest.approx(0, abs=1e-12)
    assert found["runs"]["zero-shot"]["mAP"]["mean"] == pytest.approx(0.4 / 3)
    assert "removed_share" not in found["labels"][study.BASE]  # as one of its seeds has none
    assert found["labels"][study.BOTH]["removed_share"]["mean"] == 0.5
    table = study.table(found)
    assert "| both minus baseline | +3.0 (3.0 to 3.0) |" in table
    assert "| labels of |" in table


@pytest.mark.slow
def test_a_seed(scripts, tmp_path):
    study = scripts("ablate_calr")
    recipe = scripts("command").read_config(
        str(SCRIPTS.parent / "configs/calr_synthetic.py:smoke"), []
    )
    recipe.data.synthetic_ids, recipe.devices = 20, 1
    recipe.schedule.epochs = 3
    study.one_seed("seed100", tmp_path, recipe)
    found = json.loads((tmp_path / "seed100" / "results.json").read_text())
    assert found[study.LOCAL]["zero_shot"]["mAP"] > 0
    plain, refined, drawn = (
        found[arm]["labels"] for arm in (study.BASE, study.REFINED, study.AT_RANDOM)
    )
    assert "removed_share" not in plain
    assert refined["removed_share"] > 0 and drawn["removed_share"] > 0
    assert refined["removal_precision"] != drawn["removal_precision"]
    summary = study.summarize({"seed100": found, "seed101": found})
    assert summary["differences"]["both minus baseline"]["mAP"]["sd"] == 0
