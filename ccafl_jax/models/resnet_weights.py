"""ImageNet's weights for ResNets: files of torchvision, timm and IBN-Net as safetensors.

All three use one naming. Sizes are told from names and shapes, so no configuration is read.
"""

import pathlib
import re
from collections.abc import Mapping

import numpy as np
from flax import nnx

from ccafl_jax.models.hub import local_directory
from ccafl_jax.models.layers import Compute
from ccafl_jax.models.named_tensors import CONV, Table, affine, batch_norm, fill, row
from ccafl_jax.models.resnet import ImageNetResNetConfig, ResNet
from ccafl_jax.models.tensor_files import TensorFiles

UNUSED = {
    # Counters that torch keeps beside running statistics.
    "batch counters": r".*\.num_batches_tracked",
    "classifier of ImageNet": r"fc\.(weight|bias)",
}
"""Tensors that no computation here reads, by what they are."""


def resnet_table(*, ibn: bool) -> Table:
    """Names of a tower's parameters in files of torchvision, timm and IBN-Net.

    Args:
      ibn: whether the first normalisation of the blocks of the first three stages is IBN's.
    """
    halves: Table = ()
    if ibn:
        first = r"(layer[123])/(\d+)/bn1"
        halves = (
            *affine(first, r"\1.\2.bn1.IN"),
            *batch_norm(f"{first}/batch", r"\1.\2.bn1.BN"),
        )
    return (
        row(r"conv1/kernel", r"conv1.weight", CONV),
        *batch_norm(r"bn1", r"bn1"),
        *halves,
        row(r"(layer\d)/(\d+)/(conv\d)/kernel", r"\1.\2.\3.weight", CONV),
        *batch_norm(r"(layer\d)/(\d+)/(bn\d)", r"\1.\2.\3"),
        row(r"(layer\d)/(\d+)/downsample_conv/kernel", r"\1.\2.downsample.0.weight", CONV),
        *batch_norm(r"(layer\d)/(\d+)/downsample_bn", r"\1.\2.downsample.1"),
    )


def infer_resnet(
    shapes: Mapping[str, tuple[int, ...]], image_size: tuple[int, int], *, last_stride: int = 1
) -> ImageNetResNetConfig:
    """Sizes of a tower, from the names and shapes of its tensors.

    Args:
      shapes: by name, without a prefix.
      image_size: height and width of the images.
      last_stride: of the fourth stage.

    Raises:
      ValueError: no such network.
    """
    found = [re.fullmatch(r"layer([1-4])\.(\d+)\.conv3\.weight", name) for name in shapes]
    last = dict.fromkeys(range(1, 5), -1)
    for match in filter(None, found):
        stage, block = int(match[1]), int(match[2])
        last[stage] = max(last[stage], block)
    if min(last.values()) < 0 or len(shapes.get("conv1.weight", ())) != 4:
        raise ValueError(
            "this is no ResNet with bottlenecks (50, 101 or 152 layers): expected tensors such as "
            f"conv1.weight and layer4.0.conv3.weight, found e.g. {sorted(shapes)[:3]}"
        )
    return ImageNetResNetConfig(
        layers=tuple(block + 1 for block in last.values()),
        width=shapes["conv1.weight"][0],
        image_size=image_size,
        last_stride=last_stride,
        ibn="layer1.0.bn1.IN.weight" in shapes,
    )


def load_resnet(
    name: str | pathlib.Path,
    *,
    image_size: tuple[int, int],
    last_stride: int = 1,
    compute: Compute | None = None,
) -> ResNet:
    """Loads a tower.

    Args:
      name: a local directory with *.safetensors, or a Hub id, which is fetched.
      image_size: height and width of the images.
      last_stride: of the fourth stage: 1 for re-identification, 2 as published.
      compute: arithmetic. Half-precision tensors are raised to its parameter dtype.

    Raises:
      FileNotFoundError: on a missing directory or file, naming what to place where.
      ValueError: on a damaged file, or if tensors and parameters do not match one to one.
    """
    with TensorFiles(local_directory(name)) as tensors:
        shapes = {name: tensors.shape(name) for name in tensors}
        config = infer_resnet(shapes, image_size, last_stride=last_stride)
        return resnet_from_tensors(config, tensors, compute=compute)


def resnet_from_tensors(
    config: ImageNetResNetConfig,
    tensors: Mapping[str, np.ndarray],
    *,
    compute: Compute | None = None,
) -> ResNet:
    """Builds a tower from named tensors, in torch's axis order.

    Raises:
      ValueError: as `load_resnet`.
    """
    model = nnx.eval_shape(lambda: ResNet(config, compute=compute, rngs=nnx.Rngs(0)))
    fill(model, tensors, table=resnet_table(ibn=config.ibn), unused=UNUSED)
    return model
