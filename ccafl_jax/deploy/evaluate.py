"""Figures of a trained model on a test set."""

import dataclasses
import os
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from ccafl_jax.data.layouts import LAYOUTS
from ccafl_jax.data.opening import open_collection
from ccafl_jax.data.prepared import find_prepared
from ccafl_jax.data.records import Collection
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.features import as_trained, extract
from ccafl_jax.evaluation.camera_bias import same_camera_share
from ccafl_jax.scoring.evaluate import Evaluation, evaluate
from ccafl_jax.scoring.feature_set import DISTRACTOR, MULTI_QUERY, QUERY, FeatureSet


def evaluate_bundle(
    bundle: ModelBundle,
    *,
    name: str = "",
    root: str = "",
    batch: int = 128,
    compute_dtype: str = "float32",
    no_match: str = "skip",
    distractors: bool = False,
) -> dict[str, Any]:
    """Figures of a model on the test set of a data set, under its protocol.

    Args:
      bundle: the model.
      name: see `open_test_set`.
      root: see `open_test_set`.
      batch: images a call of the encoder.
      compute_dtype: dtype inside the encoder, "float32" or "bfloat16".
      no_match: see :func:`ccafl_jax.evaluation.ranking.rank`.
      distractors: join the data set's part of distractors to the gallery.

    Raises:
      ValueError: no data set is known, or it has cameras that the model does not know.
    """
    features = extract(
        bundle,
        open_test_set(bundle, name=name, root=root),
        distractors=distractors,
        batch=batch,
        compute_dtype=compute_dtype,
    )
    return score(features, no_match=no_match, distractors=distractors).figures


def open_test_set(
    bundle: ModelBundle, *, name: str = "", root: str | os.PathLike = ""
) -> Collection:
    """The data set that a model is to be evaluated on.

    Args:
      bundle: the model.
      name: of the data set; default: that of a prepared set, else the one it was trained on,
        else `market1501`.
      root: its folder, raw or prepared; default: the one it was trained on.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: no data set is known.
    """
    root = str(root)
    name = name or _name_of_set(bundle, root)
    root = root or bundle.data_root
    if not root:
        raise ValueError(f"{bundle.source} names no data set: pass --root DIR")
    if not pathlib.Path(root).exists():
        raise FileNotFoundError(f"no folder {root} with the data set: name it with --root DIR")
    return open_collection(name, root)


def score(sets: FeatureSet | Sequence[FeatureSet], **options: Any) -> Evaluation:
    """Figures of features, with the camera bias where they are of single images.

    Args:
      sets: see `ccafl_jax.scoring.evaluate.evaluate`.
      **options: see there.

    Returns:
      `Evaluation`. Its figures hold `same_camera_share` as well: of the five nearest images of
      other identities, the share from the image's own camera (junk, distractors and images of no
      known camera left out); a mean over the sets.
    """
    evaluation = evaluate(sets, **options)
    sets = (sets,) if isinstance(sets, FeatureSet) else tuple(sets)
    if not all(map(_has_camera_bias, sets)):
        return evaluation
    share = statistics.fmean(map(_camera_share, sets))
    return dataclasses.replace(
        evaluation, figures=evaluation.figures | {"same_camera_share": share}
    )


def _has_camera_bias(features: FeatureSet) -> bool:
    layout = LAYOUTS.get(features.dataset)
    single = (layout is None or layout.kind == "image") and features.meta.get("unit") != "tracklet"
    people = features.pid[_people(features)]
    return single and len(np.unique(people)) > 1


def _camera_share(features: FeatureSet) -> float:
    people = _people(features)
    return same_camera_share(
        features.features[people], features.pid[people], features.camid[people]
    )


def _people(features: FeatureSet) -> np.ndarray:
    """Rows of the queries' identities under known cameras, int64[n]."""
    queries = features.pid[features.rows(QUERY)]
    wanted = np.isin(features.pid, queries[queries >= 0]) & (features.camid >= 0)
    return np.flatnonzero(wanted & ~np.isin(features.part, (MULTI_QUERY, DISTRACTOR)))


def _name_of_set(bundle: ModelBundle, root: str) -> str:
    """The name to open a folder by: empty where it holds one prepared set, which knows its name."""
    trained = as_trained(bundle, "data", "name")
    try:
        alone = root and find_prepared(root) is not None
    except ValueError:  # it holds several
        alone = False
    return "" if alone else trained or "market1501"
