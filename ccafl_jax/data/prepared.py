"""Reading prepared data sets: TFDS datasets in ArrayRecord files, with columns beside them.

    DIR/NAME/VERSION/dataset_info.json, features.json      what tensorflow-datasets reads
    DIR/NAME/VERSION/NAME-train.array_record-00000 ...     the records
    DIR/NAME/VERSION/columns/                              see columns.py

The records are plain TFDS examples (`tfds.builder_from_directory(...).as_data_source("train")`
reads them); this module takes the encoded image from a record and everything else from columns.
Records are written by data_prep/prepare.py.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ccafl_jax.data.columns import has_columns, load_columns, load_names, load_table, read_meta
from ccafl_jax.data.layouts.find import subfolders
from ccafl_jax.data.names import Names
from ccafl_jax.data.records import Collection, Records

T = TypeVar("T")


class ArrayRecordSource:
    """Encoded images in ArrayRecord files: those of all parts, one after the other."""

    def __init__(self, files: list[pathlib.Path], names: Names, *, fingerprint: str):
        """Args:
        files: shards, in order.
        names: paths of the images as they were before.
        fingerprint: of the data set.
        """
        self._files, self._names, self._fingerprint = files, names, fingerprint
        self._reader: _Reader | None = None

    @property
    def names(self) -> Names:
        """Paths of the images as they were before."""
        return self._names

    def read(self, rows: np.ndarray) -> list[bytes]:
        """The encoded images.

        Raises:
          ValueError: the files are damaged.
        """
        return self._take(rows, _image)

    def examples(self, rows: np.ndarray) -> list[tuple[bytes, dict[str, int | bytes]]]:
        """The encoded images with the path and the labels that their records hold.

        Raises:
          ValueError: the files are damaged.
        """
        return self._take(rows, _contents)

    def locate(self, row: int) -> str:
        """Folder, name and number of a record."""
        return f"{self._files[0].parent}: {self._names[row]} (record {row})"

    def fingerprint(self, rows: np.ndarray) -> str:
        """Of the data set, as stored beside the records, and the rows."""
        rows = np.ascontiguousarray(rows, np.int64)
        return hashlib.sha256(self._fingerprint.encode() + rows.tobytes()).hexdigest()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_reader": None}

    def _take(self, rows: np.ndarray, part: Callable[[Any], T]) -> list[T]:
        reader = self._open()
        try:
            found = reader.records.__getitems__([int(row) for row in rows])
            return [part(reader.parse(record).features.feature) for record in found]
        except (RuntimeError, IndexError, reader.parse_error) as error:
            raise ValueError(_damaged(self._files, error)) from error

    def _open(self) -> "_Reader":
        with _OPENING:
            if self._reader is None:
                missing = [file for file in self._files if not file.is_file()]
                if missing:
                    raise FileNotFoundError(f"{missing[0]} is missing; prepare the data set again")
                self._reader = _reader(self._files)
            return self._reader


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Open files and what turns a record into a `tf.train.Example`."""

    records: Any
    parse: Callable[[bytes], Any]
    parse_error: type[Exception]


def _image(features: Any) -> bytes:
    return features["image"].bytes_list.value[0]


def _contents(features: Any) -> tuple[bytes, dict[str, int | bytes]]:
    labels: dict[str, int | bytes] = {}
    for name, feature in features.items():
        if name != "image":
            values = feature.bytes_list.value or feature.int64_list.value
            labels[name] = values[0]
    return _image(features), labels


_OPENING = threading.Lock()
"""TFDS loads its modules on first use, and two threads that do so at once wait for each other."""


def _reader(files: list[pathlib.Path]) -> _Reader:
    """Opens record files.

    Raises:
      ValueError: they are damaged.
    """
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2
    except ImportError as error:
        raise ImportError(
            "prepared data sets need array_record and tensorflow-datasets: "
            "pip install array_record tensorflow-datasets"
        ) from error
    try:
        records = ArrayRecordDataSource([str(file) for file in files])
    except RuntimeError as error:
        raise ValueError(_damaged(files, error)) from error
    return _Reader(records, tf_example_pb2.Example.FromString, DecodeError)


def _damaged(files: list[pathlib.Path], error: Exception) -> str:
    reason = str(error).splitlines()[0].split(";")[0] if str(error) else type(error).__name__
    return f"the records in {files[0].parent} are damaged ({reason}); prepare the data set again"


