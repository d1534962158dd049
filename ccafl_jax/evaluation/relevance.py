"""What counts in a ranking: which gallery items match a query, and which are left out for it."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from ccafl_jax.options import require_choice
from ccafl_jax.ragged import ranges

JUNK = -1
"""Identity of gallery images that no ranking contains (Market-1501)."""
SAME_CAMERA = ("identity", "location", "none")

_LIST_ENTRIES = 2**22


class Lists(NamedTuple):
    """Lists of gallery rows, one per query: `values[offsets[q] : offsets[q + 1]]`.

    Attributes:
      offsets: int64[Q + 1].
      values: int64[offsets[-1]].
    """

    offsets: np.ndarray
    values: np.ndarray

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The entries of some queries as pairs: int64[m] positions in `rows` and int64[m] values.

        Args:
          rows: int[b], queries.
        """
        count = self.offsets[rows + 1] - self.offsets[rows]
        return np.repeat(np.arange(len(rows)), count), self.values[self.places(rows)]

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where the entries of some queries stand in `values`, int64[m]."""
        return ranges(self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows])

    def owners(self) -> np.ndarray:
        """The query of each entry, int64[offsets[-1]]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def renumbered(self, number: np.ndarray) -> "Lists":
        """The lists after gallery row i became `number[i]`; rows with -1 are gone."""
        value = number[self.values]
        count = np.bincount(self.owners()[value >= 0], minlength=len(self.offsets) - 1)
        return Lists(np.append(0, np.cumsum(count)), value[value >= 0])


