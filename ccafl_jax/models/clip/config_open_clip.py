"""open_clip's `open_clip_config.json`: from and to a `CLIPConfig`.

A key is read, or it is known not to change what is computed, or the file is refused: a model that
pools or normalises in another way would load without complaint and give wrong features.

Source: the configuration classes and model files of open_clip 3.3.
"""

import math

from ccafl_jax.models.clip.config import (
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
    ViTConfig,
)
from ccafl_jax.models.clip.config_section import ANY, Section, settle_activation

_OFF = (False, None)
_NULL = (None,)

FILE_KEYS = ("model_cfg",)
FILE_HARMLESS = {"preprocess_cfg": ANY}

MODEL_KEYS = ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg")
MODEL_HARMLESS = {
    "custom_text": _OFF,
    "multimodal_cfg": _NULL,
    "init_logit_bias": _NULL,
    "nonscalar_logit_scale": _OFF,
    # The scale is in the weights; the others choose an arithmetic and a form of output.
    "init_logit_scale": ANY,
    "cast_dtype": ANY,
    "output_dict": ANY,
}

_TOWER_HARMLESS = {
    "output_tokens": _OFF,
    "final_ln_after_pool": _OFF,
    "ls_init_value": _NULL,
    "act_kwargs": (None, {}),
    "norm_kwargs": (None, {}, {"eps": 1e-5}),
    "block_type": (None, "default"),
    "qk_norm": _OFF,
    "scaled_cosine_attn": _OFF,
    "scale_heads": _OFF,
    "scale_attn_inner": _OFF,
    "scale_attn": _OFF,
    "scale_fc": _OFF,
}

VISION_KEYS = ("layers", "width", "image_size", "patch_size", "head_width", "mlp_ratio")
VISION_HARMLESS = _TOWER_HARMLESS | {
    "pool_type": ("tok",),
    "global_average_pool": _OFF,
    "attentional_pool": _OFF,
    "no_ln_pre": _OFF,
    "input_patchnorm": _OFF,
    "pos_embed_type": ("learnable",),
    "timm_model_name": (None, ""),
    # Read in training, by the attentional pool and by timm's towers only.
    "patch_dropout": ANY,
    "attn_pooler_queries": ANY,
    "attn_pooler_heads": ANY,
    "timm_model_pretrained": ANY,
    "timm_pool": ANY,
    "timm_proj": ANY,
    "timm_proj_bias": ANY,
    "timm_drop": ANY,
    "timm_drop_path": ANY,
}

TEXT_KEYS = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
TEXT_HARMLESS = _TOWER_HARMLESS | {
    "pool_type": ("argmax",),
    "no_causal_mask": _OFF,
    "embed_cls": _OFF,
    "use_pad_mask": _OFF,
    "proj_type": ("linear", None),
    "proj_bias": _OFF,
    "hf_model_name": (None, ""),
    "hf_tokenizer_name": (None, ""),
    "tokenizer_kwargs": (None, {}),
    "tokenizer_mode": _NULL,
    # Read by other pools and masks and by the text towers of transformers only.
    "pad_id": ANY,
    "eos_id": ANY,
    "correct_cls_mask": ANY,
    "hf_model_pretrained": ANY,
    "hf_proj_type": ANY,
    "hf_pooler_type": ANY,
}


def from_open_clip(file: Section, activation: str | None) -> CLIPConfig:
    """Reads the content of `open_clip_config.json` or its inner `model_cfg`.

    Args:
      file: the content.
      activation: what was asked for, None if nothing was.

    Raises:
      ValueError: see `parse_config`.
    """
    model = file
    if "model_cfg" in file:
        file.refuse_others(FILE_KEYS, FILE_HARMLESS)
        model = file.section("model_cfg")
    embed_dim = model.count("embed_dim")
    vision = _vision(model.section("vision_cfg"))
    text = _text(model.section("text_cfg"))
    model.refuse_others(MODEL_KEYS, MODEL_HARMLESS)
    stated = None
    if "quick_gelu" in model:
        if not isinstance(model.raw["quick_gelu"], bool):
            raise model.wrong("quick_gelu", "true or false")
        stated = "quick_gelu" if model.raw["quick_gelu"] else "gelu"
    return CLIPConfig(
        embed_dim=embed_dim,
        vision=vision,
        text=text,
        activation=settle_activation(stated, activation, key="quick_gelu", source=file.source),
    )


