"""Files of pseudo labels, as CCLNet keeps them.

    train_rgb_resized_pseudo_label.npy    int[visible images], cluster from 0, -1 for none
    train_ir_resized_pseudo_label.npy     int[infrared images], likewise
    train_{rgb,ir}_resized_path.npy       str[images], beside them or one folder above; optional

Without paths the labels stand in the order of the training images: by identity, camera and file in
SYSU-MM01, and as listed in RegDB.
"""

import os
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from ccafl_jax.data.records import INFRARED, ReIDDataset
from ccafl_jax.training.storage import open_path

if TYPE_CHECKING:
    from etils import epath

FOLDER = "pseudo_labels"
_SHORT = ("rgb", "ir")
_NAME_PARTS = 3  # of a path, as in cam1/0001/0001.jpg


def write(workdir: str | os.PathLike, dataset: ReIDDataset, label: np.ndarray) -> list[str]:
    """Writes the labels of both modalities, and their paths, to `WORKDIR/pseudo_labels`.

    Args:
      workdir: the run folder.
      dataset: whose training images these are.
      label: int[n], cluster of each image in its modality, -1 for none.

    Returns:
      The names of the files.
    """
    folder = open_path(workdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    names, written = np.array(list(dataset.train.path)), []
    for short, rows in _rows(dataset):
        for kind, values in (("pseudo_label", label[rows].astype(np.int64)), ("path", names[rows])):
            file = folder / f"train_{short}_resized_{kind}.npy"
            with file.open("wb") as stream:
                np.save(stream, values)
            written.append(file.name)
    return written


def read(folder: str | os.PathLike, dataset: ReIDDataset) -> np.ndarray:
    """The labels of all training images, from files of ours or from published ones.

    Args:
      folder: of the files.
      dataset: whose training images they are for.

    Returns:
      int32[n], clusters of each modality from 0 without gaps, -1 for images without one.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: labels of other images, or no cluster in a modality.
    """
    path = open_path(os.path.expanduser(folder))
    names = np.array([_short_name(name) for name in dataset.train.path])
    label = np.full(len(dataset.train), -1, np.int32)
    for short, rows in _rows(dataset):
        file = path / f"train_{short}_resized_pseudo_label.npy"
        if not file.exists():
            raise FileNotFoundError(
                f"text.labels {folder} lacks {file.name}; name the folder {FOLDER} of an earlier "
                "run, or of the published labels"
            )
        found = _load(file)
        if found.ndim != 1 or found.dtype.kind not in "iu":
            raise ValueError(f"{file} is {found.dtype}{list(found.shape)}; expected int[images]")
        for above in (path, path.parent):
            listed = above / f"train_{short}_resized_path.npy"
            if listed.exists():
                found = _joined(names[rows], _load(listed), found, str(file))
                break
        if len(found) != len(rows):
            raise ValueError(
                f"{file} has {len(found)} labels for {len(rows)} images of its modality; it is of "
                "another data set or split"
            )
        inside = found >= 0
        if not inside.any():
            raise ValueError(f"{file} has no cluster, only -1; choose other labels")
        label[rows[inside]] = np.unique(found[inside], return_inverse=True)[1]
    return label


def _rows(dataset: ReIDDataset) -> list[tuple[str, np.ndarray]]:
    """Name of each modality in files, and its training images."""
    infrared = dataset.train.modality == INFRARED
    return [(short, np.flatnonzero(infrared == side)) for side, short in enumerate(_SHORT)]


def _load(file: "epath.Path") -> np.ndarray:
    with file.open("rb") as stream:
        return np.load(stream, allow_pickle=False)


def _short_name(path: str) -> str:
    """The end of a path, of this machine or of another one."""
    return "/".join(pathlib.PureWindowsPath(path).parts[-_NAME_PARTS:])


def _joined(names: np.ndarray, listed: np.ndarray, label: np.ndarray, file: str) -> np.ndarray:
    """The labels in the order of `names`."""
    if len(listed) != len(label):
        raise ValueError(f"{file} has {len(label)} labels, and there are {len(listed)} paths")
    place = {_short_name(str(path)): number for number, path in enumerate(listed)}
    unknown = [name for name in names if name not in place]
    if unknown:
        raise ValueError(
            f"{file} has no label for {len(unknown)} of {len(names)} images (first: {unknown[0]}); "
            "it is of another data set or split"
        )
    return label[[place[name] for name in names]]
