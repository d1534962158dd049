"""Files of local clusters: ours, and those published with CALR.

Ours are `local/c1.npz` and so on in the run folder, one a camera, named by the data set's code of
the camera, with the paths of its images below the root of the set. Published are folders `cam1`,
`cam2` and so on, counted from 1, each with a `pseudo_label.npy` of text: path, cluster and camera.
Their paths are those of another machine, so they are joined by base names; the camera is that of
the folder, as the third column counts from 0 in some sets and from 1 in others.
"""

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ccafl_jax.data.records import ReIDDataset
from ccafl_jax.training.storage import open_path

if TYPE_CHECKING:
    from etils import epath

FOLDER = "local"
PUBLISHED = "pseudo_label.npy"


def write(
    workdir: str | os.PathLike,
    dataset: ReIDDataset,
    local: np.ndarray,
    cameras: Sequence[dict[str, Any]],
) -> list[str]:
    """Writes the clusters of every camera to `WORKDIR/local`.

    Args:
      workdir: the run folder.
      dataset: whose training images these are.
      local: int[n], cluster of each image inside its camera.
      cameras: figures of the cameras, in the order of their numbers.

    Returns:
      The names of the files.
    """
    train, names = dataset.train, np.array(list(dataset.train.path))
    folder = open_path(workdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for camera, figures in zip(np.unique(train.camid), cameras, strict=True):
        rows = train.camid == camera
        code = dataset.camera_codes[camera]
        file = folder / f"c{code}.npz"
        with file.open("wb") as stream:
            np.savez(
                stream,
                name=names[rows],
                label=local[rows].astype(np.int32),
                camera=np.asarray(code),
                clusters=np.int32(figures["clusters"]),
                silhouette=np.float64(figures["silhouette"]),
                epoch=np.int32(figures["epoch"]),
            )
        written.append(file.name)
    return written


def read(folder: str | os.PathLike, dataset: ReIDDataset) -> np.ndarray:
    """The clusters of all training images, int32[n], from files of ours or from published ones.

    Args:
      folder: of `c1.npz` and so on, or of `cam1/pseudo_label.npy` and so on.
      dataset: whose training images they are for.

    Raises:
      FileNotFoundError: neither is there, or a camera is missing.
      ValueError: an image without a cluster, or one that is named twice.
    """
    path = open_path(os.path.expanduser(folder))
    ours, published = sorted(path.glob("c*.npz")), sorted(path.glob(f"cam*/{PUBLISHED}"))
    if not ours and not published:
        raise FileNotFoundError(
            f"local.labels {folder} holds neither c1.npz (local clusters of an earlier run are in "
            f"its folder {FOLDER}) nor cam1/{PUBLISHED}"
        )
    train, names = dataset.train, np.array(list(dataset.train.path))
    if not ours:
        names = np.array([path.rpartition("/")[2] for path in names])
    labels = np.full(len(train), -1, np.int32)
    for camera in np.unique(train.camid):
        rows = np.flatnonzero(train.camid == camera)
        code = dataset.camera_codes[camera]
        file = path / f"c{code}.npz" if ours else path / f"cam{camera + 1}" / PUBLISHED
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing: local.labels needs every camera")
        found, cluster = _read_ours(file) if ours else _read_published(file)
        labels[rows] = _joined(names[rows], found, cluster, file)
    return labels


def _read_ours(file: "epath.Path") -> tuple[np.ndarray, np.ndarray]:
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        return stored["name"], stored["label"]


def _read_published(file: "epath.Path") -> tuple[np.ndarray, np.ndarray]:
    with file.open("rb") as stream:
        table = np.load(stream, allow_pickle=False)
    if table.ndim != 2 or table.shape[1] < 2 or table.dtype.kind != "U":
        raise ValueError(
            f"{file} is {table.dtype} of shape {table.shape}; expected text [images, 3]: path, "
            "cluster, camera"
        )
    names = np.array([re.split(r"[/\\]", path)[-1] for path in table[:, 0]])
    return names, table[:, 1].astype(np.int32)


def _joined(
    names: np.ndarray, found: np.ndarray, cluster: np.ndarray, file: "epath.Path"
) -> np.ndarray:
    """The clusters of `names`, numbered from 0 without gaps."""
    order = np.argsort(found, kind="stable")
    twice = found[order][1:] == found[order][:-1]
    if twice.any():
        raise ValueError(f"{file} names {found[order][1:][twice][0]} twice")
    place = np.searchsorted(found[order], names)
    known = place < len(found)
    known[known] = found[order][place[known]] == names[known]
    if not known.all():
        raise ValueError(
            f"{file} has no cluster for {np.sum(~known)} of {len(names)} images (first: "
            f"{names[~known][0]}); it is of another data set or camera"
        )
    return np.unique(cluster[order[place]], return_inverse=True)[1].astype(np.int32)
