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
    phases = {
        "RN50 float32": ["prompts", "intra+text"],
        "CALR, ResNet-50 float32": ["local", "global"],
    }
    asked = [phase for names in phases.values() for phase in names]
    done = subprocess.run(
        [sys.executable, "scripts/bench/train.py", "--tiny", "--phases", *asked, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "requirements missed:" in done.stdout, done.stderr
    works = json.loads(figures.read_text())["works"]
    assert list(works) == list(phases)
    unmeasured = [["inter", "inter+text", "inter+text+ical"], ["global+alignment"]]
    for (name, found), missing in zip(works.items(), unmeasured, strict=True):
        assert list(found["phases"]) == phases[name]
        for step in (found["bare"], found["streaming"], *found["phases"].values()):
            assert step["flop_rate"] > 0 and step["compile_seconds"] > 0, step
        encoder = phases[name][1]
        assert found["phases"][encoder]["over_bare"] > 0
        assert 0 <= found["streaming"]["input_wait_share"] < 1
        # The whole schedule is projected, also where a phase was not measured.
        assert found["projection"]["not_measured"] == missing
        parts = {key: value for key, value in found["projection"].items() if key != "not_measured"}
        assert all(value > 0 for value in parts.values()), parts
        assert found["pytorch"]["error"] == "not compared: the networks are tiny"
        assert f"| {name} | {encoder}, streaming |" in page.read_text()


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
    # The other kind of table has a file of its own.
    done = subprocess.run(
        [sys.executable, "scripts/bench/train.py", "--tiny", "--json", str(figures)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "name another file" in done.stderr, done.stderr
