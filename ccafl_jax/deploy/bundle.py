"""A trained model as data: what every form in which a model leaves is made from."""

import dataclasses
from collections.abc import Mapping

from ccafl_jax.models.reid import ReIDConfig
from ccafl_jax.training.state import FlatDict


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From an image file to the input of a model.

    Attributes:
      height, width: pixels after resizing with PIL's bicubic filter.
      mean, std: by channel, of pixels scaled to 0..1.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_json(self) -> dict:
        """As JSON values."""
        values = dataclasses.asdict(self)
        return values | {"mean": list(self.mean), "std": list(self.std), "resample": "bicubic"}

    @classmethod
    def from_json(cls, raw: Mapping) -> "Preprocess":
        """Inverse of `to_json`."""
        return cls(raw["height"], raw["width"], tuple(raw["mean"]), tuple(raw["std"]))


@dataclasses.dataclass(frozen=True)
class ModelBundle:
    """A trained re-identification model.

    Attributes:
      model: its sizes.
      preprocess: how its images are made.
      params, batch_stats: arrays by path, see :mod:`ccafl_jax.training.state`.
      recipe: the options it was trained with; empty where they are not known.
      metrics: figures on its test set; empty where there are none.
      source: where it comes from, in words.
      data_root: folder of the data set it was trained on, if known.
      camera_codes: what the rows of the camera embedding stand for: numbers of cameras as data
        sets write them; empty where they are not known to be others than 1, 2, ...
    """

    model: ReIDConfig
    preprocess: Preprocess
    params: FlatDict
    batch_stats: FlatDict
    recipe: dict
    metrics: dict
    source: str
    data_root: str = ""
    camera_codes: tuple[int, ...] = ()
