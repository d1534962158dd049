"""Reader of MARS: tracklets of pedestrians under six cameras.

    ROOT/bbox_train/0001/0001C1T0001F001.jpg     person, camera, tracklet and frame
    ROOT/bbox_test/0000/..., 00-1/...            distractors (0000) and junk (00-1)
    ROOT/info/train_name.txt, test_name.txt      a file name per line
    ROOT/info/tracks_train_info.mat              track_train_info: first and last line, id, camera
    ROOT/info/tracks_test_info.mat               track_test_info
    ROOT/info/query_IDX.mat                      query_IDX: rows of track_test_info

Lines and rows are counted from 1 there. `info` is the folder of the MARS-evaluation repository; it
may also lie in a copy of that repository, in ROOT or beside it.

More than a million names are parsed as arrays of bytes, not one by one.
"""

import dataclasses
import os
import pathlib

import numpy as np

from ccafl_jax.data.layouts.find import find_root, subfolders
from ccafl_jax.data.layouts.matlab import read_integers, zero_based
from ccafl_jax.data.layouts.tracks import drop_junk
from ccafl_jax.data.names import Names
from ccafl_jax.data.records import JUNK, Collection, RawPart, collect
from ccafl_jax.ragged import ranges

_FOLDERS = {"train": "bbox_train", "test": "bbox_test"}
_INFO_FOLDERS = ("info", "MARS-evaluation/info", "MARS-evaluation-master/info")
_INFO_FILES = (
    "train_name.txt",
    "test_name.txt",
    "tracks_train_info.mat",
    "tracks_test_info.mat",
    "query_IDX.mat",
)
_TREE = (
    "ROOT/{bbox_train,bbox_test}/0001/0001C1T0001F001.jpg and ROOT/info/{"
    + ",".join(_INFO_FILES)
    + "}, info being that folder of the MARS-evaluation repository"
)
_LONGEST_NAME = 255
_MOST_DIGITS = 9


def read_mars(
    root: str | os.PathLike, *, name: str = "mars", check_files: bool = True
) -> Collection:
    """Reads the tracklets of MARS.

    Frames stand in the order of the name files. Junk tracklets (id -1) are dropped and counted;
    distractors (id 0) stay in the gallery.

    Args:
      root: the folder that holds bbox_train and bbox_test, or one up to three levels above it.
      name: of the data set.
      check_files: look whether the listed files exist, one listing per folder.

    Returns:
      The parts train, query (the tracklets of query_IDX, in its order) and gallery (all other test
      tracklets). The tables `query.track` and `gallery.track`, int32, give for each tracklet its
      row of track_test_info, counted from 0: with them, queries can be ranked among all test
      tracklets.

    Raises:
      FileNotFoundError: a folder, an info file or a listed frame is missing.
      ValueError: the tracks do not fit the names; the message names the row.
    """
    base = find_root(root, tuple(_FOLDERS.values()), tree=_TREE)
    info = _find_info(base)
    train, test = (_read_half(base, info, half) for half in _FOLDERS)
    unlisted = [_check_files(half) if check_files else 0 for half in (train, test)]
    count = len(test.tracks)
    queries = zero_based(
        read_integers(info / "query_IDX.mat", "query_IDX"),
        count,
        source=str(info / "query_IDX.mat"),
        of="test tracklets",
    )
    chosen = {
        "train": (train, np.arange(len(train.tracks))),
        "query": (test, queries),
        "gallery": (test, np.setdiff1d(np.arange(count), queries)),
    }
    parts, report, tables = {}, {}, {}
    for part, (half, rows) in chosen.items():
        kept, report[part] = drop_junk(rows, half.tracks[:, 2], half.count)
        parts[part] = _part(half, kept)
        if half is test:
            tables[f"{part}.track"] = kept.astype(np.int32)
    for part, half, files in (("train", train, unlisted[0]), ("gallery", test, unlisted[1])):
        report[part]["names in no tracklet"] = half.unused
        report[part]["files that no list names"] = files
    report["warnings"] = _warnings(info, report)
    return collect(name, base, parts, tables=tables, report=report)


@dataclasses.dataclass(frozen=True)
class FrameNames:
    """What n file names of frames say.

    Attributes:
      readable: bool[n]; where it is False, the other values mean nothing.
      pid: int32[n], -1 for junk (00-1).
      camera, track, frame: int32[n].
    """

    readable: np.ndarray
    pid: np.ndarray
    camera: np.ndarray
    track: np.ndarray
    frame: np.ndarray


