"""CLIP-based person re-identification in JAX/Flax.

Importing the package is light; the rooms (models, losses, memory, pseudo_labels, evaluation,
data, training, methods, deploy, search) are imported by name. `load` opens any model that was
written.
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

    Args:
      path: a run folder; a folder that `scripts/export.py` wrote; or one of the folders in it.
      batch: images a call.
      compute_dtype: "float32" (the default) or "bfloat16"; that of an exported function is fixed.
      devices: how many to spread a batch over, 0 for all; exported functions use one.

    Returns:
      The model; `.features` is the size of its feature, `.cameras` the rows of its camera
      embedding (0 without one).

    Raises:
      FileNotFoundError: nothing there that can be loaded, or a file is missing.
      ValueError: a damaged file, or an option that the export cannot follow.
    """
    from ccafl_jax.deploy import loading

    return loading.load(path, batch=batch, compute_dtype=compute_dtype, devices=devices)
