"""Reader of MSMT17, version 1 and version 2.

    ROOT/{train,test}/0000/0000_045_12_0303morning_0006_2_ex.jpg     version 1
    ROOT/{mask_train_v2,mask_test_v2}/0000/...                       version 2
    ROOT/list_{train,val,query,gallery}.txt                          0000/0000_045_... 0

A base name holds identity, running number, camera (01 to 15), day and hour, frame and box. Train
and val lists name files of the train folder, query and gallery lists files of the test folder.
The Market-like renaming (`bounding_box_train/0000_c14_0030.jpg`) reads as well, but its names do
not tell the version.

Identities 0 to 1040 of training and 0 to 3059 of testing share numbers but are other people.
"""

import dataclasses
import os
import pathlib
import re

import numpy as np

from ccafl_jax.data.layouts import market
from ccafl_jax.data.layouts.find import find_any_root, find_root, is_folder, list_images
from ccafl_jax.data.layouts.scan import NOT_AN_IMAGE
from ccafl_jax.data.records import Collection, RawPart, collect
from ccafl_jax.options import require_choice

VERSIONS = {"msmt17_v1": ("train", "test"), "msmt17_v2": ("mask_train_v2", "mask_test_v2")}
"""Folders of the training and the test images."""
NAMES = ("msmt17", *VERSIONS)
EXPECTED_TREE = (
    "ROOT/{train,test}/0000/*.jpg (V2: mask_train_v2, mask_test_v2) beside "
    f"list_{{train,val,query,gallery}}.txt, or {market.EXPECTED_TREE}"
)

# Without list_val, whose lack needs a word of its own.
_LISTS = ("list_train.txt", "list_query.txt", "list_gallery.txt")
_UNLISTED = "in no list"
_LINE = re.compile(
    r"(?P<path>(?P<folder>[0-9]{1,9})/(?P<pid>[0-9]{1,9})_[0-9]+_(?P<camera>[0-9]{1,9})_[^_/]+_"
    r"(?P<frame>[0-9]{1,9})_[^/]*\S)[ \t]+(?P<listed>[0-9]{1,9})"
)


def read_msmt17(root: str | os.PathLike, *, name: str = "msmt17") -> Collection:
    """Reads MSMT17 from its lists, or from the Market-like renaming.

    Args:
      root: the folder that holds lists and images, or one up to three levels above it.
      name: `msmt17_v1` or `msmt17_v2`; `msmt17` takes the version from the folders' names.

    Returns:
      A collection named msmt17_v1 or msmt17_v2 with the parts train (list_train and list_val),
      query and gallery. From lists, records have frames and the table `val_rows` holds the rows
      of train that list_val names.

    Raises:
      FileNotFoundError: `root`, a list or a listed image is missing.
      ValueError: the version is another than `name` says or cannot be told, or a list is damaged.
    """
    require_choice("name", name, NAMES)
    base, version = _locate(root, name)
    return _read_lists(base, version) if version else market.read_market(base, name=name)


def parse_line(line: str) -> tuple[str, int, int, int]:
    """Path, identity, camera and frame of a line of a list.

    Raises:
      ValueError: what is wrong with the line.
    """
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise ValueError(
            f"expected a path and an id such as '0000/0000_045_12_0303morning_0006_2.jpg 0', "
            f"found {line.strip()[:80]!r}"
        )
    ids = tuple(int(match[group]) for group in ("folder", "pid", "listed"))
    if len(set(ids)) > 1:
        raise ValueError(
            f"{match['path']}: folder, file name and list give the ids {ids[0]}, {ids[1]} and "
            f"{ids[2]}, which must be one"
        )
    return match["path"], ids[0], int(match["camera"]), int(match["frame"])


def _locate(root: str | os.PathLike, name: str) -> tuple[pathlib.Path, str | None]:
    """The folder to read and the version of its lists, None if it is Market-like."""
    renamed = tuple(market.FOLDERS.values())
    base = _search(root, _LISTS, {name})
    # Lists may have been left beside renamed images, to which they do not apply.
    if base is not None and not all((base / folder).is_dir() for folder in renamed):
        return base, _version(base, name)
    base = _search(root, renamed, {name, "msmt17"})
    if base is None:  # the search through both forms says what is missing
        find_any_root(root, [_LISTS, renamed], tree=EXPECTED_TREE)
    if name == "msmt17":
        raise ValueError(
            f"{base} is MSMT17 in Market-like form, which does not tell its version; name the "
            "data set msmt17_v1 or msmt17_v2"
        )
    return base, None


