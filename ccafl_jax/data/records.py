"""What a data set is, once read: arrays of images, identities and cameras.

A reader (the modules of layouts/) turns a folder into a `Collection`, a protocol picks the training
set, queries and gallery from it as a `ReIDDataset`; everything behind them knows only these arrays.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ccafl_jax.data.labels import intra_camera_labels
from ccafl_jax.data.names import Names
from ccafl_jax.data.sources import FolderSource
from ccafl_jax.ragged import ranges

JUNK = -1
"""Identity of images that show nobody in particular: left out of every ranking."""
UNLABELLED = -2
"""Identity of images whose person is not known."""
UNKNOWN_CAMERA = -1
VISIBLE, INFRARED = 0, 1
BROKEN = "broken, left out"
"""What a report calls images that could not be read."""


class ImageSource(Protocol):
    """Where encoded images lie: a folder, or a prepared data set."""

    @property
    def names(self) -> Names:
        """Paths below the root of the data set, "/" between folders, one per image."""

    def read(self, rows: np.ndarray) -> list[bytes]:
        """The encoded images at int[k] rows."""

    def locate(self, row: int) -> str:
        """Where a user finds the image, for messages."""

    def fingerprint(self, rows: np.ndarray) -> str:
        """Changes whenever the names or the bytes of the images at int[k] rows do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Images as a struct of arrays; row i is image i.

    Attributes:
      source: holds the encoded images.
      index: int64[n], rows of `source`.
      pid: int32[n], raw identities of the data set (-1 junk and 0 distractors in a Market gallery,
        -2 unlabelled).
      camid: int32[n], cameras counted from 0; -1 where the camera is not known.
      tracklet: int32[n], number of the tracklet in its part, the frames of each side by side and
        in the order of time; None for sets of single images. Tables with an entry for each tracklet
        go by that number.
      frame: int32[n], number of the frame as the data set counts; or None.
      modality: int8[n], VISIBLE or INFRARED; None where all are visible.
    """

    source: ImageSource
    index: np.ndarray
    pid: np.ndarray
    camid: np.ndarray
    tracklet: np.ndarray | None = None
    frame: np.ndarray | None = None
    modality: np.ndarray | None = None

    def __post_init__(self):
        for name, column in self.columns().items():
            if column.shape != self.index.shape or column.ndim != 1:
                raise ValueError(
                    f"{name} {column.shape} and index {self.index.shape} must be one-dimensional "
                    "and equally long"
                )

    def __len__(self) -> int:
        return len(self.index)

    @property
    def path(self) -> Names:
        """Paths below the root of the data set."""
        return self.source.names[self.index]

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays that label the images, without those that are None."""
        names = ("pid", "camid", "tracklet", "frame", "modality")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def take(self, rows: np.ndarray) -> "Records":
        """The records at `rows` (indices or a boolean mask); tracklets keep their numbers."""
        taken = {name: column[rows] for name, column in self.columns().items()}
        return dataclasses.replace(self, index=self.index[rows], **taken)

    def join(self, other: "Records") -> "Records":
        """These records followed by others of the same data set, with the columns of both.

        Tracklets of the others are numbered on; those without a modality are visible.

        Raises:
          ValueError: the others are of another data set.
        """
        if self.source is not other.source:
            raise ValueError("only records of one data set can be joined")
        mine, theirs = self.columns(), other.columns()
        if "modality" in mine or "modality" in theirs:
            for columns, records in ((mine, self), (theirs, other)):
                columns.setdefault("modality", np.full(len(records), VISIBLE, np.int8))
        if "tracklet" in mine and "tracklet" in theirs and len(self):
            theirs["tracklet"] = theirs["tracklet"] + self.tracklet.max() + 1
        both = {name: np.concatenate([mine[name], theirs[name]]) for name in mine if name in theirs}
        return Records(self.source, np.concatenate([self.index, other.index]), **both)

    def read(self, rows: np.ndarray) -> list[bytes]:
        """The encoded images at int[k] rows."""
        return self.source.read(self.index[rows])

    def locate(self, row: int) -> str:
        """Where a user finds an image, for messages."""
        return self.source.locate(int(self.index[row]))


@dataclasses.dataclass(frozen=True)
class Tracklets:
    """The tracklets of a part: frames `start[t]` to `start[t] + count[t] - 1` of its records.

    Attributes:
      number: int32[t], as in `Records.tracklet`.
      start, count: int64[t].
      pid, camid: int32[t].
    """

    number: np.ndarray
    start: np.ndarray
    count: np.ndarray
    pid: np.ndarray
    camid: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


