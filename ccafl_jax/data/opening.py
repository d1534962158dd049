"""Opening a data set, raw or prepared: the one door between a name, a folder and `Records`."""

import os
from typing import Any

from ccafl_jax.data.layouts import layout_of, read_folder, select
from ccafl_jax.data.prepared import find_prepared, open_prepared
from ccafl_jax.data.records import Collection, ReIDDataset
from ccafl_jax.options import require_choice

SOURCES = ("auto", "folder", "prepared")


def open_dataset(
    name: str, root: str | os.PathLike, *, source: str = "auto", **selection: Any
) -> ReIDDataset:
    """Training set, queries and gallery of a data set.

    Args:
      name: of the data set, a key of `ccafl_jax.data.layouts.LAYOUTS`; may be empty for a
        prepared set.
      root: its folder, raw or prepared, or one above it.
      source: `folder`, `prepared`, or `auto`: prepared if the folder holds a prepared set.
      **selection: options of the protocol, such as `split` (1 to 10) of iLIDS-VID and RegDB.

    Raises:
      FileNotFoundError, ValueError: with one line that says what was found and what expected.
    """
    return select(open_collection(name, root, source=source), **selection)


def open_collection(name: str, root: str | os.PathLike, *, source: str = "auto") -> Collection:
    """All that a data set holds; see `open_dataset`."""
    require_choice("source", source, SOURCES)
    if name:
        layout_of(name)
    if source == "prepared":
        return open_prepared(root, name)
    several: ValueError | None = None
    try:
        prepared = find_prepared(root, name) is not None
    except ValueError as error:
        prepared, several = False, error
    if prepared and source == "auto":
        return open_prepared(root, name)
    try:
        return read_folder(name, root)
    except FileNotFoundError:
        if several and source == "auto":
            raise several from None
        if prepared or several:
            raise ValueError(
                f"{root} holds a prepared data set: read it with data.source auto or prepared, or "
                "name the raw folder"
            ) from None
        raise
