"""Intra-camera discriminative learning (ICDL) against a memory of centroids and instances."""

import jax
import jax.numpy as jnp

from ccafl_jax.losses.reduction import (
    camera_mask,
    camera_row_weights,
    masked_cross_entropy,
    of_rows,
    one_hot_mask,
    weighted_sum,
)
from ccafl_jax.numerics import NEG, einsum, split_einsum


def icdl(
    f: jax.Array,
    y: jax.Array,
    cent: jax.Array,
    inst: jax.Array,
    cam_of: jax.Array,
    valid: jax.Array | None = None,
    *,
    tau: float = 0.05,
    w: float = 0.6,
    instance_valid: jax.Array | None = None,
    reduce: str = "sum_cam_mean",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Centroid contrast plus hardest-instance contrast, both over the row's own camera.

    The instance term sees one similarity per class: the smallest of its own class (hardest
    positive) and the largest of every other class (hardest negative).

    Args:
      f: float[batch, dim], L2-normalised.
      y: int[batch], class.
      cent: float[classes, dim], L2-normalised centroids; held constant.
      inst: float[classes, slots, dim], L2-normalised instances; held constant.
      cam_of: int[classes], camera of each class; -1 for a padded class.
      valid: bool[batch]; None for all.
      tau: softmax temperature of both terms.
      w: weight of the centroid term; the instance term has 1 - w.
      instance_valid: bool[classes, slots], slots in use; None for all.
      reduce: reduction over cameras, see `camera_row_weights`.

    Returns:
      Scalar loss, and the two unweighted terms as {"cen", "ins"}.

    Source: CCAFL, ICDL; hybrid memory of HHCL (Hu et al.) kept inside a camera.
    """
    camera = of_rows(cam_of, y)
    same = camera_mask(camera, cam_of)  # [batch, classes]
    own = one_hot_mask(y, cent.shape[0])
    weight = camera_row_weights(camera, valid, reduce=reduce)

    to_centroid = einsum("bd,nd->bn", f, jax.lax.stop_gradient(cent)) / tau
    centroid_term = weighted_sum(masked_cross_entropy(to_centroid, own, same), weight)

    used = jnp.ones(inst.shape[:2], bool) if instance_valid is None else instance_valid
    hardest = _hardest(f, jax.lax.stop_gradient(inst), own, used) / tau
    if instance_valid is not None:
        has_instance = jnp.any(used, axis=1)  # [classes]
        same &= has_instance
        weight = jnp.where(of_rows(has_instance, y), weight, 0)
    instance_term = weighted_sum(masked_cross_entropy(hardest, own, same), weight)

    loss = w * centroid_term + (1 - w) * instance_term
    return loss, {"cen": centroid_term, "ins": instance_term}


@jax.custom_vjp
def _hardest(f: jax.Array, inst: jax.Array, own: jax.Array, used: jax.Array) -> jax.Array:
    """Similarity with the farthest instance of the own class and the nearest of every other.

    Only `f` has a gradient, through one slot of a class; among equal ones the first counts, as in
    the published code. Forward-mode derivatives are not to be had.

    Args:
      f: float[batch, dim].
      inst: float[classes, slots, dim].
      own: bool[batch, classes].
      used: bool[classes, slots]; a class without any gets a stand-in for infinity.

    Returns:
      float[batch, classes].
    """
    return _hardest_forward(f, inst, own, used)[0]


def _hardest_forward(f, inst, own, used):
    # With the batch last, the bank is read as it lies: otherwise it would be copied, transposed.
    similarity = split_einsum("nsd,bd->nsb", inst, f)
    sign = jnp.where(own.T, -1, 1).astype(similarity.dtype)  # [classes, batch]
    hardness = jnp.where(used[:, :, None], similarity * sign[:, None, :], NEG)
    hardest = jnp.max(hardness, axis=1) * sign
    return hardest.T, (f, inst, jnp.argmax(hardness, axis=1))


def _hardest_backward(kept, gradient):
    f, inst, slot = kept  # slot: int[classes, batch]
    chosen = slot[:, None, :] == jnp.arange(inst.shape[1])[None, :, None]
    weight = jnp.where(chosen, gradient.T[:, None, :], 0)  # [classes, slots, batch]
    return einsum("nsb,nsd->bd", weight, inst).astype(f.dtype), None, None, None


_hardest.defvjp(_hardest_forward, _hardest_backward)
