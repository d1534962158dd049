"""From options to a run: data set, pixels, CLIP towers and tokenizer."""

import dataclasses
import logging
import os
import pathlib

import numpy as np

from ccafl_jax.data.labels import check_cameras
from ccafl_jax.data.records import ReIDDataset
from ccafl_jax.methods.cameras import hide_identities
from ccafl_jax.methods.ccafl.config import CCAFLConfig, DataConfig
from ccafl_jax.methods.ccafl.local_identities import with_local_identities
from ccafl_jax.methods.ccafl.run import Run
from ccafl_jax.methods.files import open_images, require_root, weights_directory
from ccafl_jax.methods.holdout import split_held_out
from ccafl_jax.methods.run import Images
from ccafl_jax.methods.towers import load_towers
from ccafl_jax.models.clip import Tokenizer

log = logging.getLogger("ccafl_jax")


def prepare_run(
    config: CCAFLConfig, *, workdir: pathlib.Path, root: str, kind: type[Run] = Run
) -> Run:
    """Reads everything a run needs.

    Args:
      config: options.
      workdir: folder of the run.
      root: folder of the data set; `config.data.root`, or what the caller made in its place.
      kind: what to make of it, for experiments that change a part of the run.

    Raises:
      FileNotFoundError, ValueError: with one line that says what is missing and what to do.
    """
    require_root(config.data, root)
    directory = weights_directory(config.model.weights, "a CLIP checkpoint")
    clip, tokenizer = load_towers(config, directory), Tokenizer(directory)
    dataset = open_training_set(config.data, root)
    dataset, held_out = split_held_out(dataset, config.data.val_fraction, config.seed)
    dataset = with_local_identities(dataset, clip, config, workdir)
    check_training_cameras(dataset, config.data)
    log.info("%s", dataset.summary())
    return kind(
        config,
        dataset=dataset,
        images=Images(train=dataset.train, test=dataset.query.join(dataset.gallery), val=held_out),
        clip=clip,
        tokenizer=tokenizer,
        workdir=workdir,
        held_out=held_out,
    )


def open_training_set(config: DataConfig, root: str | os.PathLike) -> ReIDDataset:
    """Opens the data set, with the training images that intra-camera supervision can use.

    Raises:
      FileNotFoundError, ValueError: with one line that says what is missing and what to do.
    """
    dataset = open_images(config, root, method="CCAFL")
    dataset = hide_identities(dataset, config.unlabelled_cameras)
    labelled = dataset.train.pid >= 0
    if config.unlabelled == "drop" and not np.all(labelled):
        log.warning(
            "%s: %d training images without an identity are left out; "
            "data.unlabelled=cluster gives them one that their camera alone knows",
            dataset.root,
            np.sum(~labelled),
        )
        dataset = dataclasses.replace(dataset, train=dataset.train.take(labelled))
    return dataset


def check_training_cameras(dataset: ReIDDataset, config: DataConfig) -> None:
    """Checks that identities can be told apart in each camera and linked across cameras.

    Raises:
      ValueError: see `check_cameras`.
    """
    for text in check_cameras(
        dataset.train.pid,
        dataset.train.camid,
        dataset.camera_codes,
        allow_single_identity=config.allow_single_identity,
    ):
        log.warning("%s: %s", dataset.root, text)
