"""Runs the exported model that lies beside this file, with jax, numpy and flatbuffers alone.

    python embed.py images.npy features.npy [--cameras cameras.npy] [--batch 64]

images.npy holds uint8[n, height, width, 3], RGB, of the size that manifest.json states, resized
with PIL's bicubic filter: `image.convert("RGB").resize((width, height), Image.BICUBIC)`. The
colours are normalised inside the model. features.npy receives float32[n, features] of unit length.

From Python: `embed = load(folder)`, then `embed(images)`, or `embed(images, cameras)` where
manifest.json lists cameras. Every new batch size compiles once.
"""

import argparse
import hashlib
import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax import export


def load(folder: str | pathlib.Path = pathlib.Path(__file__).parent) -> Callable[..., jax.Array]:
    """Loads the model of an exported folder.

    Returns:
      `embed(images: uint8[b, height, width, 3], cameras: int32[b] | None) -> float32[b, features]`.

    Raises:
      FileNotFoundError: a file of the manifest is missing.
      ValueError: a damaged file, or a JAX that cannot read the model.
    """
    folder = pathlib.Path(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    files = manifest["files"]
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
    size = tuple(manifest["inputs"]["images"]["shape"][1:])
    known = manifest["inputs"].get("cameras", {}).get("below", 0)

    def embed(images, cameras=None):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != size:
            raise ValueError(
                f"images are {images.dtype}{list(images.shape)}, expected uint8[b, *{size}]"
            )
        if (cameras is not None) != bool(known):
            raise ValueError(f"cameras: this model {'needs' if known else 'takes no'} cameras")
        if not known:
            return run(params, images)
        cameras = np.asarray(cameras)
        if cameras.shape != images.shape[:1] or cameras.min() < 0 or cameras.max() >= known:
            raise ValueError(f"cameras: expected one for each image, 0 to {known - 1}")
        return run(params, images, cameras.astype(np.int32))

    return embed


def main() -> None:
    """Reads images, writes features."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", help="uint8[n, height, width, 3] in an .npy file")
    parser.add_argument("features", help="the .npy file to write")
    parser.add_argument("--cameras", help="integers [n] in an .npy file")
    parser.add_argument("--batch", type=int, default=64, help="images a call")
    options = parser.parse_args()
    embed = load()
    images = np.load(options.images, mmap_mode="r")
    cameras = np.load(options.cameras) if options.cameras else None
    parts = []
    for start in range(0, len(images), options.batch):
        # The last batch is filled up from the front, so that nothing compiles twice.
        rows = np.arange(start, start + options.batch)
        rows = np.where(rows < len(images), rows, 0)
        part = embed(images[rows], None if cameras is None else cameras[rows])
        parts.append(np.asarray(part)[: len(images) - start])
    np.save(options.features, np.concatenate(parts))


if __name__ == "__main__":
    main()
