"""What the parts of TF-CLIP bring after equal fine-tuning.

Every arm trains the same clips from the same tower for as many steps. The mean of the frames, with
and without the memory of identities, is what the prompts and the diffusion are measured against;
and so is the tower as it came, which learns nothing. Seeds draw people and cameras anew. What is
done is not done again: a study that was killed goes on with the same command.
"""

import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from proving.jobs import seed_study

EXAMPLES = """\
examples:
  python scripts/ablate_tfclip.py --workdir runs/tfclip_parts --json results/tfclip.json
  python scripts/ablate_tfclip.py --workdir runs/tfclip_parts --seeds 100 101
"""

MEAN, MEMORY = "mean of frames", "mean of frames and memory"
NO_DIFFUSION, NO_PROMPT, WHOLE = "without diffusion", "without prompts", "all parts"
FIGURES = ("mAP", "rank1")
WITHOUT = {
    MEAN: {"diffusion.enabled": False, "loss.memory": 0.0},
    MEMORY: {"diffusion.enabled": False, "prompt.enabled": False},
    NO_DIFFUSION: {"diffusion.enabled": False},
    NO_PROMPT: {"prompt.enabled": False},
    WHOLE: {},
}
"""By arm, what differs from the recipe."""
COMPARED = (
    (MEMORY, MEAN),
    (NO_DIFFUSION, MEMORY),
    (NO_PROMPT, MEMORY),
    (WHOLE, NO_DIFFUSION),
    (WHOLE, NO_PROMPT),
    (WHOLE, MEMORY),
    (WHOLE, MEAN),
)


def main() -> None:
    """Runs all seeds, several at a time, and writes the figures."""
    seed_study(
        __file__,
        __doc__,
        EXAMPLES,
        seeds=range(100, 106),
        config="configs/tfclip_synthetic.py:ablation",
        one_seed=one_seed,
        summarize=summarize,
        table=table,
    )


def one_seed(job: str, workdir: pathlib.Path, recipe: Any) -> None:
    """All runs of a seed, whose name is "seed" and its number."""
    from proving.tree import Node, run_job

    from data_prep.synthetic.layouts.mars import training_walks

    recipe.seed = int(job.removeprefix("seed"))
    people = training_walks(seed=recipe.seed, train_ids=recipe.data.synthetic_ids)
    nodes = [Node(arm, options=options) for arm, options in WITHOUT.items()]
    run_job(nodes, workdir / job, recipe, people, measure)


def measure(run) -> dict[str, Any]:
    """The figures of a run at its end, and before it."""
    (last,) = run.progress.stages
    zero_shot = {key: run.progress.zero_shot[key] for key in FIGURES}
    return {key: last[key] for key in (*FIGURES, "same_camera_share")} | {"zero_shot": zero_shot}


def summarize(results: dict[str, dict]) -> dict[str, Any]:
    """Means over seeds, and paired differences.

    Args:
      results: by job (a seed), arm and figure.

    Returns:
      `runs` by arm and figure, and `differences` by "ARM minus ARM" and figure, with intervals over
      seeds. The tower as it came is that of the arm without diffusion, whose feature has two parts.
    """
    from proving.paired import mean_interval

    seeds = list(results.values())

    def over_seeds(value) -> dict[str, Any]:
        return {key: mean_interval([value(seed, key) for seed in seeds]) for key in FIGURES}

    return {
        "runs": {
            "zero-shot": over_seeds(lambda seed, key: seed[MEAN]["zero_shot"][key]),
            **{arm: over_seeds(lambda seed, key, arm=arm: seed[arm][key]) for arm in WITHOUT},
        },
        "differences": {
            f"{a} minus {b}": over_seeds(lambda seed, key, a=a, b=b: seed[a][key] - seed[b][key])
            for a, b in COMPARED
        },
    }


def table(summary: dict[str, Any]) -> str:
    """The figures in Markdown: runs, then differences."""
    from proving.paired import shown

    lines = ["| run | mAP | rank-1 |", "|---|---|---|"]
    for name, figures in summary["runs"].items():
        lines.append(f"| {name} | {' | '.join(shown(figures[key]) for key in FIGURES)} |")
    for name, figures in summary["differences"].items():
        cells = [shown(figures[key], signed=True) for key in FIGURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
