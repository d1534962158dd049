"""Means over the splits of a data set, of runs that are made up and of trained ones."""

import copy
import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

import numpy as np
import pytest

from ccafl_jax.report.averages import average, average_table
from ccafl_jax.report.runs import read_finished_run
from ccafl_jax.training.checkpoints import Checkpoints
from ccafl_jax.training.description import FORMAT

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = {
    "data": {"name": "regdb", "root": "", "split": 1},
    "clustering": {"eps": 0.3},
    "text": {"weight": 1.0, "labels": ""},
    "input": {"kind": "auto"},
    "devices": 1,
    "seed": 1,
}
# Rank-1 of three runs, in both directions.
VISIBLE, THERMAL = (0.5, 0.8, 0.2), (0.25, 0.35, 0.75)


def figures(visible, thermal):
    directions = {
        "visible_to_thermal": {"mAP": visible / 2, "rank1": visible},
        "thermal_to_visible": {"mAP": thermal / 2, "rank1": thermal},
    }
    headline = directions["visible_to_thermal"]
    return {"dataset": "regdb", **headline, "rank1_std": 0.1, "directions": directions}


def make_run(folder, split, *, method="cclnet", code="a", summary=None, **changes):
    """A run folder with a summary and a checkpoint; `changes` are options, such as data__root."""
    config = copy.deepcopy(CONFIG)
    config["data"]["split"] = split
    for name, value in changes.items():
        group, _, option = name.rpartition("__")
        (config[group] if group else config)[option] = value
    found = figures(VISIBLE[split - 1], THERMAL[split - 1])
    stages = [{"name": "train", **found, "checkpoint": 3 * split, "seconds": 1.5 * split}]
    whole = {"method": method, "dataset": "regdb", "zero_shot": found, "stages": stages}
    whole |= {"final": found, "seconds": 7.0, "published": "", "train_images": 20}
    with Checkpoints(folder / "checkpoints") as checkpoints:
        meta = {"format": FORMAT, "method": method, "config": config, "code": {"run.py": code}}
        checkpoints.save(1, {"x": np.zeros(1, np.float32)}, meta)
    (folder / "summary.json").write_text(json.dumps(whole | (summary or {})))
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command; gives its exit status, stdout and stderr."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("average", ROOT / "scripts" / "average.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["average.py", *map(str, arguments)])
        status = 0
        try:
            module.main()
        except SystemExit as ending:
            status = ending.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_means_and_deviations_of_every_figure(tmp_path):
    changes = {"seed": 7, "data__root": "elsewhere", "devices": 2, "text__labels": "there"}
    folders = [
        make_run(tmp_path / "c", 3),
        make_run(tmp_path / "a", 1, **changes),
        make_run(tmp_path / "b", 2),
    ]
    found = average([read_finished_run(folder) for folder in folders])
    assert found["splits"] == [1, 2, 3] and found["same_code"]
    assert found["runs"] == [str(tmp_path / name) for name in "abc"]
    assert (found["method"], found["dataset"]) == ("cclnet", "regdb")
    # By hand: 0.5, 0.8, 0.2 around 0.5; 0.25, 0.35, 0.75 around 0.45.
    for part in (found["zero_shot"], found["stages"][0], found["final"]):
        assert part["rank1"]["mean"] == pytest.approx(0.5)
        assert part["rank1"]["std"] == pytest.approx(0.3)
        assert part["rank1"]["values"] == list(VISIBLE)
        back = part["directions"]["thermal_to_visible"]
        assert back["rank1"]["mean"] == pytest.approx(0.45)
        assert back["rank1"]["std"] == pytest.approx(np.sqrt((0.04 + 0.01 + 0.09) / 2))
        assert back["mAP"]["mean"] == pytest.approx(0.225)
        assert part["dataset"] == "regdb"
        assert not {"rank1_std", "seconds", "checkpoint"} & part.keys()
    lines = average_table(found).splitlines()
    assert lines[0].split() == ["mAP", "rank-1"]
    assert lines[-3].split() == [*"regdb after stage 2 (train) 25.0 (15.0) 50.0 (30.0)".split()]
    assert lines[-1].split() == [*"thermal to visible 22.5 (13.2) 45.0 (26.5)".split()]
    assert len(lines) == 7


