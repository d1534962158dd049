"""The two towers of CLIP together."""

import math

import jax.numpy as jnp
from flax import nnx

from ccafl_jax.models.clip.config import CLIPConfig
from ccafl_jax.models.clip.resnet import ModifiedResNet
from ccafl_jax.models.clip.text import TextTransformer
from ccafl_jax.models.layers import Compute


class CLIP(nnx.Module):
    """Image tower `visual`, text tower `text` and the learned `logit_scale` (a logarithm)."""

    def __init__(self, config: CLIPConfig, *, compute: Compute | None = None, rngs: nnx.Rngs):
        """Args: sizes, arithmetic, and random streams of the initial parameters."""
        compute = compute or Compute()
        self.visual = ModifiedResNet(
            config.vision, out_features=config.embed_dim, compute=compute, rngs=rngs
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
