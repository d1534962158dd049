"""Orbax checkpoints of a run: one per epoch, a pytree of arrays and a JSON description."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


class Checkpoints:
    """The checkpoints of one run folder, numbered by epochs done.

    Args:
      folder: where they lie; made on the first save.
      keep: how many of the latest to keep.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int = 2):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_names=("state", "meta"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, enable_async_checkpointing=False
            ),
        )

    def latest(self) -> int | None:
        """The number of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, number: int, state: Any, meta: dict) -> None:
        """Writes a checkpoint; it counts only once it is complete.

        Args:
          number: epochs done.
          state: nested dictionary of arrays.
          meta: JSON-serialisable description.
        """
        args = self._ocp.args
        self._manager.save(
            number,
            args=args.Composite(state=args.StandardSave(state), meta=args.JsonSave(meta)),
        )
        self._manager.wait_until_finished()

    def restore_meta(self, number: int | None = None) -> dict:
        """The JSON description of a checkpoint (default: the newest)."""
        args = self._ocp.args
        restored = self._manager.restore(
            self._number(number), args=args.Composite(meta=args.JsonRestore())
        )
        return restored["meta"]

    def restore(self, number: int | None = None, *, like: Any = None) -> Any:
        """The arrays of a checkpoint, as host arrays, or laid out as the pytree `like`."""
        args = self._ocp.args
        number = self._number(number)
        if like is not None:
            like = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            number, args=args.Composite(state=args.StandardRestore(like))
        )["state"]
        return restored if like is not None else jax.tree.map(np.asarray, restored)

    def close(self) -> None:
        """Waits for writes and releases the folder."""
        self._manager.close()

    def _number(self, number: int | None) -> int:
        number = self.latest() if number is None else number
        if number is None:
            raise FileNotFoundError(
                f"no complete checkpoint in {self._manager.directory}: train first, or check "
                "--workdir"
            )
        return number


def leaves_by_path(tree: Any) -> dict[str, jax.Array]:
    """Arrays of any pytree by their path, for state types that a checkpoint should not know."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in flat}


def restore_leaves(like: Any, leaves: Mapping[str, Any]) -> Any:
    """Inverse of :func:`leaves_by_path`, in the structure of `like`.

    Raises:
      ValueError: the paths or shapes differ from those of `like`.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(like)
    paths = {jax.tree_util.keystr(path): leaf for path, leaf in flat}
    if paths.keys() != leaves.keys():
        difference = sorted(paths.keys() ^ leaves.keys())
        raise ValueError(f"the checkpoint's state does not fit this run: see {difference[:3]}")
    for path, leaf in paths.items():
        if np.shape(leaf) != np.shape(leaves[path]):
            raise ValueError(
                f"the checkpoint's {path} has shape {np.shape(leaves[path])}, this run needs "
                f"{np.shape(leaf)}"
            )
    return jax.tree_util.tree_unflatten(treedef, [leaves[path] for path in paths])
