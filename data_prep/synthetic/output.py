"""Drawn folders on disk: complete or not there, and never over something else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_once(out: Path, record: dict[str, Any], draw: Callable[[Path], None]) -> None:
    """Draws into a neighbouring folder and moves it into place when it is complete.

    Args:
      out: folder to write. If it already holds the same record it is left as it is.
      record: what generator.json is to say; everything that the content depends on.
      draw: fills the empty folder it is given.

    Raises:
      FileExistsError: `out` holds something else.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if _read_record(out) == record:
            return
        raise FileExistsError(
            f"{out} exists and was not drawn with these settings; remove it or choose another"
        )
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    draw(partial)
    (partial / "generator.json").write_text(json.dumps(record, indent=1) + "\n")
    if out.exists():
        out.rmdir()
    partial.rename(out)


def _read_record(out: Path) -> dict[str, Any] | None:
    try:
        return json.loads((out / "generator.json").read_text())
    except (OSError, ValueError):
        return None
