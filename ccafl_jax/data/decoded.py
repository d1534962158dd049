"""Decoded images of a run: an array in memory, or a file mapped into it that later runs share."""

import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from ccafl_jax.data.parallel import image_bar, in_order
from ccafl_jax.data.records import Records
from ccafl_jax.data.sources import PixelFormat, decode_image
from ccafl_jax.files import replacing


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
    path = _cache_file(pathlib.Path(cache).expanduser(), records, pixels)
    images = _map_complete(path, shape)
    if images is None:
        _make_folder(path.parent)
        with replacing(path) as partial:
            advice = "name another folder (data.cache), or none"
            write_images(
                partial, records, pixels, advice=advice, progress=progress, workers=workers
            )
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    return images


def write_images(
    path: str | os.PathLike,
    records: Records,
    pixels: PixelFormat,
    *,
    advice: str = "name another folder",
    progress: bool = True,
    workers: int | None = None,
) -> None:
    """Decodes and resizes images into a .npy file, which is mapped: never are all in memory.

    The file is half-written until this returns; see `replacing`.

    Args:
      path: of the file, which need not end in .npy.
      records: n images, at least one; the file becomes uint8[n, height, width, 3], RGB.
      pixels: size and filter.
      advice: what else can be done where the disk is full, for the message.
      progress: shows a bar with the time left.
      workers: decoding threads; the number of processors when None.

    Raises:
      FileNotFoundError, ValueError: as `load_images`.
      OSError: the file cannot be written, or there is no room for it.
    """
    path = pathlib.Path(path)
    images = _map_new(path, (len(records), pixels.height, pixels.width, 3), advice)
    _decode_all(records, pixels, images, progress, workers)
    images.flush()


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


def _decode_all(
    records: Records, pixels: PixelFormat, images: np.ndarray, progress: bool, workers: int | None
) -> None:
    def decode(rows: np.ndarray) -> None:
        decode_rows(records, rows, pixels, out=images[rows[0] : rows[-1] + 1])

    with image_bar(len(records), "loading images", shown=progress) as bar:
        for rows, _ in in_order(decode, len(records), workers=workers):
            bar.update(len(rows))


def _map_complete(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array in a file, or None where there is none or it is damaged."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # numpy raises many kinds for a damaged file; it is made again
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _make_folder(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot make the folder {folder} for decoded images: {error.strerror}; name another "
            "one (data.cache), or none"
        ) from error


def _map_new(path: pathlib.Path, shape: tuple[int, ...], advice: str) -> np.ndarray:
    """A new array in a file, with room on the disk for all of it.

    Without that, a disk that fills up would end the process at a write to the array.
    """
    try:
        images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise OSError(
            f"cannot write {np.prod(shape) / 1e9:.1f} GB of decoded images to {path.parent}: "
            f"{error.strerror}; make room, or {advice}"
        ) from error
    return images


def _cache_file(folder: pathlib.Path, records: Records, pixels: PixelFormat) -> pathlib.Path:
    import PIL

    content = records.source.fingerprint(records.index)
    digest = hashlib.sha256(f"{PIL.__version__} {content}".encode())
    size = f"{len(records)}x{pixels.height}x{pixels.width}"
    return folder / f"{digest.hexdigest()[:24]}-{size}-{pixels.filter}.npy"
