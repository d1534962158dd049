"""Runs beside each other: tables, means over seeds, curves, paired intervals, refusals."""

import dataclasses
import importlib
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.report import comparison
from ccafl_jax.report.runs import read_finished_run
from ccafl_jax.scoring import feature_set
from ccafl_jax.scoring.evaluate import evaluate
from ccafl_jax.training.checkpoints import Checkpoints
from tests.methods.small_run import small_run
from tests.scoring.made import features_of, market

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


def figures(value):
    return {"dataset": "market1501", "mAP": value, "rank1": value + 0.1, "mINP": value / 2}


def made_run(folder, *, seed=1, value=0.5, features=None, **changes):
    """The folder of a run that ended with `value`."""
    folder.mkdir(parents=True)
    stages = [{"name": "intra", **figures(value - 0.1)}, {"name": "inter", **figures(value)}]
    summary = {"method": "ccafl", "dataset": "market1501", "zero_shot": None, "stages": stages}
    summary["final"] = figures(value)
    (folder / "summary.json").write_text(json.dumps(summary))
    epochs = [{"stage": "prompts", "epoch": 0, "loss": 9.0}]
    epochs += [{"stage": "encoder", "epoch": e, "total": 4.0 - e} for e in range(3)]
    epochs[-1]["mAP"] = value
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, epochs)))
    config = dataclasses.asdict(dataclasses.replace(CCAFLConfig(), seed=seed, **changes))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(3, {"x": np.zeros(1)}, {"config": json.loads(json.dumps(config))})
    if features is not None:
        (folder / "features").mkdir()
        feature_set.save(folder / "features" / "market1501-0123.npz", features)
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command; returns what it printed, or its one line of error."""
    monkeypatch.syspath_prepend(SCRIPTS)
    command = importlib.import_module("compare")

    def run(*words, fails=False):
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, words)])
        if not fails:
            command.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as end:
            command.main()
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.count("\n") == 1, said
        return said

    return run


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Two seeds of a recipe on other devices, and another recipe."""
    folder = tmp_path_factory.mktemp("three")
    return [
        made_run(folder / "a", seed=1, value=0.5),
        made_run(folder / "b", seed=2, value=0.6, devices=2),
        made_run(folder / "c", seed=2, value=0.7, reduce="mean_cam_mean"),
    ]


def test_the_table_has_a_row_for_each_stage(call, three):
    lines = [line.split() for line in call(*three).splitlines()]
    assert lines[0] == ["run", "stage", "data", "set", "mAP", *"rank-1 rank-5 rank-10 mINP".split()]
    assert lines[1][-5:] == ["40.0", "50.0", "-", "-", "20.0"]
    assert lines[2][-5:] == ["50.0", "60.0", "-", "-", "25.0"]
    assert [line[0] for line in lines[1:7]] == [str(run) for run in three for _ in range(2)]


def test_runs_that_differ_by_their_seed_are_averaged(call, three, tmp_path):
    printed = call(*three, "--json", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())
    (group,) = found["groups"]
    assert group["runs"] == [str(three[0]), str(three[1])] and group["seeds"] == [1, 2]
    final = group["stages"]["after stage 3 (inter)"]
    assert final["mAP"] == pytest.approx(
        {"mean": 0.55, "std": np.std([5, 6], ddof=1) / 10, "runs": 2}
    )
    assert "rank5" not in final
    assert f"seeds 1, 2 of {three[0]}, {three[1]}" in printed and "55.0 ± 7.1" in printed
    assert [run["seed"] for run in found["runs"]] == [1, 2, 2]
    assert found["runs"][2]["stages"]["after stage 2 (intra)"]["mAP"] == pytest.approx(0.6)


