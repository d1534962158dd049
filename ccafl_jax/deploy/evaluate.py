"""Figures of a trained model on a test set."""

import pathlib

import numpy as np

from ccafl_jax.data.market1501 import load_market1501
from ccafl_jax.data.records import ReIDDataset
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.training.features import query_then_gallery, score


def evaluate_bundle(
    bundle: ModelBundle,
    *,
    root: str = "",
    batch: int = 128,
    compute_dtype: str = "float32",
    no_match: str = "skip",
) -> dict[str, float]:
    """Figures of a model on a test set in Market-1501 layout.

    Args:
      bundle: the model.
      root: folder of the data set; default: the one it was trained on.
      batch: images a call of the encoder.
      compute_dtype: dtype inside the encoder, "float32" or "bfloat16".
      no_match: see :func:`ccafl_jax.evaluation.ranking.rank`.

    Raises:
      ValueError: no data set is known, or it has cameras that the model does not know.
    """
    root = root or bundle.data_root
    if not root:
        raise ValueError(f"{bundle.source} names no data set: pass --root DIR")
    if not pathlib.Path(root).is_dir():
        raise FileNotFoundError(f"no folder {root} with the data set: pass --root DIR")
    dataset = load_market1501(root, for_training=False)
    paths = np.concatenate([dataset.query.path, dataset.gallery.path])
    camid = query_then_gallery(dataset)[1]
    cameras = camera_rows(bundle, dataset)[camid] if bundle.model.heads.cameras else None
    model = Embedder(bundle, batch=batch, compute_dtype=compute_dtype, devices=0)
    return score(model.embed(list(paths), cameras), dataset, no_match=no_match)


def camera_rows(bundle: ModelBundle, dataset: ReIDDataset) -> np.ndarray:
    """Row of the model's camera embedding for each camera of a data set.

    Cameras are matched by the numbers that data sets write, so a folder that lacks some of them
    still meets the right rows.

    Args:
      bundle: a model with a camera embedding.
      dataset: read from a folder.

    Returns:
      int32[cameras of the data set].

    Raises:
      ValueError: a camera that the model does not know.
    """
    count = bundle.model.heads.cameras
    known = list(bundle.camera_codes) or list(range(1, count + 1))
    unknown = sorted(set(dataset.camera_codes) - set(known))
    if unknown:
        raise ValueError(
            f"{dataset.root} has the cameras {unknown}, which the model's camera embedding does "
            f"not know (it knows {known}): evaluate it on the data set it was trained on"
        )
    return np.array([known.index(code) for code in dataset.camera_codes], np.int32)
