"""From options to a run: data set, pixels, CLIP towers and tokenizer."""

import importlib.resources
import logging
import pathlib
import sys

import jax.numpy as jnp
import numpy as np

from ccafl_jax.data.market1501 import load_market1501
from ccafl_jax.data.records import ReIDDataset
from ccafl_jax.data.sources import load_images
from ccafl_jax.methods.ccafl.config import CCAFLConfig, DataConfig, ModelConfig
from ccafl_jax.methods.ccafl.run import Images, Run
from ccafl_jax.models.clip import CLIP, Tokenizer, ViTConfig, load_clip
from ccafl_jax.models.hub import local_directory
from ccafl_jax.models.layers import Compute

TINY_CLIP = "tiny_clip"
"""Name of the CLIP that is shipped with the package, for small synthetic images."""

log = logging.getLogger("ccafl_jax")


def prepare_run(config: CCAFLConfig, *, workdir: pathlib.Path, root: str) -> Run:
    """Reads everything a run needs.

    Args:
      config: options.
      workdir: folder of the run.
      root: folder of the data set; `config.data.root`, or what the caller made in its place.

    Raises:
      FileNotFoundError, ValueError: with one line that says what is missing and what to do.
    """
    if not root:
        raise ValueError(
            f"no data: set --config.data.root to the folder of {config.data.name} (images in "
            "bounding_box_train, query and bounding_box_test)"
        )
    directory = weights_directory(config.model)
    clip, tokenizer = load_towers(config, directory), Tokenizer(directory)
    dataset = load_market1501(root, allow_single_identity=config.data.allow_single_identity)
    log.info("%s", dataset.summary())
    return Run(
        config,
        dataset=dataset,
        images=read_images(dataset, config.data),
        clip=clip,
        tokenizer=tokenizer,
        workdir=workdir,
    )


def read_images(dataset: ReIDDataset, config: DataConfig) -> Images:
    """Decodes and resizes all splits."""

    def read(paths: np.ndarray) -> np.ndarray:
        watched = sys.stderr.isatty()  # no bar in log files
        return load_images(paths, config.height, config.width, progress=watched)

    test_paths = np.concatenate([dataset.query.path, dataset.gallery.path])
    return Images(train=read(dataset.train.path), test=read(test_paths))


def weights_directory(config: ModelConfig) -> pathlib.Path:
    """The folder of the CLIP checkpoint, fetched if it is named by a Hub id.

    Raises:
      FileNotFoundError: there is none.
      ValueError: none is named.
    """
    if not config.weights:
        raise ValueError(
            "no weights: set --config.model.weights to the folder or the Hub id of a CLIP "
            f"checkpoint, or to {TINY_CLIP}, the small one of the demonstration"
        )
    if config.weights == TINY_CLIP:
        return pathlib.Path(str(importlib.resources.files("ccafl_jax") / "assets" / TINY_CLIP))
    return local_directory(config.weights)


def load_towers(config: CCAFLConfig, directory: pathlib.Path) -> CLIP:
    """Both towers, for the recipe's image size and strides."""
    clip = load_clip(
        directory,
        image_size=(config.data.height, config.data.width),
        last_stride=config.model.last_stride,
        patch_stride=config.model.patch_stride or None,
        activation=config.model.activation or None,
        compute=Compute(dtype=jnp.dtype(config.model.compute_dtype), remat=config.model.remat),
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
