"""ImageNet's ResNets with bottlenecks, and IBN-ResNet-a.

Sources: He et al., "Deep residual learning for image recognition", with the stride on the 3x3
convolution as torchvision has it; Pan et al., "Two at once: enhancing learning and generalization
capacities via IBN-Net", variant a.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from ccafl_jax.models.layers import BatchNorm, Compute, Conv, apply_block, normalize_instances


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetResNetConfig:
    """Sizes of a ResNet.

    Attributes:
      layers: residual blocks in each of the four stages.
      width: channels after the stem; the last map has 32 times as many.
      image_size: height and width in pixels.
      last_stride: stride of the fourth stage: 2 as published, 1 for re-identification.
      ibn: instance normalisation of the first half of the channels after the first convolution of
        each block, in the first three stages (IBN-a).
    """

    layers: tuple[int, int, int, int]
    width: int = 64
    image_size: tuple[int, int]
    last_stride: int = 1
    ibn: bool = False

    def __post_init__(self):
        if len(self.layers) != 4 or min(self.layers) < 1:
            raise ValueError(f"vision layers are {self.layers}; a ResNet states four counts")
        if self.last_stride not in (1, 2):
            raise ValueError(f"last_stride is {self.last_stride}; choose 1 or 2")
        if self.width % 2:
            raise ValueError(f"width is {self.width}; an even one has halves")

    @property
    def features(self) -> int:
        """Channels of the last map."""
        return 32 * self.width


class ResNet(nnx.Module):
    """The image tower, without a classifier."""

    def __init__(
        self,
        config: ImageNetResNetConfig,
        *,
        compute: Compute | None = None,
        rngs: nnx.Rngs,
    ):
        """Args: sizes, arithmetic and random streams of the initial parameters."""
        compute = compute or Compute()
        options = {"compute": compute, "rngs": rngs}
        width = config.width
        self.conv1 = Conv(3, width, size=7, stride=2, **options)
        self.bn1 = BatchNorm(width, param_dtype=compute.param_dtype)
        stages, channels = [], width
        for index, blocks in enumerate(config.layers):
            planes = width * 2**index
            stride = (1, 2, 2, config.last_stride)[index]
            stage = []
            for block in range(blocks):
                stage.append(
                    Bottleneck(
                        channels,
                        planes,
                        stride=stride if block == 0 else 1,
                        ibn=config.ibn and index < 3,
                        **options,
                    )
                )
                channels = 4 * planes
            stages.append(nnx.List(stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.config = config
        self.compute = compute
        self.out_features = 0

    def encode(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Feature maps of the third and the fourth stage.

        Args:
          images: float[batch, height, width, 3], normalised.
          train: batch statistics instead of running ones.

        Returns:
          `[batch, height / 16, width / 16, 16 width]` and, with `last_stride` 1,
          `[batch, height / 16, width / 16, 32 width]`, in the activation dtype.
        """
        x = images.astype(self.compute.activations)
        x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        x = max_pool3(x)
        for stage in (self.layer1, self.layer2, self.layer3):
            x = _run(stage, x, train)
        return x, _run(self.layer4, x, train)

    def project(self, feature_map: jax.Array) -> None:
        """There is no joint space with texts."""


class Bottleneck(nnx.Module):
    """Residual block 1x1 - 3x3 - 1x1."""

    def __init__(
        self,
        channels: int,
        planes: int,
        *,
        stride: int,
        ibn: bool,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        """Args: channels in, channels inside (a quarter of those out), stride, whether IBN-a."""
        options = {"compute": compute, "rngs": rngs}
        dtype = compute.param_dtype
        first = InstanceBatchNorm if ibn else BatchNorm
        self.conv1 = Conv(channels, planes, size=1, **options)
        self.bn1 = first(planes, param_dtype=dtype)
        self.conv2 = Conv(planes, planes, size=3, stride=stride, **options)
        self.bn2 = BatchNorm(planes, param_dtype=dtype)
        self.conv3 = Conv(planes, 4 * planes, size=1, **options)
        self.bn3 = BatchNorm(4 * planes, param_dtype=dtype)
        self.compute = compute
        projects = stride > 1 or channels != 4 * planes
        self.downsample_conv = (
            Conv(channels, 4 * planes, size=1, stride=stride, **options) if projects else None
        )
        self.downsample_bn = BatchNorm(4 * planes, param_dtype=dtype) if projects else None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[batch, h, w, channels]` to `[batch, h / stride, w / stride, 4 planes]`."""
        y = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        y = jax.nn.relu(self.bn2(self.conv2(y), train=train))
        y = self.bn3(self.conv3(y), train=train)
        if self.downsample_conv is not None:
            x = self.downsample_bn(self.downsample_conv(x), train=train)
        return jax.nn.relu(y + x)


class InstanceBatchNorm(nnx.Module):
    """Instance normalisation of the first half of the channels, batch normalisation of the rest.

    Instances are normalised by their own statistics in training and evaluation alike.
    """

    def __init__(self, features: int, *, param_dtype: jnp.dtype = jnp.float32):
        """Args: channels, dtype of the parameters."""
        half = features // 2
        self.scale = nnx.Param(jnp.ones(half, param_dtype))
        self.bias = nnx.Param(jnp.zeros(half, param_dtype))
        self.batch = BatchNorm(features - half, param_dtype=param_dtype)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises float[batch, h, w, features]; the result has the dtype of `x`."""
        half = self.scale.shape[0]
        first = normalize_instances(x[..., :half], self.scale[...], self.bias[...])
        return jnp.concatenate([first, self.batch(x[..., half:], train=train)], axis=-1)


def max_pool3(x: jax.Array) -> jax.Array:
    """Maxima of 3x3 windows at stride 2, with a border that no maximum comes from."""
    border = (0, 0), (1, 1), (1, 1), (0, 0)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), border)


def _run(stage: nnx.List, x: jax.Array, train: bool) -> jax.Array:
    for block in stage:
        x = apply_block(block, x, train=train)
    return x
