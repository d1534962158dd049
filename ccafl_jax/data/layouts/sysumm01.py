"""Reader of SYSU-MM01, visible and infrared images of six cameras.

    ROOT/cam1/0001/0001.jpg               cameras 1, 2, 4, 5 visible; 3, 6 infrared
    ROOT/exp/train_id.txt                 one line of ids, "1,2,5"; or train_id.mat (`id`)
    ROOT/exp/val_id.txt, test_id.txt
    ROOT/exp/rand_perm_cam.mat            optional: the official draws of the gallery

Training takes the ids of the train and the val list. Of the test ids, every infrared image is a
query, and a few visible ones of each (id, camera) are drawn for the gallery, ten times over.

    ROOT/train_{rgb,ir}_resized_{img,label,path}.npy

is the training part as CCLNet keeps it, with the images resized; it is read where the raw tree is
not there, and `write_arrays` makes it.
"""

import contextlib
import os
import pathlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.io

from ccafl_jax.data.decoded import write_images
from ccafl_jax.data.layouts.find import find_any_root, list_images, subfolders
from ccafl_jax.data.layouts.matlab import read_integers
from ccafl_jax.data.layouts.scan import NOT_AN_IMAGE
from ccafl_jax.data.layouts.visible_infrared import assemble, check_one_to_one
from ccafl_jax.data.pixel_arrays import PixelArrays, map_array
from ccafl_jax.data.records import (
    BROKEN,
    INFRARED,
    VISIBLE,
    Collection,
    RawPart,
    ReIDDataset,
    collect,
)
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.files import exclusive, replacing
from ccafl_jax.options import require, require_choice
from ccafl_jax.ragged import ragged

VISIBLE_CAMERAS, INFRARED_CAMERAS = (1, 2, 4, 5), (3, 6)
GALLERY_CAMERAS = {"all": VISIBLE_CAMERAS, "indoor": (1, 2)}
"""Cameras of the gallery by mode; those of the queries are the infrared ones."""
DRAWS = ("seeded", "official")
TRIALS = 10
ARRAY_PIXELS = PixelFormat(288, 144, "lanczos")
"""What CCLNet makes of the training images."""

_PERMUTATIONS = "exp/rand_perm_cam.mat"
_RAW = (*(f"cam{camera}" for camera in range(1, 7)), "exp")
_SHORT = {VISIBLE: "rgb", INFRARED: "ir"}
_ARRAYS = {
    (modality, kind): f"train_{short}_resized_{kind}.npy"
    for modality, short in _SHORT.items()
    for kind in ("img", "label", "path")
}
_ID = re.compile(r"[0-9]{1,9}")

# Paths of the images of one camera and id, by (camera, id).
_Images = dict[tuple[int, int], list[str]]


def read_sysumm01(root: str | os.PathLike, *, name: str = "sysumm01") -> Collection:
    """Reads the raw tree or, where that is not there, CCLNet's resized training arrays.

    Images of ids in no list are left out and counted.

    Args:
      root: the folder that holds cam1 to cam6 and exp, or one up to three levels above it.
      name: of the data set.

    Returns:
      The parts train (visible first, then infrared; by id, camera and file) and test (by camera,
      id and file). With rand_perm_cam.mat, the tables `permutations.camera` and
      `permutations.pid` (int32[e]), `permutations.values` and `permutations.offsets`: entry e
      holds ten permutations of the images of its camera and id, counted from 0, one after the
      other. The arrays give the part train alone.

    Raises:
      FileNotFoundError: the tree or a list is missing; the message shows what is expected.
      ValueError: a list cannot be read or overlaps another, no image of the listed ids, or
        permutations of more or fewer images than are there.
    """
    base, form = find_any_root(root, (_RAW, tuple(_ARRAYS.values())), tree=_expected_tree())
    return _read_arrays(base, name) if form else _read_tree(base, name)


