"""From options to a run: data set, pixels, CLIP towers and tokenizer."""

import dataclasses
import logging
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.data.labels import check_cameras
from ccafl_jax.data.records import ReIDDataset
from ccafl_jax.methods.cameras import hide_identities
from ccafl_jax.methods.ccafl.config import CCAFLConfig, DataConfig, ModelConfig
from ccafl_jax.methods.ccafl.local_identities import with_local_identities
from ccafl_jax.methods.ccafl.run import Run
from ccafl_jax.methods.files import open_images, require_root, weights_directory
from ccafl_jax.methods.holdout import split_held_out
from ccafl_jax.methods.run import Images
from ccafl_jax.models.clip import CLIP, Tokenizer, ViTConfig, load_clip
from ccafl_jax.models.layers import Compute

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


def attention(config: ModelConfig) -> str:
    """The attention of transformers on the devices that there are; see `Compute.attention`.

    Raises:
      ValueError: the fused one is asked for where there is none.
    """
    device = jax.devices()[0]
    # Of other makers' GPUs the capability is not such a number; cuDNN's kernel begins with 8.
    capability = re.match(r"\d+", str(getattr(device, "compute_capability", "")))
    able = device.platform == "gpu" and capability and int(capability[0]) >= 8
    if config.attention == "auto":
        return "cudnn" if able and config.compute_dtype == "bfloat16" else "plain"
    if config.attention == "cudnn" and not able:
        raise ValueError(
            "model.attention='cudnn' needs a GPU of NVIDIA (Ampere or later), and the devices are "
            f"{device.device_kind}: set --config.model.attention auto"
        )
    return config.attention


def load_towers(config: CCAFLConfig, directory: pathlib.Path) -> CLIP:
    """Both towers, for the recipe's image size and strides.

    Raises:
      ValueError: weights of another kind than the recipe is for, or arithmetic that the devices
        cannot do.
    """
    clip = load_clip(
        directory,
        image_size=(config.data.height, config.data.width),
        last_stride=config.model.last_stride,
        patch_stride=config.model.patch_stride or None,
        activation=config.model.activation or None,
        compute=Compute(
            dtype=jnp.dtype(config.model.compute_dtype),
            remat=config.model.remat,
            attention=attention(config.model),
        ),
    )
    vision = clip.config.vision
    log.info("weights: %s, %s, %s", directory, vision, clip.config.activation)
    kind = "vit" if isinstance(vision, ViTConfig) else "resnet"
    if config.model.tower not in ("", kind):
        raise ValueError(
            f"the recipe is for a {config.model.tower} tower and {directory} holds a {kind}: set "
            f"--config.model.weights to a CLIP with a {config.model.tower}, or model.tower to ''"
        )
    if kind == "vit" and config.model.last_stride != 1:
        raise ValueError("model.last_stride is for ResNets and these weights are a ViT's; drop it")
    return clip
