"""Layers that the backbones share: convolution, batch normalisation, pooling, the BN neck.

Images and feature maps are channels-last: `[batch, height, width, channels]`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ccafl_jax import numerics

ATTENTION = ("plain", "cudnn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """Arithmetic of an encoder.

    Attributes:
      dtype: of the activations; None means `param_dtype`. Statistics, softmax and outputs are
        float32 at least, whatever this says.
      param_dtype: of the parameters and running statistics.
      precision: of products of float32 on accelerators: "highest", "high" or "default". Products
        of half precision are exact and take no such wish, which would keep compilers from fusing
        them.
      remat: keep only the inputs of residual and transformer blocks for the gradient and compute
        the rest again: less memory, about a third more work.
      attention: how the blocks of transformers attend. "plain" are products with a softmax between
        them; "cudnn" is one kernel of NVIDIA's library, which keeps no weights for the gradient:
        for GPUs of NVIDIA and half precision; short texts stay with "plain".
    """

    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32
    precision: str = "highest"
    remat: bool = False
    attention: str = "plain"

    def __post_init__(self):
        if self.attention not in ATTENTION:
            raise ValueError(f"attention is {self.attention!r}; choose one of {ATTENTION}")
        if self.attention == "cudnn" and self.activations.itemsize > 2:
            raise ValueError(
                f"attention 'cudnn' is for half precision, not {self.activations}: choose "
                "bfloat16, or attention 'plain'"
            )
        if self.precision not in ("highest", "high", "default"):
            raise ValueError(
                f"precision is {self.precision!r}; choose 'highest', 'high' or 'default'"
            )

    @property
    def activations(self) -> jnp.dtype:
        """The dtype of activations, resolved."""
        return jnp.dtype(self.param_dtype if self.dtype is None else self.dtype)

    @property
    def products(self) -> str:
        """The precision to ask of products of activations."""
        return self.precision if self.activations.itemsize > 2 else "default"


class Conv(nnx.Module):
    """Convolution without bias, with symmetric padding."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        size: int,
        stride: int = 1,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        """Args: channels in and out, side of the kernel, stride, arithmetic and random streams."""
        shape = (size, size, in_features, out_features)
        initializer = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.kernel = nnx.Param(initializer(rngs.params(), shape, compute.param_dtype))
        self.stride = stride
        self.compute = compute

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, h, w, in]` to `[batch, h', w', out]` in the activation dtype."""
        dtype = self.compute.activations
        kernel = self.kernel[...].astype(dtype)
        x = x.astype(dtype)
        size = kernel.shape[0]
        # Matrix products where those are the faster form on CPUs: for kernels of one position, and
        # where the kernel is larger than the image. XLA would take one for the other there.
        if size == 1 and self.stride == 1:
            seen = x
        elif size * size > x.shape[1] * x.shape[2]:
            seen = _patches(x, size, self.stride)
        else:
            pad = (size // 2, size // 2)  # "SAME" would pad (0, 1) at stride 2
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=(pad, pad),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=self.compute.products,
            )
        # Over flat positions: the gradient of the kernel is then one product as well.
        y = jnp.matmul(
            seen.reshape(-1, seen.shape[-1]),
            kernel.reshape(-1, kernel.shape[-1]),
            precision=self.compute.products,
        )
        return y.reshape(*seen.shape[:-1], -1)


def _patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """`[batch, h, w, in]` to `[batch, h', w', size * size * in]`: what the kernel sees, in rows."""
    pad = (size // 2, size // 2)
    x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    rows, columns = (range(0, side - size + 1, stride) for side in x.shape[1:3])
    seen = [
        x[:, i : i + rows[-1] + 1 : stride, j : j + columns[-1] + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(seen, axis=-1)


class Linear(nnx.Module):
    """Affine map with kernel `[in, out]`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        stddev: float,
        use_bias: bool = True,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        """Args: sizes, standard deviation of the initial kernel, arithmetic and random streams."""
        kernel = jax.random.normal(
            rngs.params(), (in_features, out_features), jnp.dtype(compute.param_dtype)
        )
        self.kernel = nnx.Param(kernel * jnp.asarray(stddev, compute.param_dtype))
        self.bias = nnx.Param(jnp.zeros(out_features, compute.param_dtype)) if use_bias else None
        self.compute = compute

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., in]` to `[..., out]` in the activation dtype."""
        dtype = self.compute.activations
        kernel = self.kernel[...].astype(dtype)
        # Not an einsum over "...": converters copy the kernel for every position of that.
        y = jnp.matmul(x.astype(dtype), kernel, precision=self.compute.products)
        return y if self.bias is None else y + self.bias[...].astype(dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation over every axis but the last.

    The statistics are taken in float32 at least and in two passes. The output uses the biased
    variance; the running variance receives n / (n - 1) times that, as the published code does.

    With `group` > 0 each run of `group` contiguous rows has its own statistics, as if it lived on
    a device of its own, and the running statistics receive the average over the groups. Groups
    are an averaging matrix over the means of the rows: a reshape would move activations between
    devices.
    """

    def __init__(
        self,
        features: int,
        *,
        use_bias: bool = True,
        group: int = 0,
        momentum: float = 0.1,
        eps: float = 1e-5,
        param_dtype: jnp.dtype = jnp.float32,
    ):
        """Args:
        features: channels.
        use_bias: whether a shift is learned; without it the shift is 0.
        group: rows a group, 0 for the whole batch; a smaller batch is one group.
        momentum: weight of the new statistics in the running ones.
        eps: added to the variance.
        param_dtype: of parameters and running statistics.
        """
        self.scale = nnx.Param(jnp.ones(features, param_dtype))
        self.bias = nnx.Param(jnp.zeros(features, param_dtype)) if use_bias else None
        self.mean = nnx.BatchStat(jnp.zeros(features, param_dtype))
        self.var = nnx.BatchStat(jnp.ones(features, param_dtype))
        self.group = group
        self.momentum = momentum
        self.eps = eps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises and, when training, updates the running statistics.

        Args:
          x: float[batch, ..., features].
          train: use the statistics of the batch; otherwise the running ones.

        Returns:
          float[batch, ..., features], in the dtype of `x`.

        Raises:
          ValueError: if the groups do not divide the batch.
        """
        scale, bias = self.scale[...], None if self.bias is None else self.bias[...]
        if not train:
            rate = jax.lax.rsqrt(self.var[...] + self.eps)
            return _affine(x, self.mean[...], rate, scale, bias)
        rows = x.shape[0]
        group = min(self.group, rows) if self.group else rows
        if group == 0 or rows % group:
            raise ValueError(
                f"batch normalisation in groups of {group} rows got a batch of {rows} rows; "
                f"choose a batch that {group or 1} divides"
            )
        y, mean, var = _normalize_groups(x, scale, bias, group, self.eps)
        axes = tuple(range(x.ndim - 1))
        count = group * x[0, ..., 0].size
        unbiased = jnp.mean(var, axis=axes) * (count / max(count - 1, 1))
        self._update(jnp.mean(mean, axis=axes), unbiased)
        return y

    def _update(self, mean: jax.Array, var: jax.Array) -> None:
        for running, new in ((self.mean, mean), (self.var, var)):
            old = running[...]
            new = jax.lax.stop_gradient(new).astype(old.dtype)
            running[...] = (1 - self.momentum) * old + self.momentum * new


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize_groups(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, group: int, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalisation with the statistics of each group of rows.

    Its gradient is written out so that only `x` in its own dtype and the statistics are kept for
    it; derived automatically it would keep several float32 copies of the activations. Forward-mode
    derivatives are not to be had.

    Args:
      x: float[batch, ..., features].
      scale: float[features].
      bias: float[features] or None.
      group: rows a group; they divide the batch.
      eps: added to the variance.

    Returns:
      The result in the dtype of `x`, and the means and biased variances, which broadcast against
      `x`. No gradient flows through the statistics.
    """
    return _normalize_groups_forward(x, scale, bias, group, eps)[0]


