"""What the benchmarks share: processes of their own, spreads, the machine."""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
from typing import Any


def in_own_process(script: str, name: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Figures of a work, which `script --alone NAME` prints as its last line.

    Args:
      script: path of the benchmark.
      name: of the work.
      flags: further options by name, without dashes.
    """
    command = [sys.executable, script, "--alone", name]
    command += [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def write(
    results: dict[str, Any],
    figures: pathlib.Path | None,
    page: pathlib.Path | None,
    table: str,
    markdown: str,
) -> None:
    """Writes the figures of a benchmark.

    Args:
      results: all figures.
      figures: JSON file; none when None.
      page: Markdown page with a marked table, which is rewritten; none when None.
      table: name of the table in the page.
      markdown: the table.
    """
    if figures:
        figures.parent.mkdir(parents=True, exist_ok=True)
        figures.write_text(json.dumps(results, indent=1) + "\n")
    if page:
        from ccafl_jax.report.pages import with_table

        page.write_text(with_table(page.read_text(), table, markdown))


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def peak_bytes() -> int:
    """Largest memory of this process so far, as the operating system counts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, Any]:
    """What JAX computes on."""
    import jax

    return {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "cores": os.cpu_count(),
    }
