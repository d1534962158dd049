"""Means over runs of one recipe on different splits of a data set, as RegDB and iLIDS-VID ask.

Each split has a model of its own. What a run measured is in its `summary.json`, and the recipe it
followed in its checkpoints; both are compared before anything is averaged.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ccafl_jax.methods.metadata import FREE_OPTIONS, differences
from ccafl_jax.report.runs import FinishedRun, stored_description
from ccafl_jax.training.description import check_format
from ccafl_jax.training.summary import COLUMNS, summary_rows

OF_A_SPLIT = ("data.split", "seed", "text.labels")
"""Options that runs of one recipe may have for themselves, beside those that change no result."""
_PARTS = ("zero_shot", "stages", "final")
_NOT_FIGURES = ("checkpoint", "seconds")


def average(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Means and standard deviations of all figures of runs of one recipe on different splits.

    Args:
      runs: two or more.

    Returns:
      `method`, `dataset`, `runs` and `splits` (in the order of the splits), `same_code`; and
      `zero_shot`, `stages` and `final` as in a summary, where in place of a number stand its
      `mean`, its `std` (n - 1 in the denominator) and its `values` by run; what is no number in
      every run is a list where runs differ.

    Raises:
      FileNotFoundError: a run has no checkpoint, which tells its recipe.
      ValueError: a single run, two of the same split, or of different recipes or stages; a
        checkpoint of another version.
    """
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} run to average; name two or more")
    for run in runs:
        # Where it was read without checkpoints, the second look says that they are missing.
        check_format(run.description or stored_description(run.path), run.path)
    runs = sorted(runs, key=_split)
    for run in runs[1:]:
        _check_same_recipe(runs[0], run)
    for one, other in itertools.pairwise(runs):
        if _split(one) == _split(other):
            shown = f"split {_split(one)}" if _split(one) else "a data set without splits"
            raise ValueError(
                f"{one.path} and {other.path} are both of {shown}; expected one run for "
                "each split (data.split)"
            )
    parts = {
        part: _average([run.summary[part] for run in runs], part, [run.path for run in runs])
        for part in _PARTS
    }
    return {
        "method": runs[0].method,
        "dataset": runs[0].summary["dataset"],
        "runs": [run.path for run in runs],
        "splits": [_split(run) for run in runs],
        "same_code": all(run.code == runs[0].code for run in runs),
        **parts,
    }


def average_table(found: Mapping[str, Any]) -> str:
    """A text table in per cent: `mean (standard deviation)`; directions below their row.

    Args:
      found: from :func:`average`.
    """
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for name, metrics in summary_rows(found):
        rows.append((f"{found['dataset']}  {name}", metrics))
        for direction, figures in metrics.get("directions", {}).items():
            rows.append((f"  {direction.replace('_', ' ')}", figures))
    columns = [(key, title) for key, title in COLUMNS if any(key in row for _, row in rows)]
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"{title:>15}" for _, title in columns)]
    for name, metrics in rows:
        cells = (_cell(metrics.get(key)) for key, _ in columns)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def _cell(figure: Any) -> str:
    if not isinstance(figure, Mapping):  # not measured in every run
        return "-"
    return f"{100 * figure['mean']:.1f} ({100 * figure['std']:.1f})"


def _split(run: FinishedRun) -> int:
    """The split of the data set; 0 where it has none."""
    return int(run.options.get("data.split", 0))


def _check_same_recipe(first: FinishedRun, run: FinishedRun) -> None:
    if run.method != first.method:
        raise ValueError(
            f"{run.path} is a run of {run.method} and {first.path} one of {first.method}; "
            "average runs of one recipe"
        )
    free = tuple(f"{name}{end}" for name in (*FREE_OPTIONS, *OF_A_SPLIT) for end in (" ", "."))
    found = [x for x in differences(first.options, run.options) if not x.startswith(free)]
    there, here = (
        ",".join(stage["name"] for stage in one.summary["stages"]) or "none" for one in (first, run)
    )
    if there != here:
        found.append(f"stages are {there} there and {here} here")
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ValueError(
            f"{run.path} is of another recipe than {first.path}: {found[0]}{more}; "
            f"only {', '.join(OF_A_SPLIT)} may differ"
        )


def _average(values: Sequence[Any], name: str, runs: Sequence[str]) -> Any:
    """The same structure with means in place of numbers."""
    first = values[0]
    if isinstance(first, Mapping):
        for value, run in zip(values, runs, strict=True):
            if value.keys() != first.keys():
                key = sorted(value.keys() ^ first.keys())[0]
                raise ValueError(
                    f"{run} and {runs[0]} do not have the same figures: {name}.{key} is in one "
                    "alone; train both by the same code"
                )
        # The spread over the draws of one run is not one over runs.
        keys = [key for key in first if key not in _NOT_FIGURES and not key.endswith("_std")]
        return {
            key: _average([value[key] for value in values], f"{name}.{key}", runs) for key in keys
        }
    if isinstance(first, list):
        columns = zip(*values, strict=True)
        return [_average(column, f"{name}.{place}", runs) for place, column in enumerate(columns)]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        spread = statistics.stdev(values)
        return {"mean": statistics.fmean(values), "std": spread, "values": list(values)}
    return first if all(value == first for value in values) else list(values)
