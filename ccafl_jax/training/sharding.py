"""One mesh axis, "data": batches are split over it, everything else is replicated.

Code is written as if for one device; a loss over eight devices equals the loss over one. Where the
mesh spans processes, each holds the same host arrays and sends what its own devices need.
`jax.pmap` is in maintenance upstream and is not used here.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: int = 0, *, local: bool = False) -> Mesh:
    """A mesh over the first `devices` devices (0: all of them), with automatic sharding.

    Args:
      devices: how many.
      local: only those of this process, which then works alone.

    Raises:
      ValueError: more devices asked for than there are, or not all of several processes.
    """
    found = jax.local_devices() if local else jax.devices()
    if not 0 <= devices <= len(found):
        raise ValueError(
            f"{devices} devices asked for, {len(found)} found: choose 1 to {len(found)}, or 0 for "
            "all"
        )
    if jax.process_count() > 1 and not local and devices not in (0, len(found)):
        raise ValueError(
            f"{devices} of {len(found)} devices asked for, but the {jax.process_count()} processes "
            "of a run use all of theirs: set devices to 0"
        )
    chosen = found[: devices or len(found)]
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def check_batch(batch: int, mesh: Mesh, name: str = "the batch") -> None:
    """Fails when the mesh does not divide the batch, naming the device counts that do.

    Args:
      batch: rows.
      mesh: the devices.
      name: what to change, in the message.

    Raises:
      ValueError: it does not.
    """
    count = mesh.devices.size
    if batch % count:
        valid = [n for n in range(1, batch + 1) if batch % n == 0]
        below = max(n for n in valid if n <= count)
        above = min((n for n in valid if n > count), default=below)
        raise ValueError(
            f"a batch of {batch} rows does not divide over {count} devices: set devices to "
            f"{below} or {above}, or change {name}"
        )


def place(tree: Any, shardings: Any) -> Any:
    """Puts the arrays of a pytree on devices, each with its sharding.

    Args:
      tree: arrays on the host, equal on all processes, or on devices.
      shardings: of the same structure.
    """

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, sharding)
        # device_put would send the array round to compare it.
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts every array of a pytree on all devices of the mesh."""
    whole = NamedSharding(mesh, PartitionSpec())
    return place(tree, jax.tree.map(lambda _: whole, tree))


def shard_rows(array: np.ndarray, mesh: Mesh, *, axis: int = 0) -> jax.Array:
    """Splits `axis` of an array over the mesh; that axis must be divisible by its size."""
    return place(array, NamedSharding(mesh, PartitionSpec(*([None] * axis), "data")))


def host_local(array: Any) -> np.ndarray:
    """An array that is whole on every device, on the host."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(array.addressable_data(0))
    return np.asarray(array)
