"""The benchmark of training runs from end to end; its figures are not judged here."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(*words):
    return subprocess.run(
        [sys.executable, "scripts/bench/train.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


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
    done = run("--tiny", "--phases", *asked, *files)
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
def test_clips_stand_beside_images(tmp_path):
    page, figures = tmp_path / "page.md", tmp_path / "r.json"
    page.write_text("<!-- train_cpu table -->\n<!-- end of train_cpu table -->\n")
    # What an earlier run left of another method stays.
    earlier = json.loads((ROOT / "results" / "train_cpu.json").read_text())
    device = json.loads(run("--alone", "device").stdout)
    figures.write_text(json.dumps(earlier | {"device": device}))
    files = ["--json", str(figures), "--docs", str(page), "--table", "cpu"]
    done = run("--tiny", "--methods", "tfclip", *files)
    assert "requirements missed:" in done.stdout, done.stderr
    works = json.loads(figures.read_text())["works"]
    assert list(works) == ["RN50 float32", "TF-CLIP, ViT-B/16 float32"]
    assert works["RN50 float32"] == earlier["works"]["RN50 float32"]
    found = works["TF-CLIP, ViT-B/16 float32"]
    for step in (found["bare"], found["streaming"], found["phases"]["clips"]):
        assert step["flop_rate"] > 0 and step["compile_seconds"] > 0, step
    assert found["phases"]["clips"]["over_bare"] > 0
    assert 0 <= found["streaming"]["input_wait_share"] < 1
    lines = page.read_text().splitlines()
    clips = [line.split(" | ")[1:] for line in lines if line.count("|") == 6][2:]
    names = ["bare", "clips", "clips, streaming", "dense features"]
    assert [name for name, *_ in clips] == names
    for _, frames, clips_rate, frames_rate in clips:
        assert frames == "2"
        assert float(frames_rate.strip(" |")) == pytest.approx(2 * float(clips_rate), rel=1e-3)


def test_networks_of_another_method_are_refused():
    done = run("--methods", "calr", "--networks", "RN50")
    assert done.returncode == 1
    assert done.stderr == "error: the methods have none of these networks and phases: name others\n"
