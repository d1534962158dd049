"""What a user should know of a manifest that is valid: counts and warnings."""

from collections.abc import Mapping

import numpy as np

from ccafl_jax.data.layouts.manifest.checks import Checked, integer_of
from ccafl_jax.data.layouts.manifest.columns import (
    DISTRACTORS,
    GALLERY,
    QUERY,
    SPLITS,
    TRAIN,
    Column,
    Table,
    printable,
)
from ccafl_jax.data.records import JUNK, UNLABELLED, RawPart

_LAST_CAMERA = 2**32 - 1


def make_report(table: Table, checked: Checked, parts: Mapping[str, RawPart]) -> dict:
    """Counts by part, and "warnings".

    Args:
      table: the manifest as it was read.
      checked: its rows as numbers.
      parts: made of them.
    """
    report: dict = {}
    for part, found in parts.items():
        report[part] = {"read": len(found.path)}
        unlabelled = int(np.sum(found.pid == UNLABELLED))
        if unlabelled:
            report[part]["unlabelled"] = unlabelled
    warnings = [
        *table.warnings,
        *_mixed(table, "pid"),
        *_mixed(table, "camid"),
        *_in_two_splits(checked),
        *_doubled_frames(parts),
        *_evaluation(checked),
    ]
    train = checked.split == TRAIN
    if train.any() and len(np.unique(checked.camera[train])) == 1:
        warnings.append(
            "the training images come from one camera; learning across cameras needs two"
        )
    report["warnings"] = tuple(warnings)
    return report


def _mixed(table: Table, name: str) -> list[str]:
    """One typing error turns all integers into texts: better said."""
    column: Column = table.columns[name]
    numbers = [integer_of(text) for text in column.values]
    is_text = np.array([bool(t) and n is None for t, n in zip(column.values, numbers, strict=True)])
    is_number = np.array([n is not None and n >= 0 for n in numbers])
    texts, integers = column.lookup(is_text), column.lookup(is_number)
    if not texts.any() or not integers.any():
        return []
    row = int(np.argmax(texts))
    return [
        f"{name}: all are taken as texts, because {np.sum(texts)} are none but texts (the first in "
        f"{table.unit} {table.line[row]}: {column.values[column.code[row]]!r}), though "
        f"{np.sum(integers)} are integers"
    ]


def _in_two_splits(checked: Checked) -> list[str]:
    seen: dict[str, int] = {}
    twice: dict[str, tuple[int, int]] = {}
    for path, split in zip(checked.path, checked.split.tolist(), strict=True):
        first = seen.setdefault(path, split)
        if first != split:
            twice[path] = (first, split)
    if not twice:
        return []
    path, (first, second) = next(iter(twice.items()))
    return [
        f"{len(twice)} images stand in more than one split (e.g. {printable(path)}: "
        f"{SPLITS[first]} and {SPLITS[second]})"
    ]


def _doubled_frames(parts: Mapping[str, RawPart]) -> list[str]:
    warnings = []
    for part, found in parts.items():
        if found.tracklet is None or found.frame is None:
            continue
        same = (np.diff(found.tracklet) == 0) & (np.diff(found.frame) == 0)
        if same.any():
            path = found.path[int(np.argmax(same)) + 1]
            warnings.append(
                f"{part}: {np.sum(same)} frames have the number of another frame of their tracklet "
                f"(e.g. {printable(path)}); they are ordered by path"
            )
    return warnings


def _evaluation(checked: Checked) -> list[str]:
    """Queries that cannot be answered, and identities that were trained on."""
    query, gallery = checked.split == QUERY, checked.split == GALLERY
    if not query.any():
        return []
    warnings = []
    pid, camera = checked.pid[query], checked.camera[query]
    real = gallery & (checked.pid != JUNK)
    pairs = np.unique((checked.pid[real] << 32) + checked.camera[real])
    last = np.searchsorted(pairs, (pid << 32) + _LAST_CAMERA, side="right")
    cameras_with_pid = last - np.searchsorted(pairs, pid << 32)
    in_own_camera = np.isin((pid << 32) + camera, pairs)
    alone = int(np.sum(cameras_with_pid == in_own_camera))
    if alone:
        warnings.append(
            f"{alone} of {len(pid)} queries have no match: no image of their identity in the "
            "gallery is from another camera"
        )
    tests = (query | gallery | (checked.split == DISTRACTORS)) & (checked.pid >= 0)
    both = np.intersect1d(checked.pid[checked.split == TRAIN], checked.pid[tests])
    both = both[both >= 0]
    if both.size:
        warnings.append(
            f"{both.size} identities are in the training set and among those to test on; if equal "
            "pids mean the same people, figures are better than on people never seen"
        )
    return warnings
