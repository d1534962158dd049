"""The model in a run folder, written by a training run or by a conversion."""

import os
import pathlib
from typing import TYPE_CHECKING

from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.training.checkpoints import Checkpoints
from ccafl_jax.training.description import (
    check_digest,
    check_format,
    describe_model,
    model_digest,
    read_description,
)
from ccafl_jax.training.storage import open_path

if TYPE_CHECKING:
    from etils import epath


def read_run(workdir: str | os.PathLike, *, number: int | None = None) -> ModelBundle:
    """Reads a checkpoint of a run folder (default: the last undamaged one).

    Args:
      workdir: on a disk or in an object store.
      number: of the checkpoint.

    Raises:
      FileNotFoundError: no checkpoint there.
      ValueError: a checkpoint of another format, or a damaged one.
    """
    workdir = open_path(workdir)
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: train first, or check --workdir")
    with Checkpoints(folder) as checkpoints:
        number = checkpoints.latest() if number is None else number
        meta = checkpoints.restore_meta(number)
        check_format(meta, str(folder))
        state = checkpoints.restore(number)
    model, preprocess = read_description(meta, str(folder))
    params, batch_stats = dict(state["params"]), dict(state["batch_stats"])
    check_digest(meta, params, batch_stats, where=f"checkpoint {number} in {folder}")
    measured = [
        stage
        for stage in meta.get("progress", {}).get("stages", [])
        if stage.get("checkpoint") == number
    ]
    return ModelBundle(
        model=model,
        preprocess=preprocess,
        params=params,
        batch_stats=batch_stats,
        recipe={"method": meta["method"], "config": meta["config"]},
        metrics=dict(measured[-1]) if measured else {},
        source=f"{meta['method']}, checkpoint {number}",
        data_root=_data_root(meta.get("data_root", ""), workdir),
        camera_codes=tuple(meta.get("camera_codes", ())),
    )


def _data_root(stored: str, workdir: "epath.Path") -> str:
    """The data set's folder; one inside the run folder is stored relative to that."""
    return str(workdir / stored) if stored and not pathlib.Path(stored).is_absolute() else stored


def write_run(workdir: str | os.PathLike, bundle: ModelBundle) -> "epath.Path":
    """Writes a run folder that holds only a model, for evaluation and export.

    Raises:
      FileExistsError: there are checkpoints already.
    """
    folder = open_path(workdir) / "checkpoints"
    if folder.exists():
        raise FileExistsError(f"{folder} exists: choose another folder, or remove it first")
    meta = describe_model(bundle.model, bundle.preprocess) | {
        "digest": model_digest(bundle.params, bundle.batch_stats),
        "method": bundle.recipe.get("method", "converted"),
        "config": bundle.recipe.get("config", {}),
        "data_root": bundle.data_root,
        "camera_codes": list(bundle.camera_codes),
    }
    state = {"params": dict(bundle.params), "batch_stats": dict(bundle.batch_stats)}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(0, state, meta)
    return folder
