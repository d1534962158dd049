"""Camera-aware refinement: which images a global cluster keeps, and how much it counts.

A global cluster has a pivot, an image with many close neighbours. Images of its cluster and its
camera that lie in another local cluster than the pivot, as clustering that camera alone found
them, leave the cluster for this epoch. Everything is a function of arrays; true identities appear
in `removal_figures` alone.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ccafl_jax.options import require_choice
from ccafl_jax.pseudo_labels.infomap import Graph
from ccafl_jax.pseudo_labels.labels import commonest

RULES = ("max", "max_per_camera", "last")
SCHEDULES = ("one", "cosine")

_LEAST_DISTANCE = float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True, eq=False)
class Refined:
    """Result of `refine`.

    Attributes:
      labels: int32[n], the labels with -1 for removed images; clusters keep their numbers.
      num_clusters: how many; none becomes empty.
      pivots: int32[pivots], images.
      pivot_of: int32[n], the pivot that shares cluster and camera with each image; -1 for none.
      candidates: int32[candidates], images that disagree with a pivot, ascending.
      removed: int32[removed], those candidates that left, ascending.
      diagnostics: the numbers `pivots`, `candidates` and `removed`.
    """

    labels: np.ndarray
    num_clusters: int
    pivots: np.ndarray
    pivot_of: np.ndarray
    candidates: np.ndarray
    removed: np.ndarray
    diagnostics: Mapping[str, int]


def informativeness(graph: Graph) -> np.ndarray:
    """How many close neighbours an item has: sum over its edges of 1 / (distance + mean distance).

    Args:
      graph: of nearest neighbours, see `knn_graph`.

    Returns:
      float64[N], 0 for items without an edge.

    Source: CALR (specification 4.2); the mean includes the items' distances to themselves.
    """
    # Rounding leaves equal items just below distance 0, and copies alone have a mean of 0.
    distance = np.maximum(graph.distance.astype(np.float64) + graph.mean_distance, _LEAST_DISTANCE)
    return np.bincount(graph.source, 1 / distance, minlength=graph.size)


def choose_pivots(
    labels: np.ndarray, score: np.ndarray, camid: np.ndarray | None = None, *, rule: str = "max"
) -> np.ndarray:
    """The pivots of clusters, among the members whose score is above the mean of all items.

    Args:
      labels: int[n], cluster of each item; -1 for an outlier, whose score counts in the mean.
      score: float[n], see `informativeness`.
      camid: int[n], camera of each item; only `max_per_camera` needs it.
      rule: `max` takes the highest score of each cluster (equal ones: the first item);
        `max_per_camera` that of each camera in each cluster; `last` the last item of each
        cluster, so that the order of images decides.

    Returns:
      int32[pivots], items by ascending cluster, then camera. A cluster without a member above the
      mean has none.

    Raises:
      ValueError: shapes that do not fit, labels with gaps, NaN or infinite scores, an unknown
        rule, or no cameras where the rule needs them.

    Source: CALR (specification 4.2). The released code has `last`; `max` is ours, and
      `max_per_camera` one of its experiments, there for groups of more than 4 images and with
      one of the pivots kept.
    """
    require_choice("rule", rule, RULES)
    if rule == "max_per_camera" and camid is None:
        raise ValueError("rule max_per_camera needs the camera of each item; pass camid")
    camid = np.zeros(np.shape(labels), np.int64) if rule != "max_per_camera" else camid
    labels, score, camid = _checked(labels, score=np.asarray(score, np.float64), camid=camid)
    if not np.isfinite(score).all():
        raise ValueError(
            f"scores of {np.sum(~np.isfinite(score))} items are NaN or infinite; expected finite "
            "numbers, see informativeness"
        )
    # The exact sum does not depend on the order of items. Of equal scores none is above the mean,
    # to whichever side the mean is rounded.
    mean = max(math.fsum(score) / max(len(score), 1), score.min(initial=np.inf))
    items = np.flatnonzero((labels >= 0) & (score > mean))
    group = _groups(labels, camid)[items]
    value = items if rule == "last" else score[items]
    # The last of each group: its highest value, and of equal ones the first item.
    order = np.lexsort((-items, value, group))
    last = np.diff(group[order], append=-1) != 0
    return items[order[last]].astype(np.int32)


def refine(
    labels: np.ndarray,
    camid: np.ndarray,
    local: np.ndarray,
    pivots: np.ndarray,
    *,
    probability: float = 1.0,
    seed: int | Sequence[int] = 0,
) -> Refined:
    """Removes images that share cluster and camera with a pivot, but not the local cluster.

    Nothing else changes: images of other cameras are not examined, nothing is split or merged,
    and a pivot stays.

    Args:
      labels: int[n], global cluster of each image; -1 for an outlier.
      camid: int[n], camera of each image.
      local: int[n], cluster of each image inside its camera, see `local_clusters`.
      pivots: int[pivots], images, see `choose_pivots`; at most one for a camera of a cluster.
      probability: with which a candidate is removed, 0..1; see `removal_probability`.
      seed: seed of numpy's generator, an integer or several, e.g. (seed, epoch). An image's draw
        depends on it and its index alone, so a higher probability removes what a lower one does,
        and more.

    Returns:
      `Refined`.

    Raises:
      ValueError: shapes that do not fit, labels with gaps, negative local clusters, pivots that
        are outliers or meet in a camera of a cluster, or a probability out of range.

    Source: CALR (specification 4.3); the released code has probability 1.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}; expected 0..1")
    labels, camid, local = _checked(labels, camid=camid, local=local)
    if local.size and local.min() < 0:
        raise ValueError(
            f"{np.sum(local < 0)} images have no local cluster (first: {np.argmax(local < 0)}); "
            "expected 0 or more for every image, cluster each camera without outliers"
        )
    group = _groups(labels, camid)
    pivots = _checked_pivots(pivots, labels, group)
    pivot_of_group = np.full(group.max(initial=-1) + 1, -1, np.int32)
    pivot_of_group[group[pivots]] = pivots
    pivot_of = np.full(len(labels), -1, np.int32)
    pivot_of[labels >= 0] = pivot_of_group[group[labels >= 0]]
    candidate = (pivot_of >= 0) & (local != local[pivot_of])
    removed = candidate & (np.random.default_rng(seed).random(len(labels)) < probability)
    found = {
        "pivots": pivots,
        "candidates": np.flatnonzero(candidate).astype(np.int32),
        "removed": np.flatnonzero(removed).astype(np.int32),
    }
    return Refined(
        np.where(removed, -1, labels).astype(np.int32),
        int(labels.max(initial=-1)) + 1,
        **found,
        pivot_of=pivot_of,
        diagnostics={name: len(images) for name, images in found.items()},
    )


