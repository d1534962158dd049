"""Folders of synthetic people: which names there are, and drawing them to disk.

The image of a name depends on the name and the seeds alone, so a folder and a list of its names
give the same bytes.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from data_prep.synthetic import streams
from data_prep.synthetic.cameras import draw_cameras
from data_prep.synthetic.names import ParsedName, parse_name
from data_prep.synthetic.output import write_once
from data_prep.synthetic.people import draw_people
from data_prep.synthetic.render import (
    JUNK,
    NORMAL,
    STRANGER,
    encode,
    iterate_images,
    make_plan,
)

VERSION = "1.1"
"""Changes whenever a pixel of any image or a name of any folder does."""
SAMPLE_SHA256 = "1d9eb1705584ee9fc24e0378b36b016819fade9e8c8c135b46eb3c3dc802836a"
"""`sample_hash()` of this version."""


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """What a folder holds.

    Attributes:
      seed: seed of people, cameras and images.
      train_ids: identities of bounding_box_train (odd numbers).
      test_ids: identities of query and gallery (even numbers), each under two or more cameras.
      cameras: number of cameras.
      images: mean number of images of one identity under one camera (long-tailed).
      overlap: share of the training identities seen by two or more cameras.
      strength: camera strength; 0 leaves colours, tone and exposure of all cameras alike.
      junk: junk images (-1) in the gallery per test identity.
      distractors: distractor images (0000) in the gallery per test identity.
      height: height of the images in pixels.
      width: width of the images in pixels.
    """

    seed: int = 0
    train_ids: int = 100
    test_ids: int = 60
    cameras: int = 5
    images: float = 4.0
    overlap: float = 1.0
    strength: float = 1.0
    junk: float = 0.5
    distractors: float = 1.0
    height: int = 128
    width: int = 64

    def __post_init__(self):
        for name in ("train_ids", "test_ids", "junk", "distractors", "strength"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name, least in (("cameras", 1), ("images", 1.0), ("height", 16), ("width", 8)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap is {self.overlap}; expected a share between 0 and 1")


def folder_names(config: SyntheticConfig) -> dict[str, list[str]]:
    """File names of a folder in Market-1501 layout.

    More identities append names; they change none. Every test identity has one query image per
    camera, its other images are in the gallery.

    Args:
      config: what the folder holds.

    Returns:
      Names by sub-folder: bounding_box_train, query, bounding_box_test.
    """
    train = _tracks(config, 1 + 2 * np.arange(config.train_ids), config.overlap, fewest=1)
    test = _tracks(config, 2 + 2 * np.arange(config.test_ids), 1.0, fewest=2)
    query = [track[0] for track in test]
    gallery = [name for track in test for name in track[1:]]
    for pid, count in (("-1", config.junk), ("0000", config.distractors)):
        gallery += _extras(config, pid, round(count * config.test_ids))
    return {
        "bounding_box_train": sorted(name for track in train for name in track),
        "query": sorted(query),
        "bounding_box_test": sorted(gallery),
    }


def write_folder(out: str | Path, config: SyntheticConfig) -> dict[str, int]:
    """Draws a folder in Market-1501 layout with its generator.json.

    A folder that already holds the same settings of the same version is left as it is.

    Args:
      out: folder to write; must not hold anything else.
      config: what the folder holds.

    Returns:
      Number of images by sub-folder.

    Raises:
      FileExistsError: if `out` holds something else.
    """
    names = folder_names(config)
    lines = [f"{folder}/{name}" for folder, group in names.items() for name in group]
    _write(Path(out), lines, config, {}, tuple(names))
    return {folder: len(group) for folder, group in names.items()}


def write_names(
    out: str | Path, lines: Iterable[str], config: SyntheticConfig, *, pid_offset: int = 0
) -> dict[str, int]:
    """Draws the images of any list of Market-, Duke- or MSMT17-style names.

    Args:
      out: folder to write; images lie at their listed paths within it.
      lines: one name, or one `path label` pair, per line; empty lines are passed over.
      config: seed, strength, height and width are used.
      pid_offset: added to every identity, for lists whose numbers clash (MSMT17 counts its
        training and test identities both from 0).

    Returns:
      {"images": number of images}.

    Raises:
      ValueError: for a name of no known family.
      FileExistsError: if `out` holds something else.
    """
    lines = [line.strip() for line in lines if line.strip()]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    extra = {"names_sha256": digest, "pid_offset": pid_offset}
    _write(Path(out), lines, config, extra, ())
    return {"images": len(lines)}


def render_names(
    parsed: list[ParsedName], config: SyntheticConfig, *, pid_offset: int = 0
) -> Iterable[tuple[np.ndarray, int]]:
    """Yields (uint8[height, width, 3], JPEG quality) of each name, in order."""
    if not parsed:
        return
    is_person = np.array([name.is_person for name in parsed])
    take = np.array(
        [streams.stream_key(PurePosixPath(name.path).stem) for name in parsed], np.uint64
    )
    # Junk and distractors show passers-by, never an identity of the list.
    pid = np.array([name.pid + pid_offset if name.is_person else 0 for name in parsed])
    pid[~is_person] = (take[~is_person] % np.uint64(256)).astype(int)
    people, person = [], np.zeros(len(parsed), np.int64)
    for domain, rows in (("data", is_person), ("bystander", ~is_person)):
        unique, inverse = np.unique(pid[rows], return_inverse=True)
        person[rows] = inverse + len(people)
        people += draw_people(unique, seed=config.seed, domain=domain)
    codes, camera = np.unique([name.camera for name in parsed], return_inverse=True)
    cameras = draw_cameras(codes, seed=config.seed, strength=config.strength)
    kind = np.array(
        [NORMAL if name.is_person else JUNK if name.pid < 0 else STRANGER for name in parsed]
    )
    plan = make_plan(people, cameras, person, camera, take, seed=config.seed, kind=kind)
    shots = iterate_images(people, cameras, plan, height=config.height, width=config.width)
    for pixels, seen_by in shots:
        yield pixels, seen_by.quality


@functools.cache
def sample_hash() -> str:
    """SHA-256 of a small sample of names and pixels (before JPEG): the generator's fingerprint."""
    config = SyntheticConfig(seed=7, train_ids=4, test_ids=4, cameras=3, images=2.0)
    names = folder_names(config)
    lines = [f"{folder}/{name}" for folder, group in names.items() for name in group]
    digest = hashlib.sha256("\n".join(lines).encode())
    for pixels, quality in render_names([parse_name(line) for line in lines], config):
        digest.update(pixels.tobytes())
        digest.update(bytes([quality]))
    return digest.hexdigest()


