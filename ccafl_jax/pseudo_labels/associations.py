"""Cross-camera associations from the features of images, all with one signature.

`(features float[images, dim], label int[images], cam_of int[classes], *, options) -> Labels` of the
classes. In every result a labelled class has a mate in another camera.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.memory import class_means
from ccafl_jax.numerics import l2_normalize
from ccafl_jax.pseudo_labels.cross_camera import (
    accept_disjoint_cameras,
    associate,
    linked,
    mutual_nearest,
)
from ccafl_jax.pseudo_labels.dbscan import jaccard_dbscan
from ccafl_jax.pseudo_labels.jaccard import Pairs, jaccard
from ccafl_jax.pseudo_labels.labels import Labels, commonest, in_order_of_members
from ccafl_jax.ragged import ranges

ASSOCIATIONS = {
    name: f"{__name__}:{name}"
    for name in ("greedy_cc", "greedy_cc_cam", "mnn", "greedy_groups", "dbscan")
}
"""Import paths by short name, for `labels.labeller`."""

_STEPS = 2.0**20  # of a Jaccard distance: below one lies what rounding leaves of equal rows


def greedy_cc(
    features: jax.Array,
    label: np.ndarray,
    cam_of: np.ndarray,
    *,
    rate: float | str = 1.7,
    mutual: int = 0,
    max_distance: float = 4.0,
) -> Labels:
    """Links the closest class means, one partner a camera; the published rule.

    Args:
      features: float[images, dim].
      label: int[images], class of each image.
      cam_of: int[classes], camera of each class.
      rate: see `cross_camera.associate`.
      mutual: see `cross_camera.associate`.
      max_distance: see `cross_camera.associate`.

    Returns:
      `Labels` of the classes, with edges.

    Raises:
      ValueError: see `cross_camera.associate`; labels that do not fit.

    Source: CCAFL as released.
    """
    x = class_directions(features, label, cam_of)
    return associate(x, cam_of, rate=rate, mutual=mutual, max_distance=max_distance)


def greedy_cc_cam(
    features: jax.Array,
    label: np.ndarray,
    cam_of: np.ndarray,
    *,
    rate: float | str = 1.7,
    mutual: int = 0,
    max_distance: float = 4.0,
) -> Labels:
    """As `greedy_cc`, and clusters that share a camera are not joined.

    Arguments, result and errors are those of `greedy_cc`.

    Source: ours.
    """
    x = class_directions(features, label, cam_of)
    return associate(
        x,
        cam_of,
        rate=rate,
        method="greedy_cc_cam",
        mutual=mutual,
        max_distance=max_distance,
    )


def mnn(
    features: jax.Array,
    label: np.ndarray,
    cam_of: np.ndarray,
    *,
    nearest: int = 1,
    max_distance: float = 4.0,
) -> Labels:
    """Links all class means that are mutually nearest; see `cross_camera.mutual_nearest`.

    Args:
      features: float[images, dim].
      label: int[images], class of each image.
      cam_of: int[classes], camera of each class.
      nearest: see `cross_camera.mutual_nearest`.
      max_distance: see `cross_camera.mutual_nearest`.

    Returns:
      `Labels` of the classes, with edges.

    Raises:
      ValueError: see `cross_camera.mutual_nearest`; labels that do not fit.
    """
    x = class_directions(features, label, cam_of)
    return mutual_nearest(x, cam_of, nearest=nearest, max_distance=max_distance)


def greedy_groups(
    features: jax.Array,
    label: np.ndarray,
    cam_of: np.ndarray,
    *,
    k1: int = 30,
    k2: int = 6,
    group_distance: float = 0.4,
) -> Labels:
    """Merges classes by the Jaccard distance of their closest images.

    Pairs of classes of different cameras come by ascending distance, in steps of 2**-20 and ties by
    class index; two groups are merged if they share no camera.

    Args:
      features: float[images, dim].
      label: int[images], class of each image.
      cam_of: int[classes], camera of each class.
      k1: see `jaccard.jaccard`.
      k2: see `jaccard.jaccard`.
      group_distance: two classes whose closest images are nearer than this are a pair; above 0
        and below 1.

    Returns:
      `Labels` of the classes, with edges; diagnostics are `candidates`.

    Raises:
      ValueError: NaN or infinite features, options out of range, or labels that do not fit.

    Source: in CCAFL's released code, unused (specification 3.3).
    """
    if not 0.0 < group_distance < 1.0:
        raise ValueError(
            f"group_distance is {group_distance}; expected a Jaccard distance above 0 and below 1"
        )
    label, cam_of = _checked(features, label, cam_of)
    if _one_camera(cam_of):
        return linked(np.empty((0, 2), np.int64), cam_of)
    rows = jaccard(features, k1=k1, k2=k2)
    near = rows.within(group_distance, copies=False)
    pairs = _closest_images(near, rows.originals, label, cam_of, group_distance)
    return linked(pairs, cam_of, accept_disjoint_cameras)


def dbscan(
    features: jax.Array,
    label: np.ndarray,
    cam_of: np.ndarray,
    *,
    k1: int = 30,
    k2: int = 6,
    eps: float = 0.6,
    min_samples: int = 4,
) -> Labels:
    """Clusters images by DBSCAN on Jaccard distances; a class follows most of its images.

    A class gets the commonest label of its images, among which outliers count like a cluster of
    their own; of equally common ones a cluster goes before the outliers, then the smaller number.
    Clusters that lie in one camera, those of one class among them, are dissolved: they link
    nothing, and tables of clusters hold half as many rows as there are classes. A cluster may hold
    several classes of one camera.

    Args:
      features: float[images, dim].
      label: int[images], class of each image.
      cam_of: int[classes], camera of each class.
      k1: see `dbscan.jaccard_dbscan`.
      k2: see `dbscan.jaccard_dbscan`.
      eps: see `dbscan.jaccard_dbscan`.
      min_samples: see `dbscan.jaccard_dbscan`.

    Returns:
      `Labels` of the classes, without edges; diagnostics are `image_clusters` and `dissolved`, the
      clusters that no class followed or that lay in one camera.

    Raises:
      ValueError: NaN or infinite features, options out of range, or labels that do not fit.

    Source: ClusterContrast's clustering, with a vote (specification 3.3).
    """
    label, cam_of = _checked(features, label, cam_of)
    if _one_camera(cam_of):
        return Labels(np.full(len(cam_of), -1, np.int32), 0)
    images = jaccard_dbscan(features, k1=k1, k2=k2, eps=eps, min_samples=min_samples)
    votes = np.where(images.labels < 0, images.num_clusters, images.labels)  # outliers go last
    groups = commonest(label, votes)[1]
    groups = np.where(groups == images.num_clusters, -1, groups)
    pairs = np.unique(np.stack([groups, cam_of]), axis=1)[0]
    cameras_of = np.bincount(pairs[pairs >= 0], minlength=1)
    labels = in_order_of_members(groups, (groups >= 0) & (cameras_of[groups] > 1))
    clusters = int(labels.max(initial=-1)) + 1
    figures = {
        "image_clusters": images.num_clusters,
        "dissolved": images.num_clusters - clusters,
    }
    return Labels(labels, clusters, figures)


def class_directions(features: jax.Array, label: np.ndarray, cam_of: np.ndarray) -> np.ndarray:
    """Means of the features of each class, normalised: float32[classes, dim].

    Arguments and errors as in `greedy_cc`.
    """
    label, cam_of = _checked(features, label, cam_of)
    means, _ = class_means(features, jnp.asarray(label), len(cam_of))
    return np.asarray(l2_normalize(means))


def _checked(
    features: jax.Array, label: np.ndarray, cam_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    label, cam_of = np.asarray(label), np.asarray(cam_of)
    shape = np.shape(features)
    if len(shape) != 2 or label.shape != shape[:1] or cam_of.ndim != 1:
        raise ValueError(
            f"features have shape {shape}, label {label.shape} and cam_of {cam_of.shape}; "
            "expected [images, dim], [images] and [classes]"
        )
    found, classes = np.unique(label), np.arange(len(cam_of))
    if not np.array_equal(found, classes):
        wrong = np.setxor1d(found, classes)[0]
        raise ValueError(
            f"class {wrong} has no image or no camera; expected images of each of the "
            f"{len(cam_of)} classes of cam_of, numbered from 0, and of no other"
        )
    return label, cam_of


def _one_camera(cam_of: np.ndarray) -> bool:
    return len(np.unique(cam_of)) < 2


def _closest_images(
    near: Pairs, original: np.ndarray, label: np.ndarray, cam_of: np.ndarray, limit: float
) -> np.ndarray:
    """Pairs of classes of different cameras by the distance of their closest images.

    Args:
      near: pairs of images that are no copies of another one.
      original: int[images], the image that each is a copy of, see `Jaccard.originals`.
      label: int[images].
      cam_of: int[classes].
      limit: which the distances stay below.

    Returns:
      int64[pairs, 2], a < b, closest first, equal distances by (a, b).
    """
    # An image stands for the classes of its copies: their pairs would be many, those of classes
    # are not.
    holder, held = np.unique(np.stack([original, label]), axis=1).astype(np.int64)
    count = np.bincount(holder, minlength=len(label))
    start = np.cumsum(count) - count
    shared = np.flatnonzero(count > 1)
    left = np.concatenate([near.first, shared])
    right = np.concatenate([near.second, shared])
    distance = np.concatenate([near.distance, np.zeros(len(shared), near.distance.dtype)])
    pair = np.repeat(np.arange(len(left)), count[left])
    a = held[ranges(start[left], count[left])]
    wide = count[right][pair]
    b = held[ranges(start[right][pair], wide)]
    a, distance = np.repeat(a, wide), np.repeat(distance[pair], wide)

    use = (cam_of[a] != cam_of[b]) & (distance < limit)
    a, b, distance = a[use], b[use], distance[use]
    pair = np.minimum(a, b) * len(cam_of) + np.maximum(a, b)
    order = np.lexsort((pair, np.rint(distance * _STEPS)))
    # The first of equal pairs is the one of the closest images.
    first = np.unique(pair[order], return_index=True)[1]
    pair = pair[order][np.sort(first)]
    return np.stack(np.divmod(pair, len(cam_of)), axis=1)
