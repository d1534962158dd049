"""CLIP's text transformer, run on token embeddings and only as far as the end-of-text token.

Attention is causal and the feature is read at the end-of-text token, so later positions cannot
change it: a prompt of 12 tokens costs 12 positions, not 77.

Source: Radford et al., "Learning transferable visual models from natural language supervision".
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ccafl_jax import numerics
from ccafl_jax.models.clip.config import TextConfig
from ccafl_jax.models.clip.transformer import build_blocks
from ccafl_jax.models.layers import Compute, LayerNorm


class TextTransformer(nnx.Module):
    """The text tower."""

    def __init__(
        self,
        config: TextConfig,
        *,
        out_features: int,
        activation: str,
        compute: Compute | None = None,
        rngs: nnx.Rngs,
    ):
        """Args:
        config: sizes.
        out_features: size of the joint space.
        activation: "quick_gelu" or "gelu".
        compute: arithmetic.
        rngs: random streams of the initial parameters.
        """
        compute = compute or Compute()
        width, dtype = config.width, compute.param_dtype

        def normal(shape, stddev):
            value = jax.random.normal(rngs.params(), shape, jnp.dtype(dtype))
            return nnx.Param(value * jnp.asarray(stddev, dtype))

        self.token_embedding = normal((config.vocab, width), 0.02)
        self.positional_embedding = normal((config.context, width), 0.01)
        self.blocks = build_blocks(
            config, activation=activation, causal=True, compute=compute, rngs=rngs
        )
        self.ln_final = LayerNorm(width, param_dtype=compute.param_dtype)
        self.text_projection = normal((width, out_features), width**-0.5)
        self.config = config
        self.compute = compute

    def __call__(self, embeddings: jax.Array, eot: jax.Array | None = None) -> jax.Array:
        """Text features of the joint space, not normalised.

        Args:
          embeddings: float[n, length, width], token embeddings without positions.
          eot: int[n], position of the end-of-text token in each row; None means the last one.

        Returns:
          float[n, out_features], float32 at least.

        Raises:
          ValueError: if there are more tokens than positions.
        """
        length = embeddings.shape[1]
        if length > self.config.context:
            raise ValueError(
                f"{length} tokens exceed the {self.config.context} positions of the text tower; "
                "shorten the texts"
            )
        dtype = self.compute.activations
        x = (embeddings + self.positional_embedding[:length]).astype(dtype)
        for block in self.blocks:
            x = block(x)
        if eot is None:
            x = x[:, -1]
        else:
            x = jnp.take_along_axis(x, eot[:, None, None], axis=1)[:, 0]
        feature = jnp.einsum(
            "nw,we->ne",
            self.ln_final(x),
            self.text_projection[...].astype(dtype),
            precision=self.compute.products,
        )
        return numerics.at_least_float32(feature)

    def embed_tokens(self, ids: jax.Array) -> jax.Array:
        """Token embeddings: int[...] to float[..., width]."""
        return self.token_embedding[...][ids]

    def encode_ids(self, ids: jax.Array, eot: jax.Array) -> jax.Array:
        """Text features of token ids.

        Args:
          ids: int[n, length]; what follows the end-of-text token does not matter.
          eot: int[n], position of the end-of-text token in each row.

        Returns:
          float[n, out_features].
        """
        return self(self.embed_tokens(ids), eot)
