"""Figures of few seeds: means with the intervals that few seeds deserve, and tables of them.

In every study a seed has all runs, so that their differences are paired. `Arms` is what studies
share that compare runs by name; the parts it is made of serve the others.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Interval = dict[str, Any]
"""What `mean_interval` returns."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arms:
    """Runs that differ in the parts of a method, and which of them are compared.

    Attributes:
      names: of the runs.
      compared: (a, b), for the differences a minus b.
      figures: title by key of a run's figure.
      untrained: the run whose `zero_shot` stands for the encoder as it came.
      labels: keys of the figures of pseudo labels; a run need not have all of them.
    """

    names: Sequence[str]
    compared: Sequence[tuple[str, str]]
    figures: Mapping[str, str]
    untrained: str
    labels: Sequence[str] = ()

    def summarize(self, results: Mapping[str, dict]) -> dict[str, Any]:
        """Means over seeds, and paired differences.

        Args:
          results: by job (a seed), run and figure; of `labels` and `zero_shot` by their keys.

        Returns:
          `runs` by run and figure, the first one "zero-shot"; `labels` by run and figure, where
          there are any; and `differences` by "RUN minus RUN" and figure, with intervals over seeds.
        """
        start = over_seeds(results, self.figures, lambda s, k: s[self.untrained]["zero_shot"][k])
        summary = {"runs": {"zero-shot": start} | of_runs(results, self.names, self.figures)}
        if self.labels:
            summary["labels"] = {name: self._labels(results, name) for name in self.names}
        return summary | {"differences": differences(results, self.compared, self.figures)}

    def _labels(self, results: Mapping[str, dict], name: str) -> dict[str, Interval]:
        known = set.intersection(*({*seed[name]["labels"]} for seed in results.values()))
        keys = [key for key in self.labels if key in known]
        return over_seeds(results, keys, lambda seed, key: seed[name]["labels"][key])

    def table(self, summary: Mapping[str, Any]) -> str:
        """The figures in Markdown: runs, differences, then labels."""
        lines = [
            *heading("run", self.figures.values()),
            *rows(summary["runs"], self.figures),
            *rows(summary["differences"], self.figures, signed=True),
        ]
        if self.labels:
            titles = [key.replace("_", " ") for key in self.labels]
            lines += ["", *heading("labels of", titles), *rows(summary["labels"], self.labels)]
        return "\n".join(lines)


def of_runs(
    results: Mapping[str, dict], names: Iterable[str], keys: Iterable[str]
) -> dict[str, dict[str, Interval]]:
    """Means by run and figure.

    Args:
      results: by job (a seed), run and figure.
      names: of the runs.
      keys: of the figures.
    """
    keys = list(keys)
    return {name: over_seeds(results, keys, lambda s, k, n=name: s[n][k]) for name in names}


def differences(
    results: Mapping[str, dict], compared: Iterable[tuple[str, str]], keys: Iterable[str]
) -> dict[str, dict[str, Interval]]:
    """Means of paired differences, by "RUN minus RUN" and figure.

    Args:
      results: by job (a seed), run and figure.
      compared: the runs (a, b) of each difference a minus b.
      keys: of the figures.
    """
    keys = list(keys)
    return {
        f"{a} minus {b}": over_seeds(results, keys, lambda s, k, a=a, b=b: s[a][k] - s[b][k])
        for a, b in compared
    }


def over_seeds(
    results: Mapping[str, dict], keys: Iterable[str], value: Callable[[dict, str], float]
) -> dict[str, Interval]:
    """Means over seeds, by key.

    Args:
      results: by job (a seed).
      keys: of the figures.
      value: (results of a seed, key) -> figure.
    """
    return {key: mean_interval([value(seed, key) for seed in results.values()]) for key in keys}


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of independent values with Student's interval.

    Args:
      values: one a seed; differences, where two runs share a seed.
      level: share of such intervals that hold the true mean.

    Returns:
      `mean`, `low`, `high`, `sd` and `values`; the interval of a single value is NaN.
    """
    import numpy as np
    from scipy import stats

    x = np.asarray(values, float)
    sd = float(np.std(x, ddof=1)) if len(x) > 1 else float("nan")
    half = stats.t.ppf((1 + level) / 2, len(x) - 1) * sd / np.sqrt(len(x)) if len(x) > 1 else sd
    mean = float(np.mean(x))
    return {
        "mean": mean,
        "low": mean - float(half),
        "high": mean + float(half),
        "sd": sd,
        "values": x.tolist(),
    }


def heading(first: str, titles: Iterable[str]) -> list[str]:
    """The two lines that begin a table, whose first column holds the names of its rows."""
    titles = list(titles)
    corner = f"| {first} |" if first else "| |"
    return [f"{corner} {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]


def rows(
    figures: Mapping[str, Mapping[str, Interval]], keys: Iterable[str], *, signed: bool = False
) -> list[str]:
    """A line for each name, with an empty cell for a figure that it does not have.

    Args:
      figures: intervals by name and key.
      keys: of the columns.
      signed: write the sign of means above 0.
    """
    keys = list(keys)
    lines = []
    for name, found in figures.items():
        cells = [shown(found[key], signed=signed) if key in found else "" for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def shown(interval: Interval, *, signed: bool = False, percent: bool = True) -> str:
    """An interval in a table: `+1.2 (0.3 to 2.1)`."""
    factor = 100 if percent else 1
    digits = 1 if percent else 3
    mean, low, high = (factor * interval[key] for key in ("mean", "low", "high"))
    sign = "+" if signed else ""
    return f"{mean:{sign}.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
