"""How published configuration files state the sizes of a CLIP model.

Two kinds of file are read and written: open_clip's `open_clip_config.json` and the `config.json` of
transformers' `CLIPModel`.
"""

import json
import pathlib
from collections.abc import Mapping

from ccafl_jax.models.clip.config import CLIPConfig
from ccafl_jax.models.clip.config_open_clip import config_to_json, from_open_clip
from ccafl_jax.models.clip.config_section import Section
from ccafl_jax.models.clip.config_transformers import (
    NO_RESNET,
    config_to_transformers,
    from_transformers,
)

__all__ = [
    "FILES",
    "NO_RESNET",
    "config_to_json",
    "config_to_transformers",
    "parse_config",
    "read_config",
]

FILES = ("open_clip_config.json", "config.json")
_OPEN_CLIP = {"model_cfg", "vision_cfg", "text_cfg"}
_TRANSFORMERS = {
    "model_type",
    "vision_config",
    "vision_config_dict",
    "text_config",
    "text_config_dict",
}


def read_config(directory: str | pathlib.Path, *, activation: str | None = None) -> CLIPConfig:
    """Reads `open_clip_config.json`, or `config.json` where that is not there.

    Files of open_clip often leave out the activation. A `config.json` of the same sizes beside such
    a file tells it.

    Args:
      directory: of the model.
      activation: what the files do not state; see `parse_config`.

    Returns:
      The configuration, at the image size of the file and the strides of the published towers.

    Raises:
      FileNotFoundError: if neither file is there.
      ValueError: see `parse_config`.
    """
    directory = pathlib.Path(directory)
    paths = [directory / name for name in FILES if (directory / name).is_file()]
    if not paths:
        raise FileNotFoundError(
            f"{directory} holds neither open_clip_config.json nor config.json; place there the "
            "configuration, the *.safetensors weights and the tokenizer files of a CLIP model"
        )
    path, *others = paths
    raw = _load(path)
    for other in others:
        stated = _activation_beside(raw, other)
        if stated and activation not in (None, stated):
            raise ValueError(
                f"{other} states {stated!r} but {activation!r} was asked for as activation"
            )
        activation = stated or activation
    return parse_config(raw, activation=activation, source=str(path))


def parse_config(
    raw: Mapping, *, activation: str | None = None, source: str = "configuration"
) -> CLIPConfig:
    """Turns the JSON of a published model into a `CLIPConfig`.

    Args:
      raw: of `open_clip_config.json` (or its inner `model_cfg`), or of the `config.json` of a
        `CLIPModel`, whose sizes default to those of transformers as they do there.
      activation: "quick_gelu" or "gelu", needed when the file states none. What a library falls
        back to is not taken for a statement, nor what one tower states for the other.
      source: name of the file for messages.

    Raises:
      ValueError: on the configuration of another model, a missing key, a value of the wrong kind,
        a key or value that asks for another computation than that of CLIP's towers, an activation
        that is not stated, or one that contradicts the file.
    """
    file = Section(raw, source)
    other = _other_model(raw)
    if other:
        raise ValueError(
            f"{source}: this is the configuration of a {other} model, not a CLIP; use a checkpoint "
            "with a CLIP's open_clip_config.json, or config.json of model_type clip"
        )
    if _TRANSFORMERS & raw.keys() and not _OPEN_CLIP & raw.keys():
        return from_transformers(file, activation)
    return from_open_clip(file, activation)


def _load(path: pathlib.Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): fetch it again") from None


def _other_model(raw: Mapping) -> str | None:
    """What another kind of model calls itself: in transformers' files, or in timm's."""
    if _OPEN_CLIP & raw.keys():
        return None
    names = [raw.get("model_type")]
    if not _TRANSFORMERS & raw.keys():
        architectures = raw.get("architectures")
        names += [raw.get("architecture")]
        names += architectures if isinstance(architectures, list) else []
    name = next((name for name in names if isinstance(name, str)), None)
    return None if name in ("clip", "CLIPModel") else name


def _activation_beside(raw: Mapping, other: pathlib.Path) -> str | None:
    """The activation that another file states, if it is one of the same model."""
    try:
        beside = parse_config(_load(other))
        same = beside == parse_config(raw, activation=beside.activation)
    except ValueError:  # another kind of file, or one of the two is at fault or silent
        return None
    return beside.activation if same else None
