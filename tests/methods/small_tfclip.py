"""A TF-CLIP run on random images that takes seconds: for what does not depend on learning."""

import dataclasses

import numpy as np
from flax import nnx

from ccafl_jax.data.augment import AugmentConfig
from ccafl_jax.data.names import Names
from ccafl_jax.data.records import Records, ReIDDataset
from ccafl_jax.data.sources import FolderSource
from ccafl_jax.methods.options import EvaluationConfig
from ccafl_jax.methods.run import Images
from ccafl_jax.methods.tfclip.config import (
    ClipsConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PromptConfig,
    SamplerConfig,
    ScheduleConfig,
    TFCLIPConfig,
)
from ccafl_jax.methods.tfclip.model import video_model
from ccafl_jax.methods.tfclip.run import Run
from ccafl_jax.models.clip import CLIP, CLIPConfig, ResNetConfig, TextConfig, ViTConfig

SMALL = TFCLIPConfig(
    devices=1,
    data=DataConfig(height=32, width=16),
    augment=AugmentConfig(pad=0, erase_fill="random"),
    model=ModelConfig(),
    clips=ClipsConfig(frames=2),
    prompt=PromptConfig(layers=1, heads=2),
    sampler=SamplerConfig(classes=2, tracklets=2),
    optimizer=OptimizerConfig(base_lr=1e-3, warmup_epochs=1, milestones=(2,)),
    schedule=ScheduleConfig(epochs=3, iterations=2),
    evaluation=EvaluationConfig(every=2, batch=32),
)


def small_towers(config=SMALL, *, vit=True):
    """Random towers of the smallest sizes."""
    image_size = (config.data.height, config.data.width)
    if vit:
        vision = ViTConfig(
            layers=2,
            width=8,
            heads=2,
            mlp_width=16,
            patch_size=8,
            image_size=image_size,
            stride=config.model.patch_stride or 8,
        )
    else:
        vision = ResNetConfig(
            layers=(1, 1, 1, 1),
            width=2,
            image_size=image_size,
            last_stride=config.model.last_stride,
        )
    text = TextConfig(vocab=12, context=16, width=8, heads=2, layers=1)
    sizes = CLIPConfig(embed_dim=8, vision=vision, text=text, activation="quick_gelu")
    return CLIP(sizes, rngs=nnx.Rngs(0))


def small_tracklets(*, frames=(1, 5, 3), people=4, name="mars"):
    """People under three cameras; a tracklet under each of them has one of three lengths."""

    def records(first, cameras):
        rows = [
            (first + person, camera, person * 3 + camera, frame)
            for person in range(people)
            for camera in cameras
            for frame in range(frames[(person + camera) % len(frames)])
        ]
        pid, camid, tracklet, frame = np.array(rows, np.int32).T
        names = ["_".join(map(str, row)) for row in rows]
        source = FolderSource("", Names.pack(names))
        index = np.arange(len(rows))
        return Records(source, index, pid, camid, tracklet=tracklet, frame=frame)

    test = records(100, (0, 1, 2))
    query, gallery = test.take(test.camid == 0), test.take(test.camid != 0)
    return ReIDDataset(
        name=name,
        root="",
        train=records(1, (0, 1, 2)),
        query=query,
        gallery=gallery,
        camera_codes=(1, 2, 3),
        report={},
    )


def small_tfclip(workdir, config=SMALL, *, vit=True, kind=Run, dataset=None, **changes):
    """A `Run`; `changes` replace fields of the configuration."""
    config = dataclasses.replace(config, **changes)
    dataset = dataset or small_tracklets()
    rng = np.random.default_rng(0)
    shape = (config.data.height, config.data.width, 3)
    colours = rng.integers(0, 255, (200, 1, 1, 3))

    def pixels(*splits):
        pid = np.concatenate([s.pid for s in splits])
        noise = rng.integers(-60, 60, (len(pid), *shape))
        return np.clip(colours[pid] + noise, 0, 255).astype(np.uint8)

    images = Images(train=pixels(dataset.train), test=pixels(dataset.query, dataset.gallery))
    model, sizes = video_model(
        small_towers(config, vit=vit),
        config,
        classes=len(np.unique(dataset.train.pid)),
        cameras=len(dataset.camera_codes),
    )
    return kind(
        config, dataset=dataset, images=images, model=model, model_config=sizes, workdir=workdir
    )
