import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from ccafl_jax.deploy.archive import read_archive, write_orbax, write_safetensors
from tests.deploy import tiny

WRITERS = {"orbax": write_orbax, "safetensors": write_safetensors}


def identical(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        array = np.asarray(found[path])
        assert array.dtype == value.dtype and array.shape == value.shape, path
        assert array.tobytes() == np.ascontiguousarray(value).tobytes(), path


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_the_round_trip_is_bit_identical(tmp_path, kind, form):
    bundle = tiny.bundle(kind)
    WRITERS[form](tmp_path, bundle)
    found = read_archive(tmp_path)
    identical(found.params, bundle.params)
    identical(found.batch_stats, bundle.batch_stats)
    for name in ("model", "preprocess", "recipe", "metrics", "source"):
        assert getattr(found, name) == getattr(bundle, name), name


def test_names_are_those_of_open_clip_and_of_published_heads(tmp_path):
    params = tiny.bundle("vit").params
    write_safetensors(tmp_path, tiny.bundle("vit"))
    tensors = load_file(tmp_path / "model.safetensors")
    kernel = params["visual/blocks/1/in_proj/kernel"]
    name = "visual.transformer.resblocks.1.attn.in_proj_weight"
    np.testing.assert_array_equal(tensors[name], kernel.T)
    patches = params["visual/stem/kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(tensors["visual.conv1.weight"], patches)
    np.testing.assert_array_equal(tensors["cv_embed"], params["camera_embedding"])
    halves = [tensors["bottleneck.weight"], tensors["bottleneck_proj.weight"]]
    np.testing.assert_array_equal(np.concatenate(halves), params["neck/scale"])
    heads = {n for n in tensors if not n.startswith("visual.")}
    parts = ("weight", "running_mean", "running_var")
    necks = {f"{neck}.{part}" for neck in ("bottleneck", "bottleneck_proj") for part in parts}
    assert heads == {"cv_embed"} | necks


@pytest.mark.parametrize("form", WRITERS)
def test_arrays_of_another_model(tmp_path, form):
    """The manifest describes a model with another number of cameras."""
    WRITERS[form](tmp_path, tiny.bundle("vit"))
    about = json.loads((tmp_path / "manifest.json").read_text())
    about["model"]["heads"]["cameras"] = 5
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"cv_embed|camera_embedding") as error:
        read_archive(tmp_path)
    assert "\n" not in str(error.value) and "5" in str(error.value)


def test_a_model_that_lacks_an_array_is_not_written(tmp_path):
    bundle = tiny.bundle("resnet")
    del (params := dict(bundle.params))["gem/p"]
    with pytest.raises(ValueError, match="1 arrays missing"):
        write_orbax(tmp_path, type(bundle)(**{**vars(bundle), "params": params}))


def test_a_function_is_no_archive(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": 1, "files": {}, "kind": "stablehlo"}')
    with pytest.raises(ValueError, match="'stablehlo' export, not an archive"):
        read_archive(tmp_path)


@pytest.mark.parametrize("form", WRITERS)
def test_a_manifest_that_lists_nothing_proves_nothing(tmp_path, form):
    WRITERS[form](tmp_path, tiny.bundle("vit"))
    about = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(about | {"files": {}}))
    with pytest.raises(ValueError, match="which cannot be checked then"):
        read_archive(tmp_path)


def test_a_manifest_without_its_description(tmp_path):
    write_orbax(tmp_path, tiny.bundle("vit"))
    about = json.loads((tmp_path / "manifest.json").read_text())
    for key in ("recipe", "metrics", "inputs", "source"):
        del about[key]
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    assert read_archive(tmp_path).recipe == {}
    del about["preprocess"]
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"manifest\.json describes no model .*preprocess"):
        read_archive(tmp_path)
