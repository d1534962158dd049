"""Tiny models with random arrays, and images, shared by the tests of deploy."""

import functools

import numpy as np

from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.models.clip.config import ResNetConfig, ViTConfig
from ccafl_jax.models.reid import HeadConfig, ReIDConfig, build_reid
from ccafl_jax.training.description import Preprocess
from ccafl_jax.training.state import split_model

HEIGHT, WIDTH, CAMERAS = 32, 16, 3


def resnet_config():
    return ReIDConfig(
        vision=ResNetConfig(
            layers=(1, 1, 1, 1), width=8, image_size=(HEIGHT, WIDTH), last_stride=1
        ),
        embed_dim=6,
        activation="quick_gelu",
        heads=HeadConfig(pooling="gem"),
    )


def vit_config():
    return ReIDConfig(
        vision=ViTConfig(
            layers=2,
            width=16,
            heads=2,
            mlp_width=32,
            patch_size=8,
            image_size=(HEIGHT, WIDTH),
            stride=6,
        ),
        embed_dim=8,
        activation="gelu",
        heads=HeadConfig(pooling="class_token", joint=True, cameras=CAMERAS, camera_scale=3.0),
    )


@functools.cache
def bundle(kind):
    """A model whose every array is random, so that none can be mistaken for another."""
    config = {"resnet": resnet_config, "vit": vit_config}[kind]()
    _, params, batch_stats = split_model(build_reid(config))
    rng = np.random.default_rng(0)

    def moved(x):
        return np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32)

    statistics = {path: moved(x) for path, x in batch_stats.items()}
    for path in statistics:
        if path.endswith("/var"):  # small, so that the picture counts more than the shifts
            statistics[path] = np.abs(statistics[path] - 1) + np.float32(0.02)
    return ModelBundle(
        model=config,
        preprocess=Preprocess(HEIGHT, WIDTH, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)),
        params={path: moved(x) for path, x in params.items()},
        batch_stats=statistics,
        recipe={"method": "ccafl", "config": {"seed": 1}},
        metrics={"mAP": 0.5},
        source="a test",
        camera_codes=(1, 2, 5) if config.heads.cameras else (),
    )


def pixels(count, seed=0):
    """uint8[count, HEIGHT, WIDTH, 3]: patches of colour, which a network sees better than noise."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (count, HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    return patches.repeat(8, axis=1).repeat(8, axis=2)


def cameras_of(bundle, count):
    return np.arange(count) % CAMERAS if bundle.model.heads.cameras else None
