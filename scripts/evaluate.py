"""Evaluates a trained run on its test set, or on another data set."""

import argparse
import json
import pathlib

from command import one_line_errors, start_logging

EXAMPLES = """\
examples:
  the last checkpoint of a run, on the data it was trained on
    python scripts/evaluate.py --workdir runs/demo
  the same model on another Market-1501 folder, figures to a file
    python scripts/evaluate.py --workdir runs/market1501 --root OTHER_DIR --json result.json
"""


def main() -> None:
    """Parses the arguments and evaluates."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--root", default="", help="another data set in Market-1501 layout")
    parser.add_argument("--epoch", type=int, help="number of the checkpoint (default: the last)")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file")
    arguments = parser.parse_args()
    start_logging()
    with one_line_errors():
        evaluate(arguments)


def evaluate(arguments: argparse.Namespace) -> None:
    """Loads the checkpoint, extracts, ranks and prints."""
    from ccafl_jax.methods.ccafl.inference import evaluate_model, load_trained
    from ccafl_jax.report.summary import result_table, write_json

    model = load_trained(arguments.workdir, number=arguments.epoch)
    metrics = evaluate_model(model, root=arguments.root)
    print(result_table([(f"checkpoint {model.number}", metrics)]))
    print(json.dumps(metrics))
    if arguments.json:
        write_json(arguments.json, metrics)


if __name__ == "__main__":
    main()
