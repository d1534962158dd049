"""Figures of test features under the protocols of SYSU-MM01 and RegDB."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ccafl_jax.data.layouts import layout_of
from ccafl_jax.data.layouts.regdb import select_regdb
from ccafl_jax.data.records import ReIDDataset
from ccafl_jax.evaluation.camera_bias import same_camera_share
from ccafl_jax.evaluation.protocols import CHOICES
from ccafl_jax.methods.cclnet.config import EvaluationConfig
from ccafl_jax.scoring.evaluate import evaluate
from ccafl_jax.scoring.feature_set import feature_set


def protocol_name(dataset: str) -> str:
    """Whose protocol a data set of visible and infrared images is scored by."""
    return "regdb" if layout_of(dataset).select is select_regdb else "sysumm01"


def score(
    features: np.ndarray,
    dataset: ReIDDataset,
    config: EvaluationConfig,
    *,
    tables: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Ranking metrics of test features.

    Args:
      features: float[queries + gallery, dim], of all test images.
      dataset: records of both.
      config: options.
      tables: of the data set, for official draws.

    Returns:
      mAP, mINP and ranks, of SYSU-MM01 means over the draws with their standard deviations
      (`NAME_std`), of RegDB those of `config.direction`, with both directions by name;
      `same_camera_share` and `same_modality_share`: of the five nearest images of other identities,
      the share from the image's own camera, and modality.
    """
    test = dataset.query.join(dataset.gallery)
    name = protocol_name(dataset.name)
    found = feature_set(
        {"test": test},
        np.asarray(features),
        dataset=name,
        camera_codes=dataset.camera_codes,
        tables=tables,
    )
    if name == "regdb":
        directions = {
            direction: _figures(found, config, name, direction=direction)
            for direction in CHOICES["direction"]
        }
        figures = directions[config.direction] | {"directions": directions}
    else:
        options = {key: getattr(config, key) for key in ("mode", "shots", "draw", "trials")}
        figures = _figures(found, config, name, **options)
    shares = {
        key: same_camera_share(features, test.pid, group.astype(np.int32))
        for key, group in (
            ("same_camera_share", test.camid),
            ("same_modality_share", test.modality),
        )
    }
    return {"dataset": dataset.name, **figures, **shares}


def _figures(found, config: EvaluationConfig, protocol: str, **options: Any) -> dict[str, float]:
    result = evaluate(found, protocol=protocol, no_match=config.no_match, **options)
    return {key: float(x) for key, x in result.figures.items() if isinstance(x, float)}
