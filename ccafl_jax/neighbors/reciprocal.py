"""k-reciprocal encoding: each item as a sparse row of weights over its mutual neighbourhood.

The Jaccard distance of two rows compares the neighbourhoods. Pseudo labels and re-ranking share it
and differ in three numbers: how many columns of the neighbour lists count (`columns`, `half`),
and the distance that becomes a weight.

Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR 2017,
arXiv 1701.08398), equations 3 to 11.
"""

from collections.abc import Callable

import numpy as np
from scipy import sparse

from ccafl_jax.neighbors.similarity import in_threads
from ccafl_jax.progress import progress_bar
from ccafl_jax.ragged import ranges

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]

_ROWS = 4096  # between two steps of the progress bar
_PAIRS = 256  # rows of features that are gathered at a time: they fit a CPU's cache
_TRIPLES = 2**19


def half_columns(k1: int) -> int:
    """Columns of the neighbour lists that the expansion looks at: half of k1, and one more.

    Halves round to even, as in the published code: 20 -> 11, 30 -> 16, 15 -> 9, 5 -> 3.
    """
    return int(np.rint(k1 / 2)) + 1


def encode(
    neighbors: np.ndarray,
    distance: Distance,
    *,
    columns: int,
    half: int,
    k2: int = 1,
    progress: bool = False,
) -> sparse.csr_array:
    """The k-reciprocal encoding V of every item.

    R(i, c) are the items j among the first c neighbours of i that have i among their first c. To
    R(i, columns) is added R(q, half) of each of its members q of which more than two thirds lie
    in R(i, columns). Weights are exp(-distance) over the expanded set, and sum to 1. With `k2`
    above 1 a row becomes the mean of the rows of its first k2 neighbours. An item that is not among
    its own neighbours, which more equal items than columns bring about, takes the set and the
    weights of the first of them, so that equal items keep equal rows.

    Args:
      neighbors: int[N, K], nearest first, each item itself included.
      distance: of items i (int[p]) and j (int[p]), float[p]; called from several threads.
      columns: 1..K; k1 + 1 in the published re-ranking, k1 in the published Jaccard distance.
      half: 1..K; see `half_columns`.
      k2: 1..K.
      progress: shows a bar.

    Returns:
      float32[N, N] with sorted indices.

    Raises:
      ValueError: no neighbour lists of a set in itself, or counts out of range.
    """
    neighbors = np.asarray(neighbors)
    check_neighbors(neighbors, columns=columns, half=half, k2=k2)
    full = _reciprocal(neighbors, columns)
    expanded = _expand(full, _reciprocal(neighbors, half), distance, progress)
    item = np.arange(len(neighbors))
    own = (neighbors[:, :columns] == item[:, None]).any(axis=1)
    if not own.all():
        expanded = expanded[np.where(own, item, neighbors[:, 0])]
    if k2 == 1:
        return expanded
    mean = sum_rows(expanded, neighbors[:, :k2], progress=progress)
    mean.data /= k2
    return mean


def sum_rows(
    encoding: sparse.csr_array, nearest: np.ndarray, *, progress: bool = False
) -> sparse.csr_array:
    """The sum of the rows of each item's nearest neighbours, which is a query expansion.

    Args:
      encoding: [N, N], floats or whole numbers.
      nearest: int[N, k2].
      progress: shows a bar.

    Returns:
      [N, N] in the dtype of `encoding`, with sorted indices.
    """
    n, k2 = nearest.shape
    sums = []
    with progress_bar(n, "query expansion", progress) as bar:
        for start in range(0, n, _ROWS):
            lists = nearest[start : start + _ROWS].astype(np.int32)
            offsets = np.arange(0, lists.size + 1, k2)
            take = (np.ones(lists.size, encoding.dtype), lists.reshape(-1), offsets)
            found = sparse.csr_array(take, shape=(len(lists), n)) @ encoding
            found.sort_indices()
            sums.append(found)
            bar.update(len(lists))
    return sparse.vstack(sums, format="csr")


def jaccard_block(rows: sparse.csr_array, others: sparse.csc_array) -> np.ndarray:
    """Jaccard distances of some encoded items to others.

    Args:
      rows: float32[b, N], encoded items.
      others: float32[n, N], encoded items by column (`encoding[wanted].tocsc()`).

    Returns:
      float32[b, n] in 0..1: 1 - m / (2 - m), m the sum of the smaller weights.
    """
    size = others.shape[0]
    distances = np.ones((rows.shape[0], size), np.float32)
    length = np.diff(others.indptr)[rows.indices]
    done = np.concatenate([[0], np.cumsum(length, dtype=np.int64)])[rows.indptr]
    start = 0
    while start < rows.shape[0]:
        stop = int(np.searchsorted(done, done[start] + _TRIPLES, side="right")) - 1
        stop = max(stop, start + 1)
        entries = slice(rows.indptr[start], rows.indptr[stop])
        place = ranges(others.indptr[rows.indices[entries]], length[entries])
        entry = np.repeat(np.arange(len(length[entries])), length[entries])
        row = np.repeat(np.arange(stop - start), np.diff(rows.indptr[start : stop + 1]))
        pair = row[entry] * size + others.indices[place]
        shared = np.minimum(rows.data[entries][entry], others.data[place])
        shared = np.bincount(pair, shared, minlength=(stop - start) * size)[pair]
        distances[start:stop].reshape(-1)[pair] = np.maximum(1.0 - shared / (2.0 - shared), 0.0)
        start = stop
    return distances


