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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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

ENGINES = ("auto", "host", "device")
"""Where work is done: with NumPy beside XLA's CPU products, or in jitted blocks on accelerators."""

_COSINE_LENGTHS = (1e-30, 1e30)
_PRODUCT_LENGTHS = (1e-15, 1e18)
_FAR = 16.0  # squared length of a center over the spread around it that costs digits
_SAMPLE = 1024
_SIDES = ("query", "gallery")

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
        query's gallery by distance and is reported as the negative distance; so are the cosines of
        features that point nearly one way, see `center_of`.
      columns: int[G], the gallery rows that count, in ascending order; all when None.

    Raises:
      ValueError: see `check_features`; columns that are not rows in ascending order.
    """

    query: np.ndarray | jax.Array
    gallery: np.ndarray | jax.Array
    metric: str = "cosine"
    columns: np.ndarray | None = None

    def __post_init__(self):
        for side in _SIDES:
            if not hasattr(getattr(self, side), "dtype"):
                object.__setattr__(self, side, np.asarray(getattr(self, side)))
        squares = check_features(self.metric, query=self.query, gallery=self.gallery)
        _check_columns(self.columns, len(self.gallery))
        norms = dict.fromkeys(_SIDES)
        if self.metric == "cosine":
            norms = {side: np.sqrt(square).astype(self.dtype) for side, square in squares.items()}
        center = None
        if self.metric != "dot":
            center = center_of(self.gallery, norms["gallery"], self.columns)
        if center is not None:
            for side in _SIDES:
                squares[side] = squared_lengths(getattr(self, side), norms[side], center)
        object.__setattr__(self, "_norms", norms)
        object.__setattr__(self, "_center", center)
        object.__setattr__(self, "_squares", squares)
        object.__setattr__(self, "_by_distance", self.metric == "euclidean" or center is not None)
        if center is not None and self.dtype == np.float32:
            self._center_wide_features()

    def _center_wide_features(self) -> None:
        """Takes the center off float64 features before float32 rounds them."""
        sides = {side: np.asarray(getattr(self, side)) for side in _SIDES}
        if not any(features.dtype == np.float64 for features in sides.values()):
            return
        for side, features in sides.items():
            rows = np.empty(features.shape, np.float32)
            copy_rows(features, rows, self._norms[side], self._center)
            object.__setattr__(self, side, rows)
        object.__setattr__(self, "_norms", dict.fromkeys(_SIDES))
        object.__setattr__(self, "_center", None)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and of gallery items."""
        return len(self.query), len(self.gallery if self.columns is None else self.columns)

    @property
    def dtype(self) -> np.dtype:
        """Of the scores: float32, or float64 where JAX computes in it and the features have it."""
        return jnp.promote_types(jnp.result_type(self.query, self.gallery), jnp.float32)

    @property
    def query_squares(self) -> np.ndarray:
        """float64[Q]; less twice a score of `euclidean` it is the squared distance."""
        return self._squares["query"]

    def blocks(self, order: np.ndarray | None = None, *, elements: int = BLOCK_ELEMENTS) -> Blocks:
        """See `ScoreProvider.blocks`; a block has eight queries at least."""
        queries, size = self.shape
        order = np.arange(queries) if order is None else np.asarray(order, np.int64)
        columns = np.arange(size) if self.columns is None else np.asarray(self.columns)
        block, tile_q, tile_g = _tiles(queries, size, self.query.shape[1], elements)
        buffer = np.empty((min(block, len(order)), size), self.dtype)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(order), block):
                rows = order[start : start + block]
                scores = buffer[: len(rows)]
                tops = [
                    self._tile("query", rows[first : first + tile_q], tile_q)
                    for first in range(0, len(rows), tile_q)
                ]
                self._fill(scores, tops, columns, tile_g, pool)
                yield rows, scores

    def reported(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Cosines, products or, for `euclidean`, negative distances."""
        if not self._by_distance:
            return scores
        squared = self.query_squares[rows].reshape(-1, *[1] * (scores.ndim - 1)) - 2.0 * scores
        return from_squared(self.metric, squared).astype(scores.dtype)

    def on_device(self, rows: NamedSharding | None = None) -> tuple[jax.Array, jax.Array]:
        """The gallery as products take it, and its bias, padded to whole tiles.

        Padding repeats a row.

        Args:
          rows: splits the gallery over the devices of a mesh, each of which gets whole tiles of its
            own; None for the default device.
        """
        columns = np.arange(self.shape[1]) if self.columns is None else np.asarray(self.columns)
        devices = [None] if rows is None else list(rows.mesh.devices.flat)
        size = round_up(len(columns), _GALLERY_MULTIPLE * len(devices)) // len(devices)
        shards = [
            self._shard(columns[first * size : (first + 1) * size], size, device)
            for first, device in enumerate(devices)
        ]
        if rows is None:
            return shards[0]
        shapes = (size * len(devices), self.gallery.shape[1]), (size * len(devices),)
        return tuple(
            jax.make_array_from_single_device_arrays(shape, rows, list(parts))
            for shape, parts in zip(shapes, zip(*shards, strict=True), strict=True)
        )

    def _shard(
        self, columns: np.ndarray, size: int, device: jax.Device | None
    ) -> tuple[jax.Array, jax.Array]:
        """Rows of the gallery on a device, and their bias; `size` of them, the rest is padding."""
        columns = columns if len(columns) else np.zeros(1, np.int64)
        divisor, shift = self.device_terms("gallery")
        bias = self._bias(columns) if self._by_distance else np.zeros(len(columns))
        arrays = _taken(self.gallery, columns), divisor[columns], bias.astype(self.dtype), shift
        return _padded_rows(*jax.device_put(arrays, device), size=size)

    def device_terms(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        """Divisors of the rows of a side (float[n]) and what is taken off then (float[D])."""
        size, dim = np.shape(getattr(self, side))
        norms = self._norms[side]
        divisor = np.ones(size, self.dtype) if norms is None else norms
        shift = np.zeros(dim) if self._center is None else self._center
        return divisor, shift.astype(self.dtype)

    def _tile(self, side: str, rows: np.ndarray, size: int) -> jax.Array:
        features = np.asarray(getattr(self, side))
        tile = aligned((size, features.shape[1]), self.dtype)
        taken = _taken(features, rows)
        norms = self._norms[side]
        _prepare(taken, tile[: len(rows)], None if norms is None else norms[rows], self._center)
        tile[len(rows) :] = tile[0]
        return on_host(tile)

    def _bias(self, rows: np.ndarray) -> np.ndarray:
        return 0.0 - 0.5 * self._squares["gallery"][rows]  # never -0.0

    def _fill(
        self,
        scores: np.ndarray,
        tops: list[jax.Array],
        columns: np.ndarray,
        size: int,
        pool: concurrent.futures.Executor,
    ) -> None:
        """Writes the scores of one block; a tile is prepared while the one before is multiplied."""
        starts = range(0, len(columns), size)

        def prepare(start: int) -> jax.Array:
            return self._tile("gallery", columns[start : start + size], size)

        following = pool.submit(prepare, starts[0])
        copies: list[concurrent.futures.Future] = []
        for start in starts:
            tile = following.result()
            if start + size < len(columns):
                following = pool.submit(prepare, start + size)
            products = [_product(top, tile).block_until_ready() for top in tops]
            _finish(copies)
            bias = None
            if self._by_distance:
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
        _check_columns(self.columns, np.shape(self.scores)[1])
        scores = np.asarray(self.scores)
        _check_real("scores", scores)
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
      Squared lengths of the rows by side, float64[n].

    Raises:
      ValueError: an unknown metric, no matrix, an empty side, sides of different dimensions,
        complex or other values that are no numbers, rows with NaN or infinite values, for `cosine`
        rows of zeros, which have no direction, or lengths whose products leave float32.
    """
    require_choice("metric", metric, METRICS)
    shapes = {name: np.shape(features) for name, features in sides.items()}
    dims = {shape[-1] for shape in shapes.values() if len(shape) == 2}
    if len(dims) != 1 or any(len(shape) != 2 or 0 in shape for shape in shapes.values()):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"features must be [n, dim] with one dim and 1 or more rows each, found {found}"
        )
    squares = {}
    for name, features in sides.items():
        _check_real(f"{name} features", features)
        squares[name] = square = squared_lengths(features)
        wrong = ~np.isfinite(square)
        if wrong.any():
            raise ValueError(
                f"{wrong.sum()} of {len(square)} {name} features are NaN or infinite (first: row "
                f"{np.argmax(wrong)}); extract them again, in float32"
            )
        if metric == "cosine" and not square.all():
            raise ValueError(
                f"{np.sum(square == 0)} of {len(square)} {name} features are zero vectors (first: "
                f"row {np.argmax(square == 0)}), which have no cosine; drop these rows or look "
                "for the model that made them"
            )
    if jnp.promote_types(jnp.result_type(*sides.values()), jnp.float32) == jnp.float32:
        _check_lengths(metric, squares)
    return squares


