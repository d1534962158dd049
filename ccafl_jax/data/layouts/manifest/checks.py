"""What a manifest must fulfil, checked over all its rows, and its texts as numbers.

Every bad row is found, not the first only. A bad value takes no part in the checks that compare
rows, so that one mistake is one report.
"""

import dataclasses
import re

import numpy as np

from ccafl_jax.data.layouts.manifest.columns import (
    DISTRACTORS,
    GALLERY,
    KNOWN,
    QUERY,
    SPLITS,
    Column,
    Problem,
    Table,
)
from ccafl_jax.data.layouts.manifest.findings import Findings, first_with_key
from ccafl_jax.data.layouts.manifest.paths import check_paths
from ccafl_jax.data.records import INFRARED, JUNK, UNKNOWN_CAMERA, UNLABELLED, VISIBLE
from ccafl_jax.options import nearest_key

MODALITIES = {
    "visible": VISIBLE, "v": VISIBLE, "rgb": VISIBLE, "0": VISIBLE,
    "infrared": INFRARED, "i": INFRARED, "ir": INFRARED, "1": INFRARED,
}  # fmt: skip

_LARGEST = np.iinfo(np.int32).max
_HUGE = 10**18
_EMPTY = np.iinfo(np.int64).min
_INTEGER = re.compile(r"([+-]?)([0-9]+)(?:\.0*)?")


@dataclasses.dataclass
class Checked:
    """The rows of a manifest as numbers.

    Attributes:
      path: n paths, "/" between folders.
      split: int64[n], index in SPLITS.
      pid: int64[n], -1 junk and -2 unlabelled.
      camera: int64[n], -1 unknown.
      tracklet: labels; or None.
      frame: int64[n]; -1 where none is given; or None.
      modality: int64[n]; or None.
      pid_names: text of identity 0, 1, ...; None where identities are integers.
      camera_names: text of camera 1, 2, ...; None where cameras are integers.
    """

    path: list[str]
    split: np.ndarray
    pid: np.ndarray
    camera: np.ndarray
    tracklet: Column | None
    frame: np.ndarray | None
    modality: np.ndarray | None
    pid_names: list[str] | None
    camera_names: list[str] | None


def check_table(table: Table, *, check_files: bool = True) -> tuple[Checked | None, list[Problem]]:
    """Checks all rows.

    Args:
      table: the manifest.
      check_files: whether each path must name a file.

    Returns:
      The rows as numbers, None if there are problems; and the problems in the order of the lines.
    """
    findings = Findings(table)
    if all(name in table.columns for name in ("pid", "camid", "split")):
        checked = _check_rows(table, findings, check_files=check_files)
        if not findings.problems:
            _check_parts(table, checked.split, findings)
        if not findings.problems:
            return checked, []
    order = {name: place for place, name in enumerate(KNOWN)}
    findings.problems.sort(key=lambda problem: (problem.line, order.get(problem.column, -1)))
    return None, findings.problems


def integer_of(text: str) -> int | None:
    """The integer that a text writes (3, +3, 003 or 3.0), or None.

    More than 18 digits become a number that is too large for any column.
    """
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    digits = match[2].lstrip("0") or "0"
    magnitude = int(digits) if len(digits) <= 18 else _HUGE
    return -magnitude if match[1] == "-" else magnitude


def _check_rows(table: Table, findings: Findings, *, check_files: bool) -> Checked:
    split = _check_split(table.columns["split"], findings)
    pid, pid_names = _check_pid(table.columns["pid"], split, findings)
    camera, camera_names = _check_camera(table.columns["camid"], split, pid, findings)
    modality = _check_modality(table.columns.get("modality"), findings)
    frame = _check_frame(table.columns.get("frame"), split, findings)
    paths = check_paths(table, split, findings, check_files=check_files)
    tracklet = table.columns.get("tracklet")
    if tracklet is not None:
        _check_all_or_none(tracklet.equal(""), split, "tracklet", findings)
        _check_tracklets(tracklet, split, pid, camera, findings)
    return Checked(
        paths, split, pid, camera, tracklet, frame, modality, pid_names, camera_names
    )  # fmt: skip


def _check_split(column: Column, findings: Findings) -> np.ndarray:
    known = {name: number for number, name in enumerate(SPLITS)}
    split = column.lookup(np.array([known.get(v.lower(), -1) for v in column.values], np.int64))
    allowed = f"allowed are {', '.join(SPLITS)}"

    def message(row: int) -> str:
        text = column.values[column.code[row]]
        if not text:
            return f"split is empty; {allowed}"
        near = nearest_key(text.lower(), SPLITS)
        hint = f"did you mean {near}? " if near else ""
        if text.lower() in ("test", "val", "valid", "validation"):
            hint = "images to test on are either query or gallery; "
        return f"unknown split {text!r}; {hint}{allowed}"

    findings.add(split == -1, "split", message)
    return split


def _number(
    column: Column, name: str, findings: Findings, *, first: int
) -> tuple[np.ndarray, list[str] | None]:
    """Integers as they are; if there is any other text, all texts by rank from `first`.

    Negative integers stay, whatever else there is, and so does an empty text (`_EMPTY`).

    Returns:
      int64[n], and the sorted texts or None.
    """
    numbers = [integer_of(text) for text in column.values]
    names = None
    if any(text and n is None for text, n in zip(column.values, numbers, strict=True)):
        as_text = [n is None or n >= 0 for n in numbers]
        texts = zip(column.values, as_text, strict=True)
        names = sorted(text for text, is_name in texts if text and is_name)
        rank = {text: first + place for place, text in enumerate(names)}
        numbers = [rank.get(t, n) for t, n in zip(column.values, numbers, strict=True)]
    value = np.array([_EMPTY if n is None else n for n in numbers], np.int64)
    number = column.lookup(value)
    findings.add(
        number > _LARGEST,
        name,
        name + " {} does not fit into 32 bits; with a letter in front of it all are read as texts",
    )
    broken = column.lookup(np.array([not _is_utf8(text) for text in column.values], bool))
    findings.add(broken, name, name + " {} is not UTF-8; save the file as CSV (UTF-8)")
    return number, names


