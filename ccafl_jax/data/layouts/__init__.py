"""The layouts of published data sets: one reader each, from a raw folder to a `Collection`."""

import dataclasses
import inspect
import os
from collections.abc import Callable
from typing import Any

from ccafl_jax.data.layouts.ilidsvid import read_ilidsvid, select_ilidsvid
from ccafl_jax.data.layouts.lsvid import read_lsvid
from ccafl_jax.data.layouts.manifest import read_manifest
from ccafl_jax.data.layouts.market import read_market
from ccafl_jax.data.layouts.mars import read_mars
from ccafl_jax.data.layouts.msmt17 import read_msmt17
from ccafl_jax.data.layouts.regdb import read_regdb, select_regdb
from ccafl_jax.data.layouts.sysumm01 import read_sysumm01, select_sysumm01
from ccafl_jax.data.layouts.veri import read_veri
from ccafl_jax.data.records import Collection, ReIDDataset
from ccafl_jax.options import nearest_key


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a data set is read and used.

    Attributes:
      read: (root, *, name, further keyword options) -> Collection.
      select: (collection, *, keyword options) -> ReIDDataset: what a protocol takes from it.
      kind: `image`, `video` or `visible_infrared`.
    """

    read: Callable[..., Collection]
    select: Callable[..., ReIDDataset]
    kind: str = "image"


def select_parts(collection: Collection, *, distractors: bool = False) -> ReIDDataset:
    """The parts train, query and gallery as they are.

    Args:
      collection: with these parts.
      distractors: join the part `distractors` to the gallery.

    Raises:
      ValueError: distractors are asked for and the collection has none.
    """
    gallery, extra = collection.parts["gallery"], collection.parts.get("distractors")
    report = dict(collection.report)
    if distractors:
        if extra is None:
            raise ValueError(f"{collection.root} has no part with distractors; leave them out")
        gallery = gallery.join(extra)
    elif extra is not None:
        counts = report.get("gallery", {})
        report["gallery"] = {**counts, "distractors left aside (a part of their own)": len(extra)}
    return ReIDDataset(
        name=collection.name,
        root=collection.root,
        train=collection.parts["train"],
        query=collection.parts["query"],
        gallery=gallery,
        camera_codes=collection.camera_codes,
        report=report,
    )


LAYOUTS: dict[str, Layout] = {
    "market1501": Layout(read_market, select_parts),
    "dukemtmcreid": Layout(read_market, select_parts),
    "msmt17": Layout(read_msmt17, select_parts),
    "msmt17_v1": Layout(read_msmt17, select_parts),
    "msmt17_v2": Layout(read_msmt17, select_parts),
    "veri776": Layout(read_veri, select_parts),
    "personx": Layout(read_market, select_parts),
    "mars": Layout(read_mars, select_parts, "video"),
    "lsvid": Layout(read_lsvid, select_parts, "video"),
    "ilidsvid": Layout(read_ilidsvid, select_ilidsvid, "video"),
    "sysumm01": Layout(read_sysumm01, select_sysumm01, "visible_infrared"),
    "regdb": Layout(read_regdb, select_regdb, "visible_infrared"),
    "synthetic_sysumm01": Layout(read_sysumm01, select_sysumm01, "visible_infrared"),
    "synthetic_regdb": Layout(read_regdb, select_regdb, "visible_infrared"),
    "manifest": Layout(read_manifest, select_parts),
    "market_like": Layout(read_market, select_parts),
    "synthetic": Layout(read_market, select_parts),
    "synthetic_tracklets": Layout(read_mars, select_parts, "video"),
}


def layout_of(name: str) -> Layout:
    """The layout of a data set.

    Raises:
      ValueError: there is no such data set; the nearest known one is named.
    """
    if name not in LAYOUTS:
        near = nearest_key(name, LAYOUTS)
        hint = f"did you mean {near}? " if near else ""
        raise ValueError(f"unknown data set {name!r}; {hint}known are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def read_folder(name: str, root: str | os.PathLike, **options: Any) -> Collection:
    """Reads a raw folder.

    Args:
      name: of the data set, a key of LAYOUTS.
      root: the folder, or one up to three levels above it.
      **options: of the layout's reader.

    Raises:
      FileNotFoundError, ValueError: with one line that says what was found and what expected.
    """
    layout = layout_of(name)
    _check_options(layout.read, name, options)
    return layout.read(root, name=name, **options)


def select(collection: Collection, **options: Any) -> ReIDDataset:
    """Training set, queries and gallery of a collection under its protocol.

    Args:
      collection: from a raw folder or a prepared data set.
      **options: of the layout, such as `split` (1 to 10) of iLIDS-VID and RegDB.
    """
    layout = layout_of(collection.name)
    _check_options(layout.select, collection.name, options)
    return layout.select(collection, **options)


def require_images(name: str, what: str) -> None:
    """Raises ValueError unless a data set is one of single images of one kind.

    Args:
      name: of the data set; may be empty.
      what: needs such a set, for the message.
    """
    if name and layout_of(name).kind != "image":
        kind = layout_of(name).kind.replace("_", "-")
        raise ValueError(f"{name} is a {kind} set; {what} takes sets of single images")


def _check_options(function: Callable, name: str, options: dict[str, Any]) -> None:
    for option in options:
        if option not in inspect.signature(function).parameters:
            raise ValueError(f"{name} takes no {option}; leave the option out")
