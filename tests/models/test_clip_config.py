import copy
import json

import pytest

from ccafl_jax.models.clip import ResNetConfig, parse_config, read_config

RN50 = {
    "embed_dim": 1024,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 12,
    },
}


def changed(**options):
    raw = copy.deepcopy(RN50)
    for key, value in options.items():
        if value is None:
            del raw[key]
        elif isinstance(value, dict):
            raw[key].update(value)
        else:
            raw[key] = value
    return raw


def test_rn50():
    config = parse_config({"model_cfg": RN50})
    assert config == parse_config(RN50)
    assert config.activation == "quick_gelu"
    assert (config.vision.features, config.vision.heads, config.vision.grid) == (2048, 32, (7, 7))
    assert (config.text.vocab, config.text.width, config.text.layers) == (49408, 512, 12)
    person = config.for_images((256, 128), last_stride=1)
    assert person.vision.grid == (16, 8)
    assert person.text == config.text


def test_activation_must_be_known():
    silent = changed(quick_gelu=None)
    with pytest.raises(ValueError, match="does not state quick_gelu; pass --activation quick_gelu"):
        parse_config(silent)
    assert parse_config(silent, activation="quick_gelu").activation == "quick_gelu"
    assert parse_config(silent, activation="gelu").activation == "gelu"
    assert parse_config(changed(quick_gelu=False)).activation == "gelu"
    with pytest.raises(ValueError, match="states 'quick_gelu' but 'gelu'"):
        parse_config(RN50, activation="gelu")
    with pytest.raises(ValueError, match="choose one of"):
        parse_config(silent, activation="relu")


@pytest.mark.parametrize("vision", [{"layers": None}, {"timm_model_name": "convnext_base"}])
def test_unknown_image_tower(vision):
    with pytest.raises(ValueError, match="unknown kind of image tower"):
        parse_config(changed(vision_cfg=vision))


def test_missing_key_is_named():
    with pytest.raises(ValueError, match="has no 'embed_dim'"):
        parse_config(changed(embed_dim=None))


def test_bad_sizes():
    with pytest.raises(ValueError, match="not a multiple of the total stride 16"):
        ResNetConfig(layers=(1, 1, 1, 1), width=8, image_size=(60, 32), last_stride=1)
    with pytest.raises(ValueError, match="do not divide"):
        parse_config(changed(text_cfg={"heads": 7}))


def test_either_file_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(changed(embed_dim=512)))
    assert read_config(tmp_path).embed_dim == 512
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": RN50}))
    assert read_config(tmp_path).embed_dim == 1024
