"""Cross-camera association: which (camera, identity) classes are the same person.

Runs on the host in float64, so that the order of near-tied pairs does not depend on an
accelerator. One identity can have at most one partner in every other camera.
"""

import numbers
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from scipy.sparse import coo_array, csgraph

from ccafl_jax.options import require_choice
from ccafl_jax.pseudo_labels.class_pairs import by_camera, closest_pairs, tiles
from ccafl_jax.pseudo_labels.labels import Labels, in_order_of_members
from ccafl_jax.pseudo_labels.overlap import PairCount
from ccafl_jax.pseudo_labels.quality import b_cubed, nmi

_ASKED = 1024
"""Classes of a camera whose nearest stranger is looked for."""

METHODS = ("greedy_cc", "greedy_cc_cam")
AUTO = "auto"
"""The rate that stands for an estimate of the number of true pairs."""


def associate(
    x: np.ndarray,
    cam_of: np.ndarray,
    *,
    rate: float | str | None = None,
    budget: int | None = None,
    method: str = "greedy_cc",
    mutual: int = 0,
    max_distance: float = 4.0,
) -> Labels:
    """Links the closest classes of different cameras and takes the connected components.

    Pairs of classes of different cameras are examined by ascending distance (ties by class
    index) until the budget is used up. A pair is accepted if neither class has a partner in the
    other's camera yet; refused pairs count.

    Args:
      x: float[classes, dim], class means or centroids; normalised here.
      cam_of: int[classes], camera of each class.
      rate: budget as a multiple of the number of classes; "auto" makes the budget the number of
        true pairs as `overlap.estimate_pairs` estimates it.
      budget: number of pairs to examine; give this or `rate`.
      method: "greedy_cc" as described, which may join two classes of one camera over a third;
        "greedy_cc_cam" also refuses a pair whose components share a camera.
      mutual: k above 0 examines only pairs of which each class is among the k nearest of its
        camera to the other; all classes as near as the k-th count. 0 examines all.
      max_distance: largest squared Euclidean distance of unit vectors that is examined; 4 is no
        limit.

    Returns:
      `Labels` of the classes, with edges; diagnostics are `candidates`, the pairs examined, and
      `budget`.

    Raises:
      ValueError: NaN or infinite features, mismatched shapes, not exactly one of rate and budget,
        options out of range, or an unknown method.

    Source: CCAFL as released, after Precise-ICS (Wang et al.), Sec. 3.3; "auto", `mutual` and
      `max_distance` are ours.
    """
    require_choice("method", method, METHODS)
    if (rate is None) == (budget is None):
        raise ValueError(f"rate is {rate} and budget is {budget}; give exactly one of them")
    check_rate(0 if rate is None else rate)
    x, cam_of = _checked(x, cam_of)
    _check_limits(mutual, max_distance, least=0)
    cameras = by_camera(x, cam_of)
    found, count = tiles(cameras), None
    if rate == AUTO:
        count = PairCount(cameras)
        found = count.watch(tiles(cameras, own=True))
        # No more pairs than this are ever estimated, so one walk over the tiles does.
        budget = _most_matches([len(camera.classes) for camera in cameras])
    elif budget is None:
        budget = int(rate * len(x))
    pairs = closest_pairs(
        found, cameras, most=max(int(budget), 0), mutual=mutual, max_distance=max_distance
    )
    if count is not None:
        budget = count.estimate()
        pairs = pairs[:budget]
    accept = accept_one_partner if method == "greedy_cc" else accept_disjoint_cameras
    return linked(pairs, cam_of, accept, budget=max(int(budget), 0))


