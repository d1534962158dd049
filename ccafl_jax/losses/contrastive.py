"""Contrastive losses: image-text supervised contrast and contrast with cluster centroids."""

import jax
import jax.numpy as jnp

from ccafl_jax.losses.reduction import (
    camera_row_weights,
    check_option,
    masked_cross_entropy,
    of_rows,
    one_hot_mask,
    weighted_sum,
)
from ccafl_jax.numerics import NEG, at_least_float32, einsum, masked_mean

SCOPES = ("camera", "batch")


def supcon(
    anchor: jax.Array,
    key: jax.Array,
    anchor_label: jax.Array,
    key_label: jax.Array,
    pair_mask: jax.Array | None = None,
    row_weight: jax.Array | None = None,
    *,
    temp: float = 1.0,
) -> jax.Array:
    """Supervised contrast of anchors with keys: mean log-probability of each anchor's positives.

    Raw dot products, nothing is normalised. Keys that carry the anchor's label are its positives;
    repeated keys count each time. An anchor without a positive contributes 0.

    Args:
      anchor: float[batch, dim].
      key: float[keys, dim].
      anchor_label: int[batch].
      key_label: int[keys].
      pair_mask: bool[batch, keys], the keys an anchor sees; None for all.
      row_weight: float[batch]; None for the mean over anchors that have a positive.
      temp: softmax temperature.

    Returns:
      Scalar loss.

    Source: Khosla et al., Supervised Contrastive Learning, eq. 2, as CLIP-ReID uses it.
    """
    if anchor.shape[0] == 0 or key.shape[0] == 0:
        return jnp.zeros((), at_least_float32(anchor).dtype)
    logits = einsum("bd,kd->bk", anchor, key) / temp  # [batch, keys]
    positive = anchor_label[:, None] == key_label[None, :]
    if pair_mask is not None:
        positive &= pair_mask
        logits = jnp.where(pair_mask, logits, NEG)
    count = jnp.sum(positive, axis=1)
    mean_positive = jnp.sum(jnp.where(positive, logits, 0), axis=1) / jnp.maximum(count, 1)
    loss = jax.nn.logsumexp(logits, axis=1) - mean_positive  # [batch]
    if row_weight is None:
        return masked_mean(loss, count > 0)
    return weighted_sum(loss, jnp.where(count > 0, row_weight, 0))


def supcon_cam(
    img: jax.Array,
    txt: jax.Array,
    y: jax.Array,
    cam: jax.Array,
    valid: jax.Array | None = None,
    *,
    temp: float = 1.0,
    scope: str = "camera",
    reduce: str = "sum_cam_mean",
) -> jax.Array:
    """Image-to-text plus text-to-image contrast, inside each camera of the batch.

    Args:
      img: float[batch, dim], image features, not normalised.
      txt: float[batch, dim], text feature of each row's class, not normalised.
      y: int[batch], class.
      cam: int[batch], camera.
      valid: bool[batch]; None for all.
      temp: softmax temperature.
      scope: "camera" compares rows of one camera only; "batch" compares all rows and takes
        the plain mean.
      reduce: reduction over cameras, see `camera_row_weights`; unused with scope "batch".

    Returns:
      Scalar loss; a camera with a single row adds 0.

    Raises:
      ValueError: unknown `scope` or `reduce`.

    Source: CCAFL, prompt learning inside cameras; scope "batch" is CLIP-ReID's first stage.
    """
    check_option("scope", scope, SCOPES)
    valid = jnp.ones(y.shape, bool) if valid is None else valid
    pairs = valid[:, None] & valid[None, :]  # [batch, batch]
    if scope == "camera":
        pairs &= cam[:, None] == cam[None, :]
    else:
        reduce = "batch_mean"
    weight = camera_row_weights(cam, valid, reduce=reduce)
    image_to_text = supcon(img, txt, y, y, pairs, weight, temp=temp)
    text_to_image = supcon(txt, img, y, y, pairs, weight, temp=temp)
    return image_to_text + text_to_image


def inter_contrast(
    f: jax.Array,
    lab: jax.Array,
    mu: jax.Array,
    k_valid: jax.Array | None = None,
    *,
    tau: float = 0.05,
    weight: jax.Array | None = None,
) -> jax.Array:
    """Contrast of features with the cluster centroids: mean over labelled rows.

    Args:
      f: float[batch, dim], L2-normalised.
      lab: int[batch], cluster of each row; -1 drops the row (outlier or padding).
      mu: float[clusters, dim], L2-normalised centroids; held constant.
      k_valid: bool[clusters], centroids in use; None for all.
      tau: softmax temperature.
      weight: float[clusters], how much the rows of each cluster count in the mean, 0 or more;
        None for all alike. Rows of weight 0 still meet their cluster as others do.

    Returns:
      Scalar loss.

    Source: CCAFL, inter-camera contrast; ClusterContrast (Dai et al.), eq. 4; CALR's weights are
      `camera_entropy_weights` (where all are 0 the released code gives NaN, this 0).
    """
    logits = einsum("bd,kd->bk", f, jax.lax.stop_gradient(mu)) / tau  # [batch, clusters]
    own = one_hot_mask(lab, mu.shape[0])
    used = jnp.ones(mu.shape[0], bool) if k_valid is None else k_valid
    loss = masked_cross_entropy(logits, own, jnp.broadcast_to(used, logits.shape))
    if weight is None:
        return masked_mean(loss, lab >= 0)
    share = jnp.where(lab >= 0, of_rows(weight, jnp.maximum(lab, 0)), 0)
    total = jnp.sum(share)
    return weighted_sum(loss, share / jnp.where(total > 0, total, 1))
