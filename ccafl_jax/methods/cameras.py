"""Training on some of the cameras of a data set, or without the labels of some."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence

import numpy as np

from ccafl_jax.data.records import UNLABELLED, ReIDDataset

log = logging.getLogger("ccafl_jax")


def camera_names(values: Iterable[int | str]) -> tuple[str, ...]:
    """Cameras as they are typed, in one form: "3" for 3, "3" and "c3"; "1,2" are two.

    Args:
      values: codes as the data set writes them.
    """
    words = (word.strip() for value in values for word in str(value).split(","))
    bare = (word[1:] if word[:1] in "cC" and word[1:].isdecimal() else word for word in words)
    return tuple(dict.fromkeys(name for name in bare if name))


def keep_cameras(dataset: ReIDDataset, names: Sequence[str]) -> ReIDDataset:
    """Leaves out training images of all cameras but some.

    Cameras keep their numbers and `camera_codes` stay those of the whole set, so that models,
    figures and features speak of the same cameras whichever were trained on.

    Args:
      dataset: as read.
      names: from :func:`camera_names`; none keeps all.

    Returns:
      The data set with the images that are left, and the number of the others in the report.

    Raises:
      ValueError: a name that the data set does not know, or of a camera without training images.
    """
    if not names:
        return dataset
    train = dataset.train
    chosen = _numbers(dataset, names, "train_cameras")
    present = np.unique(train.camid)
    if empty := [name for name, camid in zip(names, chosen, strict=True) if camid not in present]:
        raise ValueError(
            f"data.train_cameras names {', '.join(empty)}, of which {dataset.name} has no training "
            "images: leave it out"
        )
    keep = np.isin(train.camid, chosen)
    left_out = int(np.sum(~keep))
    log.info(
        "%s: trained on cameras %s; %d of %d training images are left out",
        dataset.name,
        ", ".join(names),
        left_out,
        len(train),
    )
    counts = {**dataset.report.get("train", {}), "of other cameras": left_out}
    return dataclasses.replace(
        dataset, train=train.take(keep), report={**dataset.report, "train": counts}
    )


def hide_identities(dataset: ReIDDataset, names: Sequence[str]) -> ReIDDataset:
    """The data set as if nobody had labelled the training images of some cameras.

    Args:
      dataset: as read.
      names: from :func:`camera_names`.

    Raises:
      ValueError: a name that the data set does not know.
    """
    if not names:
        return dataset
    train = dataset.train
    hidden = np.isin(train.camid, _numbers(dataset, names, "unlabelled_cameras"))
    pid = np.where(hidden, UNLABELLED, train.pid).astype(train.pid.dtype)
    return dataclasses.replace(dataset, train=dataclasses.replace(train, pid=pid))


def _numbers(dataset: ReIDDataset, names: Sequence[str], option: str) -> list[int]:
    """The camid of each name."""
    number = {str(code): camid for camid, code in enumerate(dataset.camera_codes)}
    if unknown := [name for name in names if name not in number]:
        raise ValueError(
            f"data.{option} names {', '.join(unknown)}, and the cameras of {dataset.name} are "
            f"{', '.join(number)}: name some of those, or none"
        )
    return [number[name] for name in names]
