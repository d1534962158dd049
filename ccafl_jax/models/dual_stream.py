"""Two streams over one trunk: visible and infrared images meet behind a stem of their own.

The stems are those of CLIP's towers: three convolutions of a ResNet, the patch embedding of a ViT.
Both begin as the one that was trained on visible images.

Source: CCLNet (Chen, Zhang, Tan, Wang, Qu), "Unveiling the power of CLIP in unsupervised
visible-infrared person re-identification"; ViTs have their patch embedding twice here, which the
published code does not know.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from ccafl_jax.models.clip.model import ImageTower

VISIBLE, INFRARED = 0, 1
MODALITIES = ("visible", "infrared")
"""By number, as data sets count them."""


class DualStream(nnx.Module):
    """An image tower whose own stem takes visible images, with another one for infrared images."""

    def __init__(self, trunk: ImageTower):
        """Args:
        trunk: a tower of CLIP; its stem is copied.
        """
        self.trunk = trunk
        graphdef, arrays = nnx.split(trunk.stem)
        # Of their own, so that either may be given away to a step.
        self.infrared = nnx.merge(graphdef, jax.tree.map(jnp.copy, arrays))
        self.config = trunk.config
        self.out_features = trunk.out_features
        self.compute = trunk.compute

    def encode(
        self,
        images: jax.Array,
        *,
        train: bool,
        modality: jax.Array | None = None,
        **options: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """`encode` of the trunk.

        Args:
          images: float[batch, height, width, 3], normalised.
          train: batch statistics instead of running ones: those of each stem are of its own
            images, those of the trunk of both.
          modality: int[batch], 0 visible and 1 infrared, in any order. None: the first half of the
            batch is visible and the second infrared, as in training.
          **options: of the trunk.

        Raises:
          ValueError: a modality of each image in training, or a batch that has no halves.
        """
        return self.trunk.encode(images, train=train, stem=self._stems(modality), **options)

    def encode_class(
        self,
        images: jax.Array,
        *,
        train: bool,
        modality: jax.Array | None = None,
        **options: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """`encode_class` of a ViT; see `encode`."""
        return self.trunk.encode_class(images, train=train, stem=self._stems(modality), **options)

    def project(self, last: jax.Array) -> jax.Array | None:
        """`project` of the trunk."""
        return self.trunk.project(last)

    def _stems(self, modality: jax.Array | None) -> Callable[..., jax.Array]:
        """What takes the place of the trunk's stem."""

        def halves(x: jax.Array, *, train: bool) -> jax.Array:
            half, odd = divmod(x.shape[0], 2)
            if odd:
                raise ValueError(
                    f"a batch of {x.shape[0]} images has no halves: give as many infrared images "
                    "as visible ones, or the modality of each"
                )
            visible = self.trunk.stem(x[:half], train=train)
            return jnp.concatenate([visible, self.infrared(x[half:], train=train)])

        def by_row(x: jax.Array, *, train: bool) -> jax.Array:
            if train:
                raise ValueError(
                    "statistics of a batch need visible images in its first half and infrared "
                    "ones in its second: leave modality out"
                )
            visible = self.trunk.stem(x, train=False)
            infrared = self.infrared(x, train=False)
            shape = (-1, *(1,) * (visible.ndim - 1))
            return jnp.where(modality.reshape(shape) == INFRARED, infrared, visible)

        return halves if modality is None else by_row
