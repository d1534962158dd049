"""open_clip's configuration files, and what is common to both kinds of file."""

import copy
import dataclasses
import json

import pytest

from ccafl_jax.models.clip import CLIPConfig, ResNetConfig, TextConfig, parse_config, read_config
from ccafl_jax.models.clip.config_files import config_to_json, config_to_transformers
from tests.models.checkpoints import small_config, small_vit_config

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
RN50 = {
    "embed_dim": 1024,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None},
    "text_cfg": TEXT,
}
VIT_B_32 = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": TEXT,
}


def changed(model=RN50, **options):
    """The model with other values; None leaves a key out."""
    raw = copy.deepcopy(model)
    for key, value in options.items():
        if value is None:
            del raw[key]
        elif isinstance(value, dict):
            raw[key].update(value)
        else:
            raw[key] = value
    return raw


def refused(raw, source="open_clip_config.json", **options):
    """The message of the error, which is one line and names the file."""
    with pytest.raises(ValueError) as error:
        parse_config(raw, source=source, **options)
    message = str(error.value)
    assert "\n" not in message and message.startswith(source)
    return message


def test_rn50():
    config = parse_config({"model_cfg": RN50, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}})
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
    assert "'relu' was asked for as activation; choose one of" in refused(silent, activation="relu")


@pytest.mark.parametrize("value", ["false", 1, 0])
def test_activation_is_true_or_false(value):
    message = refused(changed(quick_gelu=value))
    assert f"quick_gelu is {json.dumps(value)}; expected true or false" in message


@pytest.mark.parametrize(
    "vision", [{"layers": None}, {"layers": "12"}, {"timm_model_name": "convnext_base"}]
)
def test_unknown_image_tower(vision):
    assert "unknown kind of image tower" in refused(changed(vision_cfg=vision))


def test_missing_key_is_named():
    with pytest.raises(ValueError, match="has no 'embed_dim'"):
        parse_config(changed(embed_dim=None))
    raw = changed()
    del raw["text_cfg"]["heads"]
    assert "model_cfg.text_cfg has no 'heads'" in refused({"model_cfg": raw})


def test_bad_sizes():
    with pytest.raises(ValueError, match="not a multiple of the total stride 16"):
        ResNetConfig(layers=(1, 1, 1, 1), width=8, image_size=(60, 32), last_stride=1)
    assert "text_cfg: 7 text heads do not divide" in refused(changed(text_cfg={"heads": 7}))
    message = refused(changed(VIT_B_32, vision_cfg={"image_size": 16}))
    assert "smaller than a patch of 32 pixels" in message


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_cfg", "no_ln_pre", True),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "final_ln_after_pool", True),
        ("vision_cfg", "global_average_pool", True),
        ("vision_cfg", "attentional_pool", True),
        ("vision_cfg", "input_patchnorm", True),
        ("vision_cfg", "ls_init_value", 1e-4),
        ("vision_cfg", "pos_embed_type", "sin_cos_2d"),
        ("vision_cfg", "act_kwargs", {"approximate": "tanh"}),
        ("vision_cfg", "norm_kwargs", {"eps": 1e-6}),
        ("vision_cfg", "qk_norm", True),
        ("vision_cfg", "output_tokens", True),
        ("text_cfg", "pool_type", "eos"),
        ("text_cfg", "pool_type", "last"),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "embed_cls", True),
        ("text_cfg", "hf_tokenizer_name", "google/mt5-base"),
        ("text_cfg", "tokenizer_kwargs", {"clean": "canonicalize"}),
        ("text_cfg", "proj_type", "none"),
        ("text_cfg", "proj_bias", True),
        ("text_cfg", "norm_kwargs", {"eps": 1e-6}),
        ("text_cfg", "scale_fc", True),
    ],
)
def test_another_computation_is_refused(section, key, value):
    message = refused(changed(VIT_B_32, **{section: {key: value}}))
    assert f"{section}.{key} is {json.dumps(value)}; expected " in message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"custom_text": True}, "custom_text is true; expected false"),
        ({"init_logit_bias": -10}, "init_logit_bias is -10; expected null"),
        ({"multimodal_cfg": [1]}, "multimodal_cfg is [1]; expected null"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "the text tower is 'roberta-base'"),
    ],
)
def test_models_of_other_classes_are_refused(options, named):
    raw = copy.deepcopy(VIT_B_32)
    raw["text_cfg"] |= options.pop("text_cfg", {})
    assert named in refused(raw | options)


def test_unknown_keys_are_refused():
    for options in ({"image_cfg": 1}, {"vision_cfg": {"pool": 1}}, {"text_cfg": {"rope": 1}}):
        message = refused(changed(VIT_B_32, **options))
        assert "is 1; this key is unknown and may change what is computed" in message
    assert '"vision_cfg" is ' in refused({"model_cfg": VIT_B_32, "vision_cfg": {}})
    # The strides of re-identification belong to one kind of tower each.
    assert '"last_stride"' in refused(changed(VIT_B_32, vision_cfg={"last_stride": 1}))
    assert '"patch_stride"' in refused(changed(RN50, vision_cfg={"patch_stride": 8}))


