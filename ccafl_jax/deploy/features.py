"""From a model and a data set to the features that are scored, kept on disk and found again.

features = extract(bundle, open_collection("msmt17_v1", root), cache="runs/market1501/features")
"""

import dataclasses
import functools
import inspect
import logging
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ccafl_jax.data.clips import KINDS, Clips, clips_of
from ccafl_jax.data.decoded import ImageSequence
from ccafl_jax.data.layouts import layout_of
from ccafl_jax.data.parallel import image_bar
from ccafl_jax.data.records import Collection, Records, ReIDDataset, tracklets
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.clips import embed_clips, frames_of
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.fingerprints import model_fingerprint
from ccafl_jax.models.video import VideoConfig
from ccafl_jax.options import require
from ccafl_jax.ragged import ranges
from ccafl_jax.scoring.feature_set import (
    FeatureSet,
    feature_set,
    fingerprint,
    load,
    parts_to_embed,
    save,
)
from ccafl_jax.training.features import Extracted, unit_rows
from ccafl_jax.training.storage import is_local, open_path

if TYPE_CHECKING:
    from etils import epath

FRAMES = 8
"""Of a tracklet, unless told otherwise."""

_SELECTION = ("split", "orientation")
_BATCHES_AT_ONCE = 64  # of frames, before they are averaged
_logger = logging.getLogger(__name__)


def extract(
    bundle: ModelBundle,
    collection: Collection,
    *,
    distractors: bool = False,
    multi_query: bool = False,
    flip: bool = False,
    frames: int | None = None,
    clips: str | None = None,
    batch: int = 128,
    compute_dtype: str = "float32",
    cache: str | os.PathLike | None = None,
    at_hand: Extracted | None = None,
    **selection: Any,
) -> FeatureSet:
    """Features of the test images or tracklets of a data set.

    What was kept is taken only if weights, images, labels and options are the same. A damaged file
    is made again, and a folder that cannot be written is a warning.

    Args:
      bundle: the model.
      collection: of the data set.
      distractors: with its part of distractors.
      multi_query: with its part of further query images.
      flip: average the feature of each image with that of its mirror image.
      frames: of a tracklet, evenly spaced, whose features are averaged; 0 for all, None for
        FRAMES. For video and manifests with tracklets only. With a model of clips, the frames of a
        clip; None for those that it was trained with.
      clips: with a model of clips: `dense` (None) averages clips of all frames of a tracklet,
        `spread` takes one clip of frames that are spread over it.
      batch: images a call of the encoder.
      compute_dtype: dtype inside the encoder, "float32" or "bfloat16".
      cache: folder in which features are kept; None for no file.
      at_hand: features that the model made already of these images or tracklets with these options;
        they are kept in place of an extraction.
      **selection: `split` of iLIDS-VID and RegDB, `orientation` of iLIDS-VID.

    Returns:
      `FeatureSet` of unit vectors, whose `meta` says how they were made: `fingerprint` is that of
      the model (see `fingerprints.model_fingerprint`), `trained_on` the data set that it was
      trained on, or where it comes from.

    Raises:
      FileNotFoundError: an image is missing.
      ValueError: an option that the data set does not take, no test set, or cameras that the model
        does not know.
    """
    require(batch >= 1, f"batch is {batch}; choose 1 or more")
    selection = _full_selection(collection.name, selection)
    parts = parts_to_embed(
        collection, distractors=distractors, multi_query=multi_query, **selection
    )
    video = isinstance(bundle.model, VideoConfig)
    if video:
        records, chosen = _clips(bundle, collection, parts, frames, clips, flip=flip)
        counts, pooling = chosen.rows, f"{clips or KINDS[0]} clips of {chosen.rows.shape[1]} frames"
    else:
        require(clips is None, "clips are for models of clips, and this one is of single images")
        chosen = None
        records, counts = _to_embed(parts, _check_frames(collection, parts, frames))
        pooling = None if counts is None else _pooling(frames)
    cameras = _cameras(bundle, collection, records)
    model = model_fingerprint(bundle, flip=flip)
    key = _key(
        collection,
        parts,
        records,
        counts,
        model=model,
        compute_dtype=compute_dtype,
        selection=selection,
    )
    meta = {
        "feature": "embed",
        "flip": flip,
        "pooling": pooling,
        "preprocess": bundle.preprocess.to_json(),
        "compute_dtype": compute_dtype,
        "model": bundle.source,
        "trained_on": trained_on(bundle),
        "fingerprint": model,
        "key": key,
        "no_match": as_trained(bundle, "evaluation", "no_match"),
        "warnings": list(collection.report.get("warnings", ())),
        **selection,
    }
    path = None
    if cache is not None:
        path = pathlib.Path(cache).expanduser() / f"{collection.name}-{key[:16]}.npz"
        kept = _kept(path, key)
        if kept is not None:
            _logger.info("features: read from %s", path)
            return dataclasses.replace(kept, meta={**kept.meta, **meta})
    start = time.monotonic()
    if counts is not None and not video:
        at_hand = None  # it is of frames, and these are tracklets
    if at_hand is None:
        _logger.info("features: extracting %d images of %s", len(records), collection.name)
        options = {"flip": flip, "batch": batch, "compute_dtype": compute_dtype}
        values = _embed(bundle, records, counts, chosen, cameras, **options)
    else:
        values = at_hand.of(records.path)
    features = feature_set(
        parts,
        values,
        dataset=collection.name,
        camera_codes=collection.camera_codes,
        tables=collection.tables,
        meta=meta,
    )
    seconds = time.monotonic() - start
    where = ", kept nowhere" if path is None else _keep(path, features)
    if at_hand is None:
        _logger.info("features: extracted %d images in %.1f s%s", len(records), seconds, where)
    else:
        _logger.info("features: those of the last evaluation%s", where)
    return features


