"""What all layouts are made of: tracks of pictures, sensors, info files, and drawing them."""

import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
from PIL import Image
from scipy.io import savemat

from data_prep.synthetic import streams
from data_prep.synthetic.cameras import VISIBLE, Camera, draw_cameras
from data_prep.synthetic.infrared import infrared_camera
from data_prep.synthetic.people import Person, draw_people
from data_prep.synthetic.render import (
    IMAGE_DRAWS,
    NORMAL,
    VISIT_DRAWS,
    Moment,
    encode,
    shoot,
)
from data_prep.synthetic.walks import moments, walk_draws


@dataclasses.dataclass(frozen=True)
class LayoutConfig:
    """Settings that all layouts have.

    Attributes:
      seed: seed of people, cameras and images.
      strength: camera strength; 0 leaves colours, tone and exposure of all cameras alike.
      height: height of the images in pixels.
      width: width of the images in pixels.
    """

    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Smallest and largest value of settings."""

    seed: int = 0
    strength: float = 1.0
    height: int = 128
    width: int = 64

    def __post_init__(self):
        common = {"strength": (0, 10), "height": (16, 4096), "width": (8, 4096)}
        for name, (least, most) in {**common, **self.LIMITS}.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} is {value}; expected {least} to {most}")


@dataclasses.dataclass(frozen=True)
class Sensor:
    """A camera as a layout uses it.

    Attributes:
      code: number of the camera that is drawn.
      band: VISIBLE, NEAR or THERMAL.
      scenes_of: number of the camera whose scenes it sees, where that is another one.
      view: main direction of walking, where it is not the camera's own.
    """

    code: int
    band: str = VISIBLE
    scenes_of: int | None = None
    view: int | None = None


@dataclasses.dataclass(frozen=True)
class Track:
    """Pictures of one person under one camera.

    Attributes:
      paths: of the pictures, below the root of the set.
      pid: identity, for NORMAL tracks; otherwise one of the passers-by.
      sensor: what they are taken with.
      number: tells apart the tracks of one person under one camera.
      frames: numbers of the pictures within the track; 0, 1, 2, ... if None.
      kind: NORMAL, JUNK or STRANGER, as in `render`.
      walk: whether the pictures follow one another; otherwise each stands alone.
      ambiguity: of a walk, as `WalksConfig` has it.
    """

    paths: tuple[str, ...]
    pid: int
    sensor: Sensor
    number: int = 0
    frames: tuple[int, ...] | None = None
    kind: int = NORMAL
    walk: bool = True
    ambiguity: float = 0.0


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A set before it is drawn.

    Attributes:
      tracks: all pictures.
      files: contents of the info files by path.
      counts: what to tell the user.
    """

    tracks: Sequence[Track]
    files: Mapping[str, bytes]
    counts: dict[str, int]


def draw_blueprint(folder: Path, plan: Blueprint, config: LayoutConfig) -> None:
    """Writes the pictures and info files of a set into a folder."""
    made = set()
    for path, data in (*plan.files.items(), *_encoded(plan.tracks, config)):
        parent = PurePosixPath(path).parent
        if parent not in made:
            (folder / parent).mkdir(parents=True, exist_ok=True)
            made.add(parent)
        (folder / path).write_bytes(data)


def iterate_pictures(
    tracks: Iterable[Track], config: LayoutConfig
) -> Iterator[tuple[str, np.ndarray, Camera]]:
    """Yields (path, uint8[height, width, 3], camera) of every picture, before compression."""
    cameras: dict[Sensor, Camera] = {}
    people: dict[tuple[str, int], Person] = {}
    size = (config.width, config.height)
    for track in tracks:
        if track.sensor not in cameras:
            cameras[track.sensor] = _camera(track.sensor, config)
        camera = cameras[track.sensor]
        who = ("data" if track.kind == NORMAL else "bystander", track.pid)
        if who not in people:
            people[who] = draw_people([track.pid], seed=config.seed, domain=who[0])[0]
        of_images, of_visit, happens = _draws(track, config.seed)
        for path, draws, moment in zip(track.paths, of_images.tolist(), happens, strict=True):
            pixels = shoot(people[who], camera, draws, of_visit, track.kind, size, moment)
            yield path, pixels, camera


