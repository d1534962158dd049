"""Published totals of the data sets, and what a folder holds beside them.

The one table of known counts: a download that is not what the papers used shows here before a run
is spent on it.
"""

import dataclasses

import numpy as np

from ccafl_jax.data.labels import intra_camera_labels
from ccafl_jax.data.records import INFRARED, JUNK, Collection, Records


@dataclasses.dataclass(frozen=True)
class Totals:
    """Counts of one part; None where no figure is published (or counted).

    Attributes:
      images: images, or frames.
      ids: identities; distractors of id 0 count as one, junk and unlabelled images as none.
      cameras: cameras with images.
      classes: (camera, identity) pairs, the classes of intra-camera supervision.
      tracklets: sequences of frames.
      junk: images of id -1.
      infrared: infrared images.
      per_camera: images under each camera, in the order of the camera codes.
    """

    images: int | None = None
    ids: int | None = None
    cameras: int | None = None
    classes: int | None = None
    tracklets: int | None = None
    junk: int | None = None
    infrared: int | None = None
    per_camera: tuple[int, ...] | None = None


_MSMT17 = {
    "train": Totals(
        images=32621,
        ids=1041,
        cameras=15,
        classes=4821,
        per_camera=(
            *(4910, 203, 454, 1614, 4296, 1678, 3453, 795),
            *(1396, 655, 3154, 1364, 3635, 3876, 1138),
        ),
    ),
    "query": Totals(images=11659, ids=3060, cameras=15),
    "gallery": Totals(images=82161, ids=3060, cameras=15),
}

PUBLISHED: dict[str, dict[str, Totals]] = {
    "market1501": {
        "train": Totals(
            images=12936,
            ids=751,
            cameras=6,
            classes=3262,
            per_camera=(2017, 1709, 2707, 920, 2338, 3245),
        ),
        "query": Totals(images=3368, ids=750, cameras=6),
        "gallery": Totals(images=19732, ids=751, cameras=6, junk=3819),
    },
    "dukemtmcreid": {
        "train": Totals(
            images=16522,
            ids=702,
            cameras=8,
            classes=2196,
            per_camera=(2809, 3009, 1088, 1395, 1685, 3700, 1330, 1506),
        ),
        "query": Totals(images=2228, ids=702, cameras=8),
        "gallery": Totals(images=17661, ids=1110, cameras=8),
    },
    "msmt17_v1": _MSMT17,
    "msmt17_v2": _MSMT17,
    "personx": {
        "train": Totals(images=9840, ids=410, cameras=6),
        "query": Totals(images=5136, cameras=6),
        "gallery": Totals(images=30816, cameras=6),
    },
    "veri776": {
        "train": Totals(
            images=37778,
            ids=576,
            cameras=20,
            per_camera=(
                *(2277, 2122, 2271, 2231, 903, 2034, 749, 1715, 1790, 2040),
                *(2061, 2276, 2190, 2734, 2650, 2417, 2603, 173, 2520, 22),
            ),
        ),
        "query": Totals(images=1678, ids=200),
        "gallery": Totals(images=11579, ids=200),
    },
    "mars": {
        "train": Totals(ids=625, cameras=6, tracklets=8298),
        "query": Totals(ids=626, cameras=6, tracklets=1980),
        "gallery": Totals(ids=621, cameras=6, tracklets=9330),
    },
    "lsvid": {
        "train": Totals(ids=842, cameras=15, tracklets=2831),
        "query": Totals(tracklets=3504),
        "gallery": Totals(ids=2730, tracklets=7829),
    },
    "ilidsvid": {"all": Totals(ids=300, cameras=2, tracklets=600)},
    "sysumm01": {
        "train": Totals(images=22258 + 11909, ids=395, cameras=6, infrared=11909),
        "test": Totals(
            images=10578,
            ids=96,
            cameras=6,
            classes=490,
            infrared=1883 + 1920,
            per_camera=(1374, 1565, 1883, 1918, 1918, 1920),
        ),
    },
    "regdb": {"all": Totals(images=8240, ids=412, cameras=2, classes=824, infrared=4120)},
}
"""Sources: the data sets' own pages and lists, counted by us where lists are public; LS-VID,
SYSU-MM01's merged training set and RegDB as their users report them."""


