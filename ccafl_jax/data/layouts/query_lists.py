"""The good and junk lists that come with some data sets: which gallery images count for a query.

Rankings derive both from identities and cameras; the lists are kept for protocols that follow the
published files. Lists of different lengths are two arrays: list i holds the gallery rows
`values[offsets[i] : offsets[i + 1]]` for the query in row `gt.query[i]`; a row of -1 is an image
that was left out.
"""

from collections.abc import Mapping, Sequence

import numpy as np

ROW_TABLES = {"gt.query": "query", "gt.good.values": "gallery", "gt.junk.values": "gallery"}
"""The parts whose rows the tables hold."""


def list_tables(
    lists: Mapping[str, Sequence[np.ndarray]],
    *,
    order: np.ndarray,
    query_pid: np.ndarray,
    gallery_pid: np.ndarray,
    where: str,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The tables `gt.query`, `gt.good.*` and `gt.junk.*`.

    Args:
      lists: `good` and/or `junk`: for each query int64[k], places in `order` counted from 1.
      order: int64[m], gallery rows in the order that the lists count in; -1 for absent images.
      query_pid: int[queries].
      gallery_pid: int[gallery].
      where: the lists' file or folder, for messages.

    Returns:
      The tables and warnings; no tables where the lists are those of another gallery, as after
      files were removed from it.
    """
    if not lists:
        return {}, ()
    tables, warnings = {"gt.query": np.arange(len(query_pid))}, []
    for kind, per_query in lists.items():
        places = np.concatenate([np.zeros(0, np.int64), *per_query])
        outside = places[(places < 1) | (places > len(order))]
        if outside.size:
            reason = f"place {outside[0]} of {len(order)} gallery images does not exist"
            return {}, (_misfit(where, reason),)
        rows = order[places - 1]
        query = np.repeat(np.arange(len(per_query)), [len(row) for row in per_query])
        present = rows >= 0
        if kind == "good":
            others = np.sum(gallery_pid[rows[present]] != query_pid[query[present]])
            if others:
                reason = f"{others} of {len(rows)} good images show another identity"
                return {}, (_misfit(where, reason),)
        if not present.all():
            warnings.append(f"{where}: {np.sum(~present)} {kind} images are absent, left out")
        counts = np.bincount(query[present], minlength=len(per_query))
        tables[f"gt.{kind}.values"] = rows[present]
        tables[f"gt.{kind}.offsets"] = np.append(0, np.cumsum(counts))
    return tables, tuple(warnings)


def _misfit(where: str, reason: str) -> str:
    return (
        f"{where}: the lists do not fit the gallery ({reason}; were files removed from it?); they "
        "are left out, rankings go by identities and cameras"
    )
