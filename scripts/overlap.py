"""Association where cameras share few people: which rule links whom, and what training makes of it.

The published rule examines a fixed number of pairs, however many people are shared. Here fewer and
fewer training identities are seen by two or more cameras (`overlap`), and from one and the same
state after stage 2 every rule trains stage 3. A sweep over rates shows the pairs alone, after stage
2. Seeds draw people and cameras anew. What is done is not done again: a run that was killed goes on
with the same command.
"""

import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from command import Parser, one_line_errors, read_config
from proving.jobs import add_flags, run_study

EXAMPLES = """\
examples:
  python scripts/overlap.py --workdir runs/overlap --json results/overlap.json
  python scripts/overlap.py --workdir runs/overlap --seeds 100 --overlaps 1 0.1
"""

PUBLISHED = {
    "association.method": "greedy_cc",
    "association.rate": 1.7,
    "association.center_cameras": False,
}
RULES = {
    "published": PUBLISHED,
    "mutual": PUBLISHED | {"association.mutual": 1},
    "max_distance": PUBLISHED | {"association.max_distance": 0.5},
    "auto": PUBLISHED | {"association.rate": "auto"},
    "greedy_cc_cam": PUBLISHED | {"association.method": "greedy_cc_cam"},
    "centred, auto, mutual, greedy_cc_cam": {
        "association.method": "greedy_cc_cam",
        "association.rate": "auto",
        "association.mutual": 1,
        "association.center_cameras": True,
    },
}
RATES = (0.2, 0.4, 0.8, 1.3, 1.7, 2.5, "auto")


def main() -> None:
    """Runs all seeds and overlaps, several at a time, and writes the figures."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add_flags(parser, seeds=range(100, 103))
    parser.add_argument("--overlaps", type=float, nargs="+", default=[1.0, 0.5, 0.2, 0.1])
    options, overrides = parser.parse_known_args()
    with one_line_errors():
        if options.alone is not None:
            one_job(options.alone, options.workdir, read_config(options.config, overrides))
            return
        jobs = [f"overlap{x:g}_seed{seed}" for seed in options.seeds for x in options.overlaps]
        summary = run_study(
            __file__,
            jobs,
            options,
            overrides,
            lambda results: summarize(results, options.seeds, options.overlaps),
        )
        print(table(summary))


def one_job(job: str, workdir: pathlib.Path, recipe: Any) -> None:
    """All runs of one overlap and seed, whose name says both."""
    from proving.tree import Node, measure_test, run_job

    from data_prep.synthetic import SyntheticConfig

    overlap, seed = job.removeprefix("overlap").split("_seed")
    recipe.seed = int(seed)
    people = SyntheticConfig(
        seed=recipe.seed, train_ids=recipe.data.synthetic_ids, overlap=float(overlap)
    )
    border = int(recipe.schedule.intra_epochs)

    def measure(run) -> dict[str, Any]:
        found = measure_test(run)
        if run.progress.encoder_epochs == border:
            found["sweep"] = sweep(run)
        return found

    nodes = [
        Node("prompts", until=0),
        Node("intra", "prompts", until=border),
        *(Node(name, "intra", rule) for name, rule in RULES.items()),
    ]
    run_job(nodes, workdir / job, recipe, people, measure)


def sweep(run: Any) -> dict[str, dict[str, float]]:
    """Figures of the published rule at several rates, on the features that a run has now."""
    import dataclasses

    from ccafl_jax.methods.ccafl.memories import associate_features
    from ccafl_jax.pseudo_labels.cross_camera import diagnostics

    features, labels, found = run._extract(run.extract_f), run.labels, {}
    published = {name.partition(".")[2]: value for name, value in PUBLISHED.items()}
    for rate in RATES:
        config = dataclasses.replace(run.config.association, **{**published, "rate": rate})
        pairs = associate_features(features, labels.label, labels.cam_of, config)
        figures = diagnostics(pairs, labels.pid_of, labels.cam_of)
        reach = {key: pairs.diagnostics[key] for key in ("last_distance", "stranger_distance")}
        found[str(rate)] = {key: float(value) for key, value in (figures | reach).items()}
    return found


def summarize(results: dict[str, dict], seeds: list[int], overlaps: list[float]) -> dict[str, Any]:
    """Means over seeds.

    Args:
      results: by job, node and figure.
      seeds: of the jobs.
      overlaps: of the jobs.

    Returns:
      By overlap: `rules` (by rule: mAP; precision, recall and share of pure clusters of the last
      association; `over_published`, the paired difference of mAP) and `sweep` (by rate).
    """
    from proving.paired import mean_interval

    summary: dict[str, Any] = {}
    for overlap in overlaps:
        jobs = [results[f"overlap{overlap:g}_seed{seed}"] for seed in seeds]

        def mean(value, jobs=jobs) -> dict[str, Any]:
            return mean_interval([value(job) for job in jobs])

        rules = {
            name: {
                "mAP": mean(lambda job, n=name: job[n]["mAP"]),
                "over_published": mean(lambda job, n=name: job[n]["mAP"] - job["published"]["mAP"]),
                **{
                    key: mean(lambda job, n=name, k=key: job[n]["association"][k])
                    for key in ("precision", "recall", "pure_share")
                },
            }
            for name in RULES
        }
        swept = {
            str(rate): {
                key: mean(lambda job, r=str(rate), k=key: job["intra"]["sweep"][r][k])
                for key in ("precision", "recall", "pure_share", "last_distance")
            }
            for rate in RATES
        }
        strangers = mean(lambda job: job["intra"]["sweep"]["auto"]["stranger_distance"])
        summary[f"{overlap:g}"] = {
            "rules": rules,
            "sweep": swept,
            "stranger_distance": strangers,
        }
    return {"overlaps": summary}


def table(summary: dict[str, Any]) -> str:
    """The figures in Markdown: rules after training, then rates after stage 2."""
    from proving.paired import shown

    columns = ("mAP", "over_published", "precision", "recall", "pure_share")
    lines = [
        "| overlap | rule | final mAP | minus published | precision | recall | pure clusters |",
        "|" + "---|" * 7,
    ]
    for overlap, found in summary["overlaps"].items():
        for name, figures in found["rules"].items():
            cells = [shown(figures[key], signed=key == "over_published") for key in columns]
            lines.append(f"| {overlap} | {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "The published rule at other rates, on the features after stage 2:",
        "",
        "| overlap | rate | precision | recall | pure clusters | last pair | strangers |",
        "|" + "---|" * 7,
    ]
    for overlap, found in summary["overlaps"].items():
        for rate, figures in found["sweep"].items():
            cells = [shown(figures[key]) for key in ("precision", "recall", "pure_share")]
            far = [figures["last_distance"], found["stranger_distance"]]
            cells += [shown(each, percent=False) for each in far]
            lines.append(f"| {overlap} | {rate} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
