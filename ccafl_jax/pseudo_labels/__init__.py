"""Pseudo labels: from features to labels, on the host."""

from ccafl_jax.pseudo_labels.cross_camera import associate, diagnostics
from ccafl_jax.pseudo_labels.labels import Labels

__all__ = ["Labels", "associate", "diagnostics"]
