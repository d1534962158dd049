"""Which encoded items share enough weight, in jitted blocks on accelerators.

A block of items has a table of sums with a column for every item, filled by scattered additions of
whole numbers, whose result does not depend on their order.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ccafl_jax.neighbors.similarity import layouts, local_mesh, power_of_two, round_up
from ccafl_jax.progress import progress_bar

_TABLE = 2**28  # sums of a block on one device
_SHARED = 2**27  # members that two items share, looked at together
_GROUP = 32  # columns that are looked through together
_STARTING_PAIRS = 32  # of an item, for which there is room at first


def pairs(
    indices: jax.Array, weights: jax.Array, chosen: np.ndarray, least: int, progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `jaccard_on_host.pairs`, of arrays on devices."""
    size = len(indices)
    mesh = local_mesh()
    everywhere, split = layouts(mesh)
    indices, weights, chosen = jax.device_put((indices, weights, chosen), everywhere)
    tables = _by_member(indices, weights, chosen)
    work = np.asarray(tables[1].sum(axis=1), np.int64)
    columns = round_up(size, _GROUP)
    block = power_of_two(min(size, max(1, _TABLE // columns)))
    while block > 1 and _most_work(work, block) > _SHARED:
        block //= 2
    shared = power_of_two(max(1, _most_work(work, block)))
    capacity = power_of_two(min(block * columns, _STARTING_PAIRS * block))
    parts = []
    starts = np.arange(0, size, block, dtype=np.int32)
    starts = np.pad(starts, (0, -len(starts) % mesh.size), constant_values=size)
    with progress_bar(size, "Jaccard distances", progress) as bar:
        for first in range(0, len(starts), mesh.size):
            mine = starts[first : first + mesh.size]
            sent = jax.device_put(mine, split)
            while True:
                sizes = {"block": block, "columns": columns, "shared": shared}
                place, total, groups, number = jax.device_get(
                    _pairs_of_blocks(sent, *tables, least, mesh=mesh, capacity=capacity, **sizes)
                )
                if max(groups.max(), number.max()) <= capacity:
                    break
                capacity = power_of_two(int(max(groups.max(), number.max())))
            for start, own, sums, found in zip(
                mine,
                place.reshape(mesh.size, -1),
                total.reshape(mesh.size, -1),
                number,
                strict=True,
            ):
                row, column = np.divmod(own[:found], columns)
                parts.append((row + start, column, sums[:found].astype(np.int64)))
            bar.update(min(mesh.size * block, size - int(mine[0])))
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def _most_work(work: np.ndarray, block: int) -> int:
    return int(np.add.reduceat(work, np.arange(0, len(work), block)).max())


@jax.jit
def _by_member(indices, weights, chosen) -> tuple[jax.Array, ...]:
    """The entries of all rows by member, and what follows each of them there.

    Returns:
      int32[N, L] place of the entry that follows, int32[N, L] how many do; int32[N, L] weights, as
      they came; int32[N * L] items and int32[N * L] weights by member, items ascending.
    """
    size, length = indices.shape
    member = jnp.where(chosen[:, None], indices, size).reshape(-1)
    entry = jnp.arange(len(member), dtype=jnp.int32)
    member, order = jax.lax.sort((member, entry), num_keys=1)
    end = jnp.searchsorted(member, jnp.arange(size, dtype=jnp.int32), side="right")
    following = jnp.zeros(len(member), jnp.int32).at[order].set(entry + 1).reshape(size, length)
    used = (indices < size) & chosen[:, None]
    count = jnp.where(used, end[jnp.minimum(indices, size - 1)] - following, 0)
    return following, count, weights, order // length, weights.reshape(-1)[order]


@functools.partial(jax.jit, static_argnames=("mesh", "block", "columns", "shared", "capacity"))
def _pairs_of_blocks(
    starts, *tables_and_least, mesh, block: int, columns: int, shared: int, capacity: int
):
    """A block of items on each device; see `_pairs_of_block`."""
    whole = PartitionSpec()
    return jax.shard_map(
        functools.partial(
            _pairs_of_block, block=block, columns=columns, shared=shared, capacity=capacity
        ),
        mesh=mesh,
        in_specs=(PartitionSpec("data"), *[whole] * len(tables_and_least)),
        out_specs=PartitionSpec("data"),
        check_vma=False,
    )(starts, *tables_and_least)


def _pairs_of_block(
    start, following, count, weights, item, item_weight, least,
    *, block: int, columns: int, shared: int, capacity: int,
):  # fmt: skip
    """Pairs of items start, start + 1, ... with later ones.

    Returns:
      int32[capacity] places in the table of sums [block, columns], int32[capacity] sums, int32[1]
      groups of columns with a pair and int32[1] pairs; nothing is lost unless one of these is above
      the capacity.
    """
    rows = start[0] + jnp.arange(block, dtype=jnp.int32)
    length = count.shape[1]
    inside = jnp.minimum(rows, len(count) - 1)
    number = jnp.where((rows < len(count))[:, None], count[inside], 0).reshape(-1)
    done = jnp.cumsum(number)
    entry = jnp.repeat(jnp.arange(len(number), dtype=jnp.int32), number, total_repeat_length=shared)
    step = jnp.arange(shared, dtype=jnp.int32)
    place = following[inside].reshape(-1)[entry] + step - (done - number)[entry]
    place = jnp.clip(place, 0, len(item) - 1)
    smaller = jnp.minimum(weights[inside].reshape(-1)[entry], item_weight[place])
    row = jnp.where(step < done[-1], entry // length, block)
    sums = jnp.zeros((block, columns), jnp.int32)
    sums = sums.at[row, item[place]].add(smaller, mode="drop").reshape(-1, _GROUP)
    reached = (sums >= least).any(axis=1)
    groups = reached.sum(dtype=jnp.int32)
    group = jnp.nonzero(reached, size=capacity, fill_value=0)[0].astype(jnp.int32)
    near = sums[group]
    good = (near >= least) & (jnp.arange(capacity) < groups)[:, None]
    found = jnp.nonzero(good.reshape(-1), size=capacity, fill_value=0)[0].astype(jnp.int32)
    column = found % _GROUP
    total = near.reshape(-1)[found]
    pairs = good.sum(dtype=jnp.int32)
    return group[found // _GROUP] * _GROUP + column, total, groups[None], pairs[None]
