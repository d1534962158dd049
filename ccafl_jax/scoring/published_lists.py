"""The good and junk lists that come with some data sets, in place of identities and cameras."""

import dataclasses

import numpy as np

from ccafl_jax.evaluation.relevance import Lists, Relevance
from ccafl_jax.options import require
from ccafl_jax.ragged import ranges
from ccafl_jax.scoring.feature_set import GALLERY, QUERY, FeatureSet
from ccafl_jax.scoring.trials import Trial

USES = ("ignore", "use", "check")
"""`use` goes by the lists, `check` by identities and compares the two."""


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedLists:
    """The lists of a data set for one trial, in places of its gallery.

    Attributes:
      listed: bool[Q], the query has lists.
      good: gallery places that match, by query.
      junk: gallery places that are left out, by query; None where the data set has no such lists.
    """

    listed: np.ndarray
    good: Lists
    junk: Lists | None


def published_lists(features: FeatureSet, trial: Trial) -> PublishedLists:
    """The lists of the queries of a trial; images that are not ranked are dropped from them.

    Raises:
      ValueError: the features come without lists, or these are of another data set.
    """
    tables = features.tables
    require(
        "gt.query" in tables and "gt.good.values" in tables,
        f"the features of {features.dataset or 'this set'} come without published lists (tables "
        "gt.query and gt.good); score them by identities",
    )
    list_of = np.full(len(features), -1)
    rows = features.list_queries()
    present = rows >= 0
    list_of[features.rows(QUERY)[rows[present]]] = np.flatnonzero(present)
    number = list_of[trial.query]
    require(
        bool(np.any(number >= 0)),
        f"none of the {len(number)} queries has a list in the table gt.query; score them by "
        "identities",
    )
    junk = "gt.junk.values" in tables
    return PublishedLists(
        listed=number >= 0,
        good=_by_query(features, trial, number, "gt.good"),
        junk=_by_query(features, trial, number, "gt.junk") if junk else None,
    )


def agreement(lists: PublishedLists, counts: Relevance) -> dict[str, int | bool]:
    """How far lists and identities agree, over the queries that have lists.

    Args:
      lists: of a trial.
      counts: what identities and cameras say about it.

    Returns:
      Numbers of queries with and without lists; of pairs of query and image that are good in both
      or in one of the two; of pairs that are left out, likewise, where there are lists of junk; and
      `agree`, whether none is in one of the two alone.
    """
    found: dict[str, int | bool] = {
        "queries": int(lists.listed.sum()),
        "queries_without": int(np.sum(~lists.listed)),
    }
    pairs = {"good": (_pairs(lists.listed, lists.good), _pairs(lists.listed, counts.matches()))}
    if lists.junk is not None:
        left_out = [_pairs(lists.listed, part) for part in counts.left_out()]
        left_out = np.unique(np.concatenate([np.zeros((0, 2), np.int64), *left_out]), axis=0)
        pairs["junk"] = _pairs(lists.listed, lists.junk), left_out
    size = counts.shape[1]
    for kind, sides in pairs.items():
        listed, known = (np.unique(side[:, 0] * size + side[:, 1]) for side in sides)
        both = len(np.intersect1d(listed, known, assume_unique=True))
        found[f"{kind}_in_both"] = both
        found[f"{kind}_only_in_lists"] = len(listed) - both
        found[f"{kind}_only_by_identity"] = len(known) - both
    found["agree"] = not any(value for key, value in found.items() if "_only_" in key)
    return found


def gallery_places(features: FeatureSet, trial: Trial, rows: np.ndarray) -> np.ndarray:
    """Places in the gallery of a trial, int64[k]; -1 for images that are not in it.

    Args:
      features: the set.
      trial: of it.
      rows: int[k], rows of the set's part `gallery`, as tables count them; -1 for none.
    """
    place = np.full(len(features) + 1, -1)
    place[trial.gallery] = np.arange(len(trial.gallery))
    gallery = np.append(features.rows(GALLERY), len(features))
    return place[gallery[rows]]


def _by_query(features: FeatureSet, trial: Trial, number: np.ndarray, table: str) -> Lists:
    offsets, values = features.lists(table)
    queries = len(features.tables["gt.query"])
    require(
        len(offsets) - 1 == queries,
        f"{table}.offsets is of {len(offsets) - 1} lists, but gt.query of {queries}: the tables "
        "are damaged or of another data set",
    )
    offsets = np.append(offsets, offsets[-1])  # list -1 is empty
    number = np.where(number < 0, len(offsets) - 2, number)
    length = np.diff(offsets)[number]
    places = gallery_places(features, trial, values[ranges(offsets[number], length)])
    owner = np.repeat(np.arange(len(number)), length)
    there = places >= 0
    count = np.bincount(owner[there], minlength=len(number))
    return Lists(np.append(0, np.cumsum(count)), places[there])


def _pairs(listed: np.ndarray, lists: Lists) -> np.ndarray:
    """int64[m, 2], queries and gallery places, of the queries that have lists."""
    owner, place = lists.take(np.arange(len(listed)))
    return np.stack([owner, place], axis=1)[listed[owner]]
