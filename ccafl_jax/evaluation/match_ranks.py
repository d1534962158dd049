"""What rankings find out about every query, before it becomes figures."""

from typing import NamedTuple

import numpy as np

from ccafl_jax.evaluation.relevance import Lists, Relevance


class MatchRanks(NamedTuple):
    """Ranks of the matches and the best items, filled in block by block.

    Attributes:
      matches: the gallery rows that each query looks for.
      ranks: int32[M], rank of each match, counted from 1, in the order of `matches`.
      tied: int32[M], number of ranked items that score at least as much.
      first: int32[Q], place of the first match in the list cut down to identities; 0 if not asked
        for.
      candidates: int64[Q], items ranked for the query.
      indices: int32[Q, top], best items; -1 where there are fewer.
      scores: float32[Q, top], -inf where there are fewer.
    """

    matches: Lists
    ranks: np.ndarray
    tied: np.ndarray
    first: np.ndarray
    candidates: np.ndarray
    indices: np.ndarray
    scores: np.ndarray


def nothing_yet(counts: Relevance, top: int) -> MatchRanks:
    """Room for the queries and matches of `counts` and `top` best items of each query."""
    matches = counts.matches()
    queries, found = len(counts.query_pid), len(matches.values)
    return MatchRanks(
        matches=matches,
        ranks=np.zeros(found, np.int32),
        tied=np.zeros(found, np.int32),
        first=np.zeros(queries, np.int32),
        candidates=np.zeros(queries, np.int64),
        indices=np.full((queries, top), -1, np.int32),
        scores=np.full((queries, top), -np.inf, np.float32),
    )