@pytest.mark.parametrize("model", [RN50, VIT_B_32], ids=["resnet", "vit"])
def test_harmless_keys_change_nothing(model):
    raw = changed(model, vision_cfg={}, text_cfg={})
    raw |= {"custom_text": False, "init_logit_scale": 2.6, "output_dict": True, "cast_dtype": None}
    raw["vision_cfg"] |= {
        "head_width": 64,
        "mlp_ratio": 4.0,
        "patch_dropout": 0.5,
        "pool_type": "tok",
        "attentional_pool": False,
        "attn_pooler_heads": 8,
        "no_ln_pre": False,
        "ls_init_value": None,
        "norm_kwargs": {"eps": 1e-5},
        "act_kwargs": {},
        "timm_model_name": None,
        "timm_drop": 0.0,
    }
    raw["text_cfg"] |= {
        "pool_type": "argmax",
        "eos_id": 2,
        "pad_id": 0,
        "no_causal_mask": False,
        "proj_type": "linear",
        "hf_tokenizer_name": None,
        "hf_model_pretrained": True,
    }
    assert parse_config({"model_cfg": raw}) == parse_config(model)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"embed_dim": "512"}, 'embed_dim is "512"; expected a whole number'),
        ({"embed_dim": True}, "embed_dim is true; expected a whole number"),
        ({"vision_cfg": [768]}, "vision_cfg is [768]; expected an object"),
        ({"text_cfg": "ViT"}, 'text_cfg is "ViT"; expected an object'),
        ({"vision_cfg": {"image_size": "224"}}, 'vision_cfg.image_size is "224"; expected pixels'),
        ({"vision_cfg": {"image_size": [224]}}, "vision_cfg.image_size is [224]; expected pixels"),
        ({"vision_cfg": {"image_size": None}}, "vision_cfg.image_size is null; expected pixels"),
        ({"vision_cfg": {"patch_size": None}}, "vision_cfg.patch_size is null; expected a whole"),
        ({"vision_cfg": {"width": 768.0}}, "vision_cfg.width is 768.0; expected a whole number"),
        ({"vision_cfg": {"mlp_ratio": -1}}, "vision_cfg.mlp_ratio is -1; expected a positive"),
        ({"vision_cfg": {"mlp_ratio": "4"}}, 'vision_cfg.mlp_ratio is "4"; expected a positive'),
        ({"vision_cfg": {"mlp_ratio": 1e-4}}, "vision_cfg.mlp_ratio is 0.0001; expected 0.0013"),
        ({"vision_cfg": {"layers": [3, 4, 6]}}, "vision_cfg.layers is [3, 4, 6]; expected the"),
        ({"vision_cfg": {"layers": [3, 4, 6, "3"]}}, 'is [3, 4, 6, "3"]; expected the blocks'),
        ({"vision_cfg": {"head_width": 0}}, "vision_cfg.head_width is 0; expected a whole number"),
        ({"text_cfg": {"layers": "12"}}, 'text_cfg.layers is "12"; expected a whole number'),
        ({"text_cfg": {"heads": None}}, "text_cfg.heads is null; expected a whole number"),
    ],
)
def test_values_of_the_wrong_kind(options, named):
    assert named in refused(changed(VIT_B_32, **options))


def test_null_sections():
    for key in ("vision_cfg", "text_cfg"):
        assert f"{key} is null; expected an object" in refused(VIT_B_32 | {key: None})
    assert "model_cfg is null; expected an object" in refused({"model_cfg": None})


@pytest.mark.parametrize("text", ["[1, 2]", "null", '"clip"', "3"])
def test_file_that_holds_no_object(tmp_path, text):
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"open_clip_config\.json is .*; expected an object"):
        read_config(tmp_path)


def test_heads():
    odd = changed(VIT_B_32, vision_cfg={"width": 64, "head_width": 48})
    assert "vision_cfg.head_width is 48; expected a divisor of the width 64" in refused(odd)
    wide = changed(VIT_B_32, vision_cfg={"width": 1408, "head_width": 88, "mlp_ratio": 4.3637})
    assert (parse_config(wide).vision.heads, parse_config(wide).vision.mlp_width) == (16, 6144)
    pool = changed(RN50, vision_cfg={"head_width": 32})
    assert "vision_cfg.head_width is 32; expected 64" in refused(pool)


