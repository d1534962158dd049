"""The commands as a user types them: help, errors in one line, and a small run end to end."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

from scripts import command

ROOT = pathlib.Path(__file__).parents[2]
DEMO = ["--config", "configs/ccafl_demo.py:smoke"]


# One device; what the tests compiled is read.
ENVIRONMENT = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


def run(*arguments, timeout=900):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def one_line_error(finished):
    assert finished.returncode == 2, finished.stdout + finished.stderr
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in finished.stderr, finished.stderr
    return lines[0]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.schedule.epoch=3"],
            "unknown option 'schedule.epoch': did you mean schedule.epochs?",
        ),
        (
            ["--config.schedul.epochs=3"],
            "unknown option 'schedul.epochs': did you mean schedule.epochs?",
        ),
        (["--config.contrast.memory_update=hard"], "did you mean inter.memory_update?"),
        (["--config.schedule.epochs=x"], "--config.schedule.epochs=x is of another kind than"),
        (["--config.icdl.w=2.0"], "must lie between 0 and 1"),
        (["--epochs=3"], "unknown argument '--epochs=3'"),
        (["--stages", "prompt"], "must be one of prompts, intra, inter"),
        (["--config.data.root=nowhere"], "bounding_box_train"),
        (["--config.model.weights=nowhere"], "place there"),
    ],
)
def test_errors_take_one_line(tmp_path, arguments, message):
    finished = run("scripts/train.py", *DEMO, "--workdir", tmp_path / "w", *arguments)
    assert message in one_line_error(finished)


@pytest.mark.parametrize(
    ("variant", "overrides", "message"),
    [
        (
            "",
            ["--config.icdl.w=a"],
            "^--config.icdl.w=a is of another kind .*; --print_config",
        ),
        ("", ["--config.text.intra=maybe"], "^--config.text.intra=maybe is of another kind"),
        (":smok", [], "^configs/ccafl_demo.py:smok: choose smoke, bench"),
    ],
)
def test_errors_of_a_recipe_name_no_type_of_python(variant, overrides, message):
    with pytest.raises(ValueError, match=message):
        command.read_config(str(ROOT / "configs/ccafl_demo.py") + variant, overrides)


def test_a_device_without_memory_takes_one_line(capsys):
    words = "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore"
    with pytest.raises(SystemExit) as end, command.one_line_errors():
        raise jax.errors.JaxRuntimeError(words)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert "Out of memory allocating 99 bytes" in said and "--dry_run" in said
    with pytest.raises(SystemExit) as end, command.one_line_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
    assert end.value.code == 1 and "INTERNAL: something else" in capsys.readouterr().err


@pytest.mark.ci
def test_missing_recipe_and_missing_run(tmp_path):
    finished = run("scripts/train.py", "--config", "configs/none.py", "--workdir", tmp_path)
    assert "the recipes are in configs/" in one_line_error(finished)
    finished = run("scripts/evaluate.py", "--workdir", tmp_path / "none")
    assert "no such folder; name a run folder" in one_line_error(finished)


@pytest.mark.ci
def test_train_then_evaluate(tmp_path):
    workdir = tmp_path / "w"
    finished = run("scripts/train.py", *DEMO, "--workdir", workdir)
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["prompts", "intra", "inter"]
    finished = run("scripts/evaluate.py", "--workdir", workdir, "--json", tmp_path / "r.json")
    assert finished.returncode == 0, finished.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["mAP"] == pytest.approx(summary["final"]["mAP"], rel=1e-5)
    assert json.loads(finished.stdout.splitlines()[-1]) == result
    (kept,) = (workdir / "features").iterdir()
    assert f"features: read from {kept}" in finished.stdout  # those that the report was made of
    assert (workdir / "report.html").is_file()
    refused = run("scripts/train.py", *DEMO, "--workdir", workdir)
    assert "--resume, start anew with --overwrite" in one_line_error(refused)
    again = run("scripts/train.py", *DEMO, "--workdir", workdir, "--resume", "--no-report")
    assert again.returncode == 0, again.stderr
    resumed = json.loads((workdir / "summary.json").read_text())
    assert resumed["final"] == summary["final"]
    shutil.copytree(workdir, tmp_path / "copy")
    compare = ["scripts/compare.py", workdir, tmp_path / "copy", "--json", tmp_path / "c.json"]
    compared = run(*compare, "--bootstrap", "50")
    assert compared.returncode == 0 and "seeds 1, 1 of" in compared.stdout, compared.stderr
    (found,) = json.loads((tmp_path / "c.json").read_text())["differences"].values()
    assert found["mAP"]["low"] == found["mAP"]["high"] == 0 and found["mAP"]["queries"] > 0


@pytest.mark.ci
def test_overwrite_removes_a_run_only_when_the_new_one_can_start(tmp_path):
    workdir = tmp_path / "w"
    train = ["scripts/train.py", *DEMO, "--workdir", workdir, "--stages", "prompts"]
    assert run(*train).returncode == 0
    kept = sorted(path.name for path in workdir.iterdir())
    for wrong in ("--config.model.weights=nowhere", "--config.data.root=nowhere"):
        one_line_error(run(*train, "--overwrite", wrong))
        assert sorted(path.name for path in workdir.iterdir()) == kept
    both = run(*train, "--overwrite", "--resume")
    assert both.returncode == 2 and "not allowed with argument" in both.stderr
    assert run(*train, "--overwrite").returncode == 0


@pytest.mark.ci
def test_a_recipe_for_real_data_asks_for_weights(tmp_path):
    finished = run(
        "scripts/train.py", "--config", "configs/ccafl_market1501.py", "--workdir", tmp_path / "w",
        "--config.data.root=DIR",
    )  # fmt: skip
    assert "no weights: set --config.model.weights" in one_line_error(finished)
    assert not (tmp_path / "w").exists()


@pytest.mark.ci
def test_training_from_a_folder_from_records_and_from_a_manifest_is_the_same(tmp_path):
    people = ["--out", tmp_path / "raw", "--train-ids", "12", "--test-ids", "6", "--cameras", "3"]
    assert run("-m", "data_prep.synthetic", *people).returncode == 0
    prepare = ["scripts/prepare_data.py", "--dataset", "synthetic", "--raw", tmp_path / "raw"]
    assert run(*prepare, "--out", tmp_path / "prepared").returncode == 0
    splits = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
    lines = ["path,pid,camid,split"]
    for folder, split in splits.items():
        for path in sorted((tmp_path / "raw" / folder).glob("*.jpg")):
            pid, camera = path.name.split("_")[:2]
            lines.append(f"raw/{folder}/{path.name},{int(pid)},{camera[1]},{split}")
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
    found = {}
    for name, root, source in (
        ("synthetic", "raw", "folder"),
        ("synthetic", "prepared", "prepared"),
        ("manifest", "people.csv", "auto"),
    ):
        data = [f"--config.data.name={name}", f"--config.data.root={tmp_path / root}"]
        data += [f"--config.data.source={source}", f"--config.data.cache={tmp_path / 'cache'}"]
        workdir = tmp_path / f"w_{root}"
        finished = run("scripts/train.py", *DEMO, "--workdir", workdir, "--no-report", *data)
        assert finished.returncode == 0, finished.stderr
        found[root] = json.loads((workdir / "summary.json").read_text())
        evaluated = run("scripts/evaluate.py", "--workdir", workdir)
        assert evaluated.returncode == 0, evaluated.stderr
    assert found["prepared"]["final"] == found["raw"]["final"]
    assert found["people.csv"]["final"]["mAP"] == found["raw"]["final"]["mAP"]
    assert found["people.csv"]["dataset"] == "manifest"
    other = ["--workdir", tmp_path / "w_people.csv", "--root", tmp_path / "prepared"]
    evaluated = run("scripts/evaluate.py", *other, "--dataset", "synthetic")
    assert evaluated.returncode == 0 and "synthetic" in evaluated.stdout, evaluated.stderr
