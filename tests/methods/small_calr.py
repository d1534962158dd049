"""A CALR run on random images that takes seconds: for what does not depend on learning anything."""

import dataclasses

from flax import nnx

from ccafl_jax.data.augment import AugmentConfig
from ccafl_jax.methods.calr.config import (
    AlignmentConfig,
    CALRConfig,
    ContrastConfig,
    LocalConfig,
    ModelConfig,
    OptimizerConfig,
    SamplerConfig,
    ScheduleConfig,
)
from ccafl_jax.methods.calr.run import Run
from ccafl_jax.methods.options import DataConfig, EvaluationConfig
from ccafl_jax.models.reid import HeadConfig, ReIDConfig, ReIDModel
from ccafl_jax.models.resnet import ImageNetResNetConfig, ResNet
from tests.methods.small_run import small_dataset, small_images

SMALL = CALRConfig(
    devices=1,
    data=DataConfig(height=32, width=16),
    augment=AugmentConfig(pad=2),
    model=ModelConfig(),
    local=LocalConfig(epochs=2, iterations=2, classes=4, images=2),
    contrast=ContrastConfig(weights_from=2),
    alignment=AlignmentConfig(epochs=1, hidden=8),
    sampler=SamplerConfig(classes=4, images=4),
    optimizer=OptimizerConfig(base_lr=3e-4, milestones=(2,)),
    schedule=ScheduleConfig(epochs=3, iterations=2),
    evaluation=EvaluationConfig(every=0, batch=32),
)


def small_model(config=SMALL):
    """A random network of the smallest sizes, and its sizes."""
    vision = ImageNetResNetConfig(
        layers=(1, 1, 1, 1),
        width=2,
        image_size=(config.data.height, config.data.width),
        last_stride=config.model.last_stride,
        ibn=True,
    )
    heads = HeadConfig(pooling=config.model.pooling)
    model = ReIDModel(ResNet(vision, rngs=nnx.Rngs(0)), heads, bn_group=config.model.bn_group)
    return model, ReIDConfig(vision=vision, embed_dim=0, activation="", heads=heads)


def small_calr(workdir, config=SMALL, *, kind=Run, **changes):
    """A `Run`; `changes` replace fields of the configuration."""
    config = dataclasses.replace(config, **changes)
    dataset = small_dataset()
    model, sizes = small_model(config)
    return kind(
        config,
        dataset=dataset,
        images=small_images(dataset, config.data),
        model=model,
        model_config=sizes,
        workdir=workdir,
    )
