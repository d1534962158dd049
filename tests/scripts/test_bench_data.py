"""The benchmark of data sets runs from end to end; its figures are not judged here."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.ci
def test_small_numbers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- data table -->\n<!-- end of data table -->\n")
    sizes = ["--images", "300", "--records", "100000", "--repeats", "1"]
    files = ["--json", tmp_path / "r.json", "--docs", page]
    done = subprocess.run(
        [sys.executable, "scripts/bench/data.py", *sizes, *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "bounds missed:" in done.stdout, done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    assert all(rate["min"] > 0 for rate in results["rates"].values()) and len(results["rates"]) == 7
    # Opening takes no memory for the records: 100,000 of them or 10,000,000.
    assert 0 < results["many"]["peak_bytes"]["max"] < 1e9
    assert "| raw records at random |" in page.read_text()
