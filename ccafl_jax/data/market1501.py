"""Reader of folders in the Market-1501 layout.

    ROOT/bounding_box_train/0002_c1s1_000451_03.jpg
    ROOT/query/...
    ROOT/bounding_box_test/...

Only `id_cCAMERA` at the start of a base name counts, so DukeMTMC-reID and the renamed form of
MSMT17 (cameras of two digits) read as well. Every file that is not used is counted in the report.
"""

import logging
import os
import pathlib
import re

import numpy as np

from ccafl_jax.data.records import Records, ReIDDataset, dense_cameras, intra_camera_labels

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}

_NAME = re.compile(r"^(-?\d+)_c(\d+)")
_NAME_WITHOUT_CAMERA = re.compile(r"^-?\d+(?!\d)")
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_SEARCH_DEPTH = 3
_logger = logging.getLogger(__name__)


def load_market1501(
    root: str | os.PathLike, *, allow_single_identity: bool = False, for_training: bool = True
) -> ReIDDataset:
    """Reads the three splits of a folder in Market-1501 layout.

    Files are taken in the order of their names. Junk (id -1) stays in the gallery, where rankings
    leave it out; in the training set and the queries, where it stands for nobody, it is dropped
    and counted. Id 0 is an ordinary identity (a distractor if it has no query).

    Args:
      root: the folder that holds the splits, or one up to three levels above it.
      allow_single_identity: accept training cameras with one identity, with a warning.
      for_training: check the cameras of the training set; evaluation needs no such check.

    Returns:
      `ReIDDataset` with absolute paths; `summary()` is its printed form. Warnings are logged and
      kept in `report["warnings"]`.

    Raises:
      FileNotFoundError: `root` or a split is missing; the message shows the expected tree.
      ValueError: several data sets below `root`, no usable image, no camera ids, a single camera,
        or a camera with one identity.
    """
    base = find_root(root)
    report: dict = {}
    files = {}
    for split, folder in FOLDERS.items():
        files[split], report[split] = _scan(base / folder, keep_junk=split == "gallery")
    codes = [cam for _, _, cam in files.values()]
    camids, camera_codes = dense_cameras(*codes)
    splits = {
        split: Records(path=path, pid=pid, camid=camid)
        for (split, (path, pid, _)), camid in zip(files.items(), camids, strict=True)
    }
    report["warnings"] = _check_names(base, report)
    if for_training:
        report["warnings"] += check_cameras(
            splits["train"], camera_codes, allow_single_identity=allow_single_identity
        )
    for text in report["warnings"]:
        _logger.warning("%s: %s", base, text)
    return ReIDDataset(
        name="market1501", root=str(base), camera_codes=camera_codes, report=report, **splits
    )


def find_root(root: str | os.PathLike) -> pathlib.Path:
    """The folder at or below `root` that holds the three splits.

    Raises:
      FileNotFoundError: there is none.
      ValueError: there are several.
    """
    root = pathlib.Path(root).expanduser().absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; expected {_expected_tree()}")
    complete, partial = _candidates(root)
    if len(complete) == 1:
        return complete[0]
    if complete:
        raise ValueError(
            f"{root} holds {len(complete)} data sets, name one of them: "
            + ", ".join(str(path) for path in complete)
        )
    if partial:
        missing = [name for name in FOLDERS.values() if not (partial[0] / name).is_dir()]
        raise FileNotFoundError(
            f"{partial[0]} lacks {' and '.join(missing)}; expected {_expected_tree()}"
        )
    raise FileNotFoundError(
        f"no data set within {_SEARCH_DEPTH} levels below {root}; expected {_expected_tree()}"
    )


