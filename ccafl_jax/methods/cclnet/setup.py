"""Everything a run of CCLNet reads, before it starts: weights, data set, images."""

import logging
import pathlib

import numpy as np

from ccafl_jax.data.layouts import layout_of, select
from ccafl_jax.data.layouts.regdb import select_regdb
from ccafl_jax.data.opening import open_collection
from ccafl_jax.data.records import INFRARED, VISIBLE, Collection, ReIDDataset
from ccafl_jax.methods.cameras import keep_cameras
from ccafl_jax.methods.cclnet.config import CCLNetConfig, DataConfig
from ccafl_jax.methods.cclnet.run import Run
from ccafl_jax.methods.files import require_root, weights_directory
from ccafl_jax.methods.run import Images
from ccafl_jax.methods.towers import load_towers
from ccafl_jax.models.clip import Tokenizer

log = logging.getLogger("ccafl_jax")


def prepare_run(
    config: CCLNetConfig, *, workdir: pathlib.Path, root: str, kind: type[Run] = Run
) -> Run:
    """Reads everything a run needs.

    Args:
      config: options.
      workdir: folder of the run.
      root: folder of the data set; `config.data.root`, or what the caller made in its place.
      kind: what to make of it, for experiments that change a part of the run.

    Raises:
      FileNotFoundError, ValueError: with one line that says what is missing and what to do.
    """
    require_root(config.data, root)
    directory = weights_directory(config.model.weights, "a CLIP checkpoint")
    clip, tokenizer = load_towers(config, directory), Tokenizer(directory)
    collection = open_modalities(config.data, root)
    dataset = whole_test_set(collection, config.data)
    log.info("%s", dataset.summary())
    return kind(
        config,
        dataset=dataset,
        tables=collection.tables,
        images=Images(train=dataset.train, test=dataset.query.join(dataset.gallery)),
        clip=clip,
        tokenizer=tokenizer,
        workdir=workdir,
    )


def open_modalities(config: DataConfig, root: str) -> Collection:
    """Reads a data set of visible and infrared images.

    Raises:
      FileNotFoundError, ValueError: with one line that says what is missing and what to do.
    """
    if layout_of(config.name).kind != "visible_infrared":
        raise ValueError(
            f"{config.name} has images of one kind; CCLNet takes sets of visible and infrared ones "
            "(sysumm01, regdb): set data.name"
        )
    collection = open_collection(config.name, root, source=config.source)
    for text in collection.report["warnings"]:
        log.warning("%s: %s", collection.root, text)
    return collection


def whole_test_set(collection: Collection, config: DataConfig) -> ReIDDataset:
    """The training set, and all test images: infrared queries against visible images in SYSU-MM01,
    from which trials draw theirs; in RegDB those of a split.

    Raises:
      ValueError: there are no images to train on, or to test.
    """
    if layout_of(config.name).select is select_regdb:
        dataset = select(collection, split=config.split)
    else:
        if config.split != 1:
            raise ValueError(f"{config.name} has one split: set data.split to 1")
        dataset = _all_of_sysumm01(collection)
    for split, use in (("train", "to train on"), ("query", "to test"), ("gallery", "to test")):
        if not len(getattr(dataset, split)):
            raise ValueError(f"{dataset.root} has no images {use}: its {split} set is empty")
    return keep_cameras(dataset, config.train_cameras)


def _all_of_sysumm01(collection: Collection) -> ReIDDataset:
    train = collection.parts["train"]
    test = collection.parts.get("test", train.take(np.zeros(0, np.int64)))
    return ReIDDataset(
        name=collection.name,
        root=collection.root,
        train=train,
        query=test.take(test.modality == INFRARED),
        gallery=test.take(test.modality == VISIBLE),
        camera_codes=collection.camera_codes,
        report=collection.report,
    )
