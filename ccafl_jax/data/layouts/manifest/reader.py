"""Reader of users' own data: a manifest, CSV or Parquet, that lists the images.

    ROOT/manifest.csv       path,pid,camid,split
    ROOT/cam1/0001.jpg      cam1/0001.jpg,17,1,train
    ROOT/...                ...

Columns: `path`, below the manifest's folder or absolute; `pid`, an integer or a text, -1 for junk
in the gallery, empty for unlabelled; `camid`, an integer or a text; `split`: train, query, gallery
or distractors. Optional: `tracklet` (any label, per split), `frame` (an integer) and `modality`
(visible or infrared). Other columns are left out with a warning. See docs/own_data.md.
"""

import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from ccafl_jax.data.layouts.manifest.checks import Checked, check_table
from ccafl_jax.data.layouts.manifest.columns import SPLITS, Problem, read_table
from ccafl_jax.data.layouts.manifest.report import make_report
from ccafl_jax.data.names import Names
from ccafl_jax.data.records import Collection, RawPart, collect
from ccafl_jax.data.sources import FolderSource

MANIFESTS = ("manifest.csv", "manifest.parquet")


class ManifestError(ValueError):
    """A manifest with bad lines.

    Attributes:
      problems: all of them, in the order of the lines.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()):
        """Args:
        message: one line.
        problems: all that was found.
        """
        super().__init__(message)
        self.problems = list(problems)


def read_manifest(
    root: str | os.PathLike, *, name: str = "manifest", check_files: bool = True
) -> Collection:
    """Reads the data set that a manifest lists.

    Identities and cameras that are texts get numbers by the order of the texts over the whole
    file; `pid_names` and `camera_names` give the texts back. Images of a part are sorted by path,
    those of a part with tracklets by tracklet and time.

    Args:
      root: the manifest, or a folder that holds manifest.csv or manifest.parquet.
      name: of the data set.
      check_files: whether each image must be there; every folder is listed once.

    Returns:
      The parts train, query and gallery, any of which may be empty, and distractors if there are
      any; as `root` the manifest itself.

    Raises:
      FileNotFoundError: there is no manifest.
      ManifestError: it has bad lines; all of them are in its `problems`.
      ValueError: two manifests in the folder.
      ImportError: a Parquet manifest, and pyarrow is not installed.
    """
    table = read_table(find_manifest(root))
    checked, problems = check_table(table, check_files=check_files)
    if checked is None:
        raise ManifestError(_summary(table.file, problems), problems)
    parts = {part: _part(checked, number) for number, part in enumerate(SPLITS)}
    if not parts["distractors"].path:
        del parts["distractors"]
    tables = {}
    for key, names in (("pid", checked.pid_names), ("camera", checked.camera_names)):
        if names is not None:
            values, offsets = Names.pack(names).packed()
            tables |= {f"{key}_names.values": values, f"{key}_names.offsets": offsets}
    paths = Names.join([Names.pack(part.path) for part in parts.values()])
    return collect(
        name,
        table.file,  # what reads again, whatever the file is called
        parts,
        tables=tables,
        report=make_report(table, checked, parts),
        source=FolderSource(table.file.parent, paths),
    )


def check_manifest(root: str | os.PathLike, *, check_files: bool = True) -> list[Problem]:
    """Every problem of a manifest, in the order of its lines.

    Args:
      root: the manifest, or a folder that holds manifest.csv or manifest.parquet.
      check_files: whether each image must be there.

    Raises:
      FileNotFoundError: there is no manifest.
      ValueError: two manifests in the folder.
      ImportError: a Parquet manifest, and pyarrow is not installed.
    """
    return check_table(read_table(find_manifest(root)), check_files=check_files)[1]


def pid_names(collection: Collection) -> Names | None:
    """The text of each identity by its number; None where identities were integers."""
    return _names(collection, "pid_names")


def camera_names(collection: Collection) -> Names | None:
    """The text of each camera by its camid (from 0); None where cameras were integers."""
    return _names(collection, "camera_names")


def find_manifest(root: str | os.PathLike) -> pathlib.Path:
    """The manifest that `root` is or holds.

    Raises:
      FileNotFoundError: there is none.
      ValueError: there are two.
    """
    root = pathlib.Path(root).expanduser().absolute()
    if root.is_file():
        return root
    expected = f"expected a CSV or Parquet file, or a folder with {' or '.join(MANIFESTS)}"
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist; {expected}")
    found = [root / name for name in MANIFESTS if (root / name).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{root} holds {' and '.join(MANIFESTS)}; name the one to read")
    others = sorted(
        file.name for file in root.iterdir() if file.suffix.lower() in (".csv", ".tsv", ".parquet")
    )
    hint = f"it has {', '.join(others[:5])}: name the file itself; " if others else ""
    raise FileNotFoundError(f"{root} holds no {' or '.join(MANIFESTS)}; {hint}{expected}")


def natural_key(text: str) -> tuple:
    """Sorts texts with numbers as people do: a2 before a10, then by the text itself."""
    pieces = re.split("([0-9]+)", text)
    digits = [piece.lstrip("0") for piece in pieces[1::2]]
    pieces[1::2] = [(len(number), number) for number in digits]
    return tuple(pieces), text


def _names(collection: Collection, key: str) -> Names | None:
    if f"{key}.values" not in collection.tables:
        return None
    offsets = collection.tables[f"{key}.offsets"]
    return Names(collection.tables[f"{key}.values"], offsets[:-1], offsets[1:])


def _summary(file: pathlib.Path, problems: Sequence[Problem]) -> str:
    if len(problems) == 1:
        return f"{file}: {problems[0]}"
    bad = len({problem.line for problem in problems})
    return (
        f"{file.name}: {bad} bad {problems[0].unit}{'s' * (bad > 1)}; first: {problems[0]}; "
        f"see all with scripts/prepare_data.py --dataset manifest --raw {file} --check"
    )


def _part(checked: Checked, split: int) -> RawPart:
    rows = np.flatnonzero(checked.split == split)
    tracklet, rows = _tracklets(checked, rows)
    frame = checked.frame
    if frame is not None and len(rows) and frame[rows[0]] < 0:  # none in this split
        frame = None
    return RawPart(
        path=[checked.path[row] for row in rows.tolist()],
        pid=checked.pid[rows],
        camera=checked.camera[rows],
        tracklet=tracklet,
        frame=None if frame is None else frame[rows],
        modality=None if checked.modality is None else checked.modality[rows],
    )


def _tracklets(checked: Checked, rows: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Numbers of the tracklets of a split, or None; and its rows in their final order."""
    column = checked.tracklet
    if column is None:
        return None, _sorted_by_path(checked.path, rows)
    if len(rows) and not column.values[column.code[rows[0]]]:  # none in this split
        return None, _sorted_by_path(checked.path, rows)
    used = np.unique(column.code[rows]).tolist()
    used.sort(key=lambda code: natural_key(column.values[code]))
    number = np.zeros(len(column.values), np.int64)
    number[used] = np.arange(len(used))
    frame = checked.frame
    by_frame = frame is not None and len(rows) > 0 and frame[rows[0]] >= 0
    rows = _sorted_by_path(checked.path, rows, natural=not by_frame)
    tracklet = number[column.code[rows]]
    order = np.lexsort((frame[rows], tracklet)) if by_frame else np.argsort(tracklet, kind="stable")
    return tracklet[order], rows[order]


def _sorted_by_path(paths: list[str], rows: np.ndarray, *, natural: bool = False) -> np.ndarray:
    key = (lambda row: natural_key(paths[row])) if natural else paths.__getitem__
    return np.array(sorted(rows.tolist(), key=key), np.int64)
