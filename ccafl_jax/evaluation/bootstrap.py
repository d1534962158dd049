"""How sure a figure is: percentile bootstrap intervals over the identities of the queries.

Queries of one identity are not independent of each other: a person who is easy to find is easy in
every image. So a sample draws identities with replacement, and all queries of a drawn identity
come along, as often as it was drawn.
"""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import overload

import numpy as np

from ccafl_jax.evaluation.ranking import NO_MATCH
from ccafl_jax.evaluation.relevance import check_labels
from ccafl_jax.options import require, require_choice

_BLOCK_ELEMENTS = 2**22


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over queries and where it may lie.

    Attributes:
      value: the mean over the counted queries.
      low, high: ends of the interval, in the unit of the values.
      error: standard error, the standard deviation over the samples.
      level: share of the samples between `low` and `high`.
      samples: number of draws.
      identities: that were drawn from, the ones with a counted query.
      queries: counted queries.
    """

    value: float
    low: float
    high: float
    error: float
    level: float
    samples: int
    identities: int
    queries: int

    def to_json(self) -> dict[str, float | int]:
        """The fields as Python numbers."""
        return dataclasses.asdict(self)


@overload
def bootstrap(
    values: np.ndarray,
    valid: np.ndarray,
    query_pid: np.ndarray,
    *,
    samples: int = ...,
    level: float = ...,
    seed: int = ...,
    no_match: str = ...,
) -> Interval: ...
@overload
def bootstrap(
    values: Mapping[str, np.ndarray],
    valid: np.ndarray,
    query_pid: np.ndarray,
    *,
    samples: int = ...,
    level: float = ...,
    seed: int = ...,
    no_match: str = ...,
) -> dict[str, Interval]: ...
def bootstrap(
    values,
    valid,
    query_pid,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    no_match: str = "skip",
):
    """Percentile intervals of means over queries, by drawing identities.

    Several values share their draws, so that a value has the same interval alone and in company.
    Time and memory go with samples x identities, the memory in blocks of a fixed size.

    Args:
      values: float or bool [Q], a figure by query (average precision; whether the first place is
        a match), or a mapping of such arrays by name.
      valid: bool[Q], the query has a match in the gallery.
      query_pid: int[Q].
      samples: number of draws; enough for the level (2 / (1 - level) or more).
      level: share of the samples inside the interval, between 0 and 1.
      seed: of the draws.
      no_match: "skip" leaves queries that are not valid out, "zero" counts them as 0.

    Returns:
      An `Interval`, or one for each name.

    Raises:
      ValueError: shapes that do not fit, identities that are no whole numbers, counted values that
        are not finite, no counted query, queries of a single identity, samples, level or no_match
        out of range.

    Source: Efron 1979 (percentile method); Field and Welsh 2007 (draws of whole clusters).
    """
    named = dict(values) if isinstance(values, Mapping) else {"": values}
    valid, query_pid = np.asarray(valid), np.asarray(query_pid)
    _check_options(samples, level, no_match)
    require(len(named) > 0, "values hold no array: name one or more")
    require(
        valid.ndim == 1 and valid.dtype == bool and query_pid.shape == valid.shape,
        f"valid {valid.dtype}{list(valid.shape)} and query_pid {list(query_pid.shape)}: expected "
        "bool[queries] and [queries]",
    )
    query_pid = check_labels("query_pid", query_pid)
    columns = np.stack([_counted(name, x, valid, no_match) for name, x in named.items()], axis=1)
    pid = query_pid if no_match == "zero" else query_pid[valid]
    require(
        len(pid) > 0,
        f"no query to draw: {len(valid)} queries, of which {int(valid.sum())} have a match",
    )
    identity, index = np.unique(pid, return_inverse=True)
    require(
        len(identity) > 1,
        f"all {len(pid)} counted queries show identity {identity[0]}: an interval over identities "
        "needs 2 or more",
    )
    sums = _sums(columns, index.reshape(-1), len(identity))
    means = _sample_means(sums, samples, seed)  # [samples, values]
    tail = (1.0 - level) / 2
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    error = np.std(means, axis=0, ddof=1)
    center = columns.mean(axis=0)
    found = {
        name: Interval(
            value=float(center[i]),
            low=float(low[i]),
            high=float(high[i]),
            error=float(error[i]),
            level=float(level),
            samples=samples,
            identities=len(identity),
            queries=len(pid),
        )
        for i, name in enumerate(named)
    }
    return found if isinstance(values, Mapping) else found[""]


def bootstrap_difference(
    first: np.ndarray,
    second: np.ndarray,
    valid: np.ndarray,
    query_pid: np.ndarray,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    no_match: str = "skip",
) -> Interval:
    """Interval of how much higher `first` is than `second` on the same queries.

    Both models see the same draws. What makes a query hard for both falls out, so that the
    interval is narrower than the two single ones suggest.

    Args:
      first: float or bool [Q], a figure by query of one model.
      second: the same figure of the other model, for the same queries in the same order.
      valid: bool[Q], the query has a match in the gallery.
      query_pid: int[Q].
      samples: see `bootstrap`.
      level: see `bootstrap`.
      seed: see `bootstrap`.
      no_match: see `bootstrap`.

    Returns:
      `Interval` of mean(first) - mean(second); the models differ at this level if it does not
      hold 0.

    Raises:
      ValueError: as `bootstrap`; the two shapes differ.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    require(
        first.shape == second.shape,
        f"first {list(first.shape)} and second {list(second.shape)}: expected the same queries "
        "for both",
    )
    return bootstrap(
        first - second,
        valid,
        query_pid,
        samples=samples,
        level=level,
        seed=seed,
        no_match=no_match,
    )


