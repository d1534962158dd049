"""What was embedded: features with their labels, kept in a file to be scored again at no cost.

    parts = parts_to_embed(collection)
    features = ...                                   # of the records of the parts, in that order
    save(path, feature_set(parts, features, dataset=collection.name, tables=collection.tables))

The file is a plain .npz, or a .parquet with a row for each image. `load` also takes an .npz that
was made with NumPy alone: `query_f`, `gallery_f`, `query_pid`, `gallery_pid` and, where cameras are
known, `query_camid` and `gallery_camid`.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ccafl_jax.data.layouts import layout_of, select
from ccafl_jax.data.layouts.query_lists import ROW_TABLES
from ccafl_jax.data.names import Names
from ccafl_jax.data.records import (
    INFRARED,
    UNKNOWN_CAMERA,
    VISIBLE,
    Collection,
    Records,
    dense_cameras,
    tracklets,
)
from ccafl_jax.evaluation.relevance import check_labels
from ccafl_jax.files import replacing
from ccafl_jax.neighbors.similarity import squared_lengths
from ccafl_jax.options import nearest_key
from ccafl_jax.scoring.feature_table import read_table, write_table

QUERY, GALLERY, MULTI_QUERY, DISTRACTOR, TEST = range(5)
"""What a row is; the trial decides for TEST."""
PARTS = ("query", "gallery", "multi_query", "distractors", "test")
"""Names of these parts, by number."""

PARQUET = ".parquet"

_FORMAT = "ccafl_jax features 1"
_COLUMNS = ("features", "pid", "camid", "part")
_ARRAYS = ("query_f", "gallery_f", "query_pid", "gallery_pid")
_OPTIONAL = ("query_camid", "gallery_camid", "query_names", "gallery_names", "dataset")
_WHOLE = {"pid": np.int32, "camid": np.int32, "part": np.int8, "modality": np.int8}
_NUMBERING = "number them with np.unique(..., return_inverse=True) over both sides"
_ROW_TABLES = {**ROW_TABLES, "track.values": "gallery"}
_KEPT_TABLES = ("gt.", "track.", "permutations.")


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of a test set, one row per image or tracklet.

    Attributes:
      dataset: name of the data set, a key of `ccafl_jax.data.layouts.LAYOUTS`; may be empty.
      features: float32[N, D], need not be normalised.
      pid: int32[N], raw identities (-1 junk, 0 distractors where the set has them, -2 unlabelled).
      camid: int32[N], cameras counted from 0; -1 where unknown.
      part: int8[N], numbers of PARTS. Rows of a part stand in the order of its records.
      names: str[N], path of the image, or of the first frame; may be empty.
      modality: int8[N], 0 visible and 1 infrared, or None.
      camera_codes: `camera_codes[camid]` is the code in the file names.
      tables: the data set's lists, tracks and draws by name; see its reader.
      meta: what made the features, JSON-able: feature, flip, model, fingerprint, split, ...

    Raises:
      ValueError: columns that do not fit together, or labels that are no whole numbers of 32 bits.
    """

    dataset: str
    features: np.ndarray
    pid: np.ndarray
    camid: np.ndarray
    part: np.ndarray
    names: np.ndarray
    modality: np.ndarray | None = None
    camera_codes: tuple[int, ...] = ()
    tables: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if np.ndim(self.features) != 2 or 0 in np.shape(self.features):
            raise ValueError(f"features have shape {np.shape(self.features)}; expected [n, dim]")
        for name in ("pid", "camid", "part", "names", "modality"):
            column = getattr(self, name)
            if column is not None and np.shape(column) != (len(self.features),):
                raise ValueError(
                    f"{name} has shape {np.shape(column)}; expected ({len(self.features)},), one "
                    "for each row of the features"
                )
        columns = {name: getattr(self, name) for name in _WHOLE}
        columns = {n: _checked_labels(n, c) for n, c in columns.items() if c is not None}
        part, modality = columns["part"], columns.get("modality", np.zeros(1, np.int32))
        if np.min(part) < 0 or np.max(part) >= len(PARTS):
            raise ValueError(f"part holds numbers outside 0 to {len(PARTS) - 1}: {PARTS}")
        strange = np.setdiff1d(modality, (VISIBLE, INFRARED))
        if strange.size:
            raise ValueError(
                f"modality holds {strange[0]}; expected {VISIBLE} (visible) or {INFRARED} "
                "(infrared)"
            )
        for name, column in columns.items():
            object.__setattr__(self, name, column.astype(_WHOLE[name], copy=False))
        highest = int(np.max(self.camid))
        if np.min(self.camid) < UNKNOWN_CAMERA or highest >= len(self.camera_codes):
            raise ValueError(
                f"camid reaches from {np.min(self.camid)} to {highest}; expected -1 to "
                f"{len(self.camera_codes) - 1}, as there are {len(self.camera_codes)} camera_codes"
            )

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, part: int) -> np.ndarray:
        """int64[k], the rows of a part."""
        return np.flatnonzero(self.part == part)

    def take(self, rows: np.ndarray) -> "FeatureSet":
        """The set at `rows` (indices in ascending order, or a mask).

        Tables that hold rows follow: -1 stands for rows that are left out.
        """
        mask = np.zeros(len(self), bool)
        mask[rows] = True
        rows = np.flatnonzero(mask)
        tables = dict(self.tables)
        for table, part in _ROW_TABLES.items():
            if table in tables:
                keep = mask[self.rows(PARTS.index(part))]
                # The entry at the end is where -1 looks.
                number = np.append(np.where(keep, np.cumsum(keep) - 1, -1), -1)
                tables[table] = number[self._table_of_rows(table)]
        columns = {name: getattr(self, name)[rows] for name in (*_COLUMNS, "names")}
        if self.modality is not None:
            columns["modality"] = self.modality[rows]
        return dataclasses.replace(self, tables=tables, **columns)

    def lists(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Lists of rows, kept as two tables.

        Args:
          name: `gt.good`, `gt.junk` or `track`.

        Returns:
          `offsets` (int64[lists + 1]) and `values`, rows of the part that the lists are of, counted
          in that part, or -1: list i is `values[offsets[i] : offsets[i + 1]]`.

        Raises:
          ValueError: a table is missing, or they do not fit each other or this set.
        """
        values = self._table_of_rows(f"{name}.values")
        offsets = self._table(f"{name}.offsets")
        ends = (offsets[0], offsets[-1]) if len(offsets) else (0, -1)
        if ends != (0, len(values)) or np.any(np.diff(offsets) < 0):
            raise ValueError(
                f"{name}.offsets must rise from 0 to the {len(values)} entries of {name}.values: "
                "the tables are damaged or of another data set"
            )
        return offsets, values

    def _table(self, name: str) -> np.ndarray:
        if name not in self.tables:
            raise ValueError(f"there is no table {name}; extract the features again")
        table = np.asarray(self.tables[name])
        if table.ndim != 1 or not (table.dtype.kind in "iu" or table.size == 0):
            raise ValueError(
                f"table {name} is {table.dtype}{list(table.shape)}; expected whole numbers [n]"
            )
        return table.astype(np.int64)

    def _table_of_rows(self, name: str) -> np.ndarray:
        """A table that holds rows of a part, int64[n], checked."""
        table, part = self._table(name), _ROW_TABLES[name]
        size = len(self.rows(PARTS.index(part)))
        wrong = table[(table < -1) | (table >= size)]
        if wrong.size:
            raise ValueError(
                f"table {name} holds row {wrong[0]} of the part {part}, which has {size} here: it "
                "is damaged or of another data set"
            )
        return table

    def list_queries(self) -> np.ndarray:
        """The query of each published list, int64[lists]: its row in that part, or -1.

        Raises:
          ValueError: a query that has two lists or is none of this set.
        """
        rows = self._table_of_rows("gt.query")
        present = rows[rows >= 0]
        if len(np.unique(present)) < len(present):
            raise ValueError("table gt.query names a query twice; expected one list for each")
        return rows

    def check(self, where: str = "features") -> "FeatureSet":
        """Itself, once its features are known to be finite and none of them zero.

        Raises:
          ValueError: they are not; with their number and the first of them.
        """
        squares = squared_lengths(self.features)
        for wrong, what, cure in (
            (~np.isfinite(squares), "NaN or infinite", "extract them again, in float32"),
            (squares == 0, "zero vectors", "drop them or look for the model that made them"),
        ):
            rows = np.flatnonzero(wrong)
            if rows.size:
                raise ValueError(
                    f"{where}: {len(rows)} of {len(self)} features are {what} (first: "
                    f"{self.describe(rows[0])}); {cure}"
                )
        return self

    def describe(self, row: int) -> str:
        """Names a row for messages, counted in its part."""
        part, name = self.part[row], str(self.names[row])
        place = f"{PARTS[part]} row {int(np.sum(self.part[:row] == part))}"
        return f"{place}, {name}" if name else place


def parts_to_embed(
    collection: Collection,
    *,
    distractors: bool = False,
    multi_query: bool = False,
    **selection: Any,
) -> dict[str, Records]:
    """What to embed of a data set, by part.

    Visible-infrared sets give one part `test`, from which trials draw queries and gallery.

    Args:
      collection: of the data set.
      distractors: with its part of distractors.
      multi_query: with its part of further query images.
      **selection: `split` of iLIDS-VID and RegDB, `orientation` of iLIDS-VID.

    Raises:
      ValueError: a part is missing, or there are no queries.
    """
    wanted = {"distractors": distractors, "multi_query": multi_query}
    for part in [part for part, asked in wanted.items() if asked]:
        if not len(collection.parts.get(part, ())):
            raise ValueError(f"{collection.root} has no part {part}; leave it out")
    if "test" in collection.parts:
        if selection:
            raise ValueError(f"{collection.name} takes no {next(iter(selection))} here")
        return {"test": collection.parts["test"]}
    for option in selection:
        if option not in ("split", "orientation"):
            raise ValueError(f"{option} is no choice of what is embedded; leave it out")
    dataset = select(collection, **selection)
    if not (len(dataset.query) and len(dataset.gallery)):
        raise ValueError(
            f"{dataset.root} has no test set: {len(dataset.query)} query and "
            f"{len(dataset.gallery)} gallery images; queries and a gallery are needed"
        )
    if layout_of(collection.name).kind == "visible_infrared":
        return {"test": dataset.query.join(dataset.gallery)}
    parts = {"query": dataset.query, "gallery": dataset.gallery}
    return parts | {part: collection.parts[part] for part in PARTS if wanted.get(part)}


def feature_set(
    parts: Mapping[str, Records],
    features: np.ndarray,
    *,
    dataset: str,
    camera_codes: tuple[int, ...],
    tables: Mapping[str, np.ndarray] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> FeatureSet:
    """Puts features and the labels of what they are of together.

    Args:
      parts: records by name, of PARTS.
      features: float[N, D] of all records in the order of `parts`; of images, or of tracklets
        where the records have them.
      dataset: name of the data set.
      camera_codes: raw camera codes, by camid.
      tables: of the collection; those about the test are kept.
      meta: what made the features.

    Raises:
      ValueError: an unknown part, another number of features than of images or tracklets, NaN
        or zero features.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; did you mean {nearest_key(part, PARTS)}?")
    features = _as_features(features)
    images = sum(map(len, parts.values()))
    unit, starts = "image", {name: np.arange(len(records)) for name, records in parts.items()}
    if len(features) != images and all(r.tracklet is not None for r in parts.values()):
        unit, starts = "tracklet", {name: tracklets(r).start for name, r in parts.items()}
    count = sum(map(len, starts.values()))
    if len(features) != count:
        of = f"{images} images" + (f" and {count} tracklets" if unit == "tracklet" else "")
        raise ValueError(f"{len(features)} features of {of}; expected one for each")
    chosen = [records.take(starts[name]) for name, records in parts.items()]
    tables = {n: t for n, t in (tables or {}).items() if n.startswith(_KEPT_TABLES)}
    return FeatureSet(
        dataset=dataset,
        features=features,
        pid=np.concatenate([records.pid for records in chosen]),
        camid=np.concatenate([records.camid for records in chosen]),
        part=np.repeat([PARTS.index(n) for n in parts], [len(r) for r in chosen]).astype(np.int8),
        names=np.array([name for records in chosen for name in records.path], np.str_),
        modality=_modality(chosen),
        camera_codes=tuple(camera_codes),
        tables=tables if unit == "image" else {},
        meta={**(meta or {}), "unit": unit},
    ).check()


def save(path: str | os.PathLike, features: FeatureSet) -> None:
    """Writes a set of features, whole or not at all.

    Args:
      path: of the .npz or .parquet file; its folder exists.
      features: to write.

    Raises:
      ValueError: features that are not finite, or zero; tables for a .parquet file, which holds
        none.
      ImportError: `.parquet`, and pyarrow is not installed.
    """
    features.check(str(path))
    if pathlib.Path(path).suffix == PARQUET:
        return _save_parquet(path, features)
    names, offsets = Names.pack(str(name) for name in features.names).packed()
    arrays = {name: getattr(features, name) for name in _COLUMNS}
    arrays |= {"format": np.array(_FORMAT), "names": names, "names.offsets": offsets}
    arrays |= {f"table.{name}": table for name, table in features.tables.items()}
    if features.modality is not None:
        arrays["modality"] = features.modality
    arrays["about"] = np.array(json.dumps(_about(features)))
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _about(features: FeatureSet) -> dict[str, Any]:
    return {
        "dataset": features.dataset,
        "camera_codes": list(features.camera_codes),
        "meta": dict(features.meta),
    }


def _save_parquet(path: str | os.PathLike, features: FeatureSet) -> None:
    if features.tables:
        raise ValueError(
            f"{path}: a .parquet file holds no lists of the data set "
            f"({', '.join(sorted(features.tables))}); write a .npz file"
        )
    columns = {"name": features.names, "pid": features.pid, "camid": features.camid}
    columns["part"] = np.array(PARTS)[features.part]
    if features.modality is not None:
        columns["modality"] = features.modality
    with replacing(path) as partial:
        write_table(partial, columns, features.features, _about(features))


def _load_parquet(path: pathlib.Path) -> FeatureSet:
    columns, features, about = read_table(path)
    missing = [name for name in ("name", "pid", "camid", "part") if name not in columns]
    strange = [] if missing else sorted(set(columns["part"].tolist()) - set(PARTS))
    if missing or strange:
        found = f"no column {missing[0]}" if missing else f"the part {strange[0]!r}"
        raise ValueError(f"{path} has {found}; expected a file of scripts/embed.py")
    return FeatureSet(
        dataset=about.get("dataset", ""),
        features=_as_features(features),
        pid=columns["pid"],
        camid=columns["camid"],
        part=np.array([PARTS.index(name) for name in columns["part"].tolist()], np.int8),
        names=columns["name"],
        modality=columns.get("modality"),
        camera_codes=tuple(about.get("camera_codes", ())),
        meta=about.get("meta", {}),
    ).check(str(path))


def load(path: str | os.PathLike) -> FeatureSet:
    """Reads a set of features.

    Args:
      path: of a file by `save` (.npz or .parquet), or of an .npz with `query_f` (float[Q, D]),
        `gallery_f` (float[G, D]), `query_pid` (int[Q]), `gallery_pid` (int[G]) and, optionally,
        `query_camid` (int[Q]), `gallery_camid` (int[G]), any whole numbers from 0 or -1 for
        unknown, `query_names`, `gallery_names` (texts) and `dataset`, the name of a data set.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no such file, or columns do not fit, or features are NaN or zero.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} with features")
    if path.suffix == PARQUET:
        return _load_parquet(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception:  # NumPy raises many kinds; all mean that it cannot be read.
        raise ValueError(
            f"{path} is damaged or no .npz file of numbers and texts (arrays of Python objects are "
            f"not read); expected features written by save, or an .npz with {', '.join(_ARRAYS)}"
        ) from None
    try:
        return (_from_saved if "format" in arrays else _from_arrays)(arrays).check(str(path))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def fingerprint(**what: Any) -> str:
    """A hash of descriptions: of weights, data and preprocessing, to tell features apart.

    Args:
      **what: JSON-able values or arrays; mappings and sequences of these.

    Returns:
      64 hexadecimal digits.
    """
    text = json.dumps(what, sort_keys=True, default=_describe_array)
    return hashlib.sha256(text.encode()).hexdigest()


def _describe_array(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not hasattr(value, "__array__"):
        raise ValueError(f"cannot hash {type(value).__name__}; pass numbers, texts or arrays")
    array = np.ascontiguousarray(value)
    content = hashlib.sha256(array.view(np.uint8).data if array.size else b"").hexdigest()
    return [array.dtype.str, list(array.shape), content]


def _from_saved(arrays: Mapping[str, np.ndarray]) -> FeatureSet:
    found = str(arrays["format"])
    if found != _FORMAT:
        raise ValueError(f"format {found!r}, this version reads {_FORMAT!r}; extract them again")
    wanted = (*_COLUMNS, "names", "names.offsets", "about")
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}; the file is damaged, extract them again")
    offsets = arrays["names.offsets"]
    try:
        about = json.loads(str(arrays["about"]))
        dataset, codes, meta = (about[key] for key in ("dataset", "camera_codes", "meta"))
    except (ValueError, KeyError, TypeError):
        raise ValueError("the description is damaged; extract the features again") from None
    return FeatureSet(
        dataset=dataset,
        features=_as_features(arrays["features"]),
        **{name: arrays[name] for name in ("pid", "camid", "part")},
        names=np.array(list(Names(arrays["names"], offsets[:-1], offsets[1:])), np.str_),
        modality=arrays.get("modality"),
        camera_codes=tuple(codes),
        tables={
            name.removeprefix("table."): table
            for name, table in arrays.items()
            if name.startswith("table.")
        },
        meta=meta,
    )


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> FeatureSet:
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise ValueError(
            f"no {', '.join(missing)} among its arrays ({', '.join(sorted(arrays)) or 'none'}); "
            "expected features written by save, or query_f, gallery_f, query_pid, gallery_pid "
            "and optionally query_camid, gallery_camid"
        )
    for name in arrays:
        if name not in (*_ARRAYS, *_OPTIONAL):
            near = nearest_key(name, (*_ARRAYS, *_OPTIONAL))
            hint = (
                f"did you mean {near}?" if near else f"known are {', '.join(_ARRAYS + _OPTIONAL)}"
            )
            raise ValueError(f"unknown array {name}: {hint}")
    sides = [_as_features(arrays[f"{side}_f"], f"{side}_f") for side in ("query", "gallery")]
    if sides[0].shape[1] != sides[1].shape[1]:
        raise ValueError(
            f"query_f {sides[0].shape} and gallery_f {sides[1].shape}; expected one dim for both"
        )
    cameras = [name for name in ("query_camid", "gallery_camid") if name in arrays]
    if len(cameras) == 1:
        raise ValueError(f"holds {cameras[0]} but not that of the other side; give both or none")
    labels = {}
    for kind in ("pid", "camid"):
        for side, features in zip(("query", "gallery"), sides, strict=True):
            name = f"{side}_{kind}"
            unknown = np.full(len(features), UNKNOWN_CAMERA)
            labels[name] = _whole(arrays.get(name, unknown), len(features), name)
    (query_camid, gallery_camid), codes = dense_cameras(
        labels["query_camid"], labels["gallery_camid"]
    )
    lengths = [len(features) for features in sides]
    names = []
    for side, length in zip(("query_names", "gallery_names"), lengths, strict=True):
        names.append(np.asarray(arrays.get(side, np.full(length, ""))))
        if names[-1].shape != (length,) or names[-1].dtype.kind != "U":
            raise ValueError(
                f"{side} is {names[-1].dtype}{list(names[-1].shape)}; expected {length} texts"
            )
    return FeatureSet(
        dataset=str(arrays.get("dataset", "")),
        features=np.concatenate(sides),
        pid=np.concatenate([labels["query_pid"], labels["gallery_pid"]]).astype(np.int32),
        camid=np.concatenate([query_camid, gallery_camid]),
        part=np.repeat([QUERY, GALLERY], lengths).astype(np.int8),
        names=np.concatenate(names),
        camera_codes=codes,
        meta={},
    )


def _checked_labels(name: str, column: np.ndarray) -> np.ndarray:
    """int32[n], of whole numbers kept as such."""
    column = np.asarray(column)
    if column.dtype.kind not in "iu":
        raise ValueError(
            f"{name} is of type {column.dtype} (first: {column[0]}); expected whole numbers"
        )
    return check_labels(name, column)


def _whole(column: np.ndarray, count: int, name: str) -> np.ndarray:
    """A column of labels as int64, checked."""
    if column.shape != (count,):
        raise ValueError(f"{name} has shape {column.shape}; expected ({count},), one per feature")
    if column.dtype.kind not in "iuf":
        raise ValueError(f"{name} is of type {column.dtype}; expected whole numbers: {_NUMBERING}")
    limit = np.iinfo(np.int32).max
    with np.errstate(invalid="ignore"):
        whole = column == np.floor(column)
        bad = np.flatnonzero(~whole | (np.abs(column) > limit))
    if bad.size:
        raise ValueError(
            f"{name} holds {column[bad[0]]} (row {bad[0]}); expected 32-bit integers: {_NUMBERING}"
        )
    column = column.astype(np.int64)
    lowest = UNKNOWN_CAMERA if name.endswith("camid") else -limit
    if column.size and column.min() < lowest:
        raise ValueError(f"{name} holds {column.min()}; expected 0 or more, or -1 for unknown")
    return column


def _as_features(features: np.ndarray, name: str = "features") -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind not in "fiu":
        raise ValueError(
            f"{name}: found {features.dtype}{list(features.shape)}; expected numbers [n, dim], n "
            "and dim 1 or more"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        return np.ascontiguousarray(features, np.float32)


def _modality(chosen: list[Records]) -> np.ndarray | None:
    if all(records.modality is None for records in chosen):
        return None
    return np.concatenate(
        [np.zeros(len(r), np.int8) if r.modality is None else r.modality for r in chosen]
    )
