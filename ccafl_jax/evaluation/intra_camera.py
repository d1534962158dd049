"""Retrieval inside cameras: every image of a camera is a query against the others of that camera.

A standard ranking leaves out the gallery images of the query's camera and identity; here they are
what is looked for.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.evaluation.ranking import JUNK, rank


@dataclasses.dataclass(frozen=True)
class IntraCameraRanking:
    """Metrics of one evaluation; all shares in 0..1.

    Attributes:
      mAP, rank1: means over all queries of all cameras; 0 if there are none.
      ap: float64[n], average precision by image; 0 where it is no query.
      valid: bool[n], the image is a query: its camera shows it again, and somebody else.
    """

    mAP: float
    rank1: float
    ap: np.ndarray
    valid: np.ndarray

    def summary(self) -> dict[str, float | int]:
        """The figures as Python numbers."""
        return {"mAP": self.mAP, "rank1": self.rank1, "queries": int(self.valid.sum())}


def rank_inside_cameras(
    f: jax.Array, pid: np.ndarray, camid: np.ndarray, *, metric: str = "cosine"
) -> IntraCameraRanking:
    """Ranks, for every image, the other images of its camera.

    A camera that shows one identity is left out: every order of its images is right.

    Args:
      f: float[n, D]; need not be normalised.
      pid: int[n]; images with id -1 (junk) are in no ranking.
      camid: int[n].
      metric: "cosine" or "euclidean".

    Returns:
      `IntraCameraRanking`.

    Raises:
      ValueError: shapes that do not fit, features that are not finite, an unknown metric.
    """
    pid, camid = np.asarray(pid), np.asarray(camid)
    if np.ndim(f) != 2 or not pid.shape == camid.shape == (len(f),):
        raise ValueError(
            f"features {np.shape(f)}, pid {pid.shape} and camid {camid.shape}: expected [n, dim], "
            "[n] and [n]"
        )
    f = jnp.asarray(f)
    ap, first, valid = np.zeros(len(pid)), np.zeros(len(pid), bool), np.zeros(len(pid), bool)
    for camera in np.unique(camid):
        rows = np.flatnonzero(camid == camera)
        features, own = f[rows], pid[rows]
        if len(np.unique(own[own != JUNK])) < 2:
            continue
        # With a camera of its own an image finds all of its identity but itself.
        itself = np.arange(len(rows))
        found = rank(features, features, own, own, itself, itself, metric=metric)
        ap[rows], valid[rows] = found.ap, found.valid
        first[rows] = found.first == 1
    queries = max(int(valid.sum()), 1)
    return IntraCameraRanking(
        mAP=float(ap.sum() / queries), rank1=float(first.sum() / queries), ap=ap, valid=valid
    )
