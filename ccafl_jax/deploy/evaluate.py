"""Figures of a trained model on a test set."""

import pathlib

import numpy as np

from ccafl_jax.data.decoded import ImageSequence
from ccafl_jax.data.layouts import require_images
from ccafl_jax.data.opening import open_dataset
from ccafl_jax.data.prepared import find_prepared
from ccafl_jax.data.records import ReIDDataset
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.training.features import query_then_gallery, score


def evaluate_bundle(
    bundle: ModelBundle,
    *,
    name: str = "",
    root: str = "",
    batch: int = 128,
    compute_dtype: str = "float32",
    no_match: str = "skip",
    distractors: bool = False,
) -> dict[str, float | str]:
    """Figures of a model on the test set of a data set.

    Args:
      bundle: the model.
      name: of the data set; default: that of a prepared set, else the one it was trained on,
        else `market1501`.
      root: its folder, raw or prepared; default: the one it was trained on.
      batch: images a call of the encoder.
      compute_dtype: dtype inside the encoder, "float32" or "bfloat16".
      no_match: see :func:`ccafl_jax.evaluation.ranking.rank`.
      distractors: join the data set's part of distractors to the gallery.

    Raises:
      ValueError: no data set is known, or it has cameras that the model does not know.
    """
    name = name or _name_of_set(bundle, root)
    root = root or bundle.data_root
    if not root:
        raise ValueError(f"{bundle.source} names no data set: pass --root DIR")
    if not pathlib.Path(root).exists():
        raise FileNotFoundError(f"no folder {root} with the data set: pass --root DIR")
    dataset = open_dataset(name, root, **({"distractors": True} if distractors else {}))
    require_images(dataset.name, "this evaluation")
    if not (len(dataset.query) and len(dataset.gallery)):
        raise ValueError(f"{dataset.root} has no test set: queries and a gallery are needed")
    camid = query_then_gallery(dataset)[1]
    if bundle.model.heads.cameras and np.any(camid < 0):
        raise ValueError(
            f"{int(np.sum(camid < 0))} images of {dataset.root} have no camera, and the model has "
            "a camera embedding: leave them out (distractors, for one)"
        )
    cameras = camera_rows(bundle, dataset)[camid] if bundle.model.heads.cameras else None
    model = Embedder(bundle, batch=batch, compute_dtype=compute_dtype, devices=0)
    pixels = PixelFormat(model.preprocess.height, model.preprocess.width)
    images = ImageSequence(dataset.query.join(dataset.gallery), pixels)
    return score(model.embed(images, cameras), dataset, no_match=no_match)


def _name_of_set(bundle: ModelBundle, root: str) -> str:
    """The name to open a folder by: empty where it holds one prepared set, which knows its name."""
    trained = bundle.recipe.get("config", {}).get("data", {}).get("name", "market1501")
    try:
        alone = root and find_prepared(root) is not None
    except ValueError:  # it holds several
        alone = False
    return "" if alone else trained


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