def find_prepared(root: str | os.PathLike, name: str = "") -> pathlib.Path | None:
    """The newest prepared set at ROOT, ROOT/VERSION, ROOT/NAME or ROOT/NAME/VERSION, or None.

    Args:
      root: where to look.
      name: of the data set; when it is empty, ROOT must hold one set only.

    Raises:
      ValueError: there are several.
    """
    root = pathlib.Path(root).expanduser().absolute()
    if found := _newest(root):
        return found
    # Looking into named folders only spares a walk through a raw folder of many images.
    names = _names_of(name) if name else subfolders(root)
    below = [found for folder in names if (found := _newest(root / folder))]
    if len(below) > 1:
        raise ValueError(
            f"{root} holds several prepared data sets, name one of them: "
            + ", ".join(folder.parent.name for folder in below)
        )
    return below[0] if below else None


def open_prepared(root: str | os.PathLike, name: str = "") -> Collection:
    """Opens a prepared set; only its columns are read.

    Args:
      root: the folder, or one or two levels above it.
      name: the data set expected there; any when empty.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is another data set, or damaged.
    """
    folder = find_prepared(root, name)
    if folder is None:
        raise FileNotFoundError(
            f"{root} holds no prepared data set; make one with scripts/prepare_data.py --dataset "
            f"{name or 'NAME'} --raw DIR --out {root}"
        )
    meta = read_meta(folder)
    if name and meta["name"] not in _names_of(name):
        raise ValueError(f"{folder} holds {meta['name']}, not {name}; name the right one")
    shards = _shards(folder, meta)
    source = ArrayRecordSource(shards, load_names(folder), fingerprint=meta["fingerprint"])
    parts, first = {}, 0
    for part, about in meta["parts"].items():
        columns = load_columns(folder, part, about["columns"])
        index = np.arange(first, first + about["count"])
        parts[part] = Records(source=source, index=index, **columns)
        first += about["count"]
    return Collection(
        name=meta["name"],
        root=str(folder),
        parts=parts,
        tables={table: load_table(folder, table) for table in meta["tables"]},
        row_tables=meta["row_tables"],
        camera_codes=tuple(meta["camera_codes"]),
        report={**meta["report"], "warnings": _warnings(meta)},
    )


def split_of(part: str) -> str:
    """The TFDS split that holds a part; TFDS keeps the name `all` for the union of its splits."""
    return "images" if part == "all" else part


def _warnings(meta: dict) -> tuple[str, ...]:
    """Those of the raw folder, and what a set that was accepted as it is lacks."""
    warnings = list(meta["report"].get("warnings", ()))
    if meta["skipped"]:
        first = meta["skipped"][0]
        warnings.append(
            f"{len(meta['skipped'])} broken images were left out when it was prepared, the first "
            f"{first['path']}"
        )
    if meta["differences"]:
        warnings.append(
            f"it is not the published set: {'; '.join(meta['differences'][:3])}"
            + (f" and {len(meta['differences']) - 3} more" if len(meta["differences"]) > 3 else "")
        )
    return tuple(warnings)


def _shards(folder: pathlib.Path, meta: dict) -> list[pathlib.Path]:
    """All record files, from TFDS's own description, which must agree with the columns."""
    again = "prepare the data set again"
    if not (folder / "features.json").is_file():
        raise ValueError(f"{folder} lacks features.json; {again}")
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        stamp = json.loads((folder / "metadata.json").read_text())["fingerprint"]
        splits = {split["name"]: split for split in info.get("splits", [])}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder}: the description of its records is damaged; {again}") from None
    if stamp != meta["fingerprint"]:
        raise ValueError(f"{folder}: records and columns are of different data sets; {again}")
    files = []
    for part, about in meta["parts"].items():
        split = split_of(part)
        lengths = [int(n) for n in splits.get(split, {}).get("shardLengths", [])]
        if sum(lengths) != about["count"]:
            raise ValueError(
                f"{folder}: {part} has {sum(lengths)} records and {about['count']} rows; {again}"
            )
        prefix = f"{info['name']}-{split}.array_record"
        files += [folder / f"{prefix}-{shard:05d}" for shard in range(len(lengths))]
    return files


def _names_of(name: str) -> tuple[str, ...]:
    """What a data set may be called here; MSMT17 asked for without a version takes either."""
    return ("msmt17_v1", "msmt17_v2") if name == "msmt17" else (name,)


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder itself if it is a prepared set, else the highest version in it."""
    if has_columns(folder):
        return folder
    names = [n for n in subfolders(folder) if n[:1].isdigit() and has_columns(folder / n)]
    return folder / max(names, key=_version) if names else None


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(word) if word.isdigit() else -1 for word in name.split("."))
