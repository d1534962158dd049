"""Synthetic people as SYSU-MM01 has its pedestrians, in visible light and near infrared.

    OUT/cam1/0001/0001.jpg ...            cameras 1, 2, 4, 5 visible; 3, 6 infrared (one channel)
    OUT/exp/train_id.txt, val_id.txt, test_id.txt, available_id.txt     one line of ids, "1,2,5"
    OUT/exp/train_id.mat ...              the same, variable `id`, float64[1, n]
    OUT/exp/rand_perm_cam.mat             rand_perm_cam: cell of six cameras, each a cell of all
                                          ids, each float64[10, images]: orders from 1

Camera 3 stands in the room of camera 2. Not everybody is seen by every camera; the permutations of
an id that a camera has not seen are empty.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from data_prep.synthetic import streams
from data_prep.synthetic.cameras import NEAR
from data_prep.synthetic.layouts.common import (
    Blueprint,
    LayoutConfig,
    Sensor,
    Track,
    between,
    cells,
    lines,
    matlab,
    shuffled,
)

TRIALS = 10
SENSORS = {
    1: Sensor(1),
    2: Sensor(2),
    3: Sensor(3, NEAR, scenes_of=2),
    4: Sensor(4),
    5: Sensor(5),
    6: Sensor(6, NEAR),
}
# Share of the people whom a group of cameras has not seen.
_ABSENCE = {(1, 2): 0.4, (3,): 0.1, (4,): 0.1, (5,): 0.1}


@dataclasses.dataclass(frozen=True)
class SysuConfig(LayoutConfig):
    """Settings of a set in the layout of SYSU-MM01.

    Attributes:
      train_ids: identities of train_id.
      val_ids: identities of val_id.
      test_ids: identities of test_id.
      images: fewest images of one identity under one camera; up to half as many more.
    """

    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "train_ids": (1, 4000),
        "val_ids": (1, 1000),
        "test_ids": (1, 1000),
        "images": (1, 600),
    }

    train_ids: int = 20
    val_ids: int = 6
    test_ids: int = 10
    images: int = 10


def training_pairs(*, seed: int, train_ids: int) -> SysuConfig:
    """The settings of a set to train on, with half as many people to test."""
    return SysuConfig(
        seed=seed, train_ids=train_ids, val_ids=1, test_ids=max(2, train_ids // 2), images=6
    )


def blueprint(config: SysuConfig) -> Blueprint:
    """Names every picture and info file of a set."""
    counts = {"train": config.train_ids, "val": config.val_ids, "test": config.test_ids}
    total = sum(counts.values())
    # One number in twelve belongs to nobody.
    numbers = np.array([n for n in range(1, 2 * total + 3) if n % 12 != 5][:total])
    ids = _split(config, numbers, counts)
    images = {
        (camera, pid): _count(config, camera, pid)
        for pid, cameras in zip(numbers.tolist(), _seen(config, numbers), strict=True)
        for camera in cameras
    }
    tracks = [
        Track(
            paths=tuple(f"cam{camera}/{pid:04d}/{i:04d}.jpg" for i in range(1, count + 1)),
            pid=pid,
            sensor=SENSORS[camera],
            walk=False,
        )
        for (camera, pid), count in sorted(images.items())
    ]
    files = {"exp/rand_perm_cam.mat": _permutations(config, images, int(numbers[-1]))}
    for name, some in (*ids.items(), ("available", numbers)):
        files[f"exp/{name}_id.txt"] = lines([",".join(map(str, some.tolist()))])
        files[f"exp/{name}_id.mat"] = matlab({"id": some.astype(np.float64)[None]})
    told = {
        f"cam{camera}": sum(count for (of, _), count in images.items() if of == camera)
        for camera in SENSORS
    }
    return Blueprint(tracks, files, told | {f"{name} ids": len(some) for name, some in ids.items()})


def _split(
    config: SysuConfig, numbers: np.ndarray, counts: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """The ids of each list, sorted."""
    order = numbers[shuffled(config, "ids", len(numbers))]
    stops = np.cumsum(list(counts.values()))[:-1]
    return {name: np.sort(some) for name, some in zip(counts, np.split(order, stops), strict=True)}


def _seen(config: SysuConfig, pids: np.ndarray) -> list[list[int]]:
    """Cameras of each identity: always 6, and one for visible light at least."""
    u = streams.uniform(streams.stream_key("absence", config.seed), pids, len(_ABSENCE))
    seen = []
    for row in u:
        absent = {
            camera
            for (cameras, share), draw in zip(_ABSENCE.items(), row, strict=True)
            if draw < share
            for camera in cameras
        }
        if absent >= {1, 2, 4, 5}:
            absent -= {4}
        seen.append([camera for camera in SENSORS if camera not in absent])
    return seen


def _count(config: SysuConfig, camera: int, pid: int) -> int:
    return between(config, "images", config.images, config.images * 3 // 2, camera, pid)


def _permutations(config: SysuConfig, images: Mapping[tuple[int, int], int], ids: int) -> bytes:
    cameras = []
    for camera in SENSORS:
        entries = []
        for pid in range(1, ids + 1):
            count = images.get((camera, pid), 0)
            orders = [shuffled(config, "trial", count, camera, pid, t) for t in range(TRIALS)]
            entries.append((np.stack(orders) + 1).astype(np.float64))
        cameras.append(cells(entries))
    return matlab({"rand_perm_cam": cells(cameras)})