def mutual_nearest(
    x: np.ndarray, cam_of: np.ndarray, *, nearest: int = 1, max_distance: float = 4.0
) -> Labels:
    """Links all mutual nearest classes of different cameras and takes the connected components.

    Args:
      x: float[classes, dim], class means or centroids; normalised here.
      cam_of: int[classes], camera of each class.
      nearest: k, a pair is linked if each class is among the k nearest of its camera to the
        other; all classes as near as the k-th count.
      max_distance: largest squared Euclidean distance of a pair; 4 is no limit.

    Returns:
      `Labels` of the classes, with edges, closest first; diagnostics are `candidates`. A cluster
      may hold several classes of one camera.

    Raises:
      ValueError: NaN or infinite features, mismatched shapes, or options out of range.

    Source: a published variation of CCAFL's association (specification 3.3, `mnn`).
    """
    x, cam_of = _checked(x, cam_of)
    _check_limits(nearest, max_distance, least=1)
    cameras = by_camera(x, cam_of)
    pairs = closest_pairs(tiles(cameras), cameras, mutual=nearest, max_distance=max_distance)
    return linked(pairs, cam_of)


def linked(
    pairs: np.ndarray,
    cam_of: np.ndarray,
    accept: Callable[[np.ndarray, np.ndarray], Iterable[tuple[int, int]]] | None = None,
    **figures: float,
) -> Labels:
    """The connected components of pairs of classes.

    Args:
      pairs: int[pairs, 2], a < b, in the order of examination.
      cam_of: int[classes].
      accept: picks those that are accepted; all are when None.
      **figures: further diagnostics.

    Returns:
      `Labels`; classes without an accepted pair are outliers.
    """
    edges = pairs if accept is None else list(accept(pairs, cam_of))
    edges = np.asarray(edges, np.int32).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), bool), edges.T), (len(cam_of), len(cam_of)))
    component = csgraph.connected_components(graph, directed=False)[1]
    inside = np.zeros(len(cam_of), bool)
    inside[edges] = True
    labels = in_order_of_members(component, inside)
    clusters = int(labels.max(initial=-1)) + 1
    return Labels(labels, clusters, {"candidates": len(pairs), **figures}, edges)


def accept_one_partner(pairs: np.ndarray, cam_of: np.ndarray) -> Iterator[tuple[int, int]]:
    """Accepts a pair if neither class has a partner in the other's camera."""
    partner_cameras: list[set] = [set() for _ in cam_of]
    camera = cam_of.tolist()
    for a, b in pairs.tolist():
        if camera[b] not in partner_cameras[a] and camera[a] not in partner_cameras[b]:
            partner_cameras[a].add(camera[b])
            partner_cameras[b].add(camera[a])
            yield a, b


def accept_disjoint_cameras(pairs: np.ndarray, cam_of: np.ndarray) -> Iterator[tuple[int, int]]:
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


def reach(x: np.ndarray, cam_of: np.ndarray, edges: np.ndarray) -> dict[str, float]:
    """How far an association went, beside how close strangers come.

    Two classes of one camera are never one person. An association whose last pair is no closer
    than the nearest of them usually are has linked strangers, as the published rule does where
    cameras share few people: it knows no limit but its budget.

    Args:
      x: float[classes, dim], unit vectors.
      cam_of: int[classes], camera of each class.
      edges: int[accepted, 2], closest first.

    Returns:
      `last_distance`: squared distance of the last accepted pair; `stranger_distance`: the median
      of the squared distances of classes to the nearest other one of their camera (of many classes
      1,024 a camera are asked, evenly spread). NaN where there is none.
    """
    nearest = []
    for camera in np.unique(cam_of):
        members = np.asarray(x[cam_of == camera], np.float64)
        if len(members) < 2:
            continue
        rows = np.linspace(0, len(members) - 1, min(len(members), _ASKED)).round().astype(int)
        distance = 2 - 2 * members[rows] @ members.T
        distance[np.arange(len(rows)), rows] = np.inf
        nearest.append(np.min(distance, axis=1))
    nearest = np.concatenate(nearest) if nearest else np.zeros(0)
    last = np.nan
    if len(edges):
        a, b = np.asarray(x[edges[-1]], np.float64)
        last = float(np.sum(np.square(a - b)))
    return {
        "last_distance": last,
        "stranger_distance": float(np.median(nearest)) if len(nearest) else np.nan,
    }


