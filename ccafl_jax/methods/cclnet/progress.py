"""How far a run of CCLNet has come, its arrays as a checkpoint holds them, and its summary."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ccafl_jax.methods import progress
from ccafl_jax.methods.cclnet.config import CCLNetConfig
from ccafl_jax.methods.cclnet.prompts import PromptState
from ccafl_jax.methods.packing import pack_state, unpack_state
from ccafl_jax.training.checkpoints import leaves_by_path, restore_leaves
from ccafl_jax.training.layout import with_rows
from ccafl_jax.training.state import FlatDict, TrainState


def _no_labels() -> np.ndarray:
    return np.zeros(0, np.int32)


@dataclasses.dataclass
class Progress(progress.Progress):
    """How far a run of CCLNet has come.

    Attributes, beside those of all methods:
      prompt_epochs: epochs of stage 1; `encoder_epochs` are those of stages 0 and 2 together.
      labels: int32[images], the clusters in force.
      text_labels: int32[images], the clusters that stage 0 ended with; empty before.
      rows: rows of the memory of each modality, which never become fewer.
    """

    prompt_epochs: int = 0
    labels: np.ndarray = dataclasses.field(default_factory=_no_labels)
    text_labels: np.ndarray = dataclasses.field(default_factory=_no_labels)
    rows: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def number(self) -> int:
        """Number of the checkpoint."""
        return self.prompt_epochs + self.encoder_epochs

    def next_epochs(self) -> dict[str, int]:
        """First epoch of each log that is still to come."""
        return {"prompts": self.prompt_epochs, **super().next_epochs()}

    def to_json(self) -> dict:
        """As JSON values."""
        return super().to_json() | {
            name: getattr(self, name).tolist() for name in ("labels", "text_labels")
        }

    @classmethod
    def from_json(cls, values: Mapping) -> Self:
        """Inverse of `to_json`."""
        arrays = {name: np.asarray(values[name], np.int32) for name in ("labels", "text_labels")}
        return cls(**{**values, **arrays})


def summarize(
    progress: Progress, config: CCLNetConfig, *, dataset: str, train_images: int, seconds: float
) -> dict:
    """What `summary.json` holds; its headline `final` is the last epoch, never the best one.

    Args:
      progress: of a run that is done.
      config: its options.
      dataset: name of the data set.
      train_images: their number.
      seconds: spent.
    """
    trained = [stage for stage in progress.stages if stage["name"] in ("prepare", "train")]
    last = (trained or [progress.zero_shot])[-1]
    comparable = config.published_on in ("", dataset)
    return {
        "method": "cclnet",
        "zero_shot": progress.zero_shot,
        "stages": progress.stages,
        "final": {k: v for k, v in last.items() if k not in ("name", "checkpoint", "seconds")},
        "seconds": seconds,
        "published": config.published if comparable else "",
        "dataset": dataset,
        "train_images": train_images,
    }


def pack(
    state: TrainState, prompt_state: PromptState | None, class_text: FlatDict, *, memory: bool
) -> dict[str, Any]:
    """The arrays of a run as a nested dictionary that names no optimiser class.

    Args:
      state: of the encoder.
      prompt_state: of the prompts, once there are any.
      class_text: by modality the descriptions of clusters, once there are any.
      memory: with the memory banks.
    """
    tree = pack_state(state, memory=memory)
    if prompt_state is not None:
        tree["prompts"] = leaves_by_path(prompt_state)
    return tree | {"class_text": class_text} if class_text else tree


def unpack(
    tree: Mapping[str, Any],
    state: TrainState,
    prompt_state: PromptState | None,
    *,
    rows: Mapping[str, int],
) -> tuple[TrainState, PromptState | None, FlatDict]:
    """Inverse of :func:`pack`, in the structure of the given states.

    Args:
      tree: from a checkpoint, written on any number of devices.
      state: of this run.
      prompt_state: likewise; None where the checkpoint is from before stage 1.
      rows: of the memory of each modality in this run.

    Raises:
      ValueError: the checkpoint is of another model.
    """
    restored = unpack_state(tree, state)
    restored = restored.replace(
        memory={name: with_rows(bank, rows[name]) for name, bank in restored.memory.items()}
    )
    if prompt_state is not None and "prompts" in tree:
        prompt_state = restore_leaves(prompt_state, tree["prompts"])
    return restored, prompt_state, dict(tree.get("class_text", {}))
