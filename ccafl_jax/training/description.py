"""What a checkpoint says of its image model, so that it can be built and fed again."""

import dataclasses
from collections.abc import Mapping

from ccafl_jax.data.sources import FILTERS, PixelFormat
from ccafl_jax.models.reid import ReIDConfig
from ccafl_jax.models.video import VideoConfig
from ccafl_jax.options import require_choice
from ccafl_jax.training.checkpoints import digest
from ccafl_jax.training.state import FlatDict

ModelConfig = ReIDConfig | VideoConfig
"""Sizes of a model of images, or of clips; the description of the latter says so (`kind`)."""

FORMAT = 3
"""Of the description; written with every checkpoint."""


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From an image file to the input of a model.

    Attributes:
      height, width: pixels after resizing.
      mean, std: by channel, of pixels scaled to 0..1.
      filter: PIL's filter for resizing; see `PixelFormat`.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    filter: str = "bicubic"

    def __post_init__(self):
        require_choice("filter", self.filter, FILTERS)

    @property
    def pixels(self) -> PixelFormat:
        """What images become when they are loaded."""
        return PixelFormat(self.height, self.width, self.filter)

    def to_json(self) -> dict:
        """As JSON values."""
        return {
            "height": self.height,
            "width": self.width,
            "mean": list(self.mean),
            "std": list(self.std),
            "resample": self.filter,
        }

    @classmethod
    def from_json(cls, raw: Mapping) -> "Preprocess":
        """Inverse of `to_json`."""
        mean, std = tuple(raw["mean"]), tuple(raw["std"])
        return cls(raw["height"], raw["width"], mean, std, raw.get("resample", "bicubic"))


def describe_model(model: ModelConfig, preprocess: Preprocess) -> dict:
    """The description, as JSON values."""
    return {"format": FORMAT, "model": model.to_json(), "preprocess": preprocess.to_json()}


def read_description(raw: Mapping, where: str) -> tuple[ModelConfig, Preprocess]:
    """Inverse of `describe_model`.

    Args:
      raw: with the keys "model" and "preprocess", and perhaps others.
      where: name for messages.

    Raises:
      ValueError: a field is missing or unknown.
    """
    try:
        kind = VideoConfig if raw["model"].get("kind") == "video" else ReIDConfig
        return kind.from_json(raw["model"]), Preprocess.from_json(raw["preprocess"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} describes no model of this version ({error})") from None


def check_format(raw: Mapping, where: str) -> None:
    """Fails on a checkpoint of another version.

    Raises:
      ValueError: naming both formats.
    """
    if raw.get("format") != FORMAT:
        raise ValueError(
            f"{where} holds checkpoints of format {raw.get('format')}, this version reads "
            f"{FORMAT}: use the ccafl_jax that wrote them, or train again"
        )


def model_digest(params: FlatDict, batch_stats: FlatDict) -> str:
    """sha256 over the arrays of an image model, written with every checkpoint."""
    return digest({**params, **batch_stats})


def check_digest(raw: Mapping, params: FlatDict, batch_stats: FlatDict, *, where: str) -> None:
    """Compares the arrays of a checkpoint with what was written.

    Raises:
      ValueError: they differ: a file was damaged.
    """
    if raw.get("digest") != model_digest(params, batch_stats):
        raise ValueError(
            f"{where} is damaged: its arrays are not those that were written; copy it again, or "
            "use another one"
        )
