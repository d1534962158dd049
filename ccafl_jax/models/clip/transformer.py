"""The transformer block that CLIP's text and image towers share.

Source: Radford et al., "Learning transferable visual models from natural language supervision".
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ccafl_jax.models.clip.config import TextConfig, ViTConfig
from ccafl_jax.models.layers import Compute, LayerNorm, Linear, attend, attend_once

FUSED_FROM = 64  # tokens: cuDNN's tiles are as long, and shorter texts would leave them empty


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

        self.ln_1 = LayerNorm(width, param_dtype=compute.param_dtype)
        self.in_proj = linear(width, 3 * width, width**-0.5)
        self.out_proj = linear(width, width, out_stddev)
        self.ln_2 = LayerNorm(width, param_dtype=compute.param_dtype)
        self.c_fc = linear(width, mlp_width, (2 * width) ** -0.5)
        self.c_proj = linear(mlp_width, width, out_stddev)
        self.heads = heads
        self.activation = activation
        self.causal = causal
        self.compute = compute

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[n, length, width] to the same shape."""
        return self._perceptron(x + self.attend(self.ln_1(x)))

    def first(self, x: jax.Array) -> jax.Array:
        """What becomes of the first token, float[n, width], without the work for the others.

        Raises:
          ValueError: of a causal block, whose first token sees no other.
        """
        if self.causal:
            raise ValueError("the first token of a causal block sees itself only")
        normed, width = self.ln_1(x), x.shape[-1]
        kernel = self.in_proj.kernel[...].astype(normed.dtype)
        bias = self.in_proj.bias[...].astype(normed.dtype)
        query, key, value = (slice(i * width, (i + 1) * width) for i in range(3))
        precision = self.compute.products
        asked = jnp.matmul(normed[:, 0], kernel[:, query], precision=precision) + bias[query]
        mixed = attend_once(
            asked,
            normed,
            kernel[:, key],
            kernel[:, value],
            heads=self.heads,
            precision=precision,
        )
        return self._perceptron(x[:, 0] + self.out_proj(mixed + bias[value]))

    def _perceptron(self, x: jax.Array) -> jax.Array:
        return x + self.c_proj(activate(self.c_fc(self.ln_2(x)), kind=self.activation))

    def attend(self, x: jax.Array) -> jax.Array:
        """Self-attention of normalised tokens: float[n, length, width] to the same shape."""
        return attend_all(self.in_proj, self.out_proj, x, heads=self.heads, causal=self.causal)


def attend_all(
    in_proj: Linear, out_proj: Linear, x: jax.Array, *, heads: int, causal: bool = False
) -> jax.Array:
    """Self-attention of all tokens.

    Args:
      in_proj: to queries, keys and values side by side, head by head inside each.
      out_proj: of what the heads have mixed; its arithmetic is that of the attention.
      x: float[n, length, width].
      heads: attention heads; they divide the width.
      causal: whether a position sees earlier ones and itself only.

    Returns:
      The same shape.
    """
    query, key, value = jnp.split(in_proj(x), 3, axis=-1)
    compute = out_proj.compute
    if compute.attention == "cudnn" and x.shape[1] >= FUSED_FROM:
        by_head = (*x.shape[:2], heads, x.shape[2] // heads)
        parts = (part.reshape(by_head) for part in (query, key, value))
        return out_proj(fused_attention(*parts, causal=causal).reshape(x.shape))
    options = {"heads": heads, "precision": compute.products, "causal": causal}
    return out_proj(attend(query, key, value, **options))


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


def fused_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool
) -> jax.Array:
    """Attention in one kernel of cuDNN.

    Args:
      query: half[n, length, heads, channels].
      key: of the same shape.
      value: of the same shape.
      causal: whether a position sees earlier ones and itself only.

    Returns:
      The same shape.
    """
    length = query.shape[1]
    # The gradient's kernel is for even lengths, and all are fastest where rows are aligned.
    padding = (0, 0), (0, -length % 8), (0, 0), (0, 0)
    lengths = jnp.full(query.shape[0], length, jnp.int32)
    mixed = jax.nn.dot_product_attention(
        *(jnp.pad(x, padding) for x in (query, key, value)),
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return mixed[:, :length]


def activate(x: jax.Array, *, kind: str) -> jax.Array:
    """QuickGELU (`x * sigmoid(1.702 x)`) or GELU by the error function, as `kind` says."""
    if kind == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=False)