def test_perceptrons_keep_their_width():
    """The ratio that is written gives back the width, also where a quotient is rounded down."""
    vit, rounded = small_vit_config(), 0
    for width in (8, 24, 48, 64, 96, 448, 640, 976, 1408, 1664, 1792):
        for mlp_width in (*range(1, 120), *range(400, 6500, 61), 976, 6144, 8192, 15360):
            text = TextConfig(
                vocab=20, context=9, width=width, heads=1, layers=1, mlp_width=mlp_width
            )
            vision = dataclasses.replace(vit.vision, width=width, heads=8, mlp_width=mlp_width)
            config = dataclasses.replace(vit, vision=vision, text=text)
            raw = json.loads(json.dumps(config_to_json(config)))
            for tower in ("vision_cfg", "text_cfg"):
                # open_clip's own rule.
                assert int(raw[tower]["width"] * raw[tower]["mlp_ratio"]) == mlp_width
            assert parse_config(raw) == config
            rounded += int(width * (mlp_width / width)) != mlp_width
    assert rounded > 10  # the plain quotient would not do


@pytest.mark.parametrize("config", [small_config(), small_vit_config(stride=12)])
def test_round_trip(config):
    assert isinstance(config, CLIPConfig)
    raw = json.loads(json.dumps({"model_cfg": config_to_json(config)}))
    assert parse_config(raw) == config


def write(directory, **files):
    for name, raw in files.items():
        (directory / f"{name}.json").write_text(json.dumps(raw))


def test_either_file_is_read(tmp_path):
    write(tmp_path, config=changed(embed_dim=512))
    assert read_config(tmp_path).embed_dim == 512
    write(tmp_path, open_clip_config={"model_cfg": RN50})
    assert read_config(tmp_path).embed_dim == 1024


def test_activation_of_the_file_beside(tmp_path):
    """open_clip's file leaves the activation out and the other one states it."""
    config = parse_config(changed(VIT_B_32, quick_gelu=False))
    beside = config_to_transformers(config)
    silent = changed(VIT_B_32, quick_gelu=None)
    write(tmp_path, open_clip_config={"model_cfg": silent}, config=beside)
    assert read_config(tmp_path) == config
    assert read_config(tmp_path, activation="gelu") == config
    with pytest.raises(ValueError, match=r"config\.json states 'gelu' but 'quick_gelu' was asked"):
        read_config(tmp_path, activation="quick_gelu")
    # What open_clip's file states stands.
    write(tmp_path, open_clip_config={"model_cfg": VIT_B_32})
    assert read_config(tmp_path).activation == "quick_gelu"


def beside_of_other_sizes():
    raw = config_to_transformers(parse_config(VIT_B_32))
    raw["vision_config"]["num_hidden_layers"] = 24
    return raw


def silent_beside():
    raw = config_to_transformers(parse_config(VIT_B_32))
    del raw["text_config"]["hidden_act"]
    return raw


@pytest.mark.parametrize(
    "beside",
    [
        beside_of_other_sizes(),
        silent_beside(),
        {"architecture": "vit_base_patch32_clip_224", "num_classes": 512},  # timm's
        [],
    ],
    ids=["other sizes", "silent", "timm", "list"],
)
def test_file_beside_that_tells_nothing(tmp_path, beside):
    silent = changed(VIT_B_32, quick_gelu=None)
    write(tmp_path, open_clip_config={"model_cfg": silent}, config=beside)
    with pytest.raises(ValueError, match=r"open_clip_config\.json does not state quick_gelu"):
        read_config(tmp_path)
    assert read_config(tmp_path, activation="gelu").activation == "gelu"


def in_transformers(section, **sizes):
    raw = config_to_transformers(parse_config(VIT_B_32))
    raw[section] |= sizes
    return raw


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (changed(VIT_B_32, vision_cfg={"layers": 1}), "an image tower of 1 blocks"),
        (changed(VIT_B_32, vision_cfg={"patch_stride": 0}), "patch_stride is 0; expected a whole"),
        (changed(VIT_B_32, vision_cfg={"patch_stride": 33}), "patch stride 33 must lie between 1"),
        (changed(VIT_B_32, vision_cfg={"head_width": 1536}), "a divisor of the width 768"),
        (changed(RN50, vision_cfg={"last_stride": 3}), "last_stride is 3; choose 1 or 2"),
        (changed(RN50, vision_cfg={"image_size": 100}), "not a multiple of the total stride"),
        (in_transformers("vision_config", num_attention_heads=7), "7 image heads do not divide"),
        (in_transformers("vision_config", num_hidden_layers=1), "an image tower of 1 blocks"),
        (in_transformers("vision_config", patch_size=0), "patch_size is 0; expected a whole"),
        (in_transformers("text_config", num_attention_heads=7), "7 text heads do not divide"),
        (in_transformers("text_config", hidden_act="relu"), 'hidden_act is "relu"; expected'),
    ],
)
def test_sizes_that_no_tower_has_name_the_file(raw, named):
    assert named in refused(raw)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ({"model_type": "siglip", "vision_config": {}, "text_config": {}}, "siglip"),
        ({"model_type": "bert", "hidden_size": 768}, "bert"),
        ({"architectures": ["BertModel"], "hidden_size": 768}, "BertModel"),
        ({"architecture": "vit_base_patch16_224", "num_classes": 0}, "vit_base_patch16_224"),
    ],
)
def test_configurations_of_other_models(raw, name):
    assert f"this is the configuration of a {name} model, not a CLIP" in refused(raw)