def select_sysumm01(
    collection: Collection,
    *,
    mode: str = "all",
    shots: int = 1,
    trial: int = 0,
    draw: str = "seeded",
) -> ReIDDataset:
    """One trial of the protocol: all infrared test images against drawn visible ones.

    Args:
      collection: from `read_sysumm01`.
      mode: `all` (gallery of cameras 1, 2, 4, 5) or `indoor` (1, 2).
      shots: gallery images per (id, camera); the protocol knows 1 and 10.
      trial: 0 to 9; results are averaged over ten.
      draw: `seeded` as CCLNet and most published code draws, or `official` by the permutations
        that come with the data set; see `draw_gallery`.

    Returns:
      Training set, queries and gallery; the last two are empty when the collection was read from
      the training arrays, which its warnings say.

    Raises:
      FileNotFoundError: `official`, and the data set was read without rand_perm_cam.mat.
      ValueError: an option out of its range.
    """
    require_choice("mode", mode, tuple(GALLERY_CAMERAS))
    require_choice("draw", draw, DRAWS)
    train = collection.parts["train"]
    test = collection.parts.get("test")
    if test is None:
        nothing = train.take(np.zeros(0, np.int64))
        return assemble(collection, train, nothing, nothing)
    permutations = None
    if draw == "official":
        permutations = official_draws(collection.tables, collection.root)
    gallery = draw_gallery(
        test.pid,
        np.asarray(collection.camera_codes)[test.camid],
        cameras=GALLERY_CAMERAS[mode],
        shots=shots,
        trial=trial,
        permutations=permutations,
    )
    query = np.flatnonzero(test.modality == INFRARED)
    left_out = collection.report.get("test", {}).get(BROKEN, 0)
    if left_out:
        text = f"{left_out} broken test images were left out: galleries are drawn from the others"
        collection = collection.warn(f"{text}, so they differ from the published draws")
    return assemble(
        collection,
        train,
        test.take(query),
        test.take(gallery),
        unused=len(test) - len(query) - len(gallery),
    )


def draw_gallery(
    pid: np.ndarray,
    camera: np.ndarray,
    *,
    cameras: Sequence[int],
    shots: int = 1,
    trial: int = 0,
    permutations: Mapping[tuple[int, int], np.ndarray] | None = None,
) -> np.ndarray:
    """Draws gallery images of every (id, camera).

    Without permutations, a generator of Python's `random` of its own is seeded with `trial` and
    asked by id, then by camera: once for one image (`choice`), as the published code does, or for
    several different ones (`sample`), which that code does not know.

    Args:
      pid: int[n], identities.
      camera: int[n], raw cameras; the images of a pair stand in the order of their file names.
      cameras: to draw from.
      shots: images per pair, at most as many as there are.
      trial: from 0; below 10 with the official permutations.
      permutations: int[trials, images of the pair], counted from 0, by (camera, id); the first
        `shots` of row `trial` are taken.

    Returns:
      int64[m], rows by id, then by camera, then as drawn.

    Raises:
      ValueError: `shots` or `trial` out of range, or permutations of another number of images.

    Source: `process_gallery_sysu` of CCLNet, and the evaluation code of SYSU-MM01.
    """
    require(shots >= 1, f"shots is {shots}, must be 1 or more")
    require(trial >= 0, f"trial is {trial}, must be 0 or more")
    require(
        permutations is None or trial < TRIALS,
        f"trial is {trial}, must be below {TRIALS}, the number of official draws",
    )
    rng = random.Random(int(trial))
    drawn = [np.zeros(0, np.int64)]
    for rows in _groups(pid, camera, cameras):
        if permutations is not None:
            pair = int(camera[rows[0]]), int(pid[rows[0]])
            places = _permutation(permutations, pair, len(rows))[trial][:shots]
        elif shots == 1:
            places = [rng.choice(range(len(rows)))]
        else:
            places = rng.sample(range(len(rows)), min(int(shots), len(rows)))
        drawn.append(rows[places])
    return np.concatenate(drawn)


