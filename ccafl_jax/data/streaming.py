"""Batches decoded as they are needed, for sets that do not fit into memory.

A plan (samplers.py) says which images form which batch; grain reads and decodes ahead of the
training step in threads. The state of the iterator is the number of the next batch, so a run that
was killed goes on where its checkpoint stood.
"""

import os

import numpy as np
from jax.sharding import Sharding

from ccafl_jax.data.decoded import decode_rows
from ccafl_jax.data.records import Records
from ccafl_jax.data.sources import PixelFormat


def stream_batches(
    records: Records,
    plan: np.ndarray,
    pixels: PixelFormat,
    *,
    threads: int | None = None,
    prefetch: int = 4,
):
    """Iterates over the batches of a plan.

    Args:
      records: the images.
      plan: int[steps, batch], rows of `records`; a host passes its share, see `host_rows`.
      pixels: size and filter.
      threads: batches that are decoded at the same time; the number of processors when None.
      prefetch: batches held ready.

    Returns:
      A `grain.DatasetIterator` of uint8[batch, height, width, 3]. `get_state()` gives a small
      JSON-like value that `set_state()` of a new iterator over the same plan takes; Orbax saves
      it as well.

    Raises:
      ImportError: grain is not installed.
      ValueError: a plan that is not two-dimensional, or rows out of range; while iterating, a
        damaged image, named.
    """
    try:
        import grain
    except ImportError as error:
        raise ImportError("streaming batches needs grain: pip install grain") from error
    plan = checked_plan(plan, len(records))
    options = grain.ReadOptions(
        num_threads=threads or os.cpu_count() or 1, prefetch_buffer_size=prefetch
    )
    batches = grain.MapDataset.source(_Batches(records, plan, pixels))
    return iter(batches.to_iter_dataset(options))


def host_rows(plan: np.ndarray, sharding: Sharding) -> np.ndarray:
    """The columns of a plan that one host reads: those of the devices it holds.

    The devices of a host need not lie side by side in a mesh; on pods they often do not.

    Args:
      plan: int[steps, batch].
      sharding: of the rows of a batch.

    Returns:
      int[steps, share]: in the order of the batch, as `jax.make_array_from_process_local_data`
      takes them.
    """
    places = np.arange(plan.shape[1])
    parts = sharding.addressable_devices_indices_map(places.shape).values()
    return plan[:, np.unique(np.concatenate([places[part] for part in parts]))]


def checked_plan(plan: np.ndarray, count: int) -> np.ndarray:
    """A plan for `count` images as int32[steps, batch].

    Raises:
      ValueError: it is not two-dimensional, or rows are out of range.
    """
    plan = np.asarray(plan)
    if plan.ndim != 2 or not np.issubdtype(plan.dtype, np.integer):
        raise ValueError(f"the plan is {plan.dtype}{list(plan.shape)}, expected int[steps, batch]")
    if plan.size and not 0 <= plan.min() <= plan.max() < count:
        raise ValueError(f"the plan names rows {plan.min()} to {plan.max()} of {count} images")
    return plan.astype(np.int32)


class _Batches:
    """A random-access sequence of decoded batches, which grain reads in threads."""

    def __init__(self, records: Records, plan: np.ndarray, pixels: PixelFormat):
        self._records, self._plan, self._pixels = records, plan, pixels

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, step: int) -> np.ndarray:
        return decode_rows(self._records, self._plan[step], self._pixels)
