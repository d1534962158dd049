"""Triplet losses on Euclidean distance: the general form, and its batch and memory uses."""

import jax
import jax.numpy as jnp

from ccafl_jax.losses.reduction import camera_mask, camera_row_weights, of_rows, weighted_sum
from ccafl_jax.numerics import NEG, at_least_float32, einsum

_FLOOR = 1e-12  # of the squared distance: its square root has a finite gradient


def triplet(
    anchor: jax.Array,
    la: jax.Array,
    key: jax.Array,
    lk: jax.Array,
    pair_mask: jax.Array | None = None,
    row_weight: jax.Array | None = None,
    *,
    margin: float | None = 0.3,
) -> jax.Array:
    """max(0, farthest positive - nearest negative + margin), by anchor.

    Keys with the anchor's label are positives (an anchor that is also a key is a positive of
    itself), all others negatives. An anchor without a positive or without a negative adds 0.

    Args:
      anchor: float[batch, dim], not normalised here.
      la: int[batch], labels of the anchors.
      key: float[keys, dim]; pass it through stop_gradient when it is a memory.
      lk: int[keys], labels of the keys.
      pair_mask: bool[batch, keys], the keys an anchor sees; None for all.
      row_weight: float[batch]; None for the mean over all anchors, inactive ones included.
      margin: in units of distance; None: log(1 + exp(farthest - nearest)), which has no edge.

    Returns:
      Scalar loss.

    Source: Hermans et al., In Defense of the Triplet Loss, batch hard.
    """
    anchor, key = at_least_float32(anchor), at_least_float32(key)
    if anchor.shape[0] == 0 or key.shape[0] == 0:
        return jnp.zeros((), anchor.dtype)
    positive = la[:, None] == lk[None, :]  # [batch, keys]
    negative = ~positive
    if pair_mask is not None:
        positive, negative = positive & pair_mask, negative & pair_mask
    squared = jax.lax.stop_gradient(squared_distances(anchor, key))
    # The hardest keys are found in the matrix and measured again as differences: the matrix
    # cancels badly at small distances (an anchor's distance to itself comes out up to 5e-4).
    farthest = jnp.argmax(jnp.where(positive, squared, NEG), axis=1)
    nearest = jnp.argmin(jnp.where(negative, squared, -NEG), axis=1)
    gap = _distance(anchor, key[farthest]) - _distance(anchor, key[nearest])
    complete = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
    raw = jax.nn.softplus(gap) if margin is None else jax.nn.relu(gap + margin)
    loss = jnp.where(complete, raw, 0)
    if row_weight is None:
        return jnp.mean(loss)
    return weighted_sum(loss, row_weight)


def batch_triplet(
    f: jax.Array,
    label: jax.Array,
    valid: jax.Array | None = None,
    camera: jax.Array | None = None,
    *,
    margin: float | None = 0.3,
    reduce: str = "sum_cam_mean",
) -> jax.Array:
    """Batch-hard triplet over the batch, or inside each camera of it.

    Args:
      f: float[batch, dim].
      label: int[batch]; -1 drops the row.
      valid: bool[batch]; None for all.
      camera: int[batch]; given, triplets stay inside a camera and `reduce` applies; None, all
        rows see each other and the loss is the mean over rows that are not dropped.
      margin: in units of distance, or None, see `triplet`.
      reduce: reduction over cameras, see `camera_row_weights`.

    Returns:
      Scalar loss.

    Source: CCAFL as released: inside cameras in stage 2, over cluster labels in stage 3.
    """
    used = label >= 0 if valid is None else valid & (label >= 0)
    pairs = used[:, None] & used[None, :]
    if camera is None:
        weight = camera_row_weights(label, used, reduce="batch_mean")
    else:
        pairs &= camera[:, None] == camera[None, :]
        weight = camera_row_weights(camera, used, reduce=reduce)
    return triplet(f, label, f, label, pairs, weight, margin=margin)


def memory_triplet(
    f: jax.Array,
    y: jax.Array,
    cent: jax.Array,
    cam_of: jax.Array,
    valid: jax.Array | None = None,
    *,
    margin: float = 0.3,
    reduce: str = "sum_cam_mean",
) -> jax.Array:
    """Triplet of each row, its own centroid and the nearest other centroid of its camera.

    Args:
      f: float[batch, dim].
      y: int[batch], class.
      cent: float[classes, dim], centroids before this batch's update; held constant.
      cam_of: int[classes], camera of each class; -1 for a padded class.
      valid: bool[batch]; None for all.
      margin: in units of distance.
      reduce: reduction over cameras, see `camera_row_weights`.

    Returns:
      Scalar loss; a camera with one class adds 0.

    Source: CCAFL as released, stage 2.
    """
    camera = of_rows(cam_of, y)
    weight = camera_row_weights(camera, valid, reduce=reduce)
    classes = jnp.arange(cent.shape[0])
    pairs = camera_mask(camera, cam_of)
    return triplet(f, y, jax.lax.stop_gradient(cent), classes, pairs, weight, margin=margin)


def squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """Squared Euclidean distances, float[len(a), len(b)], never negative."""
    a, b = at_least_float32(a), at_least_float32(b)
    norms = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)[None, :]
    return jnp.maximum(norms - 2 * einsum("ad,bd->ab", a, b), 0)


def _distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Distance of paired rows, float[rows], with a floor that keeps its gradient finite."""
    difference = a - b
    return jnp.sqrt(jnp.maximum(jnp.sum(difference * difference, axis=1), _FLOOR))