def parse_names(names: np.ndarray) -> FrameNames:
    """Reads file names such as 0001C1T0001F001.jpg.

    Args:
      names: bytes (dtype S)[n].

    Returns:
      `FrameNames`. The person has four characters, the camera one digit, tracklet and frame have
      one to nine digits each; what follows the dot does not matter.
    """
    start, _, rest = np.strings.partition(names, b"T")
    track, _, rest = np.strings.partition(rest, b"F")
    frame, dot, _ = np.strings.partition(rest, b".")
    # Person, the letter C, camera: six characters, as columns.
    text = start.astype("S6").view(np.uint8).reshape(len(names), 6)
    digit = (text >= ord("0")) & (text <= ord("9"))
    junk = np.all(text[:, :4] == np.frombuffer(b"00-1", np.uint8), axis=1)
    readable = (
        (np.strings.str_len(start) == 6)
        & (junk | digit[:, :4].all(axis=1))
        & (text[:, 4] == ord("C"))
        & digit[:, 5]
        & (dot == b".")
    )
    for number in (track, frame):
        readable &= np.strings.isdigit(number) & (np.strings.str_len(number) <= _MOST_DIGITS)
    value = text.astype(np.int32) - ord("0")
    return FrameNames(
        readable=readable,
        pid=np.where(junk, JUNK, value[:, :4] @ np.array([1000, 100, 10, 1], np.int32)),
        camera=value[:, 5],
        track=np.where(readable, track, b"0").astype(np.int32),
        frame=np.where(readable, frame, b"0").astype(np.int32),
    )


@dataclasses.dataclass(frozen=True)
class _Half:
    """The training or the test half.

    Attributes:
      folder: holds the images.
      names: bytes[n], the lines of the name file.
      parsed: what they say.
      tracks: int64[t, 4]: first line counted from 0, line after the last one, id, camera.
      unused: number of lines in no tracklet.
    """

    folder: pathlib.Path
    names: np.ndarray
    parsed: FrameNames
    tracks: np.ndarray
    unused: int

    @property
    def count(self) -> np.ndarray:
        """Frames of each tracklet, int64[t]."""
        return self.tracks[:, 1] - self.tracks[:, 0]

    def lines(self, rows: np.ndarray) -> np.ndarray:
        """The lines of the tracklets at int[k] rows, one tracklet after the other."""
        return ranges(self.tracks[rows, 0], self.count[rows])


