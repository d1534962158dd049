"""Shows in which options two runs, two recipes, or a run and a recipe differ.

The options of a run are those that its newest checkpoint holds.
"""

import sys
from typing import Any

from command import Parser, one_line_errors, read_config, user_path

EXAMPLES = """\
examples:
  what the preset of the release does otherwise
    python scripts/config_diff.py configs/ccafl_market1501.py configs/ccafl_market1501_release.py
  two runs; a run and the recipe that it came from
    python scripts/config_diff.py runs/a runs/b
    python scripts/config_diff.py runs/demo configs/ccafl_demo.py
  exit status 1 if a difference may change a result
    python scripts/config_diff.py runs/a runs/b --check
"""
ABSENT = "(absent)"


def main() -> int:
    """Prints the differences; returns the exit status."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    for name in ("first", "second"):
        parser.add_argument(
            name, metavar="RUN_OR_CONFIG", help="folder of a run, or a recipe (file.py[:variant])"
        )
    parser.add_argument(
        "--check",
        action="store_true",
        help="end with status 1 if they differ in more than options that change no result",
    )
    parser.add_argument("--json", type=user_path, help="write the differences to this file")
    arguments = parser.parse_args()
    with one_line_errors():
        found = differences(options_of(arguments.first), options_of(arguments.second))
        if arguments.json:
            from ccafl_jax.files import write_json

            write_json(arguments.json, found)
        print(text(found, arguments.first, arguments.second))
        return int(arguments.check and any(not row["free"] for row in found))


def options_of(name: str) -> dict[str, Any]:
    """All options of a run or a recipe, by dotted name.

    Raises:
      FileNotFoundError: a folder without a checkpoint.
      ValueError: neither a recipe nor a run, or a recipe that is wrong.
    """
    from ccafl_jax.methods.registry import method_of
    from ccafl_jax.options import flatten
    from ccafl_jax.report.runs import stored_options

    if name.partition(":")[0].endswith(".py"):
        raw = read_config(name, [])
        return flatten(method_of(raw).config(raw.to_dict()))
    return stored_options(user_path(name))


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each option that differs: its name, both values, and whether no result depends.

    Args:
      first: options by dotted name.
      second: those of the other.
    """
    from ccafl_jax.methods.metadata import FREE_OPTIONS

    free = tuple(FREE_OPTIONS)
    rows = []
    for name in [*first, *(name for name in second if name not in first)]:
        values = [options.get(name, ABSENT) for options in (first, second)]
        if values[0] != values[1]:
            alone = any(name == group or name.startswith(f"{group}.") for group in free)
            rows.append({"option": name, "first": values[0], "second": values[1], "free": alone})
    return rows


def text(rows: list[dict[str, Any]], first: str, second: str) -> str:
    """A table; options that change no result come last."""
    if not rows:
        return "no difference"
    cells = [("option", first, second)]
    for row in sorted(rows, key=lambda row: row["free"]):
        mark = " *" if row["free"] else ""
        cells.append((row["option"] + mark, shown(row["first"]), shown(row["second"])))
    widths = [max(len(line[column]) for line in cells) for column in (0, 1)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in cells]
    if any(row["free"] for row in rows):
        lines.append("* changes no result")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A value as it is written in Python; what is not there has no quotes."""
    return ABSENT if value == ABSENT else repr(value)


if __name__ == "__main__":
    sys.exit(main())