def squared_lengths(
    features: np.ndarray | jax.Array,
    divisor: np.ndarray | None = None,
    center: np.ndarray | None = None,
) -> np.ndarray:
    """Squared lengths of rows, computed where the rows lie.

    Args:
      features: float[n, D].
      divisor: float[n], by which the rows are divided first.
      center: float64[D], taken off the rows then.

    Returns:
      float64[n]; NaN or infinite where a row holds such values.
    """
    on_accelerator = _on_accelerator(features)
    if not on_accelerator:
        features = np.asarray(features)
    squares = np.empty(len(features))
    dtype = np.float64 if features.dtype == np.float64 else np.float32

    def rows_of(part: slice | np.ndarray, dtype: np.dtype) -> np.ndarray:
        rows = np.asarray(features[part]).astype(dtype, copy=False)
        rows = rows if divisor is None else rows / divisor[part, None]
        return rows if center is None else (rows - center).astype(dtype)

    def work(start: int, stop: int) -> None:
        rows = rows_of(slice(start, stop), dtype)
        squares[start:stop] = np.einsum("nd,nd->n", rows, rows)

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if on_accelerator:
            ones, zeros = np.ones(len(features), dtype), np.zeros(features.shape[1], dtype)
            terms = (ones if divisor is None else divisor, zeros if center is None else center)
            squares[:] = _squares_on_device(features, *(np.asarray(x, dtype) for x in terms))
        else:
            in_threads(work, *features.shape)
        # Squares leave the range of float32 long before the values do.
        doubtful = np.flatnonzero(~np.isfinite(squares) | (squares < 1e-30))
        squares[doubtful] = np.square(rows_of(doubtful, np.float64)).sum(axis=1)
    return squares


