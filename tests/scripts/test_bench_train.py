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


@pytest.mark.ci
def test_clips(tmp_path):
    page, figures = tmp_path / "page.md", tmp_path / "clips.json"
    page.write_text("<!-- clips_cpu table -->\n<!-- end of clips_cpu table -->\n")
    files = ["--json", str(figures), "--docs", str(page), "--table", "cpu"]
    done = subprocess.run(
        [sys.executable, "scripts/bench/train.py", "--clips", "--tiny", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "failed: none" in done.stdout, done.stderr
    found = json.loads(figures.read_text())["works"]["RN50 float32"]
    assert list(found["steps"]) == ["resident", "streaming"]
    for step in found["steps"].values():
        assert step["frames_per_second"] == pytest.approx(2 * step["clips_per_second"])
        assert 0 <= step["input_wait_share"] < 1 and step["flop_rate"] > 0
    assert found["features"]["frames_per_second"] > 0
    text = page.read_text()
    assert "| RN50 float32 | step, streaming |" in text and "dense features" in text
