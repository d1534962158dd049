"""Every command explains itself with examples, errs in one line, and ends with a known status."""

import importlib
import pathlib
import re
import runpy
import signal
import subprocess
import sys

import pytest

from ccafl_jax import command_line
from ccafl_jax.command_line import Parser, one_line_errors
from ccafl_jax.training.peers import GONE

ROOT = pathlib.Path(__file__).parents[2]


def commands():
    """Files that are run as they are: those with a main part."""
    found = [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")]
    main = [path for path in found if '\nif __name__ == "__main__":\n' in path.read_text()]
    return sorted(str(path.relative_to(ROOT)) for path in main)


@pytest.mark.parametrize("command", commands())
def test_help_holds_examples(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    monkeypatch.setattr(sys, "path", [str((ROOT / command).parent), str(ROOT), *sys.path])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / command), run_name="__main__")
    said = capsys.readouterr().out
    assert end.value.code in (0, None)
    name = pathlib.Path(command).with_suffix("")
    module = ".".join(name.parts).removesuffix(".__main__")
    examples = said.partition("\nexamples:\n")[2]
    assert command in examples or f"python -m {module} " in examples, said


def test_there_are_commands_to_try():
    assert {"scripts/train.py", "scripts/bench/train.py", "data_prep/tiny_clip.py"} <= {*commands()}
    assert "data_prep/synthetic/__main__.py" in commands()


LIGHT = ("evaluate", "export", "prepare_data", "convert_weights", "calibrate", "results")


def test_help_imports_no_jax():
    code = (
        "import runpy, sys\n"
        "for name in sys.argv[1:]:\n"
        "    sys.argv = [name, '--help']\n"
        "    try: runpy.run_path(name, run_name='__main__')\n"
        "    except SystemExit as end: assert not end.code\n"
        "assert not {'jax', 'flax', 'orbax', 'tensorflow'} & {*sys.modules}\n"
    )
    files = [f"scripts/{name}.py" for name in LIGHT]
    paths = f"import sys; sys.path[:0] = ['scripts', {str(ROOT)!r}]\n"
    call = [sys.executable, "-c", paths + code, *files]
    finished = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def ends_with(error, monkeypatch, *words):
    """The exit status of a command that raises."""
    monkeypatch.setattr(sys, "argv", ["command", *words])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end, one_line_errors():
            raise error
    finally:
        signal.signal(signal.SIGTERM, before)
    return end.value.code


def test_what_a_user_can_mend_takes_one_line(monkeypatch, capsys):
    assert ends_with(ValueError("no such set:\n take another"), monkeypatch) == 2
    assert capsys.readouterr().err == "error: no such set:  take another\n"


def test_a_fault_of_the_program_takes_one_line_and_another_status(monkeypatch, capsys):
    assert ends_with(KeyError("pid"), monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: KeyError: 'pid'; ") and "--debug" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x")])
def test_debug_shows_where_it_came_from(monkeypatch, capsys, error):
    status = ends_with(error, monkeypatch, "--debug")
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):") and "in ends_with" in said
    assert said.splitlines()[-1].startswith("error: ")
    assert status == ends_with(error, monkeypatch)


def test_debug_is_no_argument_of_a_command():
    parser = Parser()
    parser.add_argument("--seed", type=int, default=1)
    assert vars(parser.parse_args(["--debug", "--seed", "3"])) == {"seed": 3}


def test_wrong_use_names_the_nearest_flag(capsys):
    parser = Parser()
    parser.add_argument("--seed", type=int)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--seeds", "3"])
    assert end.value.code == command_line.WRONG_USE
    assert "did you mean --seed?" in capsys.readouterr().err
    parser.add_argument("--workdir", required=True)
    with pytest.raises(SystemExit):
        parser.parse_args(["--seed", "3", "--workdr", "w"])
    said = capsys.readouterr().err
    assert "required: --workdir; --workdr is no option, did you mean --workdir?" in said


def test_who_reads_no_further_ends_it_quietly():
    told = "from ccafl_jax.command_line import one_line_errors\n"
    told += "with one_line_errors():\n    [print(number, flush=True) for number in range(10**6)]"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = subprocess.Popen([sys.executable, "-c", told], cwd=ROOT, text=True, **pipes)
    assert command.stdout.readline() == "0\n"
    command.stdout.close()
    assert command.stderr.read() == "" and command.wait() == command_line.CLOSED
    command.stderr.close()


def test_the_page_lists_every_status():
    page = (ROOT / "docs" / "training.md").read_text().partition("## Exit status")[2]
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    own = {command_line.FAILED, command_line.WRONG_USE, command_line.INTERRUPTED}
    own.add(command_line.CLOSED)
    assert listed == {0, GONE, 128 + signal.SIGTERM} | own


@pytest.mark.parametrize("given", [[], ["--debug"]])
def test_the_jobs_of_a_study_are_told_to_show_tracebacks(monkeypatch, tmp_path, given):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    jobs = importlib.import_module("proving.jobs")
    script = tmp_path / "study.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "place = pathlib.Path(sys.argv[2]) / sys.argv[4]\n"
        "place.mkdir()\n"
        "(place / 'results.json').write_text(json.dumps(sys.argv[5:]))\n"
    )
    monkeypatch.setattr(sys, "argv", ["study.py", *given])
    found = jobs.run_jobs(str(script), ["seed1"], tmp_path, ["--config", "a.py"], processes=1)
    assert found == {"seed1": ["--config", "a.py", *given]}
