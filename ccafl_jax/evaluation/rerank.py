"""Rankings that look at neighbourhoods: k-reciprocal re-ranking and query expansion.

Re-ranking is exact and holds neither all queries against the gallery nor all items against all:
only a sparse row per item and one block of scores.
"""

import dataclasses
import numbers

import jax
import numpy as np
from scipy import sparse

from ccafl_jax.neighbors import reciprocal
from ccafl_jax.neighbors.similarity import (
    BLOCK_ELEMENTS,
    Blocks,
    FeatureScores,
    check_features,
    in_threads,
)
from ccafl_jax.neighbors.top_k import Neighbors, joined, self_top_k, top_k
from ccafl_jax.options import require_choice

METRICS = ("cosine", "euclidean")
DISTANCES = ("squared", "squared_twice")

_ROUNDING = 2e-6  # of squared lengths


@dataclasses.dataclass(frozen=True, eq=False)
class RerankScores:
    """Scores of k-reciprocal re-ranking, a block of queries at a time; built by `rerank`.

    A score is -((1 - lambda) J + lambda D): J the Jaccard distance of the k-reciprocal encodings, D
    the distance of the features, as a share of the query's largest one.
    """

    _features: FeatureScores
    _offset: np.ndarray  # float64[Q]; less twice the score it is the squared distance
    _furthest: np.ndarray  # float64[Q], squared distance to the furthest query or gallery item
    _power: int
    _lambda: float
    _query: sparse.csr_array  # encodings [Q, Q + G]
    _gallery: sparse.csc_array  # encodings [G, Q + G]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and of gallery items."""
        return self._features.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the scores."""
        return self._features.dtype

    def blocks(self, order: np.ndarray | None = None, *, elements: int = BLOCK_ELEMENTS) -> Blocks:
        """See `ScoreProvider.blocks`."""
        for rows, scores in self._features.blocks(order, elements=elements):

            def work(start: int, stop: int, rows=rows, scores=scores) -> None:
                self._combine(rows[start:stop], scores[start:stop])

            in_threads(work, *scores.shape)
            yield rows, scores

    def reported(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The scores."""
        return scores

    def _combine(self, rows: np.ndarray, scores: np.ndarray) -> None:
        """Turns scores of the features into those of the re-ranking, in place."""
        offset = self._offset[rows, None].astype(scores.dtype)
        np.multiply(scores, -2.0, out=scores)
        scores += offset
        np.maximum(scores, 0.0, out=scores)
        scores /= self._furthest[rows, None].astype(scores.dtype)
        if self._power == 2:
            scores *= scores
        scores *= -self._lambda
        jaccard = reciprocal.jaccard_block(self._query[rows], self._gallery)
        jaccard *= 1.0 - self._lambda
        scores -= jaccard


