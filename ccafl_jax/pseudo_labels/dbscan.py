"""DBSCAN from the pairs of items that lie within its distance."""

import numbers

import jax
import numpy as np
from scipy.sparse import coo_array, csgraph

from ccafl_jax.pseudo_labels.jaccard import Pairs, jaccard
from ccafl_jax.pseudo_labels.labels import Labels, in_order_of_members


def dbscan(
    pairs: Pairs, size: int, *, min_samples: int = 4, count: np.ndarray | None = None
) -> np.ndarray:
    """Labels of density-based clustering.

    An item with at least `min_samples` items within the distance, itself included, is a core item.
    Core items within the distance of each other share a cluster. Another item joins the first
    cluster of a core item within the distance, or is an outlier.

    Args:
      pairs: all pairs of items within the distance, each once in any direction.
      size: N.
      min_samples: 1 or more.
      count: int[N], how many items each one stands for; 1 when None.

    Returns:
      int32[N]: clusters numbered by their first core item, -1 for outliers; the labels of
      scikit-learn's DBSCAN.

    Raises:
      ValueError: min_samples out of range, pairs of other items.

    Source: Ester et al., "A Density-Based Algorithm for Discovering Clusters" (KDD 1996), with
    the order of scikit-learn.
    """
    if not isinstance(min_samples, numbers.Integral) or min_samples < 1:
        raise ValueError(f"min_samples is {min_samples}; expected a whole number, 1 or more")
    first, second = np.asarray(pairs.first), np.asarray(pairs.second)
    items = np.concatenate([first, second])
    if len(items) and not 0 <= items.min() <= items.max() < size:
        raise ValueError(
            f"pairs hold items {items.min()}..{items.max()}; expected 0..{size - 1}, the items of "
            "one set"
        )
    count = np.ones(size, np.int64) if count is None else np.asarray(count, np.int64)
    near = count.copy()
    near += np.bincount(first, count[second], minlength=size).astype(np.int64)
    near += np.bincount(second, count[first], minlength=size).astype(np.int64)
    core = near >= min_samples
    inner = core[first] & core[second]
    edges = np.ones(int(inner.sum()), bool), (first[inner], second[inner])
    graph = coo_array(edges, shape=(size, size)).tocsr()
    component = csgraph.connected_components(graph, directed=False)[1]
    labels = in_order_of_members(component, core)
    # Clusters are grown one after the other: a border item belongs to the first that reaches it.
    inside, outside = items, np.concatenate([second, first])
    border = core[inside] & ~core[outside]
    none = np.iinfo(np.int32).max
    reached = np.full(size, none, np.int32)
    np.minimum.at(reached, outside[border], labels[inside[border]])
    return np.where(reached < none, reached, labels)


def jaccard_dbscan(
    features: np.ndarray | jax.Array,
    *,
    k1: int = 30,
    k2: int = 6,
    eps: float = 0.6,
    min_samples: int = 4,
    neighbors: np.ndarray | None = None,
    engine: str = "auto",
    progress: bool = False,
) -> Labels:
    """Clusters of items by DBSCAN on the Jaccard distance of their k-reciprocal neighbourhoods.

    Args:
      features: float[N, D]; need not be normalised.
      k1: see `jaccard`.
      k2: see `jaccard`.
      eps: largest distance of two neighbours, above 0 and below 1.
      min_samples: neighbours of a core item, itself included.
      neighbors: see `jaccard`.
      engine: see `jaccard`.
      progress: shows bars.

    Returns:
      `Labels`; diagnostics are `pairs` within eps (of items that differ), `outliers`, and `copies`,
      items that share the row of an earlier one.

    Raises:
      ValueError: see `jaccard`, `Jaccard.within` and `dbscan`.

    Source: SpCL and ClusterContrast; CCLNet (specification 5.1) with the defaults.
    """
    rows = jaccard(features, k1=k1, k2=k2, neighbors=neighbors, engine=engine, progress=progress)
    original = rows.originals
    pairs = rows.within(eps, copies=False, progress=progress)
    count = np.bincount(original, minlength=len(rows))
    labels = dbscan(pairs, len(rows), min_samples=min_samples, count=count)[original]
    return Labels(
        labels,
        int(labels.max(initial=-1)) + 1,
        {
            "pairs": len(pairs.first),
            "outliers": int(np.sum(labels < 0)),
            "copies": int(np.sum(original != np.arange(len(rows)))),
        },
    )