def tracklets(records: Records) -> Tracklets:
    """The tracklet table of records whose frames lie side by side.

    Raises:
      ValueError: the records have no tracklets, or frames of one lie apart or differ in identity
        or camera.
    """
    number = records.tracklet
    if number is None:
        raise ValueError("these records are single images, without tracklets")
    new = np.ones(len(number), bool)
    new[1:] = number[1:] != number[:-1]
    start = np.flatnonzero(new)
    if len(np.unique(number[start])) != len(start):
        raise ValueError("the frames of a tracklet must lie side by side")
    belongs = np.cumsum(new) - 1
    for name in ("pid", "camid"):
        column = getattr(records, name)
        mixed = np.flatnonzero(column != column[start][belongs])
        if mixed.size:
            raise ValueError(
                f"{records.locate(mixed[0])}: its {name} differs from that of the first frame of "
                "its tracklet"
            )
    count = np.diff(np.append(start, len(number)))
    return Tracklets(number[start], start, count, records.pid[start], records.camid[start])


def take_tracklets(records: Records, table: Tracklets, chosen: np.ndarray) -> Records:
    """The frames of the tracklets `chosen` (indices or a mask of the table), in that order."""
    return records.take(ranges(table.start[chosen], table.count[chosen]))


@dataclasses.dataclass
class RawPart:
    """What a reader found for one part, in the codes of the data set.

    Attributes:
      path: n paths below the root, "/" between folders.
      pid: int[n].
      camera: int[n], raw camera codes; -1 where unknown.
      tracklet, frame, modality: as in `Records`, or None.
    """

    path: Sequence[str] | Names
    pid: Sequence[int] | np.ndarray
    camera: Sequence[int] | np.ndarray
    tracklet: Sequence[int] | np.ndarray | None = None
    frame: Sequence[int] | np.ndarray | None = None
    modality: Sequence[int] | np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Collection:
    """All that a data set holds, before a protocol picks from it.

    Attributes:
      name: of the data set, as in `ccafl_jax.data.layouts.LAYOUTS`.
      root: the folder it was read from.
      parts: records by name: train, query and gallery, or what the set has in their place; others
        (`distractors`, `multi_query`) beside them.
      tables: further arrays by name, such as the official splits and draws.
      row_tables: by name of a table, the part whose rows it holds (-1: none).
      camera_codes: raw camera codes; `camera_codes[camid]` is the code in the file names.
      report: by part, counts of the files that were read, dropped and ignored; and "warnings".
    """

    name: str
    root: str
    parts: Mapping[str, Records]
    tables: Mapping[str, np.ndarray]
    camera_codes: tuple[int, ...]
    report: Mapping[str, Any]
    row_tables: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def drop(self, part: str, rows: np.ndarray, *, reason: str) -> "Collection":
        """Without some images of a part.

        Args:
          part: its name.
          rows: int[k].
          reason: under which the report counts them.

        Returns:
          A collection whose tables of rows are those of the images that are left.
        """
        keep = np.ones(len(self.parts[part]), bool)
        keep[rows] = False
        # The entry at the end is where -1 looks.
        number = np.append(np.where(keep, np.cumsum(keep) - 1, -1), -1)
        concerned = [table for table, of in self.row_tables.items() if of == part]
        tables = {table: number[self.tables[table]] for table in concerned}
        counts = dict(self.report.get(part, {}))
        counts["read"] = int(keep.sum())
        counts[reason] = counts.get(reason, 0) + len(keep) - counts["read"]
        return dataclasses.replace(
            self,
            parts={**self.parts, part: self.parts[part].take(keep)},
            tables={**self.tables, **tables},
            report={**self.report, part: counts},
        )

    def warn(self, text: str) -> "Collection":
        """The same with a further warning."""
        warnings = (*self.report.get("warnings", ()), text)
        return dataclasses.replace(self, report={**self.report, "warnings": warnings})


