"""A CCLNet run on random images that takes seconds, for what does not depend on learning."""

import dataclasses

import numpy as np

from ccafl_jax.data.names import Names
from ccafl_jax.data.records import Records, ReIDDataset
from ccafl_jax.data.sources import FolderSource
from ccafl_jax.methods.cclnet.config import (
    CCLNetConfig,
    ClusteringConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PromptsConfig,
    SamplerConfig,
    ScheduleConfig,
    SwapConfig,
)
from ccafl_jax.methods.cclnet.run import Run
from tests.methods.small_run import WordTokenizer, small_clip, small_images

CODES = (1, 2, 3, 6)
INFRARED_CODES = (3, 6)

SMALL = CCLNetConfig(
    devices=1,
    data=DataConfig(height=32, width=16),
    augment=dataclasses.replace(CCLNetConfig().augment, pad=2, grey=0.1),
    model=ModelConfig(),
    clustering=ClusteringConfig(k1=8, k2=2, eps=0.8, min_samples=3),
    swap=SwapConfig(start=1),
    prompts=PromptsConfig(epochs=2, batch=16, base_lr=3e-3),
    sampler=SamplerConfig(classes=2, images=4),
    optimizer=OptimizerConfig(warmup_epochs=1, milestones=(3,)),
    schedule=ScheduleConfig(prepare_epochs=2, train_epochs=2, iterations=2),
    evaluation=EvaluationConfig(every=0, batch=32, trials=2),
)


def small_pairs():
    """Eight people under two visible and two infrared cameras, and as many others to test.

    Training images are visible first, as readers give them.
    """

    def records(pids, visible_images, infrared_images, *modalities):
        rows = [
            (pid, camid, number, modality)
            for modality in modalities
            for pid in pids
            for camid, code in enumerate(CODES)
            if (code in INFRARED_CODES) == bool(modality)
            for number in range((visible_images, infrared_images)[modality])
        ]
        pid, camid, _, modality = np.array(rows).T
        paths = [f"cam{CODES[c]}/{p:04d}/{n:04d}.jpg" for p, c, n, _ in rows]
        return Records(
            FolderSource("", Names.pack(paths)),
            np.arange(len(rows)),
            pid.astype(np.int32),
            camid.astype(np.int32),
            modality=modality.astype(np.int8),
        )

    people = range(1, 9), range(101, 109)
    return ReIDDataset(
        name="sysumm01",
        root="",
        train=records(people[0], 4, 3, 0, 1),
        query=records(people[1], 2, 2, 1),
        gallery=records(people[1], 2, 2, 0),
        camera_codes=CODES,
        report={},
    )


def small_cclnet(
    workdir, config=SMALL, *, kind=Run, vit=False, dataset=None, images=None, **changes
):
    """A `Run`; `changes` replace fields of the configuration."""
    config = dataclasses.replace(config, **changes)
    dataset = dataset or small_pairs()
    return kind(
        config,
        dataset=with_one_source(dataset),
        tables={},
        images=images or small_images(dataset, config.data),
        clip=small_clip(config, vit=vit),
        tokenizer=WordTokenizer(),
        workdir=workdir,
    )


def with_one_source(dataset):
    """The data set with queries and gallery of one source, so that they can be joined."""
    parts = [dataset.query, dataset.gallery]
    source = FolderSource("", Names.join([part.path for part in parts]))
    query = dataclasses.replace(dataset.query, source=source)
    gallery = dataclasses.replace(
        dataset.gallery, source=source, index=len(query) + dataset.gallery.index
    )
    return dataclasses.replace(dataset, query=query, gallery=gallery)
