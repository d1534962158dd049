"""Scores of queries against a gallery, a block of queries at a time, never all at once.

A score provider is any object with `shape` (queries, gallery) and `blocks`; rankings and searches
read it. Features become scores by matrix products of tiles that all have one shape, so equal
features get equal scores wherever they stand; XLA's product is the fastest one at hand on CPUs
too, as long as its operands lie where they need no copy.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax import numerics
from ccafl_jax.options import require_choice

METRICS = ("cosine", "euclidean", "dot")
BLOCK_ELEMENTS = 2**26
"""Scores of a block on the host: 256 MiB in float32."""
ALIGNMENT = 64
"""Bytes: XLA takes arrays on the host that start at a multiple of them without a copy."""

_QUERY_TILE, _GALLERY_TILE = 512, 2048
_GALLERY_MULTIPLE = 256
_CHUNK_ELEMENTS = 2**21

Blocks = Iterator[tuple[np.ndarray, np.ndarray]]


class ScoreProvider(Protocol):
    """Scores of queries against a gallery; higher is better."""

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and of gallery items."""

    def blocks(self, order: np.ndarray | None = None, *, elements: int = BLOCK_ELEMENTS) -> Blocks:
        """All queries, block by block.

        Args:
          order: int[Q], in which the queries come; as they stand when None.
          elements: scores a block may hold; a block has one query at least.

        Yields:
          The queries of a block (int64[b]) and their scores (float[b, G]), which the caller may
          overwrite and which are valid until the next block is asked for.
        """

    def reported(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Scores (float[b, ...]) of the queries `rows` as users read them."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureScores:
    """Scores from features.

    Attributes:
      query: float[Q, D]; need not be normalised.
      gallery: float[n, D].
      metric: `cosine`, `dot` (the product), or `euclidean`: q.g - |g|^2 / 2, which orders each
        query's gallery by distance and is reported as the negative distance.
      columns: int[G], the gallery rows that count, in ascending order; all when None.

    Raises:
      ValueError: see `check_features`.
    """

    query: np.ndarray | jax.Array
    gallery: np.ndarray | jax.Array
    metric: str = "cosine"
    columns: np.ndarray | None = None

    def __post_init__(self):
        for side in ("query", "gallery"):
            if not hasattr(getattr(self, side), "dtype"):
                object.__setattr__(self, side, np.asarray(getattr(self, side)))
        for side, norm in check_features(
            self.metric, query=self.query, gallery=self.gallery
        ).items():
            object.__setattr__(self, f"_{side}_norm", norm.astype(self.dtype))
            # In float64 the square of a root is near enough to round to the right float32.
            object.__setattr__(self, f"_{side}_square", norm * norm)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and of gallery items."""
        return len(self.query), len(self.gallery if self.columns is None else self.columns)

    @property
    def dtype(self) -> np.dtype:
        """Of the scores: float32, or float64 where JAX computes in it and the features have it."""
        return jnp.promote_types(jnp.result_type(self.query, self.gallery), jnp.float32)

    def blocks(self, order: np.ndarray | None = None, *, elements: int = BLOCK_ELEMENTS) -> Blocks:
        """See `ScoreProvider.blocks`."""
        queries, size = self.shape
        order = np.arange(queries) if order is None else np.asarray(order, np.int64)
        query, gallery = np.asarray(self.query), np.asarray(self.gallery)
        columns = np.arange(size) if self.columns is None else np.asarray(self.columns)
        block, tile_q, tile_g = _tiles(queries, size, elements)
        buffer = np.empty((min(block, len(order)), size), self.dtype)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(order), block):
                rows = order[start : start + block]
                scores = buffer[: len(rows)]
                tops = [
                    self._query_tile(query, rows[first : first + tile_q], tile_q)
                    for first in range(0, len(rows), tile_q)
                ]
                self._fill(scores, tops, gallery, columns, tile_g, pool)
                yield rows, scores

    def reported(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The scores; for `euclidean` the negative distances."""
        if self.metric != "euclidean":
            return scores
        squared = self._query_square[rows].reshape(-1, *[1] * (scores.ndim - 1)) - 2.0 * scores
        return -np.sqrt(np.maximum(squared, 0.0)).astype(scores.dtype)

    def on_device(self) -> tuple[jax.Array, jax.Array]:
        """The gallery (normalised for `cosine`) and its bias, padded to whole tiles.

        Padding repeats the first row.
        """
        columns = np.arange(self.shape[1]) if self.columns is None else np.asarray(self.columns)
        padded = np.resize(columns, round_up(len(columns), _GALLERY_MULTIPLE))
        padded[len(columns) :] = columns[0]
        gallery = jnp.asarray(self.gallery)
        if not np.array_equal(padded, np.arange(len(gallery))):
            gallery = gallery[padded]
        bias = self._bias(padded) if self.metric == "euclidean" else np.zeros(len(padded))
        return _prepared(gallery, self.dtype, self.metric), jnp.asarray(bias, self.dtype)

    def _query_tile(self, query: np.ndarray, rows: np.ndarray, size: int) -> jax.Array:
        tile = aligned((size, query.shape[1]), self.dtype)
        tile[: len(rows)] = query[rows]
        if self.metric == "cosine":
            tile[: len(rows)] /= self._query_norm[rows, None]
        tile[len(rows) :] = tile[0]
        return on_host(tile)

    def _gallery_tile(self, gallery: np.ndarray, rows: np.ndarray, size: int) -> jax.Array:
        tile = aligned((size, gallery.shape[1]), self.dtype)
        # Neighbouring rows are one slice, which costs no copy of its own.
        together = rows[-1] - rows[0] == len(rows) - 1
        taken = gallery[rows[0] : rows[-1] + 1] if together else gallery[rows]
        if self.metric == "cosine":
            np.divide(taken, self._gallery_norm[rows, None], out=tile[: len(rows)])
        else:
            tile[: len(rows)] = taken
        tile[len(rows) :] = tile[0]
        return on_host(tile)

    def _bias(self, rows: np.ndarray) -> np.ndarray:
        return -0.5 * self._gallery_square[rows]

    def _fill(
        self,
        scores: np.ndarray,
        tops: list[jax.Array],
        gallery: np.ndarray,
        columns: np.ndarray,
        size: int,
        pool: concurrent.futures.Executor,
    ) -> None:
        """Writes the scores of one block; a tile is prepared while the one before is multiplied."""
        starts = range(0, len(columns), size)

        def prepare(start: int) -> jax.Array:
            return self._gallery_tile(gallery, columns[start : start + size], size)

        following = pool.submit(prepare, starts[0])
        copies: list[concurrent.futures.Future] = []
        for start in starts:
            tile = following.result()
            if start + size < len(columns):
                following = pool.submit(prepare, start + size)
            products = [_product(top, tile).block_until_ready() for top in tops]
            _finish(copies)
            bias = None
            if self.metric == "euclidean":
                bias = self._bias(columns[start : start + size]).astype(self.dtype)
            copies = [
                pool.submit(_store, scores, index * len(top), start, product, bias)
                for index, (top, product) in enumerate(zip(tops, products, strict=True))
            ]
        _finish(copies)


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixScores:
    """A matrix of scores that is at hand, e.g. negated distances.

    Attributes:
      scores: float[Q, n], higher is better.
      columns: int[G], the gallery items that count, in ascending order; all when None.

    Raises:
      ValueError: no matrix, an empty one, or values that are NaN or infinite.
    """

    scores: np.ndarray | jax.Array
    columns: np.ndarray | None = None

    def __post_init__(self):
        if not hasattr(self.scores, "dtype"):
            object.__setattr__(self, "scores", np.asarray(self.scores))
        if np.ndim(self.scores) != 2 or 0 in np.shape(self.scores):
            raise ValueError(f"scores must be [queries, gallery], found {np.shape(self.scores)}")
        scores = np.asarray(self.scores)
        for start, stop in _chunks(*scores.shape):
            if not np.isfinite(scores[start:stop]).all():
                raise ValueError("scores hold NaN or infinite values; expected finite ones")

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and of gallery items."""
        size = self.scores.shape[1] if self.columns is None else len(self.columns)
        return len(self.scores), size

    def blocks(self, order: np.ndarray | None = None, *, elements: int = BLOCK_ELEMENTS) -> Blocks:
        """See `ScoreProvider.blocks`."""
        scores = np.asarray(self.scores)
        order = np.arange(len(scores)) if order is None else np.asarray(order, np.int64)
        block = max(1, elements // self.shape[1])
        for start in range(0, len(order), block):
            rows = order[start : start + block]
            taken = scores[rows] if self.columns is None else scores[rows[:, None], self.columns]
            yield rows, taken.astype(np.promote_types(taken.dtype, np.float32), copy=False)

    def reported(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The scores."""
        return scores


def check_features(metric: str, **sides: np.ndarray | jax.Array) -> dict[str, np.ndarray]:
    """Checks features before any work is done with them.

    Args:
      metric: one of METRICS.
      **sides: float[n, D] each, by the name that messages use.

    Returns:
      Lengths of the rows by side, float64[n].

    Raises:
      ValueError: an unknown metric, no matrix, an empty side, sides of different dimensions, rows
        with NaN or infinite values, or for `cosine` rows of zeros, which have no direction.
    """
    require_choice("metric", metric, METRICS)
    shapes = {name: np.shape(features) for name, features in sides.items()}
    dims = {shape[-1] for shape in shapes.values() if len(shape) == 2}
    if len(dims) != 1 or any(len(shape) != 2 or 0 in shape for shape in shapes.values()):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"features must be [n, dim] with one dim and 1 or more rows each, found {found}"
        )
    norms = {}
    for name, features in sides.items():
        norms[name] = norm = _row_norms(np.asarray(features))
        wrong = ~np.isfinite(norm)
        if wrong.any():
            raise ValueError(
                f"{wrong.sum()} of {len(norm)} {name} features are NaN or infinite (first: row "
                f"{np.argmax(wrong)}); extract them again, in float32"
            )
        if metric == "cosine" and not norm.all():
            raise ValueError(
                f"{np.sum(norm == 0)} of {len(norm)} {name} features are zero vectors (first: row "
                f"{np.argmax(norm == 0)}), which have no cosine; drop these rows or look for the "
                "model that made them"
            )
    return norms


