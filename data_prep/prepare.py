"""Raw folders to prepared data sets: TFDS datasets in ArrayRecord files, with columns beside them.

The images go in as the bytes they are; each is decoded once, to know that it can be. Everything is
written to a hidden folder that takes its name only when it is complete: a preparation that was
interrupted leaves nothing that looks finished, and the next one starts by removing its remains.
The layout of the result is told in ccafl_jax/data/prepared.py.

Records are written by `tfds.core.SequentialWriter`, which keeps the order given and streams to
disk. The usual `GeneratorBasedBuilder` collects a split of more than 1 GB in temporary files by way
of TensorFlow.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator

import numpy as np

from ccafl_jax.data.columns import fingerprint, has_columns, read_meta, save_columns
from ccafl_jax.data.known import count_collection, differences
from ccafl_jax.data.parallel import image_bar, in_order
from ccafl_jax.data.prepared import open_prepared, split_of
from ccafl_jax.data.records import BROKEN, Collection, Records
from ccafl_jax.data.sources import check_image
from ccafl_jax.files import exclusive

VERSION = "1.0.0"
"""Of the records' layout, as TFDS counts versions."""
_IMAGES_PER_SHARD = 65_536


@dataclasses.dataclass(frozen=True)
class Broken:
    """An image that cannot be read.

    Attributes:
      part: where it belongs.
      path: below the raw folder.
      reason: what is wrong with it.
    """

    part: str
    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a preparation left.

    Attributes:
      folder: the prepared set.
      fingerprint: of its images, names, labels and tables.
      images: number of records.
      skipped: images left out because they are broken.
    """

    folder: pathlib.Path
    fingerprint: str
    images: int
    skipped: tuple[Broken, ...]


def prepare(
    collection: Collection,
    out: str | os.PathLike,
    *,
    skip_broken: int = 0,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Prepared:
    """Writes a prepared data set to OUT/NAME/VERSION.

    Args:
      collection: read from a raw folder.
      out: folder for prepared data sets.
      skip_broken: broken images to leave out, and to list in the metadata, before it is an error.
      overwrite: replace a set that is already there, once the new one is complete.
      workers: threads that read and check images; the number of processors when None.
      progress: show a bar.

    Raises:
      FileExistsError: the set is already there.
      ValueError: more broken images than allowed.
      OSError: the disk is full or read-only, or another preparation of the set is running.
    """
    folder = pathlib.Path(out).expanduser().absolute() / collection.name / VERSION
    folder.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another preparation is writing to {folder.parent}; wait for it, or stop it"
    with exclusive(folder.parent / ".lock", busy=busy):
        _recover(folder)
        _check_target(folder, pathlib.Path(collection.root), overwrite=overwrite)
        partial = folder.with_name(f".{folder.name}.incomplete")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            result = _write(collection, partial, skip_broken, workers=workers, progress=progress)
            _move(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _recover(folder)
    return dataclasses.replace(result, folder=folder)


def verify(folder: str | os.PathLike, *, name: str = "", progress: bool = True) -> Collection:
    """Reads all of a prepared set and compares it with the fingerprint taken when it was made.

    Args:
      folder: the prepared set, or one or two levels above it.
      name: the data set expected there; any when empty.
      progress: show a bar.

    Raises:
      FileNotFoundError: there is no prepared set.
      ValueError: it is damaged.
    """
    collection = open_prepared(folder, name)
    meta = read_meta(pathlib.Path(collection.root))
    again = "prepare the data set again"
    digests = {}
    _check_features(collection)
    for part, records in collection.parts.items():
        digest, paths = _Digest(), records.path

        def read(rows: np.ndarray, records: Records = records) -> list:
            return records.source.examples(records.index[rows])

        with image_bar(len(records), f"verifying {part}", shown=progress) as bar:
            for rows, examples in in_order(read, len(records), workers=1):
                for row, (encoded, found) in zip(rows, examples, strict=True):
                    digest.add(encoded)
                    if found != _labels(records, row, paths[row], found.keys() - {"path"}):
                        raise ValueError(
                            f"{records.locate(row)}: labels of the record differ from those of the "
                            f"columns; {again}"
                        )
                bar.update(len(rows))
        digests[part] = digest.value()
        if digests[part] != meta["parts"][part]["digest"]:
            raise ValueError(
                f"{collection.root}: the images of {part} are not those that were prepared; {again}"
            )
    if fingerprint(collection, digests) != meta["fingerprint"]:
        raise ValueError(
            f"{collection.root}: names, labels or tables are not those that were prepared; {again}"
        )
    return collection


def _write(
    collection: Collection,
    folder: pathlib.Path,
    skip_broken: int,
    *,
    workers: int | None,
    progress: bool,
) -> Prepared:
    writer, info = _tfds_writer(collection, folder)
    splits = [split_of(part) for part, r in collection.parts.items() if len(r)]
    with _disk_errors(folder):
        writer.initialize_splits(splits)
    digests, broken = {}, []
    columns = _all_columns(collection)
    for part, records in list(collection.parts.items()):
        digest, lost, paths = _Digest(), [], records.path
        check = functools.partial(_read_checked, records)
        with image_bar(len(records), f"preparing {part}", shown=progress) as bar:
            for rows, images in in_order(check, len(records), workers=workers):
                examples = []
                for row, (encoded, reason) in zip(rows, images, strict=True):
                    if reason:
                        lost.append(row)
                        broken.append(Broken(part, paths[row], reason))
                        _check_broken(broken, skip_broken, records.locate(row))
                        continue
                    digest.add(encoded)
                    labels = _labels(records, row, paths[row], columns)
                    examples.append({"image": io.BytesIO(encoded), **labels})
                with _disk_errors(folder):
                    writer.add_examples({split_of(part): examples})
                bar.update(len(rows))
        digests[part] = digest.value()
        if lost:
            collection = collection.drop(part, np.array(lost), reason=BROKEN)
    extra = {
        "raw": collection.root,
        "skipped": [dataclasses.asdict(image) for image in broken],
        "differences": list(differences(collection.name, count_collection(collection))),
    }
    with _disk_errors(folder):
        stamp = save_columns(folder, collection, digests=digests, extra=extra)
        info.metadata["fingerprint"] = stamp
        writer.close_all()
    images = sum(len(records) for records in collection.parts.values())
    return Prepared(folder, stamp, images, tuple(broken))


def _tfds_writer(collection: Collection, folder: pathlib.Path):
    try:
        import array_record.python.array_record_module  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "preparing data sets needs tensorflow-datasets and array_record: "
            "pip install tensorflow-datasets array_record"
        ) from error
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=collection.name, version=VERSION, data_dir=os.fspath(folder), module_name=__name__
    )
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "path": tfds.features.Text()}
    features |= {column: np.int32 for column in _all_columns(collection)}
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(features),
        description=f"{collection.name}, prepared for ccafl_jax from the original images.",
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(fingerprint=""),
    )
    writer = tfds.core.SequentialWriter(
        info, max_examples_per_shard=_IMAGES_PER_SHARD, file_format="array_record"
    )
    return writer, info


def _check_features(collection: Collection) -> None:
    """Fails where tensorflow-datasets would not find what the records hold."""
    path = pathlib.Path(collection.root) / "features.json"
    try:
        found = json.loads(path.read_text())["featuresDict"]["features"].keys()
    except (OSError, ValueError, KeyError, AttributeError):
        found = set()
    if found != {"image", "path", *_all_columns(collection)}:
        raise ValueError(f"{path} is damaged; prepare the data set again")


def _all_columns(collection: Collection) -> list[str]:
    """Columns that any part has; TFDS wants the same for all splits."""
    return sorted({column for r in collection.parts.values() for column in r.columns()})


def _labels(records: Records, row: int, path: str, columns: Iterable[str]) -> dict:
    """What a record holds beside the image."""
    labels = {name: _label(getattr(records, name), row) for name in columns}
    return {"path": path.encode("utf-8", "replace"), **labels}


def _label(column: np.ndarray | None, row: int) -> int:
    return -1 if column is None else int(column[row])


def _read_checked(records: Records, rows: np.ndarray) -> list[tuple[bytes, str]]:
    """The encoded images at some rows, and what is wrong with each."""
    checked = []
    for row in rows:
        try:
            (encoded,) = records.read(np.array([row]))
            check_image(encoded)
            checked.append((encoded, ""))
        except OSError as error:
            reason = f"cannot be read ({error.strerror or 'no such file'}); mend or remove it"
            checked.append((b"", reason))
        except ValueError as error:
            checked.append((b"", str(error)))
    return checked


def _check_broken(broken: list[Broken], allowed: int, where: str) -> None:
    if len(broken) <= allowed:
        return
    if not allowed:
        raise ValueError(
            f"{where}: {broken[0].reason}; or leave up to N broken images out with --skip-broken N"
        )
    names = ", ".join(f"{image.part}/{image.path} ({image.reason})" for image in broken[:5])
    more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
    raise ValueError(f"more than the {allowed} broken images allowed: {names}{more}")


class _Digest:
    """A hash of encoded images in order."""

    def __init__(self):
        self._hash = hashlib.sha256()

    def add(self, encoded: bytes) -> None:
        self._hash.update(len(encoded).to_bytes(8, "little"))
        self._hash.update(encoded)

    def value(self) -> str:
        return self._hash.hexdigest()


def _check_target(folder: pathlib.Path, raw: pathlib.Path, *, overwrite: bool) -> None:
    """Fails where something would be lost: only an earlier set of ours may be replaced."""
    if folder.is_symlink():
        raise FileExistsError(f"{folder} is a link; choose another --out, or remove it")
    if folder.exists() and not has_columns(folder):
        raise FileExistsError(
            f"{folder} exists and is no prepared data set; choose another --out, or remove it"
        )
    if raw.resolve().is_relative_to(folder.resolve()):
        raise FileExistsError(f"the raw data lie in {folder}; choose another --out")
    if has_columns(folder) and not overwrite:
        raise FileExistsError(
            f"{folder} is already prepared, from {_raw_of(folder)}; use it, choose another --out, "
            "or --overwrite to make it again"
        )


def _raw_of(folder: pathlib.Path) -> str:
    try:
        return read_meta(folder)["raw"]
    except (ValueError, KeyError):
        return "a folder that its damaged description does not tell"


def _recover(folder: pathlib.Path) -> None:
    """Puts back a set that was being replaced when that failed, or the process died."""
    old = _old(folder)
    if old.is_dir() and not folder.exists():
        old.rename(folder)


def _move(partial: pathlib.Path, folder: pathlib.Path) -> None:
    """Gives the complete set its name; one that was there is removed last."""
    old = _old(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _old(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_name(f".{folder.name}.old")


@contextlib.contextmanager
def _disk_errors(folder: pathlib.Path) -> Iterator[None]:
    """One line for a disk that is full; ArrayRecord's RuntimeError of it has several clauses."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).split(";")[0]
        raise OSError(
            f"cannot write to {folder.parent}: {reason}; no part of it is left, make room and run "
            "it again"
        ) from error
