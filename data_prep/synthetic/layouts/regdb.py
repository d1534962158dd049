"""Synthetic people as RegDB has its pedestrians, in visible light and thermal infrared.

    OUT/Visible/1/male_back_v_00021_1.bmp
    OUT/Thermal/1/male_back_t_00022_1.bmp               three equal channels
    OUT/idx/{train,test}_{visible,thermal}_{1..10}.txt  "Visible/1/male_back_v_00021_1.bmp 0"

Two cameras at one place film every person once, from the front or from behind. Each of the ten
splits trains on one half of the people; labels count the people of a list.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from data_prep.synthetic.cameras import THERMAL, VISIBLE
from data_prep.synthetic.layouts.common import (
    Blueprint,
    LayoutConfig,
    Sensor,
    Track,
    between,
    lines,
    shuffled,
)
from data_prep.synthetic.people import draw_people

SPLITS = 10
_FOLDERS = {"visible": "Visible", "thermal": "Thermal"}
_BANDS = {"visible": VISIBLE, "thermal": THERMAL}
_VIEWS = {"front": 0, "back": 4}
_STEP = 3
"""Frames between two pictures of one person under one camera."""


@dataclasses.dataclass(frozen=True)
class RegdbConfig(LayoutConfig):
    """Settings of a set in the layout of RegDB.

    Attributes:
      ids: number of people, even; each half trains or tests.
      images: visible and as many thermal pictures of each.
    """

    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {"ids": (2, 4000), "images": (1, 100)}

    ids: int = 24
    images: int = 10

    def __post_init__(self):
        super().__post_init__()
        if self.ids % 2:
            raise ValueError(f"ids is {self.ids}; expected an even number, for two halves")


def training_pairs(*, seed: int, train_ids: int) -> RegdbConfig:
    """The settings of a set to train on, with as many people to test."""
    return RegdbConfig(seed=seed, ids=2 * train_ids)


def blueprint(config: RegdbConfig) -> Blueprint:
    """Names every picture and info file of a set."""
    people = draw_people(np.arange(1, config.ids + 1), seed=config.seed)
    of_person = {}
    for person in people:
        gender = {"man": "male", "woman": "female"}[person.value("build")[1]]
        side = tuple(_VIEWS)[between(config, "side", 0, 1, person.pid)]
        for modality in _FOLDERS:
            of_person[modality, person.pid] = _track(config, person.pid, gender, side, modality)
    files = {}
    for split in range(1, SPLITS + 1):
        order = (shuffled(config, "splits", config.ids, split) + 1).tolist()
        halves = {"train": order[: config.ids // 2], "test": order[config.ids // 2 :]}
        for part, pids in halves.items():
            for modality in _FOLDERS:
                some = [of_person[modality, pid] for pid in pids]
                files[f"idx/{part}_{modality}_{split}.txt"] = _list(some)
    tracks = list(of_person.values())
    number = config.ids * config.images
    counts = {"Visible": number, "Thermal": number, "people": config.ids, "splits": SPLITS}
    return Blueprint(tracks, files, counts)


def _track(config: RegdbConfig, pid: int, gender: str, side: str, modality: str) -> Track:
    """Visible and thermal pictures of a person are of one walk, a frame apart."""
    late = int(modality == "thermal")
    frames = tuple(late + _STEP * row for row in range(config.images))
    first = between(config, "first frame", 1, 9000, pid)
    paths = tuple(
        f"{_FOLDERS[modality]}/{pid}/{gender}_{side}_{modality[0]}_{first + frame:05d}_{pid}.bmp"
        for frame in frames
    )
    sensor = Sensor(1, _BANDS[modality], view=_VIEWS[side])
    return Track(paths, pid, sensor, frames=frames)


def _list(tracks: list[Track]) -> bytes:
    """A picture of everybody, then another one of everybody, and so on."""
    rounds = zip(*(track.paths for track in tracks), strict=True)
    return lines(f"{path} {label}" for one in rounds for label, path in enumerate(one))
