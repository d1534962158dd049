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
from proving.paired import Arms

EXAMPLES = """\
examples:
  python scripts/ablate_tfclip.py --workdir runs/tfclip_parts --json results/tfclip.json
  python scripts/ablate_tfclip.py --workdir runs/tfclip_parts --seeds 100 101
"""

MEAN, MEMORY = "mean of frames", "mean of frames and memory"
NO_DIFFUSION, NO_PROMPT, WHOLE = "without diffusion", "without prompts", "all parts"
WITHOUT = {
    MEAN: {"diffusion.enabled": False, "loss.memory": 0.0},
    MEMORY: {"diffusion.enabled": False, "prompt.enabled": False},
    NO_DIFFUSION: {"diffusion.enabled": False},
    NO_PROMPT: {"prompt.enabled": False},
    WHOLE: {},
}
"""By arm, what differs from the recipe."""
STUDY = Arms(
    names=tuple(WITHOUT),
    compared=(
        (MEMORY, MEAN),
        (NO_DIFFUSION, MEMORY),
        (NO_PROMPT, MEMORY),
        (WHOLE, NO_DIFFUSION),
        (WHOLE, NO_PROMPT),
        (WHOLE, MEMORY),
        (WHOLE, MEAN),
    ),
    figures={"mAP": "mAP", "rank1": "rank-1"},
    untrained=MEAN,  # without the diffusion, whose feature says nothing before it is trained
)
summarize, table = STUDY.summarize, STUDY.table


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
    zero_shot = {key: run.progress.zero_shot[key] for key in STUDY.figures}
    return {key: last[key] for key in (*STUDY.figures, "same_camera_share")} | {
        "zero_shot": zero_shot
    }


if __name__ == "__main__":
    main()
