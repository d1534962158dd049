"""Features of a resident image set: fixed-size batches, one compilation per model."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from ccafl_jax.training.sharding import shard_rows
from ccafl_jax.training.state import FlatDict, merge_model

Extractor = Callable[..., jax.Array]


def make_extractor(
    graphdef: nnx.GraphDef,
    forward: Callable[[nnx.Module, jax.Array, jax.Array], jax.Array],
    *,
    batch: int,
    mesh: Mesh,
    description: str = "features",
) -> Extractor:
    """Builds `extract(params, batch_stats, images, cameras=None) -> float[n, dim]`.

    Args:
      graphdef: of the model.
      forward: (model, uint8[b, H, W, 3], int32[b]) -> float[b, dim]; normalisation is its
        business. The integers are cameras, 0 where none are given.
      batch: images per call; rounded up to a multiple of the mesh size. The last batch is filled
        with repeats of image 0 whose rows are thrown away.
      mesh: the devices.
      description: of the progress bar, which appears when there are many batches.

    Returns:
      A function of (params, batch_stats, uint8[n, H, W, 3], int[n] or None); its result lies on
      the host's default device in the order of the images.
    """
    size = mesh.devices.size
    batch = -(-batch // size) * size

    @jax.jit
    def step(params, batch_stats, images, cameras):
        return forward(merge_model(graphdef, params, batch_stats), images, cameras)

    def extract(
        params: FlatDict,
        batch_stats: FlatDict,
        images: jax.Array | np.ndarray,
        cameras: np.ndarray | None = None,
    ) -> jax.Array:
        count = images.shape[0]
        cameras = np.zeros(count, np.int32) if cameras is None else np.asarray(cameras, np.int32)
        if count == 0:
            raise ValueError("no images to extract features from")
        starts = range(0, count, batch)
        parts = []
        for start in tqdm(starts, desc=description, leave=False, disable=len(starts) < 50):
            rows = np.arange(start, start + batch)
            rows = np.where(rows < count, rows, 0).astype(np.int32)
            # A host array sends one batch at a time; a resident one is gathered where it lies.
            taken = shard_rows(images[rows], mesh), shard_rows(cameras[rows], mesh)
            parts.append(step(params, batch_stats, *taken))
        return jnp.concatenate(parts)[:count]

    return extract
