"""Sizes of the models of CLIP-ReID, CCAFL, CALR, TF-CLIP and CCLNet, told from names and shapes.

What names and shapes do not say (the input size, the factor of the camera embedding) is asked for,
and nothing is guessed where two answers fit.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ccafl_jax.data.augment import IMAGENET_MEAN, IMAGENET_STD
from ccafl_jax.models.clip.config import ACTIVATIONS, ResNetConfig, VisionConfig, ViTConfig
from ccafl_jax.models.reid import HeadConfig, ReIDConfig
from ccafl_jax.models.resnet_weights import SEQUENTIAL, infer_resnet
from ccafl_jax.models.temporal import PromptSizes
from ccafl_jax.models.video import VideoConfig
from ccafl_jax.training.description import ModelConfig, Preprocess

TOWER = "image_encoder."
TRUNK = "base_resnet.base."
"""Of CCLNet's models: the tower whose stages both modalities share."""
CAMERA_SCALE = 1.0
"""Factor of the camera embedding.

Source: the training command and the person configurations that CLIP-ReID publishes. The default
of its code, 3.0, is not what they use.
"""
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
COMMON_SIZES = ((256, 128), (384, 128), (384, 192), (224, 224), (256, 256))

_HEAD_WIDTH = 64  # of every ViT that OpenAI published


def infer_reid_config(
    tensors: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    *,
    stride: int | None = None,
    heads: int | None = None,
    feature: str | None = None,
    activation: str | None = None,
    camera_scale: float | None = None,
) -> ReIDConfig:
    """Sizes of a published model, from the names and shapes of its tensors.

    Args:
      tensors: by published name, without a prefix.
      image_size: height and width that the model was trained with.
      stride: of a ResNet's fourth stage (1 or 2) or of a ViT's patches, in pixels; None finds the
        one whose grid has as many positions as the checkpoint.
      heads: attention heads of a ViT; None means one for 64 channels, as in all of OpenAI's.
      feature: retrieve by what leaves the BN neck ("neck") or by what enters it ("pooled"); None
        means as published: "neck" for CCAFL, "pooled" for CLIP-ReID.
      activation: of a ViT's blocks; None means "quick_gelu", as published models start from
        OpenAI's.
      camera_scale: factor of the camera embedding; None means `CAMERA_SCALE`.

    Raises:
      ValueError: no such model, a tensor that tells a size is missing, no stride fits, several do
        and `stride` is not given, or an option that this kind of model does not have.

    Source: CLIP-ReID (evaluation with the features before the neck, `[feature, projection]`) and
      the codes published for CCAFL (GeM and one neck), CALR (a ResNet of ImageNet) and CCLNet
      (a stem for each modality).
    """
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"activation is {activation!r}; choose one of {ACTIVATIONS}")
    others = {"CALR": _infer_calr, "CCLNet": _infer_cclnet}.get(published_as(tensors))
    if others:
        return others(
            tensors,
            image_size,
            stride=stride,
            feature=feature,
            heads=heads,
            activation=activation,
            camera_scale=camera_scale,
        )
    if any(name.startswith(f"{TOWER}layer") for name in tensors):
        if heads is not None:
            raise ValueError("the image tower is a ResNet, without heads to choose; drop --heads")
        if activation is not None:
            raise ValueError(
                "the image tower is a ResNet, without an activation to choose; drop --activation"
            )
        vision = _infer_resnet(tensors, image_size, stride)
        embed_dim = _shape(tensors, f"{TOWER}attnpool.c_proj.bias", 1)[0]
        pooling = _resnet_pooling(tensors)
        cameras = 0
    elif any(name.startswith(f"{TOWER}transformer.") for name in tensors):
        vision = _infer_vit(tensors, image_size, stride, heads)
        embed_dim = _shape(tensors, "bottleneck_proj.weight", 1)[0]
        pooling = "class_token"
        cameras = _shape(tensors, "cv_embed", 2)[0] if "cv_embed" in tensors else 0
    else:
        raise ValueError(_no_tower(tensors))
    if camera_scale is not None and not cameras:
        raise ValueError("there is no camera embedding (cv_embed) to scale; drop --camera-scale")
    head_config = HeadConfig(
        pooling=pooling,
        joint=pooling != "gem",
        feature=feature or ("neck" if published_as(tensors) == "CCAFL" else "pooled"),
        cameras=cameras,
        camera_scale=CAMERA_SCALE if camera_scale is None else camera_scale,
    )
    return ReIDConfig(
        vision=vision,
        embed_dim=embed_dim,
        activation=activation or "quick_gelu",
        heads=head_config,
    )


