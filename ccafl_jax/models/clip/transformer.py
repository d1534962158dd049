"""The transformer block that CLIP's text and image towers share.

Source: Radford et al., "Learning transferable visual models from natural language supervision".
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ccafl_jax import numerics
from ccafl_jax.models.clip.config import TextConfig, ViTConfig
from ccafl_jax.models.layers import Compute, Linear


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        mlp_width: int,
        depth: int,
        activation: str,
        causal: bool,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        """Args:
        width: size of the residual stream.
        heads: attention heads; they divide `width`.
        mlp_width: hidden size of the perceptron.
        depth: blocks of the tower, for the scale of the initial parameters.
        activation: "quick_gelu" or "gelu".
        causal: whether a position sees earlier ones and itself only.
        compute: arithmetic.
        rngs: random streams of the initial parameters.
        """
        out_stddev = width**-0.5 * (2 * depth) ** -0.5

        def linear(inputs, outputs, stddev):
            return Linear(inputs, outputs, stddev=stddev, compute=compute, rngs=rngs)

        self.ln_1 = layer_norm(width, compute, rngs)
        self.in_proj = linear(width, 3 * width, width**-0.5)
        self.out_proj = linear(width, width, out_stddev)
        self.ln_2 = layer_norm(width, compute, rngs)
        self.c_fc = linear(width, mlp_width, (2 * width) ** -0.5)
        self.c_proj = linear(mlp_width, width, out_stddev)
        self.heads = heads
        self.activation = activation
        self.causal = causal
        self.compute = compute

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[n, length, width] to the same shape."""
        dtype = x.dtype
        x = x + self.attend(self.ln_1(x).astype(dtype))
        hidden = activate(self.c_fc(self.ln_2(x).astype(dtype)), kind=self.activation)
        return x + self.c_proj(hidden)

    def attend(self, x: jax.Array) -> jax.Array:
        """Self-attention of normalised tokens: float[n, length, width] to the same shape."""
        n, length, width = x.shape
        heads, precision = self.heads, self.compute.products
        qkv = self.in_proj(x).reshape(n, length, 3, heads, width // heads)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.compute.attention == "cudnn":
            mixed = jax.nn.dot_product_attention(
                query, key, value, is_causal=self.causal, implementation="cudnn"
            )
            return self.out_proj(mixed.reshape(n, length, width))
        query = query * (width // heads) ** -0.5
        logits = jnp.einsum("nqhd,nkhd->nhqk", query, key, precision=precision)
        logits = numerics.at_least_float32(logits)
        if self.causal:
            visible = jnp.tril(jnp.ones((length, length), bool))
            logits = jnp.where(visible, logits, numerics.NEG)
        weight = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weight, value, precision=precision)
        return self.out_proj(mixed.reshape(n, length, width))


def build_blocks(
    config: TextConfig | ViTConfig,
    *,
    activation: str,
    causal: bool,
    compute: Compute,
    rngs: nnx.Rngs,
) -> nnx.List:
    """The blocks of a tower, from the first to the last."""
    return nnx.List(
        [
            Block(
                config.width,
                heads=config.heads,
                mlp_width=config.mlp_width,
                depth=config.layers,
                activation=activation,
                causal=causal,
                compute=compute,
                rngs=rngs,
            )
            for _ in range(config.layers)
        ]
    )


def activate(x: jax.Array, *, kind: str) -> jax.Array:
    """QuickGELU (`x * sigmoid(1.702 x)`) or GELU by the error function, as `kind` says."""
    if kind == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=False)


def layer_norm(width: int, compute: Compute, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """CLIP's layer norm: flax's own defaults are eps 1e-6 and a one-pass variance."""
    return nnx.LayerNorm(
        width,
        epsilon=1e-5,
        use_fast_variance=False,
        param_dtype=compute.param_dtype,
        rngs=rngs,
    )
