"""What the video layouts share: settings, and which tracks a set has."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from data_prep.synthetic.layouts.common import LayoutConfig, between, cameras_seen


@dataclasses.dataclass(frozen=True)
class WalksConfig(LayoutConfig):
    """Settings of a set of walks.

    Attributes:
      frames: mean number of frames of a tracklet; they range from half to one and a half of it.
      ambiguity: share of the walks in which the person turns, and of the stretches of 16 frames in
        which a passer-by crosses before the person, so that single frames tell little.
    """

    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {"frames": (2, 600), "ambiguity": (0, 1)}

    frames: int = 20
    ambiguity: float = 0.5


@dataclasses.dataclass(frozen=True)
class VideoConfig(WalksConfig):
    """Settings of a set of tracklets.

    Attributes:
      train_ids: identities to train on (odd numbers).
      test_ids: identities of queries and gallery (even numbers), each under two or more cameras.
      cameras: number of cameras.
      tracklets: mean number of tracklets of one training identity under one camera.
    """

    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {
        **WalksConfig.LIMITS,
        "train_ids": (1, 4000),
        "test_ids": (1, 4000),
        "cameras": (2, 9),
        "tracklets": (1, 20),
    }

    train_ids: int = 20
    test_ids: int = 12
    cameras: int = 6
    tracklets: int = 2


@dataclasses.dataclass(frozen=True)
class Tracklet:
    """One tracklet before it has names.

    Attributes:
      pid: identity.
      camera: number of the camera, from 1.
      number: of the tracklet among those of the identity under the camera, from 1.
      length: number of frames.
    """

    pid: int
    camera: int
    number: int
    length: int


def identities(count: int, *, odd: bool) -> np.ndarray:
    """The first `count` odd or even identities: int64[count]."""
    return 2 * np.arange(count) + (1 if odd else 2)


def draw_tracklets(config: VideoConfig, pids: np.ndarray, *, test: bool) -> list[Tracklet]:
    """All tracklets of the identities, by identity, camera and number.

    Test identities have two or more under each of two or more cameras, so that a query finds
    others of its own and of another camera.

    Args:
      config: of the set.
      pids: int[n].
      test: whether they are test identities.
    """
    found = []
    fewest = 2 if test else 1
    seen = cameras_seen(config, pids, config.cameras, fewest=2, most=4)
    for pid, cameras in zip(pids.tolist(), seen, strict=True):
        for camera in cameras:
            most = max(fewest, 2 * config.tracklets - 1)
            count = between(config, "tracklets", fewest, most, pid, camera)
            found += [
                Tracklet(pid, camera, number, length_of(config, pid, camera, number))
                for number in range(1, count + 1)
            ]
    return found


def length_of(config: VideoConfig, *parts: int) -> int:
    """Number of frames of the tracklet that `parts` name."""
    return between(config, "frames", max(1, config.frames // 2), config.frames * 3 // 2, *parts)


def query_rows(tracklets: Sequence[Tracklet]) -> np.ndarray:
    """Rows, from 1, of the first tracklet of every identity under every camera: int64[q]."""
    rows = [row for row, one in enumerate(tracklets, 1) if one.number == 1 and one.pid > 0]
    return np.array(rows, np.int64)


def line_table(tracklets: Sequence[Tracklet]) -> np.ndarray:
    """First line, last line (from 1, both included), identity and camera: int64[n, 4]."""
    length = np.array([one.length for one in tracklets], np.int64)
    last = np.cumsum(length)
    pid = [one.pid for one in tracklets]
    camera = [one.camera for one in tracklets]
    return np.stack([last - length + 1, last, pid, camera], axis=1).astype(np.int64)
