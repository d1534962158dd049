"""k-reciprocal encoding in jitted blocks on accelerators; see `reciprocal` for what it is.

Rows of a block are split over the local devices, each of which holds the neighbour lists and the
features. Shapes do not depend on how many members a row has: rows are padded to a capacity, which
is doubled until every row fits.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.neighbors.reciprocal import check_neighbors
from ccafl_jax.neighbors.similarity import layouts, local_mesh, power_of_two
from ccafl_jax.progress import progress_bar

log = logging.getLogger(__name__)

ONE = 2**30
"""The weight 1: weights are whole numbers, whose sums do not depend on their order."""

_ELEMENTS = 2**26  # of the largest array of a block on one device


def encode(
    neighbors: np.ndarray,
    unit: jax.Array,
    *,
    columns: int,
    half: int,
    k2: int = 1,
    progress: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """As `reciprocal.encode` with squared Euclidean distances.

    Args:
      neighbors: int[N, K], nearest first, each item itself included.
      unit: float32[N or more, D], the features, as distances take them.
      columns: 1..K, see `reciprocal.encode`.
      half: 1..K.
      k2: 1..K.
      progress: shows a bar.

    Returns:
      int32[N, L] members in ascending order, N where a row has no further one, and int32[N, L]
      their weights in units of 1 / ONE, 0 there.

    Raises:
      ValueError: see `reciprocal.encode`.
    """
    check_neighbors(neighbors, columns=columns, half=half, k2=k2)
    size = len(neighbors)
    mesh = local_mesh()
    everywhere, split = layouts(mesh)
    lists = jax.device_put(np.asarray(neighbors, np.int32), everywhere)
    unit = jax.device_put(unit, everywhere)

    def by_blocks(function, row_elements: int, title: str):
        """The outputs of `function(rows)` for all rows, block by block."""
        # One device sees blocks of one shape, however many devices there are.
        block = power_of_two(max(1, min(size, _ELEMENTS // row_elements))) * mesh.size
        parts = []
        with progress_bar(size, title, progress) as bar:
            for start in range(0, size, block):
                rows = np.minimum(np.arange(start, start + block, dtype=np.int32), size - 1)
                parts.append(function(jax.device_put(rows, split)))
                bar.update(min(block, size - start))
        joined = [jnp.concatenate(x)[:size] for x in zip(*parts, strict=True)]
        return [jax.device_put(x, everywhere) for x in joined]

    def with_capacity(function, capacity: int, row_elements: int, title: str):
        """The outputs but the last, the number of members, with a capacity that holds them all."""
        while True:
            *found, count = by_blocks(
                functools.partial(function, capacity=capacity), row_elements, title
            )
            most = int(count.max())
            if most <= capacity:
                return found
            log.info("%s: rows have up to %d members, capacity grows", title, most)
            capacity = power_of_two(most)

    full, within = by_blocks(
        lambda rows: _mutual(lists, rows, columns=columns, half=half), columns**2, "mutual lists"
    )
    found = with_capacity(
        functools.partial(_expanded, lists, full, within, unit, columns=columns, half=half, k2=k2),
        power_of_two(2 * columns),
        columns * half * columns // 8 + 1,
        "k-reciprocal sets",
    )
    source = _source(lists[:, :columns])
    if k2 == 1:
        return tuple(x[source] for x in found)
    return tuple(
        with_capacity(
            functools.partial(_mean, lists, source, *found, k2=k2),
            power_of_two(4 * columns),
            2 * k2 * found[0].shape[1],
            "query expansion",
        )
    )


@functools.partial(jax.jit, static_argnames=("columns", "half"))
def _mutual(lists, rows, *, columns: int, half: int) -> tuple[jax.Array, jax.Array]:
    """Which of the first neighbours have the row among their own first ones."""

    def reciprocal(count: int) -> jax.Array:
        theirs = lists[lists[rows, :count], :count]  # [b, count, count]
        return (theirs == rows[:, None, None]).any(axis=2)

    return reciprocal(columns), reciprocal(half)


@functools.partial(jax.jit, static_argnames=("columns", "half", "k2", "capacity"))
def _expanded(
    lists, full, within, unit, rows, *, columns: int, half: int, k2: int, capacity: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Members and weights (divided by k2) of the expanded sets, and how many there are."""
    none = len(lists)
    candidate = lists[rows, :columns]
    own = jnp.where(full[rows], candidate, none)  # [b, columns]
    inner = within[candidate]  # [b, columns, half]
    added = jnp.where(inner, lists[candidate, :half], none)
    found = (added[..., None] == own[:, None, None, :]).any(axis=3) & inner
    accepted = 3 * found.sum(axis=2) > 2 * inner.sum(axis=2)
    accepted &= full[rows]
    added = jnp.where(accepted[..., None], added, none).reshape(len(rows), -1)
    members = jnp.sort(jnp.concatenate([own, added], axis=1), axis=1)
    again = members[:, 1:] == members[:, :-1]
    members = members.at[:, 1:].set(jnp.where(again, none, members[:, 1:]))
    members = jnp.sort(members, axis=1)
    count = (members < none).sum(axis=1)
    members = _resized(members, capacity, none)
    difference = unit[jnp.minimum(members, none - 1)] - unit[rows][:, None]
    weight = jnp.exp(-jnp.square(difference).sum(axis=2))
    weight = jnp.where(members < none, weight, 0.0)
    weight /= jnp.maximum(weight.sum(axis=1, keepdims=True), 1e-30)
    return members, jnp.rint(weight * (ONE / k2)).astype(jnp.int32), count


@jax.jit
def _source(lists) -> jax.Array:
    """Whose set an item takes: its own, or that of the first of more equals than columns."""
    item = jnp.arange(len(lists), dtype=jnp.int32)
    return jnp.where((lists == item[:, None]).any(axis=1), item, lists[:, 0])


@functools.partial(jax.jit, static_argnames=("k2", "capacity"))
def _mean(
    lists, source, members, weights, rows, *, k2: int, capacity: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over the first neighbours of members and weights, and how many members there are."""
    none = len(lists)
    taken = source[lists[rows, :k2]]
    member, weight = (x[taken].reshape(len(rows), -1) for x in (members, weights))
    member, weight = jax.lax.sort((member, weight), dimension=1, num_keys=1)
    total = jnp.cumsum(weight, axis=1)
    edge = jnp.ones((len(rows), 1), bool)
    changes = member[:, 1:] != member[:, :-1]
    first = jnp.concatenate([edge, changes], axis=1)
    last = jnp.concatenate([changes, edge], axis=1) & (member < none)
    before = jax.lax.cummax(jnp.where(first, total - weight, 0), axis=1)
    member = jnp.where(last, member, none)
    weight = jnp.where(last, total - before, 0)
    member, weight = jax.lax.sort((member, weight), dimension=1, num_keys=1)
    count = (member < none).sum(axis=1)
    return _resized(member, capacity, none), _resized(weight, capacity, 0), count


def _resized(x: jax.Array, length: int, value: int) -> jax.Array:
    """The first columns, filled up at the right."""
    x = x[:, :length]
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1])), constant_values=value)
