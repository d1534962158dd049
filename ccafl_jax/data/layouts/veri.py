"""Reader of VeRi-776.

    ROOT/image_train/0001_c001_00016450_0.jpg        vehicle, camera (three digits), frame, index
    ROOT/image_query/0002_c002_00030600_0.jpg
    ROOT/image_test/0002_c002_00030600_0.jpg         the queries' images are among the gallery's
    ROOT/gt_index.txt, ROOT/jk_index.txt             optional: a line of places for each query
    ROOT/name_query.txt, ROOT/name_test.txt          optional: the order these lines count in
    ROOT/test_track.txt or ROOT/test_track_VeRi.txt  optional: a line of images for each track

Since copies of the queries lie in the gallery, only rankings that leave out images of the query's
own camera mean anything; all protocols here do.
"""

import os
import pathlib
import re

import numpy as np

from ccafl_jax.data.layouts.find import find_root
from ccafl_jax.data.layouts.query_lists import ROW_TABLES, list_tables
from ccafl_jax.data.layouts.scan import NameRule, name_warnings, scan_folder
from ccafl_jax.data.records import Collection, RawPart, collect
from ccafl_jax.ragged import ragged

FOLDERS = {"train": "image_train", "query": "image_query", "gallery": "image_test"}
EXPECTED_TREE = "ROOT/{" + ",".join(FOLDERS.values()) + "}/0001_c001_00016450_0.jpg"

_LIST_FILES = {"good": "gt_index.txt", "junk": "jk_index.txt"}
_TRACK_FILES = ("test_track.txt", "test_track_VeRi.txt")
_NAME = re.compile(r"(-1|[0-9]{1,9})_c([0-9]{1,9})_([0-9]{1,9})(?![0-9])")


def parse_name(name: str) -> tuple[int, int, int] | None:
    """Vehicle, camera and frame of a base name; None if it is not `ID_cCAMERA_FRAME...`."""
    match = _NAME.match(name)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


NAMES = NameRule(parse_name, form="ID_cCAMERA_FRAME...", example="0001_c001_00016450_0.jpg")


def read_veri(root: str | os.PathLike, *, name: str = "veri776") -> Collection:
    """Reads VeRi-776.

    Args:
      root: the folder that holds the splits, or one up to three levels above it.
      name: of the data set.

    Returns:
      The parts train, query and gallery with frame numbers. Tables, where their files are there:
      `gt.good.*` and `gt.junk.*`, gallery rows for each query; `track.*`, gallery rows of each
      track.

    Raises:
      FileNotFoundError: `root` or a split is missing.
      ValueError: several data sets below `root`, no usable image, or a list with a word that is
        no number.
    """
    required = tuple(FOLDERS.values())
    base = find_root(root, required, folders={name, "veri"}, tree=EXPECTED_TREE)
    parts, report = {}, {}
    for part, folder in FOLDERS.items():
        parts[part], report[part] = scan_folder(base, folder, NAMES, keep_junk=part == "gallery")
    lists, list_warnings = _query_lists(base, parts["query"], parts["gallery"])
    tracks, track_warnings = _tracks(base, parts["gallery"])
    report["warnings"] = name_warnings(report, FOLDERS) + list_warnings + track_warnings
    row_tables = ROW_TABLES | {"track.values": "gallery"}
    return collect(name, base, parts, tables=lists | tracks, row_tables=row_tables, report=report)


def _query_lists(
    base: pathlib.Path, query: RawPart, gallery: RawPart
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The tables of gt_index.txt and jk_index.txt."""
    files = {kind: file for kind, file in _LIST_FILES.items() if (base / file).is_file()}
    query_order = _order(base / "name_query.txt", query)
    lists, warnings = {}, ()
    for kind, file in files.items():
        lines = _lines(base / file)
        if len(lines) != len(query_order):
            warnings += (
                f"{file}: {len(lines)} lines for {len(query_order)} queries; it is left out, "
                "rankings go by identities and cameras",
            )
            continue
        lists[kind] = [np.zeros(0, np.int64)] * len(query.path)
        for number, (line, row) in enumerate(zip(lines, query_order, strict=True), 1):
            if row >= 0:
                lists[kind][row] = _numbers(line, f"{base / file}, line {number}")
        warnings += _unlisted(file, query_order, len(query.path))
    tables, found = list_tables(
        lists,
        order=_order(base / "name_test.txt", gallery),
        query_pid=np.asarray(query.pid),
        gallery_pid=np.asarray(gallery.pid),
        where=" and ".join(_LIST_FILES[kind] for kind in lists),
    )
    return tables, warnings + found


def _unlisted(file: str, query_order: np.ndarray, queries: int) -> tuple[str, ...]:
    """A warning where lines and queries are not the same in number."""
    used = int(np.sum(query_order >= 0))
    if used == queries == len(query_order):
        return ()
    return (
        f"{file}: {len(query_order) - used} lines are of queries that are not on disk, and "
        f"{queries - used} queries have no line",
    )


def _tracks(base: pathlib.Path, gallery: RawPart) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The tracks of the gallery; a line's first word is their name unless it is an image."""
    file = next((file for file in _TRACK_FILES if (base / file).is_file()), None)
    if file is None:
        return {}, ()
    rows = _rows(gallery)
    tracks, unknown, affected = [], 0, 0
    for line in _lines(base / file):
        words = list(dict.fromkeys(line.split()))
        images = words if words and words[0] in rows else words[1:]
        track = [rows[image] for image in images if image in rows]
        unknown += len(images) - len(track)
        affected += len(images) != len(track)
        if track:
            tracks.append(np.array(track, np.int64))
    if unknown:
        warning = f"{file}: {unknown} images of {affected} tracks are not on disk, left out"
        return ragged("track", tracks), (warning,)
    return ragged("track", tracks), ()


def _order(path: pathlib.Path, part: RawPart) -> np.ndarray:
    """Rows of a part in the order of a list of names, -1 for names that are not in it.

    Without the list the order is that of the part.
    """
    if not path.is_file():
        return np.arange(len(part.path))
    rows = _rows(part)
    names = [line.split()[0] for line in _lines(path) if line.strip()]
    return np.array([rows.get(name, -1) for name in names], np.int64)


def _rows(part: RawPart) -> dict[str, int]:
    return {path.rsplit("/", 1)[-1]: row for row, path in enumerate(part.path)}


def _lines(path: pathlib.Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()


def _numbers(line: str, where: str) -> np.ndarray:
    try:
        return np.array([int(word) for word in line.split()], np.int64)
    except ValueError:
        raise ValueError(
            f"{where}: expected numbers between blanks, found {line[:40]!r}; replace the file, or "
            "remove it to go without"
        ) from None
