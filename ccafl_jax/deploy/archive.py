"""Archives: a model as Orbax arrays or as safetensors, from which everything else is re-made.

Both hold every parameter and running statistic bit for bit, beside a manifest that says how to
build and feed the model.
"""

import pathlib

import numpy as np
from flax import nnx

from ccafl_jax.deploy import manifest
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.forward import abstract_model, check_arrays
from ccafl_jax.models.reid import ReIDConfig
from ccafl_jax.training.description import read_description
from ccafl_jax.training.state import merge_model, split_model

ARRAYS = "arrays"
WEIGHTS = "model.safetensors"
DTYPE = "float32"
TOWER = "visual."
"""Prefix of the image tower in safetensors: that of OpenAI and open_clip."""


def write_orbax(folder: pathlib.Path, bundle: ModelBundle) -> None:
    """Writes `arrays`, an Orbax pytree of `params` and `batch_stats` by path, and the manifest."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:  # leaving it waits for the writes
        checkpointer.save((folder / ARRAYS).absolute(), _host_arrays(bundle))
    packages = ("orbax-checkpoint",)
    about = manifest.describe(bundle, kind="orbax", dtype=DTYPE, packages=packages)
    manifest.write(folder, about)


def write_safetensors(folder: pathlib.Path, bundle: ModelBundle) -> None:
    """Writes the weights in open_clip naming, and the manifest.

    The tower is `visual.*`; the heads have their published names: `gap.p`, `bottleneck.*` (and
    `bottleneck_proj.*` where the neck covers the projection), `cv_embed`. Shifts of the neck are
    0 and not written.
    """
    from ccafl_jax.models.reid_weights import reid_tensors
    from ccafl_jax.models.tensor_files import write_tensors

    state = _host_arrays(bundle)
    graphdef = nnx.split(abstract_model(bundle.model), nnx.Param, nnx.BatchStat)[0]
    model = merge_model(graphdef, state["params"], state["batch_stats"])
    write_tensors(folder / WEIGHTS, reid_tensors(model, tower=TOWER))
    packages = ("safetensors",)
    about = manifest.describe(bundle, kind="safetensors", dtype=DTYPE, packages=packages)
    manifest.write(folder, about)


def read_archive(folder: pathlib.Path) -> ModelBundle:
    """Reads what `write_orbax` or `write_safetensors` wrote.

    Raises:
      FileNotFoundError: the manifest or a file is missing.
      ValueError: a file was changed, or manifest and arrays do not belong together.
    """
    about = manifest.read(folder)
    readers = {"orbax": (_read_orbax, ARRAYS), "safetensors": (_read_safetensors, WEIGHTS)}
    if about.get("kind") not in readers:
        raise ValueError(
            f"{folder} is a {about.get('kind')!r} export, not an archive; name the folder of an "
            "orbax or safetensors export"
        )
    reader, need = readers[about["kind"]]
    manifest.verify(folder, needs=(need,))
    model, preprocess = read_description(about, str(folder / manifest.NAME))
    params, batch_stats = reader(folder, model)
    inputs = about.get("inputs") or {}
    return ModelBundle(
        model=model,
        preprocess=preprocess,
        params=params,
        batch_stats=batch_stats,
        recipe=about.get("recipe") or {},
        metrics=about.get("metrics") or {},
        source=about.get("source", str(folder)),
        camera_codes=tuple(inputs.get("cameras", {}).get("codes", ())),
    )


def check_same(bundle: ModelBundle, again: ModelBundle, kind: str) -> None:
    """Fails unless two models hold the same arrays, bit for bit.

    Raises:
      ValueError: naming the first array that differs.
    """
    for name in ("params", "batch_stats"):
        left, right = getattr(bundle, name), getattr(again, name)
        for path in sorted(left.keys() | right.keys()):
            same = path in left and path in right
            if not same or np.asarray(left[path]).tobytes() != np.asarray(right[path]).tobytes():
                raise ValueError(
                    f"the {kind} archive does not hold {path} as the model has it; nothing was "
                    "written"
                )


def _read_orbax(folder: pathlib.Path, config: ReIDConfig) -> tuple[dict, dict]:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((folder / ARRAYS).absolute())
    model = abstract_model(config)
    where = str(folder / ARRAYS)
    for name, kind in (("params", nnx.Param), ("batch_stats", nnx.BatchStat)):
        check_arrays(state.get(name) or {}, model, kind, where)
    return dict(state["params"]), dict(state.get("batch_stats") or {})


def _read_safetensors(folder: pathlib.Path, config: ReIDConfig) -> tuple[dict, dict]:
    from ccafl_jax.models.reid_weights import load_reid_tensors
    from ccafl_jax.models.tensor_files import TensorFiles

    model = abstract_model(config)
    with TensorFiles(folder / WEIGHTS) as tensors:
        load_reid_tensors(model, tensors, tower=TOWER)
    return split_model(model)[1:]


def _host_arrays(bundle: ModelBundle) -> dict[str, dict[str, np.ndarray]]:
    """Both dictionaries on the host, checked against the model that they will be read as."""
    model = abstract_model(bundle.model)
    state = {
        "params": {path: np.asarray(x) for path, x in bundle.params.items()},
        "batch_stats": {path: np.asarray(x) for path, x in bundle.batch_stats.items()},
    }
    check_arrays(state["params"], model, nnx.Param, bundle.source)
    check_arrays(state["batch_stats"], model, nnx.BatchStat, bundle.source)
    return state
