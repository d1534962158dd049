"""A perceptron that tells cameras from features, to be trained against."""

import jax
import jax.numpy as jnp
from flax import nnx

from ccafl_jax import numerics
from ccafl_jax.models.layers import BatchNorm


class CameraHead(nnx.Module):
    """Linear, BN, ReLU, dropout; linear, BN, ReLU; linear.

    Source: CALR (specification 2); kernels and shifts begin as torch's `nn.Linear` does.
    """

    def __init__(
        self,
        features: int,
        cameras: int,
        *,
        hidden: int = 100,
        dropout: float = 0.5,
        bn_group: int = 0,
        rngs: nnx.Rngs,
    ):
        """Args:
        features: size of the input.
        cameras: number of classes.
        hidden: channels inside.
        dropout: share of the first hidden channels that are 0 in training.
        bn_group: see `BatchNorm`.
        rngs: random streams of the initial parameters.
        """
        sizes = (features, hidden, hidden, cameras)
        self.linear = nnx.List(
            [_linear(sizes[i], sizes[i + 1], rngs=rngs) for i in range(len(sizes) - 1)]
        )
        self.norm = nnx.List([BatchNorm(hidden, group=bn_group) for _ in range(2)])
        self.dropout = dropout

    def __call__(self, f: jax.Array, key: jax.Array) -> jax.Array:
        """Logits in training.

        Args:
          f: float[batch, features].
          key: of the dropout.

        Returns:
          float[batch, cameras].
        """
        x = jax.nn.relu(self.norm[0](self._apply(0, f), train=True))
        if self.dropout:
            kept = jax.random.bernoulli(key, 1 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1 - self.dropout), 0)
        x = jax.nn.relu(self.norm[1](self._apply(1, x), train=True))
        return self._apply(2, x)

    def _apply(self, index: int, x: jax.Array) -> jax.Array:
        layer = self.linear[index]
        return numerics.einsum("bd,dk->bk", x, layer.kernel[...]) + layer.bias[...]


def _linear(rows: int, columns: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    bound = rows**-0.5

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, **_) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(rows, columns, kernel_init=uniform, bias_init=uniform, rngs=rngs)
