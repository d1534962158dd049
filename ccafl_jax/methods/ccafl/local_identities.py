"""Identities for images that nobody labelled: clusters of each camera's images alone.

Intra-camera supervision needs labels inside a camera only, and a camera without any can make its
own: its images, as CLIP sees them before training, are clustered as CALR clusters a camera. What
comes of it is kept in the run folder, so that a run that goes on elsewhere has the same classes.
"""

import dataclasses
import hashlib
import json
import logging
import os
import sys

import jax
import numpy as np

from ccafl_jax.data.decoded import load_images
from ccafl_jax.data.records import UNLABELLED, Records, ReIDDataset
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.methods.ccafl.model import image_model
from ccafl_jax.methods.metadata import training_digest
from ccafl_jax.models.clip import CLIP
from ccafl_jax.pseudo_labels.agglomerative import local_clusters
from ccafl_jax.training.agreement import from_first
from ccafl_jax.training.features import feature_extractor
from ccafl_jax.training.inputs import StreamedImages
from ccafl_jax.training.sharding import make_mesh, replicate
from ccafl_jax.training.state import split_model
from ccafl_jax.training.storage import open_path, write_text

FILE = "local_identities.json"
FIRST = -3  # made-up identities count down from here: no data set has such a number

log = logging.getLogger("ccafl_jax")


def with_local_identities(
    dataset: ReIDDataset, clip: CLIP, config: CCAFLConfig, workdir: str | os.PathLike
) -> ReIDDataset:
    """Gives every unlabelled training image an identity that its camera alone knows.

    Args:
      dataset: as read, with training images whose identity is `UNLABELLED`.
      clip: both towers, at the size of the images.
      config: options.
      workdir: folder of the run, where the identities are kept.

    Returns:
      The data set with negative identities, from `FIRST` on downwards, in their place.

    Raises:
      ValueError: what `local_clusters` refuses.
    """
    train = dataset.train
    rows = np.flatnonzero(train.pid == UNLABELLED)
    if not len(rows):
        return dataset
    unlabelled = train.take(rows)
    # Every process extracts, for the devices of all work together; the first one decides.
    file, key = open_path(workdir) / FILE, _key(train, config)
    stored = from_first(lambda: _stored(file, key))
    if stored is None:
        features = _features(unlabelled, clip, config, cameras=len(dataset.camera_codes))
        clusters = config.data.local_clusters
        stored = from_first(lambda: _cluster(features, unlabelled.camid, clusters, file, key))
    pid = train.pid.copy()
    pid[rows] = FIRST - np.asarray(stored, pid.dtype)
    codes = [dataset.camera_codes[camera] for camera in np.unique(unlabelled.camid)]
    log.info(
        "%d images without an identity, of cameras %s, are %d local clusters",
        len(rows),
        ", ".join(f"c{code}" for code in codes),
        len(np.unique(stored)),
    )
    return dataclasses.replace(dataset, train=dataclasses.replace(train, pid=pid))


def numbered_through(labels: np.ndarray, camid: np.ndarray) -> np.ndarray:
    """Clusters of all cameras numbered through, int64[n], from those of each camera alone."""
    table = np.stack([np.asarray(camid, np.int64), np.asarray(labels, np.int64)])
    return np.unique(table, axis=1, return_inverse=True)[1].reshape(-1)


def standardized_by_camera(features: np.ndarray, camid: np.ndarray) -> np.ndarray:
    """Features of each camera with mean 0 and deviation 1 in every channel, as a neck has them.

    Args:
      features: float[n, dim], what enters the neck.
      camid: int[n].

    Returns:
      float32[n, dim]; a channel that does not vary in a camera is 0 there.
    """
    features = np.asarray(features, np.float32)
    result = np.empty_like(features)
    for camera in np.unique(camid):
        rows = camid == camera
        centred = features[rows] - features[rows].mean(0)
        result[rows] = centred / np.maximum(centred.std(0), 1e-6)
    return result


def _features(records: Records, clip: CLIP, config: CCAFLConfig, *, cameras: int) -> jax.Array:
    """What enters the neck, before training: float[n, dim]."""
    mesh = make_mesh(config.devices)
    model, _ = image_model(clip, config, cameras=cameras)
    graphdef, params, batch_stats = split_model(model)
    extract = feature_extractor(
        graphdef,
        "pooled",
        mean=config.augment.mean,
        std=config.augment.std,
        batch=config.evaluation.batch,
        mesh=mesh,
        description="unlabelled images",
    )
    pixels = PixelFormat(config.data.height, config.data.width)
    images: Records | np.ndarray = records
    if config.data.cache:
        progress = sys.stderr.isatty()
        images = load_images(records, pixels, cache=config.data.cache, progress=progress)
    source = StreamedImages(images, mesh, pixels=pixels)
    return extract(*replicate((params, batch_stats), mesh), source, records.camid)


def _cluster(features, camid, clusters, file, key) -> list[int]:
    features = standardized_by_camera(features, camid)
    found = local_clusters(features, camid, clusters=clusters)
    numbers = numbered_through(found.labels, camid).tolist()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"key": key, "clusters": numbers}) + "\n")
    return numbers


def _stored(file, key: str) -> list[int] | None:
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    return found["clusters"] if found["key"] == key else None


def _key(train: Records, config: CCAFLConfig) -> str:
    """Of everything that the clusters depend on."""
    data, model = config.data, config.model
    parts = (
        training_digest(train),
        model.weights,
        model.activation,
        model.last_stride,
        model.patch_stride,
        data.height,
        data.width,
        data.local_clusters,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
