"""Where encoded images lie and how one of them becomes an array."""

import dataclasses
import hashlib
import io
import os
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from ccafl_jax.data.names import Names
from ccafl_jax.options import require, require_choice

if TYPE_CHECKING:
    from PIL import Image

FILTERS = ("bicubic", "bilinear", "lanczos")
_DEEP_MODES = ("I", "F")  # I, F, I;16 and its byte orders


class DeepPixels(ValueError):
    """A picture of more than 8 bits a channel, which PIL would clip without a word."""


@dataclasses.dataclass(frozen=True)
class PixelFormat:
    """What images become when they are loaded.

    Attributes:
      height, width: pixels after resizing.
      filter: PIL's filter, one of `FILTERS`: `lanczos` for CCLNet, `bicubic` for other methods.
    """

    height: int
    width: int
    filter: str = "bicubic"

    def __post_init__(self):
        require(
            self.height >= 1 and self.width >= 1,
            f"image size {self.height} x {self.width}: both must be 1 or more",
        )
        require_choice("filter", self.filter, FILTERS)


class FolderSource:
    """Image files below a folder, as they are."""

    def __init__(self, root: str | os.PathLike, names: Names):
        """Args:
        root: the folder.
        names: paths below it.
        """
        self.root, self._names = pathlib.Path(root), names

    @property
    def names(self) -> Names:
        """Paths below the root."""
        return self._names

    def read(self, rows: np.ndarray) -> list[bytes]:
        """The files' bytes.

        Raises:
          FileNotFoundError: a file is gone.
        """
        return [_read_file(self.locate(row)) for row in rows]

    def locate(self, row: int) -> str:
        """The path of a file."""
        return os.path.join(self.root, self._names[row])

    def fingerprint(self, rows: np.ndarray) -> str:
        """SHA-256 of the names, sizes and times of files."""
        digest = hashlib.sha256()
        for name in self._names[rows]:
            status = os.stat(os.path.join(self.root, name))
            # Copies keep the time of the content; that of the entry tells them apart.
            line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def load_image(path: str | os.PathLike, pixels: PixelFormat) -> np.ndarray:
    """Decodes and resizes one image file.

    Args:
      path: image file.
      pixels: size and filter.

    Returns:
      uint8[height, width, 3], RGB.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is not an image, is damaged or has more than 8 bits a channel.
    """
    encoded = _read_file(os.fspath(path))
    try:
        return decode_image(encoded, pixels)
    except ValueError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from None


def decode_image(encoded: bytes, pixels: PixelFormat) -> np.ndarray:
    """Decodes and resizes an encoded image.

    Returns:
      uint8[height, width, 3], RGB.

    Raises:
      ValueError: the bytes are no image or damaged, or hold more than 8 bits a channel.
    """
    with open_image(encoded) as image:
        return fit_image(image, pixels)


def check_image(encoded: bytes) -> None:
    """Decodes an image to see that it can be.

    Raises:
      ValueError: as `decode_image`.
    """
    open_image(encoded).close()


def open_image(encoded: bytes) -> "Image.Image":
    """A PIL image, fully decoded.

    Raises:
      ValueError: the bytes are no image or damaged, or hold more than 8 bits a channel.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install pillow") from error
    if not encoded:
        raise ValueError("not a readable image (the file is empty); replace or remove it")
    try:
        image = Image.open(io.BytesIO(encoded))
        deep = _deep_form(image)
        image.load()
    except Exception as error:  # PIL's decoders raise many kinds; all mean a damaged file.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = reason.partition(" <_io")[0]  # the object that held the bytes
        raise ValueError(f"not a readable image ({reason}); replace or remove it") from error
    _refuse_deep(deep)
    return image


def fit_image(image: "Image.Image", pixels: PixelFormat) -> np.ndarray:
    """A PIL image as uint8[height, width, 3], RGB, upright and resized.

    Gray, palette, CMYK and transparent images become RGB as PIL converts them; an orientation in
    EXIF data is applied.

    Raises:
      DeepPixels: the image has more than 8 bits a channel.
    """
    from PIL import Image, ImageOps

    _refuse_deep(_deep_form(image))
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    rgb = image.convert("RGB")
    size = (pixels.width, pixels.height)
    if rgb.size != size:
        rgb = rgb.resize(size, Image.Resampling[pixels.filter.upper()])
    return np.asarray(rgb)


def _refuse_deep(form: str) -> None:
    if form:
        raise DeepPixels(
            f"pixels are stored as {form!r}, with more than 8 bits a channel; convert the picture "
            "to 8 bits per channel first"
        )


def _deep_form(image: "Image.Image") -> str:
    """How pixels of more than 8 bits a channel are stored; empty for all others.

    PIL reads 16 bits of gray as such but takes the upper 8 of colours, without a word.
    """
    if image.mode[:1] in _DEEP_MODES:
        return image.mode
    for tile in getattr(image, "tile", ()):  # pictures made in memory have none
        form = tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]
        # BGR;16 are 16 bits of all three colours together.
        if isinstance(form, str) and ";16" in form and not form.startswith("BGR"):
            return form
    return ""


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
