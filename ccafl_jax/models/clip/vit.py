"""CLIP's vision transformer, with overlapping patches and an offset of the class token.

Sources: Radford et al., "Learning transferable visual models from natural language supervision";
overlapping patches and the camera offset as in He et al., "TransReID", and in CLIP-ReID.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from ccafl_jax import numerics
from ccafl_jax.models.clip.config import ViTConfig
from ccafl_jax.models.clip.transformer import build_blocks
from ccafl_jax.models.layers import Compute, LayerNorm, apply_block


class PatchEmbedding(nnx.Module):
    """From images to embedded patches: a convolution without bias and padding."""

    def __init__(self, config: ViTConfig, *, compute: Compute, rngs: nnx.Rngs):
        """Args: sizes, arithmetic and random streams."""
        shape = (config.patch_size, config.patch_size, 3, config.width)
        kernel = jax.random.normal(rngs.params(), shape, jnp.dtype(compute.param_dtype))
        self.kernel = nnx.Param(kernel * jnp.asarray(config.width**-0.5, compute.param_dtype))
        self.config = config
        self.compute = compute

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps `[batch, h, w, 3]` to `[batch, patches, width]`; `train` has no effect."""
        kernel = self.kernel[...].astype(x.dtype)
        size, stride, (rows, columns) = self.config.patch_size, self.config.stride, self.config.grid
        batch, width = x.shape[0], kernel.shape[-1]
        precision = self.compute.products
        if stride == size:  # one matrix product
            x = x[:, : rows * size, : columns * size]
            x = x.reshape(batch, rows, size, columns, size, 3)
            x = jnp.einsum("brpcqi,pqiw->brcw", x, kernel, precision=precision)
        else:
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(stride, stride),
                padding="VALID",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=precision,
            )
        return x.reshape(batch, rows * columns, width)


class VisionTransformer(nnx.Module):
    """The image tower."""

    def __init__(
        self,
        config: ViTConfig,
        *,
        out_features: int,
        activation: str,
        compute: Compute | None = None,
        rngs: nnx.Rngs,
    ):
        """Args:
        config: sizes.
        out_features: size of the joint space.
        activation: "quick_gelu" or "gelu".
        compute: arithmetic.
        rngs: random streams of the initial parameters.
        """
        compute = compute or Compute()
        width, dtype = config.width, compute.param_dtype

        def normal(*shape):
            value = jax.random.normal(rngs.params(), shape, jnp.dtype(dtype))
            return nnx.Param(value * jnp.asarray(width**-0.5, dtype))

        self.stem = PatchEmbedding(config, compute=compute, rngs=rngs)
        self.class_embedding = normal(width)
        self.positional_embedding = normal(1 + config.grid[0] * config.grid[1], width)
        self.ln_pre = LayerNorm(width, param_dtype=compute.param_dtype)
        self.blocks = build_blocks(
            config, activation=activation, causal=False, compute=compute, rngs=rngs
        )
        self.ln_post = LayerNorm(width, param_dtype=compute.param_dtype)
        self.proj = normal(width, out_features)
        self.config = config
        self.out_features = out_features
        self.compute = compute

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Image features of the joint space, not normalised.

        Args:
          images: float[batch, height, width, 3], normalised.
          train: no effect; this tower has no batch statistics.

        Returns:
          float[batch, out_features], float32 at least.
        """
        return self.project(self.encode_class(images, train=train)[1])

    def encode(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        class_offset: jax.Array | None = None,
        stem: Callable[..., jax.Array] | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens of the last but one and of the last block, the class token first.

        Args:
          images: float[batch, height, width, 3], normalised.
          train: no effect; this tower has no batch statistics.
          class_offset: float[batch, width], added to the class token before its position, as
            CLIP-ReID's camera embedding is; None adds nothing.
          stem: what to run in place of the tower's own; see `PatchEmbedding`.

        Returns:
          Two float[batch, 1 + patches, width] in the activation dtype: what leaves the last block
          but one (block 11 of 12) as it is, and what leaves the last block after `ln_post`.

        Raises:
          ValueError: if the images are not of the size that the positions were made for.
        """
        x = self._all_but_the_last_block(images, train, class_offset, stem)
        return x, self.ln_post(apply_block(self.blocks[-1], x))

    def encode_class(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        class_offset: jax.Array | None = None,
        stem: Callable[..., jax.Array] | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The class tokens of `encode`: two float[batch, width].

        Of the last block's tokens no other is computed.
        """
        x = self._all_but_the_last_block(images, train, class_offset, stem)
        return x[:, 0], self.ln_post(apply_block(self.blocks[-1], x, method="first"))

    def _all_but_the_last_block(self, images, train, class_offset, stem):
        if images.shape[1:3] != tuple(self.config.image_size):
            raise ValueError(
                f"image tower got {images.shape[1]}x{images.shape[2]} images, its positions are "
                f"for {self.config.image_size[0]}x{self.config.image_size[1]}; build the model "
                "with the size of its images"
            )
        dtype = self.compute.activations
        token = self.class_embedding[...]
        first = token[None] if class_offset is None else token + class_offset
        patches = (stem or self.stem)(images.astype(dtype), train=train)
        first = jnp.broadcast_to(first.astype(dtype)[:, None], (images.shape[0], 1, token.shape[0]))
        x = jnp.concatenate([first, patches], axis=1)
        x = x + self.positional_embedding[...].astype(dtype)
        x = self.ln_pre(x)
        for block in self.blocks[:-1]:
            x = apply_block(block, x)
        return x

    def project(self, tokens: jax.Array) -> jax.Array:
        """Projects tokens to the joint space: `[..., width]` to float32 `[..., out_features]`."""
        dtype = self.compute.activations
        kernel = self.proj[...].astype(dtype)
        feature = jnp.matmul(tokens.astype(dtype), kernel, precision=self.compute.products)
        return numerics.at_least_float32(feature)