def features_folder(workdir: str | os.PathLike) -> "epath.Path | None":
    """Where a run keeps features (the `cache` of `extract`); None for one in an object store."""
    return open_path(workdir) / "features" if is_local(workdir) else None


def trained_on(bundle: ModelBundle) -> str:
    """Name of the data set that a model was trained on; where it comes from if that is unknown."""
    return as_trained(bundle, "data", "name") or bundle.source


def as_trained(bundle: ModelBundle, group: str, option: str) -> Any:
    """The value of an option in the recipe of a model; None where it is not known."""
    return bundle.recipe.get("config", {}).get(group, {}).get(option)


def camera_rows(bundle: ModelBundle, dataset: ReIDDataset | Collection) -> np.ndarray:
    """Row of the model's camera embedding for each camera of a data set.

    Cameras are matched by the numbers that data sets write, so a folder that lacks some of them
    still meets the right rows.

    Args:
      bundle: a model with a camera embedding.
      dataset: read from a folder.

    Returns:
      int32[cameras of the data set].

    Raises:
      ValueError: a camera that the model does not know.
    """
    count = bundle.model.cameras
    known = list(bundle.camera_codes) or list(range(1, count + 1))
    unknown = sorted(set(dataset.camera_codes) - set(known))
    if unknown:
        raise ValueError(
            f"{dataset.root} has the cameras {unknown}, which the model's camera embedding does "
            f"not know (it knows {known}): evaluate it on the data set it was trained on"
        )
    return np.array([known.index(code) for code in dataset.camera_codes], np.int32)


def _pooling(frames: int | None) -> str:
    frames = FRAMES if frames is None else frames
    return f"mean of {frames} frames" if frames else "mean of all frames"


