"""Exact nearest neighbours: the best k columns of scores, of a gallery, or of a set in itself.

Order is by descending score, equal scores by ascending index. No step holds a matrix of all
scores.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from ccafl_jax import numerics
from ccafl_jax.neighbors.similarity import (
    ALIGNMENT,
    ENGINES,
    FeatureScores,
    aligned,
    center_of,
    check_features,
    copy_rows,
    device_scores,
    from_squared,
    in_threads,
    layouts,
    local_mesh,
    on_host,
    power_of_two,
    round_up,
    squared_lengths,
)
from ccafl_jax.options import require_choice
from ccafl_jax.progress import progress_bar

_GROUP = 32  # columns whose maximum stands for all of them
_TILE = 4096  # columns of one product of a set with itself; it has half as many rows
_LEAST_TILE = 1024  # unless the set is smaller
_TILE_GROUP = 64
_CROWDED = 8  # groups of a tile from which on the whole line is searched
_DEVICE_ELEMENTS = 2**28


class Neighbors(NamedTuple):
    """The k best columns of each row, by descending score, equal scores by ascending index.

    Attributes:
      indices: int32[Q, k]; -1 where a row has no further column.
      scores: float32[Q, k]; -inf there.
    """

    indices: np.ndarray
    scores: np.ndarray


def largest(scores: np.ndarray, k: int) -> Neighbors:
    """The k largest entries of each row, on the host.

    Args:
      scores: float[b, n], higher is better; entries of -inf are never returned.
      k: 1..n.

    Returns:
      `Neighbors`, scores in the dtype of `scores`.

    Raises:
      ValueError: scores that are no matrix or hold NaN, k out of range.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or not np.issubdtype(scores.dtype, np.floating):
        raise ValueError(
            f"scores are {scores.dtype} of shape {scores.shape}; expected floats [rows, columns]"
        )
    rows, n = scores.shape
    _check_k(k, n)
    found = Neighbors(np.empty((rows, k), np.int32), np.empty((rows, k), scores.dtype))

    def select(start: int, stop: int) -> None:
        found.indices[start:stop], found.scores[start:stop] = _largest(scores[start:stop], k)

    in_threads(select, rows, n)
    return found


def top_k(
    query: np.ndarray | jax.Array,
    gallery: np.ndarray | jax.Array,
    k: int,
    *,
    metric: str = "cosine",
    engine: str = "auto",
    progress: bool = False,
) -> Neighbors:
    """The k nearest gallery items of each query.

    Args:
      query: float[Q, D]; need not be normalised.
      gallery: float[G, D].
      k: 1..G.
      metric: `cosine`, `dot`, or `euclidean`, whose scores are negative distances.
      engine: `host` selects with NumPy, `device` on the accelerators, each of which holds a part of
        the gallery; `auto` is `device` unless JAX runs on CPUs.
      progress: shows a bar.

    Returns:
      `Neighbors`.

    Raises:
      ValueError: see `check_features`; k out of range; an unknown engine.

    The second item is nearest to the first axis:

    >>> top_k(np.eye(3)[:1], np.array([[1.0, 2, 0], [3, 0, 0], [0, 1, 0]]), 2).indices.tolist()
    [[1, 0]]
    """
    provider = FeatureScores(query, gallery, metric)
    queries, size = provider.shape
    _check_k(k, size)
    if on_device(engine):
        return _device_top_k(provider, k, progress)[0]
    found = Neighbors(np.empty((queries, k), np.int32), np.empty((queries, k), provider.dtype))
    with progress_bar(queries, "neighbours", progress) as bar:
        for rows, scores in provider.blocks():
            found.indices[rows], best = largest(scores, k)
            found.scores[rows] = provider.reported(rows, best)
            bar.update(len(rows))
    return found


