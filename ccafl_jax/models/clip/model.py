"""The two towers of CLIP together."""

import math

import jax.numpy as jnp
from flax import nnx

from ccafl_jax.models.clip.config import CLIPConfig, VisionConfig, ViTConfig
from ccafl_jax.models.clip.resnet import ModifiedResNet
from ccafl_jax.models.clip.text import TextTransformer
from ccafl_jax.models.clip.vit import VisionTransformer
from ccafl_jax.models.layers import Compute

ImageTower = ModifiedResNet | VisionTransformer
"""Both kinds share `encode`, `project`, `config` and `compute`."""


class CLIP(nnx.Module):
    """Image tower `visual`, text tower `text` and the learned `logit_scale` (a logarithm)."""

    def __init__(self, config: CLIPConfig, *, compute: Compute | None = None, rngs: nnx.Rngs):
        """Args: sizes, arithmetic, and random streams of the initial parameters."""
        compute = compute or Compute()
        self.visual = build_tower(
            config.vision,
            out_features=config.embed_dim,
            activation=config.activation,
            compute=compute,
            rngs=rngs,
        )
        self.text = TextTransformer(
            config.text,
            out_features=config.embed_dim,
            activation=config.activation,
            compute=compute,
            rngs=rngs,
        )
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), compute.param_dtype))
        self.config = config


def build_tower(
    vision: VisionConfig,
    *,
    out_features: int,
    activation: str,
    compute: Compute | None = None,
    rngs: nnx.Rngs,
) -> ImageTower:
    """The image tower that a configuration describes, with random parameters.

    Args:
      vision: sizes; its class tells the kind of tower.
      out_features: size of the joint space.
      activation: of the blocks of a ViT; ResNets use ReLU.
      compute: arithmetic.
      rngs: random streams of the initial parameters.
    """
    options = {"out_features": out_features, "compute": compute, "rngs": rngs}
    if isinstance(vision, ViTConfig):
        return VisionTransformer(vision, activation=activation, **options)
    return ModifiedResNet(vision, **options)
