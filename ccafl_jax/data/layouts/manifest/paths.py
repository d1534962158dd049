"""The paths of a manifest: one spelling each, none twice in a split, and a file at each."""

import os
import pathlib
from collections.abc import Iterable

import numpy as np

from ccafl_jax.data.layouts.manifest.columns import SPLITS, Table
from ccafl_jax.data.layouts.manifest.findings import Findings, first_with_key


def check_paths(
    table: Table, split: np.ndarray, findings: Findings, *, check_files: bool
) -> list[str]:
    """Notes paths that name nothing, stand twice in a split or, if asked, lead to no file.

    Args:
      table: the manifest.
      split: int64[n], -1 where it is not known.
      findings: takes the problems.
      check_files: whether to look for the files.

    Returns:
      The paths with "/" between folders, without a leading "./".
    """
    paths = [_normalise(path) for path in table.path]
    findings.add(_rows(i for i, path in enumerate(paths) if not path), "path", "path is empty")
    nameless = _rows(i for i, path in enumerate(paths) if path and not _names_a_file(path))
    findings.add(nameless, "path", "path {} does not name a file")
    named = findings.good("path")
    _check_doubled(paths, np.flatnonzero(named & (split != -1)), split, findings)
    if check_files:
        _check_files(table.file.parent, paths, np.flatnonzero(named), findings)
    return paths


def _check_doubled(
    paths: list[str], rows: np.ndarray, split: np.ndarray, findings: Findings
) -> None:
    numbers: dict[str, int] = {}
    code = _rows(numbers.setdefault(paths[row], len(numbers)) for row in rows.tolist())
    first = rows[first_with_key(code * len(SPLITS) + split[rows])]
    again = first != rows
    before = dict(zip(rows[again].tolist(), first[again].tolist(), strict=True))
    findings.add(
        rows[again],
        "path",
        lambda row: (
            f"{findings.shown('path', row)} stands in {findings.where(before[int(row)])} already, "
            f"in the same split ({SPLITS[split[row]]}); remove one"
        ),
    )


def _check_files(
    base: pathlib.Path, paths: list[str], rows: np.ndarray, findings: Findings
) -> None:
    """Lists every folder once, however many rows lie in it."""
    folders: dict[str, _Folder] = {}
    missing: dict[int, str] = {}
    for row in rows.tolist():
        path = paths[row]
        cut = path.rfind("/") + 1
        folder = folders.get(path[:cut])
        if folder is None:
            folder = folders[path[:cut]] = _Folder(os.path.join(base, path[:cut]))
        if path[cut:] not in folder.files:
            missing[row] = folder.lacks(path[cut:])
    findings.add(_rows(missing), "path", lambda row: missing[int(row)])


class _Folder:
    """The files in a folder."""

    def __init__(self, path: str):
        self.path, self.error = path, ""
        self._lower: dict[str, str] | None = None
        try:
            with os.scandir(path) as entries:
                self.files = {entry.name for entry in entries if _is_file(entry)}
        except OSError as error:
            self.files, self.error = set(), error.strerror or type(error).__name__

    def lacks(self, name: str) -> str:
        """Says that a file is not there."""
        full = os.path.join(self.path, name)
        if self.error:
            return f"no such file: {full} (its folder: {self.error.lower()})"
        if self._lower is None:
            self._lower = {file.lower(): file for file in self.files}
        near = self._lower.get(name.lower())
        return f"no such file: {full}" + (f" (there is {near})" if near else "")


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a loop of symbolic links
        return False


def _normalise(path: str) -> str:
    path = path.replace("\\", "/")
    if "//" in path or "./" in path:
        rooted = path.startswith("/")
        folders = path.split("/")
        kept = [name for name in folders[:-1] if name not in ("", ".")]
        path = "/" * rooted + "/".join([*kept, folders[-1]])
    return path


def _names_a_file(path: str) -> bool:
    return path.rpartition("/")[2] not in ("", ".", "..") and "\0" not in path


def _rows(numbers: Iterable[int]) -> np.ndarray:
    return np.fromiter(numbers, np.int64)