def collect(
    name: str,
    root: str | os.PathLike,
    parts: Mapping[str, RawPart],
    *,
    tables: Mapping[str, np.ndarray] | None = None,
    row_tables: Mapping[str, str] | None = None,
    report: Mapping[str, Any] | None = None,
    source: ImageSource | None = None,
) -> Collection:
    """Builds a collection from what a reader found: numbers the cameras, checks and packs.

    Args:
      name: of the data set.
      root: folder below which the paths lie.
      parts: what was found.
      tables: further arrays.
      row_tables: by name of a table, the part whose rows it holds; names that `tables` lacks do
        not matter.
      report: counts and warnings.
      source: of the images of all parts, one after the other; by default the files below `root`.

    Raises:
      ValueError: no image at all, or a path that stands twice in a part.
    """
    if not any(len(part.path) for part in parts.values()):
        raise ValueError(f"{root}: no image found")
    for part, found in parts.items():
        _check_unique(found.path, f"{root}: {part}")
    camids, codes = dense_cameras(*(np.asarray(part.camera, np.int64) for part in parts.values()))
    if source is None:
        paths = Names.join([Names.pack(part.path) for part in parts.values()])
        source = FolderSource(root, paths)
    records, first = {}, 0
    for (part, found), camid in zip(parts.items(), camids, strict=True):
        records[part] = Records(
            source=source,
            index=np.arange(first, first + len(found.path), dtype=np.int64),
            pid=np.asarray(found.pid, np.int32),
            camid=camid,
            tracklet=_column(found.tracklet, np.int32),
            frame=_column(found.frame, np.int32),
            modality=_column(found.modality, np.int8),
        )
        first += len(found.path)
    return Collection(
        name=name,
        root=str(root),
        parts=records,
        tables=dict(tables or {}),
        row_tables={t: part for t, part in (row_tables or {}).items() if t in (tables or {})},
        camera_codes=codes,
        report={"warnings": (), **(report or {})},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ReIDDataset:
    """Training set, queries and gallery of one protocol.

    Attributes:
      name: of the data set.
      root: the folder that holds it.
      train, query, gallery: the splits.
      camera_codes: raw camera codes; `camera_codes[camid]` is the code in the file name.
      report: counts by split of files read, dropped, unmatched and ignored, and "warnings".
    """

    name: str
    root: str
    train: Records
    query: Records
    gallery: Records
    camera_codes: tuple[int, ...]
    report: Mapping[str, Any]

    def summary(self) -> str:
        """A text table of images, identities and cameras per split, and the number of classes."""
        lines = [f"{self.name}: {self.root}", _table_row("split", "images", "ids", "cameras")]
        for split in ("train", "query", "gallery"):
            records = getattr(self, split)
            lines.append(
                _table_row(split, len(records), _count_ids(records), _count_cameras(records))
            )
        labels = intra_camera_labels(self.train.pid, self.train.camid)
        per_camera = np.bincount(labels.cam_of, minlength=len(self.camera_codes))
        lines.append(
            f"training classes (camera, id): {labels.num_classes} = "
            + " + ".join(
                f"{count} (c{code})"
                for code, count in zip(self.camera_codes, per_camera, strict=True)
            )
        )
        distractors = ~np.isin(self.gallery.pid, self.query.pid) & (self.gallery.pid != JUNK)
        lines.append(
            f"gallery: {int(np.sum(self.gallery.pid == JUNK))} junk images (id -1, left out of "
            f"every ranking), {int(np.sum(distractors))} images of ids without a query (kept)"
        )
        for split in ("train", "query", "gallery"):
            counts = self.report.get(split, {})
            left_out = {key: n for key, n in counts.items() if key != "read" and n}
            if left_out:
                lines.append(f"{split}: " + ", ".join(f"{n} {key}" for key, n in left_out.items()))
        return "\n".join(lines)


def dense_cameras(*codes: np.ndarray) -> tuple[tuple[np.ndarray, ...], tuple[int, ...]]:
    """Numbers cameras from 0 in the order of their raw codes.

    Args:
      *codes: int[n_i], raw camera codes, one array per split; -1 (unknown) stays.

    Returns:
      The splits' camids (int32[n_i] each) and the sorted raw codes.
    """
    unique = np.unique(np.concatenate([np.unique(code) for code in codes]))
    unique = unique[unique != UNKNOWN_CAMERA]
    camids = tuple(
        np.where(code == UNKNOWN_CAMERA, UNKNOWN_CAMERA, np.searchsorted(unique, code)).astype(
            np.int32
        )
        for code in codes
    )
    return camids, tuple(int(code) for code in unique)


def _check_unique(paths: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise ValueError(f"{where}: {path} is listed twice; remove one of the entries")
        seen.add(path)


def _column(values, dtype) -> np.ndarray | None:
    return None if values is None else np.asarray(values, dtype)


def _count_ids(records: Records) -> int:
    return int(np.sum(np.unique(records.pid) >= 0))


def _count_cameras(records: Records) -> int:
    return int(np.sum(np.unique(records.camid) != UNKNOWN_CAMERA))


def _table_row(*cells: Any) -> str:
    return "".join(f"{cell:>10}" for cell in cells)
