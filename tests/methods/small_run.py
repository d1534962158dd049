"""A run on random images that takes seconds: for what does not depend on learning anything."""

import dataclasses

import numpy as np
from flax import nnx

from ccafl_jax.data.augment import AugmentConfig
from ccafl_jax.data.names import Names
from ccafl_jax.data.records import Records, ReIDDataset
from ccafl_jax.data.sources import FolderSource
from ccafl_jax.methods.cameras import keep_cameras
from ccafl_jax.methods.ccafl.config import (
    CCAFLConfig,
    DataConfig,
    EvaluationConfig,
    ICDLConfig,
    ModelConfig,
    OptimizerConfig,
    PromptsConfig,
    SamplerConfig,
    ScheduleConfig,
)
from ccafl_jax.methods.ccafl.run import Run
from ccafl_jax.methods.holdout import split_held_out
from ccafl_jax.methods.run import Images
from ccafl_jax.models.clip import CLIP, CLIPConfig, ResNetConfig, TextConfig, ViTConfig

SLOT, END = 9, 11

SMALL = CCAFLConfig(
    devices=1,  # programs for several take longer to compile; test_ccafl_sharding is about those
    data=DataConfig(height=32, width=16),
    augment=AugmentConfig(pad=2),
    model=ModelConfig(bn_group=0),
    prompts=PromptsConfig(epochs=2, batch=16, base_lr=3e-3),
    sampler=SamplerConfig(classes=4, images=4),
    optimizer=OptimizerConfig(warmup_epochs=1, milestones=(3,)),
    schedule=ScheduleConfig(
        epochs=4, iterations=2, intra_epochs=1, text_start=2, ical_start=3, ical_end=4
    ),
    icdl=ICDLConfig(instances=4),
    evaluation=EvaluationConfig(every=0, batch=32),
)


class WordTokenizer:
    """Thirteen words; enough for the prompt."""

    words = ("a", "photo", "of", "person.", "x")

    def encode(self, texts, context_length=16):
        ids = np.zeros((len(texts), context_length), np.int32)
        eot = np.zeros(len(texts), np.int32)
        for row, text in enumerate(texts):
            tokens = [10]
            for word in text.lower().split():
                tokens.append(SLOT if word == "x" else 1 + self.words.index(word))
            tokens.append(END)
            ids[row, : len(tokens)] = tokens
            eot[row] = len(tokens) - 1
        return ids, eot


def small_clip(config=SMALL, *, vit=False):
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
    return CLIP(
        CLIPConfig(
            embed_dim=8,
            vision=vision,
            text=TextConfig(vocab=12, context=16, width=8, heads=2, layers=1),
            activation="quick_gelu",
        ),
        rngs=nnx.Rngs(0),
    )


def small_dataset():
    """Eight identities under three cameras, three images each, and as many other ones to test."""
    pid, camid = (a.ravel() for a in np.meshgrid(np.arange(1, 9), np.arange(3)))
    train = np.repeat(np.stack([pid, camid]), 3, axis=1).astype(np.int32)
    test = np.repeat(np.stack([pid + 100, camid]), 2, axis=1).astype(np.int32)

    def records(rows):
        names = [f"{p}_{c}_{number}" for number, (p, c) in enumerate(rows.T)]
        source = FolderSource("", Names.pack(names))
        return Records(source, np.arange(rows.shape[1]), rows[0], rows[1])

    return ReIDDataset(
        name="small",
        root="",
        train=records(train),
        query=records(test[:, ::2]),
        gallery=records(test[:, 1::2]),
        camera_codes=(1, 2, 3),
        report={},
    )


def small_images(dataset, data):
    """Pixels of a data set: each identity has a colour, under noise.

    Args:
      dataset: of `small_dataset`.
      data: options, of which height and width are read.
    """
    rng = np.random.default_rng(0)
    shape = (data.height, data.width, 3)
    colours = rng.integers(0, 255, (200, 1, 1, 3))

    def pixels(*splits):
        pid = np.concatenate([s.pid for s in splits])
        noise = rng.integers(-60, 60, (len(pid), *shape))
        return np.clip(colours[pid] + noise, 0, 255).astype(np.uint8)

    return Images(train=pixels(dataset.train), test=pixels(dataset.query, dataset.gallery))


def small_run(workdir, config=SMALL, *, vit=False, negative=(), **changes):
    """A `Run`, of a ResNet or a ViT; `changes` replace fields of the configuration.

    The pixels of the training images in `negative` (rows before any are held out) are inverted.
    """
    config = dataclasses.replace(config, **changes)
    dataset = small_dataset()
    images = small_images(dataset, config.data)
    train = images.train.copy()
    train[list(negative)] = 255 - train[list(negative)]
    dataset = keep_cameras(dataset, config.data.train_cameras)
    dataset, held_out = split_held_out(dataset, config.data.val_fraction, config.seed)
    return Run(
        config,
        dataset=dataset,
        images=Images(
            train=train[dataset.train.index],
            test=images.test,
            val=None if held_out is None else train[held_out.index],
        ),
        clip=small_clip(config, vit=vit),
        tokenizer=WordTokenizer(),
        workdir=workdir,
        held_out=held_out,
    )


def decoded(images):
    """All images of an `ImageInput`: uint8[n, H, W, 3]."""
    parts = [np.asarray(pixels) for pixels, _ in images.in_order(8)]
    return np.concatenate(parts)[: len(images)]