@dataclasses.dataclass(frozen=True, eq=False)
class Relevance:
    """What counts for each query.

    Attributes:
      query_pid: int32[Q].
      gallery_pid: int32[G].
      kept: bool[G], the item is in rankings at all; junk is not.
      exclude: pairs of keys (int32[Q], int32[G]): an item is left out for a query where a pair
        agrees. Keys below 0 agree with nothing.
      good: gallery rows that match, by query, in place of those of the query's identity; or None.
      junk: gallery rows that are left out beyond those of `exclude`, by query; or None.
    """

    query_pid: np.ndarray
    gallery_pid: np.ndarray
    kept: np.ndarray
    exclude: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    good: Lists | None = None
    junk: Lists | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and of gallery items."""
        return len(self.query_pid), len(self.gallery_pid)

    def left_out(self) -> tuple[Lists, ...]:
        """The items left out for each query, besides those in no ranking; lists may overlap.

        They may be as long as all pairs; `leave_out` needs no such memory.
        """
        lists = tuple(_agreeing(query, gallery) for query, gallery in self.exclude)
        return lists if self.junk is None else (*lists, self.junk)

    def leave_out(self, rows: np.ndarray, scores: np.ndarray) -> None:
        """Sets the scores of items that are not ranked for some queries to -inf.

        Args:
          rows: int64[b], the queries.
          scores: float[b, G], changed in place.
        """
        scores[:, self._dropped] = -np.inf
        for (query, gallery), lists in zip(self.exclude, self._short_lists, strict=True):
            if lists is not None:
                scores[lists.take(rows)] = -np.inf
                continue
            key = query[rows, None]
            np.copyto(scores, -np.inf, where=(key == gallery) & (key >= 0))
        if self.junk is not None:
            scores[self.junk.take(rows)] = -np.inf

    def prepare(self) -> "Relevance":
        """Itself, once what `leave_out` needs is made: threads would make it several times."""
        _ = self._dropped, self._short_lists
        return self

    @functools.cached_property
    def _dropped(self) -> np.ndarray:
        return np.flatnonzero(~self.kept)

    @functools.cached_property
    def _short_lists(self) -> tuple[Lists | None, ...]:
        """What each pair of keys leaves out; None where a list of it would be long."""
        return tuple(
            _agreeing(*pair) if int(_spans(*pair)[2].sum()) <= _LIST_ENTRIES else None
            for pair in self.exclude
        )

    def matches(self) -> Lists:
        """The gallery rows that each query looks for, ascending: kept and not left out."""
        same = self.good
        if same is None:
            known = self.query_pid.astype(np.int64)
            same = _agreeing(known, self.gallery_pid.astype(np.int64), every=True)
        owner, item = same.owners(), same.values
        wanted = self.kept[item]
        for query, gallery in self.exclude:
            wanted &= (query[owner] != gallery[item]) | (query[owner] < 0)
        size = len(self.gallery_pid)
        if self.junk is not None:
            wanted &= ~np.isin(owner * size + item, self.junk.owners() * size + self.junk.values)
        pairs = np.sort(owner[wanted] * size + item[wanted])
        pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]]
        count = np.bincount(pairs // size, minlength=len(self.query_pid))
        return Lists(np.append(0, np.cumsum(count)), pairs % size)

    def check(self, shape: tuple[int, int]) -> None:
        """Raises ValueError unless the parts fit together, and scores of this shape."""
        for side, size in zip(("query", "gallery"), shape, strict=True):
            keys = [getattr(self, f"{side}_pid")]
            keys += [pair[side == "gallery"] for pair in self.exclude]
            wrong = [np.shape(key) for key in keys if np.shape(key) != (size,)]
            if wrong:
                raise ValueError(
                    f"{side}: {size} rows of features or scores, but labels of shape {wrong[0]}; "
                    f"expected ({size},)"
                )
        queries, gallery = shape
        if np.shape(self.kept) != (gallery,):
            raise ValueError(f"kept has shape {np.shape(self.kept)}; expected ({gallery},)")
        if queries == 0 or not self.kept.any():
            raise ValueError(
                f"nothing to rank: {queries} queries, {gallery} gallery images of which "
                f"{int(np.sum(~self.kept))} are junk"
            )
        for name, lists in (("good", self.good), ("junk", self.junk)):
            if lists is None:
                continue
            offsets = np.asarray(lists.offsets)
            ends = len(offsets) == queries + 1 and (offsets[0], offsets[-1]) == (
                0,
                len(lists.values),
            )
            if not ends or np.any(np.diff(offsets) < 0):
                raise ValueError(f"{name}: expected lists for {queries} queries")
            if np.any((lists.values < 0) | (lists.values >= gallery)):
                raise ValueError(f"{name}: expected gallery rows from 0 to {gallery - 1}")


def check_labels(name: str, values: np.ndarray) -> np.ndarray:
    """Labels as int32.

    Args:
      name: for messages.
      values: whole numbers, of any numeric type.

    Raises:
      ValueError: other values, or numbers that int32 does not hold.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "iubf":
        raise ValueError(f"{name}: labels are {values.dtype}; expected whole numbers")
    limits = np.iinfo(np.int32)
    with np.errstate(invalid="ignore"):
        whole = (values >= limits.min) & (values <= limits.max) & (values == np.floor(values))
    if not whole.all():
        first = values.reshape(-1)[np.argmin(whole)]
        raise ValueError(
            f"{name}: {int(np.sum(~whole))} of {whole.size} labels are no whole numbers of 32 bits "
            f"(first: {first}); number the labels anew"
        )
    return values.astype(np.int32)