def removal_probability(epoch: int, *, epochs: int, schedule: str = "one") -> float:
    """The probability with which a candidate is removed in an epoch.

    Args:
      epoch: 0..epochs.
      epochs: of the run.
      schedule: `one` is 1 throughout; `cosine` is (1 + cos(pi epoch / (3 epochs))) / 2, which
        falls from 1 to 0.75.

    Raises:
      ValueError: an unknown schedule, or an epoch outside the run.

    Source: CALR (specification 4.3); the released code has `one`, and `cosine` in a comment.
    """
    require_choice("schedule", schedule, SCHEDULES)
    if not 0 <= epoch <= epochs or epochs < 1:
        raise ValueError(f"epoch is {epoch} of {epochs}; expected 0..epochs of 1 epoch or more")
    return 1.0 if schedule == "one" else 0.5 * (1 + math.cos(math.pi * epoch / (3 * epochs)))


def camera_entropy_weights(labels: np.ndarray, camid: np.ndarray) -> np.ndarray:
    """Weights of clusters that grow with the number of cameras and the balance between them.

    Args:
      labels: int[n], cluster of each image that is left; -1 for an outlier.
      camid: int[n], camera of each image.

    Returns:
      float32[clusters], ln(1 + H) with the entropy H = -sum q ln q of the shares q of cameras
      among the members, in nats; 0 for a cluster of one camera.

    Raises:
      ValueError: shapes that do not fit, or labels with gaps.

    Source: CALR (specification 4.4).
    """
    labels, camid = _checked(labels, camid=camid)
    cluster, _, count, size = _cells(labels, camid)
    share = count / size[cluster]
    entropy = np.bincount(cluster, -share * np.log(share), minlength=len(size))
    return np.log1p(entropy).astype(np.float32)


