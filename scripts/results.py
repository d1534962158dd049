"""Writes the tables of docs/results.md from results/*.json; no figure there is typed by hand."""

import importlib
import json
import pathlib
import re
import shlex
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ccafl_jax.command_line import Parser, one_line_errors

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
STUDIES = {
    "ablation": "ablate",
    "overlap": "overlap",
    "presets": "presets",
    "rehearsal": "rehearse",
    "growth": "growth",
    "calr": "ablate_calr",
    "tfclip": "ablate_tfclip",
    "cclnet": "ablate_cclnet",
}
"""The script of each study, whose `table` shows what it left in results/."""
EXAMPLES = """\
examples:
  python scripts/results.py            # rewrites the page
  python scripts/results.py --check    # exit status 1 if that would change it
"""


def main() -> int:
    """Rewrites the page, or compares it; returns the exit status."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--check", action="store_true", help="change nothing, compare")
    options = parser.parse_args()
    page = PAGE.read_text()
    made = with_results(page, ROOT / "results")
    if not options.check:
        PAGE.write_text(made)
    elif made != page:
        print("docs/results.md is not what results/*.json say: run python scripts/results.py")
        return 1
    return 0


def with_results(page: str, results: pathlib.Path) -> str:
    """The page with the tables of all studies that left a result.

    Args:
      page: Markdown with a marked table for each of them.
      results: folder of the JSON files.
    """
    from ccafl_jax.report.pages import with_table

    for study, script in STUDIES.items():
        file = results / f"{study}.json"
        if file.is_file():
            found = json.loads(file.read_text())
            table = importlib.import_module(script).table(found)
            page = with_table(page, study, f"{origin(found)}\n\n{table}")
    return page


def origin(found: dict[str, Any]) -> str:
    """A line on the command of a study, and on the seeds that went into it."""
    jobs = found.get("jobs", ())
    seeds = sorted({int(number) for job in jobs for number in re.findall(r"seed(\d+)", job)})
    shown = f", seeds {', '.join(map(str, seeds))}" if seeds else ""
    return f"`{shlex.join(found['command'])}`{shown}."


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
