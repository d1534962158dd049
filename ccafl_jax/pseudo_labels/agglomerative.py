"""Average linkage on the Jaccard distance, of one set or camera by camera, and its silhouette.

Both need the dense matrix of distances: memory grows with the square of the images of one camera,
and is free again before the next camera.
"""

import dataclasses
import numbers
import re

import jax
import numpy as np
from scipy.cluster import hierarchy
from scipy.sparse import coo_array, csgraph, csr_array
from scipy.spatial.distance import squareform

from ccafl_jax.progress import progress_bar
from ccafl_jax.pseudo_labels.jaccard import jaccard
from ccafl_jax.pseudo_labels.labels import Labels, in_order_of_members

_ROWS = 512  # rows of distances that are summed at a time, in float64
_PER_ITEMS = re.compile(r"n//([1-9]\d*)")


@dataclasses.dataclass(frozen=True, eq=False)
class LocalClusters:
    """Clusters of every camera alone; result of `local_clusters`.

    Attributes:
      labels: int32[N], cluster of each image inside its camera, from 0 without gaps in every
        camera: equal numbers mean the same cluster only in one camera.
      cameras: int[cameras], the cameras that have images, ascending.
      num_images: int32[cameras].
      num_clusters: int32[cameras].
      silhouette: float64[cameras], see `silhouette`.
    """

    labels: np.ndarray
    cameras: np.ndarray
    num_images: np.ndarray
    num_clusters: np.ndarray
    silhouette: np.ndarray


def jaccard_linkage(
    features: np.ndarray | jax.Array,
    *,
    clusters: int | str = "n//5",
    k1: int = 15,
    k2: int = 4,
    neighbors: np.ndarray | None = None,
    engine: str = "auto",
    progress: bool = False,
) -> Labels:
    """Clusters of items by average linkage on the Jaccard distance of k-reciprocal neighbourhoods.

    Args:
      features: float[N, D]; need not be normalised.
      clusters: see `average_linkage`.
      k1: see `jaccard`.
      k2: see `jaccard`.
      neighbors: see `jaccard`.
      engine: see `jaccard`.
      progress: shows bars.

    Returns:
      `Labels` without outliers; diagnostics are the `silhouette`, by which CALR chooses the epoch
      whose labels it keeps.

    Raises:
      ValueError: see `jaccard` and `average_linkage`.

    Source: CALR, intra-camera stage (specification 3); 15 and 4 are the released script's.
    """
    # Before the distances, which take longer.
    number_of_clusters(clusters, 1)
    rows = jaccard(features, k1=k1, k2=k2, neighbors=neighbors, engine=engine, progress=progress)
    distance = rows.dense()
    labels = average_linkage(distance, clusters=clusters)
    return Labels(labels, int(labels.max()) + 1, {"silhouette": silhouette(distance, labels)})


def local_clusters(
    features: np.ndarray | jax.Array,
    camid: np.ndarray,
    *,
    clusters: int | str = "n//5",
    k1: int = 15,
    k2: int = 4,
    engine: str = "auto",
    progress: bool = False,
) -> LocalClusters:
    """Clusters of every camera's images alone, each camera by `jaccard_linkage`.

    Args:
      features: float[N, D]; need not be normalised, and those of different cameras may come from
        different networks.
      camid: int[N], camera of each image.
      clusters: of a camera, see `average_linkage`; n is the number of its images, so a camera
        with fewer images than clusters has one cluster an image, and one with a single image has
        one cluster.
      k1: see `jaccard`.
      k2: see `jaccard`.
      engine: see `jaccard`.
      progress: shows a bar over cameras.

    Returns:
      `LocalClusters`.

    Raises:
      ValueError: shapes that do not fit, cameras that are not integers, and what
        `jaccard_linkage` refuses; rows of a message are those of one camera, which it names.

    Source: CALR, intra-camera stage (specification 3).
    """
    camid = np.asarray(camid)
    shape = np.shape(features)
    if len(shape) != 2 or camid.shape != shape[:1] or not camid.size:
        raise ValueError(
            f"features have shape {shape} and camid {camid.shape}; expected [images, dim] and "
            "[images], at least one image"
        )
    if camid.dtype.kind not in "iu":
        raise ValueError(f"camid is {camid.dtype}, expected integers; number the cameras")
    number_of_clusters(clusters, 1)
    cameras, sizes = np.unique(camid, return_counts=True)
    labels = np.empty(len(camid), np.int32)
    counts, scores = [], []
    options = {"clusters": clusters, "k1": k1, "k2": k2, "engine": engine}
    with progress_bar(len(cameras), "cameras", progress) as bar:
        for camera in cameras:
            images = np.flatnonzero(camid == camera)
            try:
                found = jaccard_linkage(features[images], **options)
            except ValueError as error:
                raise ValueError(f"camera {camera}: {error}") from None
            labels[images] = found.labels
            counts.append(found.num_clusters)
            scores.append(found.diagnostics["silhouette"])
            bar.update()
    return LocalClusters(
        labels,
        cameras,
        num_images=sizes.astype(np.int32),
        num_clusters=np.array(counts, np.int32),
        silhouette=np.array(scores),
    )


