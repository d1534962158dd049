"""Trains from a configuration file, by the method that it is a recipe of."""

import argparse
import faulthandler
import os
import pathlib
import shlex
import signal
import sys
from typing import TYPE_CHECKING, Any

from command import Parser, one_line_errors, read_config, start_logging, user_path

from ccafl_jax.training import processes
from ccafl_jax.training.agreement import from_first
from ccafl_jax.training.compilation import keep_compiled
from ccafl_jax.training.storage import is_local, open_path

if TYPE_CHECKING:
    from ccafl_jax.methods.options import DataConfig
    from ccafl_jax.methods.registry import Method

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
  options of the recipe, each as --config.GROUP.NAME=VALUE (--print_config lists them)
    python scripts/train.py --config configs/ccafl_demo.py --config.schedule.epochs=12 \\
        --config.seed=2 --workdir runs/short
  continue after an interruption, or run single stages
    python scripts/train.py --config ... --workdir runs/market1501 --resume
    python scripts/train.py --config ... --workdir runs/m --stages prompts
    python scripts/train.py --config ... --workdir runs/m --stages intra --resume
  all options of a recipe as they are resolved, without training; see scripts/config_diff.py
    python scripts/train.py --config configs/ccafl_market1501.py --print_config
  what every phase needs in memory and work, without training
    python scripts/train.py --config ... --workdir runs/m --dry_run
  two processes on one machine; other machines and clusters: docs/pods.md
    python scripts/train.py --config ... --workdir runs/m --coordinator localhost:1234 \\
        --processes 2 --process_id 0   # and the same with --process_id 1

exit status: 0 done, or asked to stop (SIGTERM, Ctrl-C) and saved; 1 a fault of the program; 2 an
error to mend; 75 another process of the run is gone: start all again with --resume; 130, 143 a
second signal, nothing saved
"""


def main() -> None:
    """Parses the arguments and runs."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "--config",
        required=True,
        help="recipe, a file under configs/; those of synthetic people "
        "have variants, such as configs/ccafl_demo.py:smoke for a few steps",
    )
    parser.add_argument(
        "--workdir",
        type=folder_or_store,
        help="folder of the run, on a disk or in an object store (gs://...)",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue after the last checkpoint")
    again.add_argument(
        "--overwrite", action="store_true", help="remove the run in --workdir and start anew"
    )
    again.add_argument(
        "--rerun",
        action="store_true",
        help="continue the run in --workdir if it is unfinished, else start anew",
    )
    parser.add_argument(
        "--allow_changes",
        action="store_true",
        help="resume with other options or other code than the run began with",
    )
    parser.add_argument(
        "--stages",
        help="some of the stages: prompts,intra,inter of CCAFL, local,global of CALR, clips of "
        "TF-CLIP, prepare,prompts,train of CCLNet",
    )
    parser.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu"),
        help="of CLIP weights whose configuration does not state it (model.activation)",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="compile every phase, print what it takes, and end"
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="print all options as they are resolved, one a line in Python, and end",
    )
    parser.add_argument(
        "--profile", metavar="START:STOP", help="write a profile of these steps to WORKDIR/profile"
    )
    parser.add_argument(
        "--compilation_cache",
        default="",
        metavar="DIR",
        help="folder of compiled programs (default: ~/.cache/ccafl_jax/compiled), or off",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="on GPUs: sums in one order, so that a resumed run is identical to the last bit",
    )
    parser.add_argument(
        "--no-report", action="store_true", help="leave out WORKDIR/report.html at the end"
    )
    processes.add_flags(parser)
    arguments, overrides = parser.parse_known_args()
    if not (arguments.workdir or arguments.print_config):
        parser.error("the following arguments are required: --workdir")
    start_logging()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # kill -USR1 shows where it is
    if arguments.deterministic:  # read when the devices start
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{given} --xla_gpu_deterministic_ops=true".strip()
    with one_line_errors():
        if arguments.print_config:
            print_config(resolved(arguments, overrides)[1])
            return
        processes.start(processes.options_from(arguments))
        keep_compiled(arguments.compilation_cache)
        run(arguments, overrides)


