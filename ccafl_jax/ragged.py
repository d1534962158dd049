"""Lists of different lengths, kept one after the other in flat arrays."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike


def ragged(
    name: str, rows: Sequence[np.ndarray], *, dtype: DTypeLike = np.int64
) -> dict[str, np.ndarray]:
    """Lists as two tables: list i is `values[offsets[i] : offsets[i + 1]]`.

    Args:
      name: of the tables, `name.values` and `name.offsets`.
      rows: the lists.
      dtype: of the values; offsets are int64.
    """
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    values = np.concatenate([np.zeros(0, dtype), *rows]).astype(dtype)
    return {f"{name}.values": values, f"{name}.offsets": np.append(0, np.cumsum(lengths))}


def ranges(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The numbers `start[i]` to `start[i] + count[i] - 1` of all i, one range after the other.

    Args:
      start: int[k].
      count: int[k].

    Returns:
      int64[sum of count].
    """
    ends = np.cumsum(count)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(start - (ends - count), count)
