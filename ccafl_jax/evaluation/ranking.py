"""Retrieval metrics: exact mAP, CMC and mINP in blocks of queries, without ranking the gallery.

All three follow from the ranks of the matches, and nothing but those is computed; see
`host_ranks` and `device_ranks` for how.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ccafl_jax.evaluation.device_ranks import rank_on_devices
from ccafl_jax.evaluation.host_ranks import rank_on_host
from ccafl_jax.evaluation.match_ranks import MatchRanks, nothing_yet
from ccafl_jax.evaluation.relevance import JUNK, Relevance, relevance
from ccafl_jax.neighbors.similarity import (
    BLOCK_ELEMENTS,
    ENGINES,
    FeatureScores,
    MatrixScores,
    ScoreProvider,
    local_mesh,
)
from ccafl_jax.options import require_choice

__all__ = ["JUNK", "Ranking", "Top", "metrics_of", "rank", "rank_by", "rank_scores"]

AP_RULES = ("step", "trapezoid", "tied")
NO_MATCH = ("skip", "zero")
CMC_RULES = ("image", "identity")


class Top(NamedTuple):
    """The best items of each query, left-out ones excepted.

    Attributes:
      indices: int32[Q, k], gallery rows by descending score, ties by row; -1 where there are fewer.
      scores: float32[Q, k], as `ScoreProvider.reported` gives them; -inf where there are fewer.
      matches: bool[Q, k].
    """

    indices: np.ndarray
    scores: np.ndarray
    matches: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """Metrics of one evaluation; all shares in 0..1.

    Attributes:
      mAP, mINP: means over the counted queries; 0 if there are none.
      cmc: float64[max_rank], share of the counted queries with a match among the first k + 1.
      ap, inp: float64[Q], average precision and inverse negative penalty by query; 0 where not
        valid.
      valid: bool[Q], the query has a match in the gallery.
      queries: number of queries the means run over.
      skipped: number of queries left out of the means.
      ranks: int32[M], ranks of the matches, counted from 1; those of query q are
        `ranks[offsets[q] : offsets[q + 1]]`, ascending.
      tied: int32[M], number of ranked items that score at least as much as the match.
      offsets: int64[Q + 1].
      first: int32[Q], place of the first match in the list that the CMC goes by; 0 without one.
      candidates: int64[Q], gallery items ranked for the query.
      top: the best items of each query, if asked for.
      rules: the options that gave the figures, by name.
    """

    mAP: float
    mINP: float
    cmc: np.ndarray
    ap: np.ndarray
    inp: np.ndarray
    valid: np.ndarray
    queries: int
    skipped: int
    ranks: np.ndarray
    tied: np.ndarray
    offsets: np.ndarray
    first: np.ndarray
    candidates: np.ndarray
    top: Top | None
    rules: dict[str, Any]

    def __repr__(self) -> str:
        figures = ", ".join(f"{key}={value:.4g}" for key, value in self.summary().items())
        return f"Ranking({figures})"

    def summary(self) -> dict[str, float | int]:
        """The numbers that papers report, as Python numbers."""
        at = {k: float(self.cmc[min(k, len(self.cmc)) - 1]) for k in (1, 5, 10)}
        return {
            "mAP": self.mAP,
            "rank1": at[1],
            "rank5": at[5],
            "rank10": at[10],
            "mINP": self.mINP,
            "queries": self.queries,
            "skipped": self.skipped,
        }


def rank(
    query_f: np.ndarray | jax.Array,
    gallery_f: np.ndarray | jax.Array,
    query_pid: np.ndarray,
    gallery_pid: np.ndarray,
    query_camid: np.ndarray | None = None,
    gallery_camid: np.ndarray | None = None,
    *,
    metric: str = "cosine",
    same_camera: str = "identity",
    **options: Any,
) -> Ranking:
    """Ranks the gallery for every query and scores the result.

    Gallery images with id -1, and for each query those of its identity and its camera, are left
    out. Equal scores rank in the order of the gallery.

    Args:
      query_f: float[Q, D].
      gallery_f: float[G, D].
      query_pid: int[Q].
      gallery_pid: int[G].
      query_camid: int[Q]; -1 where the camera is not known, None where no camera is.
      gallery_camid: int[G], or None.
      metric: `cosine`, `euclidean` or `dot`; features need not be normalised.
      same_camera: see :func:`ccafl_jax.evaluation.relevance.relevance`.
      **options: of `rank_by`.

    Returns:
      `Ranking`.

    Raises:
      ValueError: shapes that do not fit, an empty side, features that are not finite or have no
        direction, an unknown option.

    Source: Market-1501 protocol; mINP of AGW (arXiv 2001.04193).

    Example, in which the match comes second:

    >>> query, gallery = np.eye(2)[:1], np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])
    >>> found = rank(query, gallery, np.array([7]), np.array([3, 7, 4]))
    >>> float(found.mAP), found.cmc[:2].tolist()
    (0.5, [0.0, 1.0])
    """
    rules = relevance(query_pid, gallery_pid, query_camid, gallery_camid, same_camera=same_camera)
    return rank_by(FeatureScores(query_f, gallery_f, metric), rules, **options)


def rank_scores(
    scores: np.ndarray,
    query_pid: np.ndarray,
    gallery_pid: np.ndarray,
    query_camid: np.ndarray | None = None,
    gallery_camid: np.ndarray | None = None,
    *,
    same_camera: str = "identity",
    **options: Any,
) -> Ranking:
    """As `rank`, from a matrix of scores (e.g. negated distances) that is at hand.

    Args:
      scores: float[Q, G], higher is better.
      query_pid: int[Q].
      gallery_pid: int[G].
      query_camid: int[Q].
      gallery_camid: int[G].
      same_camera: see `rank`.
      **options: of `rank_by`.

    Returns:
      `Ranking`.
    """
    rules = relevance(query_pid, gallery_pid, query_camid, gallery_camid, same_camera=same_camera)
    return rank_by(MatrixScores(scores), rules, **options)


def rank_by(
    scores: ScoreProvider,
    counts: Relevance,
    *,
    no_match: str = "skip",
    ap: str = "step",
    cmc: str = "image",
    max_rank: int = 50,
    top: int = 0,
    engine: str = "auto",
    mesh: Mesh | None = None,
    block_elements: int | None = None,
    progress: bool = False,
) -> Ranking:
    """Ranks by any scores, under any rule of what counts.

    Args:
      scores: of all queries and gallery items; higher is better.
      counts: what matches and what is left out.
      no_match: `skip` leaves queries without a match out of the means; `zero` counts them as AP 0,
        CMC 0 and mINP 0, as the released CCAFL evaluator does.
      ap: `step`, the mean precision at the matches; `trapezoid`, the mean of the precisions before
        and at each match, as Market-1501's own code; `tied`, where equal scores form one block, as
        in scikit-learn.
      cmc: `image`, or `identity`: the list is cut down to the first image of each identity, as on
        SYSU-MM01.
      max_rank: length of the CMC.
      top: number of best items to keep of each query, at most those of the gallery.
      engine: `host` sorts with NumPy, `device` counts in jitted blocks, queries split over the
        axis "data" of the mesh; `auto` takes the device where it is an accelerator or a mesh is
        given, and the scores come from features.
      mesh: the devices; all local ones when None.
      block_elements: scores held at once, a bound on memory (per device for `device`).
      progress: show a bar.

    Returns:
      `Ranking`. Figures do not depend on the block or the number of devices, and on the engine
      only as far as products of the two round differently.

    Raises:
      ValueError: parts that do not fit, nothing to rank, an unknown option, a mesh without the
        axis "data", scores that are NaN.
    """
    require_choice("no_match", no_match, NO_MATCH)
    require_choice("ap", ap, AP_RULES)
    require_choice("cmc", cmc, CMC_RULES)
    require_choice("engine", engine, ENGINES)
    counts.check(scores.shape)
    block_elements = BLOCK_ELEMENTS if block_elements is None else block_elements
    if max_rank < 1 or block_elements < 1:
        raise ValueError(f"max_rank {max_rank} and block_elements {block_elements} must be >= 1")
    if top < 0:
        raise ValueError(f"top is {top}, must be 0 or more items")
    scores, counts, columns = _without_junk(scores, counts)
    found = nothing_yet(counts, min(top, len(columns)))
    work = {"collapse": cmc == "identity", "elements": block_elements, "progress": progress}
    if _on_device(engine, scores, mesh):
        rank_on_devices(found, scores, counts, mesh or local_mesh(), **work)
    else:
        rank_on_host(found, scores, counts, **work)
    order = np.lexsort((found.ranks, found.matches.owners()))
    ranks, tied, offsets = found.ranks[order], found.tied[order], found.matches.offsets
    first = found.first
    if cmc == "image":
        has = np.diff(offsets) > 0
        first[has] = ranks[offsets[:-1][has]]
    options = {"no_match": no_match, "ap": ap, "max_rank": max_rank}
    return Ranking(
        **metrics_of(ranks, tied, offsets, first, **options),
        ranks=ranks,
        tied=tied,
        offsets=offsets,
        first=first,
        candidates=found.candidates,
        top=_top(found, columns) if top else None,
        rules={"metric": getattr(scores, "metric", "given scores"), "cmc": cmc, **options},
    )


def metrics_of(
    ranks: np.ndarray,
    tied: np.ndarray,
    offsets: np.ndarray,
    first: np.ndarray,
    *,
    no_match: str = "skip",
    ap: str = "step",
    max_rank: int = 50,
) -> dict[str, Any]:
    """Metrics from the ranks of the matches alone.

    Args:
      ranks: int32[M], as in `Ranking`.
      tied: int32[M].
      offsets: int64[Q + 1].
      first: int32[Q].
      no_match: see `rank_by`.
      ap: see `rank_by`.
      max_rank: see `rank_by`.

    Returns:
      `mAP`, `mINP`, `cmc`, `ap`, `inp`, `valid`, `queries` and `skipped`, as in `Ranking`.
    """
    require_choice("no_match", no_match, NO_MATCH)
    require_choice("ap", ap, AP_RULES)
    count = np.diff(offsets)
    valid = count > 0
    owner = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(ranks)) - offsets[owner] + 1
    precision = _precision(ranks, tied, place, owner, ap)
    by_query = np.bincount(owner, precision, minlength=len(count)) / np.maximum(count, 1)
    last = np.maximum(np.append(ranks, 1)[offsets[1:] - 1], 1)
    penalty = np.where(valid, count / last, 0.0)
    hits = np.cumsum(np.bincount(np.minimum(first[valid], max_rank + 1), minlength=max_rank + 2))
    counted = len(count) if no_match == "zero" else int(valid.sum())
    divisor = max(counted, 1)
    return {
        "mAP": float(by_query.sum() / divisor),
        "mINP": float(penalty.sum() / divisor),
        "cmc": hits[1 : max_rank + 1] / divisor,
        "ap": by_query,
        "inp": penalty,
        "valid": valid,
        "queries": counted,
        "skipped": len(count) - counted,
    }


def _precision(ranks, tied, place, owner, ap: str) -> np.ndarray:
    """What each match adds to the average precision of its query, times the number of matches."""
    if ap == "step":
        return place / ranks
    if ap == "trapezoid":
        before = np.where(ranks > 1, (place - 1) / np.maximum(ranks - 1, 1), 1.0)
        return (before + place / ranks) / 2
    # The matches of a block of equal scores all have the precision at its end.
    new = np.ones(len(ranks), bool)
    new[1:] = (tied[1:] != tied[:-1]) | (owner[1:] != owner[:-1])
    ends = np.append(np.flatnonzero(new)[1:], len(ranks)) - 1
    return place[ends][np.cumsum(new) - 1] / tied if len(ranks) else np.zeros(0)


def _top(found: MatchRanks, columns: np.ndarray) -> Top:
    """The best items by their rows in the whole gallery, `columns` of which were ranked."""
    size = len(columns)
    query = np.arange(len(found.indices))[:, None]
    wanted = found.matches.owners() * size + found.matches.values
    asked = query * size + found.indices
    place = np.searchsorted(wanted, asked)  # the matches are in ascending order
    matches = (np.append(wanted, -1)[place] == asked) & (found.indices >= 0)
    return Top(
        np.where(found.indices < 0, -1, columns[found.indices]).astype(np.int32),
        found.scores,
        matches,
    )


def _on_device(engine: str, scores: ScoreProvider, mesh: Mesh | None) -> bool:
    from_features = isinstance(scores, FeatureScores)
    if engine == "device" and not from_features:
        raise ValueError("engine is 'device', which ranks by features; use 'host' or 'auto'")
    if mesh is not None and "data" not in mesh.axis_names:
        raise ValueError(f"the mesh has the axes {mesh.axis_names}; expected one named 'data'")
    if mesh is not None and (engine == "host" or not from_features):
        raise ValueError("a mesh is for the engine 'device' and scores of features; leave it out")
    accelerated = mesh is not None or jax.default_backend() != "cpu"
    return engine == "device" or (engine == "auto" and from_features and accelerated)


def _without_junk(
    scores: ScoreProvider, counts: Relevance
) -> tuple[ScoreProvider, Relevance, np.ndarray]:
    """The same without the gallery items of no ranking, and the rows of those that are left."""
    columns = np.flatnonzero(counts.kept)
    if counts.kept.all() or not hasattr(scores, "columns"):
        return scores, counts, np.arange(len(counts.kept))
    number = np.where(counts.kept, np.cumsum(counts.kept) - 1, -1)
    whole = scores.columns
    return (
        dataclasses.replace(scores, columns=columns if whole is None else whole[columns]),
        dataclasses.replace(
            counts,
            gallery_pid=counts.gallery_pid[columns],
            kept=counts.kept[columns],
            exclude=tuple((query, gallery[columns]) for query, gallery in counts.exclude),
            good=counts.good and counts.good.renumbered(number),
            junk=counts.junk and counts.junk.renumbered(number),
        ),
        columns,
    )
