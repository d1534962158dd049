"""What a retrieval found, as a file: places of the matches, the nearest items and the rules.

Metrics, pictures of ranked lists and searches read it without features, and everything that
follows from the places of the matches is scored again in a moment (`rescore`).

    np.load("market.npz")["ranks"]                       # without this package, or
    pandas.read_parquet("market.parquet").attrs["rules"]  # a row for each query
"""

import dataclasses
import json
import numbers
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ccafl_jax import files
from ccafl_jax.evaluation.ranking import CMC_RULES, Ranking, Top, metrics_of
from ccafl_jax.options import require, require_choice

FORMAT = 1
KIND = "ccafl_jax.retrieval"
SUFFIXES = (".npz", ".parquet")

_GALLERY_BYTES = 2**25  # readers of Parquet refuse a footer of 100 MB
_NEW_SCORES = "score the saved features again"


@dataclasses.dataclass(frozen=True, eq=False)
class Retrieval:
    """Ranked lists of Q queries; see `Ranking` for what the numbers mean.

    Attributes:
      ranks, tied: int32[M], places of the matches of all queries, and how many items score at
        least as much.
      offsets: int64[Q + 1]; query q has the matches offsets[q] to offsets[q + 1] - 1.
      first: int32[Q], place of the first match in the CMC; 0 where there is none.
      candidates: int64[Q], gallery items that were ranked.
      indices: int32[Q, k], gallery rows of the best items; -1 where there are fewer.
      scores: float32[Q, k], theirs; -inf where absent.
      matches: bool[Q, k], whether they show the query's identity.
      rules: how it was scored, as JSON knows it: metric, ap, no_match, cmc, max_rank and what the
        caller adds (protocol, same_camera, rerank, fingerprint of the features).
      query_names, gallery_names: str[Q] and str[G], paths of the images; or None.
      query_pid, gallery_pid: int32[Q] and int32[G]; or None.
      query_camid, gallery_camid: int32[Q] and int32[G]; or None.

    Raises:
      ValueError: arrays that do not fit each other, or rules that JSON cannot hold.
    """

    ranks: np.ndarray
    tied: np.ndarray
    offsets: np.ndarray
    first: np.ndarray
    candidates: np.ndarray
    indices: np.ndarray
    scores: np.ndarray
    matches: np.ndarray
    rules: dict[str, Any]
    query_names: np.ndarray | None = None
    gallery_names: np.ndarray | None = None
    query_pid: np.ndarray | None = None
    gallery_pid: np.ndarray | None = None
    query_camid: np.ndarray | None = None
    gallery_camid: np.ndarray | None = None

    def __post_init__(self):
        require(isinstance(self.rules, Mapping), f"rules must be a dict, found {self.rules!r}")
        object.__setattr__(self, "rules", _plain(self.rules))
        for name, (dtype, _) in _ARRAYS.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _cast(name, getattr(self, name), dtype))
        _check_shapes(self.arrays())
        _check_places(self)

    def __len__(self) -> int:
        return len(self.first)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, without those that are None."""
        found = {name: getattr(self, name) for name in _ARRAYS}
        return {name: array for name, array in found.items() if array is not None}


_ARRAYS: dict[str, tuple[type, tuple[str, ...]]] = {
    "ranks": (np.int32, ("matches",)),
    "tied": (np.int32, ("matches",)),
    "offsets": (np.int64, ("queries + 1",)),
    "first": (np.int32, ("queries",)),
    "candidates": (np.int64, ("queries",)),
    "indices": (np.int32, ("queries", "k")),
    "scores": (np.float32, ("queries", "k")),
    "matches": (np.bool_, ("queries", "k")),
    "query_names": (np.str_, ("queries",)),
    "query_pid": (np.int32, ("queries",)),
    "query_camid": (np.int32, ("queries",)),
    "gallery_names": (np.str_, ("gallery",)),
    "gallery_pid": (np.int32, ("gallery",)),
    "gallery_camid": (np.int32, ("gallery",)),
}
_QUERY_COLUMNS = {"name": "query_names", "pid": "query_pid", "camid": "query_camid"}
_GALLERY_COLUMNS = {"name": "gallery_names", "pid": "gallery_pid", "camid": "gallery_camid"}


def retrieval(
    ranked: Ranking,
    *,
    query_names: Sequence[str] | None = None,
    gallery_names: Sequence[str] | None = None,
    query_pid: np.ndarray | None = None,
    gallery_pid: np.ndarray | None = None,
    query_camid: np.ndarray | None = None,
    gallery_camid: np.ndarray | None = None,
    rules: Mapping[str, Any] | None = None,
) -> Retrieval:
    """What a ranking found, with names and labels.

    Args:
      ranked: with or without the best items (`top`).
      query_names: str[Q], paths of the images.
      gallery_names: str[G].
      query_pid: int[Q].
      gallery_pid: int[G].
      query_camid: int[Q].
      gallery_camid: int[G].
      rules: what the ranking does not know of itself, such as protocol and re-ranking.

    Raises:
      ValueError: arrays that do not fit, or a rule that contradicts the ranking's own.
    """
    for rule, value in (rules or {}).items():
        own = ranked.rules.get(rule, value)
        require(
            own == value,
            f"rule {rule} is {value!r}, but the ranking was made with {own!r}: drop it",
        )
    queries = len(ranked.first)
    top = ranked.top or Top(
        np.zeros((queries, 0), np.int32),
        np.zeros((queries, 0), np.float32),
        np.zeros((queries, 0), bool),
    )
    return Retrieval(
        ranks=ranked.ranks,
        tied=ranked.tied,
        offsets=ranked.offsets,
        first=ranked.first,
        candidates=ranked.candidates,
        indices=top.indices,
        scores=top.scores,
        matches=top.matches,
        rules={**ranked.rules, **(rules or {})},
        query_names=query_names,
        gallery_names=gallery_names,
        query_pid=query_pid,
        gallery_pid=gallery_pid,
        query_camid=query_camid,
        gallery_camid=gallery_camid,
    )


def save(path: str | os.PathLike, found: Retrieval) -> None:
    """Writes a retrieval, whole or not at all.

    Args:
      path: `.npz` holds the arrays under their names; `.parquet` has a row for each query with
        its lists, and rules and gallery in the metadata of its schema.
      found: what is written.

    Raises:
      ValueError: another suffix, or names or a gallery that Parquet cannot hold.
      ImportError: `.parquet`, and pyarrow is not installed.
    """
    write = {".npz": _write_npz, ".parquet": _write_parquet}[_suffix(path)]
    with files.replacing(path) as partial:
        write(partial, found)


def load(path: str | os.PathLike) -> Retrieval:
    """Reads what `save` wrote; the same bit by bit.

    Raises:
      FileNotFoundError: there is no file.
      ValueError: another suffix, a damaged file, or one that holds something else.
      ImportError: `.parquet`, and pyarrow is not installed.
    """
    read = {".npz": _read_npz, ".parquet": _read_parquet}[_suffix(path)]
    arrays, rules = read(pathlib.Path(path))
    try:
        return Retrieval(**arrays, rules=rules)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); save it again") from None


def rescore(
    found: Retrieval,
    *,
    ap: str | None = None,
    no_match: str | None = None,
    cmc: str | None = None,
    max_rank: int | None = None,
    metric: str | None = None,
    same_camera: str | None = None,
    rerank: Any = None,
) -> Ranking:
    """Figures by other rules, from the places of the matches alone.

    Args:
      found: a retrieval.
      ap: see `ranking.rank_by`; as saved when None, like all that follow.
      no_match: see `ranking.rank_by`.
      cmc: a list of images can be read from any retrieval, one of identities only if it was
        scored so.
      max_rank: length of the CMC.
      metric: decides the places, so only that of the retrieval is taken, to be sure of it.
      same_camera: alike.
      rerank: alike.

    Returns:
      `Ranking`, as scoring the features by these rules would give it.

    Raises:
      ValueError: rules that change the places, or unknown values.
    """
    fixed = {"metric": metric, "same_camera": same_camera, "rerank": rerank}
    for rule, value in fixed.items():
        if value is not None and found.rules.get(rule) != _plain(value):
            was = repr(found.rules[rule]) if rule in found.rules else "not recorded"
            raise ValueError(f"{rule} of these results is {was}, not {value!r}: {_NEW_SCORES}")
    asked = {"ap": ap, "no_match": no_match, "cmc": cmc, "max_rank": max_rank}
    rules = found.rules | {rule: value for rule, value in asked.items() if value is not None}
    missing = [rule for rule in asked if rule not in rules]
    require(not missing, f"these results do not say their {', '.join(missing)}: give them")
    options = {rule: rules[rule] for rule in ("ap", "no_match", "max_rank")}
    length = options["max_rank"]
    require(
        isinstance(length, numbers.Integral) and length >= 1,
        f"max_rank is {length!r}, must be a whole number, 1 or more",
    )
    first = _first(found, rules["cmc"])
    return Ranking(
        **metrics_of(found.ranks, found.tied, found.offsets, first, **options),
        ranks=found.ranks,
        tied=found.tied,
        offsets=found.offsets,
        first=first,
        candidates=found.candidates,
        top=Top(found.indices, found.scores, found.matches) if found.indices.shape[1] else None,
        rules=rules,
    )


def per_query(found: Retrieval) -> dict[str, np.ndarray]:
    """A table with a row for each query, by column.

    Returns:
      `row`, `name`, `pid` and `camid` (as far as known), `ap`, `inp`, `first` (place of the first
      match, 0 for none), `matches` (their number), `candidates` and `valid`.
    """
    scored = rescore(found)
    known = {name: getattr(found, array) for name, array in _QUERY_COLUMNS.items()}
    return {
        "row": np.arange(len(found)),
        **{name: column for name, column in known.items() if column is not None},
        "ap": scored.ap,
        "inp": scored.inp,
        "first": scored.first,
        "matches": np.diff(found.offsets),
        "candidates": found.candidates,
        "valid": scored.valid,
    }


def per_identity(found: Retrieval) -> dict[str, np.ndarray]:
    """A table with a row for each identity that has a counted query, by column.

    Returns:
      `pid` (ascending), `queries` (that count, by the retrieval's `no_match`), and the means
      `mAP`, `rank1` and `mINP` over them. Weighted by `queries` they give the overall means.

    Raises:
      ValueError: the retrieval does not know the identities.
    """
    require(
        found.query_pid is not None,
        "these results hold no query_pid; give it to retrieval(..., query_pid=)",
    )
    scored = rescore(found)
    counted = scored.valid | (scored.rules["no_match"] == "zero")
    pid, row = np.unique(found.query_pid[counted], return_inverse=True)
    queries = np.bincount(row, minlength=len(pid))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(row, weights=values[counted], minlength=len(pid)) / queries

    return {
        "pid": pid,
        "queries": queries,
        "mAP": mean(scored.ap),
        "rank1": mean(scored.first == 1),
        "mINP": mean(scored.inp),
    }


def worst(found: Retrieval, n: int) -> np.ndarray:
    """The n queries with the lowest average precision, int64[n].

    Args:
      found: a retrieval.
      n: at most the number of queries with a match; others have no list to show.

    Returns:
      Rows by ascending average precision; equal ones in their order.

    Raises:
      ValueError: n is below 1 or too large.
    """
    return _by_ap(found, n, lambda ap: ap)[:n]


def best(found: Retrieval, n: int) -> np.ndarray:
    """The n queries with the highest average precision, the best first; see `worst`."""
    return _by_ap(found, n, lambda ap: -ap)[:n]


def median(found: Retrieval, n: int) -> np.ndarray:
    """The n queries around the median average precision, ascending; see `worst`."""
    order = _by_ap(found, n, lambda ap: ap)
    start = (len(order) - n) // 2
    return order[start : start + n]


def _by_ap(found: Retrieval, n: int, key: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    scored = rescore(found)
    rows = np.flatnonzero(scored.valid)
    require(1 <= n <= len(rows), f"n is {n}, must be 1 to {len(rows)} (queries with a match)")
    return rows[np.argsort(key(scored.ap[rows]), kind="stable")]


def _first(found: Retrieval, cmc: str) -> np.ndarray:
    require_choice("cmc", cmc, CMC_RULES)
    was = found.rules.get("cmc", cmc)
    if cmc == was:
        return found.first
    require(
        cmc == "image",
        f"cmc {cmc!r} does not follow from results with {was!r} (image does): {_NEW_SCORES}",
    )
    some = np.diff(found.offsets) > 0
    first = np.zeros(len(found), np.int32)
    first[some] = found.ranks[found.offsets[:-1][some]]
    return first


def _plain(value: Any) -> Any:
    """The value as it comes back from JSON."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"rules must be plain values that JSON can hold ({error})") from None


def _cast(name: str, values: Any, dtype: type) -> np.ndarray:
    array = np.asarray(values)
    if dtype is np.str_:
        require(
            array.dtype.kind == "U" or array.size == 0, f"{name} must be str, found {array.dtype}"
        )
        # The narrowest type, so that equal names make equal arrays.
        width = int(np.strings.str_len(array).max()) if array.size else 0
        return array.astype(f"<U{max(width, 1)}")
    if np.can_cast(array.dtype, dtype, "same_kind") or array.size == 0:
        cast = array.astype(dtype)
        if array.dtype.kind == "f" or np.array_equal(cast, array):
            return cast
    raise ValueError(f"{name} must be {np.dtype(dtype).name}, found {array.dtype} or larger values")


def _check_shapes(arrays: Mapping[str, np.ndarray]) -> None:
    queries = len(arrays["first"]) if arrays["first"].ndim else 0
    sizes: dict[str, int] = {"queries": queries, "queries + 1": queries + 1}
    for name, array in arrays.items():
        axes = _ARRAYS[name][1]
        expected = tuple(
            sizes.setdefault(axis, size)
            for axis, size in zip(axes, array.shape + (0,) * len(axes), strict=False)
        )
        require(
            array.shape == expected,
            f"{name} has shape {array.shape}, expected [{', '.join(axes)}] = {expected}",
        )


def _check_places(found: Retrieval) -> None:
    offsets, ranks = found.offsets, found.ranks
    fits = offsets[0] == 0 and offsets[-1] == len(ranks) and np.all(np.diff(offsets) >= 0)
    require(bool(fits), f"offsets must rise from 0 to the {len(ranks)} matches")
    follows = np.ones(len(ranks), bool)
    follows[offsets[:-1][np.diff(offsets) > 0]] = False  # the first of each query
    before = np.where(follows, np.roll(ranks, 1), 0)
    require(
        bool(np.all(ranks > before) and np.all(found.tied >= ranks)),
        "ranks must count from 1 and rise within each query, none above its tied",
    )
    columns = [found.arrays().get(name) for name in _GALLERY_COLUMNS.values()]
    size = next((len(column) for column in columns if column is not None), np.inf)
    require(
        bool(np.all((found.indices >= -1) & (found.indices < size))),
        f"indices must be rows of the gallery ({size} items), or -1",
    )


def _suffix(path: str | os.PathLike) -> str:
    suffix = pathlib.Path(path).suffix.lower()
    require(suffix in SUFFIXES, f"{path} must end in .npz or .parquet")
    return suffix


def _write_npz(path: pathlib.Path, found: Retrieval) -> None:
    with open(path, "wb") as file:
        np.savez(file, header=np.array(_header(found)), **found.arrays())


def _read_npz(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "header" not in archive:
                raise _foreign(path, "no header")
            header = _checked(path, str(archive["header"]))
            return {name: archive[name] for name in header["arrays"]}, header["rules"]
    except (FileNotFoundError, _Foreign):
        raise
    except Exception as error:  # zipfile and numpy raise many kinds; all mean a damaged file
        raise _damaged(path, error) from None


def _write_parquet(path: pathlib.Path, found: Retrieval) -> None:
    pyarrow, parquet = _pyarrow()
    gallery = {
        name: getattr(found, array).tolist()
        for name, array in _GALLERY_COLUMNS.items()
        if getattr(found, array) is not None
    }
    texts = {KIND: _header(found), f"{KIND}.gallery": json.dumps(gallery, ensure_ascii=False)}
    try:
        size = len(texts[f"{KIND}.gallery"].encode())
        require(
            size <= _GALLERY_BYTES,
            f"a gallery of {size} bytes is too much for .parquet: save the results as .npz",
        )
        table = pyarrow.table(_columns(pyarrow, found))
    except UnicodeEncodeError:
        raise ValueError("names that are not valid Unicode: save the results as .npz") from None
    # Pages have checksums, texts beside them have none.
    texts[f"{KIND}.checksum"] = str(_checksum(*texts.values()))
    # pandas makes it DataFrame.attrs.
    table = table.replace_schema_metadata({"PANDAS_ATTRS": json.dumps({"rules": found.rules})})
    with parquet.ParquetWriter(path, table.schema, write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(texts)


def _columns(pyarrow: Any, found: Retrieval) -> dict[str, Any]:
    """Columns of the Parquet file; `ap` and `top_names` are for its readers, not for `load`."""

    def column(values: np.ndarray) -> Any:
        if values.dtype.kind == "U":
            return pyarrow.array(values.tolist(), pyarrow.string())
        return pyarrow.array(values.reshape(-1))

    def lists(values: np.ndarray, offsets: np.ndarray) -> Any:
        offsets = pyarrow.array(offsets, pyarrow.int32())
        return pyarrow.ListArray.from_arrays(offsets, column(values))

    each = np.arange(len(found) + 1) * found.indices.shape[1]
    columns = {
        name: column(getattr(found, array))
        for name, array in _QUERY_COLUMNS.items()
        if getattr(found, array) is not None
    }
    columns |= {"ap": rescore(found).ap, "first": found.first, "candidates": found.candidates}
    columns |= {name: lists(getattr(found, name), found.offsets) for name in ("ranks", "tied")}
    columns |= {
        f"top_{name}": lists(getattr(found, name), each)
        for name in ("indices", "scores", "matches")
    }
    if found.gallery_names is not None:
        names = np.append(found.gallery_names, "")[found.indices.reshape(-1)]  # -1: the last, ""
        columns["top_names"] = lists(names, each)
    return columns


def _read_parquet(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
    _, parquet = _pyarrow()
    try:
        with (
            open(path, "rb") as file,
            parquet.ParquetFile(file, page_checksum_verification=True) as opened,
        ):
            metadata = opened.metadata.metadata or {}
            texts = {key.decode(): value.decode() for key, value in metadata.items()}
            if KIND not in texts:
                raise _foreign(path, "no such metadata")
            header = _checked(path, texts[KIND])
            gallery = texts[f"{KIND}.gallery"]
            checksum = str(_checksum(texts[KIND], gallery))
            require(checksum == texts[f"{KIND}.checksum"], "changed metadata")
            table = opened.read().combine_chunks()
        arrays = _from_columns(table, json.loads(gallery), header["k"])
        return {name: arrays[name] for name in header["arrays"]}, header["rules"]
    except (FileNotFoundError, _Foreign):
        raise
    except Exception as error:  # pyarrow raises many kinds; all mean a damaged file
        raise _damaged(path, error) from None


def _checksum(*texts: str) -> int:
    return zlib.crc32("\n".join(texts).encode())


def _from_columns(table: Any, gallery: dict[str, list], k: int) -> dict[str, np.ndarray]:
    def values(name: str) -> np.ndarray:
        return table[name].combine_chunks().to_numpy(zero_copy_only=False)

    def flat(name: str) -> np.ndarray:
        return table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)

    lengths = table["ranks"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    shape = (table.num_rows, k)
    arrays = {
        "offsets": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        "first": values("first"),
        "candidates": values("candidates"),
        **{name: flat(name) for name in ("ranks", "tied")},
        **{name: flat(f"top_{name}").reshape(shape) for name in ("indices", "scores", "matches")},
    }
    for name, array in _QUERY_COLUMNS.items():
        if name in table.column_names:
            arrays[array] = np.array(table[name].to_pylist()) if name == "name" else values(name)
    for name, column in gallery.items():
        arrays[_GALLERY_COLUMNS[name]] = np.array(column)
    return arrays


class _Foreign(ValueError):
    pass


def _foreign(path: pathlib.Path, reason: str) -> _Foreign:
    return _Foreign(
        f"{path} holds no retrieval results ({reason}); expected a file of results.save"
    )


def _damaged(path: pathlib.Path, error: Exception) -> ValueError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return ValueError(f"{path} is damaged or no {path.suffix} file ({reason}); save it again")


def _header(found: Retrieval) -> str:
    return json.dumps(
        {
            "kind": KIND,
            "format": FORMAT,
            "rules": found.rules,
            "k": found.indices.shape[1],
            "arrays": list(found.arrays()),
        }
    )


def _checked(path: pathlib.Path, text: str) -> dict:
    try:
        header = json.loads(text)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise _foreign(path, "another header")
    if header.get("format") != FORMAT:
        raise _foreign(path, f"format {header.get('format')}, this version reads {FORMAT}")
    return header


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            "Parquet results need pyarrow: pip install 'ccafl_jax[parquet]'"
        ) from error
    return pyarrow, parquet
