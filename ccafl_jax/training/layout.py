"""How the arrays of a training state lie on the devices: one table of rules.

A rule is a regular expression over the path of an array ("params/neck/scale", "memory/instances",
"classifier_opt/0/mu") and the partition of its axes over the mesh; the first one that matches
decides. By default everything is on every device. Tables with a row for each class can be split,
which needs numbers of rows that the devices divide: `padded_rows` says how many, and rows that are
added hold zeros and no class.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ccafl_jax.training.scale import ScaleConfig

Rules = Sequence[tuple[str, PartitionSpec]]

REPLICATED: Rules = ((r"", PartitionSpec()),)
"""Every array on every device."""

BY_CLASS: Rules = (
    (
        r"^(classifier|memory/(centroids|instances|clusters|visible|infrared)|classifier_opt/.*/(mu|nu))$",
        PartitionSpec("data"),
    ),
    *REPLICATED,
)
"""Memory banks and the classifier with its moments split over classes."""


def rules_of(scale: ScaleConfig) -> Rules:
    """The table that the options ask for."""
    return BY_CLASS if scale.shard_classes else REPLICATED


def path_of(keys: Sequence[Any]) -> str:
    """The path of an array in a pytree, with "/" between names, fields and numbers."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def layout(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """The sharding of every array of a pytree.

    Args:
      tree: of arrays, or of anything with a shape.
      mesh: the devices.
      rules: the table.

    Returns:
      A pytree of `NamedSharding`.

    Raises:
      ValueError: a path that no rule covers, or an axis that the devices do not divide.
    """

    def sharding(keys: Sequence[Any], leaf: Any) -> NamedSharding:
        path = path_of(keys)
        spec = next((spec for pattern, spec in rules if re.search(pattern, path)), None)
        if spec is None:
            raise ValueError(f"no sharding rule covers {path}: add one, such as {REPLICATED[0]}")
        for axis, name in enumerate(spec):
            if name is not None and np.shape(leaf)[axis] % mesh.shape[name]:
                raise ValueError(
                    f"{path} has {np.shape(leaf)[axis]} rows, which {mesh.shape[name]} devices do "
                    "not divide: see padded_rows"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def constrain(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """Asks the compiler for the layout of the table; used inside jitted functions.

    Without it the compiler may choose another one for what a step returns, and the next step would
    be compiled again for that.
    """
    return jax.lax.with_sharding_constraint(tree, layout(tree, mesh, rules))


def padded_rows(rows: int, mesh: Mesh) -> int:
    """The number of rows of a table that is split: as many as there are, or some more."""
    devices = mesh.shape["data"]
    return -(-rows // devices) * devices


def with_rows(leaf: Any, rows: int) -> Any:
    """An array with zero rows added at the end, or taken away there, to have `rows` of them."""
    if not np.ndim(leaf) or np.shape(leaf)[0] == rows:
        return leaf
    module = np if isinstance(leaf, np.ndarray) else jnp
    missing = max(rows - np.shape(leaf)[0], 0)
    return module.pad(leaf[:rows], [(0, missing)] + [(0, 0)] * (np.ndim(leaf) - 1))