def removal_figures(labels: np.ndarray, refined: Refined, pid: np.ndarray) -> dict[str, float]:
    """Whether the removed images were rightly removed, by identities that training never sees.

    An image differs if its identity is not the majority of its cluster before refinement (of
    equals: the smallest identity).

    Args:
      labels: int[n], as they were before refinement.
      refined: result of `refine` on them.
      pid: [n], true identity of each image, in any type that sorts.

    Returns:
      precision: share of the removed images that differ; recall: share of the differing images of
      all clusters that were removed. The same by what a pivot can tell: pivot_precision, share of
      the removed images whose identity is not that of their pivot; pivot_recall, share of the
      images of a pivot's cluster and camera with another identity that were removed. A share of
      nothing is 0.

    Raises:
      ValueError: shapes that do not fit, or labels with gaps.
    """
    pid = np.unique(pid, return_inverse=True)[1].reshape(np.shape(pid))
    labels, pid = _checked(labels, pid=pid)
    if refined.labels.shape != labels.shape:
        raise ValueError(
            f"refined labels have shape {refined.labels.shape} and labels {labels.shape}; "
            "expected the result of refine on these labels"
        )
    inside = labels >= 0
    _, majority = commonest(labels[inside], pid[inside])
    # A label of -1 reads the last cluster, and is left out again.
    differs = inside & (pid != np.append(majority, 0)[labels])
    differs_from_pivot = (refined.pivot_of >= 0) & (pid != pid[refined.pivot_of])
    removed = refined.removed
    return {
        "precision": _share(differs[removed].sum(), len(removed)),
        "recall": _share(differs[removed].sum(), differs.sum()),
        "pivot_precision": _share(differs_from_pivot[removed].sum(), len(removed)),
        "pivot_recall": _share(differs_from_pivot[removed].sum(), differs_from_pivot.sum()),
    }


def _share(part: int, whole: int) -> float:
    return float(part) / float(whole) if whole else 0.0


def _cells(labels: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, ...]:
    """Images of each cluster and kind that have any, and of each cluster.

    Returns:
      int[cells] clusters, ascending; int[cells] kinds; int[cells] images; int[clusters] images.
    """
    inside = labels >= 0
    pairs = np.stack([labels[inside], kind[inside]])
    (cluster, kind_of), count = np.unique(pairs, axis=1, return_counts=True)
    return cluster, kind_of, count, np.bincount(labels[inside])


def _groups(labels: np.ndarray, camid: np.ndarray) -> np.ndarray:
    """A number for each cluster and camera, ascending by cluster; below 0 for outliers."""
    cameras, camera = np.unique(camid, return_inverse=True)
    return labels.astype(np.int64) * max(len(cameras), 1) + camera.reshape(-1)


def _checked(labels: np.ndarray, **others: np.ndarray) -> tuple[np.ndarray, ...]:
    labels = np.asarray(labels)
    arrays = {name: np.asarray(array) for name, array in others.items()}
    for name, array in arrays.items():
        if labels.ndim != 1 or labels.shape != array.shape:
            raise ValueError(
                f"labels have shape {labels.shape} and {name} {array.shape}; expected [n] and "
                "[n], one of each an image"
            )
    for name, array in {"labels": labels, **arrays}.items():
        if name != "score" and array.dtype.kind not in "iu":
            raise ValueError(f"{name} is {array.dtype}, expected integers; cast it")
    if labels.size and labels.min() < -1:
        raise ValueError(f"label {labels.min()} found; expected clusters from 0, or -1: no cluster")
    count = np.bincount(labels[labels >= 0], minlength=1)
    if labels.size and labels.max() >= 0 and not count.all():
        raise ValueError(
            f"cluster {np.argmin(count)} of {len(count)} has no image; expected numbers without "
            "gaps, see in_order_of_members"
        )
    return labels, *arrays.values()


def _checked_pivots(pivots: np.ndarray, labels: np.ndarray, group: np.ndarray) -> np.ndarray:
    pivots, n = np.asarray(pivots), len(labels)
    if pivots.ndim != 1 or (pivots.size and pivots.dtype.kind not in "iu"):
        raise ValueError(
            f"pivots are {pivots.dtype} of shape {pivots.shape}; expected indices of images"
        )
    pivots = pivots.astype(np.int32)
    outside = (pivots < 0) | (pivots >= n)
    if outside.any():
        raise ValueError(f"pivot {pivots[outside][0]} found; expected images, 0..{n - 1}")
    if (labels[pivots] < 0).any():
        outlier = pivots[np.argmax(labels[pivots] < 0)]
        raise ValueError(f"pivot {outlier} is an outlier; expected members of clusters")
    if len(np.unique(group[pivots])) < len(pivots):
        raise ValueError(
            "two pivots share a cluster and a camera; expected one at most, see choose_pivots"
        )
    return pivots
