"""The columns of a prepared data set: labels and names as arrays that are mapped into memory.

    columns/meta.json            what the set is, its fingerprint, counts and report
    columns/train.pid.npy ...    one array per part and column
    columns/names.npy            UTF-8 bytes of the paths of all parts, one after the other
    columns/offsets.npy          where each path begins
    columns/table.NAME.npy       further arrays, such as official splits

Opening a set reads meta.json and maps the arrays; ten million images take no Python object each.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ccafl_jax.data.names import Names
from ccafl_jax.data.records import Collection

FOLDER = "columns"
FORMAT = 1
_META = "meta.json"
_KEYS = frozenset(
    "name fingerprint parts tables row_tables camera_codes report skipped differences".split()
)


def save_columns(
    folder: pathlib.Path, collection: Collection, *, digests: Mapping[str, str], extra: dict
) -> str:
    """Writes the columns of a collection.

    Args:
      folder: of the prepared set; gets the folder `columns`.
      collection: what is prepared.
      digests: by part, the hash of its encoded images in order.
      extra: further JSON values for meta.json.

    Returns:
      The fingerprint.
    """
    target = folder / FOLDER
    target.mkdir()
    for name, array in _arrays(collection).items():
        np.save(target / f"{name}.npy", array, allow_pickle=False)
    meta = {
        "format": FORMAT,
        "name": collection.name,
        "fingerprint": fingerprint(collection, digests),
        "parts": {
            part: {
                "count": len(records),
                "columns": sorted(records.columns()),
                "digest": digests[part],
            }
            for part, records in collection.parts.items()
        },
        **_roles(collection),
        "report": dict(collection.report),
        **extra,
    }
    (target / _META).write_text(json.dumps(meta, indent=1) + "\n")
    return meta["fingerprint"]


def fingerprint(collection: Collection, digests: Mapping[str, str]) -> str:
    """A hash of the images, names, labels and tables of a collection.

    Args:
      collection: raw or prepared.
      digests: by part, the hash of its encoded images in order.
    """
    about = [FORMAT, collection.name, list(collection.parts), _roles(collection)]
    digest = hashlib.sha256(json.dumps([*about, dict(digests)], sort_keys=True).encode())
    for name, array in _arrays(collection).items():
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(memoryview(array).cast("B") if array.size else b"")
    return digest.hexdigest()


def read_meta(folder: pathlib.Path) -> dict[str, Any]:
    """The content of meta.json.

    Raises:
      ValueError: it is damaged, or of another format.
    """
    path = folder / FOLDER / _META
    try:
        meta = json.loads(path.read_text())
        found = meta["format"]
        if found == FORMAT and not _KEYS <= meta.keys():
            raise KeyError("incomplete")
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged; prepare the data set again") from None
    if found != FORMAT:
        raise ValueError(
            f"{path} is of format {found}, this version reads format {FORMAT}; prepare the data "
            "set again"
        )
    return meta


def load_columns(folder: pathlib.Path, part: str, columns: list[str]) -> dict[str, np.ndarray]:
    """Columns of a part, mapped into memory."""
    return {column: _load(folder, f"{part}.{column}") for column in columns}


def load_names(folder: pathlib.Path) -> Names:
    """Paths of all parts, one after the other, mapped into memory."""
    offsets = _load(folder, "offsets")
    return Names(_load(folder, "names"), offsets[:-1], offsets[1:])


def load_table(folder: pathlib.Path, name: str) -> np.ndarray:
    """A table, mapped into memory."""
    return _load(folder, f"table.{name}")


def has_columns(folder: pathlib.Path) -> bool:
    """Whether a folder is a prepared set."""
    return (folder / FOLDER / _META).is_file()


def _arrays(collection: Collection) -> dict[str, np.ndarray]:
    """All arrays of a collection by the name of their file."""
    names, offsets = Names.join([r.path for r in collection.parts.values()]).packed()
    arrays = {"names": names, "offsets": offsets}
    for part, records in collection.parts.items():
        arrays |= {f"{part}.{name}": column for name, column in records.columns().items()}
    arrays |= {f"table.{name}": table for name, table in sorted(collection.tables.items())}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _roles(collection: Collection) -> dict[str, Any]:
    """What the arrays mean, beside their names."""
    return {
        "tables": sorted(collection.tables),
        "row_tables": dict(collection.row_tables),
        "camera_codes": list(collection.camera_codes),
    }


def _load(folder: pathlib.Path, name: str) -> np.ndarray:
    path = folder / FOLDER / f"{name}.npy"
    try:
        if path.stat().st_size <= 128:  # nothing behind the header: an empty file maps nowhere
            return np.load(path, allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; prepare the data set again") from None
    except Exception:  # numpy raises many kinds; all mean a damaged file
        raise ValueError(f"{path} is damaged; prepare the data set again") from None