def infer_video_config(
    tensors: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    *,
    stride: int | None = None,
    heads: int | None = None,
    feature: str | None = None,
    activation: str | None = None,
    camera_scale: float | None = None,
) -> VideoConfig:
    """Sizes of a model published with TF-CLIP; see `infer_reid_config` for all arguments.

    The release has a ViT, heads of 64 channels everywhere, and retrieves before the necks.

    Raises:
      ValueError: as `infer_reid_config`.
    """
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"activation is {activation!r}; choose one of {ACTIVATIONS}")
    joint = _shape(tensors, "bottleneck_proj.weight", 1)[0]
    layers = _count(tensors, r"SSP\.decoder\.(\d+)\..*")
    among = any(name.startswith("SSP.decoder.0.self_attn.") for name in tensors)
    cameras = _shape(tensors, "cv_embed", 2)[0] if "cv_embed" in tensors else 0
    if camera_scale is not None and not cameras:
        raise ValueError("there is no camera embedding (cv_embed) to scale; drop --camera-scale")
    return VideoConfig(
        vision=_infer_vit(tensors, image_size, stride, heads),
        embed_dim=joint,
        activation=activation or "quick_gelu",
        classes=_shape(tensors, "classifier_proj.weight", 2)[0],
        cameras=cameras,
        camera_scale=CAMERA_SCALE if camera_scale is None else camera_scale,
        prompt=PromptSizes(layers=layers, layout="code" if among else "paper"),
        feature=feature or "pooled",
    )


def published_as(tensors: Mapping[str, np.ndarray]) -> str:
    """Whose model it is.

    CALR's tower is a sequence, CCLNet has a stem for infrared images, TF-CLIP its diffusion, and of
    the others CCAFL's has `gap.p`.
    """
    if any(name.startswith("thermal_module.") for name in tensors):
        return "CCLNet"
    if any(name.startswith("TMD.") for name in tensors):
        return "TF-CLIP"
    if f"{SEQUENTIAL['conv1']}.weight" in tensors:
        return "CALR"
    return "CCAFL" if "gap.p" in tensors else "CLIP-ReID"


def default_preprocess(
    config: ModelConfig,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Preprocess:
    """From images to the model's input, as published unless `mean` or `std` say otherwise.

    Raises:
      ValueError: other than three numbers, or numbers that are not on the scale of 0..1.
    """
    of_clip_reid = isinstance(config.vision, ViTConfig) and not isinstance(config, VideoConfig)
    usual = HALF if of_clip_reid else IMAGENET
    mean, std = (tuple(y if x is None else x) for x, y in zip((mean, std), usual, strict=True))
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"mean {mean} and std {std}: state three numbers each")
    if not (all(0 <= x <= 1 for x in mean) and all(0 < x <= 1 for x in std)):
        raise ValueError(
            f"mean {mean} and std {std}: colours are scaled to 0..1, so mean lies in 0..1 and std "
            "above 0 and up to 1; divide numbers made for 0..255 by 255"
        )
    return Preprocess(*config.vision.image_size, mean=mean, std=std, filter=_filter(config))


def _filter(config: ModelConfig) -> str:
    """PIL's filter with which the published code resizes."""
    if isinstance(config, VideoConfig):
        return "bilinear"
    return "lanczos" if config.dual_stream else "bicubic"


def _infer_calr(
    tensors: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    *,
    stride: int | None,
    feature: str | None,
    **others: object,
) -> ReIDConfig:
    for name, value in others.items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"the image tower is a ResNet of ImageNet; drop {option}")
    shapes = {name: np.shape(tensors[name]) for name in tensors}
    vision = infer_resnet(shapes, image_size, last_stride=stride or 1, parts=SEQUENTIAL)
    pooling = "gem" if "gap.p" in tensors else "mean"
    heads = HeadConfig(pooling=pooling, feature=feature or "neck")
    return ReIDConfig(vision=vision, embed_dim=0, activation="", heads=heads)


def _infer_cclnet(
    tensors: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    *,
    stride: int | None,
    feature: str | None,
    **others: object,
) -> ReIDConfig:
    for name, value in others.items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"the image tower is a ResNet with two stems; drop {option}")
    return ReIDConfig(
        vision=_infer_resnet(tensors, image_size, stride, tower=TRUNK),
        embed_dim=_shape(tensors, f"{TRUNK}attnpool.c_proj.bias", 1)[0],
        activation="quick_gelu",
        heads=HeadConfig(pooling="cubic", feature=feature or "neck"),
        dual_stream=True,
    )


def _infer_resnet(
    tensors: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    stride: int | None,
    *,
    tower: str = TOWER,
) -> ResNetConfig:
    prefix = re.escape(tower)
    base = ResNetConfig(
        layers=tuple(_count(tensors, rf"{prefix}layer{stage}\.(\d+)\..*") for stage in range(1, 5)),
        width=_shape(tensors, f"{tower}layer1.0.bn1.weight", 1)[0],
        image_size=(32, 32),
    )
    table = f"{tower}attnpool.positional_embedding"
    rows = _shape(tensors, table, 2)[0]
    return _with_stride(base, "last_stride", (1, 2), image_size, stride, table, rows)