def _search(root, required: tuple[str, ...], folders: set[str]) -> pathlib.Path | None:
    try:
        return find_root(root, required, folders=folders, tree=EXPECTED_TREE)
    except FileNotFoundError:
        return None


def _version(base: pathlib.Path, name: str) -> str:
    """The version whose folders lie beside the lists, if it is the one that `name` says."""
    found = [
        version
        for version, folders in VERSIONS.items()
        if all((base / folder).is_dir() for folder in folders)
    ]
    if name in found:
        return name
    if not found:
        raise FileNotFoundError(
            f"{base} holds lists, but neither train and test (V1) nor mask_train_v2 and "
            f"mask_test_v2 (V2); expected {EXPECTED_TREE}"
        )
    if len(found) == 2:
        raise ValueError(
            f"{base} holds images of MSMT17 V1 and V2; name the data set {' or '.join(found)}"
        )
    if name != "msmt17":
        raise ValueError(
            f"{base} holds MSMT17 {found[0][-2:].upper()}, not {name[-2:].upper()}; name the data "
            f"set {found[0]}: results of the versions do not compare"
        )
    return found[0]


@dataclasses.dataclass
class _Listed:
    """Lines of a list."""

    path: list[str]
    pid: list[int]
    camera: list[int]
    frame: list[int]


def _read_lists(base: pathlib.Path, version: str) -> Collection:
    train_folder, test_folder = VERSIONS[version]
    lists = {part: _read_list(base, part) for part in ("train", "val", "query", "gallery")}
    train, val_rows = _merge(lists["train"], lists["val"])
    parts = {
        "train": _part(train, train_folder),
        "query": _part(_merge(lists["query"])[0], test_folder),
        "gallery": _part(_merge(lists["gallery"])[0], test_folder),
    }
    report: dict = {part: {"read": len(found.path)} for part, found in parts.items()}
    report["train"] |= _check_files(base / train_folder, train.path)
    # Which of the two an unlisted test image belongs to cannot be told.
    listed = lists["query"].path + lists["gallery"].path
    report["gallery"] |= _check_files(base / test_folder, listed)
    report["warnings"] = tuple(
        f"{folder}: {report[part][_UNLISTED]} images are {_UNLISTED}, left out"
        for part, folder in (("train", train_folder), ("gallery", test_folder))
        if report[part][_UNLISTED]
    )
    return collect(
        version,
        base,
        parts,
        tables={"val_rows": val_rows},
        row_tables={"val_rows": "train"},
        report=report,
    )


def _read_list(base: pathlib.Path, part: str) -> _Listed:
    path = base / f"list_{part}.txt"
    if not path.is_file():
        why = (
            ": list_train and list_val together are the training set (32,621 images, 4,821 "
            "classes of camera and id; list_train alone gives 4,766)"
            if part == "val"
            else ""
        )
        raise FileNotFoundError(f"{base} lacks {path.name}{why}; expected {EXPECTED_TREE}")
    entries = []
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                entries.append(parse_line(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not entries:
        raise ValueError(f"{path}: the list is empty; unpack the data set again")
    return _Listed(*(list(column) for column in zip(*entries, strict=True)))


def _merge(*lists: _Listed) -> tuple[_Listed, np.ndarray]:
    """The lines of all lists in the order of their paths, and the rows of those of the last."""
    entries = [
        (*line, number)
        for number, part in enumerate(lists)
        for line in zip(part.path, part.pid, part.camera, part.frame, strict=True)
    ]
    *columns, origin = (list(column) for column in zip(*sorted(entries), strict=True))
    return _Listed(*columns), np.flatnonzero(np.array(origin) == len(lists) - 1)


def _part(listed: _Listed, folder: str) -> RawPart:
    paths = [f"{folder}/{path}" for path in listed.path]
    return RawPart(paths, listed.pid, listed.camera, frame=listed.frame)


def _check_files(folder: pathlib.Path, listed: list[str]) -> dict[str, int]:
    """Checks that all listed images are there; counts those in no list, and other files."""
    present, others = set(), 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_folder(entry):
                others += 1
                continue
            images, further = _list_identity(entry)
            present.update(images)
            others += further
    missing = [path for path in listed if path not in present]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(listed)} listed images are missing, the first is "
            f"{missing[0]}; unpack the data set again"
        )
    return {_UNLISTED: len(present.difference(listed)), NOT_AN_IMAGE: others}


def _list_identity(entry: os.DirEntry) -> tuple[list[str], int]:
    try:
        names, others = list_images(entry.path)
    except OSError:  # a link that leads in a circle
        return [], 1
    return [f"{entry.name}/{name}" for name in names], others
