"""Scores of a trial: from features as they are, pooled, expanded or re-ranked."""

import dataclasses
import numbers

import numpy as np

from ccafl_jax.data.records import UNKNOWN_CAMERA
from ccafl_jax.evaluation.rerank import DISTANCES, expand_gallery, expand_queries
from ccafl_jax.evaluation.rerank import rerank as reranked
from ccafl_jax.neighbors.similarity import FeatureScores, ScoreProvider
from ccafl_jax.options import require, require_choice
from ccafl_jax.scoring.feature_set import MULTI_QUERY, FeatureSet
from ccafl_jax.scoring.trials import Trial

POOLS = ("mean", "max")
"""How the features of several query images become one."""


@dataclasses.dataclass(frozen=True)
class Rerank:
    """k-reciprocal re-ranking; see `ccafl_jax.evaluation.rerank.rerank`.

    Attributes:
      k1: neighbours that make an encoding.
      k2: neighbours whose encodings are averaged.
      lambda_: weight of the distance of the features.
      distance: `squared`, or `squared_twice` as CALR's released code has it.
    """

    k1: int = 20
    k2: int = 6
    lambda_: float = 0.3
    distance: str = "squared"

    def __post_init__(self):
        for name, count, most in (("k1", self.k1, np.inf), ("k2", self.k2, self.k1 + 1)):
            require(
                isinstance(count, numbers.Integral) and 1 <= count <= most,
                f"re-ranking with {name} {count}: expected an integer in 1.."
                + ("" if most == np.inf else f"{most} (k1 + 1)"),
            )
        require(0 <= self.lambda_ <= 1, f"re-ranking with lambda {self.lambda_}: expected 0..1")
        require_choice("distance of re-ranking", self.distance, DISTANCES)


@dataclasses.dataclass(frozen=True)
class Expand:
    """Query expansion; see `ccafl_jax.evaluation.rerank.expand_queries`.

    Attributes:
      k: nearest gallery items that count.
      alpha: 0 for the plain mean, else the power of the similarity that weighs each.
      gallery: expand the items of the gallery by each other, too.
    """

    k: int = 10
    alpha: float = 0.0
    gallery: bool = False

    def __post_init__(self):
        require(
            isinstance(self.k, numbers.Integral) and self.k >= 1,
            f"expansion with k {self.k}: expected an integer from 1",
        )
        require(0 <= self.alpha < np.inf, f"expansion with alpha {self.alpha}: expected 0 or more")


def scores_of(
    features: FeatureSet,
    trial: Trial,
    *,
    metric: str = "cosine",
    rerank: Rerank | None = None,
    expand: Expand | None = None,
    multi_query: str | None = None,
    progress: bool = False,
) -> tuple[ScoreProvider, dict[str, int]]:
    """Scores of a trial's queries against the images of its gallery.

    Args:
      features: the set.
      trial: of it.
      metric: `cosine`, `euclidean` or `dot`.
      rerank: see `ccafl_jax.scoring.evaluate.evaluate`, like the others.
      expand: applied before re-ranking.
      multi_query: applied first.
      progress: show bars.

    Returns:
      A score provider and counts of the images that were pooled.

    Raises:
      ValueError: there are no images to pool, a metric that expansion or re-ranking cannot use, or
        other options out of range.
    """
    query, gallery = features.features[trial.query], _rows_of(features.features, trial.gallery)
    counted = {}
    if multi_query is not None:
        query, counted = _pooled(features, trial.query, multi_query, metric)
    if expand is not None:
        asked = {"k": expand.k, "alpha": expand.alpha}
        query = expand_queries(query, gallery, progress=progress, **asked)
        if expand.gallery:
            gallery = expand_gallery(gallery, progress=progress, **asked)
    if rerank is not None:
        asked = dataclasses.asdict(rerank)
        return reranked(query, gallery, metric=metric, progress=progress, **asked), counted
    return FeatureScores(query, gallery, metric), counted


def _rows_of(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows, without a copy where they lie side by side."""
    if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return features[rows[0] : rows[0] + len(rows)]
    return features[rows]


def _pooled(
    features: FeatureSet, query: np.ndarray, pool: str, metric: str
) -> tuple[np.ndarray, dict[str, int]]:
    """Query features from all images of their identity and camera, float32[Q, D], and counts.

    For `cosine` each image has unit length first, so that all weigh alike. A query of whose
    identity and camera there is no further image keeps its feature.
    """
    extra = features.rows(MULTI_QUERY)
    require(
        len(extra) > 0,
        "there are no features of the part multi_query; extract them, or leave multi_query out",
    )
    rows = np.concatenate([query, extra])
    values = features.features[rows]
    if metric == "cosine":
        values = values / np.linalg.norm(values, axis=1, keepdims=True)
    keys = np.stack([features.pid[rows], features.camid[rows]])
    group = np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)
    asked, own = group[: len(query)], group[len(query) :]
    order = np.argsort(own, kind="stable")
    found, start = np.unique(own[order], return_index=True)
    reduce = np.add if pool == "mean" else np.maximum
    pooled = reduce.reduceat(values[len(query) :][order], start, axis=0)
    if pool == "mean":
        pooled /= np.diff(np.append(start, len(order)))[:, None]
    place = np.minimum(np.searchsorted(found, asked), len(found) - 1)
    there = (found[place] == asked) & (features.camid[query] != UNKNOWN_CAMERA)
    counted = {
        "multi_query_images": int(np.isin(own, asked[there]).sum()),
        "queries_without_multi_query": int(np.sum(~there)),
    }
    return np.where(there[:, None], pooled[place], values[: len(query)]), counted
