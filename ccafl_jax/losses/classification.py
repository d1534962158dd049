"""Cross-entropy with label smoothing, over all columns or over a subset that differs by row."""

import jax
import jax.numpy as jnp

from ccafl_jax.losses.reduction import one_hot_mask, pick, weighted_sum
from ccafl_jax.numerics import NEG, at_least_float32, einsum, masked_mean


def smoothed_cross_entropy(
    logits: jax.Array,
    target: jax.Array,
    col_mask: jax.Array | None = None,
    row_weight: jax.Array | None = None,
    *,
    eps: float = 0.1,
    denom: float | jax.Array | None = None,
) -> jax.Array:
    """Label-smoothed cross-entropy: targets (1 - eps) * one-hot + eps / denom on every column.

    Args:
      logits: float[batch, columns].
      target: int[batch]; -1 drops the row.
      col_mask: bool[batch, columns], columns that take part in a row; None for all.
      row_weight: float[batch]; None for the mean over rows that are not dropped.
      eps: smoothing mass.
      denom: the number that eps is divided by, a scalar or float[batch]. None: the number of
        columns that take part in the row. The published code divides by the constant 4821 in
        its inter-camera text loss, whatever the number of clusters.

    Returns:
      Scalar loss.

    Source: CLIP-ReID, image-to-text loss; CCAFL, the same inside cameras and over clusters.
    """
    logits = at_least_float32(logits)
    if col_mask is None:
        col_mask = jnp.ones(logits.shape, bool)
    masked = jnp.where(col_mask, logits, NEG)
    log_p = masked - jax.nn.logsumexp(masked, axis=1, keepdims=True)
    if denom is None:
        denom = jnp.maximum(jnp.sum(col_mask, axis=1), 1)
    own = one_hot_mask(target, logits.shape[1])
    everywhere = jnp.sum(jnp.where(col_mask, log_p, 0), axis=1)
    share = (jnp.asarray(eps, logits.dtype) / denom).astype(logits.dtype)
    loss = -(1 - eps) * pick(log_p, own) - share * everywhere  # [batch]
    if row_weight is None:
        return masked_mean(loss, target >= 0)
    return weighted_sum(loss, jnp.where(target >= 0, row_weight, 0))


def i2t_ce(
    g: jax.Array,
    T: jax.Array,
    target: jax.Array,
    col_mask: jax.Array | None = None,
    row_weight: jax.Array | None = None,
    *,
    eps: float = 0.1,
    denom: float | jax.Array | None = None,
) -> jax.Array:
    """Image-to-text cross-entropy: raw dot products of image and text features as logits.

    Inside cameras: `T` holds all classes, `col_mask` keeps each row to the classes of its
    camera, `row_weight` is `camera_row_weights`. Over clusters: `T` holds the cluster
    descriptions and `col_mask` the clusters in use.

    Args:
      g: float[batch, dim], image features in the joint space, not normalised.
      T: float[columns, dim], frozen text features, not normalised; held constant.
      target: int[batch]; -1 drops the row.
      col_mask: bool[batch, columns]; None for all.
      row_weight: float[batch]; None for the mean over rows that are not dropped.
      eps: smoothing mass.
      denom: see `smoothed_cross_entropy`.

    Returns:
      Scalar loss.

    Source: CCAFL, image-to-text losses of stages 2 and 3.
    """
    logits = einsum("bd,nd->bn", g, jax.lax.stop_gradient(T))
    return smoothed_cross_entropy(logits, target, col_mask, row_weight, eps=eps, denom=denom)