def average_linkage(distance: np.ndarray, *, clusters: int | str = "n//5") -> np.ndarray:
    """Average linkage of a matrix of distances, cut to a number of clusters.

    Args:
      distance: float[n, n], symmetric; entries below the diagonal are not read.
      clusters: a number, above n it counts as n; or "n//5" for a fifth of the items (any whole
        number of 1 or more in place of 5), at least one cluster.

    Returns:
      int32[n], clusters numbered by their first member; as many as asked for, also where
      distances are tied.

    Raises:
      ValueError: distances that are no square matrix, negative, NaN or infinite, or a number of
        clusters out of range.

    Source: CALR, intra-camera stage (specification 3); the partition is that of scikit-learn's
      AgglomerativeClustering.
    """
    distance = _checked(distance)
    n = len(distance)
    merges = n - number_of_clusters(clusters, n)
    if not merges:
        return np.arange(n, dtype=np.int32)
    # The condensed form: what lies above the diagonal, row by row.
    tree = hierarchy.linkage(squareform(distance, checks=False), "average")
    # Merge i of the closest groups makes node n + i. Undoing all but the first ones leaves the
    # wanted number of groups where heights are equal too, which a threshold would not.
    children = tree[:merges, :2].astype(np.int64).reshape(-1)
    parents = np.repeat(n + np.arange(merges), 2)
    graph = coo_array((np.ones(2 * merges, bool), (children, parents)), (n + merges, n + merges))
    return in_order_of_members(csgraph.connected_components(graph, directed=False)[1][:n])


def silhouette(distance: np.ndarray, labels: np.ndarray) -> float:
    """Mean silhouette of clusters.

    With a the mean distance of an item to the others of its cluster, and b that to the items of
    the nearest other cluster, its silhouette is (b - a) / max(a, b): near 1 inside a compact
    cluster far from others, below 0 nearer to another one. It is 0 for an item alone in its
    cluster, and where a and b are 0.

    Args:
      distance: float[n, n], symmetric and 0 on the diagonal.
      labels: int[n], clusters, any numbers of 0 or more.

    Returns:
      -1..1. Where all items share one cluster, or none shares one, there is nothing to compare
      and the figure is 0.

    Raises:
      ValueError: see `average_linkage`; labels of another shape, not integers, or negative.

    Source: Rousseeuw, "Silhouettes" (1987), as scikit-learn's silhouette_score with metric
      "precomputed", which refuses the two cases that are 0 here.
    """
    distance, labels = _checked(distance), np.asarray(labels)
    n = len(distance)
    if labels.shape != (n,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"labels are {labels.dtype} of shape {labels.shape}; expected [{n}] integers of 0 or "
            "more, leave outliers out"
        )
    _, cluster, size = np.unique(labels, return_inverse=True, return_counts=True)
    if len(size) == 1:
        return 0.0
    member = csr_array((np.ones(n), (np.arange(n), cluster)), shape=(n, len(size)))
    total = 0.0
    for start in range(0, n, _ROWS):
        block = distance[start : start + _ROWS].astype(np.float64)
        own = cluster[start : start + _ROWS]
        row = np.arange(len(own))
        mean = block @ member  # [rows, clusters], sums so far
        inside = mean[row, own] / np.maximum(size[own] - 1, 1)
        mean /= size
        mean[row, own] = np.inf
        outside = mean.min(axis=1)
        largest = np.maximum(inside, outside)
        counts = (size[own] > 1) & (largest > 0)
        total += np.sum((outside - inside)[counts] / largest[counts])
    return float(total / n)


def number_of_clusters(clusters: int | str, n: int) -> int:
    """How many clusters of n items `average_linkage` is asked for, 1..n.

    Raises:
      ValueError: neither a whole number of 1 or more nor "n//" and one.
    """
    share = _PER_ITEMS.fullmatch(clusters) if isinstance(clusters, str) else None
    if share:
        return max(n // int(share[1]), 1)
    whole = isinstance(clusters, numbers.Integral) and not isinstance(clusters, bool)
    if not whole or clusters < 1:
        raise ValueError(
            f"clusters is {clusters!r}; expected a whole number, 1 or more, or a share of the "
            'items such as "n//5"'
        )
    return min(int(clusters), n)


def _checked(distance: np.ndarray) -> np.ndarray:
    distance = np.asarray(distance)
    if distance.ndim != 2 or len(set(distance.shape)) != 1 or not distance.size:
        raise ValueError(f"distances have shape {distance.shape}; expected [n, n], at least one")
    if not (distance.min() >= 0 and distance.max() < np.inf):  # NaN fails both
        bad = ~((distance >= 0) & (distance < np.inf)).all(axis=1)
        raise ValueError(
            f"{bad.sum()} of {len(distance)} rows of distances (first: {np.argmax(bad)}) hold NaN, "
            "infinite or negative values; expected distances, check the features they come from"
        )
    return distance
