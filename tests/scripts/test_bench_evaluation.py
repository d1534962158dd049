"""The benchmark of evaluation runs from end to end; its figures are not judged here."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.ci
def test_small_numbers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- evaluation table -->\n<!-- end of evaluation table -->\n")
    sizes = ["--scale", "0.02", "--repeats", "1", "--sample", "20"]
    files = ["--json", tmp_path / "r.json", "--docs", page]
    done = subprocess.run(
        [sys.executable, "scripts/bench/evaluation.py", *sizes, *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "goals missed:" in done.stdout, done.stderr
    works = json.loads((tmp_path / "r.json").read_text())["works"]
    assert list(works) == ["market1501", "msmt17", "msmt17_reranked", "million"]
    for name, found in works.items():
        assert found["seconds"]["min"] > 0 and found["peak_bytes"] > found["features_bytes"]
        assert 0 < found["summary"]["mAP"] <= 1
        if name != "msmt17_reranked":  # a plain NumPy ranking of the same features agrees
            assert found["largest_ap_difference"] < 1e-4
    assert works["msmt17_reranked"]["summary"]["mAP"] > works["msmt17"]["summary"]["mAP"]
    assert "| MSMT17 size, re-ranked (20, 6, 0.3): metrics |" in page.read_text()
