"""Reader of folders in the Market-1501 layout.

    ROOT/bounding_box_train/0002_c1s1_000451_03.jpg
    ROOT/query/0001_c1s1_001051_00.jpg
    ROOT/bounding_box_test/-1_c1s1_000401_03.jpg
    ROOT/gt_bbox/0001_c1s1_001051_00.jpg                        optional: boxes drawn by hand
    ROOT/gt_query/0001_c1s1_001051_00_{good,junk}.mat           optional: what counts for a query

Only `id_cCAMERA` at the start of a base name counts, so DukeMTMC-reID, PersonX (cameras 3, 4, 8,
10, 11, 12) and the renamed form of MSMT17 (cameras of one or two digits) read as well. Every file
that is not used is counted in the report.
"""

import os
import pathlib
import re

import numpy as np

from ccafl_jax.data.layouts.find import find_root, list_images
from ccafl_jax.data.layouts.matlab import read_integers
from ccafl_jax.data.layouts.query_lists import ROW_TABLES, list_tables
from ccafl_jax.data.layouts.scan import NOT_AN_IMAGE, NameRule, name_warnings, scan_folder
from ccafl_jax.data.records import UNKNOWN_CAMERA, Collection, RawPart, collect

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
EXPECTED_TREE = "ROOT/{" + ",".join(FOLDERS.values()) + "}/0002_c1s1_000451_03.jpg"

# Names of folders in the published trees, in lower case.
_PUBLISHED = {
    "market1501": {"market1501", "market-1501-v15.09.15"},
    "dukemtmcreid": {"dukemtmcreid", "dukemtmc-reid"},
    "personx": {"personx"},
    "msmt17_v1": {"msmt17", "msmt17_v1"},
    "msmt17_v2": {"msmt17", "msmt17_v2"},
}
_OWN = "market_like"  # somebody's own folder, which may well be laid out otherwise
_OTHER_NAMES = (
    "; images named otherwise are listed in a manifest: data.name=manifest, docs/own_data.md"
)
_DISTRACTOR = 0
_HAND_DRAWN, _QUERY_LISTS = "gt_bbox", "gt_query"
_NAME = re.compile(r"(-1|[0-9]{1,9})_c([0-9]{1,9})(?![0-9])")


def parse_name(name: str) -> tuple[int, int] | None:
    """Identity and camera of a base name; None if it is not of the form `id_cCAMERA...`.

    Identities are numbers of at most nine digits, or -1 for junk.
    """
    match = _NAME.match(name)
    return (int(match[1]), int(match[2])) if match else None


NAMES = NameRule(parse_name, form="id_cCAMERA...", example="0002_c1s1_000451_03.jpg")


def read_market(
    root: str | os.PathLike,
    *,
    name: str = "market1501",
    distractors: str | os.PathLike | None = None,
) -> Collection:
    """Reads a folder in Market-1501 layout.

    Files are taken in the order of their names. Junk (id -1) stays in the gallery, where rankings
    leave it out; in the training set and the queries, where it stands for nobody, it is dropped
    and counted. Id 0 is an ordinary identity (a distractor if it has no query).

    Args:
      root: the folder that holds the splits, or one up to three levels above it; of several data
        sets below it the one in a folder named as `name` is published.
      name: of the data set.
      distractors: folder of further gallery images (searched to any depth) of nobody in the set.

    Returns:
      The parts train, query and gallery; `multi_query` (boxes drawn by hand, of identities that
      have a query) from gt_bbox; `distractors` (id 0, camera unknown; absolute paths if their
      folder lies outside the root). Tables `gt.good.*` and `gt.junk.*` from gt_query.

    Raises:
      FileNotFoundError: `root`, a split or `distractors` is missing.
      ValueError: several data sets below `root`, no usable image, no camera ids, or a damaged
        list in gt_query.
    """
    folders = _PUBLISHED.get(name, {name})
    tree = EXPECTED_TREE + (_OTHER_NAMES if name == _OWN else "")
    base = find_root(root, tuple(FOLDERS.values()), folders=folders, tree=tree)
    parts, report = {}, {}
    for part, folder in FOLDERS.items():
        parts[part], report[part] = scan_folder(base, folder, NAMES, keep_junk=part == "gallery")
    warnings = _name_mismatch(base, name) + name_warnings(report, FOLDERS)
    if (base / _HAND_DRAWN).is_dir():
        part, report["multi_query"] = _hand_drawn(base, parts["query"])
        if len(part.path):
            parts["multi_query"] = part
        warnings += name_warnings(report, {"multi_query": _HAND_DRAWN})
    tables: dict[str, np.ndarray] = {}
    if (base / _QUERY_LISTS).is_dir():
        tables, found = _query_lists(base / _QUERY_LISTS, parts["query"], parts["gallery"])
        warnings += found
    if distractors is not None:
        parts["distractors"], report["distractors"] = _distractors(base, distractors)
    report["warnings"] = warnings
    return collect(name, base, parts, tables=tables, row_tables=ROW_TABLES, report=report)