def write_arrays(
    collection: Collection,
    folder: str | os.PathLike,
    *,
    pixels: PixelFormat = ARRAY_PIXELS,
    overwrite: bool = False,
    progress: bool = True,
    workers: int | None = None,
) -> list[pathlib.Path]:
    """Writes the training part as CCLNet keeps it; the files appear when all are complete.

    For each modality, images by identity, camera and file name:

        train_{rgb,ir}_resized_img.npy      uint8[n, height, width, 3], RGB
        train_{rgb,ir}_resized_label.npy    int64[n], from 0 in the order of the ids of both
        train_{rgb,ir}_resized_path.npy     str[n], absolute paths, .../camN/ID/file

    The published code numbers the ids that have infrared images and fails at others; on SYSU-MM01
    that is the same.

    Args:
      collection: from `read_sysumm01`.
      folder: for the files; made if it is not there.
      pixels: size and filter.
      overwrite: replace files that are already there.
      progress: shows bars with the time left.
      workers: decoding threads; the number of processors when None.

    Returns:
      The six files.

    Raises:
      FileExistsError: a file is already there.
      FileNotFoundError, ValueError: an image is gone or damaged, or a modality has none.
      OSError: the files cannot be written, or another process is writing them.

    Source: `data/process.py` of CCLNet.
    """
    folder = pathlib.Path(folder).expanduser().absolute()
    train = collection.parts["train"]
    rows = {modality: np.flatnonzero(train.modality == modality) for modality in _SHORT}
    for modality, chosen in rows.items():
        if not len(chosen):
            kind = "infrared" if modality == INFRARED else "visible"
            raise ValueError(f"{collection.root} has no {kind} training images; expected some")
    _, label = np.unique(train.pid, return_inverse=True)
    path = np.array([f"{collection.root}/{name}" for name in train.path])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make {folder}: {error.strerror}; name another folder") from error
    busy = f"another process is writing the arrays in {folder}; wait for it, or stop it"
    with exclusive(folder / ".train_resized.lock", busy=busy), contextlib.ExitStack() as complete:
        files = {key: folder / name for key, name in _ARRAYS.items()}
        present = [file for file in files.values() if file.exists()]
        if present and not overwrite:
            raise FileExistsError(f"{present[0]} is already there; name another folder")
        # The last to be opened is the first to take its name. Paths come last, and those of an
        # earlier set go first: six files are of one set, however a process ends.
        order = sorted(files, key=lambda key: key[1] != "path")
        partial = {key: complete.enter_context(replacing(files[key])) for key in order}
        for modality, chosen in rows.items():
            for kind, values in (("label", label.astype(np.int64)), ("path", path)):
                with partial[modality, kind].open("wb") as stream:
                    np.save(stream, values[chosen])
            write_images(
                partial[modality, "img"],
                train.take(chosen),
                pixels,
                progress=progress,
                workers=workers,
            )
        for modality in _SHORT:
            files[modality, "path"].unlink(missing_ok=True)
    return list(files.values())


def parse_ids(text: str, where: str) -> list[int]:
    """The ids of a list: whole numbers between commas, blanks or line ends.

    Raises:
      ValueError: something else, or nothing.
    """
    ids = []
    for word in text.removeprefix("\ufeff").replace(",", " ").split():
        if not _ID.fullmatch(word):
            raise ValueError(f"{where}: {word[:40]!r} is not an id; expected a line such as 1,2,5")
        ids.append(int(word))
    if not ids:
        raise ValueError(f"{where}: no id in it; expected a line such as 1,2,5")
    return ids


# The raw tree.


def _read_tree(base: pathlib.Path, name: str) -> Collection:
    train_ids = _read_ids(base, "train") | _read_ids(base, "val")
    test_ids = _read_ids(base, "test")
    both = sorted(train_ids & test_ids)
    if both:
        raise ValueError(
            f"{base / 'exp'}: {len(both)} ids are in the training and the test lists (e.g. "
            f"{both[0]}); expected lists without a common id: take them from the same download"
        )
    images, others, stray = _scan(base)
    report = _report(images, others, train_ids, test_ids, stray)
    report["warnings"] = (
        *_without_images("training", train_ids, images, base),
        *_without_images("test", test_ids, images, base),
    )
    train = [pair for pair in images if pair[1] in train_ids]
    train.sort(key=lambda pair: (_modality(pair[0]), pair[1], pair[0]))
    test = sorted(pair for pair in images if pair[1] in test_ids)
    permutations = base / _PERMUTATIONS
    tables = _read_permutations(permutations, images, test_ids) if permutations.is_file() else {}
    parts = {"train": _part(train, images), "test": _part(test, images)}
    return collect(name, base, parts, tables=tables, report=report)


def _read_ids(base: pathlib.Path, which: str) -> set[int]:
    text, mat = (base / "exp" / f"{which}_id.{suffix}" for suffix in ("txt", "mat"))
    if text.is_file():
        return set(parse_ids(text.read_bytes().decode("utf-8", "replace"), str(text)))
    if mat.is_file():
        # Numbers take the way of the text, which knows what an id is.
        return set(parse_ids(",".join(map(str, read_integers(mat, "id").flat)), str(mat)))
    raise FileNotFoundError(f"{base / 'exp'} lacks {text.name} and {mat.name}; expected one")


def _scan(base: pathlib.Path) -> tuple[_Images, dict[int, int], int]:
    """Images, the number of other files by id, and that of entries outside the folders of ids."""
    images: _Images = {}
    others: dict[int, int] = {}
    stray = 0
    for camera in range(1, 7):
        folders, elsewhere = _id_folders(base / f"cam{camera}")
        stray += elsewhere
        for folder in folders:
            files, rest = list_images(base / f"cam{camera}" / folder)
            pid = int(folder)
            others[pid] = others.get(pid, 0) + rest
            if files:
                paths = images.setdefault((camera, pid), [])
                paths += [f"cam{camera}/{folder}/{file}" for file in files]
    return images, others, stray


