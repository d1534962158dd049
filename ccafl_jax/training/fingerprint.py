"""By which code, which libraries and which devices a run was computed."""

import functools
import hashlib
import importlib.metadata
import pathlib
import platform

import jax

import ccafl_jax

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "pillow")
"""That can change numbers, pixels or files."""


@functools.cache
def code_fingerprint() -> dict[str, str]:
    """The version of this package, and a short sha256 of each of its Python files by name."""
    root = pathlib.Path(ccafl_jax.__file__).parent
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    hashes = {name: hashlib.sha256(files[name].read_bytes()).hexdigest() for name in sorted(files)}
    return {"version": ccafl_jax.__version__} | {name: hashes[name][:16] for name in hashes}


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries by name."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


@functools.cache
def hardware() -> dict[str, str | int]:
    """What computes: kind and number of the devices, processes, and the Python that runs them."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "python": platform.python_version(),
    }
