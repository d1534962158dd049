"""A network that gets another camera, and cameras that nobody labelled.

Six cameras. A run on the first five is taken up with the sixth (`init_from`), and compared with a
run on all six from CLIP that takes as many steps, and with one that takes twice as many. Then half
of the cameras, and all of them, lose their labels: their images are clustered (`data.unlabelled`),
or left out. Seeds draw people and cameras anew. What is done is not done again: a run that was
killed goes on with the same command.
"""

import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from proving.jobs import seed_study
from proving.paired import differences, heading, of_runs, rows

EXAMPLES = """\
examples:
  python scripts/growth.py --workdir runs/growth --json results/growth.json
  python scripts/growth.py --workdir runs/growth --seeds 100 101
"""

CAMERAS, OLD = 6, (1, 2, 3, 4, 5)
SHORT = 0.5  # of the schedule, for what is compared with the camera more
WHOLE, GROWN, SCRATCH = "six", "five, then six, half as long", "six, half as long"
CLUSTERED, DROPPED, NONE = "half, others clustered", "half, others left out", "none, all clustered"
COMPARED = (
    (GROWN, SCRATCH),
    (GROWN, WHOLE),
    (GROWN, "five"),
    (CLUSTERED, WHOLE),
    (CLUSTERED, DROPPED),
    (NONE, WHOLE),
)
COLUMNS = {
    "mAP": "mAP",
    "rank1": "rank-1",
    "old_pairs": "mAP, old cameras",
    "new_camera": "mAP, to and from the sixth",
}
OF_RUNS = COLUMNS | {"own_identity": "images of their class's person"}


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
    from proving.measures import measures
    from proving.tree import run_seed

    def measure(run) -> dict[str, Any]:
        features = run._extract(run.extract_f, "test")
        found = measures(features, run.dataset) | by_camera(features, run.dataset)
        return found | {"own_identity": own_identity(run, workdir / job / "data")}

    found = nodes(recipe, workdir / job)
    run_seed(job, workdir, recipe, found, measure=measure, cameras=CAMERAS)


def nodes(recipe: Any, folder: pathlib.Path) -> list:
    """All runs; none shares its beginning with another, for their classes differ."""
    from proving.tree import Node

    clustered = {"data.unlabelled": "cluster"}
    half = {"data.unlabelled_cameras": tuple(range(1 + CAMERAS // 2, 1 + CAMERAS))}
    short = shortened(recipe)
    return [
        Node(WHOLE),
        Node("five", options={"data.train_cameras": OLD}),
        Node(GROWN, options=short | {"init_from": str(folder / "five")}),
        Node(SCRATCH, options=short),
        Node(CLUSTERED, options=clustered | half),
        Node(DROPPED, options=half),
        Node(NONE, options=clustered | {"data.unlabelled_cameras": tuple(range(1, 1 + CAMERAS))}),
    ]


def shortened(recipe: Any) -> dict[str, Any]:
    """Options for `SHORT` of the epochs, with windows and rates in proportion."""

    def part(epochs: float) -> int:
        return round(SHORT * epochs)

    names = ("intra_epochs", "text_start", "ical_start", "ical_end")
    windows = {f"schedule.{name}": float(part(recipe.schedule[name])) for name in names}
    return windows | {
        "schedule.epochs": part(recipe.schedule.epochs),
        "optimizer.warmup_epochs": part(recipe.optimizer.warmup_epochs),
        "optimizer.milestones": tuple(part(epoch) for epoch in recipe.optimizer.milestones),
    }


def by_camera(features: Any, dataset: Any) -> dict[str, float]:
    """Mean mAP over pairs of two old cameras, and over the pairs with the new one."""
    import numpy as np

    from ccafl_jax.evaluation.camera_pairs import map_by_camera_pair
    from ccafl_jax.neighbors.similarity import FeatureScores

    query, gallery, features = dataset.query, dataset.gallery, np.asarray(features)
    scores = FeatureScores(features[: len(query)], features[len(query) :])
    pairs = map_by_camera_pair(scores, query.pid, gallery.pid, query.camid, gallery.camid)
    old = np.isin([dataset.camera_codes[camera] for camera in pairs.cameras], OLD)
    across = pairs.valid & ~np.eye(len(old), dtype=bool)
    both = old[:, None] & old[None, :]
    return {
        "old_pairs": float(pairs.mAP[across & both].mean()),
        "new_camera": float(pairs.mAP[across & ~both].mean()),
    }


def own_identity(run: Any, root: pathlib.Path) -> float:
    """Share of training images that show the person whom most images of their class show."""
    import numpy as np

    from ccafl_jax.data.opening import open_dataset
    from ccafl_jax.pseudo_labels.labels import commonest

    whole = open_dataset("synthetic", root).train
    truth = dict(zip(whole.path, whole.pid.tolist(), strict=True))
    pid = np.array([truth[path] for path in run.dataset.train.path])
    _, of_class = commonest(run.labels.label, pid)
    return float(np.mean(of_class[run.labels.label] == pid))


def summarize(results: dict[str, dict]) -> dict[str, Any]:
    """Means over seeds, and paired differences.

    Args:
      results: by job (a seed), node and figure.

    Returns:
      `runs` by run and figure; `differences` by "RUN minus RUN" and figure, with intervals over
      seeds.
    """
    names = next(iter(results.values()))
    return {
        "runs": of_runs(results, names, OF_RUNS),
        "differences": differences(results, COMPARED, COLUMNS),
    }


def table(summary: dict[str, Any]) -> str:
    """The figures in Markdown: runs, then differences."""
    return "\n".join(
        [
            *heading("cameras trained on", OF_RUNS.values()),
            *rows(summary["runs"], OF_RUNS),
            "",
            *heading("", COLUMNS.values()),
            *rows(summary["differences"], COLUMNS, signed=True),
        ]
    )


if __name__ == "__main__":
    main()
