"""The Jaccard distance of k-reciprocal neighbourhoods, kept as one sparse row per item.

No step holds a matrix of all pairs. Weights are whole multiples of 2**-30, so that sums of them do
not depend on their order: threads, and additions that devices scatter, cannot change a label.
"""

import dataclasses
import functools
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from ccafl_jax.neighbors import reciprocal, reciprocal_on_devices
from ccafl_jax.neighbors.similarity import FeatureScores, check_features, in_threads, power_of_two
from ccafl_jax.neighbors.top_k import joined, on_device, self_top_k
from ccafl_jax.pseudo_labels import jaccard_on_devices, jaccard_on_host
from ccafl_jax.ragged import ranges

ONE = reciprocal_on_devices.ONE
"""The weight 1, in units of the weights."""

_ROUNDING = 64  # units by which a bound on sums is loosened before the exact comparison


class Pairs(NamedTuple):
    """Pairs of items that lie within a distance, each once.

    Attributes:
      first, second: int32[E], first < second, in ascending order.
      distance: float32[E].
    """

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Jaccard:
    """The Jaccard distances of N items; built by `jaccard`.

    Row i holds the weights V(i, .) over the neighbourhood of item i, which sum to 1. With m(i, j)
    the sum of the smaller weights of two rows, their distance is 1 - m / (2 - m); an item is at 0
    from itself.

    Attributes:
      indices: int32[N, L], members in ascending order; N where a row has no further one.
      weights: int32[N, L] in units of 2**-30; 0 there.
    """

    indices: np.ndarray | jax.Array
    weights: np.ndarray | jax.Array

    def __len__(self) -> int:
        return len(self.indices)

    def within(self, eps: float, *, copies: bool = True, progress: bool = False) -> Pairs:
        """All pairs of items whose distance is at most `eps`.

        Args:
          eps: above 0 and below 1; items that share no neighbour are at 1.
          copies: also pairs with items that `originals` gives to another one. Their number grows
            with the square of the copies.
          progress: shows a bar.

        Returns:
          `Pairs`.

        Raises:
          ValueError: eps out of range.
        """
        if not 0.0 < eps < 1.0:
            raise ValueError(f"eps is {eps}; expected a distance above 0 and below 1")
        original = self.originals
        chosen = original == np.arange(len(self))
        least = max(1, int(ONE * (2.0 - 2.0 * eps) / (2.0 - eps)) - _ROUNDING)
        search = jaccard_on_devices if isinstance(self.indices, jax.Array) else jaccard_on_host
        first, second, shared = search.pairs(self.indices, self.weights, chosen, least, progress)
        distance = _distance(shared)
        near = distance <= eps
        found = Pairs(first[near], second[near], distance[near])
        if not copies or chosen.all():
            return found
        return _with_copies(found, original, _distance(self._totals))

    @functools.cached_property
    def originals(self) -> np.ndarray:
        """The first item whose row equals that of each item, int32[N]; itself where none does.

        More than k1 equal images have equal rows. A row without members equals none.
        """
        prints = np.empty(len(self), np.uint64)
        if isinstance(self.indices, jax.Array):
            low, high = jax.device_get(_prints_on_device(self.indices, self.weights))
            prints[:] = low.astype(np.uint64) << np.uint64(32) | high
        else:
            factors = _factors(self.indices.shape[1], np.uint64)

            def work(start: int, stop: int) -> None:
                values = self.indices[start:stop].astype(np.uint64) * factors[0]
                values += self.weights[start:stop].astype(np.uint64)
                prints[start:stop] = (values * factors[1]).sum(axis=1)

            in_threads(work, *self.indices.shape)
        _, first, inverse = np.unique(prints, return_index=True, return_inverse=True)
        original = first[inverse.reshape(-1)].astype(np.int32)
        copy = np.flatnonzero(original != np.arange(len(self)))
        if len(copy):
            # Of padded numbers, so that another number of copies compiles nothing.
            padded = np.resize(copy, power_of_two(len(copy)))
            both = [
                tuple(np.asarray(x[rows])[: len(copy)] for rows in (padded, original[padded]))
                for x in (self.indices, self.weights)
            ]
            same = np.all([(a == b).all(axis=1) for a, b in both], axis=0)
            same &= both[1][0].any(axis=1)  # a row without members is at 1 from all others
            original[copy[~same]] = copy[~same]
        return original

    @property
    def _totals(self) -> np.ndarray:
        """What each row shares with itself: 1 but for rounding, 0 without members."""
        return np.asarray(self.weights.sum(axis=1), np.int64)

    def block(self, rows: np.ndarray) -> np.ndarray:
        """Distances of some items to all, float32[b, N].

        Args:
          rows: int[b], items.
        """
        encoding = self._encoding()
        return self._block(np.asarray(rows), encoding, encoding.tocsc())

    def dense(self) -> np.ndarray:
        """All distances, float32[N, N]; for small N."""
        encoding = self._encoding()
        return self._block(np.arange(len(self)), encoding, encoding.tocsc())

    def _block(self, rows: np.ndarray, encoding, by_member) -> np.ndarray:
        distances = reciprocal.jaccard_block(encoding[rows], by_member)
        distances[np.arange(len(rows)), rows] = 0.0
        return distances

    def _encoding(self) -> sparse.csr_array:
        """The rows with weights as float64, in which they and their sums are exact."""
        indices, weights = np.asarray(self.indices), np.asarray(self.weights)
        used = indices < len(self)
        offsets = np.concatenate([[0], np.cumsum(used.sum(axis=1), dtype=np.int64)])
        shape = (len(self), len(self))
        return sparse.csr_array((weights[used] / ONE, indices[used], offsets), shape=shape)