def self_top_k(
    f: np.ndarray | jax.Array,
    k: int,
    *,
    metric: str = "cosine",
    worst: bool = False,
    engine: str = "auto",
    progress: bool = False,
) -> Neighbors | tuple[Neighbors, np.ndarray]:
    """The k nearest items of each item of a set, itself included like any other.

    On the host every product of two parts of the set serves both, so that all against all costs
    half of `top_k(f, f, k)`. Beside the features and the result memory holds a few tiles and one
    copy of the features as products take them.

    Args:
      f: float[N, D]; need not be normalised. Contiguous float32 that starts at a multiple of 64
        bytes is not copied for `dot` and, with a mean near zero, for `euclidean`.
      k: 1..N.
      metric: see `top_k`.
      worst: also returns the lowest score of each item among all N.
      engine: see `top_k`.
      progress: shows a bar.

    Returns:
      `Neighbors`; with `worst` a pair of it and float32[N].

    Raises:
      ValueError: see `top_k`.
    """
    if on_device(engine):
        provider = FeatureScores(f, f, metric)
        _check_k(k, len(f))
        found, low = _device_top_k(provider, k, progress)
    else:
        found, low = _SelfSearch(f, k, metric, worst).run(progress)
    return (found, low) if worst else found


def on_device(engine: str) -> bool:
    """Whether an engine of `similarity.ENGINES` works in jitted blocks on devices.

    Raises:
      ValueError: an unknown engine.
    """
    require_choice("engine", engine, ENGINES)
    return engine == "device" or (engine == "auto" and jax.default_backend() != "cpu")


def join_columns(first: Neighbors, second: Neighbors, offset: int, k: int) -> Neighbors:
    """The k best of two searches over columns that follow each other.

    Args:
      first: of the columns before `offset`.
      second: of those from `offset` on, counted from 0.
      offset: int.
      k: entries of a row; all where there are fewer.
    """
    behind = np.where(second.indices < 0, -1, second.indices + np.int32(offset))
    return Neighbors(
        *_first(
            np.concatenate([first.indices, behind], axis=1),
            np.concatenate([first.scores, second.scores], axis=1),
            k,
        )
    )


class Joined(NamedTuple):
    """Rows of several sides in one array that products take without a copy.

    Attributes:
      rows: float32[N, D] (float64 where JAX computes in it and the features have it).
      squares: float64[N], their squared lengths.
      center: float64[D], what was taken off them; None for nothing.
    """

    rows: np.ndarray
    squares: np.ndarray
    center: np.ndarray | None


def joined(metric: str, *, center: bool = False, **sides: np.ndarray | jax.Array) -> Joined:
    """The rows of all sides in one array.

    Args:
      metric: one of METRICS; `cosine` normalises.
      center: take off what rows far from zero share, see `similarity.center_of`; distances do not
        change by it.
      **sides: float[n, D] each, by the name that messages use.

    Raises:
      ValueError: see `check_features`.
    """
    squares = check_features(metric, **sides)
    norms = {name: np.sqrt(x) if metric == "cosine" else None for name, x in squares.items()}
    dtype = jnp.promote_types(jnp.result_type(*sides.values()), jnp.float32)
    largest_side = max(sides, key=lambda name: len(sides[name]))
    taken_off = center_of(sides[largest_side], norms[largest_side]) if center else None
    total, dim = sum(map(len, sides.values())), sides[largest_side].shape[1]
    rows, first = aligned((total, dim), dtype), 0
    for name, side in sides.items():
        part = rows[first : first + len(side)]
        copy_rows(np.asarray(side), part, norms[name], taken_off)
        first += len(side)
    if metric == "cosine" or taken_off is not None:
        return Joined(rows, squared_lengths(rows), taken_off)
    return Joined(rows, np.concatenate(list(squares.values())), None)