def pair_distances(f: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of listed pairs of rows.

    Args:
      f: float[N, D].
      i: int[p].
      j: int[p].

    Returns:
      float[p], in the dtype of `f`.
    """
    distances = np.empty(len(i), f.dtype)
    for start in range(0, len(i), _PAIRS):
        part = slice(start, start + _PAIRS)
        difference = f[i[part]]
        difference -= f[j[part]]
        distances[part] = np.einsum("pd,pd->p", difference, difference)
    return distances


def _reciprocal(neighbors: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """R(i, columns) of all items: offsets int64[N + 1] and members int32[...]."""
    lists = np.ascontiguousarray(neighbors[:, :columns], np.int32)
    mutual = np.empty(lists.shape, bool)

    def work(start: int, stop: int) -> None:
        mine = np.arange(start, stop, dtype=np.int32)[:, None, None]
        mutual[start:stop] = (lists[lists[start:stop]] == mine).any(axis=2)

    in_threads(work, len(lists), 4 * columns * columns)
    return _offsets(mutual.sum(axis=1)), lists[mutual]


def _expand(full, half, distance: Distance, progress: bool) -> sparse.csr_array:
    """Weights over the expanded sets, before the mean over neighbours."""
    n = len(full[0]) - 1
    found: dict[int, tuple[np.ndarray, ...]] = {}
    # A thread's table of memberships fits its cache.
    row_elements = max(n // 4, 8 * int(np.diff(full[0]).max() * np.diff(half[0]).max()))
    with progress_bar(n, "k-reciprocal sets", progress) as bar:
        for first in range(0, n, _ROWS):
            stop = min(first + _ROWS, n)

            def work(a: int, b: int, first: int = first) -> None:
                found[first + a] = _weigh(*_expand_rows(full, half, first + a, first + b), distance)

            in_threads(work, stop - first, row_elements)
            bar.update(stop - first)
    counts, members, weights = (
        np.concatenate([found[start][part] for start in sorted(found)]) for part in range(3)
    )
    return sparse.csr_array((weights, members, _offsets(counts)), shape=(n, n))


def _expand_rows(full, half, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of an item start..stop - 1 and a member of its expanded set, sorted."""
    (offsets, members), (half_offsets, half_members) = full, half
    n = len(offsets) - 1
    candidate = members[offsets[start] : offsets[stop]]
    row = np.repeat(np.arange(stop - start), np.diff(offsets[start : stop + 1]))
    own = row * n + candidate
    table = np.zeros((stop - start) * n, bool)
    table[own] = True
    size = half_offsets[candidate + 1] - half_offsets[candidate]
    place = ranges(half_offsets[candidate], size)
    source = np.repeat(np.arange(len(size)), size)
    added = row[source] * n + half_members[place]
    inside = np.bincount(source[table[added]], minlength=len(candidate))
    accepted = 3 * inside > 2 * size
    pairs = np.sort(np.concatenate([own, added[accepted[source]]]))
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    row, member = np.divmod(pairs, n)
    return np.bincount(row, minlength=stop - start), start + row, member


def _weigh(counts: np.ndarray, item: np.ndarray, member: np.ndarray, distance: Distance):
    weights = np.exp(-distance(item, member).astype(np.float64))
    row = np.repeat(np.arange(len(counts)), counts)
    weights /= np.bincount(row, weights, minlength=len(counts))[row]
    return counts, member.astype(np.int32), weights.astype(np.float32)


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def check_neighbors(neighbors: np.ndarray, **counts: int) -> None:
    """Raises ValueError unless these are lists of a set in itself and counts lie in their columns.

    Args:
      neighbors: int[N, K].
      **counts: numbers of columns, by the name that messages use.
    """
    if neighbors.ndim != 2 or not np.issubdtype(neighbors.dtype, np.integer) or not neighbors.size:
        raise ValueError(
            f"neighbours are {neighbors.dtype} of shape {neighbors.shape}; expected indices [N, K]"
        )
    if neighbors.min() < 0 or neighbors.max() >= len(neighbors):
        raise ValueError(
            f"neighbours are {neighbors.min()}..{neighbors.max()}; expected rows of the same set, "
            f"0..{len(neighbors) - 1}"
        )
    for name, count in counts.items():
        if not 1 <= count <= neighbors.shape[1]:
            raise ValueError(
                f"{name} is {count}; expected 1..{neighbors.shape[1]}, the columns of the "
                "neighbour lists"
            )
