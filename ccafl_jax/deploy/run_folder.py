"""The model in a run folder, written by a training run or by a conversion."""

import pathlib

from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.training.checkpoints import Checkpoints
from ccafl_jax.training.description import check_format, describe_model, read_description


def read_run(workdir: pathlib.Path, *, number: int | None = None) -> ModelBundle:
    """Reads a checkpoint of a run folder (default: the last).

    Raises:
      FileNotFoundError: no checkpoint there.
      ValueError: a checkpoint of another format, or a damaged one.
    """
    folder = pathlib.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: train first, or check --workdir")
    checkpoints = Checkpoints(folder)
    number = checkpoints.latest() if number is None else number
    try:
        meta = checkpoints.restore_meta(number)
        state = checkpoints.restore(number)
    except FileNotFoundError:
        raise
    except Exception as error:  # Orbax and its stores raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"checkpoint {number} in {folder} cannot be read ({reason}): it is damaged; copy it "
            "again, or choose an earlier one"
        ) from error
    finally:
        checkpoints.close()
    check_format(meta, str(folder))
    model, preprocess = read_description(meta, str(folder))
    stages = meta.get("progress", {}).get("stages", [])
    return ModelBundle(
        model=model,
        preprocess=preprocess,
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