def _largest(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `largest`, in one go: scores [b, n] -> int32[b, k], float[b, k]."""
    rows, n = scores.shape
    group = min(_GROUP, n // (4 * k))
    if group < 4:
        return _by_partition(scores, k)
    width = n // group
    maxima = scores[:, :width].copy()
    for start in range(width, group * width, width):
        np.maximum(maxima, scores[:, start : start + width], out=maxima)
    _refuse_nan(maxima, scores[:, group * width :])
    # k groups reach the k-th largest maximum, so at least k entries do.
    bound = np.partition(maxima, width - k, axis=1)[:, width - k]
    bound = np.maximum(bound, np.finfo(scores.dtype).min)
    reached = scores >= bound[:, None]
    crowd = 4 * k + 64
    crowded = np.empty(0, np.intp)
    if np.count_nonzero(reached) > rows * crowd:  # many equal scores
        crowded = np.flatnonzero(reached.sum(axis=1, dtype=np.int32) > crowd)
        reached[crowded] = False
    row, column = np.divmod(np.flatnonzero(reached), n)
    indices, best = _first(*_padded(row, column, scores[row, column], rows, least=k), k)
    if len(crowded):
        indices[crowded], best[crowded] = _by_partition(scores[crowded], k)
    return indices, best


def _by_partition(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_largest`, in time and memory that do not depend on the scores."""
    _refuse_nan(scores)
    rows, n = scores.shape
    bound = np.partition(scores, n - k, axis=1)[:, n - k, None]
    above, level = scores > bound, scores == bound
    room = k - above.sum(axis=1, keepdims=True, dtype=np.int32)
    level &= np.cumsum(level, axis=1, dtype=np.int32) <= room
    indices = np.nonzero(above | level)[1].reshape(rows, k).astype(np.int32)
    values = np.take_along_axis(scores, indices, axis=1)
    return _first(np.where(values > -np.inf, indices, -1), values, k)


def _first(indices: np.ndarray, values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each row; equal values stay in their order."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(values, order, axis=1)


def _padded(
    row: np.ndarray, column: np.ndarray, values: np.ndarray, rows: int, *, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Entries listed by ascending row as matrices [rows, longest], filled up at the right."""
    count = np.bincount(row, minlength=rows)
    place = np.arange(len(row)) - (np.cumsum(count) - count)[row]
    shape = rows, max(least, int(count.max(initial=0)))
    indices, best = np.full(shape, -1, np.int32), np.full(shape, -np.inf, values.dtype)
    indices[row, place], best[row, place] = column, values
    return indices, best


class _SelfSearch:
    """All against all by tiles of the upper triangle; each serves its rows and its columns.

    Both directions meet the other side in ascending order, so an entry enters the running lists
    only above the k-th score, and equal scores need no thought.
    """

    def __init__(self, f, k: int, metric: str, worst: bool):
        as_it_lies = metric != "cosine" and _fits(np.asarray(f))
        if as_it_lies:
            found = Joined(np.asarray(f), check_features(metric, features=f)["features"], None)
        if not as_it_lies or (metric == "euclidean" and center_of(f) is not None):
            found = joined(metric, center=metric != "dot", features=f)
        f, squares = found.rows, found.squares
        self.by_distance = metric == "euclidean" or found.center is not None
        n = len(f)
        _check_k(k, n)
        self.f, self.k, self.metric, self.squares = f, k, metric, squares
        # Tiles of an eighth of the set waste little on padding and on the diagonal.
        eighth = max(n // 8, _LEAST_TILE)
        self.tile = min(_TILE, *(round_up(size, 2 * _TILE_GROUP) for size in (n, eighth)))
        bias = np.zeros(n)
        if self.by_distance:
            bias = 0.0 - 0.5 * squares
        # Padding never scores.
        self.bias = np.full(round_up(n, self.tile), -np.inf, f.dtype)
        self.bias[:n] = bias
        self.indices = np.full((n, k), -1, np.int32)
        self.scores = np.full((n, k), -np.inf, f.dtype)
        self.low = np.full(n, np.inf, f.dtype) if worst else None

    def run(self, progress: bool) -> tuple[Neighbors, np.ndarray | None]:
        starts = range(0, len(self.f), self.tile // 2)
        total = sum(-(-(len(self.f) - s // self.tile * self.tile) // self.tile) for s in starts)
        waiting = None
        with progress_bar(total, "neighbours", progress) as bar:
            # XLA multiplies one tile while NumPy searches the one before.
            for product in self._products(starts):
                if waiting is not None:
                    self._search(*waiting)
                    bar.update()
                waiting = product
            self._search(*waiting)
            bar.update()
        return self._result()

    def _result(self) -> tuple[Neighbors, np.ndarray | None]:
        scores, low = self.scores, self.low
        if self.by_distance:
            scores = self._reported(self.squares[:, None], scores)
            low = None if low is None else self._reported(self.squares, low)
        return Neighbors(self.indices, scores), low

    def _reported(self, squares: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return from_squared(self.metric, squares - 2.0 * scores).astype(scores.dtype)

    def _products(self, starts: range) -> Iterator[tuple]:
        for top in starts:
            left = self._rows(top, self.tile // 2)
            left_bias = self.bias[top : top + self.tile // 2]
            for start in range(top // self.tile * self.tile, len(self.f), self.tile):
                right = self._rows(start, self.tile)
                right_bias = self.bias[start : start + self.tile]
                product = _tile(left, right, left_bias, right_bias, self.low is not None)
                yield top, start, product

    def _rows(self, start: int, size: int) -> jax.Array:
        rows = self.f[start : start + size]
        if len(rows) < size:
            padded = aligned((size, self.f.shape[1]), self.f.dtype)
            padded[: len(rows)], padded[len(rows) :] = rows, 0
            rows = padded
        return on_host(rows)

    def _search(self, top: int, start: int, product: tuple) -> None:
        scores, maxima, low = (jax.tree.map(np.asarray, x) for x in product)
        self._merge(scores, maxima[0], low and low[0], top, start, self.bias[start:])
        if start > top:  # a tile on the diagonal holds both directions already
            self._merge(scores.T, maxima[1].T, low and low[1], start, top, self.bias[top:])

    def _merge(self, scores, maxima, low, first: int, offset: int, bias) -> None:
        """Takes what lines first, first + 1, ... find among items offset, offset + 1, ..."""
        lines = min(len(scores), len(self.f) - first)
        mine = slice(first, first + lines)
        if low is not None:
            np.minimum(self.low[mine], low[:lines], out=self.low[mine])
        bias = bias[: scores.shape[1]]
        floor = self.scores[mine, -1]
        reached = maxima[:lines] > floor[:, None]
        number = reached.sum(axis=1)
        crowded = np.flatnonzero(number > _CROWDED)
        reached[crowded] = False
        line, group = np.nonzero(reached)
        column = group[:, None] * _TILE_GROUP + np.arange(_TILE_GROUP)
        values = scores[line[:, None], column] + bias[column]
        good = values > floor[line][:, None]
        line, column, values = np.repeat(line, good.sum(axis=1)), column[good], values[good]
        found = np.bincount(line, minlength=lines) > 0
        quiet, line = np.flatnonzero(found), (np.cumsum(found) - 1)[line]
        self._insert(first + quiet, offset, *_padded(line, column, values, len(quiet), least=0))
        if len(crowded):
            whole = np.ascontiguousarray(scores[crowded]) + bias
            self._insert(first + crowded, offset, *largest(whole, min(self.k, whole.shape[1])))

    def _insert(self, rows, offset: int, indices: np.ndarray, values: np.ndarray) -> None:
        indices = np.where(indices < 0, -1, indices + np.int32(offset))
        self.indices[rows], self.scores[rows] = _first(
            np.concatenate([self.indices[rows], indices], axis=1),
            np.concatenate([self.scores[rows], values], axis=1),
            self.k,
        )


@functools.partial(jax.jit, static_argnames="worst")
def _tile(left, right, left_bias, right_bias, worst: bool):
    """Products [R, C], maxima of groups along both axes, lowest scores along both axes."""
    product = numerics.einsum("qd,gd->qg", left, right)
    across, down = product + right_bias, product + left_bias[:, None]
    rows, columns = product.shape
    maxima = (
        across.reshape(rows, -1, _TILE_GROUP).max(axis=2),
        down.reshape(-1, _TILE_GROUP, columns).max(axis=1),
    )
    if not worst:
        return product, maxima, None
    low = (
        jnp.where(jnp.isinf(right_bias), jnp.inf, across).min(axis=1),
        jnp.where(jnp.isinf(left_bias)[:, None], jnp.inf, down).min(axis=0),
    )
    return product, maxima, low


def _device_top_k(provider: FeatureScores, k: int, progress: bool) -> tuple[Neighbors, np.ndarray]:
    """As `top_k` on all local devices, and the lowest score of each query.

    Each device holds a part of the gallery and the queries of a block, and sends on its k best.
    """
    queries, size = provider.shape
    mesh = local_mesh()
    everywhere, split = layouts(mesh)
    gallery, bias = provider.on_device(split)
    query = jax.device_put(provider.query, everywhere)
    divisor, shift = provider.device_terms("query")
    shard = len(gallery) // mesh.size
    block = min(power_of_two(queries), max(power_of_two(_DEVICE_ELEMENTS // shard + 1) // 2, 1))
    work = {"mesh": mesh, "k": k, "group": _group_size(shard, min(k, shard))}
    parts = []
    with progress_bar(queries, "neighbours", progress) as bar:
        for start in range(0, queries, block):
            # The last block repeats the last query: one shape, one compilation.
            rows = np.minimum(np.arange(start, start + block, dtype=np.int32), queries - 1)
            sent = jax.device_put((rows, divisor[rows]), everywhere)
            parts.append(_block_top_k(query, *sent, shift, gallery, bias, size, **work))
            if len(parts) > 1:  # one block is computed while the next is sent
                jax.block_until_ready(parts[-2])
            bar.update(min(block, queries - start))
    indices, scores, low = (
        np.concatenate(x)[:queries] for x in zip(*jax.device_get(parts), strict=True)
    )
    every = np.arange(queries)
    return Neighbors(indices, provider.reported(every, scores)), provider.reported(every, low)


def _group_size(size: int, k: int) -> int:
    """Neighbouring columns whose maximum stands for them: about as much work in both stages."""
    best = min((16, 32, 64, 128, 256), key=lambda group: size // group + k * group)
    return best if 2 * k * best <= size else 1


@functools.partial(jax.jit, static_argnames=("mesh", "k", "group"))
def _block_top_k(
    query, row, divisor, shift, gallery, bias, size, *, mesh: Mesh, k: int, group: int
):
    """The k best of each row and the lowest score; columns from `size` on are padding."""
    whole, split = PartitionSpec(), PartitionSpec("data")
    indices, best, low = jax.shard_map(
        functools.partial(_shard_top_k, k=min(k, len(gallery) // mesh.size), group=group),
        mesh=mesh,
        in_specs=(whole, whole, whole, split, split, whole),
        out_specs=PartitionSpec(None, "data"),
        check_vma=False,
    )(query[row], divisor, shift, gallery, bias, size)
    # Parts stand in the order of the gallery, so the first of equal scores is the first of it.
    best, place = jax.lax.top_k(best, k)
    return jnp.take_along_axis(indices, place, axis=1), best, low.min(axis=1)


def _shard_top_k(query, divisor, shift, gallery, bias, size, *, k: int, group: int):
    """The k best of each query in one device's part of the gallery: [b, k], [b, k], [b, 1]."""
    scores = device_scores(query, divisor, shift, gallery, bias)
    first = jax.lax.axis_index("data") * len(gallery)
    real = first + jnp.arange(len(gallery)) < size
    low = jnp.where(real, scores, jnp.inf).min(axis=1, keepdims=True)
    scores = jnp.where(real, scores, -jnp.inf)
    if group == 1:
        best, indices = jax.lax.top_k(scores, k)
        return first + indices, best, low
    # The k best lie in the k groups of the largest maxima: each of those holds an item that is
    # better than all of another group, or equal to its best and earlier, as both stages break ties
    # by the lower index.
    groups = scores.reshape(len(scores), -1, group)
    chosen = jnp.sort(jax.lax.top_k(groups.max(axis=2), k)[1], axis=1)
    near = jnp.take_along_axis(groups, chosen[:, :, None], axis=1)
    best, place = jax.lax.top_k(near.reshape(len(scores), -1), k)
    indices = jnp.take_along_axis(chosen, place // group, axis=1) * group + place % group
    return first + indices, best, low


def _fits(f: np.ndarray) -> bool:
    """Whether XLA takes tiles of these rows as they lie."""
    return (
        f.dtype == jnp.promote_types(jnp.result_type(f), jnp.float32)
        and f.flags.c_contiguous
        and f.ctypes.data % ALIGNMENT == 0
    )


def _refuse_nan(*scores: np.ndarray) -> None:
    if any(np.isnan(x).any() for x in scores):
        raise ValueError("scores hold NaN; expected numbers, check the features they come from")


def _check_k(k: int, size: int) -> None:
    if not 1 <= k <= size:
        raise ValueError(f"k is {k}; expected 1..{size}, the number of items to choose from")
