"""Synthetic people as VeRi-776 has its vehicles: the pictures show people, the files are as there.

OUT/image_train/0001_c001_00016450_0.jpg     identity, camera (three digits), frame, index
OUT/image_query/0002_c002_00030600_0.jpg
OUT/image_test/0002_c002_00030600_0.jpg      the queries' pictures are among them
OUT/name_train.txt, name_query.txt, name_test.txt    a file name per line
OUT/gt_index.txt      line per query: its identity under other cameras, lines of name_test.txt
OUT/jk_index.txt      the same under its own camera; both from 1
OUT/test_track.txt    line per track of the test part: its name and its pictures
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from data_prep.synthetic.layouts.common import (
    Blueprint,
    LayoutConfig,
    Sensor,
    Track,
    between,
    cameras_seen,
    lines,
)
from data_prep.synthetic.layouts.video import identities

_STEP = 5
"""Frames between two pictures of a track."""


@dataclasses.dataclass(frozen=True)
class VeriConfig(LayoutConfig):
    """Settings of a set in the layout of VeRi-776.

    Attributes:
      train_ids: identities of image_train (odd numbers).
      test_ids: identities of queries and gallery (even numbers), each under two or more cameras.
      cameras: number of cameras.
      images: mean number of pictures of a track; there is one per identity and camera, at times
        two.
    """

    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "train_ids": (1, 4000),
        "test_ids": (1, 4000),
        "cameras": (2, 999),
        "images": (2, 600),
    }

    train_ids: int = 24
    test_ids: int = 12
    cameras: int = 12
    images: int = 4


def blueprint(config: VeriConfig) -> Blueprint:
    """Names every picture and info file of a set."""
    train = _tracks(config, "image_train", identities(config.train_ids, odd=True))
    test = _tracks(config, "image_test", identities(config.test_ids, odd=False))
    query = [_query(track) for track in test if track.number == 1]
    names = {
        "train": sorted(_names(train)),
        "query": sorted(_names(query)),
        "test": sorted(_names(test)),
    }
    good, junk = _places(names["query"], names["test"])
    files = {f"name_{part}.txt": lines(some) for part, some in names.items()}
    files["gt_index.txt"], files["jk_index.txt"] = lines(good), lines(junk)
    files["test_track.txt"] = lines(
        f"{track.pid:04d}_c{track.sensor.code:03d}_{track.number} {' '.join(_names([track]))}"
        for track in test
    )
    counts = {f"image_{part}": len(some) for part, some in names.items()}
    return Blueprint([*train, *query, *test], files, counts | {"test tracks": len(test)})


def _tracks(config: VeriConfig, folder: str, pids: np.ndarray) -> list[Track]:
    seen = cameras_seen(config, pids, config.cameras, fewest=2, most=6)
    return [
        _track(config, folder, pid, camera, number)
        for pid, cameras in zip(pids.tolist(), seen, strict=True)
        for camera in cameras
        for number in range(1, 2 + (between(config, "second track", 1, 5, pid, camera) == 1))
    ]


def _track(config: VeriConfig, folder: str, pid: int, camera: int, number: int) -> Track:
    length = between(config, "images", 2, 2 * config.images - 2, pid, camera, number)
    # Room for both tracks.
    first = 50000 * (number - 1) + between(config, "first frame", 1, 40000, pid, camera, number)
    frames = tuple(_STEP * row for row in range(length))
    paths = tuple(
        f"{folder}/{pid:04d}_c{camera:03d}_{first + frame:08d}_{row}.jpg"
        for row, frame in enumerate(frames)
    )
    return Track(paths, pid, Sensor(camera), number, frames)


def _query(track: Track) -> Track:
    """The first picture of a track once more, as a query."""
    assert track.frames is not None
    path = track.paths[0].replace("image_test/", "image_query/")
    return dataclasses.replace(track, paths=(path,), frames=track.frames[:1])


def _names(tracks: list[Track]) -> list[str]:
    return [path.rsplit("/", 1)[1] for track in tracks for path in track.paths]


def _places(query: list[str], test: list[str]) -> tuple[list[str], list[str]]:
    """For each query, the lines of its identity under other cameras and under its own."""
    good, junk = [], []
    for name in query:
        pid, camera = name.split("_")[:2]
        own = [
            (line, other.split("_")[1])
            for line, other in enumerate(test, 1)
            if other.startswith(f"{pid}_")
        ]
        good.append(" ".join(str(line) for line, seen_by in own if seen_by != camera))
        junk.append(" ".join(str(line) for line, seen_by in own if seen_by == camera))
    return good, junk