def diagnostics(
    association: Labels, pid_of: np.ndarray, cam_of: np.ndarray
) -> dict[str, float | int]:
    """Quality of an association against the true identities, which nothing else may see.

    Args:
      association: labels of the classes.
      pid_of: int[classes], true identity of each class, negative where nobody knows it: such
        classes count in the last three figures only.
      cam_of: int[classes], camera of each class.

    Returns:
      accepted, correct: accepted pairs, and those of one identity; precision, recall: correct
      over accepted and over true_pairs (0 where undefined); these four only where the method
      decides pair by pair. true_pairs: pairs of classes of one identity; pure_share: share of
      clusters that hold one identity; b_cubed_f, nmi: agreement of clusters and identities over
      the classes, outliers as clusters of their own (see `quality`). clusters: their number;
      outlier_share: share of classes without cluster; same_camera_clusters: clusters with two
      classes of one camera.
    """
    pid_of, cam_of = np.asarray(pid_of), np.asarray(cam_of)
    labels, clusters = association.labels, association.num_clusters
    inside = labels >= 0
    members = np.bincount(labels[inside], minlength=clusters)
    cameras_in = np.unique(np.stack([labels[inside], cam_of[inside]]), axis=1)[0]
    return _against_the_truth(association, pid_of) | {
        "clusters": clusters,
        "outlier_share": float(np.mean(~inside)) if len(labels) else 0.0,
        "same_camera_clusters": int(np.sum(members > np.bincount(cameras_in, minlength=clusters))),
    }


def _against_the_truth(association: Labels, pid_of: np.ndarray) -> dict[str, float | int]:
    """The figures of `diagnostics` that need identities, over the classes that have one."""
    known = pid_of >= 0
    if not known.any():
        return {}
    labels, pid = association.labels[known], pid_of[known]
    classes_of_pid = np.unique(pid, return_counts=True)[1].astype(np.int64)
    true_pairs = int(np.sum(classes_of_pid * (classes_of_pid - 1) // 2))
    figures = {}
    if association.edges is not None:
        a, b = association.edges[known[association.edges].all(axis=1)].T
        correct = int(np.sum(pid_of[a] == pid_of[b]))
        figures = {
            "accepted": len(a),
            "correct": correct,
            "precision": correct / max(len(a), 1),
            "recall": correct / max(true_pairs, 1),
        }
    inside = labels >= 0
    of_cluster, _ = np.unique(np.stack([labels[inside], pid[inside]]), axis=1)
    identities = np.unique(of_cluster, return_counts=True)[1]  # of each cluster
    return figures | {
        "true_pairs": true_pairs,
        "pure_share": int(np.sum(identities == 1)) / max(len(identities), 1),
        "b_cubed_f": b_cubed(labels, pid).f,
        "nmi": nmi(labels, pid),
    }


def check_rate(rate: float | str) -> None:
    """Raises ValueError unless a rate is "auto" or a number of 0 or more."""
    number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if rate != AUTO and not (number and 0 <= rate < float("inf")):
        raise ValueError(
            f"rate is {rate!r}; expected a number of candidate pairs per class or {AUTO!r}"
        )


def _checked(x: np.ndarray, cam_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, cam_of = np.asarray(x), np.asarray(cam_of)
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
    return x, cam_of


def _check_limits(nearest: int, max_distance: float, *, least: int) -> None:
    if not isinstance(nearest, numbers.Integral) or nearest < least:
        name = "nearest" if least else "mutual"
        raise ValueError(f"{name} is {nearest}; expected a whole number of {least} or more")
    if not max_distance >= 0:
        raise ValueError(
            f"max_distance is {max_distance}; expected a squared distance of unit vectors, 0..4"
        )


def _most_matches(sizes: list[int]) -> int:
    """Pairs of different cameras, if every class has a partner in each where there is one."""
    sizes = sorted(sizes)
    # The i-th smallest camera is the smaller one of each pair with a later one.
    return sum(size * (len(sizes) - 1 - i) for i, size in enumerate(sizes))