def run(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Builds the run and trains."""
    from ccafl_jax.report.make import after_training
    from ccafl_jax.training.loop import Loop, Profile
    from ccafl_jax.training.preemption import Preempted, Preemption

    method, config = resolved(arguments, overrides)
    profile = None
    if arguments.profile:
        profile = Profile.parse(arguments.profile, arguments.workdir / "profile")
    root = config.data.root
    if not root and config.data.name in SYNTHETIC:
        if not is_local(arguments.workdir):
            raise ValueError(
                "the synthetic people are drawn into the run folder, which has to be on a disk: "
                "choose another --workdir, or set data.root"
            )
        folder = arguments.workdir / "data"
        root = from_first(lambda: str(draw_synthetic(folder, config.data)))
    training = method.prepare_run(config, workdir=arguments.workdir, root=str(root))
    if arguments.dry_run:
        print_costs(method.dry_run(training))
        return
    finished = from_first((arguments.workdir / "summary.json").exists)
    if arguments.overwrite or (arguments.rerun and finished):
        # Only now that the new run can start, and before any process looks for checkpoints.
        training.take_over()
        from_first(lambda: remove_run(arguments.workdir))
    how = ("--resume", "--rerun", "--overwrite")
    kept = [word for word in sys.argv if word not in how]
    again = shlex.join(["python", *kept, "--resume"])
    with Preemption() as preemption:
        loop = Loop(stop=preemption.requested, profile=profile)
        with processes.watched(training.saves.words, resume=again):
            try:
                training.train(
                    resume=arguments.resume or (arguments.rerun and not finished),
                    allow_changes=arguments.allow_changes,
                    loop=loop,
                )
            except Preempted as stopped:
                print(f"stopped: {stopped}; continue with: {again}")
                return
            if not arguments.no_report:
                after_training(arguments.workdir, tested=training.tested)
    if processes.is_first():
        print(f"summary: {arguments.workdir / 'summary.json'}")


def resolved(arguments: argparse.Namespace, overrides: list[str]) -> tuple["Method", Any]:
    """The method and its options, those of the command included."""
    from ccafl_jax.methods.registry import method_of

    raw = read_config(arguments.config, overrides)
    if arguments.stages:
        raw.stages = tuple(arguments.stages.split(","))
    method = method_of(raw)
    if arguments.activation:
        if "activation" not in raw.model:
            raise ValueError(f"--activation is not for {method.name}: leave it out")
        if raw.model.activation not in ("", arguments.activation):
            raise ValueError(
                f"--activation {arguments.activation} contradicts model.activation="
                f"{raw.model.activation}; state one"
            )
        raw.model.activation = arguments.activation
    return method, method.config(raw.to_dict())


def print_config(config: Any) -> None:
    """All options, one a line, so that two recipes can be compared with `diff`."""
    from ccafl_jax.options import flatten

    for name, value in flatten(config).items():
        print(f"config.{name} = {value!r}")


def print_costs(found: dict[str, dict[str, float]]) -> None:
    """A line for each phase."""
    for name, costs in found.items():
        sizes = ", ".join(
            f"{part} {costs[part] / 2**20:.1f} MiB"
            for part in ("peak", "arguments", "temporary", "outputs")
        )
        print(f"{name}: {costs['flops'] / 1e9:.2f} GFLOP a step and device; {sizes}")


def folder_or_store(text: str) -> pathlib.Path:
    """A path as typed, or an address in an object store."""
    return user_path(text) if is_local(text) else open_path(text)


def remove_run(workdir: pathlib.Path) -> None:
    """Removes what a run writes; other files in the folder stay."""
    for name in ("checkpoints", "preempted", "features", "snapshots", "tensorboard"):
        if (workdir / name).exists():
            open_path(workdir / name).rmtree()
    for name in ("summary.json", "metrics.jsonl", "report.html"):
        (workdir / name).unlink(missing_ok=True)


def draw_synthetic(parent: pathlib.Path, data: "DataConfig") -> pathlib.Path:
    """Draws the embedded people into the run folder unless they are there."""
    folder = parent / f"seed{data.synthetic_seed}_ids{data.synthetic_ids}"
    count = SYNTHETIC[data.name](folder, data)
    print(f"synthetic people: {count} images in {folder}")
    return folder


def draw_images(folder: pathlib.Path, data: "DataConfig") -> int:
    """Single images in the layout of Market-1501; returns how many."""
    from data_prep.synthetic import SyntheticConfig, write_folder

    settings = SyntheticConfig(seed=data.synthetic_seed, train_ids=data.synthetic_ids)
    return sum(write_folder(folder, settings).values())


def draw_tracklets(folder: pathlib.Path, data: "DataConfig") -> int:
    """Walks in the layout of MARS; returns how many frames."""
    from data_prep.synthetic import write_layout
    from data_prep.synthetic.layouts.mars import training_walks

    settings = training_walks(seed=data.synthetic_seed, train_ids=data.synthetic_ids)
    counts = write_layout(folder, "mars", settings)
    return counts["bbox_train"] + counts["bbox_test"]


def draw_pairs(folder: pathlib.Path, data: "DataConfig") -> int:
    """Visible and infrared images in the layout that the name ends with; returns how many."""
    from data_prep.synthetic import write_layout
    from data_prep.synthetic.layouts import regdb, sysumm01

    name = data.name.removeprefix("synthetic_")
    layout = {"sysumm01": sysumm01, "regdb": regdb}[name]
    settings = layout.training_pairs(seed=data.synthetic_seed, train_ids=data.synthetic_ids)
    counts = write_layout(folder, name, settings)
    return sum(n for part, n in counts.items() if part.startswith(("cam", "Visible", "Thermal")))


SYNTHETIC = {
    "synthetic": draw_images,
    "synthetic_tracklets": draw_tracklets,
    "synthetic_sysumm01": draw_pairs,
    "synthetic_regdb": draw_pairs,
}
"""The data sets that are drawn where no folder is named."""


if __name__ == "__main__":
    main()
