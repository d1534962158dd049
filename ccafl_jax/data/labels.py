"""The labels of intra-camera supervision: identities are known inside each camera only."""

import dataclasses

import numpy as np

_LEAST_HELD_OUT, _LEAST_TRAINED = 2, 2
_HOLD_OUT_STREAM = 1_000_033  # of a seed's random streams; far from every epoch's number


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
    # One 64-bit key per image sorts much faster than rows of two.
    key = (camid.astype(np.int64) << 32) + (pid.astype(np.int64) + 2**31)
    classes, label = np.unique(key, return_inverse=True)
    return IntraCameraLabels(
        label=label.reshape(-1).astype(np.int32),
        cam_of=(classes >> 32).astype(np.int32),
        pid_of=((classes & (2**32 - 1)) - 2**31).astype(np.int32),
    )


def hold_out(pid: np.ndarray, camid: np.ndarray, *, fraction: float, seed: int) -> np.ndarray:
    """Draws (camera, identity) classes for validation inside cameras.

    Of each camera's identities the fraction, rounded, is drawn among those with two or more images
    (a ranking needs a pair): at least two, because an identity alone is always ranked right, and
    never so many that fewer than two are left to train on. A camera that cannot give two gives
    none. Images without identity or camera are never drawn.

    The draw does not depend on the order of the images, nor that of a camera on the others; a
    larger fraction adds to the classes of a smaller one.

    Args:
      pid: int[n], raw identities.
      camid: int[n], cameras counted from 0.
      fraction: of the identities of each camera; 0 draws none.
      seed: of the draw.

    Returns:
      bool[n], true for every image of a drawn class.

    Raises:
      ValueError: a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction is {fraction}, must be at least 0 and below 1")
    pid, camid = np.asarray(pid), np.asarray(camid)
    mask = np.zeros(pid.shape, bool)
    known = np.flatnonzero((pid >= 0) & (camid >= 0))
    if fraction == 0 or not len(known):
        return mask
    labels = intra_camera_labels(pid[known], camid[known])
    images = np.bincount(labels.label, minlength=labels.num_classes)
    drawn = np.zeros(labels.num_classes, bool)
    for camera in np.unique(labels.cam_of):
        classes = np.flatnonzero(labels.cam_of == camera)
        eligible = classes[images[classes] >= 2]
        count = max(_LEAST_HELD_OUT, round(fraction * len(classes)))
        count = min(count, len(eligible), len(classes) - _LEAST_TRAINED)
        if count >= _LEAST_HELD_OUT:
            generator = np.random.default_rng((seed, _HOLD_OUT_STREAM, int(camera)))
            drawn[generator.permutation(eligible)[:count]] = True
    mask[known] = drawn[labels.label]
    return mask


def check_cameras(
    pid: np.ndarray,
    camid: np.ndarray,
    camera_codes: tuple[int, ...],
    *,
    allow_single_identity: bool = False,
) -> tuple[str, ...]:
    """Checks that intra-camera classes can be told apart and linked across cameras.

    Args:
      pid: int[n], identities of the training images.
      camid: int[n], their cameras.
      camera_codes: raw camera codes, for messages.
      allow_single_identity: accept cameras with one identity, with a warning.

    Returns:
      Warnings: with `allow_single_identity`, one that names every camera with one identity.

    Raises:
      ValueError: one camera in all, or a camera with one identity.
    """
    labels = intra_camera_labels(pid, camid)
    cameras, ids = np.unique(labels.cam_of, return_counts=True)
    if len(cameras) == 1:
        raise ValueError(
            f"the training images come from one camera (c{camera_codes[cameras[0]]}); learning "
            "across cameras needs two or more"
        )
    lonely = ", ".join(f"c{camera_codes[camera]}" for camera in cameras[ids == 1])
    if lonely and (not allow_single_identity or np.all(ids == 1)):
        raise ValueError(
            f"training cameras with a single identity: {lonely}; intra-camera learning compares "
            "identities of one camera: add images, remove those of that camera, or set "
            "data.allow_single_identity=True (its intra-camera losses are then 0)"
        )
    if lonely:
        return (
            f"training cameras with a single identity: {lonely}; their intra-camera losses are 0",
        )
    return ()
