"""Reader of LS-VID: long tracklets of pedestrians under fifteen cameras.

    ROOT/tracklet_train/..., tracklet_test/..., tracklet_val/...     frames
    ROOT/list_sequence/list_seq_train.txt, list_seq_test.txt         "prefix id", a tracklet a line
    ROOT/list_sequence/list_seq_val.txt                              may be absent
    ROOT/test/data/info_test.mat                                     query: lines of the test list

Lines are counted from 1 there. A prefix is a path below ROOT without the end of the file names: the
frames of the tracklet `tracklet_test/0007/0007_1` are the images tracklet_test/0007/0007_1_*. The
third of the parts between the underscores of a name is the camera, the last one the frame.

`info/list_sequence` and `info/data/info_test.mat`, as the code of TF-CLIP has them, serve as well.
"""

import bisect
import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from ccafl_jax.data.layouts.find import find_root, list_images
from ccafl_jax.data.layouts.matlab import read_integers, zero_based
from ccafl_jax.data.layouts.scan import NOT_AN_IMAGE
from ccafl_jax.data.layouts.tracks import drop_junk
from ccafl_jax.data.records import JUNK, Collection, RawPart, collect

_FOLDERS = ("tracklet_train", "tracklet_test")
_LISTS = ("list_sequence", "info/list_sequence")
_QUERIES = ("test/data/info_test.mat", "info/data/info_test.mat")
_TREE = (
    "ROOT/{tracklet_train,tracklet_test}, "
    "ROOT/list_sequence/{list_seq_train.txt,list_seq_test.txt} and ROOT/test/data/info_test.mat, "
    "or ROOT/info/{list_sequence,data} in place of the last two"
)
_CAMERAS = range(1, 16)
_LINE = re.compile(r"(.*\S)\s+(-?[0-9]{1,9})")
_CAMERA = re.compile(r"[0-9]{1,9}")
_FRAME = re.compile(r"(?<![0-9])([0-9]{1,9})\.[^.]*$")


def read_lsvid(root: str | os.PathLike, *, name: str = "lsvid") -> Collection:
    """Reads the tracklets of LS-VID.

    The frames of a tracklet stand in the order of their names. Junk tracklets (id -1) are dropped
    and counted.

    Args:
      root: the folder that holds tracklet_train and tracklet_test, or one up to three levels above.
      name: of the data set.

    Returns:
      The parts train, query (the lines of the test list that info_test.mat names, in its order)
      and gallery (all other test tracklets), and val where there is a list of it. The tables
      `query.track` and `gallery.track`, int32, give for each tracklet its line of the test list,
      counted from 0: with them, queries can be ranked among all test tracklets.

    Raises:
      FileNotFoundError: a folder or a list is missing, or a listed tracklet has no frame.
      ImportError: info_test.mat is of MATLAB 7.3, as published, and h5py is not installed.
      ValueError: a list or a name cannot be read; the message names the line.
    """
    base = find_root(root, _FOLDERS, tree=_TREE)
    train_list, test_list = (_locate(base, _list_names(half)) for half in ("train", "test"))
    source = _locate(base, _QUERIES)
    lines = read_integers(source, "query")
    train, test = _read_list(base, train_list), _read_list(base, test_list)
    queries = zero_based(lines, len(test), source=str(source), of="test tracklets")
    chosen = {
        "train": (train, np.arange(len(train))),
        "query": (test, queries),
        "gallery": (test, np.setdiff1d(np.arange(len(test)), queries)),
    }
    val, warnings = _read_val(base)
    if val is not None:
        chosen["val"] = (val, np.arange(len(val)))
    parts, report, tables = {}, {}, {}
    for part, (half, rows) in chosen.items():
        kept, report[part] = drop_junk(rows, half.pid, half.count)
        parts[part] = _part(half, kept)
        if half is test:
            tables[f"{part}.track"] = kept.astype(np.int32)
        if part != "query":  # its frames lie in the folders of the gallery
            report[part] |= half.ignored
        if part != "query" and half.odd:
            warnings += (half.odd,)
    report["warnings"] = warnings
    return collect(name, base, parts, tables=tables, report=report)


@dataclasses.dataclass(frozen=True)
class _Sequences:
    """The tracklets of a list.

    Attributes:
      pid, camera, count: int64[t]; count is the number of frames.
      paths: of the frames of each tracklet, below the root.
      frames: their numbers.
      ignored: counts of files beside them.
      odd: a warning, or nothing.
    """

    pid: np.ndarray
    camera: np.ndarray
    count: np.ndarray
    paths: list[list[str]]
    frames: list[list[int]]
    ignored: dict[str, int]
    odd: str

    def __len__(self) -> int:
        return len(self.pid)


def _list_names(half: str) -> list[str]:
    return [f"{folder}/list_seq_{half}.txt" for folder in _LISTS]