def cameras_seen(
    config: LayoutConfig, pids: np.ndarray, cameras: int, *, fewest: int, most: int
) -> list[list[int]]:
    """Numbers (from 1, sorted) of the `fewest` to `most` cameras that see each identity."""
    fewest, most = min(fewest, cameras), min(most, cameras)
    order = streams.uniform(streams.stream_key("layout visits", config.seed), pids, cameras + 1)
    count = fewest + np.floor(order[:, cameras] * (most - fewest + 1)).astype(int)
    ranks = np.argsort(order[:, :cameras], axis=1, kind="stable") + 1
    return [sorted(rank[:n].tolist()) for rank, n in zip(ranks, count, strict=True)]


def between(config: LayoutConfig, what: str, least: int, most: int, *parts: int) -> int:
    """A random whole number from `least` to `most`, both included; `parts` name whose it is."""
    row = np.array([streams.stream_key(*parts)], np.uint64)
    u = streams.uniform(streams.stream_key("layout", what, config.seed), row, 1)[0, 0]
    return least + int(u * (most - least + 1))


def shuffled(config: LayoutConfig, what: str, length: int, *parts: int) -> np.ndarray:
    """A random order of 0 .. length - 1: int64[length]; `parts` name whose it is."""
    key = streams.stream_key("layout order", what, config.seed, *parts)
    return np.argsort(streams.uniform(key, np.arange(length), 1)[:, 0], kind="stable")


def lines(texts: Iterable[str]) -> bytes:
    """A text file of one line each."""
    return "".join(f"{text}\n" for text in texts).encode()


def matlab(variables: Mapping[str, np.ndarray]) -> bytes:
    """A MATLAB 5 file; its header holds no time, so the bytes depend on the variables alone."""
    buffer = io.BytesIO()
    savemat(buffer, dict(variables), do_compression=True)
    return b"MATLAB 5.0 MAT-file, synthetic people".ljust(116) + buffer.getvalue()[116:]


def cells(entries: Sequence[np.ndarray]) -> np.ndarray:
    """A column of MATLAB cells: object[n, 1]."""
    column = np.empty((len(entries), 1), object)
    for row, entry in enumerate(entries):
        column[row, 0] = entry
    return column


def _camera(sensor: Sensor, config: LayoutConfig) -> Camera:
    options = {"seed": config.seed, "strength": config.strength}
    camera = draw_cameras([sensor.code], **options)[0]
    if sensor.scenes_of is not None:
        other = draw_cameras([sensor.scenes_of], **options)[0]
        camera = dataclasses.replace(camera, scenes=other.scenes, obstacles=other.obstacles)
    if sensor.view is not None:
        camera = dataclasses.replace(camera, view=sensor.view, reversal=0.0)
    return camera if sensor.band == VISIBLE else infrared_camera(camera, sensor.band)


def _draws(track: Track, seed: int) -> tuple[np.ndarray, list[float], list[Moment]]:
    """Draws of the images, float64[n, IMAGE_DRAWS], and of the visit; what happens on the way."""
    frames = np.arange(len(track.paths)) if track.frames is None else np.array(track.frames)
    world = streams.stream_key("tracks", seed)
    parts = [np.array([x]) for x in (track.kind, track.pid, track.sensor.code, track.number)]
    row = streams.rows_of(world, *parts)
    of_visit = streams.uniform(streams.stream_key("visits"), row, VISIT_DRAWS)[0].tolist()
    if track.walk:
        walk = int(row[0])
        return walk_draws(walk, frames), of_visit, moments(walk, frames, track.ambiguity)
    rows = streams.rows_of(int(row[0]), frames)
    of_images = streams.uniform(streams.stream_key("shots"), rows, IMAGE_DRAWS)
    return of_images, of_visit, [Moment()] * len(frames)


def _encoded(tracks: Iterable[Track], config: LayoutConfig) -> Iterator[tuple[str, bytes]]:
    for path, pixels, camera in iterate_pictures(tracks, config):
        yield path, _encode(path, pixels, camera)


_FORMATS = {".png": "PNG", ".bmp": "BMP"}


def _encode(path: str, pixels: np.ndarray, camera: Camera) -> bytes:
    """File of a picture: JPEG (one channel for infrared), PNG or BMP, as the name ends."""
    suffix = PurePosixPath(path).suffix
    if suffix == ".jpg":
        return encode(pixels if camera.band == VISIBLE else pixels[..., 0], camera.quality)
    buffer = io.BytesIO()
    # Level 1: grain does not compress, and tens of frames are to be drawn quickly.
    Image.fromarray(pixels).save(buffer, _FORMATS[suffix], compress_level=1)
    return buffer.getvalue()