def test_the_command_prints_and_writes(command, tmp_path):
    folders = [make_run(tmp_path / str(split), split) for split in (2, 1)]
    status, out, err = command(*folders, "--json", tmp_path / "mean.json")
    assert (status, err) == (0, "")
    assert "cclnet, 2 runs, of the splits 1, 2:" in out and "65.0 (21.2)" in out
    assert "warning" not in out
    written = json.loads((tmp_path / "mean.json").read_text())
    assert written == average([read_finished_run(folder) for folder in folders])
    make_run(tmp_path / "3", 3, code="b")
    status, out, _ = command(*folders, tmp_path / "3")
    assert status == 0 and "warning: the runs were not all trained by the same code" in out
    status, out, _ = command("--help")
    assert status == 0 and "for split in 1 2 3" in out


def cut_short(folder):
    make_run(folder, 2)
    (folder / "summary.json").write_text('{"zero_sh')


def unfinished(folder):
    make_run(folder, 2)
    (folder / "summary.json").unlink()


def without_checkpoints(folder):
    shutil.rmtree(make_run(folder, 2) / "checkpoints")


def of_another_version(folder):
    make_run(folder, 2)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        meta = checkpoints.restore_meta() | {"format": 1}
        checkpoints.save(2, {"x": np.zeros(1, np.float32)}, meta)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "other: no such folder"),
        (unfinished, "other: the run is not finished; go on with it (--resume)"),
        (cut_short, "other: summary.json or metrics.jsonl is damaged"),
        (without_checkpoints, "other: no checkpoints, which hold the options of a run"),
        (of_another_version, "other holds checkpoints of format 1, this version reads"),
        (lambda folder: make_run(folder, 1, seed=2), "are both of split 1; expected one run for"),
        (lambda folder: make_run(folder, 2, method="tfclip"), "a run of tfclip and"),
        (
            lambda folder: make_run(folder, 2, clustering__eps=0.6, text__weight=0.0),
            "clustering.eps is 0.3 there and 0.6 here and 1 more; only data.split, seed",
        ),
        (
            lambda folder: make_run(folder, 2, summary={"stages": []}),
            "stages are train there and none here",
        ),
        (
            lambda folder: make_run(folder, 2, summary={"final": {"mAP": 0.5}}),
            "do not have the same figures: final.dataset is in one alone",
        ),
    ],
)
def test_what_cannot_be_averaged_takes_one_line(command, tmp_path, make, message):
    make_run(tmp_path / "first", 1)
    make(tmp_path / "other")
    status, out, err = command(
        tmp_path / "first", tmp_path / "other", "--json", tmp_path / "x.json"
    )
    assert status == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1
    assert out == "" and not (tmp_path / "x.json").exists()


def test_one_run_is_no_average(command, tmp_path):
    status, _, err = command(make_run(tmp_path / "first", 1))
    assert status == 2 and "1 run to average; name two or more" in err


def test_runs_of_a_data_set_without_splits(tmp_path):
    runs = [read_finished_run(make_run(tmp_path / name, 1)) for name in "ab"]
    for run in runs:
        del run.description["config"]["data"]["split"]
    with pytest.raises(ValueError, match="are both of a data set without splits; expected one run"):
        average(runs)


@pytest.mark.ci
def test_trained_on_two_splits(tmp_path):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
    }
    data = {}

    def typed(*words):
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    short = ["schedule.prepare_epochs=1", "schedule.iterations=2", "swap.start=-1"]
    short += ["evaluation.every=0", "data.synthetic_ids=12"]
    options = ["--stages", "prepare", *(f"--config.{option}" for option in short)]
    for split in (1, 2):
        workdir = tmp_path / f"run_{split}"
        recipe = ["--config", "configs/cclnet_synthetic.py:regdb", *options]
        typed(
            "scripts/train.py",
            *recipe,
            f"--config.data.split={split}",
            "--workdir",
            workdir,
            "--no-report",
        )
        data[split] = json.loads((workdir / "summary.json").read_text())["final"]
    printed = typed("scripts/average.py", *sorted(tmp_path.glob("run_*")), "--json", tmp_path / "m")
    found = json.loads((tmp_path / "m").read_text())
    for direction in ("visible_to_thermal", "thermal_to_visible"):
        values = [data[split]["directions"][direction]["mAP"] for split in (1, 2)]
        assert values[0] != values[1]
        mean = found["final"]["directions"][direction]["mAP"]
        assert mean["mean"] == pytest.approx(statistics.fmean(values))
        assert mean["std"] == pytest.approx(statistics.stdev(values))
    assert "thermal to visible" in printed and "of the splits 1, 2:" in printed
