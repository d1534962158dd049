"""What bash completes is what the commands take."""

import importlib
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def completed(*words):
    """What bash offers for the last of the words of a command."""
    line = " ".join(f"'{word}'" for word in words)
    script = (
        f"source scripts/completion.bash; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
        '_ccafl_jax; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    said = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return said.stdout.split()


def test_the_file_is_what_the_commands_say(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.setenv("COLUMNS", "80")
    module = importlib.import_module("completion")
    assert module.completion() == module.FILE.read_text(), "run python scripts/completion.py"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["python", "scripts/train.py", "--work"], ["--workdir"]),
        (["python", "scripts/evaluate.py", "--save"], ["--save-features", "--save-results"]),
        (["python", "scripts/train.py", "--config", "ccafl_demo"], ["configs/ccafl_demo.py"]),
        (["python", "scripts/train.py", "--config", "configs/calr_v"], ["configs/calr_veri776.py"]),
        (["python", "mine.py", "--work"], []),
        (["python", "scripts/train.py", "runs"], []),
    ],
)
def test_bash_offers_options_and_recipes(words, offered):
    assert completed(*words) == offered
