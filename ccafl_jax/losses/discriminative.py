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

    to_instance = _similarities(jax.lax.stop_gradient(inst), f) / tau
    if instance_valid is None:
        nearest, farthest = jnp.max(to_instance, axis=1).T, jnp.min(to_instance, axis=1).T
    else:
        used = instance_valid[:, :, None]
        nearest = jnp.max(jnp.where(used, to_instance, NEG), axis=1).T
        farthest = jnp.min(jnp.where(used, to_instance, -NEG), axis=1).T
        has_instance = jnp.any(instance_valid, axis=1)  # [classes]
        same &= has_instance
        weight = jnp.where(of_rows(has_instance, y), weight, 0)
    hardest = jnp.where(own, farthest, nearest)  # [batch, classes]
    instance_term = weighted_sum(masked_cross_entropy(hardest, own, same), weight)

    loss = w * centroid_term + (1 - w) * instance_term
    return loss, {"cen": centroid_term, "ins": instance_term}


@jax.custom_vjp
def _similarities(inst: jax.Array, f: jax.Array) -> jax.Array:
    """Of every instance with every row: float[classes, slots, batch]. Only `f` has a gradient.

    With the batch last, the bank is read as it lies: otherwise it would be copied, transposed. The
    product is faster when split, and the one of its gradient is not.
    """
    return split_einsum("nsd,bd->nsb", inst, f)


def _similarities_forward(inst, f):
    return _similarities(inst, f), (inst, f)


def _similarities_backward(kept, gradient):
    inst, f = kept
    return None, einsum("nsb,nsd->bd", gradient, inst).astype(f.dtype)


_similarities.defvjp(_similarities_forward, _similarities_backward)
