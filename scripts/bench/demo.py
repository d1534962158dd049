"""The demonstration on several data seeds, beside what needs no training on the same folders."""

import json
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from ccafl_jax.command_line import Parser, one_line_errors

os.environ.setdefault("JAX_PLATFORMS", "cpu")

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = """\
examples:
  python scripts/bench/demo.py --seeds 100 101 102 --json results/demo.json --docs docs/demo.md
  python scripts/bench/demo.py --seeds 100 --variant bench --json results/demo_bench.json
"""


def main() -> None:
    """Trains one run per data seed and records the figures."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102], help="data seeds")
    parser.add_argument("--variant", default="", choices=["", "smoke", "bench"])
    parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs" / "demo_seeds")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    parser.add_argument("--docs", type=pathlib.Path, help="page whose table is rewritten")
    options = parser.parse_args()
    results = []
    for seed in options.seeds:
        results.append(one_seed(seed, options.variant, options.workdir))
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    if options.docs:
        from ccafl_jax.report.pages import with_table

        page = with_table(options.docs.read_text(), "demo", table(results))
        options.docs.write_text(page)


def one_seed(seed: int, variant: str, workdir: pathlib.Path) -> dict:
    """Draws, trains and evaluates one data seed."""
    folder = workdir / f"seed{seed}{variant and '_' + variant}"
    config = "configs/ccafl_demo.py" + (variant and f":{variant}")
    command = [sys.executable, "scripts/train.py", "--config", config, "--workdir", str(folder)]
    command += ["--overwrite", f"--config.data.synthetic_seed={seed}", f"--config.seed={seed}"]
    subprocess.run(command, check=True, cwd=ROOT)
    summary = json.loads((folder / "summary.json").read_text())
    name, score = max(
        training_free(next((folder / "data").glob(f"seed{seed}_*"))).items(), key=lambda x: x[1]
    )
    return {
        "seed": seed,
        "training_free": {"name": name, "mAP": score},
        "association": last_association(folder / "metrics.jsonl"),
        "summary": summary,
    }


def training_free(root: pathlib.Path) -> dict[str, float]:
    """The mAP of everything that needs no training, at 64 x 32, on a Market-1501 folder."""
    from ccafl_jax.data.decoded import load_images
    from ccafl_jax.data.opening import open_dataset
    from ccafl_jax.data.sources import PixelFormat
    from ccafl_jax.methods.files import TINY_CLIP, weights_directory
    from data_prep import audit
    from data_prep.tiny_clip import zero_shot_features

    dataset = open_dataset("synthetic", root)
    splits = {}
    for name in ("train", "query", "gallery"):
        records = getattr(dataset, name)
        records = records.take(records.pid >= 0)
        pixels = load_images(records, PixelFormat(64, 32))
        splits[name] = audit.Split(pixels, records.pid, records.camid)
    directory = weights_directory(TINY_CLIP, "a CLIP checkpoint")

    def features(images):
        calibrate_on = splits["train"].images
        return zero_shot_features(images, directory=directory, calibrate_on=calibrate_on)

    return audit.baselines(splits) | audit.zero_shot(splits, features)


def last_association(path: pathlib.Path) -> dict[str, float]:
    """Association quality before the first and the last epoch."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    epochs = [line for line in lines if line["stage"] == "encoder"]
    return {
        f"{when}_{key}": line[f"association_{key}"]
        for when, line in (("first", epochs[0]), ("last", epochs[-1]))
        for key in ("precision", "recall")
    }


def table(results: list[dict]) -> str:
    """A Markdown table, one row a data seed; figures in percent."""
    lines = [
        "| data seed | best without training | zero-shot f | zero-shot g | after stage 2 "
        "| after stage 3 | rank-1: f, stage 2, stage 3 | same-camera share: f, stage 2, stage 3 "
        "| minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        summary = result["summary"]
        zero = summary["zero_shot"]
        intra, inter = (s for s in summary["stages"] if s["name"] in ("intra", "inter"))
        steps = (zero, intra, inter)
        free = result["training_free"]
        cells = [
            f"{result['seed']}",
            f"{100 * free['mAP']:.1f} ({free['name']})",
            *(f"{100 * mAP:.1f}" for mAP in (zero["mAP"], zero["g"]["mAP"], intra["mAP"])),
            f"**{100 * inter['mAP']:.1f}**",
            *(
                ", ".join(f"{100 * step[key]:.{digits}f}" for step in steps)
                for key, digits in (("rank1", 1), ("same_camera_share", 0))
            ),
            f"{summary['seconds'] / 60:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    with one_line_errors():
        main()