def jaccard(
    features: np.ndarray | jax.Array,
    *,
    k1: int = 30,
    k2: int = 6,
    neighbors: np.ndarray | None = None,
    engine: str = "auto",
    progress: bool = False,
) -> Jaccard:
    """The Jaccard distances of items from their features.

    An item's neighbourhood are the members of its k1 nearest that have it among theirs, and the
    smaller neighbourhoods (half of k1) of those whose own lies in it to more than two thirds.

    Args:
      features: float[N, D]; need not be normalised.
      k1: columns of the neighbour lists, the item itself included; above N it counts as N.
      k2: neighbours, the item itself included, whose rows are averaged; 1..k1.
      neighbors: int[N, k1 or more], nearest first, the item itself included; searched for by
        cosine when None.
      engine: `host` computes with NumPy beside XLA's CPU products, `device` in jitted blocks on
        all local devices, which hold the features and the rows; `auto` is `device` unless JAX runs
        on CPUs.
      progress: shows bars.

    Returns:
      `Jaccard`, which lies where it was computed.

    Raises:
      ValueError: features that are no matrix, NaN, infinite or zero vectors (see
        `check_features`); k1 or k2 out of range; neighbour lists that do not fit.

    Source: SpCL's and ClusterContrast's `compute_jaccard_distance`, which CALR (specification 3)
    and CCLNet (5.1) share. Its lists have k1 columns where re-ranking has k1 + 1.
    """
    _check_counts(k1, k2)
    device = on_device(engine)
    size = len(features) if np.ndim(features) else 0
    columns = min(k1, max(size, 1))
    counts = {
        "columns": columns,
        "half": min(reciprocal.half_columns(columns), columns),
        "k2": min(k2, columns),
    }
    if neighbors is not None:
        _check_lists(neighbors, size, columns)
    if device:
        check_features("cosine", image=features)
        provider = FeatureScores(features, features, "cosine")
        if neighbors is None:
            neighbors = self_top_k(
                features, columns, metric="cosine", engine=engine, progress=progress
            ).indices
        unit = provider.on_device()[0]
        return Jaccard(*reciprocal_on_devices.encode(neighbors, unit, **counts, progress=progress))
    rows = joined("cosine", center=True, image=features)
    if neighbors is None:
        # Of unit vectors the product orders like the distance and costs no bias.
        metric = "dot" if rows.center is None else "euclidean"
        neighbors = self_top_k(
            rows.rows, columns, metric=metric, engine=engine, progress=progress
        ).indices
    k2 = counts.pop("k2")
    encoding = reciprocal.encode(
        neighbors,
        lambda i, j: reciprocal.pair_distances(rows.rows, i, j),
        **counts,
        progress=progress,
    )
    weights = np.rint(encoding.data * (ONE / k2)).astype(np.int32)
    whole = sparse.csr_array((weights, encoding.indices, encoding.indptr), shape=encoding.shape)
    if k2 > 1:
        whole = reciprocal.sum_rows(whole, np.asarray(neighbors)[:, :k2], progress=progress)
    return _padded(whole)


