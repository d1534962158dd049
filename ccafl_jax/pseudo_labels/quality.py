"""Agreement of pseudo labels with the true identities, which training never sees.

Everything is counted in the contingency table of clusters and identities, of which only the cells
that hold images are kept: no array grows with the square of the number of images. Counts are
int64. A figure that is undefined (no pair, no image) is 0.

`outliers` says what becomes of images without a cluster. "singletons", the default, makes each a
cluster of its own, as SpCL trains with them: leaving hard images out then costs recall. "drop"
leaves them out, which describes the clusters that a method trains on, and flatters a labeller
that keeps few.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from ccafl_jax.options import require_choice

OUTLIERS = ("singletons", "drop")


class Pairwise(NamedTuple):
    """Agreement over pairs of images; see `pairwise`."""

    precision: float
    recall: float
    f: float


class BCubed(NamedTuple):
    """Agreement over images; see `b_cubed`."""

    precision: float
    recall: float
    f: float
    expansion: float


def pairwise(labels: np.ndarray, pid: np.ndarray, *, outliers: str = "singletons") -> Pairwise:
    """Precision and recall of the pairs of images that share a cluster.

    Args:
      labels: int[n], cluster of each image; negative for an outlier.
      pid: [n], true identity of each image, in any type that sorts.
      outliers: "singletons" or "drop", see the module.

    Returns:
      precision: pairs of one identity among the pairs of one cluster; recall: pairs of one
      cluster among the pairs of one identity; f: their harmonic mean.

    Raises:
      ValueError: shapes that do not fit, labels that are not integers, or an unknown `outliers`.

    Source: CALR, clustering diagnostics of the released partitions.
    """
    return _pairwise(_contingency(labels, pid, outliers))


def b_cubed(labels: np.ndarray, pid: np.ndarray, *, outliers: str = "singletons") -> BCubed:
    """Precision and recall averaged over images, and into how many clusters an identity falls.

    Arguments and errors as in `pairwise`.

    Returns:
      precision: mean over images of the share of their cluster that has their identity; recall:
      mean over images of the share of their identity that is in their cluster; f: the harmonic
      mean of the two; expansion: mean over identities of the number of their clusters.

    Source: CALR, clustering diagnostics; Bagga and Baldwin's B-cubed.
    """
    return _b_cubed(_contingency(labels, pid, outliers))


def nmi(labels: np.ndarray, pid: np.ndarray, *, outliers: str = "singletons") -> float:
    """Mutual information of clusters and identities over the mean of their entropies.

    Arguments and errors as in `pairwise`.

    Returns:
      The figure between 0 and 1; 1 for one cluster of one identity.

    Source: CALR, clustering diagnostics (arithmetic mean in the denominator).
    """
    return _nmi(_contingency(labels, pid, outliers))


def agreement(
    labels: np.ndarray,
    pid: np.ndarray,
    camid: np.ndarray | None = None,
    *,
    outliers: str = "singletons",
) -> dict[str, float | int]:
    """All figures of this module, flat, for a log.

    Args:
      labels: int[n], cluster of each image; negative for an outlier.
      pid: [n], true identity of each image, in any type that sorts.
      camid: [n], camera of each image; adds single_camera_clusters.
      outliers: of the pairwise, b_cubed and nmi figures, see the module; the others are about
        the clusters, and leave outliers out in either case.

    Returns:
      pairwise_precision, pairwise_recall, pairwise_f: see `pairwise`.
      b_cubed_precision, b_cubed_recall, b_cubed_f, expansion: see `b_cubed`.
      nmi: see `nmi`.
      purity: share of the clustered images that have the majority identity of their cluster.
      pure_share: share of clusters that hold one identity.
      clusters: how many.
      outlier_share: share of images without cluster.
      single_camera_clusters: clusters whose images come from one camera.

    Raises:
      ValueError: shapes that do not fit, labels that are not integers, or an unknown `outliers`.
    """
    table, clustered = _contingency(labels, pid, outliers), _contingency(labels, pid, "drop")
    over_pairs, over_images = _pairwise(table), _b_cubed(table)
    n, clusters = len(np.asarray(labels)), len(clustered.cluster_size)
    majority = np.zeros(clusters, np.int64)
    np.maximum.at(majority, clustered.cluster, clustered.count)
    figures = {
        **{f"pairwise_{name}": value for name, value in over_pairs._asdict().items()},
        "b_cubed_precision": over_images.precision,
        "b_cubed_recall": over_images.recall,
        "b_cubed_f": over_images.f,
        "expansion": over_images.expansion,
        "nmi": _nmi(table),
        "purity": _share(majority.sum(), clustered.images),
        "pure_share": _share(np.sum(majority == clustered.cluster_size), clusters),
        "clusters": clusters,
        "outlier_share": _share(n - clustered.images, n),
    }
    if camid is not None:
        cameras = _contingency(labels, camid, "drop", name="camid")
        cameras_of = np.bincount(cameras.cluster, minlength=clusters)
        figures["single_camera_clusters"] = int(np.sum(cameras_of == 1))
    return figures


@dataclasses.dataclass(frozen=True)
class _Table:
    """The cells of a contingency table that hold images, and its margins, all int64.

    Attributes:
      count: [cells], images in the cell.
      cluster: [cells], row of the cell.
      identity: [cells], column of the cell.
      cluster_size: [clusters].
      identity_size: [identities].
    """

    count: np.ndarray
    cluster: np.ndarray
    identity: np.ndarray
    cluster_size: np.ndarray
    identity_size: np.ndarray

    @property
    def images(self) -> int:
        return int(self.count.sum())


def _contingency(
    labels: np.ndarray, pid: np.ndarray, outliers: str, *, name: str = "pid"
) -> _Table:
    labels, pid = np.asarray(labels), np.asarray(pid)
    require_choice("outliers", outliers, OUTLIERS)
    if labels.ndim != 1 or labels.shape != pid.shape:
        raise ValueError(
            f"labels has shape {labels.shape} and {name} {pid.shape}; expected [n] and [n], one "
            "of each an image"
        )
    if labels.size and labels.dtype.kind not in "iu":
        raise ValueError(f"labels are {labels.dtype}, expected integers; cast them")
    inside = labels >= 0
    if outliers == "drop":
        labels, pid, inside = labels[inside], pid[inside], inside[inside]
    _, identity, identity_size = np.unique(pid, return_inverse=True, return_counts=True)
    _, numbered, cluster_size = np.unique(labels[inside], return_inverse=True, return_counts=True)
    alone = int(np.sum(~inside))
    cluster = np.empty(len(labels), np.int64)
    cluster[inside] = numbered
    cluster[~inside] = len(cluster_size) + np.arange(alone)
    cluster_size = np.concatenate([cluster_size, np.ones(alone, np.int64)])
    # Both are numbered without gaps, so that the number of a cell stays below n * n.
    columns = max(len(identity_size), 1)
    cells, count = np.unique(cluster * columns + identity, return_counts=True)
    return _Table(count, cells // columns, cells % columns, cluster_size, identity_size)


def _pairwise(table: _Table) -> Pairwise:
    shared, in_clusters, in_identities = (
        np.sum(size * (size - 1) // 2)
        for size in (table.count, table.cluster_size, table.identity_size)
    )
    precision, recall = _share(shared, in_clusters), _share(shared, in_identities)
    return Pairwise(precision, recall, _harmonic_mean(precision, recall))


def _b_cubed(table: _Table) -> BCubed:
    squared = table.count * table.count
    precision = _share(np.sum(squared / table.cluster_size[table.cluster]), table.images)
    recall = _share(np.sum(squared / table.identity_size[table.identity]), table.images)
    expansion = _share(len(table.count), len(table.identity_size))
    return BCubed(precision, recall, _harmonic_mean(precision, recall), expansion)


def _nmi(table: _Table) -> float:
    n = table.images
    if not n:
        return 0.0
    if len(table.cluster_size) == len(table.identity_size) == 1:
        return 1.0  # both entropies are 0, and the partitions are the same
    rows = np.log(table.cluster_size[table.cluster])
    columns = np.log(table.identity_size[table.identity])
    information = np.sum(table.count * (np.log(table.count) + np.log(n) - rows - columns)) / n
    entropies = _entropy(table.cluster_size, n) + _entropy(table.identity_size, n)
    # Rounding may leave the figure of independent partitions just below 0.
    return float(np.clip(2 * information / entropies, 0, 1))


def _entropy(size: np.ndarray, n: int) -> float:
    return float(np.sum(size * (np.log(n) - np.log(size))) / n)


def _share(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else 0.0


def _harmonic_mean(a: float, b: float) -> float:
    return _share(2 * a * b, a + b)
