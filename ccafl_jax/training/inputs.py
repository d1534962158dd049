"""Images on their way to the devices: a resident set, or batches that are streamed to them.

A plan (data/samplers.py) says which images form which batch. Both kinds turn it into the same
batches of device arrays and always have the next ones on their way. `choose_input` decides.
"""

import abc
import collections
import concurrent.futures
import contextlib
import functools
import logging
import os
import time
from collections.abc import Generator, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ccafl_jax.data.decoded import load_images
from ccafl_jax.data.records import Records
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.data.streaming import checked_plan, host_rows, stream_batches
from ccafl_jax.options import require_choice
from ccafl_jax.training.sharding import check_batch, replicate

KINDS = ("auto", "resident", "streaming")
_ROWS_AT_ONCE = 32  # steps whose rows are sent in one call
_MAX_THREADS = 32  # more decode no faster than a device takes, and each holds a batch

_put = jax.make_array_from_process_local_data  # device_put compares what all hosts put
Batch = tuple[jax.Array, jax.Array]

log = logging.getLogger("ccafl_jax")


class ImageInput(abc.ABC):
    """n images of one size, for steps on a mesh.

    Attributes:
      resident: whether the images of a batch are the whole set, of which the step takes rows.
      shape: n, height, width, 3.
      mesh: the devices; over several processes, each calls the same methods with the same plans.
      wait_seconds: how long callers have waited for batches so far.
    """

    resident: bool

    def __init__(self, shape: tuple[int, ...], mesh: Mesh):
        self.shape = tuple(shape)
        self.mesh = mesh
        self.wait_seconds = 0.0
        self._over_rows = NamedSharding(mesh, PartitionSpec("data"))

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, plan: np.ndarray) -> Generator[Batch]:
        """The batches of a plan; batch s of `plan[k:]` is batch k + s of `plan`.

        Work starts with the first batch that is asked for, and `close()` of the iterator ends it.

        Args:
          plan: int[steps, batch], rows of the set in any order; all of them on every process.

        Yields:
          images: uint8[n, height, width, 3] on every device where the input is resident, else
            uint8[batch, height, width, 3] split over "data".
          rows: int32[batch], split over "data".

        Raises:
          ValueError: a batch that the mesh does not divide, or rows out of range; at the step
            that needs it, a damaged image, named.
          FileNotFoundError: at the step that needs it, an image file that is gone.
        """
        plan = checked_plan(plan, len(self))
        check_batch(plan.shape[1], self.mesh)
        return self._timed(self._batches(plan))

    def in_order(
        self, batch: int, chosen: np.ndarray | None = None
    ) -> Generator[tuple[jax.Array, np.ndarray]]:
        """Images once, in batches of one shape; the last image fills up the last batch.

        Args:
          batch: rows of a batch, a multiple of the mesh size.
          chosen: int[k], which images, in which order; None for all.

        Yields:
          images: uint8[batch, height, width, 3], split over "data".
          rows: int32[batch], on the host: which images these are.
        """
        chosen = np.arange(len(self), dtype=np.int32) if chosen is None else chosen
        steps = -(-len(chosen) // batch)
        places = np.arange(steps * batch).reshape(steps, batch)
        plan = np.asarray(chosen, np.int32)[np.minimum(places, len(chosen) - 1)]
        with contextlib.closing(self.batches(plan)) as batches:
            for host, (images, rows) in zip(plan, batches, strict=True):
                taken = _take(images, rows, self._over_rows) if self.resident else images
                yield taken, host

    @abc.abstractmethod
    def _batches(self, plan: np.ndarray) -> Generator[Batch]:
        """`batches` of a plan that has been checked."""

    def _timed(self, batches: Generator[Batch]) -> Generator[Batch]:
        with contextlib.closing(batches):
            while True:
                start = time.perf_counter()
                batch = next(batches, None)
                self.wait_seconds += time.perf_counter() - start
                if batch is None:
                    return
                yield batch


class ResidentImages(ImageInput):
    """uint8[n, height, width, 3] on every device; only rows travel, of many steps in one call."""

    resident = True

    def __init__(self, images: np.ndarray | jax.Array, mesh: Mesh):
        super().__init__(images.shape, mesh)
        self.images = replicate(images, mesh)

    def _batches(self, plan: np.ndarray) -> Generator[Batch]:
        for first in range(0, len(plan), _ROWS_AT_ONCE):
            part = list(plan[first : first + _ROWS_AT_ONCE])
            for rows in _put(self._over_rows, part, plan.shape[1:]):
                yield self.images, rows


class StreamedImages(ImageInput):
    """Batches that are decoded, or read from an array on the host, as they are needed.

    Each process reads the rows of its own devices only. Memory is bounded whatever the size of
    the set: a host holds at most `threads` + 2 decoded batches of its share, and the devices hold
    `ahead` + 1 batches beside those of the steps that are on their way. A thread sends batches to
    the devices, so that a step that is dispatched waits for its own batch only.
    """

    resident = False

    def __init__(
        self,
        images: Records | np.ndarray,
        mesh: Mesh,
        *,
        pixels: PixelFormat | None = None,
        threads: int | None = None,
        ahead: int = 2,
    ):
        """Args:
        images: records, whose images are decoded each time; or uint8[n, height, width, 3] in
          memory or mapped into it, see `load_images`.
        mesh: the devices.
        pixels: size and filter, for records.
        threads: decode as many batches at once; None: the processors, at most 32.
        ahead: batches sent ahead of the step.
        """
        decodes = isinstance(images, Records)
        size = (pixels.height, pixels.width, 3) if decodes else images.shape[1:]
        super().__init__((len(images), *size), mesh)
        self.ahead = ahead
        self._images, self._pixels = images, pixels
        self._threads = threads or min(os.cpu_count() or 1, _MAX_THREADS)

    def _batches(self, plan: np.ndarray) -> Generator[Batch]:
        reader = self._read(host_rows(plan, self._over_rows))

        def next_batch(rows: np.ndarray) -> Batch:
            images = _put(self._over_rows, next(reader), (len(rows), *self.shape[1:]))
            return images, _put(self._over_rows, rows, rows.shape)

        # One thread, so that batches leave the reader in order.
        pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="image-input")
        waiting: collections.deque = collections.deque()
        try:
            for rows in plan:
                waiting.append(pool.submit(next_batch, rows))
                if len(waiting) > self.ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            reader.close()

    def _read(self, plan: np.ndarray) -> Iterator[np.ndarray]:
        """An iterator, with `close`, of uint8[rows, height, width, 3]."""
        if isinstance(self._images, Records):
            options = {"threads": self._threads, "prefetch": self._threads + 1}
            return stream_batches(self._images, plan, self._pixels, **options)
        return (np.asarray(self._images[rows]) for rows in plan)


