import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import ccafl_jax
from ccafl_jax.deploy.run_folder import write_run
from tests.deploy import tiny

ROOT = pathlib.Path(__file__).parents[2]


def export(*arguments):
    return subprocess.run(
        [sys.executable, "scripts/export.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def workdir(tmp_path):
    """A run folder and twelve pictures of another size."""
    write_run(tmp_path / "run", tiny.bundle("resnet"))
    (tmp_path / "pictures" / "inner").mkdir(parents=True)
    for number, image in enumerate(tiny.pixels(12)):
        path = tmp_path / "pictures" / "inner" / f"{number}.png"
        Image.fromarray(image).resize((24, 60)).save(path)
    (tmp_path / "pictures" / "Thumbs.db").write_text("no image")
    return tmp_path


@pytest.mark.ci
def test_from_a_run_to_a_loaded_model(workdir):
    out = workdir / "out"
    arguments = ("--run", workdir / "run", "--out", out, "--images", workdir / "pictures")
    finished = export(*arguments, "--count", 5)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    rows = re.findall(r"^(\w+) +float32 +[\d.]+ MB  ([\d.]+)$", finished.stdout, re.MULTILINE)
    assert [kind for kind, _ in rows] == ["orbax", "safetensors", "stablehlo"]
    assert all(float(cosine) >= 0.99999 for _, cosine in rows)
    assert "parity on 5 images" in finished.stdout and "releases of JAX up to" in finished.stdout
    paths = sorted((workdir / "pictures").rglob("*.png"))
    found = ccafl_jax.load(out, batch=4).embed(paths)
    expected = ccafl_jax.load(workdir / "run", batch=4).embed(paths)
    np.testing.assert_allclose(found, expected, atol=1e-6)

    again = export(*arguments, "--formats", "stablehlo")
    assert again.returncode == 2 and "pass --overwrite" in again.stderr
    again = export(*arguments, "--formats", "stablehlo", "--dtype", "bfloat16", "--overwrite")
    assert again.returncode == 0, again.stdout + again.stderr
    assert sorted(path.name for path in out.iterdir()) == ["orbax", "safetensors", "stablehlo"]
    assert json.loads((out / "stablehlo" / "manifest.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.ci
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--run": "nowhere"}, "nowhere: no such folder"),
        ({"--images": "nowhere"}, "--images nowhere: no such file or folder"),
        ({"--images": "scripts"}, "no image files (.jpg, .jpeg, .png, .bmp, .webp) in scripts"),
        ({"--formats": "pickle"}, "formats pickle: choose from"),
        ({"--dtype": "int8"}, "dtype 'int8': choose one of"),
        ({"--count": "0"}, "--count 0: the parity gate needs 1 or more"),
        ({"--epoch": "7"}, "7"),
    ],
)
def test_errors_take_one_line(workdir, changed, message):
    given = {"--run": workdir / "run", "--out": workdir / "o", "--images": workdir / "pictures"}
    finished = export(*(word for pair in (given | changed).items() for word in pair))
    assert finished.returncode == 2, finished.stdout + finished.stderr
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in finished.stderr, finished.stderr
    assert message in lines[0]
    assert not list(workdir.glob("o*"))


@pytest.mark.ci
def test_help_holds_examples():
    finished = export("--help")
    assert finished.returncode == 0 and "examples:" in finished.stdout
