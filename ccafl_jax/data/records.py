"""What a data set is, once read: arrays of paths, identities and cameras, and the labels of
intra-camera supervision derived from them.

A reader (market1501.py, and others beside it) turns a folder into a `ReIDDataset`; everything
behind it knows only these arrays.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Records:
    """One split as a struct of arrays; row i is image i.

    Attributes:
      path: object[n], file paths as str.
      pid: int32[n], raw identities of the data set (-1 junk and 0 distractors in a Market gallery).
      camid: int32[n], cameras counted from 0.
    """

    path: np.ndarray
    pid: np.ndarray
    camid: np.ndarray

    def __post_init__(self):
        if not self.path.shape == self.pid.shape == self.camid.shape or self.path.ndim != 1:
            raise ValueError(
                f"path {self.path.shape}, pid {self.pid.shape} and camid {self.camid.shape} must "
                "be one-dimensional and equally long"
            )

    def __len__(self) -> int:
        return len(self.path)

    def take(self, rows: np.ndarray) -> "Records":
        """The records at `rows` (indices or a boolean mask)."""
        return Records(self.path[rows], self.pid[rows], self.camid[rows])


@dataclasses.dataclass(frozen=True)
class ReIDDataset:
    """Three splits of one data set, with all that was noticed while reading it.

    Attributes:
      name: name of the layout.
      root: the folder that holds the splits.
      train, query, gallery: the splits.
      camera_codes: raw camera codes; `camera_codes[camid]` is the code in the file name.
      report: counts by split of files read, dropped, unmatched and ignored, and "warnings".
    """

    name: str
    root: str
    train: Records
    query: Records
    gallery: Records
    camera_codes: tuple[int, ...]
    report: dict[str, Any]

    def summary(self) -> str:
        """A text table of images, identities and cameras per split, and the number of classes."""
        lines = [f"{self.name}: {self.root}", _table_row("split", "images", "ids", "cameras")]
        for split in ("train", "query", "gallery"):
            records = getattr(self, split)
            lines.append(
                _table_row(split, len(records), _count_ids(records), len(np.unique(records.camid)))
            )
        labels = intra_camera_labels(self.train.pid, self.train.camid)
        per_camera = np.bincount(labels.cam_of, minlength=len(self.camera_codes))
        lines.append(
            f"training classes (camera, id): {labels.num_classes} = "
            + " + ".join(
                f"{count} (c{code})"
                for code, count in zip(self.camera_codes, per_camera, strict=True)
            )
        )
        distractors = ~np.isin(self.gallery.pid, self.query.pid) & (self.gallery.pid != -1)
        lines.append(
            f"gallery: {int(np.sum(self.gallery.pid == -1))} junk images (id -1, left out of every "
            f"ranking), {int(np.sum(distractors))} images of ids without a query (kept)"
        )
        for split in ("train", "query", "gallery"):
            counts = self.report.get(split, {})
            left_out = {key: n for key, n in counts.items() if key != "read" and n}
            if left_out:
                lines.append(f"{split}: " + ", ".join(f"{n} {key}" for key, n in left_out.items()))
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class IntraCameraLabels:
    """Accumulated classes: one per (camera, identity), N in total.

    Attributes:
      label: int32[n], class of each image.
      cam_of: int32[N], camera of each class.
      pid_of: int32[N], raw identity of each class; for diagnostics only, never for a loss.
    """

    label: np.ndarray
    cam_of: np.ndarray
    pid_of: np.ndarray

    @property
    def num_classes(self) -> int:
        """N, the number of (camera, identity) classes."""
        return len(self.cam_of)


def intra_camera_labels(pid: np.ndarray, camid: np.ndarray) -> IntraCameraLabels:
    """Relabels identities inside each camera and stacks the cameras.

    Classes are ordered by camera, then by raw identity, so they do not depend on the order of the
    images.

    Args:
      pid: int[n], raw identities.
      camid: int[n], cameras counted from 0.

    Returns:
      `IntraCameraLabels`.

    Source: simulation of intra-camera supervision, CCAFL (arXiv 2409.19563) and Precise-ICS.
    """
    pid, camid = np.asarray(pid), np.asarray(camid)
    if pid.shape != camid.shape or pid.ndim != 1:
        raise ValueError(f"pid {pid.shape} and camid {camid.shape} must be equal, one-dimensional")
    pairs = np.stack([camid, pid], axis=1)
    classes, label = np.unique(pairs, axis=0, return_inverse=True)
    return IntraCameraLabels(
        label=label.reshape(-1).astype(np.int32),
        cam_of=classes[:, 0].astype(np.int32),
        pid_of=classes[:, 1].astype(np.int32),
    )


def dense_cameras(*codes: np.ndarray) -> tuple[tuple[np.ndarray, ...], tuple[int, ...]]:
    """Numbers cameras from 0 in the order of their raw codes.

    Args:
      *codes: int[n_i], raw camera codes, one array per split.

    Returns:
      The splits' camids (int32[n_i] each) and the sorted raw codes.
    """
    unique = np.unique(np.concatenate(codes))
    camids = tuple(np.searchsorted(unique, code).astype(np.int32) for code in codes)
    return camids, tuple(int(code) for code in unique)


def _count_ids(records: Records) -> int:
    return int(np.sum(np.unique(records.pid) != -1))


def _table_row(*cells: Any) -> str:
    return "".join(f"{cell:>10}" for cell in cells)
