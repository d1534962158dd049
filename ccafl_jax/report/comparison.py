"""Runs beside each other: tables, means over seeds, curves, and differences with intervals."""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ccafl_jax.evaluation.bootstrap import Interval
from ccafl_jax.report.runs import FinishedRun, common_test_set, kept_features
from ccafl_jax.scoring.paired import paired_differences
from ccafl_jax.training.summary import COLUMNS, summary_rows

FIGURES = tuple((key, title) for key, title in COLUMNS if key != "same_camera_share")
"""Those that are compared, with their titles."""
SEED = "seed"
PLOTS = (".png", ".svg")


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ by the seed.

    Attributes:
      runs: two or more.
      seeds: of each.
      stages: by title and figure: `mean`, `std` (n - 1) and `runs`, those that have the figure.
    """

    runs: Sequence[str]
    seeds: Sequence[int]
    stages: Mapping[str, Mapping[str, Mapping[str, float]]]


def stages_of(run: FinishedRun) -> dict[str, dict[str, float]]:
    """The figures of a run that are compared, by the title of the stage."""
    return {
        title: {key: metrics[key] for key, _ in FIGURES if key in metrics}
        for title, metrics in summary_rows(run.summary)
    }


def groups_of(runs: Sequence[FinishedRun], *, free: Sequence[str]) -> list[Group]:
    """The groups of runs that differ by the seed.

    Args:
      runs: of any recipes.
      free: options, or groups of options, that change no result.
    """
    ends = tuple(f"{name}." for name in free)
    alike: dict[str, list[FinishedRun]] = {}
    for run in runs:
        options = {
            name: value
            for name, value in run.options.items()
            if name != SEED and name not in free and not name.startswith(ends)
        }
        if options:
            key = json.dumps([run.summary["dataset"], options], default=str)
            alike.setdefault(key, []).append(run)
    return [_group(members) for members in alike.values() if len(members) > 1]


def _group(members: Sequence[FinishedRun]) -> Group:
    stages: dict[str, dict[str, dict[str, float]]] = {}
    found = [stages_of(run) for run in members]
    for title in dict.fromkeys(title for own in found for title in own):
        stages[title] = {}
        for key, _ in FIGURES:
            values = [own[title][key] for own in found if key in own.get(title, ())]
            if len(values) > 1:
                spread = {"mean": statistics.fmean(values), "std": statistics.stdev(values)}
                stages[title][key] = spread | {"runs": len(values)}
    return Group([run.path for run in members], [run.options[SEED] for run in members], stages)


def differences(
    runs: Sequence[FinishedRun], *, samples: int, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """Of every run but the first: its figures minus those of the first, on the same queries.

    Args:
      runs: two or more, whose features are kept.
      samples: of the bootstrap.
      seed: of its draws.

    Raises:
      FileNotFoundError: a run keeps no features.
      ValueError: two runs cannot be paired; the message says why.
    """
    dataset = common_test_set(runs)
    base = kept_features(runs[0], dataset)
    return {
        run.path: paired_differences(
            kept_features(run, dataset),
            base,
            names=(run.path, runs[0].path),
            samples=samples,
            seed=seed,
        )
        for run in runs[1:]
    }


def as_dict(
    runs: Sequence[FinishedRun],
    groups: Sequence[Group],
    found: Mapping[str, Mapping[str, Interval]],
) -> dict[str, Any]:
    """All of a comparison as JSON values; shares are in 0..1."""
    return {
        "runs": [
            {
                "run": run.path,
                "method": run.method,
                "dataset": run.summary["dataset"],
                "seed": run.options.get(SEED),
                "stages": stages_of(run),
            }
            for run in runs
        ],
        "groups": [dataclasses.asdict(group) for group in groups],
        "differences": {
            name: {figure: interval.to_json() for figure, interval in by_figure.items()}
            for name, by_figure in found.items()
        },
    }


def table(runs: Sequence[FinishedRun]) -> str:
    """The figures of all runs and stages in per cent."""
    lines = [("run", "stage", "data set", *(title for _, title in FIGURES))]
    for run in runs:
        for stage, figures in stages_of(run).items():
            cells = (_percent(figures.get(key)) for key, _ in FIGURES)
            lines.append((run.path, stage, run.summary["dataset"], *cells))
    return _aligned(lines, words=3)


def group_table(group: Group) -> str:
    """Means over the seeds of a group and their standard deviations, in per cent."""
    seeds = ", ".join(map(str, group.seeds))
    lines = [("stage", *(title for _, title in FIGURES))]
    for stage, figures in group.stages.items():
        lines.append((stage, *(_spread(figures.get(key)) for key, _ in FIGURES)))
    return f"seeds {seeds} of {', '.join(group.runs)}\n{_aligned(lines, words=1)}"


def differences_table(found: Mapping[str, Mapping[str, Interval]], base: str) -> str:
    """Differences from the run `base` in points, with their intervals."""
    figures = next(iter(found.values()))
    one = next(iter(figures.values()))
    lines = [(f"minus {base}", *figures)]
    for name, intervals in found.items():
        cells = (
            f"{100 * each.value:+.1f} ({100 * each.low:+.1f} to {100 * each.high:+.1f})"
            for each in intervals.values()
        )
        lines.append((name, *cells))
    return (
        f"{_aligned(lines, words=1)}\n"
        f"points, with {100 * one.level:g} % intervals from {one.samples} draws of "
        f"{one.identities} identities ({one.queries} queries)"
    )


def draw(runs: Sequence[FinishedRun], path: pathlib.Path) -> None:
    """Draws the training loss and the mAP of all runs over the epochs of the image encoder.

    Args:
      runs: to be overlaid.
      path: of a PNG or SVG file.

    Raises:
      ValueError: another kind of file.
      ImportError: matplotlib is missing.
    """
    if path.suffix.lower() not in PLOTS:
        raise ValueError(f"{path}: name a file that ends in {' or '.join(PLOTS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("curves need matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, quality = figure.subplots(1, 2)
    for run in runs:
        loss.plot(*run.curve("total", "loss"), marker=".", label=run.path)
        epochs, values = run.curve("mAP")
        quality.plot(epochs, [100 * value for value in values], marker=".", label=run.path)
    loss.set(title="training loss", xlabel="epoch")
    quality.set(title="mAP of the test set, %", xlabel="epoch")
    for axes in (loss, quality):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _aligned(lines: Sequence[Sequence[str]], *, words: int) -> str:
    """Columns, the first `words` of them to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if number < words else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _spread(found: Mapping[str, float] | None) -> str:
    return "-" if found is None else f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}"
