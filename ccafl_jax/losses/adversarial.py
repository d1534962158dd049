"""The cosine classifier over (camera, identity) classes, and learning against it.

GID trains the classifier on features it may not change; ICAL trains the features against the
classifier it may not change, so that they stop telling which camera an identity was seen by.
Gradient reversal is the plain way to the same end: features that no classifier of cameras reads.
"""

import functools

import jax
import jax.numpy as jnp

from ccafl_jax.losses.reduction import (
    camera_mask,
    check_option,
    masked_cross_entropy,
    of_rows,
    one_hot_mask,
    pick,
)
from ccafl_jax.numerics import NEG, at_least_float32, einsum, l2_normalize, masked_mean

_FLOOR = 1e-12  # of 1 - cos^2: the sine keeps a finite gradient near cos = +-1


def cosine_logits(f: jax.Array, W: jax.Array) -> jax.Array:
    """Logits of the classifier without bias: rows of W are L2-normalised, f is not.

    Args:
      f: float[batch, dim]; L2-normalised features make these cosines.
      W: float[classes, dim].

    Returns:
      float[batch, classes].

    Source: Simple-CCReID (CAL), NormalizedClassifier.
    """
    return einsum("bd,nd->bn", f, l2_normalize(W))


def gid(
    f: jax.Array,
    y: jax.Array,
    W: jax.Array,
    valid: jax.Array | None = None,
    *,
    s: float = 16.0,
    margin: float = 0.0,
    class_valid: jax.Array | None = None,
) -> jax.Array:
    """Global-identity classification: softmax cross-entropy of the cosine classifier.

    The gradient reaches W only; f is held constant.

    Args:
      f: float[batch, dim], L2-normalised.
      y: int[batch], class.
      W: float[classes, dim], classifier rows of any length.
      valid: bool[batch]; None for all. Outliers of the association stay valid here.
      s: scale of the cosines.
      margin: subtracted from the cosine of the own class.
      class_valid: bool[classes], rows of W in use; None for all.

    Returns:
      Scalar loss, mean over valid rows.

    Source: CCAFL, L_GID (margin 0); CAL trains its clothes classifier so.
    """
    cos = cosine_logits(jax.lax.stop_gradient(f), W)
    own = one_hot_mask(y, W.shape[0])
    used = jnp.ones(W.shape[0], bool) if class_valid is None else class_valid
    logits = s * (cos - margin * own)
    loss = masked_cross_entropy(logits, own, jnp.broadcast_to(used, cos.shape))
    return masked_mean(loss, jnp.ones(y.shape, bool) if valid is None else valid)


def ical(
    f: jax.Array,
    y: jax.Array,
    W: jax.Array,
    pi: jax.Array,
    cam_of: jax.Array,
    valid: jax.Array | None = None,
    *,
    s: float = 16.0,
    eps: float = 0.8,
    m: float = 0.7,
    t: float = 0.2,
    class_valid: jax.Array | None = None,
) -> jax.Array:
    """Identity-consistent camera-adversarial loss against the frozen classifier.

    Each positive class competes with the negatives only; eps moves weight from the own class to
    all positives. m = t = 0 is CAL's multi-positive loss.

    Args:
      f: float[batch, dim], L2-normalised.
      y: int[batch], class.
      W: float[classes, dim], classifier after this iteration's GID step; held constant.
      pi: int[classes], cluster of each class; -1 for an outlier, whose rows are dropped.
      cam_of: int[classes], camera of each class.
      valid: bool[batch]; None for all.
      s: scale of the cosines.
      eps: share of the weight that is spread over all positives.
      m: additive angular margin on the own class, in radians.
      t: inflation of the other classes of the row's own camera.
      class_valid: bool[classes], rows of W in use; None for all.

    Returns:
      Scalar loss, mean over valid rows whose class belongs to a cluster.

    Source: CCAFL, L_ICAL; CAL (Gu et al., Clothes-Changing Person Re-identification), eq. 5-6.
    """
    cos = cosine_logits(f, jax.lax.stop_gradient(W))
    return ical_from_cosines(
        cos, y, pi, cam_of, valid, s=s, eps=eps, m=m, t=t, class_valid=class_valid
    )


def ical_from_cosines(
    cos: jax.Array,
    y: jax.Array,
    pi: jax.Array,
    cam_of: jax.Array,
    valid: jax.Array | None = None,
    *,
    s: float = 16.0,
    eps: float = 0.8,
    m: float = 0.7,
    t: float = 0.2,
    class_valid: jax.Array | None = None,
) -> jax.Array:
    """`ical` on cosines, float[batch, classes], instead of features and classifier."""
    z = ical_logits(cos, y, cam_of, s=s, m=m, t=t)
    positive = ical_pos_mask(y, pi, cam_of)
    negative = ~positive if class_valid is None else ~positive & class_valid
    own = one_hot_mask(y, z.shape[1])
    against = jax.nn.logsumexp(jnp.where(negative, z, NEG), axis=1, keepdims=True)
    share = eps / jnp.sum(positive, axis=1, keepdims=True).astype(z.dtype)
    omega = jnp.where(positive, share, 0) + (1 - eps) * own.astype(z.dtype)
    loss = jnp.sum(omega * jax.nn.softplus(against - z), axis=1)  # [batch]
    clustered = of_rows(pi, y) >= 0
    used = clustered if valid is None else valid & clustered
    return masked_mean(loss, used)


