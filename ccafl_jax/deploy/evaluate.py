"""Figures of a trained model on a test set."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ccafl_jax.data.market1501 import load_market1501
from ccafl_jax.data.records import ReIDDataset
from ccafl_jax.data.sources import load_images
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.forward import abstract_model
from ccafl_jax.models.layers import Compute
from ccafl_jax.training.features import feature_extractor, query_then_gallery, score
from ccafl_jax.training.sharding import make_mesh, replicate


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
    dataset = load_market1501(root, for_training=False)
    preprocess = bundle.preprocess
    paths = np.concatenate([dataset.query.path, dataset.gallery.path])
    watched = sys.stderr.isatty()  # no bar in log files
    images = load_images(paths, preprocess.height, preprocess.width, progress=watched)
    cameras = camera_rows(bundle, dataset)[query_then_gallery(dataset)[1]]
    features = extract_features(bundle, images, cameras, batch=batch, compute_dtype=compute_dtype)
    return score(features, dataset, no_match=no_match)


def extract_features(
    bundle: ModelBundle,
    images: np.ndarray,
    cameras: np.ndarray,
    *,
    batch: int = 128,
    compute_dtype: str = "float32",
) -> jax.Array:
    """Retrieval features on all devices: uint8[n, height, width, 3] -> float32[n, dim].

    Args:
      bundle: the model.
      images: of its size.
      cameras: int[n]; read by models with a camera embedding only.
      batch: images a call of the encoder.
      compute_dtype: dtype inside the encoder.
    """
    compute = Compute(dtype=jnp.dtype(compute_dtype))
    abstract = abstract_model(bundle.model, compute=compute)
    graphdef = nnx.split(abstract, nnx.Param, nnx.BatchStat)[0]
    mesh = make_mesh()
    params, batch_stats = replicate((bundle.params, bundle.batch_stats), mesh)
    extract = feature_extractor(
        graphdef,
        "embed",
        mean=bundle.preprocess.mean,
        std=bundle.preprocess.std,
        batch=batch,
        mesh=mesh,
        description="features",
    )
    return extract(params, batch_stats, images, cameras)


def camera_rows(bundle: ModelBundle, dataset: ReIDDataset) -> np.ndarray:
    """Row of the model's camera embedding for each camera of a data set.

    Cameras are matched by the numbers that data sets write, so a folder that lacks some of them
    still meets the right rows.

    Returns:
      int32[cameras of the data set]; zeros for a model without a camera embedding.

    Raises:
      ValueError: a camera that the model does not know.
    """
    count = bundle.model.heads.cameras
    if not count:
        return np.zeros(len(dataset.camera_codes), np.int32)
    known = list(bundle.camera_codes) or list(range(1, count + 1))
    unknown = sorted(set(dataset.camera_codes) - set(known))
    if unknown:
        raise ValueError(
            f"{dataset.root} has the cameras {unknown}, which the model's camera embedding does "
            f"not know (it knows {known}): evaluate it on the data set it was trained on"
        )
    return np.array([known.index(code) for code in dataset.camera_codes], np.int32)
