"""One mesh axis, "data": batches are split over it, everything else is replicated.

Code is written as if for one device; a loss over eight devices equals the loss over one.
`jax.pmap` is in maintenance upstream and is not used here.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: int = 0) -> Mesh:
    """A mesh over the first `devices` devices (0: all of them), with automatic sharding.

    Raises:
      ValueError: more devices asked for than there are.
    """
    found = jax.devices()
    if not 0 <= devices <= len(found):
        raise ValueError(
            f"{devices} devices asked for, {len(found)} found: choose 1 to {len(found)}, or 0 for "
            "all"
        )
    chosen = found[: devices or len(found)]
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def check_batch(batch: int, mesh: Mesh) -> None:
    """Fails when the mesh does not divide the batch, naming the device counts that do."""
    count = mesh.devices.size
    if batch % count:
        valid = [n for n in range(1, batch + 1) if batch % n == 0]
        below = max(n for n in valid if n <= count)
        above = min((n for n in valid if n > count), default=below)
        raise ValueError(
            f"a batch of {batch} rows does not divide over {count} devices: set devices to "
            f"{below} or {above}, or change the batch"
        )


def replicate(tree: object, mesh: Mesh) -> object:
    """Puts every array of a pytree on all devices of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_rows(array: np.ndarray, mesh: Mesh, *, axis: int = 0) -> jax.Array:
    """Splits `axis` of an array over the mesh; that axis must be divisible by its size."""
    spec = PartitionSpec(*([None] * axis), "data")
    return jax.device_put(array, NamedSharding(mesh, spec))
