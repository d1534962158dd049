"""What a run keeps of its test features at the end of every stage, so that stages can be compared.

A snapshot holds the features of the same few dozen identities each time, and how well a probe reads
the camera from the features. It is made of what an evaluation has extracted anyhow, changes nothing
that the run computes, and a snapshot that cannot be made or written is a warning.
"""

import dataclasses
import io
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from ccafl_jax.evaluation.camera_probes import camera_probes
from ccafl_jax.training.processes import is_first
from ccafl_jax.training.storage import open_path, write_bytes

FOLDER = "snapshots"
ZERO_SHOT = "zero_shot"
IDENTITIES = 24
IMAGES = 600
PROBED = 3000
"""Images that the probes are fitted and asked on, at most."""

_FORMAT = "ccafl_jax snapshot 1"
_PROBES = ("linear", "knn", "chance")

log = logging.getLogger("ccafl_jax")


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Some of the test features of one evaluation.

    Attributes:
      features: float32[n, dim].
      pid, camid: int32[n].
      row: int64[n], places among the test images or tracklets, ascending.
      shown: bool[n], those of the identities that are shown; the others are for the probes alone.
    """

    features: np.ndarray
    pid: np.ndarray
    camid: np.ndarray
    row: np.ndarray
    shown: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """Features at the end of one stage.

    Attributes:
      stage: its name; `ZERO_SHOT` before any training.
      features: float32[n, dim], which were kept as float16.
      pid, camid: int32[n].
      row: int64[n], places among the test images or tracklets.
      probes: `linear`, `knn` and `chance` of `camera_probes`; NaN with fewer than two cameras.
    """

    stage: str
    features: np.ndarray
    pid: np.ndarray
    camid: np.ndarray
    row: np.ndarray
    probes: Mapping[str, float]


def choose(
    pid: np.ndarray,
    camid: np.ndarray,
    people: np.ndarray,
    *,
    identities: int = IDENTITIES,
    images: int = IMAGES,
) -> np.ndarray:
    """Images of the identities that most cameras have seen, the same for the same labels.

    Args:
      pid: int[n].
      camid: int[n]; images of no known camera (-1) are left out.
      people: int[k], identities to choose from; those below 0 are left out.
      identities: how many, at most.
      images: how many in all, at most; each identity has an equal share, and takes it from its
        cameras in turn.

    Returns:
      int64[m], rows in ascending order.
    """
    pid, camid = np.asarray(pid), np.asarray(camid)
    known = np.flatnonzero(np.isin(pid, people) & (pid >= 0) & (camid >= 0))
    if not len(known):
        return known
    pairs = np.unique(np.stack([pid[known], camid[known]], axis=1), axis=0)
    candidates, cameras = np.unique(pairs[:, 0], return_counts=True)
    chosen = candidates[np.argsort(-cameras, kind="stable")][:identities]
    share = max(1, images // len(chosen))
    rows = []
    for person in chosen:
        own = known[pid[known] == person]
        turn = np.zeros(len(own), np.int64)  # of an image among those of its camera
        for camera in np.unique(camid[own]):
            same = camid[own] == camera
            turn[same] = np.arange(np.sum(same))
        rows.append(own[np.lexsort((camid[own], turn))][:share])
    return np.sort(np.concatenate(rows))


def sample(
    features: np.ndarray, pid: np.ndarray, camid: np.ndarray, people: np.ndarray
) -> Sample | None:
    """What a snapshot may be made of; None where no image has a known camera.

    Args:
      features: float[n, dim] of all test images or tracklets.
      pid: int[n].
      camid: int[n].
      people: int[k], identities of the queries.
    """
    if not is_first():
        return None
    shown = choose(pid, camid, people)
    if not len(shown):
        return None
    known = np.flatnonzero(np.isin(pid, people) & (pid >= 0) & (camid >= 0))
    if len(known) > PROBED:
        known = np.sort(np.random.default_rng(0).permutation(known)[:PROBED])
    rows = np.union1d(shown, known)
    return Sample(
        features=np.asarray(features)[rows].astype(np.float32),
        pid=np.asarray(pid)[rows].astype(np.int32),
        camid=np.asarray(camid)[rows].astype(np.int32),
        row=rows.astype(np.int64),
        shown=np.isin(rows, shown),
    )


def keep(workdir: str | os.PathLike, stage: str, found: Sample | None) -> None:
    """Writes the snapshot of a stage, in place of an earlier one; a failure is a warning.

    Args:
      workdir: of the run, on a disk or in an object store.
      stage: that has ended.
      found: what its evaluation saw; None writes nothing.
    """
    if found is None:
        return
    try:
        probes = camera_probes(found.features, found.pid, found.camid)
        folder = open_path(workdir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / f"{stage}.npz", _packed(found, probes))
    except (ValueError, OSError) as error:
        log.warning("no snapshot of the stage %s for the report: %s", stage, error)


def load(workdir: str | os.PathLike, stages: Sequence[str]) -> list[Snapshot]:
    """The snapshots of a run, of those stages that have one, in their order.

    Args:
      workdir: of the run.
      stages: names.

    Raises:
      ValueError: a damaged file.
    """
    folder = open_path(workdir) / FOLDER
    names = dict.fromkeys(stages)
    return [_read(folder / f"{s}.npz", s) for s in names if (folder / f"{s}.npz").exists()]


def _packed(found: Sample, probes: Mapping[str, float]) -> bytes:
    shown = found.shown
    buffer = io.BytesIO()
    np.savez(
        buffer,
        format=np.array(_FORMAT),
        features=found.features[shown].astype(np.float16),
        pid=found.pid[shown],
        camid=found.camid[shown],
        row=found.row[shown],
        **{f"probe_{name}": np.float64(probes[name]) for name in _PROBES},
    )
    return buffer.getvalue()


def _read(path: pathlib.Path, stage: str) -> Snapshot:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            if str(file["format"]) != _FORMAT:
                raise ValueError(f"format {file['format']}")
            return Snapshot(
                stage=stage,
                features=file["features"].astype(np.float32),
                **{name: file[name] for name in ("pid", "camid", "row")},
                probes={name: float(file[f"probe_{name}"]) for name in _PROBES},
            )
    except Exception as error:  # zipfile and numpy raise many kinds; all mean a damaged file
        raise ValueError(
            f"{path} is damaged or no snapshot ({error}); remove it, the report does without it"
        ) from None
