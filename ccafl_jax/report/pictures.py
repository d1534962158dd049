"""Test images as small JPEG files, and what a model looks at in them."""

import functools
import io
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax import numerics
from ccafl_jax.data.augment import normalize
from ccafl_jax.data.decoded import decode_rows
from ccafl_jax.data.records import Collection, Records, tracklets
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.features import camera_rows
from ccafl_jax.deploy.forward import abstract_model, all_arrays, shapes_of
from ccafl_jax.options import require
from ccafl_jax.scoring.feature_set import (
    DISTRACTOR,
    MULTI_QUERY,
    FeatureSet,
    parts_to_embed,
)
from ccafl_jax.training.state import merge_model

HEIGHT = 128
"""Pixels of a picture on the page."""
_WIDEST = 192
_QUALITY = 82
_OVERLAY = 0.55  # of the colours over the image


class TestImages:
    """The images that the rows of a set of features are of; of a tracklet its middle frame."""

    def __init__(self, features: FeatureSet, collection: Collection):
        """Args:
        features: of the test set.
        collection: the data set.

        Raises:
          ValueError: the features are of other images.
        """
        meta = features.meta
        selection = {name: meta[name] for name in ("split", "orientation") if name in meta}
        parts = parts_to_embed(
            collection,
            distractors=bool(np.any(features.part == DISTRACTOR)),
            multi_query=bool(np.any(features.part == MULTI_QUERY)),
            **selection,
        )
        chosen = [
            records.take(_middle(records) if meta.get("unit") == "tracklet" else slice(None))
            for records in parts.values()
        ]
        self.records = functools.reduce(Records.join, chosen)
        require(
            len(self.records) == len(features) and np.array_equal(self.records.pid, features.pid),
            f"the features are of {len(features)} items, {collection.root} has "
            f"{len(self.records)} others: extract them again",
        )

    def pixels(self, rows: Sequence[int], *, height: int, width: int) -> np.ndarray:
        """uint8[k, height, width, 3] of the rows of the features."""
        return decode_rows(self.records, np.asarray(rows), PixelFormat(height, width))


def _middle(records: Records) -> np.ndarray:
    table = tracklets(records)
    return table.start + table.count // 2


def shown_width(height: int, width: int) -> int:
    """Pixels that a picture of `HEIGHT` is wide, for the proportions that the model knows."""
    return min(_WIDEST, max(1, round(HEIGHT * width / height)))


def jpeg(pixels: np.ndarray) -> bytes:
    """A JPEG file of uint8[height, width, 3]."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return stream.getvalue()


def activation_maps(
    bundle: ModelBundle, pixels: np.ndarray, kinds: np.ndarray | None
) -> np.ndarray:
    """Lengths of the feature vectors at each place of the last map: float32[n, rows, columns].

    Args:
      bundle: the model.
      pixels: uint8[n, height, width, 3], of the model's size.
      kinds: int[n], what the model is told of each image; None where it takes nothing.
    """
    given = None if kinds is None else jnp.asarray(kinds, jnp.int32)
    return np.asarray(_activations(bundle)(all_arrays(bundle), jnp.asarray(pixels), given))


def _activations(bundle: ModelBundle) -> Callable[..., jax.Array]:
    from flax import nnx

    abstract = abstract_model(bundle.model)
    graphdef = nnx.split(abstract, nnx.Param, nnx.BatchStat)[0]
    statistics = shapes_of(abstract, nnx.BatchStat).keys()
    mean, std = tuple(bundle.preprocess.mean), tuple(bundle.preprocess.std)

    @jax.jit
    def activations(arrays, images, kinds):
        params = {path: x for path, x in arrays.items() if path not in statistics}
        batch_stats = {path: x for path, x in arrays.items() if path in statistics}
        model = merge_model(graphdef, params, batch_stats)
        found = model.last_map(normalize(images, mean, std, dtype=jnp.float32), kinds)
        found = numerics.at_least_float32(found)
        return jnp.sqrt(jnp.sum(found * found, axis=-1))

    return activations


def kinds_of(bundle: ModelBundle, collection: Collection, records: Records) -> np.ndarray | None:
    """What a model is told of images, int32[n]: cameras or modalities; None where it takes neither.

    Raises:
      ValueError: a camera that the model does not know.
    """
    if bundle.model.dual_stream:
        return records.modality.astype(np.int32)
    if not bundle.model.cameras:
        return None
    return camera_rows(bundle, collection)[records.camid]


def overlay(pixels: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """An image under the colours of its activation, dark for the least and bright for the most.

    Args:
      pixels: uint8[height, width, 3].
      activation: float[rows, columns].

    Returns:
      uint8[height, width, 3].
    """
    import matplotlib
    from PIL import Image

    low, high = float(activation.min()), float(activation.max())
    scaled = (activation - low) / max(high - low, 1e-12)
    size = pixels.shape[1], pixels.shape[0]
    smooth = Image.fromarray(scaled.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    colours = matplotlib.colormaps["inferno"](np.clip(np.asarray(smooth), 0, 1))[..., :3]
    grey = pixels.astype(np.float32).mean(axis=-1, keepdims=True)
    mixed = (1 - _OVERLAY) * grey + _OVERLAY * 255 * colours
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