def _id_folders(camera: pathlib.Path) -> tuple[list[str], int]:
    folders = [name for name in subfolders(camera) if _ID.fullmatch(name)]
    return folders, len(os.listdir(camera)) - len(folders)


def _report(
    images: _Images, others: dict[int, int], train_ids: set[int], test_ids: set[int], stray: int
) -> dict[str, Any]:
    """What became of every file; those of ids in no list stand with the training part."""
    number = {"train": 0, "test": 0, "unlisted": 0}
    for (_, pid), paths in images.items():
        part = "train" if pid in train_ids else "test" if pid in test_ids else "unlisted"
        number[part] += len(paths)
    in_test = sum(rest for pid, rest in others.items() if pid in test_ids)
    return {
        "train": {
            "read": number["train"],
            "of ids in no list": number["unlisted"],
            NOT_AN_IMAGE: sum(others.values()) - in_test,
            "outside the folders of ids": stray,
        },
        "test": {"read": number["test"], NOT_AN_IMAGE: in_test},
    }


def _without_images(what: str, ids: set[int], images: _Images, base: pathlib.Path) -> list[str]:
    """A warning about listed ids of which there is no image; an error if that is all of them."""
    absent = sorted(ids - {pid for _, pid in images})
    if len(absent) == len(ids):
        raise ValueError(
            f"{base}: no image of the {len(ids)} {what} ids (e.g. cam1/{absent[0]:04d}/0001.jpg); "
            "expected folders camN/ID of the ids in exp"
        )
    if absent:
        return [f"{len(absent)} of {len(ids)} {what} ids have no image (e.g. {absent[0]:04d})"]
    return []


def _part(pairs: list[tuple[int, int]], images: _Images) -> RawPart:
    counts = [len(images[pair]) for pair in pairs]
    camera, pid = (
        np.repeat(np.asarray([pair[place] for pair in pairs], np.int64), counts) for place in (0, 1)
    )
    return RawPart(
        path=[path for pair in pairs for path in images[pair]],
        pid=pid,
        camera=camera,
        modality=np.where(np.isin(camera, INFRARED_CAMERAS), INFRARED, VISIBLE),
    )


def _modality(camera: int) -> int:
    return INFRARED if camera in INFRARED_CAMERAS else VISIBLE


# The official draws.


def _read_permutations(
    file: pathlib.Path, images: _Images, test_ids: set[int]
) -> dict[str, np.ndarray]:
    cells = _load_cells(file, "rand_perm_cam").ravel()
    if len(cells) != 6 or cells.dtype != object:
        raise ValueError(f"{file}: expected rand_perm_cam to be 6 cells, one per camera")
    pairs, values = [], []
    for camera, cell in enumerate(cells, start=1):
        for pid in sorted(test_ids):
            found = cell.flat[pid - 1] if 1 <= pid <= cell.size else np.zeros((0, 0))
            count = len(images.get((camera, pid), ()))
            if np.size(found) or count:
                pairs.append((camera, pid))
                values.append(_checked(found, count, f"{file}: camera {camera}, id {pid:04d}"))
    camera, pid = np.asarray(pairs, np.int32).reshape(-1, 2).T
    tables = {"permutations.camera": camera, "permutations.pid": pid}
    return tables | ragged("permutations", values, dtype=np.int32)


def _checked(found: np.ndarray, count: int, where: str) -> np.ndarray:
    """int32[TRIALS * count], counted from 0."""
    found = np.asarray(found)
    listed = found.shape[1] if found.ndim == 2 and found.size else 0
    if listed != count:
        raise ValueError(
            f"{where}: permutations of {listed} images, but {count} are there; restore the "
            f"images, or remove the file and use draw='seeded'"
        )
    if not np.array_equal(np.sort(found, axis=1), np.tile(np.arange(1, count + 1), (TRIALS, 1))):
        raise ValueError(
            f"{where}: {found.dtype}{list(found.shape)} that does not hold {TRIALS} permutations "
            f"of 1 to {count}; download the file anew"
        )
    return found.astype(np.int32).ravel() - 1


def official_draws(
    tables: Mapping[str, np.ndarray], where: str
) -> dict[tuple[int, int], np.ndarray]:
    """The data set's own permutations, as `draw_gallery` takes them.

    Args:
      tables: of the collection.
      where: they come from, for the message.

    Returns:
      int32[trials, images of the pair], counted from 0, by (camera, id).

    Raises:
      FileNotFoundError: the tables do not hold them.
    """
    if "permutations.values" not in tables:
        raise FileNotFoundError(
            f"{where} was read without {_PERMUTATIONS}; put the file there and read "
            "again, or use draw='seeded'"
        )
    pairs = zip(tables["permutations.camera"], tables["permutations.pid"], strict=True)
    offsets, values = tables["permutations.offsets"], tables["permutations.values"]
    return {
        (int(camera), int(pid)): values[offsets[e] : offsets[e + 1]].reshape(TRIALS, -1)
        for e, (camera, pid) in enumerate(pairs)
    }


