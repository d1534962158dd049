"""Which encoded items share enough weight, with NumPy on all cores."""

import concurrent.futures
import os

import numpy as np
from scipy import sparse

from ccafl_jax.progress import progress_bar
from ccafl_jax.ragged import ranges

_SHARED = 2**17  # members that two items share, looked at together: they fit a cache
_ITEMS = 256


def pairs(
    indices: np.ndarray, weights: np.ndarray, chosen: np.ndarray, least: int, progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of items the sum of whose smaller weights is at least `least`.

    Args:
      indices: int32[N, L], see `jaccard.Jaccard`.
      weights: int32[N, L].
      chosen: bool[N], the items that take part.
      least: of the sum, 1 or more.
      progress: shows a bar.

    Returns:
      int32[E] and int32[E], first < second in ascending order, and int64[E], the sums.
    """
    size = len(indices)
    used = (indices < size) & chosen[:, None]
    offsets = np.concatenate([[0], np.cumsum(used.sum(axis=1), dtype=np.int64)])
    member, weight = indices[used], weights[used]
    # The same entries by member, and where each of them stands there.
    entry = np.arange(len(member), dtype=np.int64)
    by_member = sparse.csr_array((entry, member, offsets), shape=(size, size)).tocsc()
    item, item_weight = by_member.indices, weight[by_member.data]
    following = np.empty_like(entry)
    following[by_member.data] = entry + 1
    # Each pair is found once, at its first item: what stands further down has higher numbers.
    count = by_member.indptr[1:][member] - following
    del entry, by_member
    work = np.concatenate([[0], np.cumsum(count, dtype=np.int64)])[offsets]

    def search(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        entries = slice(offsets[start], offsets[stop])
        place = ranges(following[entries], count[entries])
        owner = np.repeat(np.arange(offsets[stop] - offsets[start], dtype=np.int32), count[entries])
        shared = np.minimum(weight[entries][owner], item_weight[place])
        other = item[place]
        row = np.repeat(np.arange(stop - start), np.diff(offsets[start : stop + 1]))[owner]
        # Only the items that occur get a column.
        seen = np.zeros(size, bool)
        seen[other] = True
        columns = np.flatnonzero(seen)
        number = np.empty(size, np.int32)
        number[columns] = np.arange(len(columns), dtype=np.int32)
        key = row * len(columns) + number[other]
        # Sums of whole numbers below 2**53 are exact in float64.
        total = np.bincount(key, shared, minlength=(stop - start) * len(columns))
        found = np.flatnonzero(total >= least)
        first, second = np.divmod(found, max(len(columns), 1))
        first = (first + start).astype(np.int32)
        return first, columns[second].astype(np.int32), total[found].astype(np.int64)

    parts = []
    blocks = _blocks(work)
    with (
        progress_bar(size, "Jaccard distances", progress) as bar,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for (start, stop), part in zip(blocks, pool.map(lambda b: search(*b), blocks), strict=True):
            parts.append(part)
            bar.update(stop - start)
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def _blocks(work: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of items of about equal work; `work` is int64[N + 1], that of all items before."""
    blocks, start, size = [], 0, len(work) - 1
    while start < size:
        stop = int(np.searchsorted(work, work[start] + _SHARED, side="right")) - 1
        stop = min(max(stop, start + 1), start + _ITEMS, size)
        blocks.append((start, stop))
        start = stop
    return blocks
