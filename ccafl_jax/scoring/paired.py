"""How much better one model is than another on the same queries, with intervals."""

import numpy as np

from ccafl_jax.evaluation.bootstrap import Interval, bootstrap_difference
from ccafl_jax.options import require
from ccafl_jax.scoring.evaluate import evaluate, values_by_query
from ccafl_jax.scoring.feature_set import FeatureSet

_SAME = ("flip", "pooling", "split", "orientation", "compute_dtype")


def paired_differences(
    first: FeatureSet,
    second: FeatureSet,
    *,
    names: tuple[str, str] = ("the first set", "the second set"),
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of the figures of `first` minus those of `second`, each under its protocol.

    Args:
      first: features of a test set by one model.
      second: those of the same test set by another.
      names: of both, for messages.
      samples: draws of identities; see `ccafl_jax.evaluation.bootstrap`.
      seed: of the draws.

    Returns:
      By figure of the data set's protocol, an interval of the difference, a share in -1..1.

    Raises:
      ValueError: the two are not of the same images, or were not extracted in the same way.
    """
    check_same_test(first, second, names=names)
    found = [evaluate(features) for features in (first, second)]
    figures = found[0].figures["rules"]["figures"]
    (ours, valid, pid), (theirs, _, _) = (values_by_query(one.scored, figures) for one in found)
    no_match = found[0].figures["rules"]["no_match"]
    return {
        name: bootstrap_difference(
            ours[name], theirs[name], valid, pid, samples=samples, seed=seed, no_match=no_match
        )
        for name in figures
    }


def check_same_test(
    first: FeatureSet,
    second: FeatureSet,
    *,
    names: tuple[str, str] = ("the first set", "the second set"),
) -> None:
    """Raises ValueError unless the rows of both are the same images, extracted in the same way."""
    cannot = f"{names[0]} and {names[1]} cannot be paired"
    cure = "score both on one test set: scripts/evaluate.py --workdir RUN --dataset NAME --root DIR"
    require(
        first.dataset == second.dataset,
        f"{cannot}: one was scored on {first.dataset or 'no named set'}, the other on "
        f"{second.dataset or 'no named set'}; {cure}",
    )
    require(
        len(first) == len(second),
        f"{cannot}: they have {len(first)} and {len(second)} images; {cure}",
    )
    for column in ("part", "pid", "camid"):
        row = np.flatnonzero(getattr(first, column) != getattr(second, column))
        require(
            not len(row),
            f"{cannot}: {column} of row {row[0] if len(row) else 0} differs, they are of other "
            f"images; {cure}",
        )
    files = [[str(name).rpartition("/")[2] for name in one.names] for one in (first, second)]
    for left, right in zip(*files, strict=True):
        require(left == right, f"{cannot}: where one has {left}, the other has {right}; {cure}")
    for key in _SAME:
        values = [one.meta.get(key) for one in (first, second)]
        require(
            values[0] == values[1],
            f"{cannot}: {key} is {values[0]!r} of one and {values[1]!r} of the other; extract both "
            "alike (scripts/evaluate.py)",
        )
