"""How far a run has come, its arrays as a checkpoint holds them, and its summary."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import numpy as np

from ccafl_jax.methods import progress
from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.methods.ccafl.prompts import PromptState
from ccafl_jax.methods.ccafl.state import CCAFLState
from ccafl_jax.methods.packing import pack_state, unpack_state
from ccafl_jax.training.checkpoints import leaves_by_path, restore_leaves
from ccafl_jax.training.layout import with_rows


@dataclasses.dataclass
class Progress(progress.Progress):
    """How far a run of CCAFL has come.

    Attributes, beside those of all methods:
      prompt_epochs: epochs of stage 1; `encoder_epochs` are those of stages 2 and 3 together.
      clusters: int32[classes], the pseudo identities in force.
      gid_accuracy: batch accuracy of the global classifier in the last epoch.
    """

    prompt_epochs: int = 0
    clusters: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    gid_accuracy: float = 0.0

    @property
    def number(self) -> int:
        """Number of the checkpoint."""
        return self.prompt_epochs + self.encoder_epochs

    def next_epochs(self) -> dict[str, int]:
        """First epoch of each log that is still to come."""
        return {"prompts": self.prompt_epochs, **super().next_epochs()}

    def to_json(self) -> dict:
        """As JSON values."""
        return super().to_json() | {"clusters": np.asarray(self.clusters).tolist()}

    @classmethod
    def from_json(cls, values: Mapping) -> Self:
        """Inverse of `to_json`."""
        return cls(**{**values, "clusters": np.asarray(values["clusters"], np.int32)})


def summarize(
    progress: Progress,
    config: CCAFLConfig,
    *,
    dataset: str,
    classes: int,
    train_images: int,
    seconds: float,
) -> dict:
    """What `summary.json` holds; its headline `final` is the last epoch, never the best one.

    Args:
      progress: of a run that is done.
      config: its options.
      dataset: name of the data set.
      classes: (camera, identity) classes of the training set.
      train_images: their images.
      seconds: spent.
    """
    trained = [stage for stage in progress.stages if stage["name"] in ("intra", "inter")]
    last = (trained or [progress.zero_shot])[-1]
    left_out = ("name", "checkpoint", "seconds", "g")
    comparable = config.published_on in ("", dataset)
    return {
        "method": "ccafl",
        "zero_shot": progress.zero_shot,
        "stages": progress.stages,
        "final": {key: value for key, value in last.items() if key not in left_out},
        "seconds": seconds,
        "published": config.published if comparable else "",
        "dataset": dataset,
        "classes": classes,
        "train_images": train_images,
        "init_from": config.init_from,
    }


def pack(
    state: CCAFLState,
    prompt_state: PromptState,
    class_text: jax.Array | None,
    *,
    memory: bool = False,
) -> dict[str, Any]:
    """The arrays of a run as a nested dictionary that names no optimiser class.

    Args:
      state: of the encoder.
      prompt_state: of the prompts.
      class_text: texts of the classes, once there are any.
      memory: with the memory banks.
    """
    tree = pack_state(state, memory=memory) | {
        "classifier": state.classifier,
        "classifier_opt": leaves_by_path(state.classifier_opt),
        "prompts": leaves_by_path(prompt_state),
    }
    return tree if class_text is None else tree | {"class_text": class_text}


def tables_by_class(tree: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The learned vectors and the classifier of a packed run, a row for each class.

    Args:
      tree: as `pack` makes it; the classifier may have more rows, which fill it up.
    """
    return tree["prompts"][".prompts"], tree["classifier"]


def unpack(
    tree: dict[str, Any], state: CCAFLState, prompt_state: PromptState, *, clusters: int
) -> tuple[CCAFLState, PromptState, Any]:
    """Inverse of :func:`pack`, in the structure of the given states.

    Args:
      tree: from a checkpoint, written on any number of devices.
      state: of this run.
      prompt_state: of this run.
      clusters: rows of a bank of clusters in this run.

    Raises:
      ValueError: the checkpoint is of another model.
    """
    rows = state.classifier.shape[0]  # which depend on the devices where these share them
    table = {"centroids": rows, "instances": rows, "clusters": clusters}
    restored = unpack_state(tree, state)
    restored = restored.replace(
        classifier=with_rows(tree["classifier"], rows),
        classifier_opt=restore_leaves(
            state.classifier_opt, {k: with_rows(x, rows) for k, x in tree["classifier_opt"].items()}
        ),
        memory={
            name: with_rows(bank, table[name]) if name in table else bank
            for name, bank in restored.memory.items()
        },
    )
    return restored, restore_leaves(prompt_state, tree["prompts"]), tree.get("class_text")
