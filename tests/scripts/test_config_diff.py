"""What two recipes, or a run and a recipe, do otherwise; and the options as they are resolved."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.options import flatten
from ccafl_jax.training.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = "configs/ccafl_market1501.py"


@pytest.fixture
def command(monkeypatch):
    """scripts/config_diff.py, with what stands beside it."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.chdir(ROOT)
    import config_diff

    return config_diff


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of the recipe with another seed and other temperatures."""
    folder = tmp_path_factory.mktemp("runs") / "other"
    config = dataclasses.replace(
        CCAFLConfig(),
        seed=7,
        devices=2,
        icdl=dataclasses.replace(CCAFLConfig().icdl, temperature=0.1),
    )
    meta = json.loads(json.dumps({"config": dataclasses.asdict(config)}))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(3, {"x": np.zeros(1)}, meta)
    return folder


def call(command, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["config_diff.py", *map(str, words)])
    return command.main()


def test_two_recipes(command, monkeypatch, capsys):
    status = call(command, monkeypatch, RECIPE, "configs/ccafl_market1501_release.py")
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert status == 0
    assert rows["prompts.prefix_tokens"] == ["4", "5"]
    assert rows["optimizer.idle"] == ["'hold'", "'decay'"]
    assert rows["published_on"] == ["*", "''", "'market1501'"]
    assert "seed" not in rows and rows["*"] == ["changes", "no", "result"]


def test_a_run_and_its_recipe(command, monkeypatch, capsys, run, tmp_path):
    out = tmp_path / "d.json"
    assert call(command, monkeypatch, run, RECIPE, "--check", "--json", out) == 1
    assert json.loads(out.read_text()) == [
        {"option": "seed", "first": 7, "second": 1, "free": False},
        {"option": "devices", "first": 2, "second": 0, "free": True},
        {"option": "icdl.temperature", "first": 0.1, "second": 0.05, "free": False},
    ]


def test_what_changes_no_result_passes_the_check(command):
    options = command.options_of(RECIPE)
    rows = command.differences(options, options | {"devices": 3, "input.kind": "streaming"})
    assert [row["free"] for row in rows] == [True, True]
    assert command.differences(options, options) == []
    assert command.text([], "a", "b") == "no difference"


def test_options_that_one_side_lacks(command):
    rows = command.differences({"a": 1}, {"b": (2,)})
    assert [row["option"] for row in rows] == ["a", "b"]
    assert "a       1         (absent)" in command.text(rows, "x", "y")


def test_wrong_names_take_one_line(command, monkeypatch, capsys, tmp_path):
    for wrong, words in (
        (tmp_path, "no checkpoints, which hold the options of a run"),
        ("configs/none.py", "the recipes are in configs/"),
    ):
        with pytest.raises(SystemExit) as end:
            call(command, monkeypatch, RECIPE, wrong)
        said = capsys.readouterr().err
        assert end.value.code == 2 and words in said and said.count("\n") == 1


@pytest.mark.ci
def test_the_printed_options_are_those_of_the_recipe():
    words = ["scripts/train.py", "--config", RECIPE, "--print_config", "--config.seed=3"]
    words += ["--stages", "prompts,intra"]
    printed = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    found = {}
    for line in printed.splitlines():
        name, _, value = line.partition(" = ")
        found[name.removeprefix("config.")] = eval(value)
    assert found == flatten(CCAFLConfig(seed=3, stages=("prompts", "intra")))
