"""From pictures to features, chunk by chunk: what cannot be read is counted, what was done is kept.

A run that was stopped goes on with the chunks that are missing.
"""

import contextlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ccafl_jax.data.parallel import image_bar, in_order
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.deploy.embedder import ImageEmbedder
from ccafl_jax.deploy.pictures import Pictures
from ccafl_jax.files import exclusive, replacing, write_json
from ccafl_jax.scoring.feature_set import FeatureSet, fingerprint

CHUNK = 1024
"""Images that are embedded, and kept, at a time."""

_KEY = "key.json"
_logger = logging.getLogger(__name__)


class Embedded(NamedTuple):
    """Features of the pictures that could be read.

    Attributes:
      features: the set; its `meta` lists the others under `unreadable`.
      unreadable: pairs of name and reason.
    """

    features: FeatureSet
    unreadable: list[tuple[str, str]]


def embed_pictures(
    embedder: ImageEmbedder,
    pictures: Pictures,
    *,
    model: str = "",
    cameras: np.ndarray | None = None,
    flip: bool = False,
    skip_unreadable: bool = False,
    parts: str | os.PathLike | None = None,
    progress: bool = False,
) -> Embedded:
    """Features of pictures with what is known of them.

    Args:
      embedder: the model.
      pictures: the images.
      model: name of the model, for the reader of the features.
      cameras: see `pictures.camera_inputs`.
      flip: average the feature of each image with that of its mirror image.
      skip_unreadable: leave out images that cannot be read; else they are an error, after all of
        them were looked for.
      parts: folder for finished chunks, from where a later call with the same model and pictures
        takes them; see `forget`. None keeps nothing.
      progress: shows a bar.

    Raises:
      ValueError: images that cannot be read, with their number; or none that can.
      OSError: another process works in `parts`.
      FileExistsError: the folder `parts` holds something else.
    """
    made_by = embedder.fingerprint(flip=flip)
    key = fingerprint(model=made_by, pictures=pictures.fingerprint(), cameras=cameras)
    pixels = PixelFormat(embedder.preprocess.height, embedder.preprocess.width)
    count, values, unreadable = len(pictures), [], {}
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    with _kept_in(parts, key) as kept, image_bar(count, "features", shown=progress) as bar:
        done = {number: kept.read(number) for number in range(len(chunks))}
        waiting = [rows for number, rows in enumerate(chunks) if done[number] is None]
        loaded = pictures.loaded(waiting, pixels)
        for number, rows in enumerate(chunks):
            if done[number] is None:
                images = next(loaded)
                chosen = None if cameras is None else cameras[rows.start : rows.stop]
                found = embedder.embed(images, chosen, flip=flip, progress=False)
                if images.unreadable and not skip_unreadable:
                    _refuse(pictures, rows, images.unreadable, pixels)
                done[number] = kept.write(number, found, images.unreadable)
            found, bad = done.pop(number)
            values.append(found)
            unreadable |= {rows.start + position: reason for position, reason in bad.items()}
            bar.update(len(rows))
    if len(unreadable) == count:
        raise ValueError(f"none of {count} images can be read; the first: {unreadable[0]}")
    meta = {
        "feature": "embed",
        "unit": "image",
        "flip": flip,
        "preprocess": embedder.preprocess.to_json(),
        "model": model,
        "fingerprint": made_by,
    }
    return _described(pictures, np.concatenate(values), unreadable, meta)


def _described(
    pictures: Pictures, values: np.ndarray, unreadable: dict[int, str], meta: dict[str, Any]
) -> Embedded:
    """Features of all pictures as a set of those that could be read."""
    good = np.setdiff1d(np.arange(len(pictures)), list(unreadable))
    missing = [(pictures.names[row], reason) for row, reason in sorted(unreadable.items())]
    features = FeatureSet(
        dataset=pictures.dataset,
        features=values[good],
        pid=pictures.pid[good],
        camid=pictures.camid[good],
        part=pictures.part[good],
        names=np.array([pictures.names[row] for row in good.tolist()], np.str_),
        modality=None if pictures.modality is None else pictures.modality[good],
        camera_codes=pictures.camera_codes,
        meta=meta | {"root": pictures.root, "unreadable": [name for name, _ in missing]},
    )
    return Embedded(features.check(), missing)


def forget(parts: str | os.PathLike) -> None:
    """Removes finished chunks, once their features are safe elsewhere."""
    folder = pathlib.Path(parts)
    if (folder / _KEY).is_file():
        shutil.rmtree(folder)


def _refuse(pictures: Pictures, rows: range, found: dict[int, str], pixels: PixelFormat) -> None:
    """Ends with the number of all images that cannot be read, from these rows on."""
    bad = {rows.start + position: reason for position, reason in found.items()}
    if pictures.film is None:
        rest = range(rows.stop, len(pictures))
        (images,) = pictures.loaded([rest], pixels)

        def look(positions: np.ndarray) -> None:
            for position in positions.tolist():
                images[position]

        for _ in in_order(look, len(rest)):
            pass
        bad |= {rest.start + position: reason for position, reason in images.unreadable.items()}
    for row in sorted(bad):
        _logger.warning("not readable: %s", bad[row])
    first = bad[min(bad)]
    raise ValueError(
        f"{len(bad)} of {len(pictures)} images cannot be read (first: {first}); mend or remove "
        "them, or leave them out with --skip-unreadable"
    )


class _Parts:
    """Finished chunks as files; None in place of a folder keeps nothing."""

    def __init__(self, folder: pathlib.Path | None):
        self._folder = folder

    def read(self, number: int) -> tuple[np.ndarray, dict[int, str]] | None:
        if self._folder is None:
            return None
        try:
            with np.load(self._path(number), allow_pickle=False) as file:
                reasons = json.loads(str(file["unreadable"]))
                return file["features"], {int(row): text for row, text in reasons.items()}
        except Exception:  # there is none, or it is damaged: it is made again
            return None

    def write(self, number: int, features: np.ndarray, unreadable: dict[int, str]):
        if self._folder is not None:
            texts = np.array(json.dumps(unreadable))
            with replacing(self._path(number)) as partial, partial.open("wb") as file:
                np.savez(file, features=features, unreadable=texts)
        return features, dict(unreadable)

    def _path(self, number: int) -> pathlib.Path:
        return self._folder / f"{number:06d}.npz"


@contextlib.contextmanager
def _kept_in(parts: str | os.PathLike | None, key: str) -> Iterator[_Parts]:
    """Where chunks of this work are kept; those of other work there are removed first."""
    if parts is None:
        yield _Parts(None)
        return
    folder = pathlib.Path(parts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another process writes to {folder}; wait for it, or name another file"
    with exclusive(folder.with_name(f"{folder.name}.lock"), busy=busy):
        if folder.exists() and not (folder / _KEY).is_file():
            raise FileExistsError(f"{folder} holds something else; move it away")
        if folder.exists() and not _is_of(folder, key):
            forget(folder)
        if not folder.exists():
            folder.mkdir()
            write_json(folder / _KEY, {"key": key})
        there = len(list(folder.glob("*.npz")))
        if there:
            _logger.info("features: going on after %d images", there * CHUNK)
        try:
            yield _Parts(folder)
        finally:
            if not any(folder.glob("*.npz")):
                forget(folder)


def _is_of(folder: pathlib.Path, key: str) -> bool:
    try:
        return json.loads((folder / _KEY).read_text())["key"] == key
    except (OSError, ValueError, KeyError, TypeError):
        return False
