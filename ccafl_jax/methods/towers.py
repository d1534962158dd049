"""The CLIP towers that the options of a method ask for."""

import logging
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp

from ccafl_jax.models.clip import CLIP, ViTConfig, load_clip
from ccafl_jax.models.layers import Compute

log = logging.getLogger("ccafl_jax")


def attention(config: Any) -> str:
    """The attention of transformers on the devices that there are; see `Compute.attention`.

    Args:
      config: options of a model, with `attention` and `compute_dtype`.

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


def load_towers(config: Any, directory: pathlib.Path) -> CLIP:
    """Both towers, for the recipe's image size and strides.

    Args:
      config: options of a method; its `model` says which tower, strides and arithmetic.
      directory: of the weights.

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
