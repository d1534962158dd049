"""Images that lie decoded in .npy files, served as if they were image files.

CCLNet keeps its resized training images so: one uint8 array per modality, mapped into memory and
never read as a whole. Whoever reads them gets each image encoded anew, without loss.
"""

import hashlib
import io
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from ccafl_jax.data.names import Names


class PixelArrays:
    """An `ImageSource` over .npy files of decoded images, one file after the other."""

    def __init__(self, files: Sequence[str | os.PathLike], names: Iterable[str]):
        """Args:
        files: .npy files of uint8[n_i, height, width, 3] (RGB) or uint8[n_i, height, width].
        names: of all images, in the order of the files and their rows.

        Raises:
          FileNotFoundError: a file does not exist.
          ValueError: a file holds no such array, or the names are more or fewer than the images.
        """
        self.files, self._names = tuple(pathlib.Path(file) for file in files), Names.pack(names)
        self._arrays = [_map_images(file) for file in self.files]
        self._first = np.cumsum([0, *(len(array) for array in self._arrays)])
        if self._first[-1] != len(self._names):
            raise ValueError(
                f"{', '.join(map(str, self.files))}: {self._first[-1]} images but "
                f"{len(self._names)} names; expected one name per image"
            )

    def __reduce__(self):
        # A mapped array is pickled with all its pixels; a process that gets this maps them itself.
        return type(self), (self.files, self._names)

    @property
    def names(self) -> Names:
        """Paths below the root of the data set."""
        return self._names

    def read(self, rows: np.ndarray) -> list[bytes]:
        """The images at int[k] rows as BMP files, which are quick to write and lose nothing."""
        return [_as_bmp(self._arrays[file][row]) for file, row in map(self._place, rows)]

    def locate(self, row: int) -> str:
        """The file, the row in it and the name of an image."""
        file, place = self._place(row)
        return f"{self.files[file]} row {place} ({self._names[row]})"

    def fingerprint(self, rows: np.ndarray) -> str:
        """SHA-256 of the files' names, sizes and times and of the images' names and places."""
        digest = hashlib.sha256()
        for file in self.files:
            status = os.stat(file)
            line = f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        for array in (np.asarray(rows, np.int64), *self._names[rows].packed()):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _place(self, row: int) -> tuple[int, int]:
        """Number of the file, and row in it."""
        row = int(row)
        if not 0 <= row < len(self._names):
            raise IndexError(f"row {row} of {len(self._names)} images")
        file = int(np.searchsorted(self._first, row, side="right")) - 1
        return file, row - int(self._first[file])


def map_array(file: str | os.PathLike) -> np.ndarray:
    """Maps the array of a .npy file into memory, read-only; nothing in it is ever unpickled.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is no .npy file, is cut short or holds Python objects.
    """
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file") from None
    except (ValueError, EOFError, OSError) as error:
        if "Python objects" in str(error):
            raise ValueError(
                f"{file}: an array of Python objects, which loading could run as a program; "
                "expected plain values: if you trust the file, save it anew with "
                "a = numpy.load(f, allow_pickle=True); numpy.save(f, numpy.array(a.tolist()))"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file}: not a readable .npy file ({reason}); make it anew") from None


def _map_images(file: pathlib.Path) -> np.ndarray:
    array = map_array(file)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[3:] not in ((), (3,)):
        raise ValueError(
            f"{file}: {array.dtype}{list(array.shape)}; expected uint8[n, height, width, 3]"
        )
    return array


def _as_bmp(pixels: np.ndarray) -> bytes:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install pillow") from error
    encoded = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(encoded, "BMP")
    return encoded.getvalue()
