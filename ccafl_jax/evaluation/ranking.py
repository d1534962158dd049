"""Retrieval metrics: exact mAP, CMC and mINP, in query blocks, without sorting the gallery.

All three metrics follow from the ranks of the positives. The rank of a positive is one plus the
number of gallery items before it, so that counting comparisons replaces the sort: one matrix
product and one pass over the block per positive, at a memory of block x gallery.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax import numerics

JUNK = -1
"""Identity of gallery images that no ranking contains (Market-1501)."""

_GALLERY_MULTIPLE = 256
_BLOCK_ELEMENTS = 2**23
_LEAST_CAPACITY = 16
_METRICS = ("cosine", "euclidean")
_NO_MATCH = ("skip", "zero")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Metrics of one evaluation; all shares in 0..1.

    Attributes:
      mAP, mINP: means over the counted queries; 0 if there are none.
      cmc: float64[max_rank], share of the counted queries with a match among the first k + 1.
      ap: float64[Q], average precision by query; 0 where not valid.
      valid: bool[Q], the query has a match in the gallery.
      ranks: int32[Q, P], ranks of the matches, counted from 1 and ascending; 0 is padding.
      queries: number of queries the means run over.
      skipped: number of queries left out of the means.
    """

    mAP: float
    mINP: float
    cmc: np.ndarray
    ap: np.ndarray
    valid: np.ndarray
    ranks: np.ndarray
    queries: int
    skipped: int

    def summary(self) -> dict[str, float | int]:
        """The numbers that papers report, as Python numbers."""
        at = {k: float(self.cmc[min(k, len(self.cmc)) - 1]) for k in (1, 5, 10)}
        return {
            "mAP": self.mAP,
            "rank1": at[1],
            "rank5": at[5],
            "rank10": at[10],
            "mINP": self.mINP,
            "queries": self.queries,
            "skipped": self.skipped,
        }


def rank(
    query_f: jax.Array,
    gallery_f: jax.Array,
    query_pid: np.ndarray,
    gallery_pid: np.ndarray,
    query_camid: np.ndarray,
    gallery_camid: np.ndarray,
    *,
    metric: str = "cosine",
    query_block: int | None = None,
    no_match: str = "skip",
    max_rank: int = 50,
) -> Ranking:
    """Ranks the gallery for every query and scores the result.

    Gallery images with id -1, and for each query those of its identity and its camera, are left
    out. Equal scores rank in the order of the gallery.

    Args:
      query_f: float[Q, D].
      gallery_f: float[G, D].
      query_pid: int[Q].
      gallery_pid: int[G].
      query_camid: int[Q].
      gallery_camid: int[G].
      metric: "cosine" or "euclidean"; features need not be normalised.
      query_block: queries per step, a bound on memory (block x gallery scores); chosen from the
        size of the gallery when None.
      no_match: "skip" leaves queries without a match out of the means; "zero" counts them as
        AP 0, CMC 0 and mINP 0, as the published evaluator does.
      max_rank: length of the CMC.

    Returns:
      `Ranking`.

    Raises:
      ValueError: shapes that do not fit, an empty side, features that are not finite, an unknown
        option.

    Source: Market-1501 protocol; mINP of AGW (arXiv 2001.04193).
    """
    _check_choice("metric", metric, _METRICS)
    _check_features(query_f, gallery_f)
    labels = _Labels.build(query_pid, gallery_pid, query_camid, gallery_camid)
    labels.check(len(query_f), len(gallery_f))
    real = np.flatnonzero(labels.gallery_pid != JUNK)
    query = jnp.asarray(query_f)
    gallery, bias = _prepare(jnp.asarray(gallery_f), _pad_columns(real), metric)

    def score(rows: np.ndarray) -> jax.Array:
        return _similarity(query, rows.astype(np.int32), gallery, bias, metric)

    return _rank(score, labels.kept(real), query_block, no_match, max_rank)


def rank_scores(
    scores: np.ndarray,
    query_pid: np.ndarray,
    gallery_pid: np.ndarray,
    query_camid: np.ndarray,
    gallery_camid: np.ndarray,
    *,
    query_block: int | None = None,
    no_match: str = "skip",
    max_rank: int = 50,
) -> Ranking:
    """As `rank`, from a matrix of scores (e.g. negated distances) that is at hand.

    Args:
      scores: float[Q, G], higher is better.
      query_pid: int[Q].
      gallery_pid: int[G].
      query_camid: int[Q].
      gallery_camid: int[G].
      query_block: see `rank`.
      no_match: see `rank`.
      max_rank: see `rank`.

    Returns:
      `Ranking`.
    """
    labels = _Labels.build(query_pid, gallery_pid, query_camid, gallery_camid)
    if np.ndim(scores) != 2:
        raise ValueError(f"scores must be [queries, gallery], found shape {np.shape(scores)}")
    labels.check(*np.shape(scores))
    if not _all_finite(scores):
        raise ValueError("scores hold NaN or infinite values")
    real = np.flatnonzero(labels.gallery_pid != JUNK)
    columns = _pad_columns(real)
    matrix = numerics.at_least_float32(jnp.asarray(scores))

    def score(rows: np.ndarray) -> jax.Array:
        return _take(matrix, rows.astype(np.int32), columns)

    return _rank(score, labels.kept(real), query_block, no_match, max_rank)


