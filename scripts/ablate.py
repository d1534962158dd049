"""What each part of CCAFL brings: all combinations of ICDL, text and ICAL, and controls.

Every seed draws people and cameras anew, and all runs of a seed share them, the sampler and the
augmentation. Runs that differ from some epoch on share everything before it, state included, so
that differences are paired. Figures are of the last epoch, on identities that were not trained on.
What is done is not done again: a run that was killed goes on with the same command.

Controls. `true_association`: identities link the classes. `random_association`: as many clusters of
the same sizes, drawn by chance. `shuffled_texts`: a class is described by the prompts of another.
`image_prototypes`: by the mean joint feature of its own images, without words. `own_class_only`:
ICAL with epsilon 0, which knows no other camera. `camera_head`: gradient reversal in ICAL's place.
`full_labels`: identities link the classes, and there is no stage 2.
"""

import itertools
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
  python scripts/ablate.py --workdir runs/ablation --json results/ablation.json
  python scripts/ablate.py --workdir runs/ablation --seeds 100 101 --processes 1
  python scripts/ablate.py --workdir runs/a --config configs/ccafl_demo.py  # more steps, hours
"""

FACTORS = ("icdl", "text", "ical")
OFF = {
    "icdl": {"icdl.w": 1.0},  # centroids alone
    "text": {"text.intra": False, "text.inter": False},
    "ical": {"ical.enabled": False},
}
FULL = "icdl+text+ical"
CONTROLS = (
    "true_association",
    "random_association",
    "shuffled_texts",
    "image_prototypes",
    "own_class_only",
    "camera_head",
    "full_labels",
)


def main() -> None:
    """Runs all seeds, several at a time, and writes the figures."""
    seed_study(
        __file__,
        __doc__,
        EXAMPLES,
        seeds=range(100, 106),
        one_seed=one_seed,
        summarize=summarize,
        table=table,
    )


def one_seed(job: str, workdir: pathlib.Path, recipe: Any) -> None:
    """All runs of a seed, whose name is "seed" and its number."""
    from proving.tree import run_seed

    run_seed(job, workdir, recipe, nodes(recipe.schedule))


def nodes(schedule: Any) -> list:
    """All runs: the shared beginnings, the eight combinations, and the controls."""
    from proving.controls import (
        ImagePrototypes,
        RandomAssociation,
        ShuffledTexts,
        TrueAssociation,
    )
    from proving.tree import Node

    def without(*factors: str) -> dict[str, Any]:
        return {name: value for factor in factors for name, value in OFF[factor].items()}

    border, opening = int(schedule.intra_epochs), int(schedule.ical_start)
    found = [Node("prompts", until=0)]
    for icdl, text in itertools.product((False, True), repeat=2):
        off = [name for name, on in (("icdl", icdl), ("text", text)) if not on]
        name = "+".join(name for name in ("icdl", "text") if name not in off) or "neither"
        found += [
            Node(f"{name}@intra", "prompts", without(*off), until=border),
            Node(f"{name}@inter", f"{name}@intra", without(*off, "ical"), until=opening),
            Node(cell(icdl, text, False), f"{name}@inter", without(*off, "ical")),
            Node(cell(icdl, text, True), f"{name}@inter", without(*off)),
        ]
    head = {**without("ical"), "camera_head.weight": 1.0}
    return [
        *found,
        Node("true_association", "icdl+text@intra", kind=TrueAssociation),
        Node("random_association", "icdl+text@intra", kind=RandomAssociation),
        Node("shuffled_texts", "prompts", kind=ShuffledTexts),
        Node("image_prototypes", "prompts", kind=ImagePrototypes),
        Node("own_class_only", "icdl+text@inter", {"ical.epsilon": 0.0}),
        Node("camera_head", "icdl+text@inter", head),
        Node("full_labels", "prompts", {"schedule.intra_epochs": 0.0}, kind=TrueAssociation),
    ]


def cell(*on: bool) -> str:
    """Name of a combination, in the order of `FACTORS`."""
    return "+".join(name for name, is_on in zip(FACTORS, on, strict=True) if is_on) or "none"


def summarize(results: dict[str, dict]) -> dict[str, Any]:
    """Means over seeds, effects of the factors, and differences of the controls to the whole.

    Args:
      results: by job (a seed), node and figure.

    Returns:
      `runs`: by node and figure; `effects`: by factor and figure, with minus without it, averaged
      over the other two; `controls`: by control and figure, control minus `icdl+text+ical`. All
      with intervals over seeds.
    """
    whole = next(iter(results.values()))
    figures = [key for key, value in whole["prompts"].items() if isinstance(value, int | float)]

    def effect(position: int):
        def of(seed, key):
            cells = itertools.product((False, True), repeat=3)
            return sum((1 if on[position] else -1) * seed[cell(*on)][key] / 4 for on in cells)

        return of

    return {
        "runs": of_runs(results, whole, figures),
        "effects": {
            name: over_seeds(results, figures, effect(i)) for i, name in enumerate(FACTORS)
        },
        "controls": {
            name: over_seeds(results, figures, lambda s, k, n=name: s[n][k] - s[FULL][k])
            for name in CONTROLS
        },
    }


COLUMNS = {
    "mAP": "mAP",
    "rank1": "rank-1",
    "mAP_centered": "mAP, cameras centred",
    "camera_auc": "camera AUC",
    "same_camera_share": "same-camera share",
}


def table(summary: dict[str, Any]) -> str:
    """The figures in Markdown: runs, effects, controls."""
    head = heading("", COLUMNS.values())
    stages = {"prompts": "zero-shot", "icdl+text@intra": "after stage 2, ICDL and text"}
    combinations = [cell(*on) for on in itertools.product((False, True), repeat=3)]
    titles = stages | {name: name for name in (*combinations, *CONTROLS)}
    runs = {title: summary["runs"][name] for name, title in titles.items()}
    return "\n".join(
        [
            *head,
            *rows(runs, COLUMNS),
            "",
            "Effect of a part, with minus without it, mean over the other two:",
            "",
            *head,
            *rows(summary["effects"], COLUMNS, signed=True),
            "",
            f"Controls, minus `{FULL}`:",
            "",
            *head,
            *rows(summary["controls"], COLUMNS, signed=True),
        ]
    )


if __name__ == "__main__":
    main()
