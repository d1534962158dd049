"""Figures of an evaluation as text: a table, the rules they were made by, and warnings."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ccafl_jax.evaluation.camera_pairs import CameraPairs

_WIDTH = 13
_SILENT = ("note", "protocol", "figures", "preprocess", "feature", "unit", "trial")
_UNSAID: Mapping[str, Any] = {"trials": 1, "sets": 1, "published_lists": "ignore"}


def figures_text(figures: Mapping[str, Any], *, name: str = "") -> str:
    """A text of several lines; shares are in per cent.

    Args:
      figures: of `ccafl_jax.scoring.evaluate.evaluate`; perhaps with `per_trial`.
      name: of the model, for the heading.
    """
    parts = [_table(figures, name), _counts(figures), rules_text(figures["rules"])]
    if "published_lists" in figures:
        found = figures["published_lists"]
        parts.append("published lists: " + _listed(found))
    one = next(iter(figures.get("per_trial", ())), figures)
    if "camera_pairs" in one:
        of = f", {one['trial']}" if one is not figures else ""
        parts.append(f"mAP by camera of the query (row) and of the gallery (column){of}:")
        parts.append(_camera_pairs(one["camera_pairs"]))
    parts += [f"warning: {text}" for text in figures["warnings"]]
    return "\n".join(parts)


def _table(figures: Mapping[str, Any], name: str) -> str:
    """Figures side by side; below them, where they are known, their spread and intervals."""
    names = [*figures["rules"]["figures"]]
    names += [key for key in ("same_camera_share",) if key in figures]
    titles = {"same_camera_share": "same-camera"}
    rows = [("", [titles.get(key, key.replace("rank", "rank-")) for key in names])]
    rows.append(("%", [_percent(figures.get(key)) for key in names]))
    if "std_over" in figures:
        row = [_percent(figures.get(f"{key}_std")) for key in names]
        rows.append((f"std over {figures['std_over']}", row))
    intervals = figures.get("intervals", {})
    if intervals:
        one = next(iter(intervals.values()))
        for end, word in (("low", "from"), ("high", "to")):
            row = [_percent(intervals.get(key, {}).get(end)) for key in names]
            rows.append((f"{100 * one['level']:g} % interval {word}", row))
    width = max(len(title) for title, _ in rows)
    lines = [f"{figures['dataset'] or 'features'}  {name}".rstrip()]
    for title, cells in rows:
        lines.append(f"{title:<{width}}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells))
    return "\n".join(lines)


def _counts(figures: Mapping[str, Any]) -> str:
    counts = {key: value for key, value in figures["counts"].items() if value}
    return "counts: " + ", ".join(
        f"{key.replace('_', ' ')} {_word(v)}" for key, v in counts.items()
    )


def rules_text(rules: Mapping[str, Any]) -> str:
    """The rules of an evaluation that say something, in one line."""
    shown = {
        key: value
        for key, value in rules.items()
        if key not in _SILENT and value not in (None, False, []) and value != _UNSAID.get(key)
    }
    return f"rules: {rules['protocol']}: " + _listed(shown)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_word(value)}" for key, value in values.items())


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key.rstrip('_')} {_word(v)}" for key, v in value.items()) + ")"
    if isinstance(value, list | tuple):
        return " ".join(map(_word, value))
    return "yes" if value is True else str(value)


def _camera_pairs(found: Mapping[str, Any]) -> str:
    values = np.array([[np.nan if x is None else x for x in row] for row in found["mAP"]], float)
    pairs = CameraPairs(
        mAP=np.nan_to_num(values),
        queries=np.array(found["queries"]),
        valid=~np.isnan(values),
        cameras=np.arange(len(found["cameras"])),
        unknown_queries=found["unknown_queries"],
        unknown_gallery=found["unknown_gallery"],
    )
    return pairs.table(found["cameras"])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
