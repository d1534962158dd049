"""What the parts of CCLNet do: stage 0 alone, with text, with swapped prototypes, and with both.

Every seed draws people and cameras anew, and all runs of a seed share them, the sampler and the
augmentation. All encoders are trained from CLIP for as many steps. Stage 0 without swap gives the
labels of the texts that are learned without swap, stage 0 with it those of the others. What is done
is not done again: a run that was killed goes on with the same command.
"""

import json
import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from proving.jobs import seed_study

EXAMPLES = """\
examples:
  python scripts/ablate_cclnet.py --workdir runs/cclnet --json results/cclnet.json
  python scripts/ablate_cclnet.py --workdir runs/cclnet --seeds 100 101
"""

BASE, TEXT, SWAP, ALL = "stage 0", "text", "swap", "all"
PROMPTS, SWAP_PROMPTS = "prompts", "prompts after swap"
ARMS = (BASE, TEXT, SWAP, ALL)
FIGURES = ("mAP", "rank1", "mINP")
LABELS = ("precision_visible", "recall_visible", "precision_infrared", "recall_infrared",
          "matching_precision")  # fmt: skip


def main() -> None:
    """Runs all seeds, several at a time, and writes the figures."""
    seed_study(
        __file__,
        __doc__,
        EXAMPLES,
        seeds=range(100, 106),
        config="configs/cclnet_synthetic.py:ablation",
        one_seed=one_seed,
        summarize=summarize,
        table=table,
    )


def one_seed(job: str, workdir: pathlib.Path, recipe: Any) -> None:
    """All runs of a seed, whose name is "seed" and its number."""
    from proving.tree import Node, run_job

    from data_prep.synthetic.layouts.sysumm01 import training_pairs

    def measure(run) -> dict[str, Any]:
        found = run.evaluate()
        return {key: found[key] for key in (*FIGURES, "same_modality_share")} | {
            "labels": labels_of(run.workdir),
            "zero_shot": run.progress.zero_shot,
        }

    def stages(*names: str) -> dict[str, Any]:
        return {"stages": names}

    straight = {"swap.start": -1}
    nodes = [
        Node(BASE, options=stages("prepare") | straight),
        Node(PROMPTS, BASE, stages("prompts") | straight),
        Node(TEXT, PROMPTS, stages("train") | straight),
        Node(SWAP, options=stages("prepare")),
        Node(SWAP_PROMPTS, SWAP, stages("prompts")),
        Node(ALL, SWAP_PROMPTS, stages("train")),
    ]
    recipe.seed = int(job.removeprefix("seed"))
    people = training_pairs(seed=recipe.seed, train_ids=recipe.data.synthetic_ids)
    run_job(nodes, workdir / job, recipe, people, measure)


def labels_of(workdir: pathlib.Path) -> dict[str, float]:
    """Figures of the labels of the last epoch of the encoder."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["stage"] == "encoder"][-1]
    return {key: last[key] for key in LABELS if key in last}


def summarize(results: dict[str, dict]) -> dict[str, Any]:
    """Means over seeds, and paired differences.

    Args:
      results: by job (a seed), node and figure.

    Returns:
      `runs` and `labels` by arm and figure, and `differences` by "ARM minus ARM" and figure, with
      intervals over seeds.
    """
    from proving.paired import mean_interval

    seeds = list(results.values())
    compared = [(TEXT, BASE), (SWAP, BASE), (ALL, BASE), (ALL, TEXT), (ALL, SWAP)]
    zero_shot = {
        key: mean_interval([seed[BASE]["zero_shot"][key] for seed in seeds]) for key in FIGURES
    }
    return {
        "runs": {"zero-shot": zero_shot}
        | {
            arm: {key: mean_interval([seed[arm][key] for seed in seeds]) for key in FIGURES}
            for arm in ARMS
        },
        "labels": {
            arm: {
                key: mean_interval([seed[arm]["labels"][key] for seed in seeds])
                for key in LABELS
                if key in seeds[0][arm]["labels"]
            }
            for arm in ARMS
        },
        "differences": {
            f"{a} minus {b}": {
                key: mean_interval([seed[a][key] - seed[b][key] for seed in seeds])
                for key in FIGURES
            }
            for a, b in compared
        },
    }


def table(summary: dict[str, Any]) -> str:
    """The figures in Markdown: runs, differences, then labels."""
    from proving.paired import shown

    lines = ["| run | mAP | rank-1 | mINP |", "|---|---|---|---|"]
    for name, figures in summary["runs"].items():
        lines.append(f"| {name} | {' | '.join(shown(figures[key]) for key in FIGURES)} |")
    for name, figures in summary["differences"].items():
        cells = [shown(figures[key], signed=True) for key in FIGURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    titles = [key.replace("_", " ") for key in LABELS]
    lines += ["", f"| labels of | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for name, figures in summary["labels"].items():
        cells = [shown(figures[key]) if key in figures else "" for key in LABELS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
