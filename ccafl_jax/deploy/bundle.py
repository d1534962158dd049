"""A trained model as data: what every form in which a model leaves is made from."""

import dataclasses

from ccafl_jax.training.description import ModelConfig, Preprocess
from ccafl_jax.training.state import FlatDict


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

    model: ModelConfig
    preprocess: Preprocess
    params: FlatDict
    batch_stats: FlatDict
    recipe: dict
    metrics: dict
    source: str
    data_root: str = ""
    camera_codes: tuple[int, ...] = ()
