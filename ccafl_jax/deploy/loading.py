"""Loads whatever this library wrote: run folders, archives and exported functions."""

import pathlib

from ccafl_jax.deploy import manifest, standalone
from ccafl_jax.deploy.archive import read_archive
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.embedder import Embedder, ImageEmbedder
from ccafl_jax.deploy.onnx import load_onnx
from ccafl_jax.deploy.run_folder import read_run
from ccafl_jax.training.description import read_description

KINDS = ("orbax", "safetensors", "stablehlo", "onnx")
"""Kinds of exported folders, in the order in which they are preferred."""
ARCHIVES = KINDS[:2]


def load(
    path: str | pathlib.Path,
    *,
    batch: int = 64,
    compute_dtype: str | None = None,
    devices: int = 1,
) -> ImageEmbedder:
    """Loads a model for use: `load(path).embed(images)`.

    Args:
      path: a run folder; a folder that `scripts/export.py` wrote; or one of the folders in it.
      batch: images a call.
      compute_dtype: "float32" (the default) or "bfloat16"; that of an exported function is fixed.
      devices: how many to spread a batch over, 0 for all; exported functions use one.

    Raises:
      FileNotFoundError: nothing there that can be loaded, or a file is missing.
      ValueError: a damaged file, or an option that the export cannot follow.
    """
    folder = find(path)
    if _kind(folder) in (None, *ARCHIVES):
        return Embedder(
            load_bundle(folder),
            batch=batch,
            compute_dtype=compute_dtype or "float32",
            devices=devices,
        )
    about = manifest.read(folder)
    if compute_dtype not in (None, about.get("dtype")) or devices != 1:
        raise ValueError(
            f"{folder} is a function exported in {about['dtype']} for one device; load an orbax "
            "or safetensors archive for other arithmetic or more devices"
        )
    model, preprocess = read_description(about, str(folder / manifest.NAME))
    step = load_onnx(folder) if about["kind"] == "onnx" else standalone.load(folder)
    known = about.get("feature_fingerprints")
    return ImageEmbedder(
        step,
        preprocess=preprocess,
        features=model.features,
        cameras=model.kinds,
        camera_codes=tuple((about["inputs"].get("cameras") or {}).get("codes", ())),
        two_streams=model.dual_stream,
        fingerprint=known and (lambda *, flip: known["mirrored" if flip else "plain"]),
        batch=batch,
    )


def load_bundle(path: str | pathlib.Path, *, number: int | None = None) -> ModelBundle:
    """Reads the model of a run folder or an archive, for export or further work.

    Args:
      path: as for `load`, but exported functions hold no model.
      number: of the checkpoint of a run folder; None means the last.

    Raises:
      FileNotFoundError, ValueError: as `load`; a number for an archive, which holds one model.
    """
    folder = find(path)
    if _kind(folder) is None:
        return read_run(folder, number=number)
    if number is not None:
        raise ValueError(f"{folder} is an archive of one model; leave the number (--epoch) out")
    return read_archive(folder)


def find(path: str | pathlib.Path) -> pathlib.Path:
    """The folder to load: `path`, or the preferred one in it.

    Raises:
      FileNotFoundError: neither a run folder nor an export.
    """
    path = pathlib.Path(path).expanduser()
    if (path / "checkpoints").is_dir() or (path / manifest.NAME).is_file():
        return path
    for kind in KINDS:
        if (path / kind / manifest.NAME).is_file():
            return path / kind
    found = "no such folder" if not path.is_dir() else "neither checkpoints/ nor manifest.json"
    raise FileNotFoundError(
        f"{path}: {found}; name a run folder or a folder that scripts/export.py wrote"
    )


def _kind(folder: pathlib.Path) -> str | None:
    """Kind of an exported folder; None for a run folder."""
    if not (folder / manifest.NAME).is_file():
        return None
    kind = manifest.read(folder).get("kind")
    if kind not in KINDS:
        raise ValueError(f"{folder} is an export of kind {kind!r}; known kinds are {KINDS}")
    return kind
