"""Export as a whole: formats, the parity gate, and all or nothing on disk."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from ccafl_jax.deploy import manifest
from ccafl_jax.deploy.archive import check_same, write_orbax, write_safetensors
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.forward import DTYPES
from ccafl_jax.deploy.images import as_list
from ccafl_jax.deploy.loading import ARCHIVES, KINDS, load, load_bundle
from ccafl_jax.deploy.onnx import write_onnx
from ccafl_jax.deploy.parity import check_parity, tell_apart
from ccafl_jax.deploy.stablehlo import write_stablehlo

log = logging.getLogger("ccafl_jax")
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
    """Writes a model in several formats; they appear in `out` only when all passed the gate.

    Every format is loaded as a user loads it and embeds `images`; its features are compared with
    those of the model in float32 at HIGHEST. A model with cameras meets all of them in turn. Of
    archives every array is compared too, bit for bit. Other formats of the same model that are in
    `out` stay.

    Args:
      bundle: the model.
      out: folder to make, with one folder a format.
      images: for the gate; as for `Embedder.embed`.
      formats: of "orbax", "safetensors", "stablehlo" and "onnx".
      dtype: arithmetic of the StableHLO function: "float32" or "bfloat16". Archives keep float32
        arrays and ONNX computes in float32.
      overwrite: replace formats that are in `out`.

    Raises:
      FileExistsError: `out` holds a format already, another model, or something else.
      ValueError: no images, an unknown format or dtype, or a format that fails the gate.
    """
    out = pathlib.Path(out)
    unknown = [name for name in formats if name not in KINDS]
    if unknown or not formats:
        raise ValueError(f"formats {', '.join(formats)}: choose from {', '.join(KINDS)}")
    if dtype != "float32" and "stablehlo" not in formats:
        raise ValueError(f"dtype {dtype!r} is for stablehlo, which is not asked for; drop it")
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
    formats = list(dict.fromkeys(formats))
    _check_out(out, bundle, formats, overwrite=overwrite)
    batch = min(len(images), 64)
    model = Embedder(bundle, batch=batch)
    cameras, count = None, len(images)
    if model.cameras:  # every camera occurs, whatever the number of images
        cameras = np.arange(max(len(images), model.cameras)) % model.cameras
        images = [images[i % count] for i in range(len(cameras))]
    reference = model.embed(images, cameras)
    if count > 1 and tell_apart(reference[:count]) > 0.9999:
        log.warning(
            "the images look alike to the model, so their features prove little: show the parity "
            "gate different pictures"
        )
    result = []
    with _folders(out, formats) as folders:
        for kind, folder in folders.items():
            writers[kind](folder, bundle)
            if kind in ARCHIVES:  # features do not depend on every array
                check_same(bundle, load_bundle(folder), kind)
            used = dtype if kind == "stablehlo" else "float32"
            found = load(folder, batch=batch).embed(images, cameras)
            cosine = check_parity(kind, reference, found, dtype=used)
            result.append(Exported(kind, used, _size(folder), cosine))
    return result


def _check_out(
    out: pathlib.Path, bundle: ModelBundle, formats: Sequence[str], *, overwrite: bool
) -> None:
    """Fails where `out` cannot receive these formats.

    Raises:
      FileExistsError: it holds one of them, something else, or another model.
    """
    if not out.exists():
        return
    entries = list(out.iterdir()) if out.is_dir() else [out]
    if not all(e.name in KINDS and (e / manifest.NAME).is_file() for e in entries):
        raise FileExistsError(
            f"{out} holds other things than an export and is left alone; choose another --out"
        )
    for entry in entries:
        listed = {manifest.NAME, *manifest.read(entry)["files"]}
        mine = {p.relative_to(entry).as_posix() for p in entry.rglob("*") if p.is_file()}
        if mine - listed:
            raise FileExistsError(
                f"{entry} holds {sorted(mine - listed)[:3]}, which no export wrote; move them away"
            )
    there = [entry.name for entry in entries]
    if set(there) & set(formats) and not overwrite:
        raise FileExistsError(
            f"{out} holds {sorted(set(there) & set(formats))} already; choose another --out, or "
            "pass --overwrite"
        )
    others = [k for k in there if k not in formats]
    mine = manifest.fingerprint(bundle) if others else ""  # reads every array
    foreign = [k for k in others if manifest.read(out / k).get("fingerprint") != mine]
    if foreign:
        raise FileExistsError(
            f"{out} holds {foreign} of another model; choose another --out, or remove them first"
        )


@contextlib.contextmanager
def _folders(out: pathlib.Path, formats: Sequence[str]) -> Iterator[dict[str, pathlib.Path]]:
    """A folder a format, beside `out`; they move into it at the end, or vanish on any error.

    Other formats in `out` stay. What a format replaces is removed when all have moved.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f"{out.name}.partial-", dir=out.parent))
    old = partial / "replaced"
    moved, made = [], not out.exists()
    try:
        umask = os.umask(0)
        os.umask(umask)
        folders = {kind: partial / kind for kind in formats}
        for folder in folders.values():
            folder.mkdir()
        old.mkdir()
        yield folders
        out.mkdir(exist_ok=True, mode=0o777 & ~umask)  # mkdtemp's are for their owner only
        for kind, folder in folders.items():
            if (out / kind).exists():
                (out / kind).rename(old / kind)
            folder.rename(out / kind)
            moved.append(kind)
    except BaseException:
        for kind in formats:
            replaced = (old / kind).exists()
            if replaced or kind in moved:
                shutil.rmtree(out / kind, ignore_errors=True)
            if replaced:
                (old / kind).rename(out / kind)
        if made and out.is_dir():
            out.rmdir()
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