@dataclasses.dataclass(frozen=True)
class _Labels:
    """Identities and cameras of both sides on the host, int32."""

    query_pid: np.ndarray
    gallery_pid: np.ndarray
    query_camid: np.ndarray
    gallery_camid: np.ndarray

    @classmethod
    def build(cls, *arrays: np.ndarray) -> "_Labels":
        return cls(*(np.asarray(x).astype(np.int32) for x in arrays))

    def kept(self, real: np.ndarray) -> "_Labels":
        """The same with only the gallery rows `real`."""
        return dataclasses.replace(
            self, gallery_pid=self.gallery_pid[real], gallery_camid=self.gallery_camid[real]
        )

    def check(self, queries: int, gallery: int) -> None:
        for side, size in (("query", queries), ("gallery", gallery)):
            pid, camid = getattr(self, f"{side}_pid"), getattr(self, f"{side}_camid")
            if pid.shape != (size,) or camid.shape != (size,):
                raise ValueError(
                    f"{side}: {size} rows of features or scores, but pid has shape {pid.shape} "
                    f"and camid {camid.shape}; expected ({size},) for both"
                )
        if queries == 0 or not np.any(self.gallery_pid != JUNK):
            raise ValueError(
                f"nothing to rank: {queries} queries, {gallery} gallery images of which "
                f"{int(np.sum(self.gallery_pid == JUNK))} are junk (id -1)"
            )


def _rank(score, labels: _Labels, query_block, no_match: str, max_rank: int) -> Ranking:
    """Ranks by `score(rows) -> float[block, padded gallery]`, one compiled block shape."""
    _check_choice("no_match", no_match, _NO_MATCH)
    if max_rank < 1 or (query_block is not None and query_block < 1):
        raise ValueError(f"max_rank {max_rank} and query_block {query_block} must be 1 or more")
    queries, size = len(labels.query_pid), len(labels.gallery_pid)
    positives, count = _positives(labels)
    capacity = _power_of_two(max(_LEAST_CAPACITY, int(count.max())))
    positives = np.pad(positives, ((0, 0), (0, capacity - positives.shape[1])))
    block = query_block or default_block(_round_up(size, _GALLERY_MULTIPLE))
    block = min(block, _power_of_two(queries))
    gallery_pid, gallery_camid = (
        jnp.asarray(np.pad(x, (0, _round_up(size, _GALLERY_MULTIPLE) - size)))
        for x in (labels.gallery_pid, labels.gallery_camid)
    )
    ranks = np.zeros((queries, capacity), np.int32)
    # Queries of like numbers of positives share a block: a block costs what its largest one does.
    order = np.argsort(count, kind="stable")
    for start in range(0, queries, block):
        rows = order[start : start + block]
        if count[rows[-1]] == 0:
            continue
        padded = np.pad(rows, (0, block - len(rows)), mode="edge")
        found = _positive_ranks(
            score(padded),
            labels.query_pid[padded],
            labels.query_camid[padded],
            gallery_pid,
            gallery_camid,
            np.int32(size),
            positives[padded],
            count[rows[-1]],
        )
        ranks[rows] = np.asarray(found)[: len(rows)]  # waits: one block of scores at a time
    ranks = _ascending(ranks[:, : max(1, int(count.max()))], count)
    return _metrics(ranks, count, no_match, max_rank)


@functools.partial(jax.jit, static_argnames="metric")
def _prepare(gallery: jax.Array, rows: jax.Array, metric: str) -> tuple[jax.Array, jax.Array]:
    """Gallery rows and a bias such that `query . gallery + bias` orders each query's gallery.

    -|q - g|^2 / 2 = q.g - |g|^2 / 2 up to a constant of the query.
    """
    gallery = numerics.at_least_float32(gallery[rows])
    if metric == "cosine":
        return numerics.l2_normalize(gallery), jnp.zeros(len(rows), gallery.dtype)
    return gallery, -0.5 * jnp.sum(gallery * gallery, axis=1)


@functools.partial(jax.jit, static_argnames="metric")
def _similarity(query, rows, gallery, bias, metric: str) -> jax.Array:
    """Scores of some queries, float[block, G padded]."""
    block = query[rows]
    if metric == "cosine":
        block = numerics.l2_normalize(block)
    return numerics.einsum("qd,gd->qg", block, gallery) + bias