def _normalize_groups_forward(x, scale, bias, group, eps):
    wide = numerics.at_least_float32(x)
    mean = _group_means(wide, group)
    var = _group_means(jnp.square(wide - mean), group)
    rate = jax.lax.rsqrt(var + eps)
    return (_affine(x, mean, rate, scale, bias), mean, var), (x, mean, rate, scale, bias)


def _normalize_groups_backward(group, eps, kept, gradients):
    x, mean, rate, scale, bias = kept
    dy = numerics.at_least_float32(gradients[0])
    unit = (numerics.at_least_float32(x) - mean) * rate
    product = dy * unit
    axes = tuple(range(x.ndim - 1))
    dx = dy - _group_means(dy, group) - unit * _group_means(product, group)
    dx = (dx * (rate * scale)).astype(x.dtype)
    dscale = jnp.sum(product, axis=axes).astype(scale.dtype)
    dbias = None if bias is None else jnp.sum(dy, axis=axes).astype(bias.dtype)
    return dx, dscale, dbias


_normalize_groups.defvjp(_normalize_groups_forward, _normalize_groups_backward)


def _affine(x, mean, rate, scale, bias):
    """`(x - mean) * rate * scale + bias` in float32 at least, returned in the dtype of `x`."""
    shift = 0.0 if bias is None else bias
    return ((numerics.at_least_float32(x) - mean) * (rate * scale) + shift).astype(x.dtype)


