"""Chooses the score from which a match counts, on features with known identities.

The threshold is the smallest one that keeps the false rate at or below what is asked:
--fpir: the share of people not in the gallery for whom the best match is still accepted;
--fpr: the share of pairs of different people that are accepted.
The file says what it was made from, so that scores of another model are refused.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from command import Parser, check_writable, flag, one_line_errors, start_logging, user_path

EXAMPLES = """\
examples:
  one in a hundred strangers may be taken for somebody; half of the people leave the gallery,
  as the usual test sets hold everybody in it
    python scripts/calibrate.py --features market.npz --fpir 0.01 --hold-out 0.5 \\
        --out threshold.json
  one in a thousand pairs of different people may pass as the same
    python scripts/calibrate.py --features market.npz --fpr 1e-3 --out threshold.json
  a gallery that lacks people to begin with; a person counts as found among the first five
    python scripts/calibrate.py --features gate.npz --fpir 0.05 --rank 5 --out threshold.json
"""
RATES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of the curve that is kept beside the threshold."""


def main() -> None:
    """Parses the arguments and calibrates."""
    arguments = parser().parse_args()
    start_logging()
    with one_line_errors():
        calibrate(arguments)


def parser() -> Parser:
    """The options of the command."""
    options = Parser(description=__doc__, epilog=EXAMPLES)
    options.add_argument(
        "--features",
        required=True,
        type=user_path,
        help=".npz file of features, as ccafl_jax.scoring.feature_set reads it",
    )
    options.add_argument("--out", required=True, type=user_path, help="JSON file to write")
    rule = options.add_mutually_exclusive_group()
    rule.add_argument(
        "--fpir", type=float, help="false rate of searches for absent people (default: 0.01)"
    )
    rule.add_argument("--fpr", type=float, help="false rate of pairs of different people")
    options.add_argument(
        "--rank",
        type=int,
        help="with --fpir: the last place where a person counts as found (default: 1)",
    )
    options.add_argument(
        "--hold-out",
        type=float,
        metavar="SHARE",
        help="of the identities, to take out of the gallery first (default: none)",
    )
    options.add_argument("--seed", type=int, help="of that draw (default: 0)")
    options.add_argument(
        "--metric",
        choices=("cosine", "euclidean", "dot"),
        default="cosine",
        help="(default: cosine)",
    )
    options.add_argument(
        "--protocol", help="what matches and what is left out (default: that of the data set)"
    )
    options.add_argument(
        "--with-distractors", action="store_true", help="join the set's distractors to the gallery"
    )
    options.add_argument(
        "--model", help="fingerprint of the model, where the file of features has none"
    )
    return options