def _on_accelerator(features: np.ndarray | jax.Array) -> bool:
    if not isinstance(features, jax.Array):
        return False
    return all(device.platform != "cpu" for device in features.devices())


@jax.jit
def _squares_on_device(features: jax.Array, divisor: jax.Array, shift: jax.Array) -> jax.Array:
    return jnp.square(prepared(features, divisor, shift)).sum(axis=1)


def center_of(
    features: np.ndarray | jax.Array,
    divisor: np.ndarray | None = None,
    columns: np.ndarray | None = None,
) -> np.ndarray | None:
    """What to take off features that lie close together and far from zero.

    Distances come from products, whose digits would be used up by what all features share: rows
    around one far point, or unit vectors of nearly one direction. The median of a sample of rows is
    rounded to a power of two near their spread, so that features on a dyadic grid stay on it. It
    helps as far as most rows lie around one point.

    Args:
      features: float[n, D].
      divisor: float[n], by which the rows are divided first.
      columns: int[k], the rows that count; all when None.

    Returns:
      float64[D], or None where the rows lie near enough to zero.
    """
    size = len(features) if columns is None else len(columns)
    rows = np.linspace(0, size - 1, min(size, _SAMPLE)).round().astype(np.int64)
    rows = rows if columns is None else np.asarray(columns)[rows]
    sample = np.asarray(features[rows]).astype(np.float64)
    if divisor is not None:
        sample /= divisor[rows, None]
    middle = np.median(sample, axis=0)
    far = float(middle @ middle)
    spread = float(np.median(np.square(sample - middle).sum(axis=1)))
    if far <= _FAR * spread:
        return None
    step = np.sqrt(spread / len(middle))
    if step > 1e-7 * np.sqrt(far):  # else most rows are one point
        step = 2.0 ** np.ceil(np.log2(step))
        middle = np.round(middle / step) * step
    return middle.astype(np.float32).astype(np.float64)


def copy_rows(
    source: np.ndarray,
    target: np.ndarray,
    divisor: np.ndarray | None = None,
    center: np.ndarray | None = None,
) -> None:
    """Writes rows as products take them.

    Args:
      source: float[n, D].
      target: float[n, D], filled.
      divisor: float[n], by which the rows are divided first.
      center: float64[D], taken off the rows then.
    """

    def work(start: int, stop: int) -> None:
        part = slice(start, stop)
        _prepare(source[part], target[part], None if divisor is None else divisor[part], center)

    in_threads(work, *source.shape)


def _prepare(source, target, divisor, center) -> None:
    if divisor is None and center is None:
        target[...] = source
    elif center is None:
        np.divide(source, divisor[:, None], out=target)
    elif divisor is None:
        np.subtract(source, center, out=target)
    else:
        np.subtract(source / divisor[:, None].astype(np.float64), center, out=target)


