"""The `config.json` of transformers' `CLIPModel`: from and to a `CLIPConfig`.

Source: the configuration classes of CLIP in transformers 5.
"""

from collections.abc import Mapping

from ccafl_jax.models.clip.config import ACTIVATIONS, CLIPConfig, TextConfig, ViTConfig
from ccafl_jax.models.clip.config_section import Section, settle_activation, show

NO_RESNET = "transformers' CLIPModel has no ResNet tower; write the openai naming"

VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def from_transformers(file: Section, activation: str | None) -> CLIPConfig:
    """Reads the content of a `config.json`.

    The `projection_dim` of a tower is not read: `CLIPModel` projects to that of the file.

    Args:
      file: the content.
      activation: what was asked for, None if nothing was.

    Raises:
      ValueError: see `parse_config`.
    """
    file.must_be({"model_type": ("clip", None), "quantization_config": (None,)})
    vision = _tower(file, "vision_config", VISION_DEFAULTS, model_type="clip_vision_model")
    text = _tower(file, "text_config", TEXT_DEFAULTS, model_type="clip_text_model")
    vision.must_be({"num_channels": (3,)})

    def size(tower: Section, key: str) -> int:
        return tower.count(key, (VISION_DEFAULTS if tower is vision else TEXT_DEFAULTS)[key])

    patch_size = size(vision, "patch_size")
    return CLIPConfig(
        embed_dim=file.count("projection_dim", 512),
        vision=vision.build(
            ViTConfig,
            layers=size(vision, "num_hidden_layers"),
            width=size(vision, "hidden_size"),
            heads=size(vision, "num_attention_heads"),
            mlp_width=size(vision, "intermediate_size"),
            patch_size=patch_size,
            image_size=vision.pixels("image_size", VISION_DEFAULTS["image_size"]),
            stride=patch_size,
        ),
        text=text.build(
            TextConfig,
            vocab=size(text, "vocab_size"),
            context=size(text, "max_position_embeddings"),
            width=size(text, "hidden_size"),
            heads=size(text, "num_attention_heads"),
            layers=size(text, "num_hidden_layers"),
            mlp_width=size(text, "intermediate_size"),
        ),
        activation=_activation(vision, text, activation),
    )


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


def _tower(file: Section, key: str, defaults: Mapping, *, model_type: str) -> Section:
    """The section of a tower, with what the older `..._config_dict` adds to it.

    In transformers the older section, filled up with defaults, overrides the other one. Where that
    changes a stated value it is not known which of them the weights were made with.
    """
    legacy = f"{key}_dict"
    if file.raw.get(legacy) is None:
        tower = file.section(key) if key in file else Section({}, file.source, key)
    else:
        stated = {} if file.raw.get(key) is None else file.section(key).raw
        override = file.section(legacy).raw
        for name, value in (defaults | override).items():
            if name in (*defaults, "model_type") and name in stated and stated[name] != value:
                raise ValueError(
                    f"{file.source}: {key}.{name} is {show(stated[name])} but {legacy} makes it "
                    f"{show(value)}; expected one value: remove the section that is not that of "
                    "the weights"
                )
        tower = Section({**stated, **override}, file.source, key)
    tower.must_be({"model_type": (model_type, None), "layer_norm_eps": (1e-5,)})
    return tower


def _activation(vision: Section, text: Section, asked: str | None) -> str:
    """The activation of both towers; one that a single tower states is not taken for the other."""
    acts = {}
    for tower in (vision, text):
        tower.must_be({"hidden_act": (*ACTIVATIONS, None)})
        acts[tower.path] = tower.raw.get("hidden_act")
    stated = {act for act in acts.values() if act}
    silent = [path for path, act in acts.items() if not act]
    if len(stated) > 1:
        raise ValueError(f"{vision.source} states two activations, {acts}; CLIP has one")
    if silent and asked is None:
        stated = set()
    key = f"hidden_act of {' and '.join(silent)}"
    return settle_activation(next(iter(stated), None), asked, key=key, source=vision.source)
