"""Checkpoints of a run, a pytree of arrays and a JSON description each, that show any damage.

Orbax writes the files. Then a manifest of their hashes is written, which makes the checkpoint
count: one without a manifest, or whose files are not those of the manifest, is passed over as if it
were not there. A process may be killed at any moment, and the newest checkpoint before remains.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ccafl_jax.training.agreement import from_first
from ccafl_jax.training.manifest import NAME, find_damage, write_manifest
from ccafl_jax.training.processes import is_first
from ccafl_jax.training.storage import open_path

if TYPE_CHECKING:
    from etils import epath

log = logging.getLogger("ccafl_jax")


class Checkpoints:
    """The checkpoints of one run folder, numbered by epochs done.

    Where a run has several processes, all of them make the same calls; the first one checks and
    decides, and all go on when a checkpoint is complete.

    Args:
      folder: where they lie, on a disk or in an object store; made on the first save.
      keep: how many of the latest to keep.
      best_by: says in the log what `save`'s `best` is; that checkpoint is kept beside the latest.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 2, best_by: str = "score"):
        self._folder = open_path(folder)
        self._keep = keep
        self._best_by = best_by
        self._opened = None
        self._clean = False  # no remains of writes that did not end
        self._damage: dict[int, str] = {}  # of the checkpoints that were checked
        self._scores: dict[int, float | None] = {}

    @property
    def _manager(self):
        """Orbax's manager, which makes the folder."""
        if self._opened is None:
            self._open(clean=False)
        return self._opened

    def _open(self, *, clean: bool) -> None:
        import orbax.checkpoint as ocp

        class Manager(ocp.CheckpointManager):
            """One that leaves JAX's preemption service to the run.

            Orbax would ask it with the number of the checkpoint, and the service would take that
            for the step that the run has reached.
            """

            def reached_preemption(self, step: int) -> bool:
                return False

        self._opened = Manager(
            self._folder,
            item_names=("state", "meta", "score"),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
                "score": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None,  # Orbax would remove the last one before the manifest is there
                create=True,
                cleanup_tmp_directories=clean,
                single_host_load_and_broadcast=True,
                enable_async_checkpointing=False,
            ),
        )

    def latest(self) -> int | None:
        """The number of the newest complete and undamaged checkpoint, or None.

        Newer ones that do not count are named in the log.
        """
        for number in reversed(self._numbers()):
            checked_before = number in self._damage
            damage = self._damage_of(number)
            if not damage:
                return number
            if is_first() and not checked_before:
                log.warning("checkpoint %d in %s does not count: %s", number, self._folder, damage)
        return None

    def best(self) -> int | None:
        """The number of the checkpoint with the highest score, or None where none has one."""
        scores = {}
        for number in self._numbers():
            score = None if self._damage_of(number) else self._score_of(number)
            if score is not None and not math.isnan(score):
                scores[number] = score
        return max(scores, key=scores.get, default=None)  # the first of equals

    def save(self, number: int, state: Any, meta: dict, *, best: float | None = None) -> None:
        """Writes a checkpoint; it counts only once it is complete.

        Damaged ones are removed first, and those that are not to be kept afterwards.

        Args:
          number: epochs done.
          state: nested dictionary of arrays.
          meta: JSON-serialisable description.
          best: its score; the checkpoint with the highest one is kept as well.

        Raises:
          FileExistsError: there is an undamaged checkpoint of that number.
          OSError: it could not be written; the ones before are as they were.
        """
        with self._writing(number):
            self._remove_damaged()
        if number in self._numbers():
            raise FileExistsError(
                f"checkpoint {number} is already in {self._folder}: remove it first"
            )
        with self._writing(number):
            self._write(number, state, meta, best)
        self._remove_old(number)

    def remove_all(self) -> None:
        """Removes every checkpoint."""
        for number in self._numbers():
            self._remove(number)

    def restore_meta(self, number: int | None = None) -> dict:
        """The JSON description of a checkpoint (default: the newest undamaged one).

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

        Host arrays are whole on every process, whatever devices the arrays lay on.

        Raises:
          FileNotFoundError, ValueError: as `restore_meta`.
        """
        import orbax.checkpoint as ocp

        number = self._number(number)
        with self._one_line(number):
            if like is None:
                written = self._manager.item_metadata(number)["state"].tree
                like = jax.tree.map(_host_array, written)
            else:
                like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            return self._manager.restore(number, args=args)["state"]

    def close(self) -> None:
        """Waits for writes and releases the folder."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _numbers(self) -> list[int]:
        """All that Orbax finished, damaged ones too."""
        if self._opened is None and not from_first(self._folder.is_dir):
            return []
        return sorted(self._manager.all_steps())

    def _path(self, number: int) -> "epath.Path":
        return self._folder / str(number)

    def _damage_of(self, number: int) -> str:
        """What `find_damage` says; files are read once."""
        if number not in self._damage:
            self._damage[number] = from_first(lambda: find_damage(self._path(number)))
        return self._damage[number]

    def _score_of(self, number: int) -> float | None:
        """Its score by `best_by`; None where it has none."""
        if number not in self._scores:
            self._scores[number] = from_first(lambda: self._read_score(number))
        return self._scores[number]

    def _read_score(self, number: int) -> float | None:
        path = self._path(number) / "score" / "metadata"
        stored = json.loads(path.read_text()) if path.exists() else {}
        return stored.get("value") if stored.get("by") == self._best_by else None

    def _number(self, number: int | None) -> int:
        there = self._numbers()
        asked = number
        if number is None:
            number = self.latest()
        if number is None and there:
            number = there[-1]
        if number is None:
            raise FileNotFoundError(
                f"no complete checkpoint in {self._folder}: train first, or check --workdir"
            )
        if number not in there:
            there = [other for other in there if not self._damage_of(other)]
            raise FileNotFoundError(
                f"no checkpoint {asked} in {self._folder}; there are {there} (prompt epochs and "
                "encoder epochs are counted together)"
            )
        if damage := self._damage_of(number):
            raise ValueError(self._damaged(number, damage))
        return number

    def _damaged(self, number: int, reason: str) -> str:
        return (
            f"checkpoint {number} in {self._folder} is damaged ({reason}): copy it again, or use "
            "another one"
        )

    def _remove_damaged(self) -> None:
        """And, once, what is left of writes that did not end."""
        if not self._clean:
            self.close()
            self._open(clean=True)
            self._clean = True
        for number in self._numbers():
            if self._damage_of(number):
                self._remove(number)

    def _write(self, number: int, state: Any, meta: dict, score: float | None) -> None:
        import orbax.checkpoint as ocp

        items = {"state": ocp.args.StandardSave(state), "meta": ocp.args.JsonSave(meta)}
        if score is not None:
            items["score"] = ocp.args.JsonSave({"value": score, "by": self._best_by})
        self._manager.save(number, args=ocp.args.Composite(**items), force=True)
        self._manager.wait_until_finished()
        _on_first(lambda: write_manifest(self._path(number)))
        self._damage[number] = ""
        self._scores[number] = score

    def _remove(self, number: int) -> None:
        """Without its manifest it no longer counts, should the rest not be removed."""
        _on_first(lambda: (self._path(number) / NAME).unlink(missing_ok=True))
        self._manager.delete(number)
        self._damage.pop(number, None)
        self._scores.pop(number, None)

    def _remove_old(self, newest: int) -> None:
        best = self.best()
        if best == newest:
            log.info(
                "checkpoint %d is the best so far by %s, %.4g: it is kept beside the last %d",
                best,
                self._best_by,
                self._scores[best],
                self._keep,
            )
        for number in self._numbers()[: -self._keep]:
            if number != best:
                self._remove(number)

    @contextlib.contextmanager
    def _writing(self, number: int) -> Iterator[None]:
        """Turns what a disk that is full or cannot be written to raises into one line."""
        orbax_log = logging.getLogger("absl")
        level = orbax_log.level
        orbax_log.setLevel(logging.CRITICAL)  # it prints what it raises, over many lines
        try:
            yield
        except Exception as error:
            self._forget(number)
            reason = _disk_error(error)
            if reason is None:
                raise
            raise OSError(
                f"cannot write checkpoint {number} to {self._folder}: {reason}; those before are "
                "unharmed: make room or mend the disk, then go on with --resume"
            ) from error
        finally:
            orbax_log.setLevel(level)

    def _forget(self, number: int) -> None:
        """After an error: the next call looks at the folder anew."""
        self._damage.pop(number, None)
        self._clean = False
        with contextlib.suppress(Exception):  # it may be in any state
            self._opened.close()
        self._opened = None

    @contextlib.contextmanager
    def _one_line(self, number: int) -> Iterator[None]:
        """Turns what Orbax and its stores raise on damaged files into one line."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ValueError(self._damaged(number, reason)) from error


def _on_first(write: Callable[[], None]) -> None:
    """Writes on the first process; where that fails, every process raises an OSError."""

    def attempt() -> str:
        try:
            write()
        except OSError as error:
            return error.strerror or str(error)
        return ""

    if reason := from_first(attempt):
        raise OSError(reason)


def _disk_error(error: Exception) -> str | None:
    """The system's words for what a disk refused; None for errors of another kind."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # of the store below Orbax
    return os.strerror(int(code[1])) if code else None


def _host_array(written: Any) -> np.ndarray:
    """An array of the same shape that takes no memory."""
    return np.broadcast_to(np.zeros((), written.dtype), written.shape)


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