def from_squared(metric: str, squared: np.ndarray) -> np.ndarray:
    """Scores as users read them, from squared distances (of unit vectors for `cosine`)."""
    squared = np.maximum(squared, 0.0)
    return 1.0 - squared / 2.0 if metric == "cosine" else -np.sqrt(squared)


def prepared(features: jax.Array, divisor: jax.Array, shift: jax.Array) -> jax.Array:
    """Rows as products take them; in jitted code.

    Args:
      features: float[n, D].
      divisor: float[n], see `FeatureScores.device_terms`.
      shift: float[D].
    """
    return features.astype(shift.dtype) / divisor[:, None] - shift


def device_scores(
    query: jax.Array, divisor: jax.Array, shift: jax.Array, gallery: jax.Array, bias: jax.Array
) -> jax.Array:
    """Scores of a block on the device, float[b, G padded]; in jitted code.

    Args:
      query: float[b, D].
      divisor: float[b].
      shift: float[D].
      gallery: float[G padded, D], see `FeatureScores.on_device`.
      bias: float[G padded].
    """
    return numerics.einsum("qd,gd->qg", prepared(query, divisor, shift), gallery) + bias


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


def local_mesh() -> Mesh:
    """The devices of this process, on one axis "data"."""
    return Mesh(np.array(jax.local_devices()), ("data",))


def layouts(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Whole on every device of a mesh, and rows split over its axis "data"."""
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


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


def _taken(features: np.ndarray | jax.Array, rows: np.ndarray) -> np.ndarray | jax.Array:
    """Some rows; neighbouring ones are one slice, which costs no copy of its own."""
    together = rows[-1] - rows[0] == len(rows) - 1 and np.all(np.diff(rows) == 1)
    return features[rows[0] : rows[-1] + 1] if together else features[rows]


@functools.partial(jax.jit, static_argnames="size")
def _padded_rows(features, divisor, bias, shift, *, size: int) -> tuple[jax.Array, jax.Array]:
    """Rows as products take them and their bias, followed by copies of the first one."""
    more = size - len(bias)
    return tuple(
        jnp.concatenate([x, jnp.repeat(x[:1], more, axis=0)])
        for x in (prepared(features, divisor, shift), bias)
    )


@jax.jit
def _product(query: jax.Array, gallery: jax.Array) -> jax.Array:
    return numerics.einsum("qd,gd->qg", query, gallery)


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


def _tiles(queries: int, gallery: int, dim: int, elements: int) -> tuple[int, int, int]:
    """Queries of a block, and of a tile; gallery items of a tile."""
    # A block holds its scores, its tiles of queries, and products that are padded.
    block = max(1, elements // max(round_up(gallery, _GALLERY_MULTIPLE), dim))
    tile = min(_QUERY_TILE, power_of_two(queries))
    while tile > max(block, 8):
        tile //= 2
    block = max(block // tile, 1) * tile
    return block, tile, min(_GALLERY_TILE, round_up(gallery, _GALLERY_MULTIPLE))


def _check_lengths(metric: str, squares: dict[str, np.ndarray]) -> None:
    """Raises ValueError where products of rows, or their lengths, leave the range of float32."""
    for name, square in squares.items():
        low, high = _COSINE_LENGTHS if metric == "cosine" else _PRODUCT_LENGTHS
        longest, shortest = np.sqrt(square.max()), np.sqrt(square.min())
        # Short rows among longer ones are as good as zero, which only `cosine` minds.
        small = shortest if metric == "cosine" else longest
        if longest > high or 0 < small < low:
            raise ValueError(
                f"{name} features have lengths from {shortest:.3g} to {longest:.3g}; {metric} in "
                f"float32 needs {low:g} to {high:g}: multiply all features by one number"
            )


def _check_real(name: str, values: np.ndarray | jax.Array) -> None:
    dtype = values.dtype if hasattr(values, "dtype") else np.asarray(values).dtype
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise ValueError(f"{name} are {dtype}; expected real numbers")


def _check_columns(columns: np.ndarray | None, size: int) -> None:
    if columns is None:
        return
    columns = np.asarray(columns)
    ascending = columns.ndim == 1 and columns.size and np.all(np.diff(columns) > 0)
    if not ascending or columns[0] < 0 or columns[-1] >= size:
        raise ValueError(f"columns must be ascending rows of the gallery, 0 to {size - 1}")


def _chunks(rows: int, row_elements: int) -> list[tuple[int, int]]:
    size = max(1, _CHUNK_ELEMENTS // max(row_elements, 1))
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]