def _check_pid(
    column: Column, split: np.ndarray, findings: Findings
) -> tuple[np.ndarray, list[str] | None]:
    pid, names = _number(column, "pid", findings, first=0)
    empty = pid == _EMPTY
    junk = pid == JUNK
    findings.add(
        ~empty & (pid < JUNK),
        "pid",
        "pid {} is negative; identities are integers from 0, or texts; -1 is junk in the gallery, "
        "and unlabelled images have an empty pid",
    )
    findings.add(
        junk & (split != GALLERY) & (split != -1),
        "pid",
        "pid -1 (junk) belongs in the gallery only; leave the pid of an unlabelled image empty",
    )
    findings.add(
        empty & (split == QUERY),
        "pid",
        "pid is empty; a query needs a known identity",
    )
    findings.add(
        empty & (split == GALLERY),
        "pid",
        "pid is empty; in the gallery write -1 for an image that no ranking shall contain, or "
        "make its split distractors",
    )
    return np.where(empty, UNLABELLED, pid), names


def _check_camera(
    column: Column, split: np.ndarray, pid: np.ndarray, findings: Findings
) -> tuple[np.ndarray, list[str] | None]:
    camera, names = _number(column, "camid", findings, first=1)
    empty = camera == _EMPTY
    findings.add(
        ~empty & (camera < 0),
        "camid",
        "camid {} is negative; cameras are integers from 0, or texts",
    )
    needed = (split != DISTRACTORS) & ~((split == GALLERY) & (pid == JUNK)) & (split != -1)
    findings.add(
        empty & needed,
        "camid",
        "camid is empty; intra-camera supervision and evaluation need the camera of every image "
        "(only distractors and gallery images of pid -1 do without)",
    )
    return np.where(empty, UNKNOWN_CAMERA, camera), names


def _check_modality(column: Column | None, findings: Findings) -> np.ndarray | None:
    if column is None:
        return None
    codes = [MODALITIES.get(text.lower().removesuffix(".0"), -1) for text in column.values]
    modality = column.lookup(np.array(codes, np.int64))
    findings.add(
        modality == -1,
        "modality",
        "unknown modality {}; write visible (or v, rgb, 0) or infrared (or i, ir, 1) in all rows",
    )
    return modality


def _check_frame(column: Column | None, split: np.ndarray, findings: Findings) -> np.ndarray | None:
    if column is None:
        return None
    empty = column.equal("")
    numbers = [integer_of(text) for text in column.values]
    frame = column.lookup(np.array([-1 if n is None else n for n in numbers], np.int64))
    findings.add(
        ~empty & ((frame < 0) | (frame > _LARGEST)),
        "frame",
        "frame {} is not an integer from 0 to 2147483647",
    )
    _check_all_or_none(empty, split, "frame", findings)
    return frame


def _check_all_or_none(
    empty: np.ndarray, split: np.ndarray, column: str, findings: Findings
) -> None:
    """In each split all rows have a value or none; the fewer of both are reported."""
    for number, name in enumerate(SPLITS):
        here = (split == number) & findings.good(column)
        without, given = here & empty, here & ~empty
        if not without.any() or not given.any():
            continue
        if without.sum() <= given.sum():
            findings.add(without, column, f"{column} is empty, while other rows of {name} have one")
        else:
            findings.add(
                given, column, f"{column} {{}} stands here, while most rows of {name} have none"
            )


def _check_tracklets(
    column: Column, split: np.ndarray, pid: np.ndarray, camera: np.ndarray, findings: Findings
) -> None:
    """A tracklet has one identity and one camera."""
    rows = np.flatnonzero(~column.equal("") & findings.good("tracklet", "split", "pid", "camid"))
    first = rows[first_with_key(split[rows] * len(column.values) + column.code[rows])]
    for name, number in (("pid", pid), ("camid", camera)):
        differs = number[rows] != number[first]
        first_of = dict(zip(rows[differs].tolist(), first[differs].tolist(), strict=True))

        def message(row: int, name: str = name, first_of: dict[int, int] = first_of) -> str:
            other = first_of[int(row)]
            return (
                f"tracklet {findings.shown('tracklet', row)} has {name} "
                f"{findings.shown(name, row)} here and {findings.shown(name, other)} in "
                f"{findings.where(other)}; a tracklet shows one identity in one camera"
            )

        findings.add(rows[differs], name, message)


def _check_parts(table: Table, split: np.ndarray, findings: Findings) -> None:
    """The splits that are there belong together."""
    count = np.bincount(split, minlength=len(SPLITS))
    message = ""
    if not count.sum():
        message = "no image is listed below the header"
    elif count[QUERY] and not count[GALLERY]:
        message = f"{count[QUERY]} queries and no gallery; an evaluation ranks a gallery for them"
    elif count[GALLERY] and not count[QUERY]:
        message = f"a gallery of {count[GALLERY]} images and no query; an evaluation needs queries"
    elif count[DISTRACTORS] and not count[GALLERY]:
        message = f"{count[DISTRACTORS]} distractors and no gallery for them to be added to"
    if message:
        findings.problems.append(Problem(0, "split", message, table.unit))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
