"""Models in the naming of transformers' `CLIPModel`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from ccafl_jax.models.clip import CLIP, load_clip, parse_config, save_clip
from tests.golden_data import ROOT, golden
from tests.models.checkpoints import (
    close,
    random_tensors,
    small_config,
    small_vit_config,
    to_nhwc,
)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_golden(activation):
    folder = f"05_hf_{activation}_s0"
    data = golden("io", f"ccafl/{folder}")
    clip = load_clip(ROOT / "ccafl" / folder)
    assert clip.config.activation == activation
    assert int(data["eos_token_id"]) == 2  # the feature is then read at the largest id
    eot = jnp.argmax(data["input_ids"], axis=1)

    @jax.jit
    def run(pixels, ids):
        penultimate, last = clip.visual.encode(pixels)
        block = clip.visual.blocks[-1](penultimate)
        image, text = clip.visual.project(last), clip.text.encode_ids(ids, eot)
        return block, last[:, 0], image, text

    block, pooled, image, text = run(to_nhwc(data["pixel_values"]), data["input_ids"])
    close(block, data["vision_last_hidden_state"])
    close(pooled, data["vision_pooler_output"])
    close(image, data["image_features"])
    close(text, data["text_features"])
    unit = [np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    close(unit[0], data["image_embeds"])
    close(unit[1], data["text_embeds"])
    scale = np.exp(clip.logit_scale[...])
    close(scale * unit[1] @ unit[0].T, data["logits_per_text"])


def test_round_trip_of_files(tmp_path):
    """What was loaded is written again bit by bit, in this naming and in the other."""
    source = ROOT / "ccafl" / "05_hf_gelu_s0"
    clip = load_clip(source)
    save_clip(clip, tmp_path / "same", naming="transformers")
    save_clip(clip, tmp_path / "other", naming="openai")
    original = load_file(str(source / "model.safetensors"))
    written = load_file(str(tmp_path / "same" / "model.safetensors"))
    assert set(original) == set(written)
    for name, value in original.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    for folder in ("same", "other"):
        again = load_clip(tmp_path / folder)
        assert again.config == clip.config
        assert_same(again, clip)


def assert_same(left, right):
    left, right = (nnx.to_flat_state(nnx.state(x)) for x in (left, right))
    assert len(left) == len(right)
    for (path, a), (other, b) in zip(left, right, strict=True):
        assert path == other
        np.testing.assert_array_equal(a[...], b[...], err_msg=str(path))


def test_position_numbers_are_no_parameters(tmp_path):
    from safetensors.numpy import save_file

    config = small_vit_config()
    tensors = random_tensors(config, naming="transformers")
    clip = CLIP(config, rngs=nnx.Rngs(0))
    save_clip(clip, tmp_path, naming="transformers")
    for tower in ("text", "vision"):
        tensors[f"{tower}_model.embeddings.position_ids"] = np.arange(5)[None]
    save_file(tensors, str(tmp_path / "model.safetensors"))
    loaded = load_clip(tmp_path)
    q, k, v = (tensors[f"text_model.encoder.layers.1.self_attn.{p}_proj.weight"].T for p in "qkv")
    np.testing.assert_array_equal(
        loaded.text.blocks[1].in_proj.kernel[...], np.concatenate([q, k, v], axis=1)
    )
    np.testing.assert_array_equal(loaded.visual.proj[...], tensors["visual_projection.weight"].T)


def test_naming_that_cannot_hold_the_model(tmp_path):
    resnet = CLIP(small_config(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no ResNet tower; write the openai naming"):
        save_clip(resnet, tmp_path / "a", naming="transformers")
    wide = CLIP(small_vit_config(image_size=(64, 32)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="square images and no overlapping patches"):
        save_clip(wide, tmp_path / "b", naming="transformers")
    with pytest.raises(ValueError, match="choose one of"):
        save_clip(resnet, tmp_path / "c", naming="torch")
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def config_file(**changes):
    path = ROOT / "ccafl" / "05_hf_gelu_s0" / "config.json"
    raw = json.loads(path.read_text())
    for tower, values in changes.items():
        raw[tower] = {k: v for k, v in (raw[tower] | values).items() if v is not None}
    return raw


def test_activation_must_be_stated():
    silent = config_file(text_config={"hidden_act": None}, vision_config={"hidden_act": None})
    with pytest.raises(ValueError, match=r"does not state hidden_act; pass --activation"):
        parse_config(silent)
    assert parse_config(silent, activation="gelu").activation == "gelu"
    one = config_file(text_config={"hidden_act": None})
    assert parse_config(one).activation == "gelu"
    with pytest.raises(ValueError, match="states 'gelu' but 'quick_gelu' was asked for"):
        parse_config(one, activation="quick_gelu")
    with pytest.raises(ValueError, match="states two activations"):
        parse_config(config_file(text_config={"hidden_act": "quick_gelu"}))
    with pytest.raises(ValueError, match="choose one of"):
        parse_config(silent, activation="gelu_new")


def test_sizes_that_the_file_leaves_out_are_those_of_transformers():
    raw = {"model_type": "clip", "vision_config": {"hidden_act": "quick_gelu"}, "text_config": {}}
    config = parse_config(raw)
    assert (config.embed_dim, config.vision.patch_size, config.vision.width) == (512, 32, 768)
    assert config.vision.grid == (7, 7)
    assert (config.text.vocab, config.text.context, config.text.mlp_width) == (49408, 77, 2048)


def test_other_layer_norms_are_refused():
    with pytest.raises(ValueError, match="layer_norm_eps is 1e-06"):
        parse_config(config_file(vision_config={"layer_norm_eps": 1e-6}))
