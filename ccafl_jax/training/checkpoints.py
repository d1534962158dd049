"""Orbax checkpoints of a run: one per epoch, a pytree of arrays and a JSON description."""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterator, Mapping
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
        self._folder = folder.absolute()
        self._keep = keep
        self._opened = None

    @property
    def _manager(self):
        """Orbax's manager, which makes the folder."""
        if self._opened is None:
            import orbax.checkpoint as ocp

            self._opened = ocp.CheckpointManager(
                self._folder,
                item_names=("state", "meta"),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=self._keep, create=True, enable_async_checkpointing=False
                ),
            )
        return self._opened

    def latest(self) -> int | None:
        """The number of the newest complete checkpoint, or None."""
        return self._manager.latest_step() if self._folder.is_dir() else None

    def save(self, number: int, state: Any, meta: dict) -> None:
        """Writes a checkpoint; it counts only once it is complete.

        Args:
          number: epochs done.
          state: nested dictionary of arrays.
          meta: JSON-serialisable description.
        """
        import orbax.checkpoint as ocp

        args = ocp.args
        self._manager.save(
            number,
            args=args.Composite(state=args.StandardSave(state), meta=args.JsonSave(meta)),
        )
        self._manager.wait_until_finished()

    def restore_meta(self, number: int | None = None) -> dict:
        """The JSON description of a checkpoint (default: the newest).

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: it is damaged.
        """
        import orbax.checkpoint as ocp

        number = self._number(number)
        with self._one_line(number):
            restored = self._manager.restore(
                number, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )
            return restored["meta"]

    def restore(self, number: int | None = None, *, like: Any = None) -> Any:
        """The arrays of a checkpoint, as host arrays, or laid out as the pytree `like`.

        Raises:
          FileNotFoundError, ValueError: as `restore_meta`.
        """
        import orbax.checkpoint as ocp

        number = self._number(number)
        if like is not None:
            like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with self._one_line(number):
            restored = self._manager.restore(
                number, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
            )["state"]
        return restored if like is not None else jax.tree.map(np.asarray, restored)

    def close(self) -> None:
        """Waits for writes and releases the folder."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _number(self, number: int | None) -> int:
        there = sorted(self._manager.all_steps()) if self._folder.is_dir() else []
        if not there:
            raise FileNotFoundError(
                f"no complete checkpoint in {self._folder}: train first, or check --workdir"
            )
        if number is not None and number not in there:
            raise FileNotFoundError(
                f"no checkpoint {number} in {self._folder}; there are {there} (prompt epochs and "
                "encoder epochs are counted together)"
            )
        return there[-1] if number is None else number

    @contextlib.contextmanager
    def _one_line(self, number: int) -> Iterator[None]:
        """Turns what Orbax and its stores raise on damaged files into one line."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ValueError(
                f"checkpoint {number} in {self._folder} is damaged ({reason}): copy it again, or "
                "use another one"
            ) from error


def digest(arrays: Mapping[str, Any]) -> str:
    """sha256 over named arrays: names, dtypes, shapes and bytes.

    Args:
      arrays: by name, on the host or on devices.
    """
    result = hashlib.sha256()
    for name in sorted(arrays):
        value = np.asarray(arrays[name], order="C")
        result.update(f"{name} {value.dtype} {value.shape}".encode())
        result.update(value.tobytes())
    return result.hexdigest()


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
