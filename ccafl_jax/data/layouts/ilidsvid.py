"""Reader of iLIDS-VID: 300 people, each once under either of two cameras.

    ROOT/i-LIDS-VID/sequences/cam1/person001/cam1_person001_00317.png
    ROOT/i-LIDS-VID/sequences/cam2/person001/...
    ROOT/train-test people splits/train_test_splits_ilidsvid.mat     ls_set, 10 x 300

A row of ls_set is one split: all places, counted from 1, in the sorted list of the people. One half
of it trains, the other one tests; results are averaged over the ten splits.
"""

import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from ccafl_jax.data.layouts.find import find_root, list_images
from ccafl_jax.data.layouts.matlab import read_integers, zero_based
from ccafl_jax.data.layouts.scan import NOT_AN_IMAGE, UNREADABLE_NAME
from ccafl_jax.data.records import (
    Collection,
    RawPart,
    Records,
    ReIDDataset,
    collect,
    take_tracklets,
    tracklets,
)
from ccafl_jax.options import require, require_choice

ORIENTATIONS = ("standard", "tfclip")

_CAMERAS = (1, 2)
_SEQUENCES = "i-LIDS-VID/sequences"
_SPLITS = "train-test people splits/train_test_splits_ilidsvid.mat"
_TREE = f"ROOT/{_SEQUENCES}/{{cam1,cam2}}/person001/cam1_person001_00317.png and ROOT/{_SPLITS}"
_PERSON = re.compile(r"person([0-9]{1,9})")
_NAME = re.compile(r"cam([0-9])_person([0-9]{1,9})_([0-9]{1,9})\.")


def read_ilidsvid(root: str | os.PathLike, *, name: str = "ilidsvid") -> Collection:
    """Reads all tracklets of iLIDS-VID and its splits.

    Args:
      root: the folder that holds i-LIDS-VID and the splits, or one up to three levels above it.
      name: of the data set.

    Returns:
      The part `all`: tracklets by person, then by camera. The table `people`, int32[n], has the
      people's ids in the order of their folders; `split.people`, int32[splits, n], has each split
      as places in `people`, counted from 0.

    Raises:
      FileNotFoundError: a folder or the splits are missing.
      ValueError: a person lacks one of the cameras or frames, a name contradicts its folder, or
        the splits are not about these people.
    """
    required = (*(f"{_SEQUENCES}/cam{camera}" for camera in _CAMERAS), _SPLITS)
    base = find_root(root, required, tree=_TREE)
    folders, counts = _person_folders(base)
    people = [int(_PERSON.fullmatch(folder)[1]) for folder in folders]
    if len(set(people)) < len(people):
        raise ValueError(
            f"{base / _SEQUENCES}: {len(people)} folders but {len(set(people))} ids of people; "
            "expected one folder a person, such as person001"
        )
    splits = _read_splits(base / _SPLITS, len(people))
    found = [
        (
            pid,
            camera,
            _read_tracklet(base, f"{_SEQUENCES}/cam{camera}/{folder}", camera, pid, counts),
        )
        for folder, pid in zip(folders, people, strict=True)
        for camera in _CAMERAS
    ]
    lengths = [len(frames) for _, _, frames in found]
    part = RawPart(
        path=[path for *_, frames in found for _, path in frames],
        pid=np.repeat([pid for pid, *_ in found], lengths),
        camera=np.repeat([camera for _, camera, _ in found], lengths),
        tracklet=np.repeat(np.arange(len(found)), lengths),
        frame=[frame for *_, frames in found for frame, _ in frames],
    )
    counts["read"] = len(part.path)
    tables = {"people": np.array(people, np.int32), "split.people": splits}
    report = {"all": counts, "warnings": _warnings(base, counts)}
    return collect(name, base, {"all": part}, tables=tables, report=report)


