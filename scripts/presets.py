"""What each deviation of the published code does: recipes that differ from `clean` in one option.

Every seed draws people and cameras anew, and all runs of a seed share them, the sampler and the
augmentation; a run goes on from the end of the last stage in which its option has no effect. What
is done is not done again: a run that was killed goes on with the same command.
"""

import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from proving.jobs import seed_study
from proving.paired import heading, of_runs, over_seeds, rows

EXAMPLES = """\
examples:
  python scripts/presets.py --workdir runs/presets --json results/presets.json
  python scripts/presets.py --workdir runs/presets --seeds 100 101
"""

CLEAN = "clean"
INTER_DENOMINATOR = 640  # the published 4,821 is 6.4 times Market-1501's identities; so is this
CHANGES = {
    "learned vectors one token later": ({"prompts.prefix_tokens": 5}, ""),
    "smoothing over a constant": ({"text.inter_denominator": INTER_DENOMINATOR}, "intra"),
    "idle parameters decay": ({"optimizer.idle": "decay"}, "intra"),
    "batch norm in groups of 16": ({"model.bn_group": 16}, "prompts"),
    "hardest image to centroids, stage 2": ({"icdl.centroid_update": "hard"}, "prompts"),
    "mean image to centroids, stage 3": ({"inter.memory_update": "mean"}, "intra"),
    "every image to centroids, stage 3": ({"inter.memory_update": "each"}, "intra"),
    "no triplets": ({"triplet.enabled": False}, "prompts"),
}
"""Options by name of the run, and the node whose state it shares: none, prompts or stage 2."""


def main() -> None:
    """Runs all seeds, several at a time, and writes the figures."""
    seed_study(
        __file__,
        __doc__,
        EXAMPLES,
        seeds=range(100, 104),
        one_seed=one_seed,
        summarize=summarize,
        table=table,
    )


def one_seed(job: str, workdir: pathlib.Path, recipe: Any) -> None:
    """All runs of a seed, whose name is "seed" and its number."""
    from proving.tree import run_seed

    run_seed(job, workdir, recipe, nodes(recipe))


def nodes(recipe: Any) -> list:
    """All runs, with the beginnings that they share."""
    from proving.tree import Node

    return [
        Node("prompts", until=0),
        Node("intra", "prompts", until=int(recipe.schedule.intra_epochs)),
        Node(CLEAN, "intra"),
        *(Node(name, parent, change) for name, (change, parent) in CHANGES.items()),
    ]


def summarize(results: dict[str, dict]) -> dict[str, Any]:
    """Means over seeds, and paired differences to `clean`.

    Args:
      results: by job (a seed), node and figure.

    Returns:
      By run and figure: `runs` and, without `clean`, `differences`, with intervals over seeds.
    """
    return {
        "runs": of_runs(results, (CLEAN, *CHANGES), COLUMNS),
        "differences": {
            name: over_seeds(results, COLUMNS, lambda s, k, n=name: s[n][k] - s[CLEAN][k])
            for name in CHANGES
        },
    }


COLUMNS = {
    "mAP": "mAP",
    "rank1": "rank-1",
    "camera_auc": "camera AUC",
    "same_camera_share": "same-camera share",
}


def table(summary: dict[str, Any]) -> str:
    """The figures in Markdown."""
    return "\n".join(
        [
            *heading(f"minus `{CLEAN}`", COLUMNS.values()),
            *rows({f"`{CLEAN}` itself": summary["runs"][CLEAN]}, COLUMNS),
            *rows(summary["differences"], COLUMNS, signed=True),
        ]
    )


if __name__ == "__main__":
    main()