def config_to_json(config: CLIPConfig) -> dict:
    """The `model_cfg` of `open_clip_config.json`; strides of re-identification are added to it."""
    vision, text = config.vision, config.text
    if isinstance(vision, ViTConfig):
        tower = {
            "layers": vision.layers,
            "width": vision.width,
            "head_width": vision.width // vision.heads,
            "mlp_ratio": _mlp_ratio(vision.mlp_width, vision.width),
            "patch_size": vision.patch_size,
            "patch_stride": vision.stride,
        }
    else:
        tower = {
            "layers": list(vision.layers),
            "width": vision.width,
            "patch_size": None,
            "last_stride": vision.last_stride,
        }
    return {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.activation == "quick_gelu",
        "vision_cfg": {"image_size": list(vision.image_size), **tower},
        "text_cfg": {
            "context_length": text.context,
            "vocab_size": text.vocab,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": _mlp_ratio(text.mlp_width, text.width),
        },
    }


def _vision(raw: Section) -> VisionConfig:
    """The image tower; its `layers` tell the kind."""
    layers, timm = raw.raw.get("layers"), raw.raw.get("timm_model_name")
    counts = isinstance(layers, int | list | tuple) and not isinstance(layers, bool)
    if timm or not counts:
        raise ValueError(
            f"{raw.source}: unknown kind of image tower "
            f"({f'timm_model_name = {timm!r}' if timm else f'layers = {layers!r}'}); expected a "
            "CLIP ResNet, whose vision_cfg states layers as a list of four, e.g. [3, 4, 6, 3], or "
            "a ViT, with layers as a number and patch_size"
        )
    return _vit(raw) if isinstance(layers, int) else _resnet(raw)


def _vit(raw: Section) -> ViTConfig:
    raw.refuse_others((*VISION_KEYS, "patch_stride"), VISION_HARMLESS)
    width, patch_size = raw.count("width"), raw.count("patch_size")
    head_width = raw.count("head_width", 64)
    if width % head_width:
        raise ValueError(
            f"{raw.name('head_width')} is {head_width}; expected a divisor of the width {width}"
        )
    return raw.build(
        ViTConfig,
        layers=raw.count("layers"),
        width=width,
        heads=width // head_width,
        mlp_width=_mlp_width(raw, width),
        patch_size=patch_size,
        image_size=raw.pixels("image_size"),
        stride=raw.count("patch_stride", patch_size),
    )


def _resnet(raw: Section) -> ResNetConfig:
    # The heads of the attention pool follow from the width alone; there are no perceptrons.
    unread = {"head_width": (64,), "patch_size": ANY, "mlp_ratio": ANY}
    raw.refuse_others(("layers", "width", "image_size", "last_stride"), VISION_HARMLESS | unread)
    layers, size = tuple(raw.raw["layers"]), raw.pixels("image_size")
    if len(layers) != 4 or any(type(count) is not int or count < 1 for count in layers):
        raise raw.wrong("layers", "the blocks of four stages, e.g. [3, 4, 6, 3]")
    # A file may be of a size that only the stride 1 of re-identification divides.
    last_stride = 2 if all(side % 32 == 0 for side in size) else 1
    return raw.build(
        ResNetConfig,
        layers=layers,
        width=raw.count("width"),
        image_size=size,
        last_stride=raw.count("last_stride", last_stride),
    )


def _text(raw: Section) -> TextConfig:
    name = raw.raw.get("hf_model_name")
    if name:
        raise ValueError(
            f"{raw.source}: the text tower is {name!r}, which is none of CLIP's; use a checkpoint "
            "with CLIP's own text tower"
        )
    raw.refuse_others(TEXT_KEYS, TEXT_HARMLESS)
    width = raw.count("width")
    return raw.build(
        TextConfig,
        vocab=raw.count("vocab_size"),
        context=raw.count("context_length"),
        width=width,
        heads=raw.count("heads"),
        layers=raw.count("layers"),
        mlp_width=_mlp_width(raw, width),
    )


def _mlp_width(raw: Section, width: int) -> int:
    """Width of the perceptrons; open_clip drops the fraction."""
    mlp_width = int(width * raw.ratio("mlp_ratio", 4))
    if mlp_width < 1:
        raise raw.wrong("mlp_ratio", f"{1 / width:.3g} or more at a width of {width}")
    return mlp_width


def _mlp_ratio(mlp_width: int, width: int) -> float:
    """The smallest ratio from which `_mlp_width` gives back the width of the perceptrons."""
    ratio = mlp_width / width
    while int(width * ratio) < mlp_width:  # the quotient was rounded down
        ratio = math.nextafter(ratio, math.inf)
    return ratio
