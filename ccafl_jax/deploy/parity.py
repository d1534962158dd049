"""The gate that every export passes: its features against those of the model it came from."""

import numpy as np

THRESHOLDS = {"float32": 0.99999, "bfloat16": 0.999}
"""Smallest cosine that passes, by the arithmetic of the export."""


def smallest_cosine(reference: np.ndarray, found: np.ndarray) -> tuple[float, int]:
    """The smallest cosine over images, and the image it belongs to.

    Args:
      reference: float[n, features], n at least 1.
      found: float[n, features].

    Raises:
      ValueError: shapes differ, or there is nothing to compare.
    """
    if reference.shape != found.shape or not len(reference):
        raise ValueError(
            f"features are {list(found.shape)}, those of the model {list(reference.shape)}; "
            "nothing can be compared"
        )
    a, b = reference.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    cosine = np.where(np.isfinite(cosine), cosine, -np.inf)
    worst = int(np.argmin(cosine))
    return float(cosine[worst]), worst


def tell_apart(features: np.ndarray) -> float:
    """The smallest cosine between two different images: how far the model tells images apart.

    Near 1 all images look alike to the model, and a comparison on them proves little.

    Args:
      features: float[n, features].

    Returns:
      The cosine; 1.0 where all are alike or there are fewer than two.
    """
    x = features.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    x = x / np.where(lengths > 0, lengths, 1)
    cosines = (x @ x.T)[np.triu_indices(len(x), 1)]
    return float(np.min(cosines, initial=1.0))


def check_parity(kind: str, reference: np.ndarray, found: np.ndarray, *, dtype: str) -> float:
    """Returns the smallest cosine if it passes.

    Raises:
      ValueError: it does not, naming the cosine, the threshold and the image.
    """
    cosine, image = smallest_cosine(reference, found)
    threshold = THRESHOLDS[dtype]
    if not cosine >= threshold:
        raise ValueError(
            f"{kind} export fails the parity gate: cosine {cosine:.7f} on image {image} is below "
            f"{threshold} ({dtype}); nothing was written"
        )
    return cosine
