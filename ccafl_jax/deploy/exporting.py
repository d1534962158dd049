"""Export as a whole: formats, the parity gate, and all or nothing on disk."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from ccafl_jax.deploy import manifest
from ccafl_jax.deploy.archive import write_orbax, write_safetensors
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.forward import DTYPES
from ccafl_jax.deploy.images import as_list
from ccafl_jax.deploy.loading import KINDS, load
from ccafl_jax.deploy.onnx import write_onnx
from ccafl_jax.deploy.parity import check_parity
from ccafl_jax.deploy.stablehlo import write_stablehlo

DEFAULT_FORMATS = ("orbax", "safetensors", "stablehlo")


@dataclasses.dataclass(frozen=True)
class Exported:
    """One exported folder.

    Attributes:
      kind: its format.
      dtype: of its activations or arrays.
      bytes: of its files, the manifest included.
      cosine: the smallest to the model's own features.
    """

    kind: str
    dtype: str
    bytes: int
    cosine: float


def export_model(
    bundle: ModelBundle,
    out: str | pathlib.Path,
    *,
    images: Sequence,
    formats: Sequence[str] = DEFAULT_FORMATS,
    dtype: str = "float32",
    overwrite: bool = False,
) -> list[Exported]:
    """Writes a model in several formats; `out` appears only when all of them passed the gate.

    Every format is loaded as a user loads it and embeds `images`; its features are compared with
    those of the model in float32 at HIGHEST. A model with cameras meets all of them in turn.

    Args:
      bundle: the model.
      out: folder to make, with one folder a format.
      images: for the gate; as for `Embedder.embed`.
      formats: of "orbax", "safetensors", "stablehlo" and "onnx".
      dtype: arithmetic of the StableHLO function: "float32" or "bfloat16". Archives keep float32
        arrays and ONNX computes in float32.
      overwrite: replace an older export at `out`.

    Raises:
      FileExistsError: `out` exists.
      ValueError: no images, an unknown format or dtype, or a format that fails the gate.
    """
    out = pathlib.Path(out)
    unknown = [name for name in formats if name not in KINDS]
    if unknown or not formats:
        raise ValueError(f"formats {list(formats)}: choose from {list(KINDS)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: choose one of {list(DTYPES)}")
    images = as_list(images)
    if not len(images):
        raise ValueError("no images for the parity gate: pass --images, a folder or files")
    writers = {
        "orbax": write_orbax,
        "safetensors": write_safetensors,
        "stablehlo": functools.partial(write_stablehlo, compute_dtype=dtype),
        "onnx": write_onnx,
    }
    with _replacing(out, overwrite=overwrite) as partial:
        batch = min(len(images), 64)
        model = Embedder(bundle, batch=batch)
        cameras = np.arange(len(images)) % model.cameras if model.cameras else None
        reference = model.embed(images, cameras)
        result = []
        for kind in dict.fromkeys(formats):
            folder = partial / kind
            folder.mkdir()
            writers[kind](folder, bundle)
            used = dtype if kind == "stablehlo" else "float32"
            found = load(folder, batch=batch).embed(images, cameras)
            cosine = check_parity(kind, reference, found, dtype=used)
            result.append(Exported(kind, used, _size(folder), cosine))
    return result


@contextlib.contextmanager
def _replacing(out: pathlib.Path, *, overwrite: bool) -> Iterator[pathlib.Path]:
    """A folder beside `out` that takes its place at the end, or vanishes on any error."""
    if out.exists():
        if not overwrite:
            raise FileExistsError(f"{out} exists; choose another --out, or pass --overwrite")
        if not _is_export(out):
            raise FileExistsError(
                f"{out} holds other things than an export and is left alone; choose another --out"
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f"{out.name}.partial-", dir=out.parent))
    old = partial.with_name(partial.name.replace(".partial-", ".old-"))
    try:
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)  # mkdtemp makes folders that only their owner may read
        yield partial
        if out.exists():
            out.rename(old)
        partial.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists():
            old.rename(out)
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _is_export(folder: pathlib.Path) -> bool:
    return folder.is_dir() and all(
        entry.name in KINDS and (entry / manifest.NAME).is_file() for entry in folder.iterdir()
    )


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
