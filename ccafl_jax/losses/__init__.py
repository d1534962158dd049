"""Losses: pure functions of arrays, with masks for padded rows and columns.

All return a scalar of at least float32 that is 0, with a zero gradient, when nothing counts.
"""

from ccafl_jax.losses.adversarial import (
    camera_adversary,
    camera_classification,
    cosine_logits,
    gid,
    ical,
    ical_from_cosines,
    ical_logits,
    ical_pos_mask,
    reverse_gradient,
)
from ccafl_jax.losses.classification import i2t_ce, smoothed_cross_entropy
from ccafl_jax.losses.contrastive import inter_contrast, supcon, supcon_cam
from ccafl_jax.losses.discriminative import icdl
from ccafl_jax.losses.reduction import camera_mask, camera_row_weights
from ccafl_jax.losses.triplet import batch_triplet, memory_triplet, triplet
from ccafl_jax.losses.video import clip_losses

__all__ = [
    "batch_triplet",
    "camera_adversary",
    "camera_classification",
    "camera_mask",
    "camera_row_weights",
    "clip_losses",
    "cosine_logits",
    "gid",
    "i2t_ce",
    "ical",
    "ical_from_cosines",
    "ical_logits",
    "ical_pos_mask",
    "icdl",
    "inter_contrast",
    "memory_triplet",
    "reverse_gradient",
    "smoothed_cross_entropy",
    "supcon",
    "supcon_cam",
    "triplet",
]
