"""Named streams of random numbers: any draw can be had without the ones before it.

A number depends on the name of its stream, a row and a column only. Hence people, cameras and
images do not disturb each other: one more identity leaves every camera as it was, and the image of
a given name always looks the same. The numbers come from integer mixing alone and do not depend on
the release of a random library.
"""

import hashlib

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def stream_key(*parts: str | int) -> int:
    """The 64-bit key of the stream named by `parts`, for example ("people", "data", 7)."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def rows_of(key: int, *columns: np.ndarray) -> np.ndarray:
    """Mixes a key and integer columns into one 64-bit row number each.

    Args:
      key: key of the stream.
      *columns: int[n] each; negative values are allowed.

    Returns:
      uint64[n].
    """
    length = len(columns[0])
    state = np.full(length, key, np.uint64)
    for column in columns:
        state = _mix(state + _STEP) ^ np.asarray(column).astype(np.uint64)
    return _mix(state)


def uniform(key: int, rows: np.ndarray, columns: int) -> np.ndarray:
    """Uniform draws in [0, 1).

    Args:
      key: key of the stream.
      rows: integer[n], the rows asked for.
      columns: how many draws a row has.

    Returns:
      float64[n, columns]; more columns append to the draws of a row, they do not change them.
    """
    state = rows_of(key, np.atleast_1d(rows))
    counter = np.arange(1, columns + 1, dtype=np.uint64) * _STEP
    return (_mix(state[:, None] + counter) >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))