def _group_means(x: jax.Array, group: int) -> jax.Array:
    """Means over each group of rows and all inner axes, by channel; they broadcast against `x`."""
    rows, inner = x.shape[0], tuple(range(1, x.ndim - 1))
    if group == rows:
        return jnp.mean(x, axis=(0, *inner), keepdims=True)
    if group == 1:
        return jnp.mean(x, axis=inner, keepdims=True)
    member = np.arange(rows) // group
    average = jnp.asarray((member[:, None] == member) / group, x.dtype)  # [rows, rows]
    means = numerics.einsum("rs,sc->rc", average, jnp.mean(x, axis=inner))
    return jnp.expand_dims(means, inner)


def normalize_instances(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float = 1e-5
) -> jax.Array:
    """Normalises every row of float[batch, ..., features] by its own statistics, by channel."""
    return _normalize_groups(x, scale, bias, 1, eps)[0]


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis.

    The statistics are taken in float32 at least and in two passes. Its gradient is written out so
    that only `x` in its own dtype and two numbers a row are kept for it.
    """

    def __init__(self, features: int, *, eps: float = 1e-5, param_dtype: jnp.dtype = jnp.float32):
        """Args: channels, what is added to the variance, dtype of the parameters."""
        self.scale = nnx.Param(jnp.ones(features, param_dtype))
        self.bias = nnx.Param(jnp.zeros(features, param_dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises float[..., features]; the result has the dtype of `x`."""
        return _normalize_rows(x, self.scale[...], self.bias[...], self.eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize_rows(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Layer normalisation. Forward-mode derivatives are not to be had.

    Args:
      x: float[..., features].
      scale: float[features].
      bias: float[features].
      eps: added to the variance.

    Returns:
      The result in the dtype of `x`.
    """
    return _normalize_rows_forward(x, scale, bias, eps)[0]


def _normalize_rows_forward(x, scale, bias, eps):
    wide = numerics.at_least_float32(x)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True) + eps)
    return _affine(x, mean, rate, scale, bias), (x, mean, rate, scale, bias)


def _normalize_rows_backward(eps, kept, dy):
    x, mean, rate, scale, bias = kept
    unit = (numerics.at_least_float32(x) - mean) * rate
    dy = numerics.at_least_float32(dy)
    axes = tuple(range(x.ndim - 1))
    dscale = jnp.sum(dy * unit, axis=axes).astype(scale.dtype)
    dbias = jnp.sum(dy, axis=axes).astype(bias.dtype)
    dunit = dy * scale
    dx = dunit - jnp.mean(dunit, axis=-1, keepdims=True)
    dx = (dx - unit * jnp.mean(dunit * unit, axis=-1, keepdims=True)) * rate
    return dx.astype(x.dtype), dscale, dbias


_normalize_rows.defvjp(_normalize_rows_forward, _normalize_rows_backward)


class BNNeck(BatchNorm):
    """Batch normalisation of the pooled feature, with a learned scale and the shift fixed at 0.

    Source: Luo et al., "Bag of tricks and a strong baseline for deep person re-identification".
    """

    def __init__(self, features: int, *, group: int = 0, param_dtype: jnp.dtype = jnp.float32):
        """Args: size of the feature, rows a group (0: whole batch), dtype of the parameters."""
        super().__init__(features, use_bias=False, group=group, param_dtype=param_dtype)


class GeM(nnx.Module):
    """Generalised mean over positions: `mean(max(x, eps) ** p) ** (1 / p)` with `p` learned.

    Source: Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation".
    """

    def __init__(self, *, p: float = 3.0, eps: float = 1e-6, param_dtype: jnp.dtype = jnp.float32):
        """Args: initial exponent, smallest entry, dtype of the exponent."""
        self.p = nnx.Param(jnp.asarray(p, param_dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pools `[batch, h, w, channels]` to `[batch, channels]`, float32 at least."""
        p = self.p[...]
        x = jnp.maximum(numerics.at_least_float32(x), self.eps)
        return jnp.mean(x**p, axis=(1, 2)) ** (1 / p)


def cubic_mean(x: jax.Array, *, eps: float = 1e-12) -> jax.Array:
    """The generalised mean over positions with a fixed exponent of 3.

    Args:
      x: float[batch, h, w, channels], 0 or more, as what leaves a ReLU is.
      eps: added to the mean of cubes, so that the gradient of a dead channel is 0.

    Returns:
      float[batch, channels], float32 at least.

    Source: CCLNet as released.
    """
    x = numerics.at_least_float32(x)
    return (jnp.mean(x * x * x, axis=(1, 2)) + eps) ** (1 / 3)


class AttentionPool(nnx.Module):
    """Attention of the mean token over all positions: CLIP's pooling for ResNets.

    Only the mean token asks, see `attend_once`. The bias of the keys drops out; it stays a
    parameter because checkpoints hold it.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        *,
        features: int,
        heads: int,
        out_features: int,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        """Args:
        grid: height and width of the feature map.
        features: channels of the map.
        heads: attention heads; they divide `features`.
        out_features: size of the projected feature.
        compute: arithmetic.
        rngs: random streams.
        """
        if features % heads:
            raise ValueError(f"{heads} attention heads do not divide {features} channels")
        stddev = features**-0.5
        shape = (1 + grid[0] * grid[1], features)
        table = jax.random.normal(rngs.params(), shape, jnp.dtype(compute.param_dtype))
        self.positional_embedding = nnx.Param(table * jnp.asarray(stddev, compute.param_dtype))

        def linear(size):
            return Linear(features, size, stddev=stddev, compute=compute, rngs=rngs)

        self.q_proj = linear(features)
        self.k_proj = linear(features)
        self.v_proj = linear(features)
        self.c_proj = linear(out_features)
        self.grid = tuple(grid)
        self.heads = heads
        self.compute = compute

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pools `[batch, h, w, features]` to `[batch, out_features]`.

        Raises:
          ValueError: if the map is not of the grid that the positions were made for.
        """
        tokens, dtype = self._tokens(x), self.compute.activations
        value = attend_once(
            self.q_proj(tokens[:, 0]),
            tokens,
            self.k_proj.kernel[...].astype(dtype),
            self.v_proj.kernel[...].astype(dtype),
            heads=self.heads,
            precision=self.compute.products,
        )
        return self.c_proj(value + self.v_proj.bias[...].astype(dtype))

    def all_tokens(self, x: jax.Array) -> jax.Array:
        """What every token finds, the mean token first: `[batch, 1 + h w, out_features]`.

        The first of them is what the pool returns.

        Raises:
          ValueError: as the pool.
        """
        tokens = self._tokens(x)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        mixed = attend(
            *(projection(tokens) for projection in projections),
            heads=self.heads,
            precision=self.compute.products,
        )
        return self.c_proj(mixed)

    def _tokens(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        if (height, width) != self.grid:
            raise ValueError(
                f"attention pool got a {height}x{width} map, its positions are for "
                f"{self.grid[0]}x{self.grid[1]}; build the model with the size of its images"
            )
        dtype = self.compute.activations
        x = x.astype(dtype).reshape(batch, height * width, channels)
        center = jnp.mean(x, axis=1, keepdims=True, dtype=jnp.promote_types(dtype, jnp.float32))
        tokens = jnp.concatenate([center.astype(dtype), x], axis=1)  # [batch, 1 + h w, channels]
        return tokens + self.positional_embedding[...].astype(dtype)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    heads: int,
    precision: str,
    causal: bool = False,
) -> jax.Array:
    """Attention by heads, whose channels lie side by side.

    Args:
      query: float[n, asking, width], projected, not scaled.
      key: float[n, length, width].
      value: float[n, length, width].
      heads: attention heads; they divide the width.
      precision: of the products.
      causal: whether a position sees earlier ones and itself only.

    Returns:
      float[n, asking, width] in the dtype of `value`.
    """
    width = query.shape[-1]
    query, key, value = (
        x.reshape(*x.shape[:2], heads, width // heads) for x in (query, key, value)
    )
    query = query * (width // heads) ** -0.5
    logits = jnp.einsum("nqhd,nkhd->nhqk", query, key, precision=precision)
    logits = numerics.at_least_float32(logits)
    if causal:
        visible = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        logits = jnp.where(visible, logits, numerics.NEG)
    weight = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("nhqk,nkhd->nqhd", weight, value, precision=precision)
    return mixed.reshape(*mixed.shape[:2], width)


def attend_once(
    query: jax.Array,
    tokens: jax.Array,
    key_kernel: jax.Array,
    value_kernel: jax.Array,
    *,
    heads: int,
    precision: str,
) -> jax.Array:
    """Attention of a single query over all tokens.

    The query is carried through the key projection to the tokens, and values are projected after
    they are averaged: the same result as projecting every token, at a fraction of the work. A bias
    of the keys would shift all logits of a head alike and drop out of the softmax; one of the
    values is left to the caller.

    Args:
      query: float[n, width], projected, not scaled.
      tokens: float[n, length, channels].
      key_kernel: float[channels, width].
      value_kernel: float[channels, width].
      heads: attention heads; they divide the width.
      precision: of the products.

    Returns:
      float[n, width] in the dtype of `tokens`.
    """
    n, width = query.shape
    keys, values = (
        kernel.reshape(kernel.shape[0], heads, -1) for kernel in (key_kernel, value_kernel)
    )
    query = query.reshape(n, heads, -1) * (width // heads) ** -0.5
    asked = jnp.einsum("nhd,chd->nhc", query, keys, precision=precision)
    logits = jnp.einsum("nhc,ntc->nht", asked, tokens, precision=precision)
    weight = jax.nn.softmax(numerics.at_least_float32(logits), axis=-1).astype(tokens.dtype)
    context = jnp.einsum("nht,ntc->nhc", weight, tokens, precision=precision)
    value = jnp.einsum("nhc,chd->nhd", context, values, precision=precision)
    return value.reshape(n, width)


def apply_block(
    block: nnx.Module, x: jax.Array, *, method: str = "__call__", **options: bool
) -> jax.Array:
    """`block.method(x, **options)`, rematerialised where `block.compute` says so."""

    def run(block: nnx.Module, x: jax.Array) -> jax.Array:
        return getattr(block, method)(x, **options)

    return nnx.remat(run)(block, x) if block.compute.remat else run(block, x)


def average_pool2(x: jax.Array) -> jax.Array:
    """Means of 2x2 blocks of `[batch, h, w, channels]`; an odd last row or column is left out."""
    batch, height, width, channels = x.shape
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width].reshape(batch, height, 2, width, 2, channels)
    return jnp.mean(x, axis=(2, 4))


def resize_positions(
    table: jax.Array, *, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> jax.Array:
    """Resizes a position table: the first row is kept, the grid is interpolated.

    Bilinear with half-pixel centres and without anti-aliasing, as CLIP-ReID does.

    Args:
      table: float[1 + old_h * old_w, channels].
      old_grid: height and width of the grid of `table`.
      new_grid: height and width asked for.

    Returns:
      float[1 + new_h * new_w, channels].
    """
    if tuple(old_grid) == tuple(new_grid):
        return jnp.asarray(table)
    channels = table.shape[-1]
    grid = jnp.asarray(table[1:]).reshape(*old_grid, channels)
    grid = jax.image.resize(grid, (*new_grid, channels), "bilinear", antialias=False)
    return jnp.concatenate([table[:1], grid.reshape(-1, channels)], axis=0)
