"""The image model of a run: an ImageNet ResNet or a CLIP tower, with a pooling and the BN neck."""

import logging

import jax.numpy as jnp
from flax import nnx

from ccafl_jax.methods.calr.config import CALRConfig
from ccafl_jax.methods.files import weights_directory
from ccafl_jax.models.clip import ViTConfig, load_clip
from ccafl_jax.models.layers import Compute
from ccafl_jax.models.named_tensors import variables_by_path
from ccafl_jax.models.reid import HeadConfig, ReIDConfig, ReIDModel, default_heads
from ccafl_jax.models.resnet_weights import load_resnet
from ccafl_jax.models.tensor_files import TensorFiles
from ccafl_jax.models.towers import Tower, build_tower

log = logging.getLogger("ccafl_jax")


def image_model(config: CALRConfig) -> tuple[ReIDModel, ReIDConfig]:
    """The model and its sizes.

    Raises:
      FileNotFoundError, ValueError: there are no such weights, or they fit no model.
    """
    directory = weights_directory(
        config.model.weights, "a ResNet of ImageNet (torchvision, timm, IBN-Net) or of a CLIP"
    )
    size = config.data.height, config.data.width
    compute = Compute(dtype=jnp.dtype(config.model.compute_dtype), remat=config.model.remat)
    last_stride, activation = config.model.last_stride, ""
    with TensorFiles(directory) as tensors:
        of_imagenet = "layer1.0.conv1.weight" in tensors
    if of_imagenet:
        options = {"image_size": size, "last_stride": last_stride, "compute": compute}
        tower: Tower = load_resnet(directory, **options)
    else:
        clip = load_clip(directory, image_size=size, last_stride=last_stride, compute=compute)
        tower, activation = clip.visual, clip.config.activation
        if isinstance(tower.config, ViTConfig) and last_stride != 1:
            raise ValueError(
                "model.last_stride is for ResNets and these weights are a ViT's; drop it"
            )
    log.info("weights: %s, %s", directory, tower.config)
    if isinstance(tower.config, ViTConfig):
        heads = default_heads(tower.config)
    else:
        heads = HeadConfig(pooling=config.model.pooling)
        tower = _without_joint_space(tower, activation)
    model = ReIDModel(tower, heads, bn_group=config.model.bn_group, rngs=nnx.Rngs(config.seed))
    sizes = ReIDConfig(
        vision=tower.config, embed_dim=tower.out_features, activation=activation, heads=heads
    )
    return model, sizes


def _without_joint_space(tower: Tower, activation: str) -> Tower:
    """A ResNet without the attention pool that leads to the joint space with texts."""
    if not tower.out_features:
        return tower

    def build() -> Tower:
        return build_tower(
            tower.config,
            out_features=0,
            activation=activation,
            compute=tower.compute,
            rngs=nnx.Rngs(0),
        )

    bare, values = nnx.eval_shape(build), variables_by_path(tower)
    for path, variable in variables_by_path(bare).items():
        variable.set_value(values[path].get_value())
    return bare
