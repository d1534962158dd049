"""The benchmark of training runs from end to end; its figures are not judged here."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.ci
def test_small_numbers(tmp_path):
    page, figures = tmp_path / "page.md", tmp_path / "r.json"
    page.write_text("<!-- train_cpu table -->\n<!-- end of train_cpu table -->\n")
    files = ["--json", str(figures), "--docs", str(page), "--table", "cpu"]
    phases = ["prompts", "intra+text"]
    done = subprocess.run(
        [sys.executable, "scripts/bench/train.py", "--tiny", "--phases", *phases, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "requirements missed:" in done.stdout, done.stderr
    works = json.loads(figures.read_text())["works"]
    assert list(works) == ["RN50 float32"]
    found = works["RN50 float32"]
    assert list(found["phases"]) == phases
    for step in (found["bare"], found["streaming"], *found["phases"].values()):
        assert step["flop_rate"] > 0 and step["compile_seconds"] > 0, step
    assert found["phases"]["intra+text"]["over_bare"] > 0
    assert 0 <= found["streaming"]["input_wait_share"] < 1
    # The whole schedule is projected, also where a phase was not measured.
    assert found["projection"]["not_measured"] == ["inter", "inter+text", "inter+text+ical"]
    assert all(found["projection"][part] > 0 for part in ("prompts", "steps", "total"))
    assert found["pytorch"]["error"] == "not compared: the networks are tiny"
    assert "| RN50 float32 | intra+text, streaming |" in page.read_text()
