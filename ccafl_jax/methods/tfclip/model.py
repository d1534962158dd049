"""The video model of a run: CLIP's image tower with the parts that the options ask for."""

from flax import nnx

from ccafl_jax.methods.tfclip.config import TFCLIPConfig
from ccafl_jax.models.clip import CLIP, ViTConfig
from ccafl_jax.models.video import VideoConfig, VideoModel


def video_model(
    clip: CLIP, config: TFCLIPConfig, *, classes: int, cameras: int
) -> tuple[VideoModel, VideoConfig]:
    """The model and its sizes.

    Args:
      clip: whose image tower is used.
      config: options.
      classes: training identities.
      cameras: of the data set, for the camera embedding.

    Raises:
      ValueError: a camera embedding is asked of a ResNet, or heads divide no width.
    """
    options = config.model
    if options.camera_embedding and not isinstance(clip.config.vision, ViTConfig):
        raise ValueError(
            "model.camera_embedding needs a ViT, whose class token it is added to; these weights "
            "are a ResNet's: set it to False"
        )
    sizes = VideoConfig(
        vision=clip.config.vision,
        embed_dim=clip.config.embed_dim,
        activation=clip.config.activation,
        classes=classes,
        cameras=cameras if options.camera_embedding else 0,
        camera_scale=options.camera_scale,
        prompt=config.prompt.sizes() if config.loss.memory else None,
        diffusion=config.diffusion.enabled,
        diffusion_heads=config.diffusion.heads,
        feature=options.feature,
    )
    rngs = nnx.Rngs(config.seed)
    return VideoModel(clip.visual, sizes, remat_prompt=config.prompt.remat, rngs=rngs), sizes
