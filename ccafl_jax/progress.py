"""Bars for long work."""

from typing import Any


def progress_bar(total: int, description: str, progress: bool) -> Any:
    """A bar of tqdm, which is imported here and shows only if asked to.

    Args:
      total: steps.
      description: in front of the bar.
      progress: whether it shows.
    """
    from tqdm import tqdm

    return tqdm(total=total, desc=description, leave=False, disable=not progress)
