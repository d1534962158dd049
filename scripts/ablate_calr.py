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
from proving.paired import Arms

EXAMPLES = """\
examples:
  python scripts/ablate_calr.py --workdir runs/calr --json results/calr.json
  python scripts/ablate_calr.py --workdir runs/calr --seeds 100 101
"""

LOCAL, BASE, REFINED, ALIGNED, BOTH = "local", "baseline", "refinement", "alignment", "both"
AT_RANDOM = "as many dropped at random"
STUDY = Arms(
    names=(BASE, REFINED, ALIGNED, BOTH, AT_RANDOM),
    compared=(
        (REFINED, BASE),
        (ALIGNED, BASE),
        (BOTH, BASE),
        (AT_RANDOM, BASE),
        (REFINED, AT_RANDOM),
    ),
    figures={"mAP": "mAP", "rank1": "rank-1"},
    untrained=LOCAL,
    labels=(
        "precision_before",
        "precision",
        "recall_before",
        "recall",
        "removed_share",
        "removal_precision",
        "removal_recall",
        "removal_pivot_precision",
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
    found = {key: [line[key] for line in epochs if key in line] for key in STUDY.labels}
    return {key: sum(values) / len(values) for key, values in found.items() if values}


if __name__ == "__main__":
    main()