def rerank(
    query: np.ndarray | jax.Array,
    gallery: np.ndarray | jax.Array,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    metric: str = "cosine",
    distance: str = "squared",
    engine: str = "auto",
    progress: bool = False,
) -> RerankScores:
    """k-reciprocal re-ranking of a gallery.

    Every query and gallery item is encoded by its mutual neighbours among all of them, so scores
    of a query depend on the other queries and on the whole gallery: leave junk out beforehand.

    Args:
      query: float[Q, D]; need not be normalised.
      gallery: float[G, D].
      k1: neighbours that make an encoding, 1..Q + G - 1.
      k2: neighbours, the item itself included, whose encodings are averaged; 1..k1 + 1.
      lambda_: weight of the distance of the features, 0..1; 0 leaves only the neighbourhoods.
      metric: `cosine` (distances of the normalised features) or `euclidean`.
      distance: `squared` Euclidean distances, as published; `squared_twice` as CALR's released
        code does, which squares them again.
      engine: of the search for neighbours, see `neighbors.top_k`.
      progress: shows bars.

    Returns:
      `RerankScores`, for `ranking.rank_by`.

    Raises:
      ValueError: see `check_features`; an option out of range or unknown.

    Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR
    2017, arXiv 1701.08398), equation 12.
    """
    require_choice("metric", metric, METRICS)
    require_choice("distance", distance, DISTANCES)
    _check_options(np.shape(query)[:1] + np.shape(gallery)[:1], k1, k2, lambda_)
    f, squares, center = joined(metric, center=True, query=query, gallery=gallery)
    # Of unit vectors the product orders like the distance and costs no bias.
    unit = metric == "cosine" and center is None
    internal = "dot" if unit else "euclidean"
    nearest, worst = self_top_k(
        f, k1 + 1, metric=internal, worst=True, engine=engine, progress=progress
    )
    worst = worst.astype(np.float64)
    furthest = np.maximum(2.0 - 2.0 * worst if unit else np.square(worst), 0.0)
    # Where all items are one point, only rounding is left to divide by.
    furthest[furthest <= _ROUNDING * squares.max()] = 1.0
    power = 2 if distance == "squared_twice" else 1

    def share(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return (reciprocal.pair_distances(f, i, j) / furthest[i]) ** power

    encoding = reciprocal.encode(
        nearest.indices,
        share,
        columns=k1 + 1,
        half=reciprocal.half_columns(k1),
        k2=k2,
        progress=progress,
    )
    size = len(query)
    features = FeatureScores(f[:size], f[size:], internal)
    return RerankScores(
        features,
        np.full(size, 2.0) if unit else features.query_squares,
        furthest[:size],
        power,
        float(lambda_),
        encoding[:size],
        encoding[size:].tocsc(),
    )


def expand_queries(
    query: np.ndarray | jax.Array,
    gallery: np.ndarray | jax.Array,
    *,
    k: int = 10,
    alpha: float = 0.0,
    progress: bool = False,
) -> np.ndarray:
    """Query expansion: each query becomes a mean of itself and its nearest gallery items.

    Args:
      query: float[Q, D]; need not be normalised.
      gallery: float[G, D].
      k: gallery items that count, 1..G.
      alpha: 0 for the plain mean; else weights are the cosine similarity to this power, that of
        the query itself 1 and of items at more than a right angle 0.
      progress: shows a bar.

    Returns:
      float32[Q, D], normalised. A query whose mean vanishes stays as it was.

    Raises:
      ValueError: see `check_features`; k out of range; a negative alpha.

    Source: Chum et al., "Total Recall" (ICCV 2007); with alpha Radenovic et al. (TPAMI 2019,
    arXiv 1711.02512), section 3.
    """
    _check_alpha(alpha)
    check_features("cosine", query=query, gallery=gallery)
    found = top_k(query, gallery, k, progress=progress)
    query, gallery = joined("cosine", query=query).rows, joined("cosine", gallery=gallery).rows
    return _weighted_mean(query, gallery, found, alpha)


def expand_gallery(
    gallery: np.ndarray | jax.Array, *, k: int = 10, alpha: float = 0.0, progress: bool = False
) -> np.ndarray:
    """Augmentation of the gallery: `expand_queries` of each item by the nearest of the others.

    Args:
      gallery: float[G, D]; need not be normalised.
      k: other items that count, 1..G - 1.
      alpha: see `expand_queries`.
      progress: shows a bar.

    Returns:
      float32[G, D], normalised.

    Raises:
      ValueError: see `expand_queries`.

    Source: Arandjelovic and Zisserman (CVPR 2012), database-side feature augmentation.
    """
    _check_alpha(alpha)
    unit = joined("cosine", gallery=gallery).rows
    if not 1 <= k < len(unit):
        raise ValueError(f"k is {k}; expected 1..{len(unit) - 1}, the other gallery items")
    found = self_top_k(unit, k + 1, metric="dot", progress=progress)
    own = found.indices == np.arange(len(unit))[:, None]
    # Without the item itself; of more equal ones than k the last.
    own[~own.any(axis=1), -1] = True
    others = Neighbors(*(x[~own].reshape(-1, k) for x in found))
    return _weighted_mean(unit, unit, others, alpha)


def _weighted_mean(f: np.ndarray, gallery: np.ndarray, found: Neighbors, alpha: float):
    """Normalised sums of unit vectors and weighted neighbours."""
    weights = np.maximum(found.scores, 0.0) ** alpha if alpha else np.ones_like(found.scores)
    result = np.empty_like(f)

    def work(start: int, stop: int) -> None:
        near = gallery[found.indices[start:stop]]
        mean = f[start:stop] + np.einsum("qk,qkd->qd", weights[start:stop], near)
        norm = np.linalg.norm(mean, axis=1, keepdims=True)
        whole = norm > 1e-6
        result[start:stop] = np.where(whole, mean / np.where(whole, norm, 1.0), f[start:stop])

    in_threads(work, len(f), found.indices.shape[1] * f.shape[1])
    return result


def _check_options(sizes: tuple[int, ...], k1: int, k2: int, lambda_: float) -> None:
    items = sum(sizes)
    if not isinstance(k1, numbers.Integral) or not 1 <= k1 < items:
        raise ValueError(
            f"k1 is {k1}; expected an integer in 1..{items - 1}, as there are {items} items"
        )
    if not isinstance(k2, numbers.Integral) or not 1 <= k2 <= k1 + 1:
        raise ValueError(f"k2 is {k2}; expected an integer in 1..{k1 + 1} (k1 + 1)")
    if not 0.0 <= lambda_ <= 1.0:
        raise ValueError(f"lambda_ is {lambda_}; expected a share in 0..1")


def _check_alpha(alpha: float) -> None:
    if not 0.0 <= alpha < np.inf:
        raise ValueError(f"alpha is {alpha}; expected 0 or more")
