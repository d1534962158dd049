"""What refinement and camera alignment bring to CALR, and what refinement drops.

From one and the same stage 1, every arm trains stage 2 for as many steps: without both, with each
of them, with both, and with as many images dropped as refinement would drop, but at random among
the images of the same clusters and cameras. Seeds draw people and cameras anew. What is done is not
done again: a run that was killed goes on with the same command.
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
  python scripts/ablate_calr.py --workdir runs/calr --json results/calr.json
  python scripts/ablate_calr.py --workdir runs/calr --seeds 100 101
"""

LOCAL, BASE, REFINED, ALIGNED, BOTH = "local", "baseline", "refinement", "alignment", "both"
AT_RANDOM = "as many dropped at random"
FIGURES = ("mAP", "rank1")
LABELS = (
    "precision_before",
    "precision",
    "recall_before",
    "recall",
    "removed_share",
    "removal_precision",
    "removal_recall",
    "removal_pivot_precision",
)


def main() -> None:
    """Runs all seeds, several at a time, and writes the figures."""
    seed_study(
        __file__,
        __doc__,
        EXAMPLES,
        seeds=range(100, 106),
        config="configs/calr_synthetic.py:ablation",
        one_seed=one_seed,
        summarize=summarize,
        table=table,
    )


def one_seed(job: str, workdir: pathlib.Path, recipe: Any) -> None:
    """All runs of a seed, whose name is "seed" and its number."""
    from proving.controls import DropsAtRandom
    from proving.tree import Node, measure_test, run_seed

    def measure(run) -> dict[str, Any]:
        return measure_test(run) | {
            "labels": labels_of(run.workdir),
            "zero_shot": run.progress.zero_shot,
        }

    plain, straight = {"refinement.enabled": False}, {"alignment.epochs": 0}
    nodes = [
        Node(LOCAL, until=0),
        Node(BASE, LOCAL, plain | straight),
        Node(REFINED, LOCAL, straight),
        Node(ALIGNED, LOCAL, plain),
        Node(BOTH, LOCAL),
        Node(AT_RANDOM, LOCAL, straight, kind=DropsAtRandom),
    ]
    run_seed(job, workdir, recipe, nodes, measure=measure)


def labels_of(workdir: pathlib.Path) -> dict[str, float]:
    """Figures of the labels, means over the epochs of stage 2 that have them."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["stage"] == "encoder"]
    found = {key: [line[key] for line in epochs if key in line] for key in LABELS}
    return {key: sum(values) / len(values) for key, values in found.items() if values}


def summarize(results: dict[str, dict]) -> dict[str, Any]:
    """Means over seeds, and paired differences.

    Args:
      results: by job (a seed), node and figure.

    Returns:
      `runs` by arm and figure, `labels` by arm and figure, and `differences` by "ARM minus ARM" and
      figure, with intervals over seeds.
    """
    from proving.paired import mean_interval

    seeds = list(results.values())
    arms = [name for name in seeds[0] if name != LOCAL]
    compared = [(REFINED, BASE), (ALIGNED, BASE), (BOTH, BASE), (AT_RANDOM, BASE)]
    compared += [(REFINED, AT_RANDOM)]
    return {
        "runs": {
            "zero-shot": {
                key: mean_interval([seed[LOCAL]["zero_shot"][key] for seed in seeds])
                for key in FIGURES
            },
            **{
                arm: {key: mean_interval([seed[arm][key] for seed in seeds]) for key in FIGURES}
                for arm in arms
            },
        },
        "labels": {
            arm: {
                key: mean_interval([seed[arm]["labels"][key] for seed in seeds])
                for key in LABELS
                if key in seeds[0][arm]["labels"]
            }
            for arm in arms
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

    lines = ["| run | mAP | rank-1 |", "|---|---|---|"]
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
