"""Pseudo labels: from features to labels, on the host."""

from ccafl_jax.pseudo_labels.cross_camera import Association, associate, diagnostics

__all__ = ["Association", "associate", "diagnostics"]