def select_ilidsvid(
    collection: Collection, *, split: int = 1, orientation: str = "standard"
) -> ReIDDataset:
    """Training people, queries (camera 1 of the test people) and gallery (their camera 2).

    Args:
      collection: from `read_ilidsvid`, or a prepared data set of it.
      split: 1 to 10, the row of ls_set.
      orientation: `standard`: the first half of a row tests and the second one trains, as in most
        published work; `tfclip`: the other way round, as in the released code of TF-CLIP.

    Returns:
      The data set; its report says under "protocol" which split and orientation it has.

    Raises:
      ValueError: there is no such split or orientation.
    """
    places, people = collection.tables["split.people"], collection.tables["people"]
    require_choice("orientation", orientation, ORIENTATIONS)
    require(
        1 <= split <= len(places),
        f"split is {split}, must be one of 1 to {len(places)}, the splits of {collection.name}",
    )
    halves = np.split(people[places[split - 1]], [len(people) // 2])
    test, train = halves if orientation == "standard" else halves[::-1]
    records = collection.parts["all"]
    first, second = (collection.camera_codes.index(camera) for camera in _CAMERAS)
    return ReIDDataset(
        name=collection.name,
        root=collection.root,
        train=_take(records, train, (first, second)),
        query=_take(records, test, (first,)),
        gallery=_take(records, test, (second,)),
        camera_codes=collection.camera_codes,
        report={
            **collection.report,
            "protocol": f"split {split} of {len(places)}, the "
            f"{'second' if orientation == 'standard' else 'first'} half of its people trains",
        },
    )


def _take(records: Records, pids: np.ndarray, camids: Sequence[int]) -> Records:
    table = tracklets(records)
    chosen = np.isin(table.pid, pids) & np.isin(table.camid, camids)
    return take_tracklets(records, table, np.flatnonzero(chosen))


def _person_folders(base: pathlib.Path) -> tuple[list[str], dict[str, int]]:
    """The sorted names of the people's folders, the same under both cameras."""
    found, others = {}, 0
    for camera in _CAMERAS:
        names = os.listdir(base / _SEQUENCES / f"cam{camera}")
        found[camera] = {name for name in names if _PERSON.fullmatch(name)}
        others += len(names) - len(found[camera])
    first, second = found.values()
    lonely = sorted(first ^ second)
    if lonely:
        lacking = [camera for camera in _CAMERAS if lonely[0] not in found[camera]]
        raise ValueError(
            f"{base / _SEQUENCES}: {len(lonely)} people lack a camera, the first {lonely[0]} "
            f"(no folder in cam{lacking[0]}), expected all under both; unpack the archive again"
        )
    if not first:
        raise ValueError(f"{base / _SEQUENCES}: no folder of a person; expected {_TREE}")
    return sorted(first), {
        "read": 0,
        UNREADABLE_NAME: 0,
        NOT_AN_IMAGE: 0,
        "not a folder of a person": others,
    }


def _read_splits(path: pathlib.Path, count: int) -> np.ndarray:
    splits = read_integers(path, "ls_set")
    if splits.ndim != 2 or splits.shape[1] != count:
        raise ValueError(
            f"{path}: ls_set is an array {splits.shape} but there are folders of {count} people, "
            f"expected (splits, {count}); unpack the archive again"
        )
    rows = [
        zero_based(row, count, source=f"{path}, row {number}", of="people")
        for number, row in enumerate(splits, start=1)
    ]
    return np.array(rows, np.int32).reshape(splits.shape)


def _read_tracklet(
    base: pathlib.Path, folder: str, camera: int, pid: int, counts: dict[str, int]
) -> list[tuple[int, str]]:
    """Numbers and paths of the frames in a folder, in the order of time; adds to `counts`."""
    images, others = list_images(base / folder)
    matches = {name: _NAME.match(name) for name in images}
    named = {name: match for name, match in matches.items() if match}
    counts[NOT_AN_IMAGE] += others
    counts[UNREADABLE_NAME] += len(images) - len(named)
    for name, match in named.items():
        if (int(match[1]), int(match[2])) != (camera, pid):
            raise ValueError(
                f"{base / folder / name}: expected a name with camera {camera} and person {pid}, "
                "those of its folder; move or rename it"
            )
    if not named:
        raise ValueError(
            f"{base / folder}: no frame among {len(images) + others} files, expected names such "
            "as cam1_person001_00317.png; unpack the archive again"
        )
    # By number, then by name: the order of time also where zeros are missing.
    return sorted((int(match[3]), f"{folder}/{name}") for name, match in named.items())


def _warnings(base: pathlib.Path, counts: dict[str, int]) -> tuple[str, ...]:
    unreadable = counts[UNREADABLE_NAME]
    if not unreadable:
        return ()
    return (f"{base / _SEQUENCES}: {unreadable} images with an unreadable name, left out",)
