"""Flat folders of images whose names hold the labels: what Market-1501, its kin and VeRi share.

Every entry of a folder is accounted for: read, dropped as junk, badly named, or not an image.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable

from ccafl_jax.data.layouts.find import list_images
from ccafl_jax.data.records import JUNK, RawPart

UNREADABLE_NAME = "with an unreadable name"
JUNK_DROPPED = "junk dropped"
NOT_AN_IMAGE = "not an image"

_ID_ALONE = re.compile(r"^-?[0-9]+(?![0-9])")


@dataclasses.dataclass(frozen=True)
class NameRule:
    """How a data set names its images.

    Attributes:
      parse: takes a base name and gives (identity, camera) or (identity, camera, frame), or None
        if the name does not follow the rule.
      form: of the names, for messages.
      example: of a name, for messages.
    """

    parse: Callable[[str], tuple[int, ...] | None]
    form: str
    example: str


def scan_folder(
    base: pathlib.Path,
    folder: str,
    rule: NameRule,
    *,
    keep_junk: bool = False,
    may_be_empty: bool = False,
) -> tuple[RawPart, dict[str, int]]:
    """The images of one folder in the order of their names, and what became of each entry.

    Args:
      base: root of the data set.
      folder: below it.
      rule: of the names.
      keep_junk: keep images of id -1, which rankings leave out.
      may_be_empty: accept a folder without a usable image.

    Returns:
      The images, and counts by reason.

    Raises:
      ValueError: no usable image.
    """
    images, others = list_images(base / folder)
    counts = {"read": 0, JUNK_DROPPED: 0, UNREADABLE_NAME: 0, NOT_AN_IMAGE: others}
    paths, labels, strangers = [], [], []
    for name in images:
        label = rule.parse(name)
        if label is None:
            strangers.append(name)
        elif label[0] == JUNK and not keep_junk:
            counts[JUNK_DROPPED] += 1
        else:
            paths.append(f"{folder}/{name}")
            labels.append(label)
    counts["read"], counts[UNREADABLE_NAME] = len(paths), len(strangers)
    if not paths and not may_be_empty:
        raise ValueError(_nothing_read(base / folder, rule, counts, strangers))
    columns = list(zip(*labels, strict=True)) if labels else [(), ()]
    pid, camera, *frame = columns
    return RawPart(paths, pid, camera, frame=frame[0] if frame else None), counts


def name_warnings(report: dict, folders: dict[str, str]) -> tuple[str, ...]:
    """A warning for each reason for which images of a folder were left out.

    Args:
      report: counts by part.
      folders: of the parts.
    """
    return tuple(
        f"{folder}: {report[part][reason]} images {reason}, left out"
        for part, folder in folders.items()
        for reason in (UNREADABLE_NAME, JUNK_DROPPED)
        if report[part].get(reason)
    )


def _nothing_read(
    folder: pathlib.Path, rule: NameRule, counts: dict[str, int], strangers: list[str]
) -> str:
    without_camera = next((name for name in strangers if _ID_ALONE.search(name)), None)
    if without_camera:
        return (
            f"{folder}: the names hold no camera ids (e.g. {without_camera}); expected "
            f"{rule.form}, e.g. {rule.example}: without cameras there is no intra-camera "
            "supervision"
        )
    if strangers:
        return (
            f"{folder}: none of {len(strangers)} image names matches {rule.form} "
            f"(e.g. {strangers[0]}); expected names such as {rule.example}"
        )
    return (
        f"{folder}: no image found among {sum(counts.values())} entries; expected files such as "
        f"{rule.example}"
    )
