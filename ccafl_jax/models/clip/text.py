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
from ccafl_jax.models.layers import Compute, Linear


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
        self.blocks = nnx.List(
            [
                Block(config, activation=activation, compute=compute, rngs=rngs)
                for _ in range(config.layers)
            ]
        )
        self.ln_final = _layer_norm(width, compute, rngs)
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
            self.ln_final(x).astype(dtype),
            self.text_projection[...].astype(dtype),
            precision=self.compute.precision,
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


class Block(nnx.Module):
    """Pre-norm transformer block with causal attention."""

    def __init__(self, config: TextConfig, *, activation: str, compute: Compute, rngs: nnx.Rngs):
        """Args: sizes, "quick_gelu" or "gelu", arithmetic and random streams."""
        width = config.width
        out_stddev = width**-0.5 * (2 * config.layers) ** -0.5

        def linear(inputs, outputs, stddev):
            return Linear(inputs, outputs, stddev=stddev, compute=compute, rngs=rngs)

        self.ln_1 = _layer_norm(width, compute, rngs)
        self.in_proj = linear(width, 3 * width, width**-0.5)
        self.out_proj = linear(width, width, out_stddev)
        self.ln_2 = _layer_norm(width, compute, rngs)
        self.c_fc = linear(width, 4 * width, (2 * width) ** -0.5)
        self.c_proj = linear(4 * width, width, out_stddev)
        self.heads = config.heads
        self.activation = activation
        self.compute = compute

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[n, length, width] to the same shape."""
        dtype = x.dtype
        x = x + self._attend(self.ln_1(x).astype(dtype))
        hidden = activate(self.c_fc(self.ln_2(x).astype(dtype)), kind=self.activation)
        return x + self.c_proj(hidden)

    def _attend(self, x: jax.Array) -> jax.Array:
        n, length, width = x.shape
        heads, precision = self.heads, self.compute.precision
        qkv = self.in_proj(x).reshape(n, length, 3, heads, width // heads)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        query = query * (width // heads) ** -0.5
        logits = jnp.einsum("nqhd,nkhd->nhqk", query, key, precision=precision)
        causal = jnp.tril(jnp.ones((length, length), bool))
        logits = jnp.where(causal, numerics.at_least_float32(logits), numerics.NEG)
        weight = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weight, value, precision=precision)
        return self.out_proj(mixed.reshape(n, length, width))


def activate(x: jax.Array, *, kind: str) -> jax.Array:
    """QuickGELU (`x * sigmoid(1.702 x)`) or GELU by the error function, as `kind` says."""
    if kind == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=False)


def _layer_norm(width: int, compute: Compute, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # flax's own defaults are eps 1e-6 and a one-pass variance.
    return nnx.LayerNorm(
        width,
        epsilon=1e-5,
        use_fast_variance=False,
        param_dtype=compute.param_dtype,
        rngs=rngs,
    )
