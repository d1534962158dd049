"""The re-identification model of CCAFL: CLIP's image tower, GeM and the BN neck."""

import jax
from flax import nnx

from ccafl_jax import numerics
from ccafl_jax.models.clip.resnet import ModifiedResNet
from ccafl_jax.models.layers import BatchNorm, BNNeck, GeM


class CLIPReID(nnx.Module):
    """Image tower with two heads: `f` for retrieval and `g` for comparison with texts.

    `f` is the L2-normalised BN neck of the generalised mean of the last map; `g` is CLIP's
    attention pool of the same map, not normalised. Parameters are `nnx.Param`, running statistics
    `nnx.BatchStat`; the neck's shift is fixed at 0 and therefore no parameter.
    """

    def __init__(self, visual: ModifiedResNet, *, bn_group: int = 0):
        """Args:
        visual: the image tower, e.g. `load_clip(...).visual`.
        bn_group: rows a group of batch normalisation in training, 0 for the whole batch.
        """
        dtype = visual.compute.param_dtype
        self.visual = visual
        self.gem = GeM(param_dtype=dtype)
        self.neck = BNNeck(visual.config.features, param_dtype=dtype)
        set_bn_group(self, bn_group)

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Both features.

        Args:
          images: float[batch, height, width, 3], normalised.
          train: batch statistics instead of running ones.

        Returns:
          `f`: float[batch, dim], L2-normalised, and `g`: float[batch, joint_dim].
        """
        feature_map = self.visual.maps(images, train=train)[1]
        f = numerics.l2_normalize(self.neck(self.gem(feature_map), train=train))
        return f, self.visual.project(feature_map)

    def embed(self, images: jax.Array) -> jax.Array:
        """Retrieval features in evaluation mode: float[batch, dim], L2-normalised."""
        return numerics.l2_normalize(self.neck(self.pooled(images), train=False))

    def pooled(self, images: jax.Array) -> jax.Array:
        """The generalised mean before the neck, in evaluation mode: float[batch, dim]."""
        return self.gem(self.visual.maps(images, train=False)[1])

    def image_features(self, images: jax.Array) -> jax.Array:
        """Features of the joint space in evaluation mode: float[batch, joint_dim]."""
        return self.visual(images, train=False)


def set_bn_group(model: nnx.Module, group: int) -> None:
    """Sets the rows a group of every batch normalisation in `model` (0: the whole batch)."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.group = group
