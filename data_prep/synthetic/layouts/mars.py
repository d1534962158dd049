"""Synthetic people as MARS has its pedestrians.

    OUT/bbox_train/0001/0001C1T0001F001.jpg     person, camera, tracklet and frame
    OUT/bbox_test/0002/..., 0000/..., 00-1/...  test identities, distractors and junk
    OUT/info/train_name.txt, test_name.txt      a file name per line
    OUT/info/tracks_train_info.mat              track_train_info int32[n, 4]: first and last line
                                                (from 1, both included), identity, camera
    OUT/info/tracks_test_info.mat               track_test_info
    OUT/info/query_IDX.mat                      query_IDX int32[1, q]: rows of it, from 1

Queries are one tracklet per test identity and camera.
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
    lines,
    matlab,
)
from data_prep.synthetic.layouts.video import (
    Tracklet,
    VideoConfig,
    draw_tracklets,
    identities,
    length_of,
    line_table,
    query_rows,
)
from data_prep.synthetic.render import BYSTANDERS, JUNK, NORMAL, STRANGER

_JUNK, _DISTRACTOR = -1, 0


@dataclasses.dataclass(frozen=True)
class MarsConfig(VideoConfig):
    """Settings of a set in the layout of MARS.

    Attributes:
      junk: junk tracklets (00-1) in the test part per test identity.
      distractors: distractor tracklets (0000) in the test part per test identity.
    """

    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {
        **VideoConfig.LIMITS,
        "junk": (0, 100),
        "distractors": (0, 100),
    }

    junk: float = 0.5
    distractors: float = 1.0


def training_walks(*, seed: int, train_ids: int) -> MarsConfig:
    """The settings of a set to train on, with half as many people to test."""
    return MarsConfig(seed=seed, train_ids=train_ids, test_ids=max(1, train_ids // 2), frames=16)


def blueprint(config: MarsConfig) -> Blueprint:
    """Names every picture and info file of a set."""
    train = draw_tracklets(config, identities(config.train_ids, odd=True), test=False)
    test = [
        *_extras(config, _JUNK, round(config.junk * config.test_ids)),
        *_extras(config, _DISTRACTOR, round(config.distractors * config.test_ids)),
        *draw_tracklets(config, identities(config.test_ids, odd=False), test=True),
    ]
    query = query_rows(test)
    files, tracks = {}, []
    for half, tracklets in (("train", train), ("test", test)):
        names = [_names(one) for one in tracklets]
        files[f"info/{half}_name.txt"] = lines(name for some in names for name in some)
        table = {f"track_{half}_info": line_table(tracklets).astype(np.int32)}
        files[f"info/tracks_{half}_info.mat"] = matlab(table)
        tracks += [
            _track(config, f"bbox_{half}", one, some)
            for one, some in zip(tracklets, names, strict=True)
        ]
    files["info/query_IDX.mat"] = matlab({"query_IDX": query.astype(np.int32)[None]})
    return Blueprint(tracks, files, _counts(train, test, query))


def _extras(config: MarsConfig, pid: int, count: int) -> list[Tracklet]:
    """Tracklets of nobody in particular, by camera and number."""
    cameras = sorted(between(config, "extras", 1, config.cameras, pid, i) for i in range(count))
    found: list[Tracklet] = []
    for camera in cameras:
        number = 1 + sum(one.camera == camera for one in found)
        found.append(Tracklet(pid, camera, number, length_of(config, pid, camera, number)))
    return found


def _names(one: Tracklet) -> list[str]:
    person = "00-1" if one.pid == _JUNK else f"{one.pid:04d}"
    stem = f"{person}C{one.camera}T{one.number:04d}F"
    return [f"{stem}{frame:03d}.jpg" for frame in range(1, one.length + 1)]


def _passer_by(config: MarsConfig, one: Tracklet) -> int:
    return between(config, "passer-by", 0, BYSTANDERS - 1, one.pid, one.camera, one.number)


def _track(config: MarsConfig, folder: str, one: Tracklet, names: list[str]) -> Track:
    kind = {_JUNK: JUNK, _DISTRACTOR: STRANGER}.get(one.pid, NORMAL)
    return Track(
        paths=tuple(f"{folder}/{name[:4]}/{name}" for name in names),
        pid=one.pid if kind == NORMAL else _passer_by(config, one),
        sensor=Sensor(one.camera),
        number=one.number,
        kind=kind,
        ambiguity=config.ambiguity,
    )


def _counts(train: list[Tracklet], test: list[Tracklet], query: np.ndarray) -> dict[str, int]:
    return {
        "bbox_train": sum(one.length for one in train),
        "bbox_test": sum(one.length for one in test),
        "training tracklets": len(train),
        "test tracklets": len(test),
        "queries": len(query),
    }
