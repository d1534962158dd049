"""Ranks of matches on the host: rows are sorted by value, which NumPy does fastest on CPUs."""

from typing import NamedTuple

import numpy as np

from ccafl_jax.evaluation.match_ranks import MatchRanks
from ccafl_jax.evaluation.relevance import Relevance
from ccafl_jax.neighbors.similarity import ScoreProvider, in_threads
from ccafl_jax.neighbors.top_k import largest
from ccafl_jax.progress import progress_bar

_TIES_AT_ONCE = 2**21


def rank_on_host(
    found: MatchRanks,
    scores: ScoreProvider,
    counts: Relevance,
    *,
    collapse: bool,
    elements: int,
    progress: bool,
) -> None:
    """Fills in what is found about every query.

    Args:
      found: from `nothing_yet`.
      scores: of all queries and gallery items.
      counts: what matches and what is left out.
      collapse: place the first match in the list cut down to identities.
      elements: scores held at once.
      progress: show a bar.
    """
    groups = _identity_groups(counts) if collapse else None
    counts.prepare()
    top = found.indices.shape[1]
    with progress_bar(scores.shape[0], "ranking", progress) as bar:
        for rows, block in scores.blocks(elements=elements):

            def work(start: int, stop: int, rows=rows, block=block) -> None:
                chunk, part = rows[start:stop], block[start:stop]
                counts.leave_out(chunk, part)
                _rank_rows(found, chunk, part, groups)

            in_threads(work, *block.shape)
            if top:
                best = largest(block, top)
                found.indices[rows] = best.indices
                found.scores[rows] = scores.reported(rows, best.scores)
            bar.update(len(rows))


def _rank_rows(found: MatchRanks, rows: np.ndarray, scores: np.ndarray, groups) -> None:
    """Ranks of some queries.

    Args:
      found: to fill in.
      rows: int64[b], the queries.
      scores: float[b, G]; -inf for items left out.
      groups: see `_identity_groups`; None if lists are not cut down.
    """
    size = scores.shape[1]
    ordered = np.sort(scores, axis=1)
    if np.isnan(ordered[:, -1]).any():  # they come last
        raise ValueError("scores hold NaN; expected numbers, check the features they come from")
    nothing = np.full(len(rows), -np.inf, scores.dtype)
    found.candidates[rows] = size - _count_up_to(ordered, np.arange(len(rows)), nothing)
    owner, item = found.matches.take(rows)
    if not len(owner):
        return
    value = scores[owner, item]
    upto = _count_up_to(ordered, owner, value)
    ranks = 1 + size - upto
    tied = ranks.copy()
    # Among equals the sorted values do not tell who is first: count those that stand before.
    several = np.flatnonzero((ordered[owner, np.maximum(upto - 2, 0)] == value) & (upto > 1))
    step = max(1, _TIES_AT_ONCE // size)
    for start in range(0, len(several), step):
        some = several[start : start + step]
        equal = scores[owner[some]] == value[some, None]
        tied[some] = size - upto[some] + equal.sum(axis=1)
        ranks[some] += (equal & (np.arange(size) < item[some, None])).sum(axis=1)
    place = found.matches.places(rows)
    found.ranks[place], found.tied[place] = ranks, tied
    if groups is not None:
        found.first[rows] = _places_of_identity(rows, scores, owner, item, ranks, groups)


def _count_up_to(ordered: np.ndarray, row: np.ndarray, value: np.ndarray) -> np.ndarray:
    """How many entries of the ascending rows `row` (int[m]) are at most `value` (float[m])."""
    size = ordered.shape[1]
    low, high = np.zeros(len(row), np.int64), np.full(len(row), size)
    for _ in range(size.bit_length()):
        middle = (low + high) // 2
        right = (middle < high) & (ordered[row, np.minimum(middle, size - 1)] <= value)
        low, high = np.where(right, middle + 1, low), np.where(right, high, middle)
    return low


class _Groups(NamedTuple):
    """The gallery by identity."""

    counts: Relevance
    order: np.ndarray  # gallery rows, identity after identity
    starts: np.ndarray  # where each starts in it


def _identity_groups(counts: Relevance) -> _Groups:
    order = np.argsort(counts.gallery_pid, kind="stable")
    pid = counts.gallery_pid[order]
    return _Groups(counts, order, np.flatnonzero(np.append(True, pid[1:] != pid[:-1])))


def _places_of_identity(
    rows: np.ndarray,
    scores: np.ndarray,
    owner: np.ndarray,
    item: np.ndarray,
    ranks: np.ndarray,
    groups: _Groups,
) -> np.ndarray:
    """Place of each query's identity: one plus the others with an item before its first match."""
    first = np.lexsort((ranks, owner))
    first = first[np.append(True, np.diff(owner[first]) != 0)]
    own = scores[owner[first]]
    place = item[first][:, None]
    value = np.take_along_axis(own, place, axis=1)
    before = (own > value) | ((own == value) & (np.arange(scores.shape[1]) < place))
    pid = groups.counts.query_pid[rows[owner[first]]]
    before &= groups.counts.gallery_pid != pid[:, None]
    others = np.logical_or.reduceat(before[:, groups.order], groups.starts, axis=1).sum(axis=1)
    places = np.zeros(len(scores), np.int32)
    places[owner[first]] = 1 + others
    return places
