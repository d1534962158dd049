"""CLIP-based person re-identification in JAX/Flax.

Importing the package is light; the rooms (models, losses, memory, pseudo_labels, evaluation,
data, training, methods) are imported by name.
"""

__version__ = "0.1.0"