def aligned(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """An array, not filled, that XLA takes without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def on_host(array: np.ndarray) -> jax.Array:
    """An array as JAX's, on the CPU (the accelerator where JAX was told to leave the CPU alone)."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        device = jax.local_devices()[0]
    return jax.device_put(array, device)


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple that is at least n."""
    return -(-n // multiple) * multiple


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def in_threads(work: Callable[[int, int], None], rows: int, row_elements: int) -> None:
    """Calls `work(start, stop)` on chunks of rows that fit a cache, on all cores.

    NumPy lets go of the interpreter in its long loops, so threads run side by side.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        _finish([pool.submit(work, *chunk) for chunk in _chunks(rows, row_elements)])


@jax.jit
def _product(query: jax.Array, gallery: jax.Array) -> jax.Array:
    return numerics.einsum("qd,gd->qg", query, gallery)


@functools.partial(jax.jit, static_argnames=("dtype", "metric"))
def _prepared(gallery: jax.Array, dtype, metric: str) -> jax.Array:
    gallery = gallery.astype(dtype)
    return numerics.l2_normalize(gallery) if metric == "cosine" else gallery


def _store(scores, first: int, start: int, product: jax.Array, bias) -> None:
    """Copies a product into its place, without what pads it."""
    target = scores[first : first + len(product), start : start + product.shape[1]]
    values = np.asarray(product)[: target.shape[0], : target.shape[1]]
    if bias is None:
        target[...] = values
    else:
        np.add(values, bias, out=target)


def _finish(futures: list[concurrent.futures.Future]) -> None:
    for future in futures:
        future.result()


def _tiles(queries: int, gallery: int, elements: int) -> tuple[int, int, int]:
    """Queries of a block, and of a tile; gallery items of a tile."""
    block = max(1, elements // gallery)
    tile = min(_QUERY_TILE, power_of_two(queries))
    while tile > max(block, 8):
        tile //= 2
    block = max(block // tile, 1) * tile
    return block, tile, min(_GALLERY_TILE, round_up(gallery, _GALLERY_MULTIPLE))


def _row_norms(features: np.ndarray) -> np.ndarray:
    squares = np.empty(len(features))
    dtype = np.float64 if features.dtype == np.float64 else np.float32

    def work(start: int, stop: int) -> None:
        rows = features[start:stop].astype(dtype, copy=False)
        squares[start:stop] = np.einsum("nd,nd->n", rows, rows)

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        in_threads(work, *features.shape)
        # Squares leave the range of float32 long before the values do.
        doubtful = np.flatnonzero(~np.isfinite(squares) | (squares < 1e-30))
        squares[doubtful] = np.square(features[doubtful].astype(np.float64)).sum(axis=1)
    return np.sqrt(squares)


def _chunks(rows: int, row_elements: int) -> list[tuple[int, int]]:
    size = max(1, _CHUNK_ELEMENTS // max(row_elements, 1))
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]
