"""Rehearses the whole schedule of Market-1501 at its true structure, on synthetic people.

The names of the training images say how many identities, cameras and images there are, and which
classes have a single image. The generator draws the image of every name, and a test split of
Market-1501's size; then all stages run with the published numbers of epochs and steps. What is
watched is not accuracy but whether labels, memories, time and space behave at that size. A run that
was killed goes on with the same command.
"""

import json
import lzma
import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from command import Parser, one_line_errors, read_config, start_logging, user_path

EXAMPLES = """\
examples:
  python scripts/rehearse.py --names market_train_names.txt.xz --workdir runs/rehearsal
  python scripts/rehearse.py --names N.txt --workdir W --json results/rehearsal.json
  python scripts/rehearse.py --names N.txt --workdir W --scale 0.02 \\
      --config.schedule.iterations=5        # a small test split, few steps
"""

CURVES = (
    "association_precision",
    "association_recall",
    "association_pure_share",
    "association_clusters",
    "gid_accuracy",
    "mAP",
    "rank1",
    "same_camera_share",
)


def main() -> None:
    """Draws the images, trains, and writes the figures."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--names", type=user_path, required=True, help="names of training images, or .xz of it")
    add("--workdir", type=user_path, required=True, help="folder of images and run")
    add("--config", default="configs/ccafl_rehearsal.py", help="the recipe")
    add("--seed", type=int, default=100, help="of people and cameras")
    add("--scale", type=float, default=1.0, help="of the test split")
    add("--json", type=user_path, help="where to write the figures")
    options, overrides = parser.parse_known_args()
    with one_line_errors():
        recipe = read_config(options.config, overrides)
        root = draw(options, recipe)
        run = train(options.workdir, recipe, root)
        figures = summarize(options.workdir, run)
        if options.json:
            from ccafl_jax.files import write_json

            words = ["--names", options.names.name, "--config", options.config]
            words += ["--seed", str(options.seed), "--scale", f"{options.scale:g}", *overrides]
            command = ["python", "scripts/rehearse.py", *words]
            write_json(options.json, {"command": command, **figures})
        print(table(figures))


def draw(options: Any, recipe: Any) -> str:
    """Draws all images unless they are there, and returns their folder."""
    from proving.market_names import market_like

    from data_prep.synthetic import SyntheticConfig, write_names

    opened = lzma.open if options.names.suffix == ".xz" else open
    with opened(options.names, "rt") as file:
        names = [line.strip().rpartition("/")[2] for line in file if line.strip()]
    settings = SyntheticConfig(
        seed=options.seed, height=recipe.data.height, width=recipe.data.width
    )
    root = options.workdir / "data"
    write_names(root, market_like(names, seed=options.seed, scale=options.scale), settings)
    return str(root)


def train(workdir: pathlib.Path, recipe: Any, root: str) -> Any:
    """Trains from where it stands to the end, and returns the run."""
    from proving.timed import TimedRun

    from ccafl_jax.methods.ccafl.config import CCAFLConfig
    from ccafl_jax.methods.ccafl.setup import prepare_run
    from ccafl_jax.options import from_mapping
    from ccafl_jax.training.compilation import keep_compiled

    start_logging()
    keep_compiled()
    config = from_mapping(CCAFLConfig, recipe.to_dict())
    run = prepare_run(config, workdir=workdir / "run", root=root, kind=TimedRun)
    run.train(resume=True)
    return run


def summarize(workdir: pathlib.Path, run: Any) -> dict[str, Any]:
    """Curves, seconds of the parts, and memory.

    Args:
      workdir: of the rehearsal.
      run: at its end.
    """
    import jax
    import numpy as np
    from proving import timed

    lines = [json.loads(line) for line in (workdir / "run" / "metrics.jsonl").open()]
    epochs = [line for line in lines if line["stage"] == "encoder"]
    times = [json.loads(line) for line in (workdir / "run" / timed.FILE).open()]
    latest = {(line["stage"], line["epoch"]): line["seconds"] for line in times}
    parts: dict[str, float] = {}
    for (stage, _), seconds in latest.items():
        for part, value in seconds.items():
            name = "prompts" if stage == "prompts" else part
            parts[name] = parts.get(name, 0.0) + value
    labels = run.labels
    sizes = np.bincount(labels.label)
    summary = json.loads((workdir / "run" / "summary.json").read_text())
    return {
        "set": {
            "images": len(labels.label),
            "classes": labels.num_classes,
            "classes_of_one_image": int(np.sum(sizes == 1)),
            "queries": len(run.dataset.query),
            "gallery": len(run.dataset.gallery),
        },
        "device": {"kind": jax.devices()[0].device_kind, "cores": os.cpu_count()},
        "epochs": {"prompts": len(lines) - len(epochs), "encoder": len(epochs)},
        "curves": {key: [[e["epoch"] + 1, e[key]] for e in epochs if key in e] for key in CURVES},
        "stages": summary["stages"],
        "zero_shot": summary.get("zero_shot"),
        "seconds": parts,
        "peak_bytes": max(line["peak_bytes"] for line in times),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures in Markdown: labels and accuracy by epoch, then where the time went."""
    curves = {key: dict(map(tuple, values)) for key, values in figures["curves"].items()}
    last = max(curves["association_clusters"], default=0)
    shown = sorted({1, *curves["mAP"], *range(10, last + 1, 10)} & {*range(1, last + 1)})
    lines = [
        "| epoch | precision | recall | pure clusters | clusters | mAP | rank-1 | same-camera |",
        "|" + "---|" * 8,
    ]
    for epoch in shown:
        cells = []
        for key in (*CURVES[:4], *CURVES[5:]):
            value = curves[key].get(epoch)
            whole = key == "association_clusters"
            cells.append("" if value is None else f"{value:.0f}" if whole else f"{100 * value:.1f}")
        lines.append(f"| {epoch} | {' | '.join(cells)} |")
    total = sum(figures["seconds"].values())
    lines += ["", "| part | minutes | share |", "|---|---|---|"]
    for part, seconds in figures["seconds"].items():
        lines.append(f"| {part} | {seconds / 60:.1f} | {seconds / max(total, 1e-9):.0%} |")
    lines.append(f"| all | {total / 60:.1f} | |")
    return "\n".join([*lines, "", f"Peak memory: {figures['peak_bytes'] / 1e9:.1f} GB."])


if __name__ == "__main__":
    main()
