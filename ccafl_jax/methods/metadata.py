"""The JSON beside the arrays of a run's checkpoint, and what a resumed run requires of it."""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ccafl_jax.data.labels import IntraCameraLabels
from ccafl_jax.data.records import Records, ReIDDataset
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.methods.progress import Progress
from ccafl_jax.training.checkpoints import digest
from ccafl_jax.training.description import (
    ModelConfig,
    Preprocess,
    check_format,
    describe_model,
    model_digest,
)
from ccafl_jax.training.fingerprint import code_fingerprint, hardware, library_versions
from ccafl_jax.training.state import TrainState
from ccafl_jax.training.storage import is_local

FREE_OPTIONS = {
    "stages": "a run goes on with the stages after those it has done",
    "devices": "the batch is the same on any number; results agree within rounding",
    "scale.shard_classes": "where arrays lie changes results within rounding only",
    "input": "how images reach the devices; the batches are the same",
    "keep_checkpoints": "which checkpoints stay changes no number in them",
    "keep_best": "likewise",
    "skip_nonfinite": "how much is put up with before a run stops, which a resumed one may raise",
    "data.root": "a data set may be moved; which images it holds is compared by itself",
    "data.source": "a prepared set holds the original bytes",
    "data.cache": "holds the same pixels",
    "published": "figures of others, shown beside those of the run",
    "published_on": "likewise",
}
"""Options, or groups, that a resumed run may change, and why: none changes what it computes."""

_SHOWN = 3  # differences in a message
_NOTHING = "absent"

log = logging.getLogger("ccafl_jax")


def describe_run(
    method: str,
    config: Any,
    model: ModelConfig,
    dataset: ReIDDataset,
    pixels: PixelFormat,
    *,
    workdir: str | os.PathLike,
    training_set: str,
    classes: int = 0,
    class_table: str = "",
    class_names: Mapping[str, Sequence] | None = None,
) -> dict:
    """What stays the same in all checkpoints of a run, as JSON values.

    Args:
      method: its name.
      config: the options.
      model: sizes of the image or video model.
      dataset: records of the data set.
      pixels: what its images become when they are loaded.
      workdir: folder of the run.
      training_set: from :func:`training_digest`.
      classes: of the training set, where the method is given any.
      class_table: from :func:`class_digest`.
      class_names: from :func:`class_names`, for runs that start from this one.
    """
    preprocess = Preprocess(
        pixels.height, pixels.width, config.augment.mean, config.augment.std, pixels.filter
    )
    description = describe_model(model, preprocess) | {
        "method": method,
        "config": dataclasses.asdict(config),
        "classes": classes,
        "training_set": training_set,
        "class_table": class_table,
        "class_names": class_names or {},
        "code": code_fingerprint(),
        "libraries": library_versions(),
        "hardware": hardware(),
        "data_root": _relative(dataset.root, workdir),
        "camera_codes": list(dataset.camera_codes),
    }
    return json.loads(json.dumps(description))


def describe_checkpoint(run: dict, progress: Progress, state: TrainState) -> dict:
    """The description of one checkpoint."""
    changing = {
        "progress": progress.to_json(),
        "digest": model_digest(state.params, state.batch_stats),
    }
    return run | changing


def check_resumable(
    stored: dict, run: dict, workdir: str | os.PathLike, *, allow_changes: bool = False
) -> None:
    """Fails where a checkpoint is not of this run, or a resumed run would end as another one.

    Libraries of other versions are only warned of: their numbers differ in the last digits.

    Args:
      stored: description of the checkpoint.
      run: from :func:`describe_run`.
      workdir: folder of the run.
      allow_changes: warn of other options and other code, instead of failing.

    Raises:
      ValueError: another format, no run at all, another training set, another model, or other
        options or code; the message names the first differences.
    """
    check_format(stored, str(workdir))
    if stored["method"] != run["method"]:
        raise ValueError(
            f"{workdir} holds a model only ({stored['method']}), no run to resume: choose another "
            "--workdir"
        )
    if stored["classes"] != run["classes"]:
        raise ValueError(
            f"the checkpoint in {workdir} has {stored['classes']} classes, the training set has "
            f"{run['classes']}: point data.root at the set it was trained on"
        )
    if any(stored.get(key) != run[key] for key in ("training_set", "class_table")):
        raise ValueError(
            f"the run in {workdir} was trained on other images, identities or cameras, of as many "
            "classes: point data.root at the set it was trained on"
        )
    for key in ("model", "preprocess"):
        if found := differences(stored[key], run[key], f"{key}."):
            raise ValueError(
                f"{workdir} was started with other options: {found[0]}; resume with those"
            )
    _check_same_results(stored, run, workdir, allow_changes)
    if found := differences(stored.get("libraries", {}), run["libraries"]):
        log.warning("%s was started with other libraries: %s", workdir, _first(found))


def _check_same_results(
    stored: dict, run: dict, workdir: str | os.PathLike, allow_changes: bool
) -> None:
    free = tuple(f"{name}{end}" for name in FREE_OPTIONS for end in (" ", "."))
    options = [
        difference
        for difference in differences(stored["config"], run["config"])
        if not difference.startswith(free)
    ]
    code = differences(stored.get("code", {}), run["code"], "ccafl_jax/")
    if not options + code:
        return
    what = " and ".join(["other options"] * bool(options) + ["other code"] * bool(code))
    message = f"{workdir} was started with {what}: {_first(options + code)}"
    if not allow_changes:
        raise ValueError(
            f"{message}; use those, or --allow_changes to go on with the new ones and end "
            "differently from a run that was not interrupted"
        )
    log.warning("%s; it goes on with the new ones", message)


def class_digest(labels: IntraCameraLabels) -> str:
    """A hash of the table of classes: which images each has, its camera and its identity."""
    return digest(dataclasses.asdict(labels))


def class_names(labels: IntraCameraLabels, camera_codes: Sequence[int]) -> dict[str, list[int]]:
    """What the classes are called, whatever their numbers are in a run: camera code and identity.

    Args:
      labels: of the training set.
      camera_codes: by camera.

    Returns:
      "camera" and "identity" of every class.
    """
    return {
        "camera": [camera_codes[camera] for camera in labels.cam_of],
        "identity": labels.pid_of.tolist(),
    }


def training_digest(train: Records) -> str:
    """A hash of the base names and labels of the training images, wherever the set lies."""
    names = "\n".join(path.rpartition("/")[2] for path in train.path)
    digest = hashlib.sha256(names.encode("utf-8", "surrogateescape"))
    for array in (train.pid, train.camid):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _relative(root: str, workdir: str | os.PathLike) -> str:
    """The data set's folder, relative where it lies in the run folder and moves with it."""
    if not root or not is_local(workdir):
        return root
    path, workdir = pathlib.Path(root).resolve(), pathlib.Path(workdir).resolve()
    return str(path.relative_to(workdir)) if path.is_relative_to(workdir) else root


def differences(stored: dict, asked: dict, prefix: str = "") -> list[str]:
    """The entries in which two nested dictionaries differ, in words.

    Args:
      stored: "there" in the words.
      asked: "here" in the words.
      prefix: before the names of the entries.
    """
    found = []
    for key in sorted(stored.keys() | asked.keys()):
        left, right = stored.get(key, _NOTHING), asked.get(key, _NOTHING)
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key} is {left} there and {right} here")
    return found


def _first(differences: list[str]) -> str:
    """The first few, and how many more there are."""
    more = len(differences) - _SHOWN
    return ", ".join(differences[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
