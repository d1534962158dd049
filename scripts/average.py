"""Averages finished runs of one recipe, one for each split of a data set.

Prints mean and standard deviation over the runs, of the last epoch of every stage. Runs may differ
in their split and seed, and in what changes no result; any other difference is an error.
"""

import os
import pathlib
from collections.abc import Sequence

from command import Parser, check_writable, one_line_errors, start_logging, user_path

from ccafl_jax.training.storage import is_local

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed that needs another device

EXAMPLES = """\
examples:
  CCLNet on the ten splits of RegDB
    for split in 1 2 3 4 5 6 7 8 9 10; do
      python scripts/train.py --config configs/cclnet_regdb.py --config.data.split=$split \\
          --config.data.root=DIR --config.model.weights=CLIP_DIR --workdir runs/cclnet_regdb_$split
    done
    python scripts/average.py runs/cclnet_regdb_* --json cclnet_regdb.json
  TF-CLIP on those of iLIDS-VID
    python scripts/average.py runs/tfclip_ilidsvid_*
"""


def main() -> None:
    """Parses the arguments and averages."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    start_logging()
    with one_line_errors():
        run(arguments.runs, arguments.json)


def run(workdirs: Sequence[str], json: pathlib.Path | None) -> None:
    """Reads the runs, prints their average and writes it."""
    from ccafl_jax.files import write_json
    from ccafl_jax.report.averages import average, average_table
    from ccafl_jax.report.runs import read_finished_run

    if json:
        check_writable(json, "--json")
    folders = [str(user_path(path)) if is_local(path) else path for path in workdirs]
    found = average([read_finished_run(folder) for folder in folders])
    if not found["same_code"]:
        print("warning: the runs were not all trained by the same code")
    splits = ", ".join(map(str, found["splits"]))
    print(f"{found['method']}, {len(found['runs'])} runs, of the splits {splits}:")
    print("mean (standard deviation), %")
    print(average_table(found))
    if json:
        write_json(json, found)
        print(f"figures: {json}")


if __name__ == "__main__":
    main()
