"""The model in a run folder, written by a training run or by a conversion."""

import pathlib

from ccafl_jax.deploy.bundle import ModelBundle, Preprocess
from ccafl_jax.models.reid import ReIDConfig
from ccafl_jax.training.checkpoints import Checkpoints

FORMAT = 2
"""Of the description beside the arrays; written with every checkpoint."""


def describe_model(model: ReIDConfig, preprocess: Preprocess) -> dict:
    """What a checkpoint says of its image model, as JSON values."""
    return {"format": FORMAT, "model": model.to_json(), "preprocess": preprocess.to_json()}


def read_run(workdir: pathlib.Path, *, number: int | None = None) -> ModelBundle:
    """Reads a checkpoint of a run folder (default: the last).

    Raises:
      FileNotFoundError: no checkpoint there.
      ValueError: a checkpoint of another format.
    """
    folder = pathlib.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: train first, or check --workdir")
    checkpoints = Checkpoints(folder)
    number = checkpoints.latest() if number is None else number
    meta = checkpoints.restore_meta(number)
    if meta.get("format") != FORMAT:
        raise ValueError(
            f"{folder} holds checkpoints of format {meta.get('format')}, this version reads "
            f"{FORMAT}: train again"
        )
    state = checkpoints.restore(number)
    checkpoints.close()
    stages = meta.get("progress", {}).get("stages", [])
    return ModelBundle(
        model=ReIDConfig.from_json(meta["model"]),
        preprocess=Preprocess.from_json(meta["preprocess"]),
        params=dict(state["params"]),
        batch_stats=dict(state["batch_stats"]),
        recipe={"method": meta["method"], "config": meta["config"]},
        metrics=dict(stages[-1]) if stages else {},
        source=f"{meta['method']}, checkpoint {number}",
        data_root=meta.get("data_root", ""),
        camera_codes=tuple(meta.get("camera_codes", ())),
    )


def write_run(workdir: pathlib.Path, bundle: ModelBundle) -> pathlib.Path:
    """Writes a run folder that holds only a model, for evaluation and export.

    Raises:
      FileExistsError: there are checkpoints already.
    """
    folder = pathlib.Path(workdir) / "checkpoints"
    if folder.exists():
        raise FileExistsError(f"{folder} exists: choose another folder, or remove it first")
    checkpoints = Checkpoints(folder)
    meta = describe_model(bundle.model, bundle.preprocess) | {
        "method": bundle.recipe.get("method", "converted"),
        "config": bundle.recipe.get("config", {}),
        "data_root": bundle.data_root,
        "camera_codes": list(bundle.camera_codes),
    }
    state = {"params": dict(bundle.params), "batch_stats": dict(bundle.batch_stats)}
    checkpoints.save(0, state, meta)
    checkpoints.close()
    return folder