@jax.jit
def _take(scores: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return scores[rows[:, None], columns]


@jax.jit
def _positive_ranks(
    scores: jax.Array,
    query_pid: jax.Array,
    query_camid: jax.Array,
    gallery_pid: jax.Array,
    gallery_camid: jax.Array,
    gallery_size: jax.Array,
    positives: jax.Array,
    passes: jax.Array,
) -> jax.Array:
    """Rank of each positive: one plus the number of kept items before it.

    Args:
      scores: float[block, G padded].
      query_pid: int32[block].
      query_camid: int32[block].
      gallery_pid: int32[G padded].
      gallery_camid: int32[G padded].
      gallery_size: G; columns from there on are padding.
      positives: int32[block, P], gallery indices.
      passes: largest number of positives of a query in the block.

    Returns:
      int32[block, P]; entries beyond a query's own positives mean nothing.
    """
    index = jnp.arange(scores.shape[1], dtype=jnp.int32)
    dropped = (gallery_pid == query_pid[:, None]) & (gallery_camid == query_camid[:, None])
    dropped |= index >= gallery_size
    scores = jnp.where(dropped, jnp.finfo(scores.dtype).min, scores)
    own = jnp.take_along_axis(scores, positives, axis=1)  # [block, P]

    def count(k, ranks):
        score = jax.lax.dynamic_slice_in_dim(own, k, 1, axis=1)
        place = jax.lax.dynamic_slice_in_dim(positives, k, 1, axis=1)
        before = (scores > score) | ((scores == score) & (index < place))
        column = 1 + jnp.sum(before, axis=1, keepdims=True, dtype=jnp.int32)
        return jax.lax.dynamic_update_slice_in_dim(ranks, column, k, axis=1)

    return jax.lax.fori_loop(0, passes, count, jnp.zeros(positives.shape, jnp.int32))


def _pad_columns(real: np.ndarray) -> np.ndarray:
    """Gallery rows that are ranked, filled up with row 0 to a length that few sizes share.

    Padding makes every product one shape of whole tiles, so that equal features score equally.
    """
    extra = _round_up(len(real), _GALLERY_MULTIPLE) - len(real)
    return np.pad(real, (0, extra)).astype(np.int32)


def _positives(labels: _Labels) -> tuple[np.ndarray, np.ndarray]:
    """Gallery indices of each query's matches, int32[Q, most], and their number, int32[Q]."""
    order = np.argsort(labels.gallery_pid, kind="stable")
    sorted_pid = labels.gallery_pid[order]
    start = np.searchsorted(sorted_pid, labels.query_pid, side="left")
    stop = np.searchsorted(sorted_pid, labels.query_pid, side="right")
    most = int(np.max(stop - start))
    slot = start[:, None] + np.arange(most)
    inside = slot < stop[:, None]
    index = order[np.minimum(slot, len(order) - 1)].astype(np.int32)
    match = inside & (labels.gallery_camid[index] != labels.query_camid[:, None])
    count = match.sum(axis=1).astype(np.int32)
    first = np.argsort(~match, axis=1, kind="stable")[:, : int(count.max())]
    return np.take_along_axis(index, first, axis=1), count


def _ascending(ranks: np.ndarray, count: np.ndarray) -> np.ndarray:
    real = np.arange(ranks.shape[1]) < count[:, None]
    ordered = np.sort(np.where(real, ranks, np.iinfo(np.int32).max), axis=1)
    return np.where(real, ordered, 0).astype(np.int32)


def _metrics(ranks: np.ndarray, count: np.ndarray, no_match: str, max_rank: int) -> Ranking:
    valid = count > 0
    place = np.arange(1, ranks.shape[1] + 1)
    precision = np.where(ranks > 0, place / np.maximum(ranks, 1), 0.0)
    ap = precision.sum(axis=1) / np.maximum(count, 1)
    last = np.maximum(ranks.max(axis=1), 1)
    inverse_penalty = np.where(valid, count / last, 0.0)
    first = ranks[valid, 0]
    hits = np.cumsum(np.bincount(np.minimum(first, max_rank + 1), minlength=max_rank + 2))
    counted = len(count) if no_match == "zero" else int(valid.sum())
    divisor = max(counted, 1)
    return Ranking(
        mAP=float(ap.sum() / divisor),
        mINP=float(inverse_penalty.sum() / divisor),
        cmc=hits[1 : max_rank + 1] / divisor,
        ap=ap,
        valid=valid,
        ranks=ranks,
        queries=counted,
        skipped=len(count) - counted,
    )


def _check_features(query: jax.Array, gallery: jax.Array) -> None:
    if np.ndim(query) != 2 or np.ndim(gallery) != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"features must be [queries, dim] and [gallery, dim], found {np.shape(query)} and "
            f"{np.shape(gallery)}"
        )
    for name, features in (("query", query), ("gallery", gallery)):
        if not _all_finite(features):
            finite = np.isfinite(np.asarray(features, np.float64)).all(axis=1)
            raise ValueError(
                f"{int(np.sum(~finite))} of {len(finite)} {name} features are NaN or infinite "
                f"(first: row {int(np.argmin(finite))})"
            )


def _check_choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{option}={value!r}; expected one of {', '.join(map(repr, allowed))}")


def _all_finite(x: jax.Array) -> bool:
    return bool(jnp.all(jnp.isfinite(jnp.asarray(x))))


def default_block(gallery: int) -> int:
    """Queries per step that keep the scores of a block near 32 MiB in float32."""
    return max(8, min(512, _power_of_two(_BLOCK_ELEMENTS // gallery + 1) // 2))


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
