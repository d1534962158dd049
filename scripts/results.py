"""Writes the tables of docs/results.md from results/*.json; no figure there is typed by hand."""

import argparse
import importlib
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

PAGE = ROOT / "docs" / "results.md"
STUDIES = {
    "ablation": "ablate",
    "overlap": "overlap",
    "presets": "presets",
    "rehearsal": "rehearse",
    "growth": "growth",
}
"""The script of each study, whose `table` shows what it left in results/."""
EXAMPLES = """\
examples:
  python scripts/results.py            # rewrites the page
  python scripts/results.py --check    # exit status 1 if that would change it
"""


def main() -> int:
    """Rewrites the page, or compares it; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
            table = importlib.import_module(script).table(json.loads(file.read_text()))
            page = with_table(page, study, table)
    return page


if __name__ == "__main__":
    sys.exit(main())
