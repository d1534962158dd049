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


TORCHVISION = {part: part for part in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")}
"""What the parts of a tower are called by torchvision, timm and IBN-Net."""

SEQUENTIAL = {
    "conv1": "base.0",
    "bn1": "base.1",
    "layer1": "base.4",
    "layer2": "base.5",
    "layer3": "base.6",
    "layer4": "base.7",
}
"""Likewise in models published with CALR, where activations and pools take numbers too."""


def resnet_table(*, ibn: bool, parts: Mapping[str, str] = TORCHVISION) -> Table:
    """Names of a tower's parameters in files.

    Args:
      ibn: whether the first normalisation of the blocks of the first three stages is IBN's.
      parts: what the file calls the stem and the stages.
    """
    table = [
        row(r"conv1/kernel", f"{parts['conv1']}.weight", CONV),
        *batch_norm(r"bn1", parts["bn1"]),
    ]
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        block, name = rf"{stage}/(\d+)", rf"{parts[stage]}.\1"
        if ibn and stage != "layer4":
            table += affine(rf"{block}/bn1", rf"{name}.bn1.IN")
            table += batch_norm(rf"{block}/bn1/batch", rf"{name}.bn1.BN")
        table += [
            row(rf"{block}/(conv\d)/kernel", rf"{name}.\2.weight", CONV),
            *batch_norm(rf"{block}/(bn\d)", rf"{name}.\2"),
            row(rf"{block}/downsample_conv/kernel", rf"{name}.downsample.0.weight", CONV),
            *batch_norm(rf"{block}/downsample_bn", rf"{name}.downsample.1"),
        ]
    return tuple(table)


def infer_resnet(
    shapes: Mapping[str, tuple[int, ...]],
    image_size: tuple[int, int],
    *,
    last_stride: int = 1,
    parts: Mapping[str, str] = TORCHVISION,
) -> ImageNetResNetConfig:
    """Sizes of a tower, from the names and shapes of its tensors.

    Args:
      shapes: by name, without a prefix.
      image_size: height and width of the images.
      last_stride: of the fourth stage.
      parts: what the file calls the stem and the stages.

    Raises:
      ValueError: no such network.
    """
    stem, stages = f"{parts['conv1']}.weight", [parts[f"layer{stage}"] for stage in range(1, 5)]

    def blocks(stage: str) -> int:
        found = [re.fullmatch(rf"{re.escape(stage)}\.(\d+)\.conv3\.weight", x) for x in shapes]
        return max((int(match[1]) for match in found if match), default=-1) + 1

    layers = tuple(map(blocks, stages))
    if min(layers) < 1 or len(shapes.get(stem, ())) != 4:
        raise ValueError(
            "this is no ResNet with bottlenecks (50, 101 or 152 layers): expected tensors such as "
            f"{stem} and {stages[3]}.0.conv3.weight, found e.g. {sorted(shapes)[:3]}"
        )
    return ImageNetResNetConfig(
        layers=layers,
        width=shapes[stem][0],
        image_size=image_size,
        last_stride=last_stride,
        ibn=f"{stages[0]}.0.bn1.IN.weight" in shapes,
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
