"""Trains CCAFL from a configuration file."""

import argparse
import pathlib
import shutil
from typing import TYPE_CHECKING

from command import Parser, one_line_errors, read_config, start_logging, user_path

if TYPE_CHECKING:
    from ccafl_jax.methods.ccafl.config import DataConfig

EXAMPLES = """\
examples:
  the embedded demonstration (synthetic people, tiny CLIP, minutes on a CPU)
    python scripts/train.py --config configs/ccafl_demo.py --workdir runs/demo
  Market-1501 with a CLIP RN50 checkpoint in a local folder
    python scripts/train.py --config configs/ccafl_market1501.py --config.data.root=DIR \\
        --config.model.weights=CLIP_DIR --workdir runs/market1501
  the same with a ViT-B/16 (a folder, or a Hub id to fetch), patches overlapping
    python scripts/train.py --config configs/ccafl_market1501_vitb16.py --config.data.root=DIR \\
        --config.model.weights=CLIP_DIR --config.model.patch_stride=12 \\
        --workdir runs/market1501_vitb16
  continue after an interruption, or run single stages
    python scripts/train.py --config ... --workdir runs/market1501 --resume
    python scripts/train.py --config ... --workdir runs/m --stages prompts
    python scripts/train.py --config ... --workdir runs/m --stages intra --resume
"""


def main() -> None:
    """Parses the arguments and runs."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--config", required=True, help="recipe, a file under configs/")
    parser.add_argument("--workdir", required=True, type=user_path, help="folder of the run")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue after the last checkpoint")
    again.add_argument(
        "--overwrite", action="store_true", help="remove the run in --workdir and start anew"
    )
    parser.add_argument("--stages", help="comma-separated subset of prompts,intra,inter")
    parser.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu"),
        help="of CLIP weights whose configuration does not state it (model.activation)",
    )
    arguments, overrides = parser.parse_known_args()
    start_logging()
    with one_line_errors():
        run(arguments, overrides)


def run(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Builds the run and trains."""
    from ccafl_jax.methods.ccafl.config import CCAFLConfig
    from ccafl_jax.methods.ccafl.setup import prepare_run
    from ccafl_jax.options import from_mapping

    raw = read_config(arguments.config, overrides)
    if arguments.stages:
        raw.stages = tuple(arguments.stages.split(","))
    if arguments.activation:
        if raw.model.activation not in ("", arguments.activation):
            raise ValueError(
                f"--activation {arguments.activation} contradicts model.activation="
                f"{raw.model.activation}; state one"
            )
        raw.model.activation = arguments.activation
    config = from_mapping(CCAFLConfig, raw.to_dict())
    root = config.data.root
    if not root and config.data.name == "synthetic":
        root = draw_synthetic(arguments.workdir / "data", config.data)
    training = prepare_run(config, workdir=arguments.workdir, root=str(root))
    if arguments.overwrite:  # only now that the new run can start
        remove_run(arguments.workdir)
    training.train(resume=arguments.resume)
    print(f"summary: {arguments.workdir / 'summary.json'}")


def remove_run(workdir: pathlib.Path) -> None:
    """Removes what a run writes; other files in the folder stay."""
    for name in ("checkpoints", "features", "tensorboard"):
        shutil.rmtree(workdir / name, ignore_errors=True)
    for name in ("summary.json", "metrics.jsonl"):
        (workdir / name).unlink(missing_ok=True)


def draw_synthetic(parent: pathlib.Path, data: "DataConfig") -> pathlib.Path:
    """Draws the embedded people into the run folder unless they are there."""
    from data_prep.synthetic import SyntheticConfig, write_folder

    settings = SyntheticConfig(seed=data.synthetic_seed, train_ids=data.synthetic_ids)
    folder = parent / f"seed{settings.seed}_ids{settings.train_ids}"
    counts = write_folder(folder, settings)
    print(f"synthetic people: {sum(counts.values())} images in {folder}")
    return folder


if __name__ == "__main__":
    main()
