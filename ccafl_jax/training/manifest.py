"""The manifest of a checkpoint: a sha256 of each of its files, written last.

It has the format of the command `sha256sum`, so that `sha256sum -c manifest.sha256` in the folder
checks a checkpoint without this library.
"""

import concurrent.futures
import hashlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ccafl_jax.training.storage import write_text

if TYPE_CHECKING:
    from etils import epath

NAME = "manifest.sha256"

_CHUNK = 1 << 22  # bytes read at once
_THREADS = min(8, os.cpu_count() or 1)  # hashing lets go of Python's lock
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_manifest(folder: "epath.Path") -> None:
    """Writes the manifest of all files that a folder holds."""
    hashes = _hash_all(folder, sorted(_files(folder)))
    write_text(folder / NAME, "".join(f"{value}  {name}\n" for name, value in hashes.items()))


def find_damage(folder: "epath.Path") -> str:
    """What is wrong with the files of a folder that has a manifest.

    Returns:
      The first fault, which names a file, or "" where every file is as it was written.
    """
    try:
        return _compare(folder, (folder / NAME).read_text())
    except FileNotFoundError as error:
        if not (folder / NAME).exists():
            return f"it has no {NAME}, which is written last"
        return f"{error.filename} went away"
    except (OSError, UnicodeError) as error:
        return f"it cannot be read: {error}"


def _compare(folder: "epath.Path", text: str) -> str:
    lines = [_LINE.fullmatch(line) for line in text.splitlines()]
    if not lines or None in lines:
        return f"{NAME} is no list of hashes and files"
    expected = {line[2]: line[1] for line in lines}
    there = set(_files(folder))
    for name in sorted(expected.keys() ^ there):
        return f"{name} is missing" if name in expected else f"{name} is not in its {NAME}"
    found = _hash_all(folder, sorted(there))
    changed = [name for name in found if found[name] != expected[name]]
    return f"{changed[0]} is not as it was written" if changed else ""


def _files(folder: "epath.Path", prefix: str = "") -> Iterator[str]:
    """Names relative to the folder, without the manifest."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        elif prefix + path.name != NAME:
            yield prefix + path.name


def _hash_all(folder: "epath.Path", names: list[str]) -> dict[str, str]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(_hash, (folder / name for name in names)), strict=True))


def _hash(path: "epath.Path") -> str:
    result = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            result.update(chunk)
    return result.hexdigest()
