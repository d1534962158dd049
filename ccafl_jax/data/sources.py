"""Image files to arrays: decoding and resizing happen once, when a set is loaded."""

import concurrent.futures
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_FILES_PER_TASK = 32


class DeepPixels(ValueError):
    """A picture of more than 8 bits a channel, which PIL would clip without a word."""


def load_images(
    paths: Sequence[str | os.PathLike],
    height: int,
    width: int,
    *,
    progress: bool = True,
    workers: int | None = None,
) -> np.ndarray:
    """Decodes and resizes images into one array that stays in memory.

    Args:
      paths: n image files.
      height: rows of pixels after resizing.
      width: columns of pixels after resizing.
      progress: shows a bar with the time left.
      workers: decoding threads; the number of processors when None.

    Returns:
      uint8[n, height, width, 3], RGB.

    Raises:
      FileNotFoundError: a file does not exist.
      ValueError: a file is not an image, is damaged or has more than 8 bits a channel; the message
        names it.
    """
    _check_size(height, width)
    images = np.empty((len(paths), height, width, 3), np.uint8)
    starts = range(0, len(paths), _FILES_PER_TASK)

    def decode(start: int) -> int:
        rows = range(start, min(start + _FILES_PER_TASK, len(paths)))
        for row in rows:
            images[row] = load_image(paths[row], height, width)
        return len(rows)

    bar = _progress_bar(len(paths)) if progress else None
    pool = concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        for done in concurrent.futures.as_completed([pool.submit(decode, s) for s in starts]):
            count = done.result()
            if bar is not None:
                bar.update(count)
    finally:
        # After an error the remaining files need not be decoded.
        pool.shutdown(wait=True, cancel_futures=True)
        if bar is not None:
            bar.close()
    return images


def load_image(path: str | os.PathLike, height: int, width: int) -> np.ndarray:
    """Decodes one image and resizes it with PIL's bicubic filter.

    Args:
      path: image file.
      height: rows of pixels after resizing.
      width: columns of pixels after resizing.

    Returns:
      uint8[height, width, 3], RGB.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is not an image, is damaged or has more than 8 bits a channel.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install pillow") from error
    try:
        with Image.open(path) as image:
            return fit_image(image, height, width)
    except FileNotFoundError:
        raise FileNotFoundError(f"{os.fspath(path)}: no such image file") from None
    except DeepPixels as error:
        raise DeepPixels(f"{os.fspath(path)}: {error}") from None
    except Exception as error:  # PIL's decoders raise many kinds; all mean a damaged file.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{os.fspath(path)} is not a readable image ({reason}); replace or remove it"
        ) from error


def fit_image(image: "Image.Image", height: int, width: int) -> np.ndarray:
    """A PIL image as uint8[height, width, 3], RGB, resized with PIL's bicubic filter.

    Raises:
      DeepPixels: the image has more than 8 bits a channel.
    """
    from PIL import Image

    if image.mode[:1] in ("I", "F"):  # I, F, I;16 and its byte orders
        raise DeepPixels(
            f"pixels are of PIL's mode {image.mode!r}, with more than 8 bits a channel; convert "
            "the picture to 8 bits per channel first"
        )
    rgb = image.convert("RGB")
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"image size {height} x {width}: both must be 1 or more")


def _progress_bar(total: int):
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress bars need tqdm: pip install tqdm, or progress=False") from error
    return tqdm(total=total, desc="loading images", unit="img", leave=False)
