"""What the test features of a run tell of persons and of cameras."""

from typing import Any

import jax
import numpy as np

from ccafl_jax.data.records import ReIDDataset
from ccafl_jax.evaluation.camera_bias import other_camera_auc, same_camera_base_rate
from ccafl_jax.evaluation.camera_probes import camera_probes
from ccafl_jax.memory import centered_by_group
from ccafl_jax.training.features import query_then_gallery, score


def measures(features: jax.Array, dataset: ReIDDataset) -> dict[str, Any]:
    """Figures of retrieval and of camera bias.

    Args:
      features: float[queries + gallery, dim].
      dataset: records of both; junk and distractors count for retrieval only.

    Returns:
      `mAP`, `rank1`; `mAP_centered`, `rank1_centered` after each camera's mean feature is taken
      off; `camera_auc`, see `other_camera_auc`; `same_camera_share` of the five nearest strangers
      and `same_camera_ratio`, over what chance gives; `probe_linear`, `probe_knn`,
      `probe_chance`: balanced accuracy of reading the camera.
    """
    pid, camid = query_then_gallery(dataset)
    plain = score(features, dataset)
    centered = score(centered_by_group(features, camid), dataset)
    people = np.flatnonzero(np.isin(pid, dataset.query.pid))
    f, pid, camid = np.asarray(features)[people], pid[people], camid[people]
    probes = camera_probes(f, pid, camid)
    return {
        "mAP": plain["mAP"],
        "rank1": plain["rank1"],
        "mAP_centered": centered["mAP"],
        "rank1_centered": centered["rank1"],
        "camera_auc": other_camera_auc(f, pid, camid),
        "same_camera_share": plain["same_camera_share"],
        "same_camera_ratio": plain["same_camera_share"] / same_camera_base_rate(pid, camid),
        **{f"probe_{name}": value for name, value in probes.items()},
    }
