"""How published configuration files state the sizes of a CLIP model.

Two kinds of file are read: open_clip's `open_clip_config.json` (`model_cfg` with `vision_cfg`,
`text_cfg` and `quick_gelu`) and the `config.json` of transformers' `CLIPModel` (`vision_config`,
`text_config`, `projection_dim`, `hidden_act`). The first is written as well.
"""

import json
import pathlib
from collections.abc import Mapping

from ccafl_jax.models.clip.config import (
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
    ViTConfig,
)

FILES = ("open_clip_config.json", "config.json")
NO_RESNET = "transformers' CLIPModel has no ResNet tower; write the openai naming"
ASK_FOR_ACTIVATION = (
    "pass --activation quick_gelu (OpenAI's weights and those tuned from them) or --activation "
    "gelu (most others); the wrong one loses accuracy silently"
)


def read_config(directory: str | pathlib.Path, *, activation: str | None = None) -> CLIPConfig:
    """Reads `open_clip_config.json` or `config.json` of a directory.

    Args:
      directory: of the model.
      activation: what the file does not state; see `parse_config`.

    Returns:
      The configuration, at the image size of the file and the strides of the published towers.

    Raises:
      FileNotFoundError: if neither file is there.
      ValueError: see `parse_config`.
    """
    directory = pathlib.Path(directory)
    for name in FILES:
        path = directory / name
        if path.is_file():
            try:
                raw = json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(f"{path} is no JSON ({error}): fetch it again") from None
            return parse_config(raw, activation=activation, source=str(path))
    raise FileNotFoundError(
        f"{directory} holds neither open_clip_config.json nor config.json; place there the "
        "configuration, the *.safetensors weights and the tokenizer files of a CLIP model"
    )


def parse_config(
    raw: Mapping, *, activation: str | None = None, source: str = "configuration"
) -> CLIPConfig:
    """Turns the JSON of a published model into a `CLIPConfig`.

    Args:
      raw: of `open_clip_config.json` (or its inner `model_cfg`), or of the `config.json` of a
        `CLIPModel`, whose sizes default to those of transformers as they do there.
      activation: "quick_gelu" or "gelu", needed when the file states none. What a library falls
        back to is not taken for a statement.
      source: name of the file for messages.

    Raises:
      ValueError: on a missing key, an image tower of an unknown kind, an activation that is not
        stated, or one that contradicts the file.
    """
    if "vision_config" in raw or raw.get("model_type") == "clip":
        return _from_transformers(raw, activation, source)
    return _from_open_clip(raw.get("model_cfg", raw), activation, source)


def config_to_json(config: CLIPConfig) -> dict:
    """The `model_cfg` of `open_clip_config.json`; strides of re-identification are added to it."""
    vision, text = config.vision, config.text
    if isinstance(vision, ViTConfig):
        tower = {
            "layers": vision.layers,
            "width": vision.width,
            "head_width": vision.width // vision.heads,
            "mlp_ratio": vision.mlp_width / vision.width,
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
            "mlp_ratio": text.mlp_width / text.width,
        },
    }


def config_to_transformers(config: CLIPConfig) -> dict:
    """The `config.json` of a `CLIPModel`.

    Raises:
      ValueError: if the image tower is a ResNet or not square, which that class does not know.
    """
    vision, text = config.vision, config.text
    if not isinstance(vision, ViTConfig):
        raise ValueError(NO_RESNET)
    if vision.image_size[0] != vision.image_size[1] or vision.stride != vision.patch_size:
        raise ValueError(
            f"transformers' CLIPModel knows square images and no overlapping patches, not "
            f"{vision.image_size} with stride {vision.stride}; write the openai naming"
        )
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": config.activation,
            "hidden_size": vision.width,
            "image_size": vision.image_size[0],
            "intermediate_size": vision.mlp_width,
            "num_attention_heads": vision.heads,
            "num_hidden_layers": vision.layers,
            "patch_size": vision.patch_size,
            "projection_dim": config.embed_dim,
        },
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_act": config.activation,
            "hidden_size": text.width,
            "intermediate_size": text.mlp_width,
            "max_position_embeddings": text.context,
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers,
            "projection_dim": config.embed_dim,
            "vocab_size": text.vocab,
        },
    }


