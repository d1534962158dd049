"""Results of models on several data sets as one matrix: trained here, tested there."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ccafl_jax.options import require

_Result = Mapping[str, Any] | str | os.PathLike


@dataclasses.dataclass(frozen=True)
class CrossDomain:
    """Figures by training set (row) and test set (column).

    Attributes:
      trained_on: names of the rows.
      tested_on: names of the columns.
      figures: by name, rows of values in 0..1; None where there is no result.
    """

    trained_on: tuple[str, ...]
    tested_on: tuple[str, ...]
    figures: dict[str, list[list[float | None]]]

    def as_dict(self) -> dict[str, Any]:
        """The matrix as JSON-able values."""
        return {
            "trained_on": list(self.trained_on),
            "tested_on": list(self.tested_on),
            **self.figures,
        }

    def table(self) -> str:
        """A text table in per cent, the figures of a cell one behind the other."""
        corner = "train \\ test"
        cells = [
            [
                " / ".join(_percent(rows[r][c]) for rows in self.figures.values())
                for c in range(len(self.tested_on))
            ]
            for r in range(len(self.trained_on))
        ]
        first = max(len(name) for name in (corner, *self.trained_on))
        widths = [
            2 + max(len(name), *(len(row[c]) for row in cells))
            for c, name in enumerate(self.tested_on)
        ]
        lines = [" / ".join(self.figures) + ", per cent"]
        for name, row in [
            (corner, list(self.tested_on)),
            *zip(self.trained_on, cells, strict=True),
        ]:
            line = f"{name:<{first}}"
            lines.append(
                line + "".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True))
            )
        return "\n".join(lines)


def cross_domain(
    results: Sequence[_Result], *, figures: Sequence[str] = ("mAP", "rank1")
) -> CrossDomain:
    """Puts results side by side.

    Args:
      results: figures of `evaluate` (with `trained_on` and `dataset`), or JSON files of such.
      figures: that are shown.

    Raises:
      ValueError: no result, one that does not say what it was trained or tested on or lacks all
        the figures, or two of one pair.
    """
    require(len(results) > 0, "there is no result to compare")
    require(len(figures) > 0, "name one or more figures, such as mAP")
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for number, result in enumerate(results, start=1):
        where = f"result {number}" if isinstance(result, Mapping) else str(result)
        values = result if isinstance(result, Mapping) else _read(pathlib.Path(result))
        for key, what in (("trained_on", "was trained on"), ("dataset", "was tested on")):
            if not values.get(key):
                raise ValueError(f"{where} does not say what it {what}: it lacks {key!r}")
        if not any(figure in values for figure in figures):
            raise ValueError(f"{where} holds none of {', '.join(figures)}")
        pair = _trained_on(values["trained_on"]), str(values["dataset"])
        if pair in found:
            raise ValueError(f"{where} is the second one trained on {pair[0]}, tested on {pair[1]}")
        found[pair] = values
    rows, columns = (tuple(dict.fromkeys(pair[side] for pair in found)) for side in (0, 1))
    return CrossDomain(
        trained_on=rows,
        tested_on=columns,
        figures={
            figure: [[found.get((r, c), {}).get(figure) for c in columns] for r in rows]
            for figure in figures
        },
    )


def _trained_on(value: Any) -> str:
    """A name; of a mean over models of several training sets, all of theirs."""
    return " + ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _read(path: pathlib.Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} with results")
    try:
        values = json.loads(path.read_text())
    except ValueError:
        values = None
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} is no JSON file of figures; expected one that evaluation wrote")
    return values


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
