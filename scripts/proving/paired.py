"""Means of few seeds, with the intervals that few seeds deserve."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def mean_interval(values: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """Mean of independent values with Student's interval.

    Args:
      values: one a seed; differences, where two runs share a seed.
      level: share of such intervals that hold the true mean.

    Returns:
      `mean`, `low`, `high`, `sd` and `values`; the interval of a single value is NaN.
    """
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


def shown(interval: dict[str, Any], *, signed: bool = False, percent: bool = True) -> str:
    """An interval in a table: `+1.2 (0.3 to 2.1)`."""
    factor = 100 if percent else 1
    digits = 1 if percent else 3
    mean, low, high = (factor * interval[key] for key in ("mean", "low", "high"))
    sign = "+" if signed else ""
    return f"{mean:{sign}.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
