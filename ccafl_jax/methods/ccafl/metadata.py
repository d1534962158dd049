"""The JSON beside the arrays of a run's checkpoint, and what a resumed run requires of it."""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from ccafl_jax.data.records import Records, ReIDDataset
from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.methods.ccafl.progress import Progress
from ccafl_jax.models.reid import ReIDConfig
from ccafl_jax.training.description import Preprocess, check_format, describe_model, model_digest
from ccafl_jax.training.state import TrainState


def describe_run(
    config: CCAFLConfig,
    model: ReIDConfig,
    dataset: ReIDDataset,
    *,
    workdir: pathlib.Path,
    classes: int,
    training_set: str,
) -> dict:
    """What stays the same in all checkpoints of a run, as JSON values."""
    data, augment = config.data, config.augment
    preprocess = Preprocess(data.height, data.width, augment.mean, augment.std)
    description = describe_model(model, preprocess) | {
        "method": "ccafl",
        "config": dataclasses.asdict(config),
        "classes": classes,
        "training_set": training_set,
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


def check_resumable(stored: dict, run: dict, workdir: pathlib.Path) -> None:
    """Fails where a checkpoint is not of this run.

    Args:
      stored: description of the checkpoint.
      run: from :func:`describe_run`.
      workdir: folder of the run.

    Raises:
      ValueError: another format, no run at all, another training set or another model.
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
    # Runs of earlier versions do not say which images they saw.
    if stored.get("training_set", run["training_set"]) != run["training_set"]:
        raise ValueError(
            f"the run in {workdir} was trained on other images, identities or cameras, of as many "
            "classes: point data.root at the set it was trained on"
        )
    for key in ("model", "preprocess"):
        if stored[key] != run[key]:
            raise ValueError(
                f"{workdir} was started with other options: {key}."
                f"{_difference(stored[key], run[key])}; resume with those"
            )


def training_digest(train: Records) -> str:
    """A hash of the base names and labels of the training images, wherever the set lies."""
    names = "\n".join(path.rpartition("/")[2] for path in train.path)
    digest = hashlib.sha256(names.encode("utf-8", "surrogateescape"))
    for array in (train.pid, train.camid):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _relative(root: str, workdir: pathlib.Path) -> str:
    """The data set's folder, relative where it lies in the run folder and moves with it."""
    if not root:
        return ""
    path, workdir = pathlib.Path(root).resolve(), workdir.resolve()
    return str(path.relative_to(workdir)) if path.is_relative_to(workdir) else root


def _difference(stored: dict, asked: dict) -> str:
    """The first entry in which two nested dictionaries differ."""
    for key in sorted(stored.keys() | asked.keys()):
        left, right = stored.get(key), asked.get(key)
        if left != right:
            if isinstance(left, dict) and isinstance(right, dict):
                return f"{key}.{_difference(left, right)}"
            return f"{key} is {left} there and {right} here"
    return ""