def _find_info(base: pathlib.Path) -> pathlib.Path:
    folders = [folder / name for folder in (base, base.parent) for name in _INFO_FOLDERS]
    # A folder of another purpose may be called info, so the fullest of them is meant.
    present = [sum((folder / file).is_file() for file in _INFO_FILES) for folder in folders]
    info = folders[int(np.argmax(present))]
    missing = [file for file in _INFO_FILES if not (info / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{info} lacks {' and '.join(missing)}; expected {_TREE}")
    return info


def _read_half(base: pathlib.Path, info: pathlib.Path, half: str) -> _Half:
    names = _read_lines(info / f"{half}_name.txt")
    source = info / f"tracks_{half}_info.mat"
    tracks = read_integers(source, f"track_{half}_info")
    if tracks.ndim != 2 or tracks.shape[1] != 4:
        raise ValueError(
            f"{source}: found an array {tracks.shape}, expected rows of first line, last line, id "
            "and camera; download the file again"
        )
    tracks = tracks - [1, 0, 0, 0]
    _check_lines(tracks, len(names), source)
    found = _Half(base / _FOLDERS[half], names, parse_names(names), tracks, 0)
    lines = found.lines(np.arange(len(tracks)))
    _check_names(found, lines, source)
    return dataclasses.replace(found, unused=len(names) - len(lines))


def _read_lines(path: pathlib.Path) -> np.ndarray:
    """The lines of a file as bytes[n], without blanks at their ends and empty lines at its end."""
    lines = [line.strip() for line in path.read_bytes().splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    longest = max(map(len, lines), default=0)
    if not 0 < longest <= _LONGEST_NAME:
        found = f"a line of {longest} bytes" if longest else "no line"
        raise ValueError(f"{path}: found {found}, expected names such as 0001C1T0001F001.jpg")
    return np.array(lines)


def _check_lines(tracks: np.ndarray, count: int, source: pathlib.Path) -> None:
    first, stop = tracks[:, 0], tracks[:, 1]
    wrong = np.flatnonzero((first < 0) | (stop <= first) | (stop > count))
    if wrong.size:
        row = wrong[0]
        raise ValueError(
            f"{source}, row {row + 1}: lines {first[row] + 1} to {stop[row]} lie outside the name "
            f"file of {count} lines, expected 1 <= first <= last <= {count}; take all info files "
            "from one release"
        )
    order = np.argsort(first, kind="stable")
    shared = np.flatnonzero(first[order[1:]] < stop[order[:-1]])
    if shared.size:
        rows = order[shared[0] : shared[0] + 2] + 1
        raise ValueError(
            f"{source}: rows {rows[0]} and {rows[1]} share line {first[rows[1] - 1] + 1}, expected "
            "each frame in one tracklet; download the file again"
        )


def _check_names(half: _Half, lines: np.ndarray, source: pathlib.Path) -> None:
    """Each frame must have the identity and the camera of its row."""
    count, parsed = half.count, half.parsed
    pid, camera = np.repeat(half.tracks[:, 2], count), np.repeat(half.tracks[:, 3], count)
    fits = parsed.readable[lines] & (parsed.pid[lines] == pid) & (parsed.camera[lines] == camera)
    wrong = np.flatnonzero(~fits)
    if not wrong.size:
        return
    line = lines[wrong[0]]
    row = int(np.searchsorted(np.cumsum(count), wrong[0], side="right"))
    name = half.names[line].decode("utf-8", "replace")
    if not parsed.readable[line]:
        raise ValueError(
            f"{source}, row {row + 1}: line {line + 1} of the name file is {name!r}, expected a "
            "name such as 0001C1T0001F001.jpg"
        )
    raise ValueError(
        f"{source}, row {row + 1}: line {line + 1} of the name file is {name} (id "
        f"{parsed.pid[line]}, camera {parsed.camera[line]}), expected id {pid[wrong[0]]}, camera "
        f"{camera[wrong[0]]} as in the row; take all info files from one release"
    )


def _part(half: _Half, rows: np.ndarray) -> RawPart:
    lines = half.lines(rows)
    count = half.count[rows]
    return RawPart(
        path=_paths(half.folder.name, half.names[lines]),
        pid=np.repeat(half.tracks[rows, 2], count),
        camera=np.repeat(half.tracks[rows, 3], count),
        tracklet=np.repeat(np.arange(len(rows)), count),
        frame=half.parsed.frame[lines],
    )


def _paths(folder: str, names: np.ndarray) -> Names:
    person = np.strings.add(f"{folder}/".encode(), names.astype("S4"))
    paths = np.strings.add(np.strings.add(person, b"/"), names)
    start = np.arange(len(paths)) * paths.dtype.itemsize
    return Names(paths.view(np.uint8), start, start + np.strings.str_len(paths))


def _check_files(half: _Half) -> int:
    """Looks for the frames of all tracklets but junk; returns how many files no line names."""
    is_wanted = np.zeros(len(half.names), bool)
    is_wanted[half.lines(np.flatnonzero(half.tracks[:, 2] != JUNK))] = True
    lines_of = _lines_by_person(half.names)
    folder = os.fsencode(half.folder)
    present = {os.fsencode(name) for name in subfolders(half.folder)}
    unlisted, absent = 0, []
    for person in sorted(present | set(lines_of)):
        files = set(os.listdir(os.path.join(folder, person))) if person in present else set()
        lines = lines_of.get(person, np.zeros(0, np.int64))
        unlisted += len(files.difference(half.names[lines].tolist()))
        wanted = half.names[lines[is_wanted[lines]]].tolist()
        absent += [os.path.join(person, name) for name in wanted if name not in files]
    if absent:
        raise FileNotFoundError(
            f"{half.folder}: {len(absent)} of {int(is_wanted.sum())} listed frames are not there, "
            f"the first {os.fsdecode(absent[0])}; unpack the archive again"
        )
    return unlisted


def _lines_by_person(names: np.ndarray) -> dict[bytes, np.ndarray]:
    persons = names.astype("S4")
    order = np.argsort(persons, kind="stable")
    starts = np.flatnonzero(np.append(True, persons[order[1:]] != persons[order[:-1]]))
    return {bytes(persons[lines[0]]): lines for lines in np.split(order, starts[1:])}


def _warnings(info: pathlib.Path, report: dict) -> tuple[str, ...]:
    halves = {"train": "train_name.txt", "gallery": "test_name.txt"}
    return tuple(
        f"{info / file}: {report[part]['names in no tracklet']} names stand in no tracklet, left "
        "out"
        for part, file in halves.items()
        if report[part]["names in no tracklet"]
    )
