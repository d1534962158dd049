"""`summary.json` of a run and the table printed at its end."""

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (
    ("mAP", "mAP"),
    ("rank1", "rank-1"),
    ("rank5", "rank-5"),
    ("rank10", "rank-10"),
    ("mINP", "mINP"),
    ("same_camera_share", "same-camera"),
)


def result_table(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """A text table of results in percent.

    Args:
      rows: (name, metrics with values in 0..1); a metric that is absent shows as "-". The row
        starts with the data set of the metrics (`dataset`).
    """
    named = [(f"{metrics.get('dataset', '-')}  {name}", metrics) for name, metrics in rows]
    width = max(len(name) for name, _ in named)
    lines = [" " * width + "".join(f"{title:>13}" for _, title in COLUMNS)]
    for name, metrics in named:
        cells = (
            f"{100 * metrics[key]:13.1f}" if key in metrics else f"{'-':>13}" for key, _ in COLUMNS
        )
        lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(lines)


def summary_rows(summary: Mapping) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of :func:`result_table` from a summary."""
    rows = []
    zero_shot = summary.get("zero_shot")
    if zero_shot:
        start = "as loaded" if summary.get("init_from") else "zero-shot"
        rows.append((f"{start} f", zero_shot))
        if "g" in zero_shot:
            rows.append((f"{start} g", zero_shot["g"]))
    names = {
        "intra": "after stage 2 (intra)",
        "inter": "after stage 3 (inter)",
        "global": "after stage 2 (global)",
        "clips": "after training",
        "prepare": "after stage 0 (prepare)",
        "train": "after stage 2 (train)",
    }
    rows += [(names[s["name"]], s) for s in summary["stages"] if s["name"] in names]
    return rows
