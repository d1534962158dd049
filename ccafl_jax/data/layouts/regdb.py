"""Reader of RegDB, ten visible and ten thermal images of each person.

    ROOT/idx/train_visible_1.txt          also train_thermal, test_visible, test_thermal; 1 to 10
    ROOT/Visible/101/female_front_v_04226_101.bmp
    ROOT/Thermal/101/female_front_t_03871_101.bmp

A line of a list is a path below ROOT, a blank and a label that counts the persons of that list. A
split trains on one half of the persons and tests on the other; each split has a model of its own.
There is one camera per modality: code 1 stands for the visible one, 2 for the thermal one.
"""

import dataclasses
import itertools
import os
import pathlib
import posixpath
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ccafl_jax.data.layouts.find import find_root, list_images, subfolders
from ccafl_jax.data.layouts.scan import NOT_AN_IMAGE
from ccafl_jax.data.layouts.visible_infrared import assemble, check_one_to_one
from ccafl_jax.data.records import (
    INFRARED,
    VISIBLE,
    Collection,
    RawPart,
    ReIDDataset,
    collect,
)
from ccafl_jax.options import require_choice

SPLITS = range(1, 11)
DIRECTIONS = ("visible_to_thermal", "thermal_to_visible")

_MODALITIES = {"visible": VISIBLE, "thermal": INFRARED}
_CAMERAS = {VISIBLE: 1, INFRARED: 2}
_LISTS = tuple(itertools.product(("train", "test"), _MODALITIES))
_LINE = re.compile(r"(\S(?:.*\S)?)[ \t]+([0-9]{1,9})", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,9}")
_NUMBER_AT_END = re.compile(r"(?<![0-9])[0-9]{1,9}\Z")


def read_regdb(root: str | os.PathLike, *, name: str = "regdb") -> Collection:
    """Reads the images of all lists, and the splits that are there.

    A listed image is looked for at its path and, where it is not there, by its base name in any
    folder, upper and lower case alike.

    Args:
      root: the folder that holds idx, or one up to three levels above it.
      name: of the data set.

    Returns:
      One part `all`, sorted by path, and for each split s the tables `split.s.train_visible.rows`
      (int64, rows of that part in the order of the list) and `split.s.train_visible.labels`
      (int32, as listed); likewise train_thermal, test_visible and test_thermal. Identities are the
      numbers of the persons, the same in all splits.

    Raises:
      FileNotFoundError: no list at all, only some lists of a split, or a listed image is missing.
      ValueError: a line cannot be read, or the lists contradict each other.
    """
    base = find_root(root, ("idx",), tree=_expected_tree())
    splits = _splits_on_disk(base)
    disk = _Disk(base)
    lists = {
        (split, part, modality): _read_list(
            base / "idx" / f"{part}_{modality}_{split}.txt", _MODALITIES[modality], disk
        )
        for split in splits
        for part, modality in _LISTS
    }
    for split in splits:
        _check_split(base, split, lists)
    images = _merge(lists)
    paths = sorted(images)
    row_of = {path: row for row, path in enumerate(paths)}
    tables = {}
    for (split, part, modality), found in lists.items():
        table = f"split.{split}.{part}_{modality}"
        tables[f"{table}.rows"] = np.asarray([row_of[path] for path in found.paths], np.int64)
        tables[f"{table}.labels"] = found.labels
    report = {
        "all": {
            "read": len(paths),
            "in no list": disk.images - len(paths),
            NOT_AN_IMAGE: disk.others,
        },
        "warnings": _missing_splits(base, splits),
    }
    pid = [images[path][0] for path in paths]
    modality = [images[path][1] for path in paths]
    part = RawPart(paths, pid, [_CAMERAS[m] for m in modality], modality=modality)
    row_tables = {table: "all" for table in tables if table.endswith(".rows")}
    return collect(name, base, {"all": part}, tables=tables, row_tables=row_tables, report=report)


def select_regdb(
    collection: Collection, *, split: int = 1, direction: str = "visible_to_thermal"
) -> ReIDDataset:
    """One split: both modalities for training, one searched in the other for the test.

    Args:
      collection: from `read_regdb`.
      split: 1 to 10; results are averaged over ten models.
      direction: `visible_to_thermal` (visible queries) or `thermal_to_visible`.

    Returns:
      Training set (visible first), queries and gallery in the order of the lists.

    Raises:
      ValueError: there is no such split or direction.
    """
    require_choice("direction", direction, DIRECTIONS)
    splits = regdb_splits(collection)
    if split not in splits:
        known = ", ".join(map(str, splits))
        raise ValueError(f"{collection.root}: no split {split!r}; there are {known}")
    query, gallery = direction.split("_to_")

    def rows(part: str, modality: str) -> np.ndarray:
        listed = np.asarray(collection.tables[f"split.{split}.{part}_{modality}.rows"])
        return listed[listed >= 0]  # others are images that a prepared set left out

    images = collection.parts["all"]
    train = np.concatenate([rows("train", modality) for modality in _MODALITIES])
    return assemble(
        collection,
        images.take(train),
        images.take(rows("test", query)),
        images.take(rows("test", gallery)),
    )


def regdb_splits(collection: Collection) -> tuple[int, ...]:
    """The splits that a collection holds."""
    return tuple(s for s in SPLITS if f"split.{s}.train_visible.rows" in collection.tables)


class Line(NamedTuple):
    """One line of a list."""

    number: int
    path: str
    label: int


