"""Synthetic people as iLIDS-VID has its pedestrians.

    OUT/i-LIDS-VID/sequences/cam1/person001/cam1_person001_00317.png
    OUT/i-LIDS-VID/sequences/cam2/person001/...
    OUT/train-test people splits/train_test_splits_ilidsvid.mat    ls_set float64[10, people]:
                                                                   orders of the people, from 1

Numbers of people have gaps, so their places in the sorted list are not their numbers.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from data_prep.synthetic.layouts.common import (
    Blueprint,
    Sensor,
    Track,
    between,
    matlab,
    shuffled,
)
from data_prep.synthetic.layouts.video import WalksConfig

SPLITS = 10


@dataclasses.dataclass(frozen=True)
class IlidsvidConfig(WalksConfig):
    """Settings of a set in the layout of iLIDS-VID.

    Attributes:
      ids: number of people, even; each half trains or tests.
    """

    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {**WalksConfig.LIMITS, "ids": (2, 900)}

    ids: int = 24

    def __post_init__(self):
        super().__post_init__()
        if self.ids % 2:
            raise ValueError(f"ids is {self.ids}; expected an even number, for two halves")


def blueprint(config: IlidsvidConfig) -> Blueprint:
    """Names every picture and info file of a set."""
    # One number in sixteen belongs to nobody.
    people = [number for number in range(1, 2 * config.ids + 3) if number % 16 != 4][: config.ids]
    tracks = [_track(config, pid, camera) for camera in (1, 2) for pid in people]
    orders = np.stack([shuffled(config, "splits", config.ids, row) for row in range(SPLITS)]) + 1
    files = {
        "train-test people splits/train_test_splits_ilidsvid.mat": matlab(
            {"ls_set": orders.astype(np.float64)}
        )
    }
    return Blueprint(
        tracks,
        files,
        {
            "sequences": sum(len(track.paths) for track in tracks),
            "people": config.ids,
            "splits": SPLITS,
        },
    )


def _track(config: IlidsvidConfig, pid: int, camera: int) -> Track:
    length = between(config, "frames", config.frames // 2, config.frames * 3 // 2, pid, camera)
    first = between(config, "first frame", 1, 9000, pid, camera)
    folder = f"i-LIDS-VID/sequences/cam{camera}/person{pid:03d}"
    paths = tuple(
        f"{folder}/cam{camera}_person{pid:03d}_{frame:05d}.png"
        for frame in range(first, first + length)
    )
    return Track(paths, pid, Sensor(camera), ambiguity=config.ambiguity)
