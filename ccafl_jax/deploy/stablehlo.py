"""A folder with a StableHLO function that runs with JAX alone, without this package.

The function is `embed(params, images: uint8[b, height, width, 3], ...) -> float32[b, features]`
with b symbolic, lowered for CPUs, CUDA and TPUs. The weights lie beside it and are arguments: as
constants they would be compiled into every program. `embed.py` in the folder loads and runs it.
"""

import datetime
import importlib.metadata
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.deploy import manifest, standalone
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.forward import all_arrays, embed_function

PLATFORMS = ("cpu", "cuda", "tpu")
FUNCTION = "embed.stablehlo"
WEIGHTS = "weights.npz"
SCRIPT = "embed.py"

BACKWARD = datetime.timedelta(days=182)
FORWARD = datetime.timedelta(weeks=3)
"""How far JAX promises to read exports of older (six months) and newer releases.

Source: "Compatibility guarantees" in JAX's page on jax.export.
"""
RELEASED = {
    "0.10.0": "2026-04-22",
    "0.10.1": "2026-05-20",
    "0.10.2": "2026-06-17",
    "0.11.0": "2026-07-16",
    "0.11.1": "2026-08-17",
    "0.11.2": "2026-09-17",
    "0.12.0": "2026-10-19",
}
"""Days on which versions of jaxlib were released (PyPI): the windows count from them."""


def write_stablehlo(
    folder: pathlib.Path, bundle: ModelBundle, *, compute_dtype: str = "float32"
) -> None:
    """Writes the function, the weights, the script that runs them, and the manifest."""
    exported = _lower(bundle, compute_dtype)
    (folder / FUNCTION).write_bytes(exported.serialize())
    weights = {path: np.asarray(x) for path, x in all_arrays(bundle).items()}
    np.savez(folder / WEIGHTS, **weights)
    shutil.copyfile(standalone.__file__, folder / SCRIPT)
    about = manifest.describe(
        bundle,
        kind="stablehlo",
        dtype=compute_dtype,
        platforms=list(exported.platforms),
        calling_convention_version=exported.calling_convention_version,
        compatibility=compatibility(),
    )
    manifest.write(folder, about)


def compatibility(*, jaxlib: str | None = None) -> dict[str, str]:
    """Which releases of JAX read an export of today.

    What counts is the day on which the exporting jaxlib was released, not the day of the export.

    Args:
      jaxlib: version; None means the installed one.

    Returns:
      `usable_until` and `usable_from`: releases of JAX between these days are promised to read
      the export, and the exporting release itself reads it at any time. `counted_from` says which
      day was taken: for a version that is not in `RELEASED` that of the newest one before it, so
      that nothing is promised in excess.
    """
    jaxlib = jaxlib or importlib.metadata.version("jaxlib")
    before = [v for v in RELEASED if _numbers(v) <= _numbers(jaxlib)] or [min(RELEASED)]
    counted = max(before, key=_numbers)
    day = datetime.date.fromisoformat(RELEASED[counted])
    about = "" if counted == jaxlib else f", the newest known that is not after {jaxlib}"
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib,
        "counted_from": f"the release of jaxlib {counted}, {day}{about}",
        "usable_from": str(day - FORWARD),
        "usable_until": str(day + BACKWARD),
    }


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _lower(bundle: ModelBundle, compute_dtype: str) -> "jax.export.Exported":
    from jax import export

    (b,) = export.symbolic_shape("b")
    size = (bundle.preprocess.height, bundle.preprocess.width)
    inputs = [jax.ShapeDtypeStruct((b, *size, 3), jnp.uint8)]
    if bundle.model.cameras:
        inputs.append(jax.ShapeDtypeStruct((b,), jnp.int32))
    weights = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in all_arrays(bundle).items()}
    embed = embed_function(bundle.model, bundle.preprocess, compute_dtype=compute_dtype)
    return export.export(jax.jit(embed), platforms=PLATFORMS)(weights, *inputs)
