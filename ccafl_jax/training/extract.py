"""Features of an image set: fixed-size batches, one compilation per model."""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from ccafl_jax.training.inputs import ImageInput, ResidentImages, StreamedImages
from ccafl_jax.training.sharding import host_local, shard_rows
from ccafl_jax.training.state import FlatDict, merge_model

Extractor = Callable[..., jax.Array]
_RUNNING = 4  # batches on their way, enough to keep a device busy and few enough to stop soon


class Stopped(Exception):
    """Extraction was left because its caller asked for it."""


def make_extractor(
    graphdef: nnx.GraphDef,
    forward: Callable[[nnx.Module, jax.Array, jax.Array], jax.Array],
    *,
    batch: int,
    mesh: Mesh,
    frames: int = 0,
    description: str = "features",
) -> Extractor:
    """Builds `extract(params, batch_stats, images, cameras=None, stop=None) -> float[n, dim]`.

    Args:
      graphdef: of the model.
      forward: (model, uint8[b, H, W, 3], int32[b]) -> float[b, dim]; normalisation is its
        business. The integers are cameras, 0 where none are given.
      batch: images (or clips) per call; rounded up to a multiple of the mesh size. The last batch
        is filled with repeats of the last image, whose rows are thrown away.
      mesh: the devices.
      frames: of a clip: `forward` then takes uint8[b, frames, H, W, 3] and the cameras of clips,
        and `extract` needs `chosen`. 0 for single images.
      description: of the progress bar, which appears when there are many batches.

    Returns:
      A function of params, batch_stats, images (an `ImageInput` on the same mesh, or uint8[n, H,
      W, 3]: on the host, from where one batch after the other is sent, or on devices), cameras
      (int[n] or None, by image), `chosen` (int[k], which of the images, in which order; None for
      all; of clips int[k, frames]) and `stop`. The result is in the order of the images or clips;
      where the mesh spans processes, each has all of it on its default device. `stop() -> bool` is
      called before each batch; True raises `Stopped`, and processes must agree about it.
    """
    size = mesh.devices.size
    batch = -(-batch // size) * size
    shared = mesh.is_multi_process

    def forward_batch(params, batch_stats, images, cameras):
        if frames:
            images = images.reshape(-1, frames, *images.shape[1:])
        return forward(merge_model(graphdef, params, batch_stats), images, cameras)

    # What other processes hold cannot be read: there every device gets the features of all.
    everywhere = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(forward_batch, **({"out_shardings": everywhere} if shared else {}))

    def extract(
        params: FlatDict,
        batch_stats: FlatDict,
        images: ImageInput | jax.Array | np.ndarray,
        cameras: np.ndarray | None = None,
        *,
        chosen: np.ndarray | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> jax.Array:
        count = images.shape[0]
        if count == 0:
            raise ValueError("no images to extract features from")
        cameras = np.zeros(count, np.int32) if cameras is None else np.asarray(cameras, np.int32)
        wanted = count if chosen is None else len(chosen)
        steps = -(-wanted // batch)
        parts = []
        if frames:
            chosen = np.ravel(chosen)
        together = max(frames, 1)
        source = _as_input(images, mesh)
        with contextlib.closing(source.in_order(batch * together, chosen)) as batches:
            for pixels, rows in tqdm(
                batches, total=steps, desc=description, leave=False, disable=steps < 50
            ):
                if stop():
                    raise Stopped(f"{description}: stopped after {len(parts)} of {steps} batches")
                camera = shard_rows(cameras[rows[::together]], mesh)
                parts.append(step(params, batch_stats, pixels, camera))
                if len(parts) > _RUNNING:
                    parts[-1 - _RUNNING].block_until_ready()
        if shared:
            parts = [host_local(part) for part in parts]
        return jnp.concatenate(parts)[:wanted]

    return extract


def _as_input(images: ImageInput | jax.Array | np.ndarray, mesh: Mesh) -> ImageInput:
    if isinstance(images, ImageInput):
        return images
    kind = ResidentImages if isinstance(images, jax.Array) else StreamedImages
    return kind(images, mesh)
