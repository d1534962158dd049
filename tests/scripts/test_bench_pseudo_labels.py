"""The benchmark of pseudo labels runs from end to end; its figures are not judged here."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.ci
def test_small_numbers(tmp_path):
    page, figures = tmp_path / "page.md", tmp_path / "r.json"
    page.write_text("<!-- pseudo_labels_cpu table -->\n<!-- end of pseudo_labels_cpu table -->\n")
    works = ["market1501", "half_million", "association", "refinement"]
    sizes = ["--scale", "0.02", "--repeats", "1", "--sample", "20"]
    files = ["--json", str(figures), "--docs", str(page)]
    done = subprocess.run(
        [sys.executable, "scripts/bench/pseudo_labels.py", *sizes, *files, "--works", *works],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "goals missed or results that differ:" in done.stdout, done.stderr
    found = json.loads(figures.read_text())["works"]
    assert list(found) == works
    for name, figure in found.items():
        assert figure["same_as_reference"], name
        assert figure["seconds"]["min"] > 0 and figure["peak_bytes"] > figure["features_bytes"]
        assert figure["clusters"] > 0
    assert found["market1501"]["labels_that_differ"] == 0
    assert "| Market-1501 size, 259 x 2,048 |" in page.read_text()
