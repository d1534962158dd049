"""Features of tracklets by a model of clips."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ccafl_jax.data.clips import Clips, segment_means
from ccafl_jax.data.records import Records
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.forward import DTYPES, abstract_model
from ccafl_jax.models.layers import Compute
from ccafl_jax.options import require_choice
from ccafl_jax.training.features import clip_extractor, unit_rows
from ccafl_jax.training.inputs import StreamedImages
from ccafl_jax.training.sharding import make_mesh, replicate

FRAMES = 8
"""Of a clip, where the model does not say what it was trained with."""


def frames_of(bundle: ModelBundle) -> int:
    """Frames of the clips that a model was trained with."""
    return bundle.recipe.get("config", {}).get("clips", {}).get("frames", FRAMES)


def embed_clips(
    bundle: ModelBundle,
    records: Records,
    clips: Clips,
    cameras: np.ndarray | None,
    *,
    batch: int = 128,
    compute_dtype: str = "float32",
) -> np.ndarray:
    """Features of tracklets: means over their clips at unit length.

    All clips go through one compiled program, whatever tracklets they are of.

    Args:
      bundle: with a video model.
      records: of the frames.
      clips: of the tracklets; each has one or more.
      cameras: int[frames], rows of the model's camera embedding; None where it has none.
      batch: images a call.
      compute_dtype: dtype inside the encoder, "float32" or "bfloat16".

    Returns:
      float32[tracklets, dim].

    Raises:
      ValueError: another dtype.
    """
    require_choice("compute_dtype", compute_dtype, DTYPES)
    abstract = abstract_model(bundle.model, compute=Compute(dtype=jnp.dtype(compute_dtype)))
    graphdef = nnx.split(abstract, nnx.Param, nnx.BatchStat)[0]
    mesh, preprocess = make_mesh(local=True), bundle.preprocess
    extract = clip_extractor(
        graphdef,
        "embed",
        frames=clips.rows.shape[1],
        mean=tuple(preprocess.mean),
        std=tuple(preprocess.std),
        batch=batch,
        mesh=mesh,
        description="features",
    )
    images = StreamedImages(records, mesh, pixels=preprocess.pixels)
    arrays = replicate((dict(bundle.params), dict(bundle.batch_stats)), mesh)
    values = np.asarray(extract(*arrays, images, cameras, chosen=clips.rows))
    means = segment_means(values, clips.tracklet, int(clips.tracklet.max()) + 1)
    return unit_rows(means)
