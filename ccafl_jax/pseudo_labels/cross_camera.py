"""Cross-camera association: which (camera, identity) classes are the same person.

Runs on the host in float64, so that the order of near-tied pairs does not depend on an
accelerator. One identity can have at most one partner in every other camera.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy.sparse import coo_array, csgraph

METHODS = ("greedy_cc", "greedy_cc_cam")

_BLOCK = 512  # classes per block of the similarity matrix
_DECIMALS = 12  # of a distance: below it, matrix products of equal features may differ


@dataclasses.dataclass(frozen=True)
class Association:
    """Result of `associate`.

    Attributes:
      labels: int32[classes], cluster of each class, numbered from 0 in the order of their
        smallest class; -1 for a class without partner.
      num_clusters: number of clusters.
      edges: int32[accepted, 2], accepted pairs (a < b) in the order of acceptance.
      candidates: number of pairs that were examined.
    """

    labels: np.ndarray
    num_clusters: int
    edges: np.ndarray
    candidates: int


def associate(
    x: np.ndarray,
    cam_of: np.ndarray,
    *,
    rate: float | None = None,
    budget: int | None = None,
    method: str = "greedy_cc",
) -> Association:
    """Links the closest classes of different cameras and takes the connected components.

    Pairs of classes of different cameras are examined by ascending distance (ties by class
    index) until the budget is used up. A pair is accepted if neither class has a partner in the
    other's camera yet; refused pairs count.

    Args:
      x: float[classes, dim], class means or centroids; normalised here.
      cam_of: int[classes], camera of each class.
      rate: budget as a multiple of the number of classes.
      budget: number of pairs to examine; give this or `rate`.
      method: "greedy_cc" as described, which may join two classes of one camera over a third;
        "greedy_cc_cam" also refuses a pair whose components share a camera.

    Returns:
      The association.

    Raises:
      ValueError: NaN or infinite features, mismatched shapes, or not exactly one of rate and
        budget, or an unknown method.

    Source: CCAFL as released, after Precise-ICS (Wang et al.), Sec. 3.3.
    """
    x, cam_of = np.asarray(x, np.float64), np.asarray(cam_of)
    _check(x, cam_of, rate, budget, method)
    budget = int(rate * len(x)) if budget is None else int(budget)
    pairs = _closest_pairs(x, cam_of, max(budget, 0))
    accept = _accept_one_partner if method == "greedy_cc" else _accept_disjoint_cameras
    edges = np.array(list(accept(pairs, cam_of)), np.int32).reshape(-1, 2)
    labels, num_clusters = _components(edges, len(x))
    return Association(labels, num_clusters, edges, len(pairs))


def diagnostics(
    association: Association, pid_of: np.ndarray, cam_of: np.ndarray
) -> dict[str, float | int]:
    """Quality of an association against the true identities, which nothing else may see.

    Args:
      association: result of `associate`.
      pid_of: int[classes], true identity of each class.
      cam_of: int[classes], camera of each class.

    Returns:
      accepted, correct: accepted pairs, and those of one identity; precision, recall: correct
      over accepted and over true_pairs (0 where undefined); true_pairs: pairs of classes of one
      identity; clusters: their number; outlier_share: share of classes without cluster;
      pure_share: share of clusters that hold one identity; same_camera_clusters: clusters with
      two classes of one camera.
    """
    pid_of, cam_of = np.asarray(pid_of), np.asarray(cam_of)
    labels, edges = association.labels, association.edges
    correct = int(np.sum(pid_of[edges[:, 0]] == pid_of[edges[:, 1]]))
    classes_of_pid = np.unique(pid_of, return_counts=True)[1].astype(np.int64)
    true_pairs = int(np.sum(classes_of_pid * (classes_of_pid - 1) // 2))
    clusters = association.num_clusters
    inside = labels >= 0
    pids_in = np.unique(np.stack([labels[inside], pid_of[inside]]), axis=1)[0]
    members = np.bincount(labels[inside], minlength=clusters)
    cameras_in = np.unique(np.stack([labels[inside], cam_of[inside]]), axis=1)[0]
    pure = int(np.sum(np.bincount(pids_in, minlength=clusters) == 1))
    return {
        "accepted": len(edges),
        "correct": correct,
        "precision": correct / max(len(edges), 1),
        "recall": correct / max(true_pairs, 1),
        "true_pairs": true_pairs,
        "clusters": clusters,
        "outlier_share": float(np.mean(~inside)) if len(labels) else 0.0,
        "pure_share": pure / max(clusters, 1),
        "same_camera_clusters": int(np.sum(members > np.bincount(cameras_in, minlength=clusters))),
    }


def _check(
    x: np.ndarray, cam_of: np.ndarray, rate: float | None, budget: int | None, method: str
) -> None:
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if (rate is None) == (budget is None):
        raise ValueError(f"rate is {rate} and budget is {budget}; give exactly one of them")
    if x.ndim != 2 or cam_of.shape != x.shape[:1]:
        raise ValueError(
            f"x has shape {x.shape} and cam_of {cam_of.shape}; "
            "expected [classes, dim] and [classes]"
        )
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise ValueError(
            f"features of {len(bad)} classes (first: {bad[0]}) hold NaN or infinity; expected "
            "finite numbers: the training has diverged or a class has no image"
        )


def _closest_pairs(x: np.ndarray, cam_of: np.ndarray, budget: int) -> np.ndarray:
    """The `budget` closest pairs a < b of different cameras, int[pairs, 2], closest first."""
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    n = len(x)
    best_d, best_a, best_b = np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64)
    for start in range(0, n if budget else 0, _BLOCK):
        stop = min(start + _BLOCK, n)
        distance = np.round(2 - 2 * (x[start:stop] @ x[start:].T), _DECIMALS)
        allowed = cam_of[start:stop, None] != cam_of[None, start:]
        allowed &= np.arange(start, stop)[:, None] < np.arange(start, n)[None, :]
        if len(best_d) == budget:
            allowed &= distance <= best_d.max()
        a, b = np.nonzero(allowed)
        best_d = np.concatenate([best_d, distance[a, b]])
        best_a, best_b = np.concatenate([best_a, a + start]), np.concatenate([best_b, b + start])
        if len(best_d) > budget:
            # All pairs as close as the last one in the budget, then the first by class index.
            limit = np.partition(best_d, budget - 1)[budget - 1]
            near = np.flatnonzero(best_d <= limit)
            near = near[np.lexsort((best_b[near], best_a[near], best_d[near]))[:budget]]
            best_d, best_a, best_b = best_d[near], best_a[near], best_b[near]
    order = np.lexsort((best_b, best_a, best_d))
    return np.stack([best_a[order], best_b[order]], axis=1)


def _accept_one_partner(pairs: np.ndarray, cam_of: np.ndarray) -> Iterator[tuple[int, int]]:
    """Accepts a pair if neither class has a partner in the other's camera."""
    partner_cameras: list[set] = [set() for _ in cam_of]
    camera = cam_of.tolist()
    for a, b in pairs.tolist():
        if camera[b] not in partner_cameras[a] and camera[a] not in partner_cameras[b]:
            partner_cameras[a].add(camera[b])
            partner_cameras[b].add(camera[a])
            yield a, b


def _accept_disjoint_cameras(pairs: np.ndarray, cam_of: np.ndarray) -> Iterator[tuple[int, int]]:
    """Accepts a pair if the components of its classes share no camera.

    This includes the rule of one partner per camera: a partner is part of the component.
    """
    parent = list(range(len(cam_of)))
    cameras = [{camera} for camera in cam_of.tolist()]

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in pairs.tolist():
        root_a, root_b = root(a), root(b)
        if cameras[root_a].isdisjoint(cameras[root_b]):
            parent[root_b] = root_a
            cameras[root_a] |= cameras[root_b]
            yield a, b


def _components(edges: np.ndarray, num_classes: int) -> tuple[np.ndarray, int]:
    """Connected components with at least one edge, numbered by their smallest class."""
    ones = np.ones(len(edges), np.int8)
    graph = coo_array((ones, (edges[:, 0], edges[:, 1])), (num_classes, num_classes))
    component = csgraph.connected_components(graph, directed=False)[1]
    linked = np.unique(edges)
    labels = np.full(num_classes, -1, np.int32)
    # Numbers by first appearance among the linked classes, which np.unique lists in order.
    _, first, inverse = np.unique(component[linked], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    labels[linked] = rank[inverse]
    return labels, len(first)