@pytest.mark.parametrize(("name", "begin"), [("c.png", b"\x89PNG"), ("c.svg", b"<?xml")])
def test_curves_are_drawn(call, three, tmp_path, name, begin):
    assert str(tmp_path / "new" / name) in call(*three, "--plot", tmp_path / "new" / name)
    drawn = (tmp_path / "new" / name).read_bytes()
    assert drawn.startswith(begin)
    assert read_finished_run(three[0]).curve("total", "loss") == ([1, 2, 3], [4.0, 3.0, 2.0])
    assert read_finished_run(three[0]).curve("mAP") == ([3], [0.5])


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Three models on one test set, the second of which sees people better; and another set."""
    folder = tmp_path_factory.mktemp("scored")
    base = market()
    clear = features_of(base.pid, base.camid, noise=0.1)
    sets = {
        "base": base,
        "clear": dataclasses.replace(base, features=clear),
        "flipped": dataclasses.replace(base, meta={"flip": True}),
        "others": market(seed=1),
        "fewer": base.take(np.arange(len(base) - 1)),
        "renamed": dataclasses.replace(base, names=np.array([f"x{i}" for i in range(len(base))])),
    }
    return {name: made_run(folder / name, features=features) for name, features in sets.items()}


def test_the_difference_of_two_runs_has_a_paired_interval(call, scored, tmp_path):
    runs = [scored["base"], scored["clear"]]
    printed = call(*runs, "--bootstrap", 200, "--json", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())["differences"][str(runs[1])]
    own = [evaluate(feature_set.load(next((run / "features").iterdir()))).figures for run in runs]
    for name in ("mAP", "rank1", "mINP"):
        assert found[name]["value"] == pytest.approx(own[1][name] - own[0][name], rel=1e-9)
        assert found[name]["samples"] == 200
    assert 0 < found["mAP"]["low"] < found["mAP"]["value"] < found["mAP"]["high"]
    assert f"minus {runs[0]}" in printed and f"{100 * found['mAP']['value']:+.1f} (" in printed


def test_a_run_that_was_trained_elsewhere_is_paired_on_the_set_that_both_were_scored_on(
    scored, tmp_path
):
    shutil.copytree(scored["clear"], tmp_path / "w")
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    (tmp_path / "w" / "summary.json").write_text(json.dumps(summary | {"dataset": "elsewhere"}))
    runs = [read_finished_run(path) for path in (tmp_path / "w", scored["base"])]
    for pair in (runs, runs[::-1]):
        (found,) = comparison.differences(pair, samples=50).values()
        assert abs(found["mAP"].value) > 0.01


def test_the_same_features_do_not_differ(scored):
    runs = [read_finished_run(scored["base"]), read_finished_run(scored["base"])]
    (found,) = comparison.differences(runs, samples=50).values()
    assert all((i.value, i.low, i.high) == (0, 0, 0) for i in found.values())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("flipped", "flip is True of one and None of the other"),
        ("others", "differs, they are of other images"),
        ("fewer", "they have 106 and 107 images"),
        ("renamed", "where one has"),
    ],
)
def test_what_cannot_be_paired_is_explained(call, scored, other, words):
    said = call(scored["base"], scored[other], "--bootstrap", fails=True)
    assert "cannot be paired" in said and words in said


def test_wrong_use_takes_one_line(call, three, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.jsonl").write_text("")
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([three[0], tmp_path / "begun"], "begun: the run is not finished; go on with it"),
        ([tmp_path / "empty"], "empty: no run (no summary.json)"),
        ([tmp_path / "none"], "none: no such folder"),
        ([three[0], three[0]], "is named twice"),
        ([three[0], "--bootstrap"], "--bootstrap is about the difference of two runs"),
        ([three[0], three[1], "--bootstrap"], "keeps no features of market1501: run python"),
        ([three[0], "--plot", tmp_path / "a.pdf"], "ends in .png or .svg"),
    ):
        assert message in call(*words, fails=True)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metrics.jsonl", '{"stage": "enc', "Unterminated string"),
        ("summary.json", '{"method": "ccafl"}', "the summary has no dataset"),
        ("summary.json", "3", "not iterable"),
    ],
)
def test_a_damaged_file_takes_one_line(call, tmp_path, name, text, reason):
    run = made_run(tmp_path / "w")
    (run / name).write_text(text)
    said = call(run, fails=True)
    assert "summary.json or metrics.jsonl is damaged" in said and reason in said


def test_runs_without_checkpoints_are_compared_and_are_of_no_recipe(call, tmp_path):
    runs = [made_run(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    for run in runs:
        shutil.rmtree(run / "checkpoints")
    call(*runs, "--json", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())
    assert [run["seed"] for run in found["runs"]] == [None, None] and found["groups"] == []
    assert [run["method"] for run in found["runs"]] == ["ccafl", "ccafl"]
    read = read_finished_run(runs[0])
    assert read.options == {} and read.code == {}


@pytest.mark.ci
def test_a_real_run_is_read(tmp_path):
    summary = small_run(tmp_path / "w", stages=("prompts", "intra")).train()
    run = read_finished_run(tmp_path / "w")
    assert comparison.stages_of(run)["after stage 2 (intra)"]["mAP"] == summary["final"]["mAP"]
    assert run.options["seed"] == 1 and run.options["icdl.instances"] == 4
    epochs, losses = run.curve("total", "loss")
    assert epochs == [1] and np.isfinite(losses).all()
