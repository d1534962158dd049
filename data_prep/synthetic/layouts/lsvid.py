"""Synthetic people as LS-VID has its pedestrians.

    OUT/tracklet_train/0001/0001_0001_05_000001.jpg        person, tracklet, camera and frame
    OUT/tracklet_val/..., tracklet_test/...
    OUT/list_sequence/list_seq_{train,val,test}.txt        "tracklet_train/0001/0001_0001_05 1"
    OUT/test/data/info_test.mat, info_val.mat              MATLAB 7.3 (HDF5): `query`, lines of the
                                                           list from 1, and `info_test`, `info_val`

Writing the info files needs h5py.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from data_prep.synthetic.layouts.common import Blueprint, Sensor, Track, lines
from data_prep.synthetic.layouts.video import (
    Tracklet,
    VideoConfig,
    draw_tracklets,
    identities,
    line_table,
    query_rows,
)


@dataclasses.dataclass(frozen=True)
class LsvidConfig(VideoConfig):
    """Settings of a set in the layout of LS-VID.

    Attributes:
      val_ids: identities of the validation part.
    """

    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {
        **VideoConfig.LIMITS,
        "cameras": (2, 15),
        "val_ids": (1, 1000),
    }

    train_ids: int = 12
    test_ids: int = 8
    val_ids: int = 2


def blueprint(config: LsvidConfig) -> Blueprint:
    """Names every picture and info file of a set."""
    evaluated = identities(config.test_ids + config.val_ids, odd=False)
    halves = {
        "train": draw_tracklets(config, identities(config.train_ids, odd=True), test=False),
        "val": draw_tracklets(config, evaluated[config.test_ids :], test=True),
        "test": draw_tracklets(config, evaluated[: config.test_ids], test=True),
    }
    tracks, files, counts = [], {}, {}
    for half, tracklets in halves.items():
        prefixes = _prefixes(f"tracklet_{half}", tracklets)
        tracks += [_track(config, one, at) for one, at in zip(tracklets, prefixes, strict=True)]
        files[f"list_sequence/list_seq_{half}.txt"] = lines(
            f"{at} {one.pid}" for one, at in zip(tracklets, prefixes, strict=True)
        )
        counts[f"tracklet_{half}"] = sum(one.length for one in tracklets)
        counts[f"{half} tracklets"] = len(tracklets)
        if half != "train":
            query = query_rows(tracklets)
            counts[f"{half} queries"] = len(query)
            files[f"test/data/info_{half}.mat"] = _hdf5(
                {"query": query[None], f"info_{half}": line_table(tracklets)}
            )
    return Blueprint(tracks, files, counts)


def _prefixes(folder: str, tracklets: Sequence[Tracklet]) -> list[str]:
    """Paths of the frames without their numbers; the tracklets of a person count on."""
    prefixes, number = [], 0
    for row, one in enumerate(tracklets):
        number = 1 if row == 0 or tracklets[row - 1].pid != one.pid else number + 1
        prefixes.append(f"{folder}/{one.pid:04d}/{one.pid:04d}_{number:04d}_{one.camera:02d}")
    return prefixes


def _track(config: LsvidConfig, one: Tracklet, prefix: str) -> Track:
    paths = tuple(f"{prefix}_{frame:06d}.jpg" for frame in range(1, one.length + 1))
    return Track(paths, one.pid, Sensor(one.camera), one.number, ambiguity=config.ambiguity)


def _hdf5(variables: Mapping[str, np.ndarray]) -> bytes:
    """A MATLAB 7.3 file: HDF5 behind a text, arrays with the first index last."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "layout lsvid writes HDF5, which needs h5py: pip install 'ccafl_jax[lsvid]'"
        ) from error
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=512) as file:
        for name, array in variables.items():
            # Without the time of writing, so that the same settings give the same bytes.
            stored = np.asarray(array, np.float64).T
            file.create_dataset(name, data=stored, track_times=False)
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    head = b"MATLAB 7.3 MAT-file, synthetic people".ljust(116) + bytes(8) + b"\x00\x02IM"
    return head + buffer.getvalue()[len(head) :]
