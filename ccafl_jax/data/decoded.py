"""Decoded images of a run: an array in memory, or a file mapped into it that later runs share."""

import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from ccafl_jax.data.records import Records
from ccafl_jax.data.sources import PixelFormat, decode_image

_IMAGES_PER_TASK = 32


def load_images(
    records: Records,
    pixels: PixelFormat,
    *,
    cache: str | os.PathLike = "",
    progress: bool = True,
    workers: int | None = None,
) -> np.ndarray:
    """Decodes and resizes images, once.

    Args:
      records: n images.
      pixels: size and filter.
      cache: folder for decoded images; a later call for the same images, size and filter maps the
        file there into memory instead of decoding. Empty: no file, all in memory.
      progress: shows a bar with the time left.
      workers: decoding threads; the number of processors when None.

    Returns:
      uint8[n, height, width, 3], RGB; read-only where it is a mapped file.

    Raises:
      FileNotFoundError: a file does not exist.
      ValueError: an image is damaged, none, or has more than 8 bits a channel; the message names
        it.
    """
    shape = (len(records), pixels.height, pixels.width, 3)
    if not cache or not len(records):
        images = np.empty(shape, np.uint8)
        _decode_all(records, pixels, images, progress, workers)
        return images
    path = _cache_file(pathlib.Path(cache), records, pixels)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another name until it is complete, so that no half of a file is ever taken for one.
        partial = path.with_name(f"{path.stem}.{os.getpid()}.partial")
        try:
            images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            _decode_all(records, pixels, images, progress, workers)
            images.flush()
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def decode_rows(
    records: Records, rows: np.ndarray, pixels: PixelFormat, *, out: np.ndarray | None = None
) -> np.ndarray:
    """The images at int[k] rows, uint8[k, height, width, 3]; see `load_images` for errors."""
    if out is None:
        out = np.empty((len(rows), pixels.height, pixels.width, 3), np.uint8)
    for place, (row, encoded) in enumerate(zip(rows, records.read(rows), strict=True)):
        try:
            out[place] = decode_image(encoded, pixels)
        except ValueError as error:
            raise type(error)(f"{records.locate(row)}: {error}") from None
    return out


class ImageSequence(Sequence):
    """Images decoded one by one as they are asked for, for sets that are read once."""

    def __init__(self, records: Records, pixels: PixelFormat):
        """Args:
        records: the images.
        pixels: size and filter.
        """
        self._records, self._pixels = records, pixels

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: int) -> np.ndarray:
        return decode_rows(self._records, np.array([row]), self._pixels)[0]


def in_threads(
    work: Callable[[np.ndarray], object],
    count: int,
    *,
    workers: int | None = None,
    description: str,
) -> None:
    """Calls `work` on ranges of rows that cover 0 to count - 1, in threads.

    Args:
      work: takes int64[k] consecutive rows.
      count: number of rows.
      workers: threads; the number of processors when None.
      description: of the progress bar; none is shown when empty.
    """
    rows = np.arange(count)
    bar = _progress_bar(count, description) if description else None
    pool = concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        waiting = {}
        for first in range(0, count, _IMAGES_PER_TASK):
            task = rows[first : first + _IMAGES_PER_TASK]
            waiting[pool.submit(work, task)] = len(task)
        for done in concurrent.futures.as_completed(waiting):
            done.result()
            if bar is not None:
                bar.update(waiting[done])
    finally:
        # After an error the remaining images need not be decoded.
        pool.shutdown(wait=True, cancel_futures=True)
        if bar is not None:
            bar.close()


def _decode_all(
    records: Records, pixels: PixelFormat, images: np.ndarray, progress: bool, workers: int | None
) -> None:
    def decode(rows: np.ndarray) -> None:
        decode_rows(records, rows, pixels, out=images[rows[0] : rows[-1] + 1])

    description = "loading images" if progress else ""
    in_threads(decode, len(records), workers=workers, description=description)


def _cache_file(folder: pathlib.Path, records: Records, pixels: PixelFormat) -> pathlib.Path:
    digest = hashlib.sha256(records.source.fingerprint().encode())
    digest.update(np.ascontiguousarray(records.index, np.int64).tobytes())
    size = f"{len(records)}x{pixels.height}x{pixels.width}"
    return folder / f"{digest.hexdigest()[:24]}-{size}-{pixels.filter}.npy"


def _progress_bar(total: int, description: str):
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress bars need tqdm: pip install tqdm, or progress=False") from error
    return tqdm(total=total, desc=description, unit="img", leave=False)
