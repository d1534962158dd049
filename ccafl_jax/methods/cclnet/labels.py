"""The clusters of an epoch: those of each modality, and how well they meet across modalities."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ccafl_jax.memory import init_centroids
from ccafl_jax.methods.cclnet.config import ClusteringConfig
from ccafl_jax.models.dual_stream import MODALITIES
from ccafl_jax.pseudo_labels.dbscan import jaccard_dbscan
from ccafl_jax.pseudo_labels.matching import match_prototypes, matching_precision
from ccafl_jax.pseudo_labels.quality import pairwise


def cluster_modalities(
    features: jax.Array, infrared: np.ndarray, pid: np.ndarray, config: ClusteringConfig
) -> dict[str, Any]:
    """Clusters the images of each modality alone (specification 5.1).

    Args:
      features: float[n, dim], L2-normalised.
      infrared: bool[n].
      pid: int[n], true identities, for the report alone; negative where nobody knows them.
      config: options.

    Returns:
      labels: int32[n], clusters of each modality from 0, -1 for none; report: figures for the log.

    Raises:
      ValueError: a modality without a cluster.
    """
    labels, report, known = np.full(len(infrared), -1, np.int32), {}, (pid >= 0).all()
    for side, name in enumerate(MODALITIES):
        rows = np.flatnonzero(infrared == bool(side))
        found = jaccard_dbscan(
            features[rows],
            k1=config.k1,
            k2=config.k2,
            eps=config.eps,
            min_samples=config.min_samples,
        )
        if not found.num_clusters:
            raise ValueError(
                f"no cluster among {len(rows)} {name} images within {config.eps} of "
                f"{config.min_samples} images: raise clustering.eps or lower "
                "clustering.min_samples, or look at the learning rate"
            )
        labels[rows] = found.labels
        report[f"clusters_{name}"] = found.num_clusters
        report[f"labelled_share_{name}"] = float(np.mean(found.labels >= 0))
        if known:
            pairs = pairwise(found.labels, pid[rows], outliers="drop")._asdict()
            report |= {f"{key}_{name}": pairs[key] for key in ("precision", "recall")}
    if known:
        report["matching_precision"] = _matching_precision(features, labels, infrared, pid)
    return {"labels": labels, "report": report}


def clusters_of(labels: np.ndarray, infrared: np.ndarray) -> Mapping[str, int]:
    """Number of clusters by modality."""
    return {
        name: int(labels[infrared == bool(side)].max(initial=-1)) + 1
        for side, name in enumerate(MODALITIES)
    }


def _matching_precision(features, labels, infrared, pid) -> float:
    """Share of matched clusters whose majority is one person, before any step of the epoch."""
    sides = [np.flatnonzero(infrared == side) for side in (False, True)]
    counts = clusters_of(labels, infrared).values()
    memory = [
        init_centroids(features[rows], labels[rows], count)
        for rows, count in zip(sides, counts, strict=True)
    ]
    visible, thermal = sides
    return matching_precision(
        match_prototypes(*memory), labels[visible], pid[visible], labels[thermal], pid[thermal]
    )
