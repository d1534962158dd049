"""Whether the camera can be read from a feature: a linear and a nearest-neighbour probe.

The probes are shown, never an acceptance figure: a backdrop is enough for them, so that they
saturate long before a feature stops misleading the search (see `camera_bias` for that).
"""

from typing import Any

import jax
import numpy as np

from ccafl_jax.neighbors.top_k import joined, top_k


def camera_probes(
    f: jax.Array,
    pid: np.ndarray,
    camid: np.ndarray,
    *,
    k: int = 5,
    ridge: float = 1e-3,
    seed: int = 0,
) -> dict[str, Any]:
    """Balanced accuracy of two probes of the camera, on people they were not fitted to.

    Half of the identities, drawn at random, fit the probes; the others ask them. The linear probe
    is a ridge regression of the cameras' indicators, in which every camera weighs the same.

    Args:
      f: float[n, D]; L2-normalised here. Leave out junk and distractors beforehand.
      pid: int[n].
      camid: int[n].
      k: neighbours that vote; of equal numbers the smaller camera wins.
      ridge: penalty, relative to the mean variance of a feature's entries.
      seed: of the draw of identities.

    Returns:
      `linear` and `knn`: mean over cameras of the share of their images that are recognised; and
      `chance`, 1 / cameras. Only cameras with images on both sides count; NaN with fewer than two.

    Raises:
      ValueError: features that are not finite or zero, or no row for each label.
    """
    x = np.asarray(joined("cosine", extracted=f).rows, np.float64)
    pid, camid = np.asarray(pid), np.asarray(camid)
    if not len(x) == len(pid) == len(camid):
        raise ValueError(f"{len(x)} features, {len(pid)} identities and {len(camid)} cameras")
    people = np.unique(pid)
    chosen = np.random.default_rng(seed).permutation(people)[: len(people) // 2]
    fits = np.isin(pid, chosen)
    cameras = np.intersect1d(camid[fits], camid[~fits])
    if len(cameras) < 2:
        return {"linear": float("nan"), "knn": float("nan"), "chance": float("nan")}
    known = np.isin(camid, cameras)
    camera = np.searchsorted(cameras, camid)
    fit, ask = np.flatnonzero(fits & known), np.flatnonzero(~fits & known)
    count = len(cameras)
    linear = _linear(x[fit], camera[fit], x[ask], count, ridge)
    nearest = top_k(x[ask].astype(np.float32), x[fit].astype(np.float32), min(k, len(fit)))
    votes = camera[fit][nearest.indices]
    counted = np.sum(votes[:, :, None] == np.arange(count), axis=1)
    return {
        "linear": _balanced(linear, camera[ask], count),
        "knn": _balanced(np.argmax(counted, axis=1), camera[ask], count),
        "chance": 1 / count,
    }


def _linear(x, camera, asked, count: int, ridge: float) -> np.ndarray:
    """Cameras that a ridge regression with equal weight of cameras gives."""
    target = np.eye(count)[camera]
    weight = 1.0 / np.bincount(camera, minlength=count)[camera] / count
    mean, mean_target = weight @ x, weight @ target
    centered = x - mean
    gram = (centered * weight[:, None]).T @ centered
    gram += ridge * max(np.trace(gram) / len(gram), 1e-30) * np.eye(len(gram))
    slope = np.linalg.solve(gram, (centered * weight[:, None]).T @ (target - mean_target))
    return np.argmax((asked - mean) @ slope + mean_target, axis=1)


def _balanced(found: np.ndarray, true: np.ndarray, count: int) -> float:
    right = np.bincount(true[found == true], minlength=count)
    return float(np.mean(right / np.bincount(true, minlength=count)))
