import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import ccafl_jax
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.exporting import export_model
from ccafl_jax.deploy.fingerprints import model_fingerprint
from ccafl_jax.deploy.loading import find, load_bundle
from ccafl_jax.deploy.run_folder import write_run
from tests.deploy import tiny

IMAGES = tiny.pixels(3)
CAMERAS = [2, 0, 1]


@pytest.fixture(scope="module")
def expected():
    return Embedder(tiny.bundle("vit"), batch=2).embed(IMAGES, CAMERAS)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "out"
    export_model(tiny.bundle("vit"), out, images=IMAGES)
    return out


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("inner", ["", "orbax", "safetensors", "stablehlo"])
def test_exports(out, expected, inner):
    model = ccafl_jax.load(out / inner, batch=2)
    assert (model.features, model.cameras, model.batch) == (24, tiny.CAMERAS, 2)
    for flip in (False, True):  # every form of a model says that it is that model
        known = model_fingerprint(tiny.bundle("vit"), flip=flip)
        assert model.fingerprint(flip=flip) == known != model.fingerprint(flip=not flip)
    close(model.embed(list(IMAGES), CAMERAS), expected)


def test_run_folders(tmp_path, expected):
    write_run(tmp_path / "run", tiny.bundle("vit"))
    close(ccafl_jax.load(str(tmp_path / "run"), batch=2).embed(IMAGES, CAMERAS), expected)
    assert load_bundle(tmp_path / "run", number=0).model == tiny.vit_config()


def test_the_preferred_folder(out, tmp_path):
    assert find(out) == out / "orbax"
    shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns("orbax"))
    assert find(tmp_path / "out") == tmp_path / "out" / "safetensors"


def test_arithmetic(out, expected):
    half = ccafl_jax.load(out, batch=2, compute_dtype="bfloat16").embed(IMAGES, CAMERAS)
    assert 1e-5 < np.abs(half - expected).max() < 5e-2
    for options in ({"compute_dtype": "bfloat16"}, {"devices": 2}):
        with pytest.raises(ValueError, match="exported in float32 for one device"):
            ccafl_jax.load(out / "stablehlo", **options)
    assert ccafl_jax.load(out / "stablehlo", compute_dtype="float32").batch == 64


def test_a_changed_archive_is_not_loaded(out, tmp_path):
    shutil.copytree(out / "safetensors", tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or was changed"):
        ccafl_jax.load(tmp_path / "copy")


def test_what_cannot_be_loaded(out, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; name a run folder"):
        ccafl_jax.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="neither checkpoints/ nor") as error:
        ccafl_jax.load(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="not an archive"):
        load_bundle(out / "stablehlo")
    with pytest.raises(ValueError, match=r"leave the number .--epoch. out"):
        load_bundle(out, number=3)
    about = {"format": 1, "kind": "pickle", "files": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="of kind 'pickle'"):
        ccafl_jax.load(tmp_path)


def test_importing_the_package_is_light():
    code = "import sys, ccafl_jax; print({'jax', 'PIL', 'orbax', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