def _locate(base: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    for name in names:
        if (base / name).is_file():
            return base / name
    raise FileNotFoundError(f"{base} lacks {' or '.join(names)}; expected {_TREE}")


def _read_val(base: pathlib.Path) -> tuple[_Sequences | None, tuple[str, ...]]:
    names = [name for name in _list_names("val") if (base / name).is_file()]
    if not names:
        return None, ()
    if not (base / "tracklet_val").is_dir():
        return None, (f"{base} has {names[0]} but no tracklet_val; the part val is left out",)
    return _read_list(base, base / names[0]), ()


def _read_list(base: pathlib.Path, path: pathlib.Path) -> _Sequences:
    prefixes, pids = _parse_list(path)
    folders: dict[str, tuple[list[str], int]] = {}
    spans = []
    for prefix in prefixes:
        folder, _, start = prefix.rpartition("/")
        if folder not in folders:
            there = (base / folder).is_dir()
            folders[folder] = list_images(base / folder) if there else ([], 0)
        names = folders[folder][0]
        # "`" follows "_" in ASCII: the names between begin with the prefix and "_".
        span = bisect.bisect_left(names, start + "_"), bisect.bisect_left(names, start + "`")
        spans.append((folder, *span))
    _check_spans(path, prefixes, pids, spans)
    frames = [folders[folder][0][first:stop] for folder, first, stop in spans]
    cameras = [
        _camera(names, f"{base}/{folder}") if pid != JUNK else 0
        for (folder, _, _), names, pid in zip(spans, frames, pids, strict=True)
    ]
    numbers, odd = _frame_numbers(path, prefixes, frames)
    used = sum(map(len, frames))
    return _Sequences(
        pid=np.array(pids),
        camera=np.array(cameras),
        count=np.array([len(names) for names in frames]),
        paths=[
            [f"{folder}/{name}" for name in names]
            for (folder, _, _), names in zip(spans, frames, strict=True)
        ],
        frames=numbers,
        ignored={
            "images in no tracklet": sum(len(names) for names, _ in folders.values()) - used,
            NOT_AN_IMAGE: sum(others for _, others in folders.values()),
        },
        odd=odd,
    )


def _parse_list(path: pathlib.Path) -> tuple[list[str], list[int]]:
    text = path.read_text("utf-8-sig", "surrogateescape").rstrip()
    prefixes, pids = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(
                f"{path}, line {number}: found {line.strip()!r}, expected a prefix and an id, such "
                "as 'tracklet_train/0007/0007_1 7'"
            )
        prefixes.append(match[1].replace("\\", "/").removeprefix("./").rstrip("_"))
        pids.append(int(match[2]))
    return prefixes, pids


def _check_spans(path: pathlib.Path, prefixes: list[str], pids: list[int], spans: list) -> None:
    """Each tracklet must have frames, and each frame one tracklet."""
    empty = [i for i, (_, first, stop) in enumerate(spans) if first == stop and pids[i] != JUNK]
    if empty:
        raise FileNotFoundError(
            f"{path}: {len(empty)} of {len(spans)} tracklets have no frame, the first is line "
            f"{empty[0] + 1}: no image {prefixes[empty[0]]}_* below the root; unpack the archive "
            "again"
        )
    # Prefixes that share frames lie one in the other, so neighbours tell.
    filled = [i for i, (_, first, stop) in enumerate(spans) if first < stop]
    for before, after in itertools.pairwise(sorted(filled, key=lambda i: spans[i])):
        (folder, _, stop), (other, first, _) = spans[before], spans[after]
        if folder == other and first < stop:
            lines = sorted((before + 1, after + 1))
            raise ValueError(
                f"{path}: lines {lines[0]} and {lines[1]} share frames ({prefixes[before]} and "
                f"{prefixes[after]}), expected each frame in one tracklet; remove one of them"
            )


def _camera(names: list[str], folder: str) -> int:
    """The camera in the names of a tracklet's frames."""
    cameras = set()
    for name in names:
        token = (name.split("_", 3) + [""] * 2)[2]
        if not _CAMERA.fullmatch(token) or int(token) not in _CAMERAS:
            raise ValueError(
                f"{folder}/{name}: the third part of the name is {token!r}, expected a camera of "
                f"{_CAMERAS[0]} to {_CAMERAS[-1]}"
            )
        cameras.add(int(token))
    if len(cameras) > 1:
        raise ValueError(
            f"{folder}: the tracklet from {names[0]} to {names[-1]} has frames of cameras "
            f"{', '.join(map(str, sorted(cameras)))}, expected one camera in a tracklet"
        )
    return cameras.pop()


def _frame_numbers(
    path: pathlib.Path, prefixes: list[str], frames: list[list[str]]
) -> tuple[list[list[int]], str]:
    """The numbers that end the names, or positions in a tracklet where they do not rise."""
    numbers, odd = [], []
    for prefix, names in zip(prefixes, frames, strict=True):
        matches = [_FRAME.search(name) for name in names]
        found = [int(match[1]) if match else -1 for match in matches]
        if -1 in found or any(b <= a for a, b in itertools.pairwise(found)):
            odd.append(prefix)
            found = list(range(len(names)))
        numbers.append(found)
    if not odd:
        return numbers, ""
    return numbers, (
        f"{path}: the names of {len(odd)} tracklets, the first {odd[0]}, do not end in rising "
        "numbers; their frames are in the order of the names and counted from 0"
    )


def _part(half: _Sequences, rows: np.ndarray) -> RawPart:
    count = half.count[rows]
    return RawPart(
        path=[path for row in rows for path in half.paths[row]],
        pid=np.repeat(half.pid[rows], count),
        camera=np.repeat(half.camera[rows], count),
        tracklet=np.repeat(np.arange(len(rows)), count),
        frame=[frame for row in rows for frame in half.frames[row]],
    )
