"""Figures of the features of test tracklets under the protocol of their data set."""

from typing import Any

import numpy as np

from ccafl_jax.data.records import ReIDDataset, tracklets
from ccafl_jax.evaluation.camera_bias import same_camera_share
from ccafl_jax.numerics import l2_normalize
from ccafl_jax.scoring.evaluate import evaluate
from ccafl_jax.scoring.feature_set import feature_set

FIGURES = ("mAP", "rank1", "rank5", "rank10", "rank20")


def score_tracklets(
    features: np.ndarray, dataset: ReIDDataset, *, no_match: str = "skip"
) -> dict[str, Any]:
    """Ranking figures and camera bias of tracklets.

    Args:
      features: float[queries + gallery, dim], one of each tracklet, L2-normalised.
      dataset: records of both.
      no_match: see :func:`ccafl_jax.evaluation.ranking.rank`.

    Returns:
      FIGURES, the names of the data set and its protocol, the number of queries, and
      `same_camera_share`: of the five nearest tracklets of other identities, the share from the
      tracklet's own camera (junk and distractors left out).
    """
    found = feature_set(
        {"query": dataset.query, "gallery": dataset.gallery},
        features,
        dataset=dataset.name,
        camera_codes=dataset.camera_codes,
    )
    result = evaluate(found, no_match=no_match, figures=FIGURES).figures
    kept = {name: result[name] for name in ("dataset", "protocol", *FIGURES)}
    people = np.flatnonzero(np.isin(found.pid, tracklets(dataset.query).pid))
    share = same_camera_share(
        l2_normalize(found.features[people]), found.pid[people], found.camid[people]
    )
    counts = {"queries": result["counts"]["queries"], "gallery": result["counts"]["gallery"]}
    return {**kept, **counts, "same_camera_share": share}
