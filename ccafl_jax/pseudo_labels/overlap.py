"""How many pairs of classes of different cameras are one person, told without identities."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ccafl_jax.pseudo_labels.class_pairs import Camera, Tile, by_camera, tiles

_TAIL = 1.0  # standard deviations above the mean of a tile, below which no pair is looked at
_DOUBT = 2.0  # standard deviations of the count by which an excess has to exceed chance
_SAME = 1e-12  # squared length of what distinguishes a class from its camera's mean


def estimate_pairs(x: np.ndarray, cam_of: np.ndarray) -> int:
    """Estimates the number of pairs of classes of different cameras that are one person.

    Two classes of one camera are never one person, so that the pairs inside cameras show how
    similar strangers are. The pairs of two cameras are strangers but for at most one partner a
    class. Similarities are the cosines after each camera's mean is taken off, as standard
    deviations from the mean of all pairs of the same two cameras; this takes out what a camera
    adds to all of its classes. If pairs of two cameras exceed a similarity more often than pairs
    inside cameras do, the surplus is persons: the estimate is the largest surplus over all
    similarities, less two standard deviations of what chance alone would give.

    Measured on 120 classes a camera with 64 dimensions: a random direction for each identity, noise
    of the length given for each class, a random shift of length 1 for each camera. True pairs /
    estimate, by the share of an identity's cameras among all:

    | cameras | noise | 1 | 0.5 | 0.2 | 0.1 | nobody twice |
    |---|---|---|---|---|---|---|
    | 3 | 0.6 | 360 / 360 | 186 / 186 | 74 / 76 | 27 / 28 | 0 / 6 |
    | 8 | 0.6 | 3360 / 3359 | 1700 / 1698 | 674 / 675 | 321 / 323 | 0 / 0 |
    | 15 | 0.6 | 12600 / 12514 | 6298 / 6273 | 2517 / 2506 | 1242 / 1248 | 0 / 13 |
    | 3 | 1 | 360 / 294 | 186 / 125 | 74 / 51 | 27 / 21 | 0 / 4 |
    | 8 | 1 | 3360 / 2546 | 1700 / 1300 | 674 / 502 | 321 / 206 | 0 / 5 |
    | 15 | 1 | 12600 / 10282 | 6298 / 4669 | 2517 / 1838 | 1242 / 773 | 0 / 24 |

    Limits. It counts the pairs that can be recognised: the weaker the features, the more true pairs
    lie among the similarities of strangers and are missed, so that it is rather too low. Few
    classes show no tail: cameras with fewer than three add next to nothing, and where none has
    three the estimate is 0. Classes of one camera that look alike for a reason which the camera's
    mean does not hold (a change of season, two halls) lower it. Different people who look the same
    across cameras, and never inside one, are counted.

    Args:
      x: float[classes, dim], class means or centroids; normalised here.
      cam_of: int[classes], camera of each class.

    Returns:
      The number, from 0 to the sum over pairs of cameras of the fewer classes of the two.

    Source: ours; the surplus over a null distribution as in Storey's and in Meinshausen and Rice's
    estimates of the share of true effects.
    """
    cameras = by_camera(x, cam_of)
    count = PairCount(cameras)
    for _ in count.watch(tiles(cameras, own=True)):
        pass
    return count.estimate()


class PairCount:
    """Collects what `estimate_pairs` needs from tiles that something else reads anyway."""

    def __init__(self, cameras: Sequence[Camera]):
        """Args:
        cameras: from `by_camera`.
        """
        means = [camera.x.mean(axis=0) for camera in cameras]
        means = np.array(means).reshape(len(cameras), -1 if cameras else 0)
        self._between = means @ means.T  # [cameras, cameras]
        self._to_means = [camera.x @ means.T for camera in cameras]
        self._scale = [
            _inverse_lengths(camera.x, to_means[:, own], self._between[own, own])
            for own, (camera, to_means) in enumerate(zip(cameras, self._to_means, strict=True))
        ]
        self._across: list[np.ndarray] = []
        self._inside: list[np.ndarray] = []
        self._pairs = {"across": 0, "inside": 0}

    def watch(self, found: Iterable[Tile]) -> Iterator[Tile]:
        """Hands tiles on; those inside cameras have to be among them."""
        for tile in found:
            self._add(tile)
            yield tile

    def estimate(self) -> int:
        """The number of pairs, from the tiles seen so far."""
        if not self._pairs["across"] or not self._pairs["inside"]:
            return 0
        similarity = np.sort(np.concatenate(self._across))[::-1]
        strangers = np.sort(-np.concatenate(self._inside))
        ratio = self._pairs["across"] / self._pairs["inside"]
        chance = ratio * np.searchsorted(strangers, -similarity, side="right")
        surplus = np.arange(1, len(similarity) + 1) - chance
        surplus -= _DOUBT * np.sqrt(chance * (1.0 + ratio))
        return round(surplus.max(initial=0.0))

    def _add(self, tile: Tile) -> None:
        cosine = self._centred_cosines(tile)
        inside = tile.first == tile.second
        values = cosine[np.triu_indices(len(cosine), 1)] if inside else cosine.reshape(-1)
        if not len(values):
            return
        mean = values.mean()
        # One pass and no copy, unlike `std`.
        square = np.einsum("v,v->", values, values) / len(values)
        spread = np.sqrt(max(square - mean * mean, 0.0))
        if spread <= np.sqrt(_SAME):
            return
        tail = (values[values >= mean + _TAIL * spread] - mean) / spread
        most = min(cosine.shape)
        if not inside and len(tail) > most:  # a class has one partner in a camera
            tail = np.partition(tail, len(tail) - most)[len(tail) - most :]
        self._pairs["inside" if inside else "across"] += len(values)
        (self._inside if inside else self._across).append(tail)

    def _centred_cosines(self, tile: Tile) -> np.ndarray:
        """From the products of unit vectors and means: no second product of all classes."""
        first, second = tile.first, tile.second
        rows = 1.0 + self._between[first, second] - self._to_means[first][:, second]
        cosine = tile.distance * -0.5
        cosine += rows[:, None]
        cosine -= self._to_means[second][:, first]
        cosine *= self._scale[first][:, None]
        cosine *= self._scale[second]
        return cosine


def _inverse_lengths(x: np.ndarray, to_mean: np.ndarray, mean_square: float) -> np.ndarray:
    """1 / |x - mean|, 0 where a class is its camera's mean."""
    squared = np.einsum("nd,nd->n", x, x) - 2.0 * to_mean + mean_square
    return np.where(squared > _SAME, 1.0 / np.sqrt(np.maximum(squared, _SAME)), 0.0)
