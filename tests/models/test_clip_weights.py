import json
import pickle

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from ccafl_jax.models.clip import load_clip, save_clip
from ccafl_jax.models.clip.config_files import config_to_json, config_to_transformers
from ccafl_jax.models.clip.weights import export_tensors
from ccafl_jax.models.layers import Compute, resize_positions
from ccafl_jax.models.tensor_files import write_shards
from tests.models.checkpoints import random_tensors, small_config, small_vit_config

POSITIONS = "visual.attnpool.positional_embedding"


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(small_config())


def write(directory, tensors, config=None, name="model.safetensors"):
    directory.mkdir(exist_ok=True)
    raw = config_to_json(config or small_config())
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": raw}))
    save_file(tensors, str(directory / name))
    return directory


def test_names_are_those_of_openai(tensors):
    for name in (
        "visual.conv1.weight",
        "visual.bn3.running_var",
        "visual.layer1.0.downsample.0.weight",
        "visual.layer4.0.downsample.1.running_mean",
        "visual.attnpool.q_proj.weight",
        "visual.attnpool.positional_embedding",
        "transformer.resblocks.1.attn.in_proj_weight",
        "transformer.resblocks.1.attn.out_proj.bias",
        "transformer.resblocks.0.mlp.c_fc.weight",
        "transformer.resblocks.0.ln_2.bias",
        "token_embedding.weight",
        "positional_embedding",
        "text_projection",
        "ln_final.weight",
        "logit_scale",
    ):
        assert name in tensors
    assert tensors["visual.conv1.weight"].shape == (2, 3, 3, 3)
    assert tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape == (32, 8)
    assert tensors["text_projection"].shape == (8, 6)


def test_round_trip(tmp_path, tensors):
    clip = load_clip(write(tmp_path / "a", tensors))
    assert clip.config == small_config()
    save_clip(clip, tmp_path / "b")
    written = load_file(str(tmp_path / "b" / "model.safetensors"))
    assert set(written) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    again = load_clip(tmp_path / "b")
    assert again.config == clip.config
    np.testing.assert_array_equal(
        again.visual.stem.conv2.kernel[...], clip.visual.stem.conv2.kernel[...]
    )


def test_every_parameter_is_loaded(tmp_path, tensors):
    clip = load_clip(write(tmp_path / "a", tensors))
    total = sum(np.size(v[...]) for _, v in nnx.to_flat_state(nnx.state(clip)))
    assert total == sum(v.size for v in tensors.values())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_raised(tmp_path, tensors, dtype):
    half = {name: value.astype(dtype) for name, value in tensors.items()}
    clip = load_clip(write(tmp_path / "a", half))
    kernel = clip.text.text_projection[...]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, half["text_projection"].astype(np.float32))


def test_half_file_keeps_running_statistics(tmp_path, tensors):
    save_clip(load_clip(write(tmp_path / "a", tensors)), tmp_path / "b", half=True)
    written = load_file(str(tmp_path / "b" / "model.safetensors"))
    assert written["visual.bn1.weight"].dtype == np.float16
    np.testing.assert_array_equal(
        written["visual.bn1.running_var"], tensors["visual.bn1.running_var"]
    )


def test_parameter_dtype(tmp_path, tensors):
    clip = load_clip(write(tmp_path / "a", tensors), compute=Compute(param_dtype=jnp.bfloat16))
    assert clip.visual.stem.conv1.kernel[...].dtype == jnp.bfloat16


def test_counters_are_no_parameters(tmp_path, tensors):
    extra = {"visual.bn1.num_batches_tracked": np.asarray(3)}
    load_clip(write(tmp_path / "a", {**tensors, **extra}))


