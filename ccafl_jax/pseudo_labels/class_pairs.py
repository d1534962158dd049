"""Pairs of classes of different cameras, closest first, in float64 on the host.

All of it works on one pair of cameras at a time, whose classes make one matrix of distances.
"""

import collections
import concurrent.futures
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

_GRID = 1.5 * 2.0**12  # a number this large holds multiples of 2**-40


class Camera(NamedTuple):
    """The classes of one camera.

    Attributes:
      classes: int[n], ascending.
      x: float64[n, dim], unit vectors; a class of zeros stays zero.
    """

    classes: np.ndarray
    x: np.ndarray


class Tile(NamedTuple):
    """All pairs of the classes of two cameras.

    Attributes:
      first: row of the first camera.
      second: row of the second camera; equal to `first` for the pairs inside a camera.
      distance: float64[n, m], squared Euclidean distances 0..4 in multiples of 2**-40, so that
        equal features are equally far whatever product they went through.
    """

    first: int
    second: int
    distance: np.ndarray


def by_camera(x: np.ndarray, cam_of: np.ndarray) -> list[Camera]:
    """The cameras that have classes, in ascending order.

    Args:
      x: float[classes, dim], finite; normalised here.
      cam_of: int[classes].
    """
    x, cam_of = np.asarray(x), np.asarray(cam_of)

    def of(camera: int) -> Camera:
        classes = np.flatnonzero(cam_of == camera)
        rows = x[classes].astype(np.float64)
        # A copy of their own: equal rows have one length, which a product would not promise.
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return Camera(classes, rows)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(of, np.unique(cam_of)))


def tiles(cameras: Sequence[Camera], *, own: bool = False) -> Iterator[Tile]:
    """The distances of every two cameras.

    While the walk lasts, linear algebra on the host uses one thread for a product: several tiles
    are made at once, and the threads of their products would wait for each other.

    Args:
      cameras: from `by_camera`.
      own: also those of every camera to itself.

    Yields:
      One tile after the other; the memory is that of a few for each core.
    """
    from threadpoolctl import threadpool_limits

    places = [
        (first, second)
        for first in range(len(cameras))
        for second in range(first if own else first + 1, len(cameras))
    ]

    def tile(place: tuple[int, int]) -> Tile:
        first, second = place
        distance = cameras[first].x @ cameras[second].x.T
        distance *= -2.0
        distance += 2.0 + _GRID
        distance -= _GRID
        return Tile(first, second, distance)

    ahead = 2 * (os.cpu_count() or 1)
    with (
        threadpool_limits(1, user_api="blas"),
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        # Tiles are made while the ones before them are looked through.
        waiting = collections.deque(pool.submit(tile, place) for place in places[:ahead])
        for place in [*places[ahead:], *[None] * len(waiting)]:
            found = waiting.popleft().result()
            if place is not None:
                waiting.append(pool.submit(tile, place))
            yield found


def closest_pairs(
    found: Iterable[Tile],
    cameras: Sequence[Camera],
    *,
    most: int | None = None,
    mutual: int = 0,
    max_distance: float = 4.0,
) -> np.ndarray:
    """The closest pairs of classes of different cameras.

    Args:
      found: tiles; those inside a camera are passed over.
      cameras: that they belong to.
      most: how many pairs at most; all when None.
      mutual: k above 0 leaves only pairs of which each is among the other's k nearest classes of
        the other's camera; all classes as near as the k-th count. 0 leaves all.
      max_distance: largest squared Euclidean distance of a pair.

    Returns:
      int64[pairs, 2], a < b, by ascending distance, equal distances by (a, b).
    """
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    limit, held = max_distance, 0
    for tile in found:
        if tile.first == tile.second:
            continue
        near = tile.distance <= limit
        if mutual:
            near &= _mutual(tile.distance, mutual)
        row, column = np.nonzero(near)
        a, b = cameras[tile.first].classes[row], cameras[tile.second].classes[column]
        kept.append((tile.distance[row, column], np.minimum(a, b), np.maximum(a, b)))
        held += len(row)
        if most is not None and held > 2 * most:
            kept, held = [_closest(kept, most)], most
            limit = kept[0][0][-1] if most else -1.0
    _, a, b = _closest(kept, held if most is None else most)
    return np.stack([a, b], axis=1)


def _mutual(distance: np.ndarray, k: int) -> np.ndarray:
    """Which pairs are among the k nearest along both axes, bool[n, m]."""
    near = distance <= _smallest(distance, k)[:, None]
    near &= distance <= _smallest(np.ascontiguousarray(distance.T), k)
    return near


def _smallest(distance: np.ndarray, k: int) -> np.ndarray:
    """The k-th smallest entry of each row, float64[n]; the largest one of shorter rows."""
    k = min(k, distance.shape[1])
    return distance.min(axis=1) if k == 1 else np.partition(distance, k - 1, axis=1)[:, k - 1]


def _closest(
    pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `most` pairs that come first by (distance, a, b), in this order."""
    if not pairs:
        return np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64)
    distance, a, b = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    if most < len(distance):
        # Of pairs as close as the last one in the budget, the class index decides.
        limit = np.partition(distance, most - 1)[most - 1] if most else -1.0
        near = np.flatnonzero(distance <= limit)
        distance, a, b = distance[near], a[near], b[near]
    order = np.lexsort((b, a, distance))[:most]
    return distance[order], a[order], b[order]