def _from_open_clip(model: Mapping, activation: str | None, source: str) -> CLIPConfig:
    embed_dim = _need(model, "embed_dim", source)
    vision = _open_clip_vision(_need(model, "vision_cfg", source), source)
    raw = _need(model, "text_cfg", source)
    if raw.get("hf_model_name"):
        raise ValueError(
            f"{source}: the text tower is {raw['hf_model_name']}, which is none of CLIP's; use a "
            "checkpoint with CLIP's own text tower"
        )
    width = _need(raw, "width", source)
    text = TextConfig(
        vocab=_need(raw, "vocab_size", source),
        context=_need(raw, "context_length", source),
        width=width,
        heads=_need(raw, "heads", source),
        layers=_need(raw, "layers", source),
        mlp_width=round(width * raw.get("mlp_ratio", 4)),
    )
    stated = model.get("quick_gelu")
    stated = None if stated is None else ("quick_gelu" if stated else "gelu")
    return CLIPConfig(
        embed_dim=embed_dim,
        vision=vision,
        text=text,
        activation=_activation(stated, activation, "quick_gelu", source),
    )


def _open_clip_vision(raw: Mapping, source: str) -> VisionConfig:
    """The image tower; its `layers` tell the kind."""
    layers = raw.get("layers")
    if raw.get("timm_model_name") or not isinstance(layers, int | list | tuple):
        kind = raw.get("timm_model_name") or f"layers = {layers!r}"
        raise ValueError(
            f"{source}: unknown kind of image tower ({kind}); expected a CLIP ResNet, whose "
            "vision_cfg states layers as a list of four, e.g. [3, 4, 6, 3], or a ViT, with layers "
            "as a number and patch_size"
        )
    size = _need(raw, "image_size", source)
    size = (size, size) if isinstance(size, int) else tuple(size)
    if isinstance(layers, int):
        width = _need(raw, "width", source)
        patch_size = _need(raw, "patch_size", source)
        return ViTConfig(
            layers=layers,
            width=width,
            heads=width // raw.get("head_width", 64),
            mlp_width=round(width * raw.get("mlp_ratio", 4)),
            patch_size=patch_size,
            image_size=size,
            stride=raw.get("patch_stride", patch_size),
        )
    # A file may be of a size that only the stride 1 of re-identification divides.
    last_stride = 2 if all(side % 32 == 0 for side in size) else 1
    return ResNetConfig(
        layers=tuple(layers),
        width=_need(raw, "width", source),
        image_size=size,
        last_stride=raw.get("last_stride", last_stride),
    )


def _from_transformers(raw: Mapping, activation: str | None, source: str) -> CLIPConfig:
    vision, text = raw.get("vision_config") or {}, raw.get("text_config") or {}
    for tower in (vision, text):
        eps = tower.get("layer_norm_eps", 1e-5)
        if eps != 1e-5:
            raise ValueError(f"{source}: layer_norm_eps is {eps}; the towers here use 1e-5")
    stated = {tower["hidden_act"] for tower in (vision, text) if "hidden_act" in tower}
    if len(stated) > 1:
        raise ValueError(f"{source} states two activations, {sorted(stated)}; CLIP has one")
    size, patch_size = vision.get("image_size", 224), vision.get("patch_size", 32)
    return CLIPConfig(
        embed_dim=raw.get("projection_dim", 512),
        vision=ViTConfig(
            layers=vision.get("num_hidden_layers", 12),
            width=vision.get("hidden_size", 768),
            heads=vision.get("num_attention_heads", 12),
            mlp_width=vision.get("intermediate_size", 3072),
            patch_size=patch_size,
            image_size=(size, size) if isinstance(size, int) else tuple(size),
            stride=patch_size,
        ),
        text=TextConfig(
            vocab=text.get("vocab_size", 49408),
            context=text.get("max_position_embeddings", 77),
            width=text.get("hidden_size", 512),
            heads=text.get("num_attention_heads", 8),
            layers=text.get("num_hidden_layers", 12),
            mlp_width=text.get("intermediate_size", 2048),
        ),
        activation=_activation(next(iter(stated), None), activation, "hidden_act", source),
    )


def _activation(stated: str | None, asked: str | None, key: str, source: str) -> str:
    if stated is None and asked is None:
        raise ValueError(f"{source} does not state {key}; {ASK_FOR_ACTIVATION}")
    if stated and asked and stated != asked:
        raise ValueError(f"{source} states {stated!r} but {asked!r} was asked for as activation")
    return stated or asked


def _need(raw: Mapping, key: str, source: str):
    if key not in raw:
        raise ValueError(f"{source} has no {key!r}; its keys are {sorted(raw)}")
    return raw[key]