def test_missing_and_extra_tensors_are_listed(tmp_path, tensors):
    changed = dict(tensors)
    del changed["visual.layer2.0.bn2.weight"]
    changed["visual.layer9.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError) as error:
        load_clip(write(tmp_path / "a", changed))
    message = str(error.value)
    assert "1 ['visual.layer2.0.bn2.weight'] missing from the file" in message
    assert "1 ['visual.layer9.weight'] unknown to the model" in message
    assert "\n" not in message


def test_a_prefix_of_all_names_has_a_cure(tmp_path, tensors):
    wrapped = {f"module.{name}": x for name, x in tensors.items()}
    with pytest.raises(ValueError, match=r"starts with module\., which .* --to-safetensors FILE"):
        load_clip(write(tmp_path / "a", wrapped))
    with pytest.raises(ValueError, match="check that configuration and weights belong together"):
        load_clip(write(tmp_path / "b", {**wrapped, "other": np.zeros(1, np.float32)}))


def test_misshapen_tensor_is_named(tmp_path, tensors):
    changed = {**tensors, "transformer.resblocks.0.mlp.c_fc.weight": np.zeros((8, 32), "f4")}
    with pytest.raises(ValueError, match=r"c_fc.weight has shape \[8, 32\].*expects \[32, 8\]"):
        load_clip(write(tmp_path / "a", changed))


def test_statistics_are_accounted_for(tmp_path, tensors):
    changed = {k: v for k, v in tensors.items() if k != "visual.bn2.running_mean"}
    with pytest.raises(ValueError, match=r"visual\.bn2\.running_mean"):
        load_clip(write(tmp_path / "a", changed))


def test_positions_follow_the_images(tmp_path, tensors):
    directory = write(tmp_path / "a", tensors)
    clip = load_clip(directory, image_size=(128, 32), last_stride=1)
    assert clip.visual.attnpool.grid == (8, 2)
    expected = resize_positions(tensors[POSITIONS], old_grid=(4, 2), new_grid=(8, 2))
    np.testing.assert_allclose(clip.visual.attnpool.positional_embedding[...], expected, atol=1e-6)
    same_count = load_clip(directory, image_size=(32, 64), last_stride=1)
    table = same_count.visual.attnpool.positional_embedding[...]
    assert np.abs(table - tensors[POSITIONS]).max() > 0.1


def test_stride_two_checkpoint_for_stride_one(tmp_path):
    config = small_config(image_size=(64, 64), last_stride=2)
    tensors = random_tensors(config)
    assert tensors[POSITIONS].shape[0] == 1 + 2 * 2
    clip = load_clip(write(tmp_path / "a", tensors, config), image_size=(64, 32), last_stride=1)
    assert clip.visual.attnpool.positional_embedding[...].shape[0] == 1 + 4 * 2


def test_positions_of_no_grid(tmp_path, tensors):
    changed = {**tensors, POSITIONS: np.zeros((1 + 7, 128), np.float32)}
    with pytest.raises(ValueError, match="7 grid rows"):
        load_clip(write(tmp_path / "a", changed))


def test_nothing_there(tmp_path, tensors):
    with pytest.raises(FileNotFoundError, match=r"no directory .*safetensors"):
        load_clip(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither open_clip_config.json nor config.json"):
        load_clip(tmp_path)
    directory = write(tmp_path / "a", tensors)
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors file"):
        load_clip(directory)


def test_sharded_and_ambiguous_files(tmp_path, tensors):
    names = sorted(tensors)
    directory = write(tmp_path / "a", {n: tensors[n] for n in names[:9]}, name="m-1.safetensors")
    write(directory, {n: tensors[n] for n in names[9:]}, name="m-2.safetensors")
    with pytest.raises(ValueError, match="several weight files"):
        load_clip(directory)
    index = {n: f"m-{1 if i < 9 else 2}.safetensors" for i, n in enumerate(names)}
    (directory / "m.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    clip = load_clip(directory)
    np.testing.assert_array_equal(clip.text.token_embedding[...], tensors["token_embedding.weight"])


NAMINGS = [
    ("resnet", "openai"),
    ("vit", "openai"),
    ("vit", "transformers"),
]


def write_checkpoint(directory, tower, naming, *, change=lambda tensors: tensors, shards=0):
    """A random checkpoint with its configuration; returns the tensors."""
    config = small_vit_config() if tower == "vit" else small_config()
    tensors = change(random_tensors(config, naming=naming))
    directory.mkdir(exist_ok=True)
    if naming == "transformers":
        raw = config_to_transformers(config)
        (directory / "config.json").write_text(json.dumps(raw))
    else:
        raw = {"model_cfg": config_to_json(config)}
        (directory / "open_clip_config.json").write_text(json.dumps(raw))
    if shards:
        write_shards(directory, tensors, shards)
    else:
        save_file(tensors, str(directory / "model.safetensors"))
    return tensors


@pytest.mark.parametrize(("tower", "naming"), NAMINGS)
@pytest.mark.parametrize("form", ["float32", "float16", "bfloat16", "sharded"])
def test_every_naming_in_every_form(tmp_path, tower, naming, form):
    def stored(tensors):
        dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}.get(form, np.float32)
        return {name: value.astype(dtype) for name, value in tensors.items()}

    tensors = write_checkpoint(
        tmp_path, tower, naming, change=stored, shards=3 if form == "sharded" else 0
    )
    clip = load_clip(tmp_path)
    written = export_tensors(clip, naming=naming)
    assert written.keys() == tensors.keys()
    for name, value in tensors.items():
        assert written[name].dtype == np.float32
        np.testing.assert_array_equal(written[name], value.astype(np.float32), err_msg=name)


def without(name):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def renamed(name):
    return lambda tensors: {(k + "_" if k == name else k): v for k, v in tensors.items()}


def replaced(name, function):
    return lambda tensors: tensors | {name: np.ascontiguousarray(function(tensors[name]))}


def poisoned(value):
    value = value.copy()
    value[-1] = np.nan
    return value


NAMES = {
    "openai": "transformer.resblocks.1.mlp.c_fc.weight",
    "transformers": "text_model.encoder.layers.1.mlp.fc1.weight",
}


@pytest.mark.parametrize(("tower", "naming"), NAMINGS)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without, "1 ['{name}'] missing from the file; 0 unknown"),
        (renamed, "1 ['{name}'] missing from the file; 1 ['{name}_'] unknown"),
        (lambda name: replaced(name, np.transpose), "{file}: tensor {name} has shape"),
        (lambda name: replaced(name, np.transpose), "its axes are in another order"),
        (lambda name: replaced(name, poisoned), "{file}: tensor {name} holds 8 of"),
    ],
)
def test_damaged_tensors_are_named(tmp_path, tower, naming, damage, message):
    name = NAMES[naming]
    write_checkpoint(tmp_path, tower, naming, change=damage(name))
    with pytest.raises(ValueError) as error:
        load_clip(tmp_path)
    file = tmp_path / "model.safetensors"
    assert message.format(name=name, file=file) in str(error.value)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_truncated_and_pickled_files_are_named(tmp_path):
    write_checkpoint(tmp_path, "vit", "openai")
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete safetensors file"):
        load_clip(tmp_path)
    path.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin.*convert_weights\.py"):
        load_clip(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(path)
    with pytest.raises(ValueError, match=r"model\.safetensors.*pickle.*convert_weights\.py"):
        load_clip(tmp_path)


def test_vit_positions_follow_the_images(tmp_path):
    tensors = write_checkpoint(tmp_path, "vit", "transformers")
    clip = load_clip(tmp_path, image_size=(64, 32), patch_stride=12)
    assert clip.visual.config.grid == (5, 2)
    stored = tensors["vision_model.embeddings.position_embedding.weight"]
    expected = resize_positions(stored, old_grid=(2, 2), new_grid=(5, 2))
    np.testing.assert_allclose(clip.visual.positional_embedding[...], expected, atol=1e-6)
    save_clip(clip, tmp_path / "again")  # overlapping and not square: stated in open_clip's file
    again = load_clip(tmp_path / "again")
    assert again.config == clip.config
    np.testing.assert_array_equal(
        again.visual.positional_embedding[...], clip.visual.positional_embedding[...]
    )


def test_weights_of_another_configuration(tmp_path):
    write_checkpoint(tmp_path, "vit", "transformers")
    (tmp_path / "config.json").unlink()
    raw = config_to_json(small_config())
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": raw}))
    with pytest.raises(ValueError, match="the configuration states a ResNet"):
        load_clip(tmp_path)
    save_file(random_tensors(small_vit_config()), str(tmp_path / "model.safetensors"))
    with pytest.raises(ValueError, match=r"weights do not match the model: \d+ \[.*, '\.\.\.'\]"):
        load_clip(tmp_path)
