"""The re-identification model: an image tower, a pooling and the BN neck."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from ccafl_jax import numerics
from ccafl_jax.models.clip.config import ViTConfig
from ccafl_jax.models.dual_stream import MODALITIES, DualStream
from ccafl_jax.models.layers import BatchNorm, BNNeck, Compute, GeM, cubic_mean
from ccafl_jax.models.towers import (
    Tower,
    TowerConfig,
    build_tower,
    patch_map,
    tower_from_json,
    tower_to_json,
)

POOLINGS = ("gem", "cubic", "mean", "class_token")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """From the output of the image tower to the retrieval feature.

    Attributes:
      pooling: "gem" (generalised mean of the map), "cubic" (the same with a fixed exponent of 3),
        "mean" of the map, or "class_token" (ViT).
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
      dual_stream: whether visible and infrared images have a stem each; see `DualStream`.
    """

    vision: TowerConfig
    embed_dim: int
    activation: str
    heads: HeadConfig
    dual_stream: bool = False

    @property
    def features(self) -> int:
        """Size of the retrieval feature."""
        return self.vision.features + (self.embed_dim if self.heads.joint else 0)

    @property
    def cameras(self) -> int:
        """Rows of the camera embedding; 0 where there is none."""
        return self.heads.cameras

    @property
    def kinds(self) -> int:
        """Kinds of images that the model tells apart: cameras, or modalities; 0 for none."""
        return len(MODALITIES) if self.dual_stream else self.cameras

    def to_json(self) -> dict:
        """As JSON values."""
        return {
            "vision": tower_to_json(self.vision),
            "embed_dim": self.embed_dim,
            "activation": self.activation,
            "heads": dataclasses.asdict(self.heads),
            "dual_stream": self.dual_stream,
        }

    @classmethod
    def from_json(cls, raw: Mapping) -> "ReIDConfig":
        """Inverse of `to_json`."""
        return cls(
            vision=tower_from_json(raw["vision"]),
            embed_dim=raw["embed_dim"],
            activation=raw["activation"],
            heads=HeadConfig(**raw["heads"]),
            dual_stream=raw["dual_stream"],
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

    Methods take the kind of each image where the model tells kinds apart: with a camera embedding
    its camera, with two streams its modality.
    """

    def __init__(
        self,
        visual: Tower | DualStream,
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
        if heads.cameras and isinstance(visual, DualStream):
            raise ValueError("a model of two streams takes no camera embedding; leave cameras at 0")
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

    @property
    def kinds(self) -> int:
        """See `ReIDConfig.kinds`."""
        dual = isinstance(self.visual, DualStream)
        return len(MODALITIES) if dual else self.heads.cameras

    def __call__(
        self, images: jax.Array, kind: jax.Array | None = None, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Both features.

        Args:
          images: float[batch, height, width, 3], normalised.
          kind: int32[batch], from 0: cameras of a model with a camera embedding. With two streams
            None, as a batch has visible images in its first half and infrared ones in its second.
          train: batch statistics instead of running ones.

        Returns:
          `f`: float[batch, dim], L2-normalised, and `g`: float[batch, joint_dim].
        """
        pooled, g = self._encode(images, kind, train=train)
        return numerics.l2_normalize(self.neck(pooled, train=train)), g

    def embed(self, images: jax.Array, kind: jax.Array | None = None) -> jax.Array:
        """Retrieval features in evaluation mode: float[batch, dim], L2-normalised."""
        feature = self.pooled(images, kind)
        if self.heads.feature == "neck":
            feature = self.neck(feature, train=False)
        return numerics.l2_normalize(feature)

    def pooled(self, images: jax.Array, kind: jax.Array | None = None) -> jax.Array:
        """The pooled feature before the neck, in evaluation mode: float[batch, dim]."""
        return self._encode(images, kind, train=False)[0]

    def image_features(self, images: jax.Array, modality: jax.Array | None = None) -> jax.Array:
        """Features of the joint space in evaluation mode, without cameras: [batch, joint_dim]."""
        options = {} if modality is None else {"modality": modality}
        return self.visual.project(self._last(images, train=False, **options))

    def last_map(self, images: jax.Array, kind: jax.Array | None = None) -> jax.Array:
        """What the tower sees where, in evaluation mode: float[batch, rows, columns, channels].

        Of a ResNet the last map, of a ViT the last tokens of the patches.
        """
        return patch_map(self.visual, images, **self._kind_options(kind))

    def _encode(self, images, kind, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """The pooled feature and `g`."""
        last = self._last(images, train=train, **self._kind_options(kind))
        g = self.visual.project(last)
        if self.heads.pooling == "gem":
            pooled = self.gem(last)
        elif self.heads.pooling == "cubic":
            pooled = cubic_mean(last)
        elif self.heads.pooling == "mean":
            pooled = jnp.mean(numerics.at_least_float32(last), axis=(1, 2))
        else:
            pooled = numerics.at_least_float32(last)
        if self.heads.joint:
            pooled = jnp.concatenate([pooled, g], axis=1)
        return pooled, g

    def _kind_options(self, kind) -> dict[str, jax.Array]:
        """What the tower is told of each image."""
        options = {}
        if self.heads.cameras:
            if kind is None:
                raise ValueError(
                    "this model has a camera embedding: pass the camera of each image, "
                    f"0 to {self.heads.cameras - 1}"
                )
            offset = self.camera_embedding[...][kind]
            options["class_offset"] = self.heads.camera_scale * offset
        elif isinstance(self.visual, DualStream):
            options["modality"] = kind
        return options

    def _last(self, images, *, train: bool, **options) -> jax.Array:
        """What leaves the tower: a map, or the class token of a ViT."""
        vit = isinstance(self.visual.config, ViTConfig)
        encode = self.visual.encode_class if vit else self.visual.encode
        return encode(images, train=train, **options)[1]


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
    if config.dual_stream:
        visual = DualStream(visual)
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
                f"{heads.cameras}); choose pooling 'gem', 'cubic' or 'mean' and no camera embedding"
            )
    elif heads.pooling != "class_token":
        raise ValueError(f"pooling {heads.pooling!r} needs a map; a ViT takes 'class_token'")
