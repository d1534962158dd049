"""Real sizes, from files on disk: seconds and memory of loading."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_full_size_files_load_within_bounds(tmp_path):
    """RN50 and ViT-B/16 at 256x128, each naming and form: 20 s and 4 GB."""
    command = ["scripts/bench/load_weights.py", "--repeats", "1", "--json", tmp_path / "r.json"]
    finished = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    rows = [row for row in json.loads((tmp_path / "r.json").read_text()) if "error" not in row]
    assert len(rows) == 9 and all(row["within_bounds"] for row in rows)
