"""What a training step of CALR reads and writes."""

import dataclasses
from typing import Any

import jax

from ccafl_jax.training.state import FlatDict, TrainState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CALRState(TrainState):
    """`TrainState` and the classifier of cameras.

    Attributes, beside those of all methods:
      head: parameters of the classifier of cameras, by path.
      head_stats: its running statistics.
      head_opt: its optimiser state.
    """

    head: FlatDict
    head_stats: FlatDict
    head_opt: Any
