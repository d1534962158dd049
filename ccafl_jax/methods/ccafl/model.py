"""The image model of a run: a CLIP tower with the heads that the options ask for."""

import dataclasses

from flax import nnx

from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.models.clip import CLIP, ViTConfig
from ccafl_jax.models.reid import ReIDConfig, ReIDModel, default_heads


def image_model(clip: CLIP, config: CCAFLConfig, *, cameras: int) -> tuple[ReIDModel, ReIDConfig]:
    """The model and its sizes.

    Args:
      clip: whose image tower is used.
      config: options.
      cameras: of the data set, for the camera embedding.

    Raises:
      ValueError: a camera embedding is asked of a ResNet.
    """
    vision, options = clip.config.vision, config.model
    heads = default_heads(vision)
    if options.camera_embedding:
        if not isinstance(vision, ViTConfig):
            raise ValueError(
                "model.camera_embedding needs a ViT, whose class token it is added to; these "
                "weights are a ResNet's"
            )
        heads = dataclasses.replace(heads, cameras=cameras, camera_scale=options.camera_scale)
    model = ReIDModel(clip.visual, heads, bn_group=options.bn_group, rngs=nnx.Rngs(config.seed))
    sizes = ReIDConfig(
        vision=vision,
        embed_dim=clip.config.embed_dim,
        activation=clip.config.activation,
        heads=heads,
    )
    return model, sizes
