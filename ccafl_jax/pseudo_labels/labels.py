"""What every labeller returns, and how a configuration names one."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ccafl_jax.options import nearest_key

CLUSTERINGS = {
    "jaccard_dbscan": "ccafl_jax.pseudo_labels.dbscan:jaccard_dbscan",
    "jaccard_linkage": "ccafl_jax.pseudo_labels.agglomerative:jaccard_linkage",
    "knn_infomap": "ccafl_jax.pseudo_labels.infomap:knn_infomap",
}
"""Short names of functions `(features float[n, dim], *, ...) -> Labels` of n items."""


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """Pseudo labels of n items (images, or classes of one camera).

    Attributes:
      labels: int32[n], clusters from 0 without gaps; -1 for an outlier.
      num_clusters: how many.
      diagnostics: figures of how the labels came about, such as pairs examined.
      edges: int32[accepted, 2], pairs (a < b) in the order of acceptance, where the labeller
        decides pair by pair; None elsewhere.
    """

    labels: np.ndarray
    num_clusters: int
    diagnostics: Mapping[str, float | int] = dataclasses.field(default_factory=dict)
    edges: np.ndarray | None = None


def in_order_of_members(groups: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
    """Group numbers as labels: clusters from 0 in the order of their first member.

    Args:
      groups: int[n], a number for every group, any numbers.
      keep: bool[n], the items that count; all when None. Others get -1.

    Returns:
      int32[n].
    """
    groups = np.asarray(groups)
    keep = np.ones(len(groups), bool) if keep is None else np.asarray(keep)
    _, first, inverse = np.unique(groups[keep], return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int32)
    number[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    labels = np.full(len(groups), -1, np.int32)
    labels[keep] = number[inverse.reshape(-1)]
    return labels


def commonest(group: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value that most members of each group have; of equally common ones the smallest.

    Args:
      group: int[n].
      value: int[n].

    Returns:
      int[groups], those that have a member, ascending, and int[groups], their values.
    """
    cells, count = np.unique(np.stack([group, value]), axis=1, return_counts=True)
    group, value = cells
    order = np.lexsort((value, -count, group))
    found, first = np.unique(group[order], return_index=True)
    return found, value[order][first]


def labeller(name: str, known: Mapping[str, str] = CLUSTERINGS) -> Callable[..., Labels]:
    """The function of a short name or an import path.

    Args:
      name: a key of `known`, or `package.module:function`.
      known: import paths by short name.

    Raises:
      ValueError: an unknown short name (the nearest known one is named), a module that cannot be
        imported, or no such function in it.
    """
    path = known.get(name, name)
    module_name, colon, attribute = path.partition(":")
    if not colon:
        near = nearest_key(name, known)
        hint = f"did you mean {near}? " if near else ""
        raise ValueError(
            f"unknown method {name!r}: {hint}known are {', '.join(sorted(known))}, or an import "
            "path package.module:function"
        )
    try:
        function = getattr(importlib.import_module(module_name), attribute, None)
    except ImportError as error:
        raise ValueError(f"{path} cannot be imported: {error}") from error
    if not callable(function):
        raise ValueError(f"module {module_name} has no function {attribute!r}")
    return function


def options_taken(
    function: Callable, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Those options that a function takes as keywords.

    Args:
      function: a labeller.
      options: values by name.
      defaults: of the same names.

    Raises:
      ValueError: an option was changed from its default, and the function does not take it.
    """
    parameters = inspect.signature(function).parameters.values()
    names = {parameter.name for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY}
    idle = [key for key, value in options.items() if key not in names and value != defaults[key]]
    if idle:
        raise ValueError(
            f"{function.__name__} takes no option {idle[0]}; it takes "
            f"{', '.join(sorted(names & options.keys())) or 'none of them'}; set {idle[0]} to "
            f"{defaults[idle[0]]!r}, its default"
        )
    return {key: value for key, value in options.items() if key in names}
