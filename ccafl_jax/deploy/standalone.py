"""Runs the exported model that lies beside this file, with jax, numpy and flatbuffers alone.

    python embed.py images.npy features.npy [--cameras cameras.npy] [--batch 64]

images.npy holds uint8[n, height, width, 3], RGB, of the size and resized with PIL's filter that
manifest.json states under `preprocess`, for example, where `resample` is "bicubic",
`image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)`. The colours are normalised
inside the model. features.npy receives float32[n, features] of unit length.

From Python: `embed = load(folder)`, then `embed(images)`, or `embed(images, cameras)` where
manifest.json lists cameras: rows counted from 0, whose numbers in the data set are its `codes`.
Every new batch size compiles once.
"""

import argparse
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export


def load(folder: str | pathlib.Path = pathlib.Path(__file__).parent) -> Callable[..., jax.Array]:
    """Loads the model of an exported folder.

    Returns:
      `embed(images: uint8[b, height, width, 3], cameras: int32[b] | None) -> float32[b, features]`;
      images may be a list of arrays too.

    Raises:
      FileNotFoundError: a file of the manifest is missing.
      ValueError: a damaged file, or a JAX that cannot read the model. So does `embed` raise it on
        inputs that do not fit.
    """
    folder = pathlib.Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        files, features = manifest["files"], manifest["features"]
        size = tuple(manifest["inputs"]["images"]["shape"][1:])
        known = manifest["inputs"].get("cameras", {}).get("below", 0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'manifest.json'} is no manifest of an export: export again"
        ) from error
    if not {"embed.stablehlo", "weights.npz"} <= files.keys():
        raise ValueError(f"{folder / 'manifest.json'} does not list the model: export again")
    for name, entry in files.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: copy it again")
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry["sha256"]:
            raise ValueError(f"{folder / name} is damaged or was changed: copy it again")
    try:
        model = export.deserialize(bytearray((folder / "embed.stablehlo").read_bytes()))
    except ImportError:  # names the package that jax needs
        raise
    except Exception as error:
        made = manifest["compatibility"]
        raise ValueError(
            f"jax {jax.__version__} cannot read {folder / 'embed.stablehlo'}, made by jax "
            f"{made['jax']} for releases up to {made['usable_until']}: use that jax, or export "
            "again from the orbax or safetensors archive"
        ) from error
    with np.load(folder / "weights.npz") as weights:
        params = jax.device_put(dict(weights))
    run = jax.jit(model.call)

    def embed(images, cameras=None):
        if isinstance(images, list | tuple):
            images = _stacked(images, size)
        images = images if hasattr(images, "dtype") else np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != size:
            raise ValueError(
                f"images are {images.dtype}{list(images.shape)}, expected uint8[b, *{size}]"
            )
        if (cameras is not None) != bool(known):
            needs = f"needs cameras (--cameras), 0 to {known - 1}" if known else "takes no cameras"
            raise ValueError(f"cameras: this model {needs}")
        inputs = (images,) if not known else (images, _checked(cameras, len(images), known))
        # The function is made for one image and more.
        return run(params, *inputs) if len(images) else jnp.zeros((0, features), jnp.float32)

    return embed


def main() -> None:
    """Reads images, writes features; what a user can mend is one line and exit status 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", help="uint8[n, height, width, 3] in an .npy file")
    parser.add_argument("features", help="the .npy file to write")
    parser.add_argument("--cameras", help="integers [n] in an .npy file")
    parser.add_argument("--batch", type=int, default=64, help="images a call")
    options = parser.parse_args()
    try:
        if options.batch < 1:
            raise ValueError(f"--batch is {options.batch}; choose 1 or more")
        if not pathlib.Path(options.features).parent.is_dir():
            raise FileNotFoundError(f"{options.features}: its folder does not exist; make it first")
        images = _array(options.images)
        cameras = _array(options.cameras) if options.cameras else None
        np.save(options.features, _in_batches(load(), images, cameras, options.batch))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _in_batches(embed: Callable, images, cameras, batch: int) -> np.ndarray:
    if cameras is not None and cameras.shape != images.shape[:1]:
        raise ValueError(
            f"--cameras holds {list(cameras.shape)} for {list(images.shape)} images; expected one "
            "for each image"
        )
    if not len(images):
        return np.asarray(embed(images, cameras))
    batch, parts = min(batch, len(images)), []
    for start in range(0, len(images), batch):
        # The last batch is filled up from the front, so that nothing compiles twice.
        rows = np.arange(start, start + batch)
        rows = np.where(rows < len(images), rows, 0)
        part = embed(images[rows], None if cameras is None else cameras[rows])
        parts.append(np.asarray(part)[: len(images) - start])
    return np.concatenate(parts)


def _array(path: str) -> np.ndarray:
    """The array in an .npy file."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        start = file.read(6)
    try:
        found = np.load(path, mmap_mode="r") if start == b"\x93NUMPY" else None
    except (ValueError, EOFError):  # cut short, or of Python objects
        found = None
    if found is None or not found.ndim:
        raise ValueError(f"{path} is no whole .npy file of numbers; write it with numpy.save")
    return found


def _stacked(images: list | tuple, size: tuple[int, ...]) -> np.ndarray:
    arrays = [np.asarray(image) for image in images]
    for row, array in enumerate(arrays):
        if array.dtype != np.uint8 or array.shape != size:
            raise ValueError(
                f"image {row} is {array.dtype}{list(array.shape)}, expected uint8{list(size)}"
            )
    return np.stack(arrays) if arrays else np.zeros((0, *size), np.uint8)


def _checked(cameras, count: int, known: int) -> np.ndarray:
    cameras = np.asarray(cameras)
    fit = cameras.shape == (count,)
    if fit and count:
        fit = cameras.dtype.kind in "iu" and cameras.min() >= 0 and cameras.max() < known
    if not fit:
        raise ValueError(f"cameras: expected one for each image, integers 0 to {known - 1}")
    return cameras.astype(np.int32)


if __name__ == "__main__":
    main()