def _tracks(config, pids, overlap, *, fewest) -> list[list[str]]:
    """Names by (identity, camera) in the order of identities."""
    if len(pids) == 0:
        return []
    everywhere = np.arange(1, config.cameras + 1)
    chance = streams.uniform(streams.stream_key("spread", config.seed), pids, 2)
    several = 2 + np.floor(chance[:, 1] * (config.cameras - 1)).astype(int)
    spread = np.minimum(np.where(chance[:, 0] < overlap, several, 1), config.cameras)
    order = streams.uniform(streams.stream_key("visits", config.seed), pids, config.cameras)
    tracks = []
    for pid, count, rank in zip(pids, spread, np.argsort(order, axis=1), strict=True):
        for camera in np.sort(everywhere[rank[:count]]):
            tracks.append(_track(config, int(pid), int(camera), fewest))
    return tracks


def _track(config, pid, camera, fewest) -> list[str]:
    key = streams.stream_key("tracks", config.seed)
    u = streams.uniform(key, streams.rows_of(0, np.array([pid]), np.array([camera])), 8)[0]
    # Nearly log-normal with mean config.images: a few long tracks, many short ones.
    spread = 0.6 * 2 * (u[0] + u[1] + u[2] - 1.5)
    count = int(np.clip(round(config.images * np.exp(spread - 0.18)), fewest, 8 * config.images))
    first, sequence = int(u[3] * 90000), 1 + int(u[4] * 6)
    return [
        f"{pid:04d}_c{camera}s{sequence}_{first + 25 * take:06d}_{1 + take % 4:02d}.jpg"
        for take in range(count)
    ]


def _extras(config, pid: str, count: int) -> list[str]:
    key = streams.stream_key("extras", config.seed, pid)
    names = []
    for row, u in enumerate(streams.uniform(key, np.arange(count), 3)):
        camera, sequence = 1 + int(u[0] * config.cameras), 1 + int(u[1] * 6)
        # The row makes the frame unique.
        names.append(f"{pid}_c{camera}s{sequence}_{int(u[2] * 80) * 10000 + row:06d}_00.jpg")
    return names


def _write(out, lines, config, extra, folders) -> None:
    parsed = [parse_name(line) for line in lines]
    record = {
        "generator": "synthetic people",
        "version": VERSION,
        "sample_sha256": sample_hash(),
        "settings": dataclasses.asdict(config) | extra,
        "images": len(lines),
    }

    def draw(partial: Path) -> None:
        for folder in {PurePosixPath(name.path).parent for name in parsed} | set(folders):
            (partial / folder).mkdir(parents=True, exist_ok=True)
        pictures = render_names(parsed, config, pid_offset=extra.get("pid_offset", 0))
        for name, (pixels, quality) in zip(parsed, pictures, strict=True):
            (partial / name.path).write_bytes(encode(pixels, quality))

    write_once(out, record, draw)
