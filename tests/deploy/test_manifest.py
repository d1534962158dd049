import hashlib
import json

import pytest

from ccafl_jax.deploy import manifest
from ccafl_jax.models.reid import ReIDConfig
from ccafl_jax.training.description import read_description
from tests.deploy import tiny


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.bin").write_bytes(b"weights")
    (tmp_path / "b.txt").write_text("text")
    about = manifest.describe(tiny.bundle("vit"), kind="orbax", dtype="float32", packages=["tqdm"])
    manifest.write(tmp_path, about)
    return tmp_path


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_it_describes_the_model_and_every_file(folder):
    about = manifest.verify(folder)
    assert about["files"] == {
        "b.txt": {"sha256": hashlib.sha256(b"text").hexdigest(), "bytes": 4},
        "inner/a.bin": {"sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7},
    }
    assert about["features"] == 24 and about["kind"] == "orbax" and about["metrics"] == {"mAP": 0.5}
    assert about["recipe"] == {"method": "ccafl", "config": {"seed": 1}}
    assert {"python", "jax", "flax", "numpy", "ccafl_jax", "tqdm"} <= about["versions"].keys()
    bundle = tiny.bundle("vit")
    assert read_description(about, "here") == (bundle.model, bundle.preprocess)


def test_a_description_without_a_filter_means_the_bicubic_one(folder):
    about = manifest.read(folder)
    assert about["preprocess"].pop("resample") == "bicubic"
    bundle = tiny.bundle("vit")
    assert read_description(about, "here") == (bundle.model, bundle.preprocess)
    about["preprocess"]["resample"] = "nearest"
    with pytest.raises(ValueError, match=r"here describes no model .*filter is 'nearest'"):
        read_description(about, "here")


def test_the_inputs_are_those_of_the_recipe():
    bundle = tiny.bundle("vit")
    inputs = manifest.input_signature(bundle)
    assert inputs["images"]["dtype"] == "uint8" and inputs["images"]["shape"] == ["b", 32, 16, 3]
    assert inputs["images"]["frames"] == 1 and inputs["images"]["modality"] == "visible"
    assert inputs["cameras"] == {"dtype": "int32", "shape": ["b"], "below": 3, "codes": [1, 2, 5]}
    assert "cameras" not in manifest.input_signature(tiny.bundle("resnet"))


def test_a_changed_byte_is_found(folder):
    (folder / "inner" / "a.bin").write_bytes(b"weightz")
    with pytest.raises(ValueError, match="damaged or was changed") as error:
        manifest.verify(folder)
    assert "a.bin" in one_line(error)


def test_a_missing_file_is_found(folder):
    (folder / "b.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.txt is missing") as error:
        manifest.verify(folder)
    one_line(error)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 1}', '{"format": 1, "files": [1]}'])
def test_what_is_no_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="is no manifest of an export") as error:
        manifest.verify(tmp_path)
    one_line(error)


def test_no_manifest_and_a_newer_one(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        manifest.verify(tmp_path / "inner")
    about = json.loads((folder / "manifest.json").read_text()) | {"format": 2}
    (folder / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="has format 2, this version reads 1"):
        manifest.verify(folder)


def test_a_description_of_no_known_model(folder):
    about = manifest.verify(folder)
    about["model"]["vision"]["kind"] = "mixer"
    with pytest.raises(ValueError, match="describes no model of this version"):
        read_description(about, "here")
    assert ReIDConfig.from_json(tiny.vit_config().to_json()) == tiny.vit_config()
