"""Models in the naming of transformers' `CLIPModel`."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from ccafl_jax.models.clip import (
    CLIP,
    config_transformers,
    load_clip,
    parse_config,
    save_clip,
)
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
        image, text = clip.visual.project(last[:, 0]), clip.text.encode_ids(ids, eot)
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


def refused(raw, **options):
    """The message of the error, which is one line and names the file."""
    with pytest.raises(ValueError) as error:
        parse_config(raw, source="config.json", **options)
    message = str(error.value)
    assert "\n" not in message and message.startswith("config.json")
    return message


def test_activation_must_be_stated():
    silent = config_file(text_config={"hidden_act": None}, vision_config={"hidden_act": None})
    assert "hidden_act of vision_config and text_config; pass --activation" in refused(silent)
    assert parse_config(silent, activation="gelu").activation == "gelu"
    with pytest.raises(ValueError, match="states two activations"):
        parse_config(config_file(text_config={"hidden_act": "quick_gelu"}))
    with pytest.raises(ValueError, match="choose one of"):
        parse_config(silent, activation="gelu_new")
    new = config_file(text_config={"hidden_act": "gelu_new"})
    assert 'text_config.hidden_act is "gelu_new"; expected "quick_gelu" or "gelu"' in refused(new)


@pytest.mark.parametrize("tower", ["text_config", "vision_config"])
def test_activation_of_one_tower_is_not_that_of_the_other(tower):
    one = config_file(**{tower: {"hidden_act": None}})
    assert f"does not state hidden_act of {tower}; pass --activation" in refused(one)
    assert parse_config(one, activation="gelu").activation == "gelu"
    message = refused(one, activation="quick_gelu")
    assert "states 'gelu' but 'quick_gelu' was asked for" in message


def test_sizes_that_the_file_leaves_out_are_those_of_transformers():
    stated = {"hidden_act": "quick_gelu"}
    raw = {"model_type": "clip", "vision_config": stated, "text_config": stated}
    config = parse_config(raw)
    assert (config.embed_dim, config.vision.patch_size, config.vision.width) == (512, 32, 768)
    assert config.vision.grid == (7, 7)
    assert (config.text.vocab, config.text.context, config.text.mlp_width) == (49408, 77, 2048)


def test_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    for defaults, kind in (
        (config_transformers.VISION_DEFAULTS, transformers.CLIPVisionConfig),
        (config_transformers.TEXT_DEFAULTS, transformers.CLIPTextConfig),
    ):
        assert {key: getattr(kind(), key) for key in defaults} == defaults
    assert transformers.CLIPConfig().projection_dim == 512


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision_config": {"layer_norm_eps": 1e-6}}, "vision_config.layer_norm_eps is 1e-06"),
        ({"text_config": {"layer_norm_eps": 1e-6}}, "text_config.layer_norm_eps is 1e-06"),
        ({"vision_config": {"num_channels": 4}}, "vision_config.num_channels is 4; expected 3"),
        (
            {"vision_config": {"model_type": "siglip_vision_model"}},
            'vision_config.model_type is "siglip_vision_model"; expected "clip_vision_model"',
        ),
        (
            {"text_config": {"model_type": "chinese_clip_text_model"}},
            'text_config.model_type is "chinese_clip_text_model"; expected "clip_text_model"',
        ),
        ({"vision_config": {"image_size": "224"}}, 'vision_config.image_size is "224"; expected'),
        ({"vision_config": {"patch_size": [16, 16]}}, "vision_config.patch_size is [16, 16]"),
        ({"text_config": {"num_hidden_layers": "12"}}, 'text_config.num_hidden_layers is "12"'),
        ({"text_config": {"num_attention_heads": 5}}, "text_config: 5 text heads do not divide"),
        ({"text_config": {"hidden_act": ["gelu"]}}, 'text_config.hidden_act is ["gelu"]'),
    ],
)
def test_other_towers_are_refused(changes, named):
    assert named in refused(config_file(**changes))


@pytest.mark.parametrize("kind", ["siglip", "clipseg", "chinese_clip", "vit"])
def test_other_models_are_refused(kind):
    expected = f"this is the configuration of a {kind} model, not a CLIP"
    assert expected in refused(config_file() | {"model_type": kind})
    assert expected in refused({"model_type": kind, "hidden_size": 768})


@pytest.mark.parametrize("section", [None, [], "clip", 3])
@pytest.mark.parametrize("key", ["vision_config", "text_config", "vision_config_dict"])
def test_sections_that_are_no_objects(key, section):
    if key.endswith("_dict") and section is None:
        assert parse_config(config_file() | {key: None}) == parse_config(config_file())
        return
    expected = f"{key} is {json.dumps(section)}; expected an object"
    assert expected in refused(config_file() | {key: section})


def test_size_of_the_joint_space_is_that_of_the_file():
    """As in `CLIPModel`, which does not read the sizes that the towers state."""
    raw = config_file(text_config={"projection_dim": 512}, vision_config={"projection_dim": 512})
    assert parse_config(raw).embed_dim == 16
    assert "projection_dim is null" in refused(raw | {"projection_dim": None})


LARGE = {
    "vision": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
    },
    "text": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
    },
}


def legacy_file():
    """A ViT-L/14 in the form of older files, which state everything twice."""
    raw = {"model_type": "clip", "projection_dim": 768}
    for tower, sizes in LARGE.items():
        raw[f"{tower}_config"] = dict(sizes)
        raw[f"{tower}_config_dict"] = {k: v for k, v in sizes.items() if k != "hidden_act"}
    return raw


def test_legacy_sections_override():
    raw = legacy_file()
    config = parse_config(raw)
    assert (config.vision.width, config.vision.layers, config.text.heads) == (1024, 24, 12)
    assert config.activation == "quick_gelu"
    for tower, sizes in LARGE.items():  # alone, as in the oldest files
        raw |= {f"{tower}_config": None, f"{tower}_config_dict": sizes}
    assert parse_config(raw) == config
    silent = legacy_file() | {"text_config": None}
    assert "does not state hidden_act of text_config;" in refused(silent)


def test_legacy_sections_are_merged_as_in_transformers():
    transformers = pytest.importorskip("transformers")
    raw = legacy_file() | {"text_config": None}
    theirs = transformers.CLIPConfig(**copy.deepcopy(raw))
    ours = parse_config(raw, activation="quick_gelu")
    for mine, other in ((ours.vision, theirs.vision_config), (ours.text, theirs.text_config)):
        assert (mine.layers, mine.width) == (other.num_hidden_layers, other.hidden_size)
        assert (mine.heads, mine.mlp_width) == (other.num_attention_heads, other.intermediate_size)
    assert ours.vision.patch_size == theirs.vision_config.patch_size


@pytest.mark.parametrize(
    ("key", "value", "legacy"),
    [
        ("num_hidden_layers", 12, 24),
        ("num_attention_heads", 8, 16),
        ("hidden_act", "gelu", "quick_gelu"),  # the default of transformers would win
        ("image_size", 336, 224),
    ],
)
def test_legacy_sections_that_differ_are_refused(key, value, legacy):
    raw = legacy_file()
    raw["vision_config"][key] = value
    message = refused(raw)
    assert f"vision_config.{key} is {json.dumps(value)} but vision_config_dict makes it" in message
    assert json.dumps(legacy) in message