def check_cameras(
    train: Records, camera_codes: tuple[int, ...], *, allow_single_identity: bool = False
) -> tuple[str, ...]:
    """Checks that intra-camera classes can be told apart and linked across cameras.

    Returns:
      Warnings: with `allow_single_identity`, one that names every camera with one identity.

    Raises:
      ValueError: one camera in all, or a camera with one identity.
    """
    labels = intra_camera_labels(train.pid, train.camid)
    cameras, ids = np.unique(labels.cam_of, return_counts=True)
    if len(cameras) == 1:
        raise ValueError(
            f"the training images come from one camera (c{camera_codes[cameras[0]]}); learning "
            "across cameras needs two or more"
        )
    lonely = ", ".join(f"c{camera_codes[camera]}" for camera in cameras[ids == 1])
    if lonely and (not allow_single_identity or np.all(ids == 1)):
        raise ValueError(
            f"training cameras with a single identity: {lonely}; intra-camera learning compares "
            "identities of one camera: add images, remove those of that camera, or set "
            "data.allow_single_identity=True (its intra-camera losses are then 0)"
        )
    if lonely:
        return (
            f"training cameras with a single identity: {lonely}; their intra-camera losses are 0",
        )
    return ()


def _candidates(root: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Folders at most `_SEARCH_DEPTH` levels down that hold all, or some, of the splits."""
    complete, partial = [], []
    level = [root]
    for depth in range(_SEARCH_DEPTH + 1):
        below = []
        for folder in level:
            present = sum((folder / name).is_dir() for name in FOLDERS.values())
            if present == len(FOLDERS):
                complete.append(folder)
                continue
            if present:
                partial.append(folder)
            if depth < _SEARCH_DEPTH:
                below += _subfolders(folder)
        level = below
    return complete, partial


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    except PermissionError:
        return []
    return [folder / name for name in sorted(names) if name not in FOLDERS.values()]


def _scan(folder: pathlib.Path, *, keep_junk: bool) -> tuple[tuple, dict[str, int]]:
    """Paths, identities and camera codes of one folder, and what became of each of its entries."""
    paths, pids, cams = [], [], []
    counts = {"read": 0, "junk dropped": 0, "with an unreadable name": 0, "not an image": 0}
    without_camera = example = None
    for name in sorted(os.listdir(folder)):
        if os.path.splitext(name)[1].lower() not in _IMAGE_SUFFIXES:
            counts["not an image"] += 1
            continue
        match = _NAME.search(name)
        if match is None:
            counts["with an unreadable name"] += 1
            example = example or name
            if _NAME_WITHOUT_CAMERA.search(name):
                without_camera = without_camera or name
        elif int(match[1]) == -1 and not keep_junk:
            counts["junk dropped"] += 1
        else:
            paths.append(str(folder / name))
            pids.append(int(match[1]))
            cams.append(int(match[2]))
    if not paths:
        raise ValueError(_nothing_read(folder, counts, example, without_camera))
    counts["read"] = len(paths)
    path = np.empty(len(paths), dtype=object)
    path[:] = paths
    return (path, np.array(pids, np.int32), np.array(cams, np.int32)), counts


def _nothing_read(folder, counts: dict, example: str | None, without_camera: str | None) -> str:
    if without_camera:
        return (
            f"{folder}: the names hold no camera ids (e.g. {without_camera}); expected "
            "id_cCAMERA..., e.g. 0002_c1s1_000451_03.jpg: without cameras there is no "
            "intra-camera supervision"
        )
    if example:
        return (
            f"{folder}: none of {counts['with an unreadable name']} image names matches "
            f"id_cCAMERA... (e.g. {example}); expected names such as 0002_c1s1_000451_03.jpg"
        )
    return (
        f"{folder}: no image found among {sum(counts.values())} entries; expected files such as "
        "0002_c1s1_000451_03.jpg"
    )


def _check_names(base: pathlib.Path, report: dict) -> tuple[str, ...]:
    warnings = []
    for split, folder in FOLDERS.items():
        for key in ("with an unreadable name", "junk dropped"):
            if report[split][key]:
                warnings.append(f"{folder}: {report[split][key]} images {key}, left out")
    return tuple(warnings)


def _expected_tree() -> str:
    return "ROOT/{" + ",".join(FOLDERS.values()) + "}/0002_c1s1_000451_03.jpg"
