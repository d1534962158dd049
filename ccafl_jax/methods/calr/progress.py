"""How far a run of CALR has come, its arrays as a checkpoint holds them, and its summary."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ccafl_jax.methods import progress
from ccafl_jax.methods.calr.config import CALRConfig
from ccafl_jax.methods.calr.state import CALRState
from ccafl_jax.methods.packing import pack_state, same_keys, unpack_state
from ccafl_jax.training.checkpoints import leaves_by_path, restore_leaves
from ccafl_jax.training.layout import with_rows


def _no_labels() -> np.ndarray:
    return np.zeros(0, np.int32)


@dataclasses.dataclass
class Progress(progress.Progress):
    """How far a run of CALR has come.

    Attributes, beside those of all methods:
      local_epochs: epochs of stage 1, of all cameras together; `encoder_epochs` are those of
        stage 2.
      local: int32[images], the local clusters so far, -1 in cameras that are still to come.
      cameras: of the cameras that stage 1 has begun: images, clusters, silhouette and the epoch
        whose clusters are kept.
      labels: int32[images], the labels in force.
      weights: float32[clusters], how much each of their clusters counts.
    """

    local_epochs: int = 0
    local: np.ndarray = dataclasses.field(default_factory=_no_labels)
    cameras: list[dict] = dataclasses.field(default_factory=list)
    labels: np.ndarray = dataclasses.field(default_factory=_no_labels)
    weights: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def number(self) -> int:
        """Number of the checkpoint."""
        return self.local_epochs + self.encoder_epochs

    def next_epochs(self) -> dict[str, int]:
        """First epoch of each log that is still to come."""
        return {"local": self.local_epochs, **super().next_epochs()}

    def to_json(self) -> dict:
        """As JSON values."""
        arrays = ("local", "labels", "weights")
        return super().to_json() | {name: getattr(self, name).tolist() for name in arrays}

    @classmethod
    def from_json(cls, values: Mapping) -> Self:
        """Inverse of `to_json`."""
        kinds = {"local": np.int32, "labels": np.int32, "weights": np.float32}
        arrays = {name: np.asarray(values[name], kind) for name, kind in kinds.items()}
        return cls(**{**values, **arrays})


def summarize(
    progress: Progress, config: CALRConfig, *, dataset: str, train_images: int, seconds: float
) -> dict:
    """What `summary.json` holds; its headline `final` is the last epoch, never the best one.

    Args:
      progress: of a run that is done.
      config: its options.
      dataset: name of the data set.
      train_images: their number.
      seconds: spent.
    """
    trained = [stage for stage in progress.stages if stage["name"] == "global"]
    last = (trained or [progress.zero_shot])[-1]
    comparable = config.published_on in ("", dataset)
    return {
        "method": "calr",
        "zero_shot": progress.zero_shot,
        "stages": progress.stages,
        "final": {k: v for k, v in last.items() if k not in ("name", "checkpoint", "seconds")},
        "seconds": seconds,
        "published": config.published if comparable else "",
        "dataset": dataset,
        "train_images": train_images,
    }


def pack(state: CALRState, *, memory: bool) -> dict[str, Any]:
    """The arrays of a run as a nested dictionary that names no optimiser class."""
    return pack_state(state, memory=memory) | {
        "head": state.head,
        "head_stats": state.head_stats,
        "head_opt": leaves_by_path(state.head_opt),
    }


def unpack(tree: Mapping[str, Any], state: CALRState, *, rows: Mapping[str, int]) -> CALRState:
    """Inverse of :func:`pack`, in the structure of the given state.

    Args:
      tree: from a checkpoint, written on any number of devices.
      state: of this run.
      rows: of the memory banks in this run, by name.

    Raises:
      ValueError: the checkpoint is of another model.
    """
    restored = unpack_state(tree, state)
    return restored.replace(
        head=same_keys(state.head, tree["head"]),
        head_stats=same_keys(state.head_stats, tree["head_stats"]),
        head_opt=restore_leaves(state.head_opt, tree["head_opt"]),
        memory={name: with_rows(bank, rows[name]) for name, bank in restored.memory.items()},
    )
