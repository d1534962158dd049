"""What a training step of CCAFL reads and writes."""

import dataclasses
from typing import Any

import jax

from ccafl_jax.training.state import TrainState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CCAFLState(TrainState):
    """`TrainState` and the global identity classifier.

    Attributes, beside those of all methods:
      classifier: float[classes, dim], the global identity classifier.
      classifier_opt: its optimiser state.
    """

    classifier: jax.Array
    classifier_opt: Any