def count_part(records: Records, cameras: int) -> Totals:
    """What a part holds.

    Args:
      records: the part.
      cameras: number of cameras of the whole set.
    """
    people, seen = records.pid >= 0, records.camid >= 0
    known = records.camid[seen]
    labels = intra_camera_labels(records.pid[people & seen], records.camid[people & seen])
    modality = records.modality
    tracklets = None if records.tracklet is None else len(np.unique(records.tracklet))
    return Totals(
        images=len(records),
        ids=len(np.unique(records.pid[people])),
        cameras=len(np.unique(known)),
        classes=labels.num_classes,
        tracklets=tracklets,
        junk=int(np.sum(records.pid == JUNK)),
        infrared=None if modality is None else int(np.sum(modality == INFRARED)),
        per_camera=tuple(np.bincount(known, minlength=cameras).tolist()),
    )


def count_collection(collection: Collection) -> dict[str, Totals]:
    """What each part of a collection holds."""
    cameras = len(collection.camera_codes)
    return {part: count_part(records, cameras) for part, records in collection.parts.items()}


def differences(name: str, counts: dict[str, Totals]) -> tuple[str, ...]:
    """Where counts differ from the published ones; empty for a data set without a table.

    Args:
      name: of the data set.
      counts: from :func:`count_collection`.
    """
    found = []
    for part, published in PUBLISHED.get(name, {}).items():
        if part not in counts:
            found.append(f"{part} is missing")
            continue
        for field in dataclasses.fields(Totals):
            expected = getattr(published, field.name)
            value = getattr(counts[part], field.name)
            if expected is not None and value != expected:
                found.append(
                    f"{part}: {_shown(value)} {_LABELS[field.name]}, published {_shown(expected)}"
                )
    return tuple(found)


def counts_table(collection: Collection, counts: dict[str, Totals]) -> str:
    """Counts beside the published ones (in brackets), and images per camera, as text.

    Args:
      collection: what was counted.
      counts: from :func:`count_collection`.
    """
    published = PUBLISHED.get(collection.name, {})
    columns = [field.name for field in dataclasses.fields(Totals) if field.name != "per_camera"]
    rows = [("part", *(_LABELS[column] for column in columns))]
    for part, totals in counts.items():
        expected = published.get(part, Totals())
        cells = (_cell(getattr(totals, c), getattr(expected, c)) for c in columns)
        rows.append((part, *cells))
    lines = [f"{collection.name}: {collection.root}", *_aligned(rows)]
    lines.append("images per camera:")
    rows = [("part", *(f"c{code}" for code in collection.camera_codes))]
    for part, totals in counts.items():
        expected = published.get(part, Totals()).per_camera or [None] * len(totals.per_camera)
        if len(expected) != len(totals.per_camera):
            expected = [None] * len(totals.per_camera)
        cells = (_cell(*pair) for pair in zip(totals.per_camera, expected, strict=True))
        rows.append((part, *cells))
    return "\n".join([*lines, *_aligned(rows)])


_LABELS = {
    "images": "images",
    "ids": "ids",
    "cameras": "cameras",
    "classes": "(camera, id) classes",
    "tracklets": "tracklets",
    "junk": "junk images",
    "infrared": "infrared images",
    "per_camera": "images per camera",
}


def _shown(value) -> str:
    if value is None:
        return "no"
    return f"{value:,}" if isinstance(value, int) else " ".join(str(count) for count in value)


def _cell(value: int | None, expected: int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if expected is None else f"{value:,} ({expected:,})"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
