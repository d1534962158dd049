"""Puts finished runs beside each other: figures by stage, means over seeds, curves, intervals.

Runs that differ by their seed only are one recipe, whose mean and standard deviation are shown.
Differences are those of each further run from the first one.
"""

import argparse

from command import Parser, check_writable, one_line_errors, start_logging, user_path

EXAMPLES = """\
examples:
  two runs
    python scripts/compare.py runs/a runs/b
  three seeds of a recipe, with curves of the loss and of mAP
    python scripts/compare.py runs/seed1 runs/seed2 runs/seed3 --plot seeds.svg
  is the second one better? both ranked the same test set (scripts/evaluate.py keeps the features)
    python scripts/evaluate.py --workdir runs/a
    python scripts/evaluate.py --workdir runs/b
    python scripts/compare.py runs/a runs/b --bootstrap --json a_b.json
"""
SAMPLES = 1000


def main() -> None:
    """Parses the arguments and compares."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--plot", type=user_path, metavar="F.png|.svg", help="draw the curves to this file"
    )
    parser.add_argument(
        "--bootstrap",
        nargs="?",
        type=int,
        const=SAMPLES,
        metavar="N",
        help="95 %% intervals of the differences from the first run, paired over the identities "
        f"of the queries, from N samples (default: {SAMPLES}); put it after the runs",
    )
    parser.add_argument("--json", type=user_path, help="write all figures to this file")
    arguments = parser.parse_args()
    start_logging()
    with one_line_errors():
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Reads, prints, draws and writes.

    Raises:
      FileNotFoundError: a run that is not there, is not finished, or keeps no features.
      ValueError: a run that is named twice, or runs that cannot be paired.
    """
    from ccafl_jax.files import write_json
    from ccafl_jax.methods.metadata import FREE_OPTIONS
    from ccafl_jax.report import comparison
    from ccafl_jax.report.runs import read_finished_run

    names = [str(user_path(name)) for name in arguments.runs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is named twice; name each run once")
    if arguments.bootstrap is not None and len(names) < 2:
        raise ValueError("--bootstrap is about the difference of two runs; name another one")
    for name in ("plot", "json"):
        if getattr(arguments, name):
            check_writable(getattr(arguments, name), f"--{name}")
    runs = [read_finished_run(name) for name in names]
    groups = comparison.groups_of(runs, free=[*FREE_OPTIONS])
    print(comparison.table(runs))
    for group in groups:
        print("\n" + comparison.group_table(group))
    if arguments.plot:
        comparison.draw(runs, arguments.plot)
        print(f"\ncurves: {arguments.plot}")
    found = {}
    if arguments.bootstrap is not None:
        found = comparison.differences(runs, samples=arguments.bootstrap)
        print("\n" + comparison.differences_table(found, names[0]))
    if arguments.json:
        write_json(arguments.json, comparison.as_dict(runs, groups, found))


if __name__ == "__main__":
    main()