def parse_list(text: str, where: str) -> list[Line]:
    """The lines of a list; blank ones are passed over, any kind of line end will do.

    Paths come with "/" between folders and without "." and "..".

    Raises:
      ValueError: a line is not a path below the root and a label, or there is none at all.
    """
    lines = []
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        path = posixpath.normpath(match[1].replace("\\", "/")) if match else ""
        if match is None or path.startswith("/") or path.split("/")[0] in (".", ".."):
            raise ValueError(
                f"{where} line {number}: {line[:80]!r} is not a path below ROOT and a label; "
                "expected such as 'Visible/101/female_front_v_04226_101.bmp 0'"
            )
        lines.append(Line(number, path, int(match[2])))
    if not lines:
        raise ValueError(f"{where}: no line in it; expected a path and a label in each")
    return lines


def person_of(path: str) -> int | None:
    """The person an image shows: the number of its folder, else the one its name ends with."""
    folder, base_name = posixpath.split(path)
    folder = posixpath.basename(folder)
    if _NUMBER.fullmatch(folder):
        return int(folder)
    match = _NUMBER_AT_END.search(posixpath.splitext(base_name)[0])
    return int(match[0]) if match else None


@dataclasses.dataclass(frozen=True)
class _List:
    """A list whose images were found."""

    file: pathlib.Path
    modality: int
    paths: list[str]
    pids: np.ndarray
    labels: np.ndarray


class _Disk:
    """The images below the root, except in idx."""

    def __init__(self, base: pathlib.Path):
        self.others = 0
        self._paths: set[str] = set()
        for folder in subfolders(base):
            if folder == "idx" or folder.startswith("."):
                continue
            names, others = list_images(base / folder, recursive=True)
            self._paths.update(f"{folder}/{name}" for name in names)
            self.others += others
        self._by_name: dict[str, list[str]] = {}
        for path in self._paths:
            self._by_name.setdefault(_key(path), []).append(path)

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self._paths)

    def find(self, path: str) -> str | None:
        """The path at which a listed image lies; None where it is absent or not the only one."""
        if path in self._paths:
            return path
        alike = self._by_name.get(_key(path), ())
        return alike[0] if len(alike) == 1 else None


def _key(path: str) -> str:
    return posixpath.basename(path).casefold()


def _splits_on_disk(base: pathlib.Path) -> list[int]:
    splits = []
    for split in SPLITS:
        names = [f"{part}_{modality}_{split}.txt" for part, modality in _LISTS]
        missing = [name for name in names if not (base / "idx" / name).is_file()]
        if not missing:
            splits.append(split)
        elif len(missing) < len(names):
            raise FileNotFoundError(
                f"{base / 'idx'} lacks {' and '.join(missing)}; expected the four lists of split "
                f"{split}, or none of them"
            )
    if not splits:
        raise FileNotFoundError(f"{base / 'idx'} holds no list; expected {_expected_tree()}")
    return splits


def _missing_splits(base: pathlib.Path, splits: list[int]) -> tuple[str, ...]:
    if len(splits) == len(SPLITS):
        return ()
    there = ", ".join(map(str, splits))
    return (f"{base / 'idx'} holds the splits {there} of {len(SPLITS)}; results average over all",)


def _read_list(file: pathlib.Path, modality: int, disk: _Disk) -> _List:
    # Names that are not UTF-8 survive as they do in a listing of the folder.
    lines = parse_list(file.read_bytes().decode("utf-8", "surrogateescape"), str(file))
    first_line: dict[str, int] = {}
    pids = []
    for line in lines:
        where = f"{file} line {line.number}: {line.path}"
        path, pid = disk.find(line.path), person_of(line.path)
        if path is None:
            raise FileNotFoundError(
                f"{where} is not below {file.parent.parent}; expected every listed image there"
            )
        if pid is None:
            raise ValueError(
                f"{where} names no person; expected a folder that is a number, or a name that "
                "ends with one"
            )
        if path in first_line:
            raise ValueError(
                f"{where} stands in line {first_line[path]} already; remove one of the lines"
            )
        first_line[path] = line.number
        pids.append(pid)
    labels = np.asarray([line.label for line in lines], np.int32)
    return _List(file, modality, list(first_line), np.asarray(pids, np.int64), labels)


def _check_split(
    base: pathlib.Path, split: int, lists: Mapping[tuple[int, str, str], _List]
) -> None:
    """Labels agree with persons over both modalities, and training shares no person with test."""
    persons = []
    for part in ("train", "test"):
        pair = [lists[split, part, modality] for modality in _MODALITIES]
        pids = np.concatenate([found.pids for found in pair])
        labels = np.concatenate([found.labels for found in pair])
        names = " and ".join(found.file.name for found in pair)
        check_one_to_one(labels, pids, f"{base / 'idx'}: {names}")
        persons.append(pids)
    both = np.intersect1d(*persons)
    if len(both):
        raise ValueError(
            f"{base / 'idx'}: {len(both)} persons (e.g. {both[0]}) are in both the training and "
            f"the test lists of split {split}; expected none: download the lists anew"
        )


def _merge(lists: Mapping[tuple[int, str, str], _List]) -> dict[str, tuple[int, int]]:
    """Person and modality of each image of all lists."""
    images: dict[str, tuple[int, int]] = {}
    for found in lists.values():
        for path, pid in zip(found.paths, found.pids.tolist(), strict=True):
            before = images.setdefault(path, (pid, found.modality))
            if before[1] != found.modality:
                raise ValueError(
                    f"{found.file}: {path} is also in a list of the other modality; expected "
                    "visible and thermal images apart: download the lists anew"
                )
            if before[0] != pid:
                raise ValueError(
                    f"{found.file}: {path} shows person {pid} here and {before[0]} in another "
                    "list; expected the same number everywhere"
                )
    return images


def _expected_tree() -> str:
    return (
        "ROOT/idx/{train,test}_{visible,thermal}_1.txt (to _10) and images such as "
        "ROOT/Visible/101/female_front_v_04226_101.bmp"
    )