def _permutation(
    permutations: Mapping[tuple[int, int], np.ndarray], pair: tuple[int, int], count: int
) -> np.ndarray:
    found = permutations.get(pair, np.zeros((TRIALS, 0), np.int32))
    listed = found.shape[1]
    require(
        listed == count,
        f"camera {pair[0]}, id {pair[1]:04d}: {count} images, but official permutations of "
        f"{listed}; restore the images, or use draw='seeded'",
    )
    return found


def _groups(pid: np.ndarray, camera: np.ndarray, cameras: Iterable[int]) -> list[np.ndarray]:
    """Rows of each (id, camera), ascending; the order of the rows of a pair stays."""
    rows = np.flatnonzero(np.isin(camera, list(cameras)))
    if not rows.size:
        return []
    rows = rows[np.lexsort((camera[rows], pid[rows]))]
    ends = (np.diff(pid[rows]) != 0) | (np.diff(camera[rows]) != 0)
    return np.split(rows, np.flatnonzero(ends) + 1)


def _load_cells(file: pathlib.Path, variable: str) -> np.ndarray:
    try:
        found = scipy.io.loadmat(file)
    except Exception as error:  # SciPy's reader raises many kinds; all mean a damaged file.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file}: not a readable MATLAB file ({reason})") from error
    if variable not in found:
        raise ValueError(f"{file}: holds no variable {variable!r}; download the file anew")
    return found[variable]


# The training arrays.


def _read_arrays(base: pathlib.Path, name: str) -> Collection:
    columns = [_array_columns(base, modality) for modality in (VISIBLE, INFRARED)]
    paths, cameras, pids, labels = (
        [value for column in columns for value in column[place]] for place in range(4)
    )
    check_one_to_one(np.asarray(labels), np.asarray(pids), f"{base}/train_*_resized_label.npy")
    modality = np.where(np.isin(cameras, INFRARED_CAMERAS), INFRARED, VISIBLE)
    source = PixelArrays([base / _ARRAYS[m, "img"] for m in (VISIBLE, INFRARED)], paths)
    report = {
        "train": {"read": len(paths)},
        "warnings": (
            f"{base} holds the resized training arrays only, so queries and gallery are empty; "
            "put cam1 to cam6 and exp beside them to test",
        ),
    }
    part = RawPart(source.names, pids, cameras, modality=modality)
    return collect(name, base, {"train": part}, report=report, source=source)


def _array_columns(
    base: pathlib.Path, modality: int
) -> tuple[list[str], list[int], list[int], list[int]]:
    """Relative paths, cameras, ids and labels of the images of one modality."""
    file, label_file = (base / _ARRAYS[modality, kind] for kind in ("path", "label"))
    texts, labels = map_array(file), map_array(label_file)
    if texts.dtype.kind != "U" or texts.ndim != 1:
        raise ValueError(f"{file}: {texts.dtype}{list(texts.shape)}; expected text, one per image")
    if labels.dtype.kind not in "iu" or labels.shape != texts.shape:
        raise ValueError(
            f"{label_file}: {labels.dtype}{list(labels.shape)}; expected {len(texts)} whole "
            f"numbers, one per path"
        )
    paths, cameras, pids = [], [], []
    for row, text in enumerate(texts.tolist()):
        # Paths of any machine: the Windows rules take both kinds of slash.
        parts = pathlib.PureWindowsPath(text).parts[-3:]
        found = re.fullmatch(r"cam([1-6])/([0-9]{1,9})/[^/]+", "/".join(parts))
        if found is None or _modality(int(found[1])) != modality:
            listed = VISIBLE_CAMERAS if modality == VISIBLE else INFRARED_CAMERAS
            raise ValueError(
                f"{file} row {row}: {text!r} does not end in camN/ID/file with N of "
                f"{', '.join(map(str, listed))}"
            )
        paths.append("/".join(parts))
        cameras.append(int(found[1]))
        pids.append(int(found[2]))
    return paths, cameras, pids, labels.tolist()


def _expected_tree() -> str:
    return (
        "ROOT/cam1/0001/0001.jpg (to cam6) with ROOT/exp/{train,val,test}_id.txt, or "
        "ROOT/train_{rgb,ir}_resized_{img,label,path}.npy"
    )
