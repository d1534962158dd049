"""Images of any kind and size to the uint8 batches that a model takes."""

import concurrent.futures
import os
from collections.abc import Sequence

import numpy as np

from ccafl_jax.data.sources import DeepPixels, PixelFormat, fit_image, load_image

EXPECTED = "expected a path, a PIL image, or a uint8 array [height, width, 3] or [height, width]"

_BYTES = bytes | bytearray | memoryview
_NOT_BYTES = (
    "bytes are no image; open the content of a file by PIL.Image.open(io.BytesIO(content)), or "
    "pass the path of the file"
)


def as_list(images: object) -> Sequence:
    """One image or many as a sequence of images; nothing is read yet.

    Args:
      images: a path, a PIL image or an array [height, width] or [height, width, 3]; an iterable
        of such, or an array of paths; or uint8[n, height, width, 3].

    Raises:
      ValueError: an object that is neither an image nor holds any.
    """
    if _is_path(images) or _is_pil(images):
        return [images]
    if hasattr(images, "__array__"):
        images = np.asarray(images)
        if images.ndim < 2 and images.dtype.kind in "UO":
            return images.reshape(-1).tolist()
        return images if images.ndim == 4 else [images]
    if isinstance(images, _BYTES):
        raise ValueError(_NOT_BYTES)
    if isinstance(images, Sequence):
        return images
    try:
        return list(images)
    except TypeError:
        raise ValueError(f"{type(images).__name__} is no image; {EXPECTED}, or many") from None


def read_images(
    images: Sequence, rows: range, pixels: PixelFormat, *, pool: concurrent.futures.Executor
) -> np.ndarray:
    """Decodes and resizes some of the images, as training does.

    Args:
      images: from `as_list`.
      rows: which of them.
      pixels: size and filter.
      pool: threads that decode.

    Returns:
      uint8[len(rows), height, width, 3], RGB.

    Raises:
      FileNotFoundError: a path to nothing.
      ValueError: a damaged file, one of more than 8 bits a channel, or no image; the message names
        the path or the row.
    """
    if isinstance(images, np.ndarray) and _is_bytes(images):
        if images.shape[1:] == (pixels.height, pixels.width, 3):
            return images[rows.start : rows.stop]
    return np.stack(list(pool.map(lambda row: _read(images[row], row, pixels), rows)))


def _read(image: object, row: int, pixels: PixelFormat) -> np.ndarray:
    if _is_path(image):
        return load_image(image, pixels)
    from PIL import Image

    if not _is_pil(image):
        image = Image.fromarray(_pixels(image, row))
    try:
        return fit_image(image, pixels)
    except Exception as error:  # an opened file is decoded here, and PIL raises many kinds
        name = getattr(image, "filename", "") or f"image {row}"
        if isinstance(error, DeepPixels):
            raise DeepPixels(f"{name}: {error}") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{name} is not readable ({reason}); replace or remove it") from error


def _pixels(image: object, row: int) -> np.ndarray:
    """An array image, checked; a grey one gets its channel three times from PIL."""
    if isinstance(image, _BYTES):
        raise ValueError(f"image {row}: {_NOT_BYTES}")
    if not hasattr(image, "__array__"):
        raise ValueError(f"image {row} is a {type(image).__name__}; {EXPECTED}")
    array = np.asarray(image)
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not (shaped and array.size and _is_bytes(array)):
        hint = "; multiply values of 0..1 by 255 and round" if array.dtype.kind == "f" else ""
        raise ValueError(
            f"image {row} is an array {array.dtype}{list(array.shape)}; {EXPECTED}{hint}"
        )
    return np.ascontiguousarray(array)


def _is_bytes(array: np.ndarray) -> bool:
    return array.dtype == np.uint8


def _is_path(image: object) -> bool:
    return isinstance(image, str | os.PathLike)


def _is_pil(image: object) -> bool:
    from PIL import Image

    return isinstance(image, Image.Image)
