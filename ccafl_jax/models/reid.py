"""The re-identification model: an image tower, a pooling and the BN neck."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from ccafl_jax import numerics
from ccafl_jax.models.clip.config import ViTConfig
from ccafl_jax.models.layers import BatchNorm, BNNeck, Compute, GeM
from ccafl_jax.models.towers import (
    Tower,
    TowerConfig,
    build_tower,
    tower_from_json,
    tower_to_json,
)

POOLINGS = ("gem", "mean", "class_token")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """From the output of the image tower to the retrieval feature.

    Attributes:
      pooling: "gem" (generalised mean of the map), "mean" of the map, or "class_token" (ViT).
      joint: whether the feature of CLIP's joint space is appended to the pooled one.
      feature: retrieve by what leaves the BN neck ("neck") or by what enters it ("pooled").
      cameras: rows of the camera embedding that is added to the class token; 0 means none.
      camera_scale: factor of the camera embedding.
    """

    pooling: str = "gem"
    joint: bool = False
    feature: str = "neck"
    cameras: int = 0
    camera_scale: float = 1.0

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}; choose one of {POOLINGS}")
        if self.feature not in ("neck", "pooled"):
            raise ValueError(f"feature is {self.feature!r}; choose 'neck' or 'pooled'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReIDConfig:
    """All sizes of a re-identification model.

    Attributes:
      vision: the image tower.
      embed_dim: size of the joint space with texts; 0 where the tower has none, `g` is None then.
      activation: of the blocks of a ViT.
      heads: from the tower to the feature.
    """

    vision: TowerConfig
    embed_dim: int
    activation: str
    heads: HeadConfig

    @property
    def features(self) -> int:
        """Size of the retrieval feature."""
        return self.vision.features + (self.embed_dim if self.heads.joint else 0)

    @property
    def cameras(self) -> int:
        """Rows of the camera embedding; 0 where there is none."""
        return self.heads.cameras

    def to_json(self) -> dict:
        """As JSON values."""
        return {
            "vision": tower_to_json(self.vision),
            "embed_dim": self.embed_dim,
            "activation": self.activation,
            "heads": dataclasses.asdict(self.heads),
        }

    @classmethod
    def from_json(cls, raw: Mapping) -> "ReIDConfig":
        """Inverse of `to_json`."""
        return cls(
            vision=tower_from_json(raw["vision"]),
            embed_dim=raw["embed_dim"],
            activation=raw["activation"],
            heads=HeadConfig(**raw["heads"]),
        )


def default_heads(vision: TowerConfig) -> HeadConfig:
    """CCAFL's generalised mean for ResNets; CLIP-ReID's class token and projection for ViTs."""
    if isinstance(vision, ViTConfig):
        return HeadConfig(pooling="class_token", joint=True)
    return HeadConfig(pooling="gem")


class ReIDModel(nnx.Module):
    """Image tower with two heads: `f` for retrieval and `g` for comparison with texts.

    `g` is CLIP's feature of the joint space, not normalised. `f` is the L2-normalised BN neck of
    the pooled feature: of a ResNet the generalised mean of the last map (as in the code published
    for CCAFL), of a ViT the class token and `g` side by side (as CLIP-ReID retrieves). One neck
    covers both parts: batch normalisation goes by channel, so it equals a neck for each.
    Parameters are `nnx.Param`, running statistics `nnx.BatchStat`; the neck's shift is fixed at 0
    and therefore no parameter.
    """

    def __init__(
        self,
        visual: Tower,
        heads: HeadConfig | None = None,
        *,
        bn_group: int = 0,
        rngs: nnx.Rngs | None = None,
    ):
        """Args:
        visual: the image tower, e.g. `load_clip(...).visual`.
        heads: from the tower to the feature; None means `default_heads`.
        bn_group: rows a group of batch normalisation in training, 0 for the whole batch.
        rngs: random streams, needed by a camera embedding.

        Raises:
          ValueError: a head that the tower does not feed.
        """
        heads = heads or default_heads(visual.config)
        _check_heads(visual.config, heads)
        dtype = visual.compute.param_dtype
        features = visual.config.features
        self.visual = visual
        if heads.pooling == "gem":
            self.gem = GeM(param_dtype=dtype)
        if heads.cameras:
            self.camera_embedding = nnx.Param(
                0.02
                * jax.random.truncated_normal(
                    (rngs or nnx.Rngs(0)).params(), -2.0, 2.0, (heads.cameras, features), dtype
                )
            )
        joint = visual.out_features if heads.joint else 0
        self.neck = BNNeck(features + joint, param_dtype=dtype)
        self.heads = heads
        set_bn_group(self, bn_group)

    def __call__(
        self, images: jax.Array, cameras: jax.Array | None = None, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Both features.

        Args:
          images: float[batch, height, width, 3], normalised.
          cameras: int32[batch], counted from 0; only with a camera embedding.
          train: batch statistics instead of running ones.

        Returns:
          `f`: float[batch, dim], L2-normalised, and `g`: float[batch, joint_dim].
        """
        pooled, g = self._encode(images, cameras, train=train)
        return numerics.l2_normalize(self.neck(pooled, train=train)), g

    def embed(self, images: jax.Array, cameras: jax.Array | None = None) -> jax.Array:
        """Retrieval features in evaluation mode: float[batch, dim], L2-normalised."""
        feature = self.pooled(images, cameras)
        if self.heads.feature == "neck":
            feature = self.neck(feature, train=False)
        return numerics.l2_normalize(feature)

    def pooled(self, images: jax.Array, cameras: jax.Array | None = None) -> jax.Array:
        """The pooled feature before the neck, in evaluation mode: float[batch, dim]."""
        return self._encode(images, cameras, train=False)[0]

    def image_features(self, images: jax.Array) -> jax.Array:
        """Features of the joint space in evaluation mode, without cameras: [batch, joint_dim]."""
        return self.visual(images, train=False)

    def _encode(self, images, cameras, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """The pooled feature and `g`."""
        options = {}
        if self.heads.cameras:
            if cameras is None:
                raise ValueError(
                    "this model has a camera embedding: pass the camera of each image, "
                    f"0 to {self.heads.cameras - 1}"
                )
            offset = self.camera_embedding[...][cameras]
            options["class_offset"] = self.heads.camera_scale * offset
        vit = self.heads.pooling == "class_token"
        encode = self.visual.encode_class if vit else self.visual.encode
        last = encode(images, train=train, **options)[1]
        g = self.visual.project(last)
        if self.heads.pooling == "gem":
            pooled = self.gem(last)
        elif self.heads.pooling == "mean":
            pooled = jnp.mean(numerics.at_least_float32(last), axis=(1, 2))
        else:
            pooled = numerics.at_least_float32(last)
        if self.heads.joint:
            pooled = jnp.concatenate([pooled, g], axis=1)
        return pooled, g


def build_reid(
    config: ReIDConfig, *, compute: Compute | None = None, bn_group: int = 0
) -> ReIDModel:
    """The model that a configuration describes, with random parameters.

    Where only shapes are needed, wrap the call in `nnx.eval_shape`.
    """
    rngs = nnx.Rngs(0)
    visual = build_tower(
        config.vision,
        out_features=config.embed_dim,
        activation=config.activation,
        compute=compute,
        rngs=rngs,
    )
    return ReIDModel(visual, config.heads, bn_group=bn_group, rngs=rngs)


def set_bn_group(model: nnx.Module, group: int) -> None:
    """Sets the rows a group of every batch normalisation in `model` (0: the whole batch)."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.group = group


def _check_heads(vision: TowerConfig, heads: HeadConfig) -> None:
    if not isinstance(vision, ViTConfig):
        if heads.pooling == "class_token" or heads.cameras:
            raise ValueError(
                f"a ResNet has no class token (pooling {heads.pooling!r}, cameras "
                f"{heads.cameras}); choose pooling 'gem' or 'mean' and no camera embedding"
            )
    elif heads.pooling != "class_token":
        raise ValueError(f"pooling {heads.pooling!r} needs a map; a ViT takes 'class_token'")