def ical_logits(
    cos: jax.Array,
    y: jax.Array,
    cam_of: jax.Array,
    *,
    s: float = 16.0,
    m: float = 0.7,
    t: float = 0.2,
) -> jax.Array:
    """Scaled logits of ICAL: margin on the own class, inflated classes of the same camera.

    Args:
      cos: float[batch, classes]; values outside [-1, 1] are clipped.
      y: int[batch], class.
      cam_of: int[classes], camera of each class.
      s: scale.
      m: additive angular margin on the own class, in radians.
      t: cosines of the other classes of the row's camera become (1 + t) * cos + t.

    Returns:
      float[batch, classes].

    Source: CCAFL as released; the margin is ArcFace's (Deng et al.) with its easy fallback.
    """
    cos = at_least_float32(cos)
    # A select, not jnp.clip: the gradient passes whole at exactly +-1.
    cos = jnp.where(jnp.abs(cos) <= 1, cos, jnp.sign(cos))
    own = one_hot_mask(y, cos.shape[1])
    target = pick(cos, own)
    squared_sine = 1 - target * target
    sine = jnp.sqrt(jnp.maximum(squared_sine, _FLOOR))
    sine = jnp.where(squared_sine > _FLOOR, sine, 0)  # exact at +-1
    # Past the angle pi - m the cosine of (angle + m) would rise again.
    with_margin = jnp.where(
        target > jnp.cos(jnp.pi - m),
        target * jnp.cos(m) - sine * jnp.sin(m),
        target - m * jnp.sin(jnp.pi - m),
    )
    inflated = jnp.where(camera_mask(of_rows(cam_of, y), cam_of), (1 + t) * cos + t, cos)
    return s * jnp.where(own, with_margin[:, None], inflated)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def reverse_gradient(x: jax.Array, strength: float = 1.0) -> jax.Array:
    """`x`; its gradient is multiplied by `-strength`.

    Source: Ganin and Lempitsky, "Unsupervised domain adaptation by backpropagation".
    """
    return x


def _reverse_forward(x, strength):
    return x, None


def _reverse_backward(strength, _, gradient):
    return (-strength * gradient,)


reverse_gradient.defvjp(_reverse_forward, _reverse_backward)


def camera_adversary(
    f: jax.Array,
    camera: jax.Array,
    head: jax.Array,
    valid: jax.Array | None = None,
    *,
    s: float = 16.0,
    strength: float = 1.0,
    class_valid: jax.Array | None = None,
) -> jax.Array:
    """Classification of the camera by a frozen cosine classifier, with its gradient reversed.

    Args:
      f: float[batch, dim], L2-normalised.
      camera: int[batch].
      head: float[cameras, dim], a row for each camera; held constant (`gid` trains it).
      valid: bool[batch]; None for all.
      s: scale of the cosines.
      strength: the gradient that reaches f is -strength times that of the classification.
      class_valid: bool[cameras], rows of the head in use; None for all.

    Returns:
      Scalar: the cross-entropy, mean over valid rows; it rises as cameras are forgotten.

    Source: Ganin and Lempitsky, with GID's classifier.
    """
    f = reverse_gradient(f, strength)
    logits = s * cosine_logits(f, jax.lax.stop_gradient(head))
    own = one_hot_mask(camera, head.shape[0])
    used = jnp.ones(head.shape[0], bool) if class_valid is None else class_valid
    loss = masked_cross_entropy(logits, own, jnp.broadcast_to(used, logits.shape))
    return masked_mean(loss, jnp.ones(camera.shape, bool) if valid is None else valid)


def camera_classification(
    logits: jax.Array, camera: jax.Array, valid: jax.Array | None = None, *, kind: str = "ce"
) -> jax.Array:
    """Classification of the camera, for a head that is trained through `reverse_gradient`.

    Args:
      logits: float[batch, cameras].
      camera: int[batch].
      valid: bool[batch]; None for all.
      kind: "ce" is the cross-entropy. "released" takes the probabilities for logits once more, so
        that the loss stays within narrow bounds and its gradient is about 1 / cameras of the
        other's.

    Returns:
      Scalar loss, mean over valid rows.

    Raises:
      ValueError: another kind.

    Source: CALR (specification 4.5); "released" is what its code computes.
    """
    check_option("kind", kind, ("ce", "released"))
    logits = at_least_float32(logits)
    if kind == "released":
        logits = jax.nn.softmax(logits, axis=1)
    own = one_hot_mask(camera, logits.shape[1])
    loss = masked_cross_entropy(logits, own, jnp.ones(logits.shape, bool))
    return masked_mean(loss, jnp.ones(camera.shape, bool) if valid is None else valid)


def ical_pos_mask(y: jax.Array, pi: jax.Array, cam_of: jax.Array) -> jax.Array:
    """Positive classes of ICAL: the own class, and its cluster's classes in other cameras.

    A class of the same cluster and camera (linked over a third camera) is no positive: the
    labels inside a camera say that it is someone else.

    Args:
      y: int[batch], class.
      pi: int[classes], cluster of each class; -1 for an outlier.
      cam_of: int[classes], camera of each class.

    Returns:
      bool[batch, classes].

    Source: CCAFL, positive set of L_ICAL.
    """
    cluster = of_rows(pi, y)[:, None]
    mates = (cluster >= 0) & (pi[None, :] == cluster) & ~camera_mask(of_rows(cam_of, y), cam_of)
    return mates | one_hot_mask(y, pi.shape[0])
