"""Folders of a run: on a disk, a mount, or an object store under an address such as gs://."""

import os
import pathlib
from typing import TYPE_CHECKING

from ccafl_jax.files import replacing

if TYPE_CHECKING:
    from etils import epath


def open_path(path: str | os.PathLike) -> "epath.Path":
    """The absolute path of a file or folder, with the methods of `pathlib.Path`."""
    from etils import epath

    found = epath.Path(path)
    return found.absolute() if is_local(path) else found  # etils takes gs: for a folder here


def is_local(path: str | os.PathLike) -> bool:
    """Whether files there can be appended to and renamed; objects in a store cannot."""
    return "://" not in os.fspath(path)


def write_text(path: "epath.Path", text: str) -> None:
    """Writes a file that is complete or not there, whenever the process is killed."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: "epath.Path", content: bytes) -> None:
    """As `write_text`."""
    if not is_local(path):  # a store shows an object once all of it is there
        path.write_bytes(content)
        return
    with replacing(pathlib.Path(path)) as partial:
        partial.write_bytes(content)
