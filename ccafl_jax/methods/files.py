"""What runs of all methods read: the images of a data set, and the folder of their weights."""

import importlib.resources
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ccafl_jax.data.layouts import require_images
from ccafl_jax.data.opening import open_dataset
from ccafl_jax.data.records import ReIDDataset
from ccafl_jax.methods.cameras import keep_cameras
from ccafl_jax.methods.options import DataConfig
from ccafl_jax.models.hub import local_directory

TINY_CLIP = "tiny_clip"
"""Name of the CLIP that is shipped with the package, for small synthetic images."""
SHIPPED = (TINY_CLIP, "tiny_clip_infrared")
"""Names of all such; the second saw images in infrared and in grey too."""

log = logging.getLogger("ccafl_jax")


def require_root(config: DataConfig, root: str | os.PathLike) -> None:
    """Raises ValueError where no folder of the data set is given; for before any work."""
    if not root:
        raise ValueError(
            f"no data: set --config.data.root to the folder of {config.name}, raw or prepared"
        )


def open_images(config: DataConfig, root: str | os.PathLike, *, method: str) -> ReIDDataset:
    """Opens a data set of single images, to train on the cameras that are asked for.

    Args:
      config: which set.
      root: its folder; `config.root`, or what the caller made in its place.
      method: its name, for messages.

    Raises:
      FileNotFoundError, ValueError: with one line that says what is missing and what to do.
    """
    require_images(config.name, method)
    return _checked(config, open_dataset(config.name, root, source=config.source))


def open_tracklets(
    config: DataConfig,
    root: str | os.PathLike,
    *,
    method: str,
    selection: Mapping[str, Any],
) -> ReIDDataset:
    """Opens a data set of tracklets, to train on the cameras that are asked for.

    Args:
      config: which set.
      root: its folder; `config.root`, or what the caller made in its place.
      method: its name, for messages.
      selection: options of the data set's protocol, such as the split.

    Raises:
      FileNotFoundError, ValueError: with one line that says what is missing and what to do.
    """
    dataset = _checked(config, open_dataset(config.name, root, source=config.source, **selection))
    single = [s for s in ("train", "query", "gallery") if getattr(dataset, s).tracklet is None]
    if single:
        raise ValueError(
            f"{dataset.root} holds single images ({', '.join(single)}); {method} takes tracklets"
        )
    return dataset


def _checked(config: DataConfig, dataset: ReIDDataset) -> ReIDDataset:
    for split, use in (("train", "to train on"), ("query", "to test"), ("gallery", "to test")):
        if not len(getattr(dataset, split)):
            raise ValueError(f"{dataset.root} has no images {use}: its {split} set is empty")
    for text in dataset.report["warnings"]:
        log.warning("%s: %s", dataset.root, text)
    return keep_cameras(dataset, config.train_cameras)


def weights_directory(name: str, kind: str) -> pathlib.Path:
    """The folder of weights, fetched if it is named by a Hub id.

    Args:
      name: a folder, a Hub id, or one of `SHIPPED`.
      kind: what is looked for, for messages: "a CLIP checkpoint".

    Raises:
      FileNotFoundError: there is none.
      ValueError: none is named.
    """
    if not name:
        raise ValueError(
            f"no weights: set --config.model.weights to the folder or the Hub id of {kind}, or to "
            f"{TINY_CLIP}, the small CLIP of the demonstration"
        )
    if name in SHIPPED:
        return pathlib.Path(str(importlib.resources.files("ccafl_jax") / "assets" / name))
    return local_directory(name)