def calibrate(arguments: argparse.Namespace) -> None:
    """Loads the features, measures the curve, chooses, writes and prints."""
    from ccafl_jax.evaluation.open_set import as_file, choose, open_set
    from ccafl_jax.files import write_json
    from ccafl_jax.neighbors.similarity import FeatureScores
    from ccafl_jax.scoring import feature_set

    check(arguments)
    rule = "fpir" if arguments.fpr is None else "fpr"
    target = arguments.fpr if rule == "fpr" else arguments.fpir
    target = 0.01 if target is None else target
    rank = 1 if arguments.rank is None else arguments.rank
    features = feature_set.load(arguments.features)
    model = model_fingerprint(features.meta, arguments.model, arguments.features)
    trial, counts, protocol = select(features, arguments)
    check_searches(counts, rule)
    asked = {"fpr": RATES, "fpir": RATES if rule == "fpir" or arguments.hold_out else ()}
    asked[rule] = sorted({*RATES, target})
    curve = open_set(
        FeatureScores(
            features.features[trial.query], features.features[trial.gallery], arguments.metric
        ),
        counts,
        rank=rank,
        **asked,
    )
    threshold = choose(
        curve,
        rule=rule,
        target=target,
        metric=arguments.metric,
        model=model,
        data=feature_set.fingerprint(
            features=features.features, pid=features.pid, camid=features.camid, part=features.part
        ),
        dataset=features.dataset,
        protocol=protocol,
        hold_out=arguments.hold_out or 0.0,
        seed=arguments.seed or 0,
    )
    write_json(arguments.out, as_file(threshold, curve))
    print(table(curve, rule, target))
    if not threshold.resolved:
        print(
            f"{threshold.negatives} impostors are too few to measure {rule} {target:g} (one is "
            f"{threshold.resolution:.2g}): the threshold lies just above all of them"
        )
    print(f"{arguments.out}: accept {arguments.metric} >= {threshold.value:.6f}")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for options that are out of range or would have no effect."""
    if arguments.out.is_dir():
        raise ValueError(f"--out {arguments.out} is a folder; name a file")
    check_writable(arguments.out, "--out")
    for name in ("fpir", "fpr", "hold_out"):
        share = getattr(arguments, name)
        if share is not None and not 0.0 < share < 1.0:
            raise ValueError(f"{flag(name)} is {share:g}, must lie between 0 and 1")
    if arguments.rank is not None and arguments.fpr is not None:
        raise ValueError("--rank is for searches (--fpir); leave it out with --fpr")
    if arguments.rank is not None and arguments.rank < 1:
        raise ValueError(f"--rank is {arguments.rank}, must be 1 or more")
    if arguments.seed is not None and arguments.hold_out is None:
        raise ValueError("--seed is of the draw of --hold-out; leave it out, or hold people out")
    if arguments.seed is not None and arguments.seed < 0:
        raise ValueError(f"--seed is {arguments.seed}, must be 0 or more")


def check_searches(counts, rule: str) -> None:
    """Raises ValueError where there is nothing to measure the rate on."""
    import numpy as np

    mated = np.diff(counts.matches().offsets) > 0
    if not mated.any():
        raise ValueError(
            f"none of {len(mated)} queries has a match in its gallery: look at the identities and "
            "cameras of both sides"
        )
    if rule == "fpir" and mated.all():
        raise ValueError(
            f"all {len(mated)} queries have a match in the gallery, but --fpir is about people who "
            "are not there: take some out with --hold-out 0.5, or ask for --fpr"
        )
    if len(np.union1d(counts.query_pid, counts.gallery_pid[counts.kept])) < 2:
        raise ValueError(
            "queries and gallery show one person: strangers are needed to choose a threshold"
        )


def select(features, arguments: argparse.Namespace):
    """The ranking to calibrate on: its rows, what counts in it, and the name of its rules."""
    from ccafl_jax.evaluation.open_set import hold_out_identities
    from ccafl_jax.evaluation.protocols import protocol_of
    from ccafl_jax.scoring.trials import same_item, trials

    cameras = bool((features.camid >= 0).any())
    known = features.dataset or ("market1501" if cameras else "no_cameras")
    protocol = protocol_of(arguments.protocol or known)
    found = trials(features, protocol, distractors=arguments.with_distractors)
    trial = found[0]
    if len(found) > 1:
        print(f"{protocol.name} has {len(found)} trials: this is {trial.name}")
    query_pid, camid = features.pid[trial.query], features.camid
    if arguments.hold_out:
        kept = hold_out_identities(
            query_pid, trial.gallery_pid, arguments.hold_out, arguments.seed or 0
        )
        trial = trial.keep(kept)
    counts = protocol.relevance(
        query_pid,
        trial.gallery_pid,
        camid[trial.query],
        camid[trial.gallery],
        camera_codes=features.camera_codes,
        same_item=same_item(features, trial),
    )
    return trial, counts, protocol.name


def model_fingerprint(meta: Mapping[str, Any], given: str | None, path) -> str:
    """The fingerprint in the file, or the given one where it has none."""
    stored = meta.get("fingerprint")
    if given and stored and given != stored:
        raise ValueError(
            f"--model {given}: the features in {path} are of model {stored}; leave --model out"
        )
    if not (stored or given):
        raise ValueError(
            f"{path} does not say which model made the features: give its fingerprint with --model"
        )
    return stored or given


def table(curve: Mapping[str, Any], rule: str, target: float) -> str:
    """The curve as text; the chosen line has an arrow, rates that cannot be measured a mark."""
    lines = []
    parts = {"verification": ("fpr", "tpr"), "identification": ("fpir", "fnir")}
    for name, part in curve.items():
        false, reached = parts[name]
        sizes = [f"{part[key]} {key.replace('_', '-')}" for key in part if key in _COUNTS]
        lines.append(f"{name}: {', '.join(sizes)}")
        lines.append(f"    {false:>8}  threshold     reached  {reached:>9}")
        for point in part["points"]:
            arrow = "->" if (false, point[false]) == (rule, target) else "  "
            mark = "" if point["resolved"] else "  *"
            asked, value = f"{point[false]:8g}", f"{point['threshold']:9.5f}"
            rates = f"{point['false_rate']:10.3g}  {point[reached]:9.4f}"
            lines.append(f" {arrow} {asked}  {value}  {rates}{mark}")
    if any(not point["resolved"] for part in curve.values() for point in part["points"]):
        lines.append("* fewer impostors than this rate needs")
    return "\n".join(lines)


_COUNTS = ("genuine", "impostor", "mated", "non_mated", "empty")


if __name__ == "__main__":
    main()
