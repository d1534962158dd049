"""Which rows and columns of a loss count, and for how much.

The objectives of camera-wise learning are sums over cameras of means over the rows of a camera.
They are computed without a loop over cameras: a mask keeps each row's columns to its own camera,
and a weight per row turns the weighted sum of all rows into the sum of the means.
"""

import jax
import jax.numpy as jnp

from ccafl_jax.numerics import NEG

REDUCTIONS = ("sum_cam_mean", "mean_cam_mean", "batch_mean")


def camera_row_weights(
    camera: jax.Array, valid: jax.Array | None = None, *, reduce: str = "sum_cam_mean"
) -> jax.Array:
    """Weight of each row such that the weighted sum of row losses is the chosen reduction.

    Args:
      camera: int[batch], camera of each row.
      valid: bool[batch], rows that count; None for all.
      reduce: "sum_cam_mean" (sum over the present cameras of each camera's mean),
        "mean_cam_mean" (the mean of those means) or "batch_mean" (plain mean over valid rows).

    Returns:
      float[batch] of the default float type; 0 where not valid, all 0 when nothing is valid.

    Raises:
      ValueError: `reduce` is not one of the three.

    Source: CCAFL, stage-2 objective (sum over cameras); the other two are options.
    """
    check_option("reduce", reduce, REDUCTIONS)
    valid = jnp.ones(camera.shape, bool) if valid is None else valid
    # The default float type is float64 under x64, so that 1/3 is not rounded to float32 there.
    weight = valid.astype(jnp.result_type(float))
    if reduce == "batch_mean":
        return weight / jnp.maximum(jnp.sum(weight), 1)
    same = (camera[:, None] == camera[None, :]) & valid[None, :]  # [batch, batch]
    weight = weight / jnp.maximum(jnp.sum(same, axis=1), 1)
    if reduce == "sum_cam_mean":
        return weight
    # The weights of one camera sum to 1, so their total is the number of cameras present.
    return weight / jnp.maximum(jnp.sum(weight), 1)


def camera_mask(camera: jax.Array, cam_of: jax.Array) -> jax.Array:
    """Classes of each row's own camera.

    Args:
      camera: int[batch], camera of each row.
      cam_of: int[classes], camera of each class; -1 for a padded class.

    Returns:
      bool[batch, classes].
    """
    return camera[:, None] == cam_of[None, :]


def of_rows(table: jax.Array, label: jax.Array) -> jax.Array:
    """The entry of a per-class table at each row's label; also for a numpy table under jit."""
    return jnp.asarray(table)[label]


def weighted_sum(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Sum of `weight * values` over rows of positive weight, in the dtype of `values`.

    Args:
      values: float[batch], loss of each row.
      weight: float[batch], weight of each row; rows of weight 0 are left out.
    """
    weight = weight.astype(values.dtype)
    return jnp.sum(jnp.where(weight > 0, values, 0) * weight)


def one_hot_mask(label: jax.Array, columns: int) -> jax.Array:
    """bool[batch, columns], True at each row's label; a row with label -1 has no True."""
    return label[:, None] == jnp.arange(columns)[None, :]


def pick(values: jax.Array, own: jax.Array) -> jax.Array:
    """The entry of each row marked by `own` (a select and a sum: no scatter in its gradient).

    Args:
      values: float[batch, columns].
      own: bool[batch, columns], at most one True per row.

    Returns:
      float[batch]; 0 where a row has no True.
    """
    return jnp.sum(jnp.where(own, values, 0), axis=1)


def masked_cross_entropy(logits: jax.Array, own: jax.Array, mask: jax.Array) -> jax.Array:
    """Cross-entropy of each row over the columns of its mask.

    Args:
      logits: float[batch, columns].
      own: bool[batch, columns], the target; a column inside the mask.
      mask: bool[batch, columns], the columns of the softmax.

    Returns:
      float[batch]; exactly 0, with zero gradient, where the target is the only column.
    """
    total = jax.nn.logsumexp(jnp.where(mask, logits, NEG), axis=1)
    return total - pick(logits, own)


def check_option(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError when `value` is not one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")