def relevance(
    query_pid: np.ndarray,
    gallery_pid: np.ndarray,
    query_camid: np.ndarray | None,
    gallery_camid: np.ndarray | None,
    *,
    same_camera: str = "identity",
    junk: tuple[int, ...] = (JUNK,),
    locations: tuple[int, ...] | None = None,
    same_item: tuple[np.ndarray, np.ndarray] | None = None,
    good: Lists | None = None,
    junk_lists: Lists | None = None,
) -> Relevance:
    """What counts, from identities and cameras.

    Args:
      query_pid: int[Q].
      gallery_pid: int[G].
      query_camid: int[Q]; a camera below 0 is not known, and the same as no other. None: none is.
      gallery_camid: int[G], or None.
      same_camera: `identity` leaves out the images of the query's identity from its camera, as on
        Market-1501; `location` all images from the query's location, whatever the identity, as on
        SYSU-MM01; `none` nothing.
      junk: identities that no ranking contains.
      locations: location by camid, for `location`; each camera is one by itself when None.
      same_item: what each query and each gallery item is (int[Q], int[G]), so that a query that
        stands in the gallery does not find itself.
      good: see `Relevance`.
      junk_lists: see `Relevance.junk`.

    Returns:
      `Relevance`.

    Raises:
      ValueError: an unknown rule, labels of different lengths or that are no whole numbers of 32
        bits, a camera without a location.
    """
    require_choice("same_camera", same_camera, SAME_CAMERA)
    query_camid, gallery_camid = (
        np.full(np.shape(pid), -1) if camid is None else camid
        for pid, camid in ((query_pid, query_camid), (gallery_pid, gallery_camid))
    )
    sides = {"query": (query_pid, query_camid), "gallery": (gallery_pid, gallery_camid)}
    for side, (pid, camid) in sides.items():
        if np.ndim(pid) != 1 or np.shape(pid) != np.shape(camid):
            raise ValueError(
                f"{side}: pid {np.shape(pid)} and camid {np.shape(camid)} must be equal, "
                "one-dimensional"
            )
    pids = [check_labels(f"{side} pid", pid) for side, (pid, _) in sides.items()]
    camids = [check_labels(f"{side} camid", camid) for side, (_, camid) in sides.items()]
    exclude = []
    if same_camera == "identity":
        exclude.append(_shared_keys(pids, camids))
    elif same_camera == "location":
        exclude.append(tuple(_located(camid, locations) for camid in camids))
    if same_item is not None:
        items = [np.asarray(item).astype(np.int64) for item in same_item]
        exclude.append(_shared_keys([np.zeros_like(item) for item in items], items))
    return Relevance(
        query_pid=pids[0],
        gallery_pid=pids[1],
        kept=~np.isin(pids[1], junk),
        exclude=tuple(exclude),
        good=good,
        junk=junk_lists,
    )


def _shared_keys(first: list[np.ndarray], second: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """One key per side for pairs (first, second); -1 where the second is below 0."""
    numbers = [np.unique(np.concatenate(side), return_inverse=True)[1] for side in (first, second)]
    pair = numbers[0].astype(np.int64) * (int(numbers[1].max(initial=0)) + 1) + numbers[1]
    _, key = np.unique(pair, return_inverse=True)
    key = np.where(np.concatenate(second) < 0, -1, key).astype(np.int32)
    return key[: len(first[0])], key[len(first[0]) :]


def _located(camid: np.ndarray, locations: tuple[int, ...] | None) -> np.ndarray:
    if locations is None:
        return camid
    if len(camid) and camid.max() >= len(locations):
        raise ValueError(
            f"camera {camid.max()} has no location; expected locations of {camid.max() + 1} "
            f"cameras, found {len(locations)}"
        )
    return np.where(camid < 0, -1, np.append(locations, -1)[camid]).astype(np.int32)


def _agreeing(query: np.ndarray, gallery: np.ndarray, *, every: bool = False) -> Lists:
    """The gallery rows whose key is that of each query; keys below 0 only if `every`."""
    order, start, count = _spans(query, gallery, every=every)
    return Lists(np.append(0, np.cumsum(count)), order[ranges(start, count)])


def _spans(
    query: np.ndarray, gallery: np.ndarray, *, every: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gallery in the order of its keys, and by query where its key starts there and how often.

    Keys of queries below 0 occur nowhere unless `every`.
    """
    order = np.argsort(gallery, kind="stable")
    keys = gallery[order]
    start = np.searchsorted(keys, query, side="left")
    count = np.searchsorted(keys, query, side="right") - start
    return order, start, count if every else np.where(query < 0, 0, count)
