"""CLIP's ResNet: three-convolution stem, anti-aliased strides, attention pool.

Source: Radford et al., "Learning transferable visual models from natural language supervision".
"""

from collections.abc import Callable

import jax
from flax import nnx

from ccafl_jax import numerics
from ccafl_jax.models.clip.config import ResNetConfig
from ccafl_jax.models.layers import (
    AttentionPool,
    BatchNorm,
    Compute,
    Conv,
    apply_block,
    average_pool2,
)


class Stem(nnx.Module):
    """From images to the map that the first stage takes: three convolutions and an average pool."""

    def __init__(self, width: int, *, compute: Compute, rngs: nnx.Rngs):
        """Args: channels out, arithmetic and random streams."""
        options = {"compute": compute, "rngs": rngs}
        self.conv1 = Conv(3, width // 2, size=3, stride=2, **options)
        self.bn1 = BatchNorm(width // 2, param_dtype=compute.param_dtype)
        self.conv2 = Conv(width // 2, width // 2, size=3, **options)
        self.bn2 = BatchNorm(width // 2, param_dtype=compute.param_dtype)
        self.conv3 = Conv(width // 2, width, size=3, **options)
        self.bn3 = BatchNorm(width, param_dtype=compute.param_dtype)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[batch, height, width, 3]` to `[batch, height / 4, width / 4, channels]`."""
        for conv, norm in (
            (self.conv1, self.bn1),
            (self.conv2, self.bn2),
            (self.conv3, self.bn3),
        ):
            x = jax.nn.relu(norm(conv(x), train=train))
        return average_pool2(x)


class ModifiedResNet(nnx.Module):
    """The image tower."""

    def __init__(
        self,
        config: ResNetConfig,
        *,
        out_features: int,
        compute: Compute | None = None,
        rngs: nnx.Rngs,
    ):
        """Args:
        config: sizes.
        out_features: size of the joint space; 0 leaves it out, with the attention pool.
        compute: arithmetic.
        rngs: random streams of the initial parameters.
        """
        compute = compute or Compute()
        width = config.width
        options = {"compute": compute, "rngs": rngs}
        self.stem = Stem(width, **options)
        stages, channels = [], width
        for index, blocks in enumerate(config.layers):
            planes = width * 2**index
            stride = (1, 2, 2, config.last_stride)[index]
            stage = []
            for block in range(blocks):
                stage.append(
                    Bottleneck(channels, planes, stride=stride if block == 0 else 1, **options)
                )
                channels = 4 * planes
            stages.append(nnx.List(stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        pool = {"features": config.features, "heads": config.heads, "out_features": out_features}
        self.attnpool = AttentionPool(config.grid, **pool, **options) if out_features else None
        self.config = config
        self.out_features = out_features
        self.compute = compute

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Image features of the joint space, not normalised.

        Args:
          images: float[batch, height, width, 3], normalised.
          train: batch statistics instead of running ones.

        Returns:
          float[batch, out_features], float32 at least.
        """
        return self.project(self.encode(images, train=train)[1])

    def encode(
        self, images: jax.Array, *, train: bool, stem: Callable[..., jax.Array] | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Feature maps of the third and the fourth stage.

        Args:
          images: float[batch, height, width, 3], normalised.
          train: batch statistics instead of running ones.
          stem: what to run in place of the tower's own; see `Stem`.

        Returns:
          `[batch, height / 16, width / 16, 16 width]` and, with `last_stride` 1,
          `[batch, height / 16, width / 16, 32 width]`, in the activation dtype.
        """
        x = (stem or self.stem)(images.astype(self.compute.activations), train=train)
        for stage in (self.layer1, self.layer2, self.layer3):
            x = _run(stage, x, train)
        return x, _run(self.layer4, x, train)

    def project(self, feature_map: jax.Array) -> jax.Array | None:
        """Attention pool of the last map: `[batch, h, w, 32 width]` to `[batch, out_features]`.

        None where there is no joint space.
        """
        if self.attnpool is None:
            return None
        return numerics.at_least_float32(self.attnpool(feature_map))


class Bottleneck(nnx.Module):
    """Residual block 1x1 - 3x3 - 1x1 whose stride is an average pool instead of a skipped pixel."""

    def __init__(
        self, channels: int, planes: int, *, stride: int, compute: Compute, rngs: nnx.Rngs
    ):
        """Args: channels in, channels inside (a quarter of those out), stride 1 or 2."""
        options = {"compute": compute, "rngs": rngs}
        self.conv1 = Conv(channels, planes, size=1, **options)
        self.bn1 = BatchNorm(planes, param_dtype=compute.param_dtype)
        self.conv2 = Conv(planes, planes, size=3, **options)
        self.bn2 = BatchNorm(planes, param_dtype=compute.param_dtype)
        self.conv3 = Conv(planes, 4 * planes, size=1, **options)
        self.bn3 = BatchNorm(4 * planes, param_dtype=compute.param_dtype)
        self.stride = stride
        self.compute = compute
        projects = stride > 1 or channels != 4 * planes
        norm = BatchNorm(4 * planes, param_dtype=compute.param_dtype) if projects else None
        self.downsample_conv = Conv(channels, 4 * planes, size=1, **options) if projects else None
        self.downsample_bn = norm

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[batch, h, w, channels]` to `[batch, h / stride, w / stride, 4 planes]`."""
        y = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        y = jax.nn.relu(self.bn2(self.conv2(y), train=train))
        if self.stride > 1:
            y, x = average_pool2(y), average_pool2(x)
        y = self.bn3(self.conv3(y), train=train)
        if self.downsample_conv is not None:
            x = self.downsample_bn(self.downsample_conv(x), train=train)
        return jax.nn.relu(y + x)


def _run(stage: nnx.List, x: jax.Array, train: bool) -> jax.Array:
    for block in stage:
        x = apply_block(block, x, train=train)
    return x
