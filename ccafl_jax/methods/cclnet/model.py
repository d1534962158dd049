"""The image model of a run: a CLIP tower with a stem for each modality."""

from flax import nnx

from ccafl_jax.models.clip import CLIP, ViTConfig
from ccafl_jax.models.dual_stream import DualStream
from ccafl_jax.models.reid import HeadConfig, ReIDConfig, ReIDModel, default_heads


def image_model(clip: CLIP, *, seed: int) -> tuple[ReIDModel, ReIDConfig]:
    """The model and its sizes.

    Args:
      clip: whose image tower is used.
      seed: of random parameters.
    """
    vision = clip.config.vision
    vit = isinstance(vision, ViTConfig)
    heads = default_heads(vision) if vit else HeadConfig(pooling="cubic")
    model = ReIDModel(DualStream(clip.visual), heads, rngs=nnx.Rngs(seed))
    sizes = ReIDConfig(
        vision=vision,
        embed_dim=clip.config.embed_dim,
        activation=clip.config.activation,
        heads=heads,
        dual_stream=True,
    )
    return model, sizes
