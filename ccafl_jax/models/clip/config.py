"""Sizes of a CLIP model, and how published configuration files state them."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

ACTIVATIONS = ("quick_gelu", "gelu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Sizes of the image tower of CLIP's ResNets.

    Attributes:
      layers: residual blocks in each of the four stages.
      width: channels after the stem; the last map has 32 times as many.
      image_size: height and width in pixels.
      last_stride: stride of the fourth stage: 2 as published by CLIP, 1 for re-identification.
    """

    layers: tuple[int, int, int, int]
    width: int
    image_size: tuple[int, int]
    last_stride: int = 2

    def __post_init__(self):
        if len(self.layers) != 4 or min(self.layers) < 1:
            raise ValueError(f"vision layers are {self.layers}; a ResNet states four counts")
        if self.last_stride not in (1, 2):
            raise ValueError(f"last_stride is {self.last_stride}; choose 1 or 2")
        stride = 16 * self.last_stride
        if any(side % stride for side in self.image_size):
            raise ValueError(
                f"image size {self.image_size} is not a multiple of the total stride {stride}"
            )

    @property
    def features(self) -> int:
        """Channels of the last map."""
        return 32 * self.width

    @property
    def heads(self) -> int:
        """Heads of the attention pool."""
        return max(1, self.width * 32 // 64)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the last map."""
        stride = 16 * self.last_stride
        return self.image_size[0] // stride, self.image_size[1] // stride


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of the text tower.

    Attributes:
      vocab: number of tokens.
      context: number of positions.
      width: size of the residual stream.
      heads: attention heads.
      layers: transformer blocks.
    """

    vocab: int
    context: int
    width: int
    heads: int
    layers: int

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"{self.heads} text heads do not divide the width {self.width}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """A CLIP model.

    Attributes:
      embed_dim: size of the joint space of images and texts.
      vision: the image tower. Its class tells the kind of tower.
      text: the text tower.
      activation: of the transformer blocks: "quick_gelu" (x * sigmoid(1.702 x)) or "gelu" (exact).
    """

    embed_dim: int
    vision: ResNetConfig
    text: TextConfig
    activation: str

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; choose one of {ACTIVATIONS}")

    def for_images(self, image_size: tuple[int, int], *, last_stride: int) -> "CLIPConfig":
        """The same model for images of another size and another stride of the last stage."""
        vision = dataclasses.replace(
            self.vision, image_size=tuple(image_size), last_stride=last_stride
        )
        return dataclasses.replace(self, vision=vision)


def read_config(directory: str | pathlib.Path, *, activation: str | None = None) -> CLIPConfig:
    """Reads `open_clip_config.json` or `config.json` of a directory.

    Args:
      directory: of the model.
      activation: what the file does not state; see `parse_config`.

    Returns:
      The configuration, at the image size of the file and the stride of the published towers.

    Raises:
      FileNotFoundError: if neither file is there.
      ValueError: see `parse_config`.
    """
    directory = pathlib.Path(directory)
    for name in ("open_clip_config.json", "config.json"):
        path = directory / name
        if path.is_file():
            return parse_config(
                json.loads(path.read_text()), activation=activation, source=str(path)
            )
    raise FileNotFoundError(
        f"{directory} holds neither open_clip_config.json nor config.json; place there the "
        "configuration, the *.safetensors weights and the tokenizer files of a CLIP model"
    )


def parse_config(
    raw: Mapping, *, activation: str | None = None, source: str = "configuration"
) -> CLIPConfig:
    """Turns the JSON of a published model into a `CLIPConfig`.

    Args:
      raw: `{"model_cfg": {...}}` or its inner mapping, with the keys `embed_dim`, `vision_cfg`,
        `text_cfg` and `quick_gelu`.
      activation: "quick_gelu" or "gelu", needed when the file has no `quick_gelu`.
      source: name of the file for messages.

    Raises:
      ValueError: on a missing key, an image tower of an unknown kind, an activation that is not
        stated, or one that contradicts the file.
    """
    model = raw.get("model_cfg", raw)
    embed_dim = _need(model, "embed_dim", source)
    vision = _vision(_need(model, "vision_cfg", source), source)
    text = _text(_need(model, "text_cfg", source), source)
    return CLIPConfig(
        embed_dim=embed_dim,
        vision=vision,
        text=text,
        activation=_activation(model, activation, source),
    )


def _vision(raw: Mapping, source: str) -> ResNetConfig:
    """The image tower; other kinds of tower add their branch and their dataclass here."""
    layers = raw.get("layers")
    if raw.get("timm_model_name") or not isinstance(layers, list | tuple):
        kind = raw.get("timm_model_name") or f"layers = {layers!r}"
        raise ValueError(
            f"{source}: unknown kind of image tower ({kind}); expected a CLIP ResNet, whose "
            "vision_cfg states layers as a list of four, e.g. [3, 4, 6, 3]"
        )
    size = _need(raw, "image_size", source)
    size = (size, size) if isinstance(size, int) else tuple(size)
    # A file may be of a size that only the stride 1 of re-identification divides.
    last_stride = 2 if all(side % 32 == 0 for side in size) else 1
    return ResNetConfig(
        layers=tuple(layers),
        width=_need(raw, "width", source),
        image_size=size,
        last_stride=raw.get("last_stride", last_stride),
    )


def _text(raw: Mapping, source: str) -> TextConfig:
    return TextConfig(
        vocab=_need(raw, "vocab_size", source),
        context=_need(raw, "context_length", source),
        width=_need(raw, "width", source),
        heads=_need(raw, "heads", source),
        layers=_need(raw, "layers", source),
    )


def _activation(model: Mapping, asked: str | None, source: str) -> str:
    stated = model.get("quick_gelu")
    stated = None if stated is None else ("quick_gelu" if stated else "gelu")
    if stated is None and asked is None:
        raise ValueError(
            f"{source} does not state quick_gelu; pass activation='quick_gelu' (OpenAI's weights "
            "and those tuned from them) or activation='gelu'"
        )
    if stated and asked and stated != asked:
        raise ValueError(f"{source} states {stated!r} but activation={asked!r} was asked for")
    return stated or asked


def _need(raw: Mapping, key: str, source: str):
    if key not in raw:
        raise ValueError(f"{source} has no {key!r}; its keys are {sorted(raw)}")
    return raw[key]
