"""The problems of a manifest's rows, collected column by column."""

from collections.abc import Callable

import numpy as np

from ccafl_jax.data.layouts.manifest.columns import Problem, Table


class Findings:
    """Problems, and the rows that have any in each column."""

    def __init__(self, table: Table):
        self.table = table
        self.problems = list(table.problems)
        self._bad: dict[str, np.ndarray] = {}

    def add(self, rows: np.ndarray, column: str, message: str | Callable[[int], str]) -> None:
        """Notes a problem at each of the rows (indices or a mask).

        Args:
          rows: concerned.
          column: name.
          message: a text in which {} stands for what the row holds, or a function of the row.
        """
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        for row in rows:
            text = message(row) if callable(message) else message.format(self.shown(column, row))
            line = int(self.table.line[row])
            self.problems.append(Problem(line, column, text, self.table.unit))
        self._bad.setdefault(column, np.zeros(len(self.table), bool))[rows] = True

    def good(self, *columns: str) -> np.ndarray:
        """bool[n], true where none of the columns has a problem."""
        good = np.ones(len(self.table), bool)
        for column in columns:
            if column in self._bad:
                good &= ~self._bad[column]
        return good

    def shown(self, column: str, row: int) -> str:
        """What stands in a row, for messages."""
        if column == "path":
            return repr(self.table.path[row])
        found = self.table.columns[column]
        return repr(found.values[found.code[row]])

    def where(self, row: int) -> str:
        """The line of a row, for messages."""
        return f"{self.table.unit} {self.table.line[row]}"


def first_with_key(key: np.ndarray) -> np.ndarray:
    """int64[k], for each entry the place of the first entry that is equal."""
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]
