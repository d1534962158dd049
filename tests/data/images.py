"""Small image files of every kind, and records over folders of them."""

import io

import numpy as np
from PIL import Image

from ccafl_jax.data.names import Names
from ccafl_jax.data.records import Records
from ccafl_jax.data.sources import FolderSource


def random_pixels(seed, height=20, width=10):
    """uint8[height, width, 3] with some structure, so that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 2, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def encoded(pixels, form="PNG", **options):
    """An image file's bytes."""
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, form, **options)
    return stream.getvalue()


def write_images(root, count):
    """Writes `count` PNG files of different sizes; returns their names."""
    names = []
    for row in range(count):
        name = f"{row:03d}.png"
        (root / name).write_bytes(encoded(random_pixels(row, 20 + row % 7, 10 + row % 5)))
        names.append(name)
    return names


def records_of(root, names):
    """Records of files; all of one person and camera."""
    zeros = np.zeros(len(names), np.int32)
    source = FolderSource(root, Names.pack(names))
    return Records(source, np.arange(len(names)), pid=zeros, camid=zeros)


def broken_files():
    """Bytes of broken files by kind, with the reason that is given for each."""
    whole = encoded(random_pixels(0, 64, 32), "JPEG")
    deep = encoded(Image.new("I;16", (4, 6)), "TIFF")
    return {
        "text": (b"not an image", "cannot identify image file"),
        "empty": (b"", "the file is empty"),
        "truncated": (whole[: len(whole) // 2], "not a readable image .*[Tt]runcated"),
        "deep": (deep, "more than 8 bits a channel"),
    }
