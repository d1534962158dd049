"""The benchmark of search runs from end to end; its figures are not judged here."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.ci
def test_small_numbers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- search table -->\n<!-- end of search table -->\n")
    sizes = ["--gallery", "600", "--dim", "128", "--queries", "16", "--repeats", "1"]
    forms = ["--forms", "float32", "float16", "int8", "pca-64", "--depth", "20"]
    files = ["--json", tmp_path / "r.json", "--docs", page]
    done = subprocess.run(
        [sys.executable, "scripts/bench/search.py", *sizes, *forms, *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "r.json").read_text())["forms"]
    assert list(found) == ["float32", "float16", "int8", "pca-64"]
    exact = found["float32"]["searches"]["0"]
    assert exact["recall10"] == exact["speed_ratio"]["median"] == 1.0 and exact["mAP"] > 0.1
    assert found["int8"]["bytes"] < 0.3 * found["float32"]["bytes"]
    for form in ("float16", "int8", "pca-64"):
        rough, again = (found[form]["searches"][rescore] for rescore in ("0", "200"))
        assert rough["recall10"] > 0.5 and again["recall10"] >= rough["recall10"]
    assert found["int8"]["searches"]["200"]["mAP"] == pytest.approx(exact["mAP"], abs=1e-3)
    assert "| `int8` |" in page.read_text() and "| products alone |" in page.read_text()