def _padded(encoding: sparse.csr_array) -> Jaccard:
    count = np.diff(encoding.indptr)
    shape = len(count), max(1, int(count.max(initial=0)))
    indices, weights = np.full(shape, len(count), np.int32), np.zeros(shape, np.int32)
    used = np.arange(shape[1]) < count[:, None]
    indices[used], weights[used] = encoding.indices, encoding.data
    return Jaccard(indices, weights)


def _distance(shared: np.ndarray) -> np.ndarray:
    shared = shared / ONE
    return np.maximum(1.0 - shared / (2.0 - shared), 0.0).astype(np.float32)


def _with_copies(found: Pairs, original: np.ndarray, own: np.ndarray) -> Pairs:
    """Adds the pairs of copies: those of their originals, and the copies of one with each other."""
    count = np.bincount(original, minlength=len(original))
    start = np.concatenate([[0], np.cumsum(count)])
    member = np.argsort(original, kind="stable")
    several = np.flatnonzero(count > 1)
    left = np.concatenate([found.first, several])
    right = np.concatenate([found.second, several])
    distance = np.concatenate([found.distance, own[several]])
    # All members of the left group with all of the right one.
    pair = np.repeat(np.arange(len(left)), count[left])
    first = member[ranges(start[left], count[left])]
    wide = count[right][pair]
    second = member[ranges(start[right][pair], wide)]
    first, pair = np.repeat(first, wide), np.repeat(pair, wide)
    keep = (left[pair] != right[pair]) | (first < second)
    first, second, distance = first[keep], second[keep], distance[pair[keep]]
    first, second = np.minimum(first, second), np.maximum(first, second)
    order = np.lexsort((second, first))
    return Pairs(first[order].astype(np.int32), second[order].astype(np.int32), distance[order])


def _factors(length: int, dtype: np.dtype) -> np.ndarray:
    """Odd factors of a fingerprint of rows, [2, length]."""
    half = np.iinfo(dtype).max // 2
    return np.random.default_rng(0).integers(0, half, (2, length), dtype) * dtype(2) + dtype(1)


@jax.jit
def _prints_on_device(indices: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    factors = _factors(2 * indices.shape[1], np.uint32).reshape(2, 2, -1)
    indices, weights = indices.astype(jnp.uint32), weights.astype(jnp.uint32)
    low, high = (((indices * a + weights) * b).sum(axis=1, dtype=jnp.uint32) for a, b in factors)
    return low, high


def _check_counts(k1: int, k2: int) -> None:
    if not isinstance(k1, numbers.Integral) or k1 < 1:
        raise ValueError(f"k1 is {k1}; expected a whole number of neighbours, 1 or more")
    if not isinstance(k2, numbers.Integral) or not 1 <= k2 <= k1:
        raise ValueError(f"k2 is {k2}; expected a whole number in 1..{k1} (k1)")


def _check_lists(neighbors: np.ndarray, size: int, columns: int) -> None:
    shape = np.shape(neighbors)
    if len(shape) != 2 or shape[0] != size or shape[1] < columns:
        raise ValueError(
            f"neighbours have shape {shape}; expected [{size}, {columns} or more], a list for each "
            "item with k1 columns"
        )
