"""The state of a run as plain pytrees, and the edge between nnx models and pure functions.

A model is split once into a static graph definition and two flat dictionaries, parameters and
batch statistics, keyed by path ("image_encoder/layer1/0/conv1/kernel"). Optimiser groups,
sharding rules and checkpoints then all speak of the same names.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

FlatDict = dict[str, jax.Array]


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, FlatDict, FlatDict]:
    """Splits a model into (graph definition, parameters, batch statistics).

    Returns:
      graphdef: static; hashable, safe to close over.
      params: path -> array, every `nnx.Param`. Arrays are strongly typed, so that the first
        update does not change a type and compile the step again.
      batch_stats: path -> array, every `nnx.BatchStat`.
    """
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, _flatten(params), _flatten(stats)


def merge_model(graphdef: nnx.GraphDef, params: FlatDict, batch_stats: FlatDict) -> nnx.Module:
    """Inverse of :func:`split_model`; cheap, meant for use inside jitted functions."""
    return nnx.merge(graphdef, nnx.State(_nest(params)), nnx.State(_nest(batch_stats)))


def batch_stats_of(model: nnx.Module) -> FlatDict:
    """The batch statistics of a model after a forward pass, as a flat dictionary."""
    return _flatten(nnx.state(model, nnx.BatchStat))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What one training step of an image encoder reads and writes; methods add heads of their own.

    Attributes:
      step: int32[], steps done since the encoder began to train; the clock of all random keys.
      params: trainable parameters of the image model, by path.
      batch_stats: running statistics, by path.
      opt_state: optimiser state of `params`.
      memory: the memory banks of the present phase.
    """

    step: jax.Array
    params: FlatDict
    batch_stats: FlatDict
    opt_state: Any
    memory: FlatDict

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def _flatten(state: nnx.State) -> FlatDict:
    flat = {}
    for path, variable in nnx.to_flat_state(state):
        value = variable.get_value() if isinstance(variable, nnx.Variable) else variable
        flat["/".join(map(str, path))] = jnp.asarray(value, jnp.result_type(value))
    return flat


def _nest(flat: FlatDict) -> dict:
    nested: dict = {}
    for path, value in flat.items():
        *parents, leaf = (int(part) if part.isdigit() else part for part in path.split("/"))
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return nested