def _resnet_pooling(tensors: Mapping[str, np.ndarray]) -> str:
    if "gap.p" in tensors:
        return "gem"
    counter = "bottleneck_proj.num_batches_tracked"
    if counter in tensors and not np.any(tensors[counter]):
        raise ValueError(
            "tensor gap.p is missing: without it this is a CLIP-ReID ResNet, but the neck of the "
            f"projection was never trained ({counter} is 0), which is so only in CCAFL"
        )
    return "mean"


def _infer_vit(
    tensors: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    stride: int | None,
    heads: int | None,
) -> ViTConfig:
    if heads is not None and heads < 1:
        raise ValueError(f"heads is {heads}; pass --heads of 1 or more, or leave it out")
    width = _shape(tensors, f"{TOWER}class_embedding", 1)[0]
    if heads is None and width % _HEAD_WIDTH:
        raise ValueError(
            f"the width of the image tower, {width}, is no multiple of {_HEAD_WIDTH}, so its "
            "number of heads cannot be told: pass --heads"
        )
    patch = _shape(tensors, f"{TOWER}conv1.weight", 4)[-1]
    base = ViTConfig(
        layers=_count(tensors, rf"{TOWER}transformer\.resblocks\.(\d+)\..*"),
        width=width,
        heads=heads or width // _HEAD_WIDTH,
        mlp_width=_shape(tensors, f"{TOWER}transformer.resblocks.0.mlp.c_fc.bias", 1)[0],
        patch_size=patch,
        image_size=(patch, patch),
        stride=patch,
    )
    table = f"{TOWER}positional_embedding"
    rows = _shape(tensors, table, 2)[0]
    return _with_stride(base, "stride", range(1, patch + 1), image_size, stride, table, rows)


def _with_stride(
    base: VisionConfig,
    field: str,
    strides: Sequence[int],
    image_size: tuple[int, int],
    stride: int | None,
    table: str,
    rows: int,
) -> VisionConfig:
    """The tower for images of a size, with the stride whose grid fits a table of positions."""
    fit = _fitting(base, field, strides, rows - 1)
    found = fit(image_size)
    if stride is None and len(found) == 1:
        stride = found[0]
    if stride in found:
        return dataclasses.replace(base, image_size=image_size, **{field: stride})
    what = f"tensor {table} has {rows} rows, so {rows - 1} positions"
    size = "x".join(map(str, image_size))
    if found and stride is None:
        raise ValueError(f"{what}; at {size} strides {found} all give that many: pass --stride")
    if found:
        raise ValueError(f"{what}; at {size} stride {stride} does not give them, {found} does")
    others = [
        f"--image-size {height} {width} (stride {other})"
        for height, width in COMMON_SIZES
        for other in fit((height, width))
        if stride in (None, other)
    ]
    hint = f"try {' or '.join(others[:3])}" if others else "no common size does"
    with_stride = "no stride gives" if stride is None else f"stride {stride} does not give"
    raise ValueError(
        f"{what}; {with_stride} them at {size} ({hint}): pass the --image-size HEIGHT WIDTH that "
        "the model was trained with"
    )


def _fitting(
    base: VisionConfig, field: str, strides: Sequence[int], positions: int
) -> Callable[[tuple[int, int]], list[int]]:
    """For an image size: the strides that give a number of positions."""

    def fit(image_size: tuple[int, int]) -> list[int]:
        found = []
        for stride in strides:
            try:
                vision = dataclasses.replace(base, image_size=image_size, **{field: stride})
            except ValueError:  # a size that this stride does not divide, or below a patch
                continue
            if min(image_size) > 0 and math.prod(vision.grid) == positions:
                found.append(stride)
        return found

    return fit


def _shape(tensors: Mapping[str, np.ndarray], name: str, axes: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(
            f"tensor {name} is missing, which tells the sizes of the model; pass the whole "
            "checkpoint of a trained CLIP-ReID, CCAFL, CALR, TF-CLIP or CCLNet model"
        )
    shape = np.shape(tensors[name])
    if len(shape) != axes:
        raise ValueError(f"tensor {name} has shape {list(shape)}, expected {axes} axes")
    return shape


def _count(tensors: Mapping[str, np.ndarray], pattern: str) -> int:
    """One more than the highest number that a pattern finds in the names."""
    found = [re.fullmatch(pattern, name) for name in tensors]
    return max((int(match[1]) for match in found if match), default=-1) + 1


def _no_tower(tensors: Mapping[str, np.ndarray]) -> str:
    if {"visual.conv1.weight", "bottleneck.weight"} <= set(tensors):
        return (
            "this is an export of this library, which needs no conversion: open the folder it lies "
            "in, with its manifest.json, by ccafl_jax.load"
        )
    if any(name.startswith(("visual.", "vision_model.")) for name in tensors):
        return (
            "this is a CLIP, not a trained re-identification model: turn it into safetensors "
            "with --to-safetensors FILE and train from it"
        )
    return (
        f"no tensor is named {TOWER}*, but e.g. {sorted(tensors)[:3]}; expected a trained "
        "CLIP-ReID, CCAFL, CALR, TF-CLIP or CCLNet model"
    )
