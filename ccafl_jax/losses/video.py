"""The losses of a batch of clips, by what they are of."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ccafl_jax.losses.classification import smoothed_cross_entropy
from ccafl_jax.losses.triplet import batch_triplet


def clip_losses(
    features: Mapping[str, jax.Array],
    logits: Mapping[str, jax.Array],
    target: jax.Array,
    *,
    eps: float = 0.1,
    margin: float | None = 0.3,
) -> dict[str, jax.Array]:
    """Classification and batch-hard triplets of clips, without weights.

    Args:
      features: float[clips, dim] by name, not normalised; each has triplets.
      logits: float[clips, classes] by name. Those called `memory` are of clips against the memory
        of identities, those called `frame` of every frame: float[clips * frames, classes], the
        frames of a clip side by side.
      target: int[clips].
      eps: smoothing mass, spread over all classes.
      margin: see `triplet`.

    Returns:
      `id`: sum of the classification losses of all features; `triplet`: sum of their triplets;
      and where there are such logits `memory`, and `frame`: the mean over all frames, divided by
      the frames of a clip.

    Source: TF-CLIP as released.
    """
    of_features = (smoothed_cross_entropy(logits[name], target, eps=eps) for name in features)
    found = {
        "id": sum(of_features),
        "triplet": sum(batch_triplet(f, target, margin=margin) for f in features.values()),
    }
    if "memory" in logits:
        found["memory"] = smoothed_cross_entropy(logits["memory"], target, eps=eps)
    if "frame" in logits:
        frames = logits["frame"].shape[0] // target.shape[0]
        repeated = jnp.repeat(target, frames)
        found["frame"] = smoothed_cross_entropy(logits["frame"], repeated, eps=eps) / frames
    return found
