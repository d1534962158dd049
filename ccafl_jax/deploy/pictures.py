"""Images to embed, wherever they lie: folders, files, lists, manifests and films.

    pictures = open_pictures(["crops"])             # a folder, with all below it
    pictures = open_pictures(["manifest.csv"])      # docs/own_data.md
    pictures = open_pictures(["names.txt"])         # a path in each line
    pictures = open_pictures(["door.mp4"], every=5) # every fifth frame

Identities and cameras are kept where the source names them: a manifest does, and so do files that
are all called `IDENTITY_cCAMERA...` as in Market-1501.
"""

import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ccafl_jax.data.layouts.find import IMAGE_SUFFIXES, is_image_name, list_images
from ccafl_jax.data.layouts.manifest import read_manifest
from ccafl_jax.data.layouts.market import parse_name
from ccafl_jax.data.records import UNKNOWN_CAMERA, UNLABELLED, dense_cameras
from ccafl_jax.data.sources import PixelFormat, fit_image, load_image
from ccafl_jax.scoring.feature_set import GALLERY, PARTS

MANIFEST_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
FILM_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v")
LIST_SUFFIX = ".txt"


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Images and what is known of them; row i is image i.

    Attributes:
      root: folder that the names are counted from.
      names: of the images; paths below `root`, or `FILM#FRAME`.
      pid: int32[n], -2 where unknown.
      camid: int32[n], from 0; -1 where unknown.
      part: int8[n], numbers of `feature_set.PARTS`.
      camera_codes: `camera_codes[camid]` is the number that the source gives.
      modality: int8[n], 0 visible and 1 infrared; None where unknown.
      dataset: name of the protocol that the labels follow; may be empty.
      film: of whose frames these are; None for files.
      every: how many frames of the film stand for one.
    """

    root: str
    names: list[str]
    pid: np.ndarray
    camid: np.ndarray
    part: np.ndarray
    camera_codes: tuple[int, ...] = ()
    modality: np.ndarray | None = None
    dataset: str = ""
    film: pathlib.Path | None = None
    every: int = 1

    def __len__(self) -> int:
        return len(self.names)

    def locate(self, row: int) -> str:
        """Where a user finds an image."""
        return os.path.join(self.root, self.names[row])

    def loaded(self, chunks: Sequence[range], pixels: PixelFormat) -> Iterator["Loaded"]:
        """The images of each chunk of rows, the chunks in ascending order.

        Files are decoded when they are asked for; films once, from front to back.
        """
        if self.film is None:
            for rows in chunks:
                yield Loaded([self.locate(row) for row in rows], pixels)
            return
        ends = ValueError(f"{self.film} ends before this frame, or is damaged there")
        frames = _frames(self.film, chunks, self.every, pixels)
        for rows in chunks:
            there = dict(itertools.islice(frames, len(rows)))
            yield Loaded([there.get(row, ends) for row in rows], pixels)

    def fingerprint(self) -> str:
        """Changes with the names of the images, or the size or time of a file."""
        digest = hashlib.sha256(f"{self.root}\0{self.every}\n".encode())
        files = [str(self.film)] if self.film else map(self.locate, range(len(self)))
        for name in files:
            try:
                status = os.stat(name)
                state = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:
                state = "missing"
            digest.update(f"{name}\0{state}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def as_part(self, part: int) -> "Pictures":
        """The same, all in one part."""
        return dataclasses.replace(self, part=np.full(len(self), part, np.int8))

    def join(self, other: "Pictures") -> "Pictures":
        """These images followed by others.

        Raises:
          ValueError: frames of films, which stay by themselves.
        """
        if self.film or other.film:
            raise ValueError("frames of a film cannot be joined with other images; embed it alone")
        root = os.path.commonpath([self.root, other.root])
        sides = (self, other)
        names = [os.path.relpath(s.locate(i), root) for s in sides for i in range(len(s))]
        codes = [np.append(s.camera_codes, UNKNOWN_CAMERA).astype(int)[s.camid] for s in sides]
        camids, camera_codes = dense_cameras(*codes)
        known = all(side.modality is not None for side in sides)
        return Pictures(
            root,
            [name.replace(os.sep, "/") for name in names],
            np.concatenate([side.pid for side in sides]),
            np.concatenate(camids),
            np.concatenate([side.part for side in sides]),
            camera_codes=camera_codes,
            modality=np.concatenate([side.modality for side in sides]) if known else None,
            dataset=self.dataset if self.dataset == other.dataset else "",
        )


class Loaded(Sequence):
    """Images as uint8[height, width, 3]; one that cannot be read is black, and remembered.

    Attributes:
      unreadable: the reason by position, filled as images are asked for; any thread may ask.
    """

    def __init__(self, images: list[Any], pixels: PixelFormat):
        """Args:
        images: paths, arrays, or the errors that stand in their place.
        pixels: size.
        """
        self._images, self._pixels = images, pixels
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> np.ndarray:
        image = self._images[position]
        if isinstance(image, np.ndarray):
            return image
        try:
            if isinstance(image, Exception):
                raise image
            return load_image(image, self._pixels)
        except (ValueError, OSError) as error:
            self.unreadable[position] = str(error)
            return np.zeros((self._pixels.height, self._pixels.width, 3), np.uint8)


def open_pictures(
    paths: Sequence[str | os.PathLike], *, splits: Sequence[str] = (), every: int = 1
) -> Pictures:
    """Finds the images; none is opened yet.

    Args:
      paths: folders and image files; or one manifest, list or film.
      splits: of a manifest; those to test on when empty, or else `train`.
      every: of a film, how many frames stand for one.

    Raises:
      FileNotFoundError: a path to nothing.
      ValueError: no images, sources that do not go together, or options that do not fit.
      ImportError: a film, and PyAV is not installed.
    """
    paths = [pathlib.Path(path).expanduser().absolute() for path in paths]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    kinds = {_kind(path) for path in paths}
    if len(paths) != 1 and kinds != {"images"}:
        raise ValueError(
            f"{len(paths)} sources, of which one is a {sorted(kinds - {'images'} or {'source'})[0]}"
            "; name folders and image files, or one manifest, list or film"
        )
    (kind,) = kinds
    if splits and kind != "manifest":
        raise ValueError(f"splits are of a manifest, and {paths[0]} is none; leave them out")
    if every != 1 and kind != "film":
        raise ValueError(f"every {every} is of frames of a film, and {paths[0]} is none")
    if every < 1:
        raise ValueError(f"every is {every}; choose 1 or more")
    if kind == "manifest":
        return _of_manifest(paths[0], splits)
    if kind == "film":
        return _of_film(paths[0], every)
    return _of_list(paths[0]) if kind == "list" else _of_folders(paths)


def camera_inputs(
    embedder: Any, pictures: Pictures, *, camera: int | None = None, modality: int | None = None
) -> np.ndarray | None:
    """What a model wants to know beside the image: rows of its camera embedding, or modalities.

    Args:
      embedder: the model.
      pictures: the images.
      camera: the number of the camera of all images, as the data set of the model counts.
      modality: of all images, 0 visible or 1 infrared.

    Returns:
      int32[n], or None where the model takes neither.

    Raises:
      ValueError: it cannot be told, a camera that the model does not know, or an option that the
        model does not take.
    """
    count = len(pictures)
    takes_cameras = bool(embedder.cameras) and not embedder.two_streams
    if camera is not None and not takes_cameras:
        raise ValueError("this model has no camera embedding; leave the camera out")
    if modality is not None and not embedder.two_streams:
        raise ValueError("this model has one stream for all light; leave the modality out")
    if embedder.two_streams:
        found = pictures.modality if modality is None else np.full(count, modality)
        if found is None:
            raise ValueError("this model has two streams: say visible or infrared (--modality)")
        return found.astype(np.int32)
    if not takes_cameras:
        return None
    known = list(embedder.camera_codes) or list(range(1, embedder.cameras + 1))
    codes = np.full(count, camera)
    if camera is None:
        unknown = int(np.sum(pictures.camid < 0))
        if unknown:
            raise ValueError(
                f"the camera of {unknown} of {count} images is not known, and the model has a "
                f"camera embedding: name one of {known} for all (--camera)"
            )
        codes = np.asarray(pictures.camera_codes)[pictures.camid]
    strange = sorted(set(codes.tolist()) - set(known))
    if strange:
        raise ValueError(
            f"camera {strange[0]} is unknown to the model's camera embedding, which knows {known}: "
            "name one of them for all images (--camera)"
        )
    return np.array([known.index(code) for code in codes.tolist()], np.int32)


def _kind(path: pathlib.Path) -> str:
    suffix = path.suffix.lower()
    if path.is_dir() or is_image_name(path.name):
        return "images"
    if suffix in MANIFEST_SUFFIXES:
        return "manifest"
    if suffix in FILM_SUFFIXES:
        return "film"
    if suffix == LIST_SUFFIX:
        return "list"
    raise ValueError(
        f"{path} is no source of images: expected a folder, an image, a manifest "
        f"({', '.join(MANIFEST_SUFFIXES)}), a list of paths ({LIST_SUFFIX}) or a film "
        f"({', '.join(FILM_SUFFIXES)})"
    )


def _of_folders(paths: Sequence[pathlib.Path]) -> Pictures:
    folders = [path if path.is_dir() else path.parent for path in paths]
    root = pathlib.Path(os.path.commonpath(folders))
    names = []
    for path, folder in zip(paths, folders, strict=True):
        inside = list_images(path, recursive=True)[0] if path.is_dir() else [path.name]
        below = folder.relative_to(root)
        names += [(below / name).as_posix() for name in inside]
    if not names:
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"no image files in {paths[0]}; expected {endings}")
    return _labelled_by_names(str(root), list(dict.fromkeys(names)))


def _of_list(path: pathlib.Path) -> Pictures:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; expected a path in each line") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path} is empty; expected a path in each line")
    return _labelled_by_names(str(path.parent), names)


def _labelled_by_names(root: str, names: list[str]) -> Pictures:
    found = [parse_name(os.path.basename(name)) for name in names]
    if any(labels is None for labels in found):
        unknown = np.full(len(names), UNLABELLED, np.int32)
        camid = np.full(len(names), UNKNOWN_CAMERA, np.int32)
        return Pictures(root, names, unknown, camid, np.full(len(names), GALLERY, np.int8))
    pid, camera = np.array(found, np.int64).reshape(-1, 2).T
    (camid,), codes = dense_cameras(camera)
    return Pictures(
        root,
        names,
        pid.astype(np.int32),
        camid,
        np.full(len(names), GALLERY, np.int8),
        camera_codes=codes,
    )


def _of_manifest(path: pathlib.Path, splits: Sequence[str]) -> Pictures:
    collection = read_manifest(path, check_files=False)
    there = [name for name, records in collection.parts.items() if len(records)]
    for name in splits:
        if name not in there:
            raise ValueError(f"{path} has no split {name!r}; it has {', '.join(there)}")
    chosen = list(splits) or [name for name in there if name != "train"] or there
    parts = [collection.parts[name] for name in chosen]
    numbers = [PARTS.index(name) if name in PARTS else GALLERY for name in chosen]
    modality = None
    if all(records.modality is not None for records in parts):
        modality = np.concatenate([records.modality for records in parts])
    return Pictures(
        str(path.parent),
        [name for records in parts for name in records.path],
        np.concatenate([records.pid for records in parts]),
        np.concatenate([records.camid for records in parts]),
        np.repeat(numbers, [len(records) for records in parts]).astype(np.int8),
        camera_codes=tuple(collection.camera_codes),
        modality=modality,
        dataset=collection.name,
    )


def _of_film(path: pathlib.Path, every: int) -> Pictures:
    # Packets are counted, which opens no picture; films that hold fewer are found out later.
    with _av().open(str(path)) as film:
        _check_film(path, film)
        total = sum(1 for packet in film.demux(video=0) if packet.size)
    count = -(-total // every)
    if not count:
        raise ValueError(f"{path} holds no frames")
    names = [f"{path.name}#{row * every:06d}" for row in range(count)]
    unknown = np.full(count, UNLABELLED, np.int32)
    camid = np.full(count, UNKNOWN_CAMERA, np.int32)
    part = np.full(count, GALLERY, np.int8)
    return Pictures(str(path.parent), names, unknown, camid, part, film=path, every=every)


def _frames(
    path: pathlib.Path, chunks: Sequence[range], every: int, pixels: PixelFormat
) -> Iterator[tuple[int, np.ndarray]]:
    """Rows and pixels of the frames that are asked for, as far as the film can be read."""
    av = _av()
    wanted = {row for rows in chunks for row in rows}
    last = max(wanted, default=-1)
    with av.open(str(path)) as film:
        film.streams.video[0].thread_type = "AUTO"
        try:
            for number, frame in enumerate(film.decode(video=0)):
                row, between = divmod(number, every)
                if row in wanted and not between:
                    yield row, fit_image(frame.to_image(), pixels)
                if row >= last:
                    return
        except av.FFmpegError:
            return  # the caller reports the frames that are missing


def _check_film(path: pathlib.Path, film: Any) -> None:
    if not film.streams.video:
        raise ValueError(f"{path} holds no moving pictures")


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "frames of films need PyAV: pip install 'ccafl_jax[video]', or name a folder of frames"
        ) from error
    return av
