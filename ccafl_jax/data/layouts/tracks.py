"""Tracklets of video sets as their readers know them, before frames are laid out."""

import numpy as np

from ccafl_jax.data.records import JUNK


def drop_junk(
    rows: np.ndarray, pid: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, dict[str, int]]:
    """Leaves out tracklets that show nobody.

    Args:
      rows: int[k], the tracklets of a part.
      pid: int[t], identities of all tracklets.
      count: int[t], numbers of their frames.

    Returns:
      The rows that are kept, and the counts of the part for the report.
    """
    kept = rows[pid[rows] != JUNK]
    frames = int(count[kept].sum())
    return kept, {
        "read": frames,
        "junk tracklets dropped": len(rows) - len(kept),
        "frames of junk tracklets dropped": int(count[rows].sum()) - frames,
    }
