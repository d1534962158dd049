"""The image towers that a re-identification model can have: CLIP's two kinds and ImageNet's."""

import dataclasses
from collections.abc import Mapping

import jax
from flax import nnx

from ccafl_jax.models.clip import config as clip
from ccafl_jax.models.clip import model as clip_model
from ccafl_jax.models.layers import Compute
from ccafl_jax.models.resnet import ImageNetResNetConfig, ResNet

TowerConfig = clip.VisionConfig | ImageNetResNetConfig
Tower = clip_model.ImageTower | ResNet
"""All share `encode`, `project`, `config`, `compute` and `out_features`."""

KINDS: dict[str, type] = {
    "resnet": clip.ResNetConfig,
    "vit": clip.ViTConfig,
    "imagenet_resnet": ImageNetResNetConfig,
}
"""By the name that descriptions of models use."""


def build_tower(
    config: TowerConfig,
    *,
    out_features: int,
    activation: str,
    compute: Compute | None = None,
    rngs: nnx.Rngs,
) -> Tower:
    """The image tower that a configuration describes, with random parameters.

    Args:
      config: sizes; its class tells the kind of tower.
      out_features: size of the joint space with texts, 0 where there is none.
      activation: of the blocks of a ViT; ResNets use ReLU.
      compute: arithmetic.
      rngs: random streams of the initial parameters.
    """
    if isinstance(config, ImageNetResNetConfig):
        return ResNet(config, compute=compute, rngs=rngs)
    return clip_model.build_tower(
        config, out_features=out_features, activation=activation, compute=compute, rngs=rngs
    )


def tower_to_json(config: TowerConfig) -> dict:
    """The sizes of an image tower and its kind, as JSON values."""
    kind = next(name for name, found in KINDS.items() if isinstance(config, found))
    sizes = dataclasses.asdict(config)
    return {"kind": kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in sizes.items()}


def tower_from_json(raw: Mapping) -> TowerConfig:
    """Inverse of :func:`tower_to_json`."""
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    kind = sizes.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"image tower of kind {kind!r}; known kinds are {sorted(KINDS)}")
    return KINDS[kind](**sizes)


def patch_map(visual: nnx.Module, images: jax.Array, **options: jax.Array) -> jax.Array:
    """The last feature map of a tower in evaluation mode: float[batch, rows, columns, channels].

    Args:
      visual: a tower, or one of two streams; the tokens of a ViT's patches become a map, without
        the class token.
      images: float[batch, height, width, 3], normalised.
      **options: of the tower's `encode`.
    """
    last = visual.encode(images, train=False, **options)[1]
    if isinstance(visual.config, clip.ViTConfig):
        return last[:, 1:].reshape(last.shape[0], *visual.config.grid, last.shape[-1])
    return last