def _check_options(samples: int, level: float, no_match: str) -> None:
    require_choice("no_match", no_match, NO_MATCH)
    require(0.0 < level < 1.0, f"level is {level}, must lie between 0 and 1 (0.95)")
    require(
        isinstance(samples, numbers.Integral), f"samples is {samples!r}, must be a whole number"
    )
    # Fewer samples than this have none outside the interval on either side.
    needed = int(np.ceil(np.round(2.0 / (1.0 - level), 6)))
    require(
        samples >= needed,
        f"samples is {samples}, too few for level {level}: take {needed} or more",
    )


def _counted(name: str, values: np.ndarray, valid: np.ndarray, no_match: str) -> np.ndarray:
    """float64 values of the counted queries."""
    name = f"values {name!r}" if name else "values"
    values = np.asarray(values, np.float64)
    require(
        values.shape == valid.shape,
        f"{name} have shape {list(values.shape)}, expected {list(valid.shape)} as valid",
    )
    values = np.where(valid, values, 0.0) if no_match == "zero" else values[valid]
    wrong = int(np.sum(~np.isfinite(values)))
    require(wrong == 0, f"{name} hold {wrong} NaN or infinite entries among the counted queries")
    return values


def _sums(columns: np.ndarray, index: np.ndarray, identities: int) -> np.ndarray:
    """Sums of every column and, last, the number of queries, by identity: float64[I, V + 1]."""
    weights = [*columns.T, np.ones(len(index))]
    return np.stack([np.bincount(index, w, minlength=identities) for w in weights], axis=1)


def _sample_means(sums: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Means over the queries of drawn identities: float64[samples, V]."""
    identities = len(sums)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // identities)
    means = []
    for start in range(0, samples, block):
        size = min(block, samples - start)
        drawn = rng.integers(0, identities, (size, identities))
        drawn += np.arange(size)[:, None] * identities
        times = np.bincount(drawn.reshape(-1), minlength=size * identities)
        total = times.reshape(size, identities).astype(np.float64) @ sums
        means.append(total[:, :-1] / total[:, -1:])
    return np.concatenate(means)
