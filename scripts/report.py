"""Makes the report of a finished run again: one HTML file that needs no network."""

import functools

from command import Parser, check_writable, one_line_errors, start_logging, user_path

EXAMPLES = """\
examples:
  the page of a run, in its folder
    python scripts/report.py --workdir runs/demo
  elsewhere, of a run whose data set has moved, with more lists
    python scripts/report.py --workdir runs/market1501 --root DIR --lists 20 --out market.html
  without the model and the images: figures, curves and embeddings alone
    python scripts/report.py --workdir runs/market1501 --no-rankings
"""


def main() -> None:
    """Parses the arguments and writes the page."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--workdir", required=True, type=user_path, help="folder of the run")
    parser.add_argument(
        "--out", type=user_path, metavar="F.html", help="the page (default: WORKDIR/report.html)"
    )
    parser.add_argument(
        "--root", "--data", default="", help="folder of the data set, where it has moved"
    )
    parser.add_argument(
        "--lists", type=int, default=10, help="queries of each kind (default: %(default)s)"
    )
    parser.add_argument(
        "--perplexity", type=float, default=30.0, help="of the t-SNE (default: %(default)g)"
    )
    parser.add_argument(
        "--no-rankings", action="store_true", help="leave out what needs the model and the images"
    )
    arguments = parser.parse_args()
    start_logging()
    with one_line_errors():
        make(arguments)


def make(arguments) -> None:
    """Collects and writes."""
    from ccafl_jax.options import require
    from ccafl_jax.report import page
    from ccafl_jax.report.collect import collect_run, rank_test_set

    require(arguments.lists >= 1, f"--lists is {arguments.lists}; choose 1 or more")
    require(arguments.perplexity > 0, f"--perplexity is {arguments.perplexity}; choose above 0")
    workdir = arguments.workdir
    out = arguments.out or workdir / "report.html"
    check_writable(out, "--out")
    ranked = functools.partial(rank_test_set, workdir, root=arguments.root, lists=arguments.lists)
    report = collect_run(
        workdir,
        ranked=None if arguments.no_rankings else ranked,
        perplexity=arguments.perplexity,
    )
    size = page.write(out, report)
    for note in report.notes:
        print(f"note: {note}")
    print(f"report: {out} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
