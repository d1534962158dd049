"""The labels of an epoch: clusters of a camera, and of all, refined by those of each alone."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ccafl_jax.methods.calr.config import (
    CALRConfig,
    ClusteringConfig,
    LocalConfig,
    RefinementConfig,
)
from ccafl_jax.pseudo_labels.agglomerative import jaccard_linkage
from ccafl_jax.pseudo_labels.infomap import Graph, knn_graph, module_labels
from ccafl_jax.pseudo_labels.quality import pairwise
from ccafl_jax.pseudo_labels.refinement import (
    Refined,
    camera_entropy_weights,
    choose_pivots,
    informativeness,
    refine,
    removal_figures,
    removal_probability,
)

Refiner = Callable[..., Refined]


def camera_labels(features: jax.Array, config: LocalConfig) -> dict[str, Any]:
    """Clusters of the images of one camera (specification 3).

    Args:
      features: float[n, dim].
      config: options.

    Returns:
      labels: int32[n], from 0 without gaps; silhouette: of the clusters.
    """
    found = jaccard_linkage(features, clusters=config.clusters, k1=config.k1, k2=config.k2)
    return {"labels": found.labels, "silhouette": found.diagnostics["silhouette"]}


def global_labels(
    features: jax.Array,
    camid: np.ndarray,
    local: np.ndarray,
    pid: np.ndarray,
    config: CALRConfig,
    *,
    epoch: int,
    refiner: Refiner,
) -> dict[str, Any]:
    """Labels and weights of an epoch of stage 2 (specification 4.1 to 4.4).

    Args:
      features: float[n, dim], L2-normalised.
      camid: int[n].
      local: int[n], cluster of each image inside its camera; not read without refinement.
      pid: int[n], true identities, for the report alone; negative where nobody knows them.
      config: options.
      epoch: of stage 2, counted from 0.
      refiner: `refine_by_pivots`, or a control in its place.

    Returns:
      labels: int32[n], -1 for images without a cluster or removed from it; weights:
      float32[clusters], how much each counts; report: figures for the log.

    Raises:
      ValueError: no cluster was found.
    """
    options = config.clustering
    graph = knn_graph(features, k=options.k, min_similarity=options.min_similarity)
    found = module_labels(graph, min_size=options.min_size)
    if not found.num_clusters:
        raise ValueError(_nothing_found(options, found.diagnostics))
    labels, report = found.labels, {"clusters": found.num_clusters}
    if config.refinement.enabled:
        probability = removal_probability(
            epoch, epochs=config.schedule.epochs, schedule=config.refinement.probability
        )
        refined = refiner(
            labels,
            camid,
            local,
            graph,
            config.refinement,
            probability=probability,
            seed=(config.seed, epoch),
        )
        labels = refined.labels
        report |= {
            "pivots": len(refined.pivots),
            "removed": len(refined.removed),
            "removed_share": len(refined.removed) / np.sum(found.labels >= 0),
        }
        report |= _removal_report(found.labels, refined, pid)
    report["labelled_share"] = float(np.mean(labels >= 0))
    report |= _pairs_report(labels, pid)
    weights = camera_entropy_weights(labels, camid)
    report["single_camera_share"] = float(np.mean(weights == 0))
    if not 0 <= config.contrast.weights_from <= epoch:
        weights = np.ones_like(weights)
    return {"labels": labels, "weights": weights, "report": report}


def refine_by_pivots(
    labels: np.ndarray,
    camid: np.ndarray,
    local: np.ndarray,
    graph: Graph,
    config: RefinementConfig,
    *,
    probability: float,
    seed: tuple[int, int],
) -> Refined:
    """CALR's refinement, from the graph whose modules the labels are.

    Args:
      labels: int[n], before refinement.
      camid: int[n].
      local: int[n].
      graph: of nearest neighbours.
      config: rule of the pivots.
      probability: of a removal.
      seed: of the draws.
    """
    pivots = choose_pivots(labels, informativeness(graph), camid, rule=config.pivot)
    return refine(labels, camid, local, pivots, probability=probability, seed=seed)


def _removal_report(labels: np.ndarray, refined: Refined, pid: np.ndarray) -> dict[str, float]:
    if (pid < 0).any():
        return {}
    before = {f"{key}_before": value for key, value in _pairs_report(labels, pid).items()}
    removal = removal_figures(labels, refined, pid)
    return before | {f"removal_{key}": value for key, value in removal.items()}


def _pairs_report(labels: np.ndarray, pid: np.ndarray) -> dict[str, float]:
    """Agreement over pairs of clustered images, where identities are known."""
    if (pid < 0).any():
        return {}
    return pairwise(labels, pid, outliers="drop")._asdict()


def _nothing_found(options: ClusteringConfig, figures) -> str:
    return (
        f"no cluster of {options.min_size} images or more ({figures['edges']} edges between "
        f"images of cosine {options.min_similarity} and above, {figures['modules']} modules): "
        "lower clustering.min_similarity or clustering.min_size, or look at the learning rate"
    )