def _full_selection(name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The data set's options with their defaults, so that features tell which split they are of."""
    known = inspect.signature(layout_of(name).select).parameters
    takes = {option: known[option].default for option in _SELECTION if option in known}
    for option in asked:
        require(option in takes, f"{name} takes no {option}; leave the option out")
    return takes | dict(asked)


def _check_frames(
    collection: Collection, parts: Mapping[str, Records], frames: int | None
) -> int | None:
    """Frames of a tracklet; None for sets of single images."""
    tracks = [name for name, records in parts.items() if records.tracklet is not None]
    if tracks:
        single = [name for name in parts if name not in tracks]
        require(
            not single,
            f"{collection.root}: {' and '.join(tracks)} are of tracklets, but "
            f"{' and '.join(single)} of single images; give all rows a tracklet, or none",
        )
        require(frames is None or frames >= 0, f"frames is {frames}; choose 0 (all) or more")
        return FRAMES if frames is None else frames
    require(frames is None, f"{collection.root} holds single images, which take no frames")
    return None


def _to_embed(
    parts: Mapping[str, Records], frames: int | None
) -> tuple[Records, np.ndarray | None]:
    """All images that are embedded, and for video how many of them each tracklet has."""
    if frames is None:
        return functools.reduce(Records.join, parts.values()), None
    chosen, counts = [], []
    for records in parts.values():
        table = tracklets(records)
        number = np.minimum(table.count, frames) if frames else table.count
        place = ranges(np.zeros_like(number), number) + 0.5
        step = np.repeat(table.count / number, number)
        rows = np.repeat(table.start, number) + np.floor(place * step).astype(np.int64)
        chosen.append(records.take(rows))
        counts.append(number)
    return functools.reduce(Records.join, chosen), np.concatenate(counts)


def _clips(
    bundle: ModelBundle,
    collection: Collection,
    parts: Mapping[str, Records],
    frames: int | None,
    kind: str | None,
    *,
    flip: bool,
) -> tuple[Records, Clips]:
    """All frames, and the clips of them that a video model looks at."""
    single = [name for name, records in parts.items() if records.tracklet is None]
    require(
        not single,
        f"the model is one of clips, and {collection.root} holds single images "
        f"({', '.join(single)}): score it on a video set",
    )
    require(not flip, "mirror images are for models of single images: leave flip out")
    frames = frames_of(bundle) if frames is None else frames
    require(frames >= 1, f"frames is {frames}; a clip has 1 or more")
    records = functools.reduce(Records.join, parts.values())
    return records, clips_of(tracklets(records), kind or KINDS[0], frames=frames)


def _cameras(bundle: ModelBundle, collection: Collection, records: Records) -> np.ndarray | None:
    """Rows of the camera embedding, or modalities, int32[images]; None where it takes neither."""
    if bundle.model.dual_stream:
        require(
            records.modality is not None,
            f"{collection.root} does not tell visible images from infrared ones, and the model has "
            "a stream for each: evaluate it on a set such as SYSU-MM01 or RegDB",
        )
        return records.modality.astype(np.int32)
    if not bundle.model.cameras:
        return None
    unknown = int(np.sum(records.camid < 0))
    require(
        not unknown,
        f"{unknown} images of {collection.root} have no camera, and the model has a camera "
        "embedding: leave them out (distractors, for one)",
    )
    return camera_rows(bundle, collection)[records.camid]


def _embed(
    bundle: ModelBundle,
    records: Records,
    counts: np.ndarray | None,
    chosen: Clips | None,
    cameras: np.ndarray | None,
    *,
    flip: bool,
    batch: int,
    compute_dtype: str,
) -> np.ndarray:
    """Unit features of images, or of the tracklets that frames or clips belong to."""
    if chosen is not None:
        return embed_clips(
            bundle, records, chosen, cameras, batch=batch, compute_dtype=compute_dtype
        )
    embedder = Embedder(bundle, batch=batch, compute_dtype=compute_dtype, devices=0)
    if counts is None:
        return embedder.embed(_images(embedder, records), cameras, flip=flip)
    return _embed_tracklets(embedder, records, counts, cameras, flip=flip)


def _images(embedder: Embedder, records: Records) -> ImageSequence:
    return ImageSequence(records, embedder.preprocess.pixels)


def _embed_tracklets(
    embedder: Embedder,
    records: Records,
    counts: np.ndarray,
    cameras: np.ndarray | None,
    *,
    flip: bool,
) -> np.ndarray:
    """Means of the frames' features at unit length, float32[tracklets, dim]."""
    ends = np.cumsum(counts)
    block = (ends - 1) // (_BATCHES_AT_ONCE * embedder.batch)
    firsts = np.flatnonzero(np.diff(block, prepend=-1))
    found = []
    with image_bar(len(records), "features", shown=sys.stderr.isatty()) as bar:
        for first, stop in zip(firsts, np.append(firsts[1:], len(counts)), strict=True):
            start = ends[first] - counts[first]
            rows = np.arange(start, ends[stop - 1])
            values = embedder.embed(
                _images(embedder, records.take(rows)),
                None if cameras is None else cameras[rows],
                flip=flip,
                progress=False,
            )
            offsets = ends[first:stop] - counts[first:stop] - start
            found.append(np.add.reduceat(values, offsets, axis=0))
            bar.update(len(rows))
    return unit_rows(np.concatenate(found))


def _key(
    collection: Collection,
    parts: Mapping[str, Records],
    records: Records,
    counts: np.ndarray | None,
    *,
    model: str,
    compute_dtype: str,
    selection: Mapping[str, Any],
) -> str:
    """Changes with the model, the images that are embedded, their labels and the options."""
    import PIL

    return fingerprint(
        model=model,
        compute_dtype=compute_dtype,
        decoder=PIL.__version__,
        dataset=collection.name,
        selection=dict(selection),
        images=records.source.fingerprint(records.index),
        counts=counts,
        parts=[[name, part.columns()] for name, part in parts.items()],
        tables=dict(collection.tables),
        camera_codes=list(collection.camera_codes),
    )


def _kept(path: pathlib.Path, key: str) -> FeatureSet | None:
    """What an earlier call kept; None where there is nothing, or something else or damaged."""
    if not path.is_file():
        return None
    try:
        found = load(path)
        require(found.meta.get("key") == key, f"{path} holds other features")
    except (ValueError, OSError) as error:
        _logger.warning("features: made again, as %s", error)
        return None
    return found


def _keep(path: pathlib.Path, features: FeatureSet) -> str:
    """Writes features; says where, or why not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, features)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        _logger.warning("features: cannot be kept in %s (%s)", path.parent, reason)
        return ", kept nowhere"
    return f", kept in {path}"