def choose_input(
    images: Records | np.ndarray,
    pixels: PixelFormat,
    mesh: Mesh,
    *,
    kind: str = "auto",
    share: float = 0.3,
    cache: str | os.PathLike = "",
    progress: bool = True,
) -> ImageInput:
    """Resident images where they fit into a share of a device's memory, else streamed ones.

    Args:
      images: records, or decoded images.
      pixels: size and filter of decoded images.
      mesh: the devices.
      kind: `resident` or `streaming` decides at once; `auto` by memory.
      share: of the memory of each device that may be used. CPU devices have equal parts of the
        host's, which has to hold a copy for each of them.
      cache: folder for decoded images, see `load_images`; they are then streamed from there.
      progress: shows a bar while all images are decoded.

    Raises:
      FileNotFoundError, ValueError: as `load_images`; another kind.
    """
    require_choice("kind", kind, KINDS)
    decodes = isinstance(images, Records)
    needed = len(images) * pixels.height * pixels.width * 3 if decodes else images.nbytes
    memory = _memory(mesh)
    resident = kind == "resident" or (kind == "auto" and needed <= share * memory)
    if mesh.is_multi_process:  # all go the same way, even where one has less memory
        resident = bool(np.all(multihost_utils.process_allgather(np.array(resident))))
    log.info(
        f"{'resident' if resident else 'streaming'} input ({kind}): {len(images)} images take "
        f"{needed / 1e9:.3f} GB, and {share * memory / 1e9:.3f} GB of each device may be used"
    )
    if decodes and (resident or cache):
        images = load_images(images, pixels, cache=cache, progress=progress)
    return ResidentImages(images, mesh) if resident else StreamedImages(images, mesh, pixels=pixels)


def _memory(mesh: Mesh) -> float:
    """Bytes of the smallest device of this process; an equal part of the host's for each CPU."""
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    limits = [found["bytes_limit"] for found in stats if "bytes_limit" in found]
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(limits, default=host / len(stats))


@functools.partial(jax.jit, static_argnames="sharding")
def _take(images: jax.Array, rows: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(images[rows], sharding)
