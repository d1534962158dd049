"""The graph of nearest neighbours and its modules by Infomap.

Infomap looks for the modules in which a random walker on the graph stays long: those that
describe its path with the fewest bits, the codelength. It runs in the package `infomap`, which is
an extra: pip install 'ccafl_jax[infomap]'.
"""

import dataclasses
import numbers

import jax
import numpy as np

from ccafl_jax.neighbors.top_k import Neighbors, self_top_k
from ccafl_jax.pseudo_labels.labels import Labels, in_order_of_members

_SEED = 123  # the package's own, which the published runs left as it is
_TRIALS = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Directed edges of N items to near neighbours; built by `knn_graph`.

    Attributes:
      size: N.
      source: int32[edges], ascending; the edges of one item go from near to far.
      target: int32[edges], another item than the source.
      distance: float32[edges], 1 - cosine.
      mean_distance: over all neighbour lists, with and without an edge, items themselves included.
    """

    size: int
    source: np.ndarray
    target: np.ndarray
    distance: np.ndarray
    mean_distance: float

    @property
    def singles(self) -> np.ndarray:
        """Items without an edge to another one, int32[singles]."""
        return np.flatnonzero(np.bincount(self.source, minlength=self.size) == 0).astype(np.int32)


def knn_infomap(
    features: np.ndarray | jax.Array,
    *,
    k: int = 15,
    min_similarity: float = 0.5,
    min_size: int = 5,
    engine: str = "auto",
    progress: bool = False,
) -> Labels:
    """Clusters of items as modules of the graph of nearest neighbours.

    Args:
      features: float[N, D]; need not be normalised.
      k: see `knn_graph`.
      min_similarity: see `knn_graph`.
      min_size: see `module_labels`.
      engine: see `knn_graph`.
      progress: shows a bar of the neighbour search.

    Returns:
      `Labels`, see `module_labels`.

    Raises:
      ImportError: the package infomap is missing.
      ValueError: see `knn_graph` and `module_labels`.

    Source: CALR, inter-camera stage (specification 4.1), with the defaults.
    """
    _check_min_size(min_size)
    _package()
    graph = knn_graph(
        features, k=k, min_similarity=min_similarity, engine=engine, progress=progress
    )
    return module_labels(graph, min_size=min_size)


def knn_graph(
    features: np.ndarray | jax.Array,
    *,
    k: int = 15,
    min_similarity: float = 0.5,
    engine: str = "auto",
    progress: bool = False,
) -> Graph:
    """The graph of each item's nearest neighbours by cosine.

    Args:
      features: float[N, D]; need not be normalised.
      k: length of the neighbour lists, the item itself included, 2 or more; above N it counts
        as N.
      min_similarity: see `graph_of_lists`.
      engine: see `self_top_k`.
      progress: shows a bar.

    Returns:
      `Graph`.

    Raises:
      ValueError: no matrix, NaN, infinite or zero vectors (see `check_features`); k or
        min_similarity out of range.

    Source: CALR, inter-camera stage (specification 4.1).
    """
    if not isinstance(k, numbers.Integral) or k < 2:
        raise ValueError(
            f"k is {k}; expected a whole number of neighbours, 2 or more with the item itself"
        )
    _check_similarity(min_similarity)
    size = len(features) if np.ndim(features) else 0
    found = self_top_k(
        features, min(k, max(size, 1)), metric="cosine", engine=engine, progress=progress
    )
    return graph_of_lists(found, min_similarity=min_similarity)


def graph_of_lists(neighbors: Neighbors, *, min_similarity: float = 0.5) -> Graph:
    """The graph of given neighbour lists.

    Every item gets an edge to each other one of its list that is similar enough; the item itself
    is left out wherever it stands in the list, which among equal items may be nowhere.

    Args:
      neighbors: lists of N items and their cosines, nearest first; -1 where a list ends early.
      min_similarity: least cosine of an edge, above 0 and at most 1.

    Returns:
      `Graph`.

    Raises:
      ValueError: lists of other items, that repeat one, or without cosines; min_similarity out
        of range.

    Source: CALR, inter-camera stage (specification 4.1).
    """
    _check_similarity(min_similarity)
    lists, cosine = _checked_lists(neighbors)
    distance = np.float32(1) - cosine.astype(np.float32)
    listed = lists >= 0
    own = lists == np.arange(len(lists))[:, None]
    row, place = np.nonzero(listed & ~own & (distance <= 1 - min_similarity))
    return Graph(
        len(lists),
        row.astype(np.int32),
        lists[row, place].astype(np.int32),
        distance[row, place],
        float(np.mean(distance[listed], dtype=np.float64)) if listed.any() else 0.0,
    )


def module_labels(graph: Graph, *, min_size: int = 5) -> Labels:
    """The modules of a graph that are large enough, as labels.

    Args:
      graph: see `knn_graph`.
      min_size: fewest items of a cluster, 1 or more.

    Returns:
      `Labels`: clusters numbered by their first member, -1 for items of smaller modules and for
      items without an edge to another one. Diagnostics are `edges`, `singles` (items without
      edge), `modules` before the smaller ones are dropped, `clusters`, `outliers` and
      `codelength` (bits a step of the walker).

    Raises:
      ImportError: the package infomap is missing.
      ValueError: min_size out of range.

    Source: CALR, inter-camera stage (specification 4.1): modules of 4 items and fewer are
      dropped.
    """
    _check_min_size(min_size)
    module, codelength = modules(graph)
    found = len(np.unique(module[module >= 0]))
    module[graph.singles] = -1
    size = np.bincount(module[module >= 0], minlength=1)
    labels = in_order_of_members(module, (module >= 0) & (size[module] >= min_size))
    clusters = int(labels.max(initial=-1)) + 1
    figures = {
        "edges": len(graph.source),
        "singles": len(graph.singles),
        "modules": found,
        "clusters": clusters,
        "outliers": int(np.sum(labels < 0)),
        "codelength": codelength,
    }
    return Labels(labels, clusters, figures)


def modules(graph: Graph) -> tuple[np.ndarray, float]:
    """Runs Infomap: two levels, directed edges with the cosine as weight, one trial, fixed seed.

    Args:
      graph: see `knn_graph`.

    Returns:
      int32[N], module of each item in order of their first members, -1 without an edge in any
      direction; and the codelength in bits, 0 without edges. Equal graphs give equal modules. The
      numbers of items decide in which order they are moved, so another order of them may end in
      another partition of about the same codelength.

    Raises:
      ImportError: the package infomap is missing.

    Source: Rosvall and Bergstrom, "Maps of random walks on complex networks reveal community
      structure" (2008); CALR, inter-camera stage (specification 4.1).
    """
    package = _package()
    module = np.full(graph.size, -1, np.int32)
    if not len(graph.source):  # a walker has nowhere to go, which the package refuses
        return module, 0.0
    network = package.Network()
    weight = np.float32(1) - graph.distance
    network.add_links(np.stack([graph.source, graph.target, weight], axis=1, dtype=np.float64))
    result = network.run(two_level=True, directed=True, seed=_SEED, num_trials=_TRIALS)
    found = result.modules()
    module[np.fromiter(found.keys(), np.int64, len(found))] = np.fromiter(
        found.values(), np.int64, len(found)
    )
    return in_order_of_members(module, module >= 0), float(result.codelength)


def require_infomap() -> None:
    """For before long work.

    Raises:
      ImportError: the package infomap is missing.
    """
    _package()


def _package():
    try:
        import infomap
    except ImportError as error:
        raise ImportError(
            "clustering by Infomap needs infomap: pip install 'ccafl_jax[infomap]'"
        ) from error
    return infomap


def _checked_lists(neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    lists, cosine = np.asarray(neighbors.indices), np.asarray(neighbors.scores)
    if lists.ndim != 2 or lists.dtype.kind not in "iu" or cosine.shape != lists.shape:
        raise ValueError(
            f"neighbours are {lists.dtype} of shape {lists.shape} with scores {cosine.shape}; "
            "expected indices and cosines [N, k]"
        )
    if not lists.size or lists.min() < -1 or lists.max() >= len(lists):
        span = f"{lists.min()}..{lists.max()}" if lists.size else "empty"
        raise ValueError(
            f"neighbours are {span}; expected rows of the same set, 0..{len(lists) - 1}"
        )
    ordered = np.sort(lists, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if twice.any():
        raise ValueError(
            f"{twice.sum()} neighbour lists (first: row {np.argmax(twice)}) hold an item twice; "
            "expected different items"
        )
    wrong = ((lists >= 0) & ~np.isfinite(cosine)).any(axis=1)
    if wrong.any():
        raise ValueError(
            f"cosines of {wrong.sum()} neighbour lists (first: row {np.argmax(wrong)}) are NaN or "
            "infinite; expected numbers, check the features they come from"
        )
    return lists, cosine


def _check_similarity(min_similarity: float) -> None:
    if not 0 < min_similarity <= 1:
        raise ValueError(
            f"min_similarity is {min_similarity}; expected a cosine above 0, as edges weigh no "
            "less, and at most 1"
        )


def _check_min_size(min_size: int) -> None:
    if not isinstance(min_size, numbers.Integral) or min_size < 1:
        raise ValueError(f"min_size is {min_size}; expected a whole number of items, 1 or more")