def _hand_drawn(base: pathlib.Path, query: RawPart) -> tuple[RawPart, dict[str, int]]:
    """The boxes of gt_bbox whose identity has a query; the folder holds the others' as well."""
    found, counts = scan_folder(base, _HAND_DRAWN, NAMES, may_be_empty=True)
    asked = set(query.pid)
    kept = [row for row, pid in enumerate(found.pid) if pid in asked]
    counts["of identities without a query"] = len(found.pid) - len(kept)
    counts["read"] = len(kept)
    columns = ([column[row] for row in kept] for column in (found.path, found.pid, found.camera))
    return RawPart(*columns), counts


def _query_lists(
    folder: pathlib.Path, query: RawPart, gallery: RawPart
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The tables of gt_query: two files for each query, with places counted from 1.

    The places count the files of bounding_box_test in the order of their names, junk included,
    which is how the gallery stands here.
    """
    present = set(os.listdir(folder))
    lists: dict[str, list[np.ndarray]] = {"good": [], "junk": []}
    without = 0
    for path in query.path:
        stem = os.path.splitext(path.rsplit("/", 1)[-1])[0]
        files = {kind: f"{stem}_{kind}.mat" for kind in lists}
        complete = present.issuperset(files.values())
        without += not complete
        for kind, file in files.items():
            empty = np.zeros(0, np.int64)
            lists[kind].append(_places(folder / file, f"{kind}_index") if complete else empty)
    if without == len(query.path):
        return {}, (f"{folder.name}: holds no lists of the {without} queries, left out",)
    tables, warnings = list_tables(
        lists,
        order=np.arange(len(gallery.path)),
        query_pid=np.asarray(query.pid),
        gallery_pid=np.asarray(gallery.pid),
        where=folder.name,
    )
    if without:
        warnings += (f"{folder.name}: {without} of {len(query.path)} queries lack a list",)
    return tables, warnings


def _places(path: pathlib.Path, variable: str) -> np.ndarray:
    try:
        return read_integers(path, variable).ravel()
    except ValueError as error:
        raise ValueError(f"{error}, or remove {path.parent} to go without") from None


def _distractors(base: pathlib.Path, folder: str | os.PathLike) -> tuple[RawPart, dict[str, int]]:
    folder = pathlib.Path(folder).expanduser().absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"distractors: {folder} is not a folder")
    splits = [base / name for name in FOLDERS.values()]
    if any(split.is_relative_to(folder) or folder.is_relative_to(split) for split in splits):
        raise ValueError(
            f"distractors: {folder} holds, or lies in, a split of {base}; name a folder of "
            "distractors alone"
        )
    images, others = list_images(folder, recursive=True)
    if not images:
        raise ValueError(f"distractors: no image found in {folder}")
    inside = folder.is_relative_to(base)
    prefix = (folder.relative_to(base) if inside else folder).as_posix()
    part = RawPart(
        path=[f"{prefix}/{name}" for name in images],
        pid=np.full(len(images), _DISTRACTOR),
        camera=np.full(len(images), UNKNOWN_CAMERA),
    )
    return part, {"read": len(images), NOT_AN_IMAGE: others}


def _name_mismatch(base: pathlib.Path, name: str) -> tuple[str, ...]:
    """A warning if the folder, or else the one around it, is named like another data set."""
    if name not in _PUBLISHED:
        return ()
    for part in reversed(base.parts[-2:]):
        owners = [other for other, folders in _PUBLISHED.items() if part.lower() in folders]
        if owners:
            warning = f"the folder {base} is named like {owners[0]}, read as {name}"
            return () if name in owners else (warning,)
    return ()
