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
from proving.paired import Arms

EXAMPLES = """\
examples:
  python scripts/ablate_cclnet.py --workdir runs/cclnet --json results/cclnet.json
  python scripts/ablate_cclnet.py --workdir runs/cclnet --seeds 100 101
"""

BASE, TEXT, SWAP, ALL = "stage 0", "text", "swap", "all"
PROMPTS, SWAP_PROMPTS = "prompts", "prompts after swap"
STUDY = Arms(
    names=(BASE, TEXT, SWAP, ALL),
    compared=((TEXT, BASE), (SWAP, BASE), (ALL, BASE), (ALL, TEXT), (ALL, SWAP)),
    figures={"mAP": "mAP", "rank1": "rank-1", "mINP": "mINP"},
    untrained=BASE,
    labels=(
        "precision_visible",
        "recall_visible",
        "precision_infrared",
        "recall_infrared",
        "matching_precision",
    ),
)
summarize, table = STUDY.summarize, STUDY.table


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
        return {key: found[key] for key in (*STUDY.figures, "same_modality_share")} | {
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
    return {key: last[key] for key in STUDY.labels if key in last}


if __name__ == "__main__":
    main()
