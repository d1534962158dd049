"""Evaluates a trained run on its test set, or on another data set."""

import argparse
import json

from command import one_line_errors, start_logging, user_path

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
    parser.add_argument(
        "--workdir",
        required=True,
        type=user_path,
        help="folder of the run, or of an orbax or safetensors export",
    )
    parser.add_argument("--root", default="", help="folder of another data set, raw or prepared")
    parser.add_argument(
        "--dataset", default="", help="name of the data set in --root (default: as trained)"
    )
    parser.add_argument(
        "--with-distractors",
        action="store_true",
        help="join the distractors that were prepared with a data set to its gallery",
    )
    parser.add_argument("--epoch", type=int, help="number of the checkpoint (default: the last)")
    parser.add_argument("--batch", type=int, default=128, help="images a call of the encoder")
    parser.add_argument(
        "--no-match",
        choices=("skip", "zero"),
        help="queries without a match are skipped, or count as 0 as in the released code "
        "(default: as trained)",
    )
    parser.add_argument("--json", type=user_path, help="write the figures to this file")
    arguments = parser.parse_args()
    start_logging()
    with one_line_errors():
        evaluate(arguments)


def evaluate(arguments: argparse.Namespace) -> None:
    """Loads the checkpoint, extracts, ranks and prints."""
    from ccafl_jax.deploy.evaluate import evaluate_bundle
    from ccafl_jax.deploy.loading import load_bundle
    from ccafl_jax.report.summary import result_table, write_json

    if arguments.json and arguments.json.is_dir():
        raise ValueError(f"--json {arguments.json} is a folder; name a file")
    bundle = load_bundle(arguments.workdir, number=arguments.epoch)
    trained = bundle.recipe.get("config", {})
    metrics = evaluate_bundle(
        bundle,
        name=arguments.dataset,
        root=arguments.root,
        distractors=arguments.with_distractors,
        batch=arguments.batch,
        compute_dtype=trained.get("model", {}).get("compute_dtype", "float32"),
        no_match=arguments.no_match or trained.get("evaluation", {}).get("no_match", "skip"),
    )
    print(result_table([(bundle.source, metrics)]))
    print(json.dumps(metrics))
    if arguments.json:
        write_json(arguments.json, metrics)


if __name__ == "__main__":
    main()
