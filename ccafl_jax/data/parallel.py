"""Work over many images: in threads, in order, with a bar."""

import collections
import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

T = TypeVar("T")
IMAGES_PER_TASK = 32
_TASKS_AHEAD = 4  # of each thread


def in_order(
    work: Callable[[np.ndarray], T], count: int, *, workers: int | None = None
) -> Iterator[tuple[np.ndarray, T]]:
    """Calls `work` on ranges of rows that cover 0 to count - 1, ahead in threads.

    Args:
      work: takes int64[k] consecutive rows.
      count: number of rows.
      workers: threads; the number of processors when None.

    Yields:
      The rows and the result, in the order of the rows; so the first error in that order is the
      one that is raised.
    """
    workers = workers or os.cpu_count() or 1
    rows = np.arange(count)
    waiting: collections.deque = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        for first in range(0, count, IMAGES_PER_TASK):
            task = rows[first : first + IMAGES_PER_TASK]
            waiting.append((task, pool.submit(work, task)))
            if len(waiting) > _TASKS_AHEAD * workers:
                done, result = waiting.popleft()
                yield done, result.result()
        while waiting:
            done, result = waiting.popleft()
            yield done, result.result()
    finally:
        # After an error the remaining images need no work.
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def image_bar(total: int, description: str, *, shown: bool = True):
    """A progress bar that counts images."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress bars need tqdm: pip install tqdm, or progress=False") from error
    with tqdm(total=total, desc=description, unit="img", leave=False, disable=not shown) as bar:
        yield bar
