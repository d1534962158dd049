"""Identities held out of training, as an alarm of overfitting: the cut, the figures, the alarm.

Nothing is selected by these figures. They compare images of one camera, and a model that leans on
the camera more and more can still win there.
"""

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ccafl_jax.data.labels import hold_out
from ccafl_jax.data.records import Records, ReIDDataset
from ccafl_jax.evaluation.intra_camera import rank_inside_cameras

FALLS = 3
"""Evaluations in a row that fall before the alarm is given."""

log = logging.getLogger("ccafl_jax")


def split_held_out(
    dataset: ReIDDataset, fraction: float, seed: int
) -> tuple[ReIDDataset, Records | None]:
    """Cuts the validation identities out of the training set.

    Args:
      dataset: as read.
      fraction: of each camera's training identities, see
        :func:`ccafl_jax.data.labels.hold_out`; 0 leaves everything as it is.
      seed: of the draw.

    Returns:
      The data set with the rest of its training records and their number in the report, and the
      held-out records (None where the fraction is 0).

    Raises:
      ValueError: no camera has enough identities.
    """
    if not fraction:
        return dataset, None
    train = dataset.train
    held = hold_out(train.pid, train.camid, fraction=fraction, seed=seed)
    if not held.any():
        raise ValueError(
            f"data.val_fraction is {fraction} and no training camera has four identities, two of "
            "them with two images or more, to hold some out: set it to 0"
        )
    counts = {**dataset.report.get("train", {}), "held out for validation": int(held.sum())}
    rest = dataclasses.replace(
        dataset, train=train.take(~held), report={**dataset.report, "train": counts}
    )
    return rest, train.take(held)


def score_held_out(features: jax.Array, held_out: Records) -> dict[str, float | int]:
    """Intra-camera figures: mAP, rank1 and the number of queries.

    Args:
      features: float[n, dim], in the order of the records.
      held_out: the records that :func:`split_held_out` cut out.
    """
    return rank_inside_cameras(features, held_out.pid, held_out.camid).summary()


def watch(history: list[float], result: Mapping) -> None:
    """Adds an evaluation to the history, and warns once when it keeps falling.

    Args:
      history: intra-camera mAP of the evaluations before; extended in place.
      result: figures of this one; nothing happens where no identities are held out.
    """
    if "val" not in result:
        return
    history.append(result["val"]["mAP"])
    if first_alarm(history):
        log.warning(
            "val_mAP has fallen in %d evaluations in a row (%s): the model may be overfitting its "
            "cameras' training identities",
            FALLS,
            " > ".join(f"{value:.3f}" for value in history[-FALLS - 1 :]),
        )


def first_alarm(history: Sequence[float]) -> bool:
    """Whether the last value ends the first row of `FALLS` falls.

    Args:
      history: intra-camera mAP of all evaluations so far.
    """
    falls = [after < before for before, after in itertools.pairwise(history)]
    rows = [all(falls[end - FALLS : end]) for end in range(FALLS, len(falls) + 1)]
    return bool(rows) and rows[-1] and not any(rows[:-1])


def check_same_hold_out(stored: Mapping, config: Any, where: str) -> None:
    """Fails where a resumed run would train on identities that were held out of it.

    Args:
      stored: description of the checkpoint; one that is not of a run passes here.
      config: options it is resumed with.
      where: names the run in messages.

    Raises:
      ValueError: another `data.val_fraction`, or another seed to draw it with.
    """
    options = stored.get("config", {})
    if "data" not in options:
        return
    fraction = options["data"].get("val_fraction", 0.0)
    asked = getattr(config.data, "val_fraction", 0.0)  # not all methods hold identities out
    if fraction != asked:
        raise ValueError(
            f"{where} was started with data.val_fraction={fraction} and would go on with "
            f"{asked}, on other training images: resume with {fraction}"
        )
    seed = options["seed"]
    if fraction and seed != config.seed:
        raise ValueError(
            f"{where} was started with seed={seed}, which also drew the held-out identities, and "
            f"would go on with {config.seed}: resume with seed={seed}"
        )
