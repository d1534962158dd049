"""A training state as the nested dictionary that a checkpoint holds, and back.

Optimiser states go by the paths of their arrays, so that a checkpoint names no class of a library.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from ccafl_jax.training.checkpoints import leaves_by_path, restore_leaves
from ccafl_jax.training.state import TrainState

S = TypeVar("S", bound=TrainState)


def pack_state(state: TrainState, *, memory: bool = False) -> dict[str, Any]:
    """The arrays that all methods have.

    Args:
      state: of the encoder.
      memory: with the memory banks; at the borders of epochs they are left out, as every epoch
        rebuilds them from features.
    """
    tree = {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": leaves_by_path(state.opt_state),
        "step": state.step,
    }
    return tree | {"memory": state.memory} if memory else tree


def unpack_state(tree: Mapping[str, Any], state: S) -> S:
    """Inverse of `pack_state`, in the structure of the given state.

    Args:
      tree: from a checkpoint.
      state: of this run; what a method adds to it stays.

    Raises:
      ValueError: the checkpoint is of another model.
    """
    return state.replace(
        step=tree["step"],
        params=same_keys(state.params, tree["params"]),
        batch_stats=same_keys(state.batch_stats, tree["batch_stats"]),
        opt_state=restore_leaves(state.opt_state, tree["opt_state"]),
        memory=tree.get("memory", {}),
    )


def same_keys(expected: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """`found` in the order of `expected`.

    Raises:
      ValueError: it has other keys.
    """
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise ValueError(
            f"the checkpoint is of another model: it lacks {missing[:3]} and has {extra[:3]}; use "
            "the model options it was trained with"
        )
    return {key: found[key] for key in expected}
