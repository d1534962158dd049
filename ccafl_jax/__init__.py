"""CLIP-based person re-identification in JAX/Flax.

Importing the package is light; the rooms (models, losses, memory, pseudo_labels, evaluation,
data, training, methods, deploy) are imported by name. `load` opens any model that was written.
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    import os

    from ccafl_jax.deploy.embedder import ImageEmbedder

__version__ = "0.1.0"


def load(
    path: str | os.PathLike[str],
    *,
    batch: int = 64,
    compute_dtype: str | None = None,
    devices: int = 1,
) -> ImageEmbedder:
    """Loads a model for use: `ccafl_jax.load(path).embed(images)`.

    See :func:`ccafl_jax.deploy.loading.load`, which this calls.
    """
    from ccafl_jax.deploy import loading

    return loading.load(path, batch=batch, compute_dtype=compute_dtype, devices=devices)
