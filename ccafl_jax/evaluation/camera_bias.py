"""How far features know the camera: whether strangers of one's camera look like oneself.

`camera_probes` asks the other way round, whether the camera can be read from a feature.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax import numerics
from ccafl_jax.evaluation.relevance import check_labels
from ccafl_jax.neighbors.top_k import joined

_BLOCK_ELEMENTS = 2**23
_LIMIT = 20_000


def same_camera_share(
    f: jax.Array,
    pid: np.ndarray,
    camid: np.ndarray,
    *,
    k: int = 5,
    block: int | None = None,
    limit: int = _LIMIT,
) -> float:
    """Share of each image's k nearest images of other identities that come from its own camera.

    `same_camera_base_rate` is what features that ignore the camera would give.

    Args:
      f: float[n, D]; cosine similarity is used. Leave out junk and distractors beforehand.
      pid: int[n].
      camid: int[n].
      k: neighbours per image; an image with fewer strangers counts those it has.
      block: images per step; chosen from n when None.
      limit: of the images whose neighbours are looked for, among all n; of more this many are
        taken, evenly spread. With 20,000 the standard error of the mean is below 0.004.

    Returns:
      Share in 0..1: the mean over images that have a stranger; 0 if none has.

    Raises:
      ValueError: shapes that do not fit, k or limit below 1, features that are not finite or zero.
    """
    if k < 1:
        raise ValueError(f"k is {k}: expected 1 or more")
    of_block = functools.partial(_block_share, k=min(k, max(1, len(pid))))
    return _mean_over_images(of_block, f, pid, camid, block=block, limit=limit, empty=0.0)


def other_camera_auc(
    f: jax.Array,
    pid: np.ndarray,
    camid: np.ndarray,
    *,
    block: int | None = None,
    limit: int = _LIMIT,
) -> float:
    """How often one's own person in another camera is more similar than a stranger in one's own.

    For each image the area under the ROC curve of its similarities: images of the same identity in
    other cameras against images of other identities in its camera. 1 is a feature that no camera
    misleads, 0.5 one that knows persons and cameras equally well, 0 one that knows cameras only.

    Args:
      f: float[n, D]; cosine similarity is used. Leave out junk and distractors beforehand.
      pid: int[n].
      camid: int[n].
      block: images per step; chosen from n when None.
      limit: of the images that are asked, among all n; of more this many are taken, evenly spread.

    Returns:
      The mean over images that have both kinds of pairs; ties count one half. NaN if none has.

    Raises:
      ValueError: shapes that do not fit, limit below 1, features that are not finite or zero.
    """
    return _mean_over_images(
        _block_auc, f, pid, camid, block=block, limit=limit, empty=float("nan")
    )


def same_camera_base_rate(pid: np.ndarray, camid: np.ndarray) -> float:
    """What `same_camera_share` would be on average if neighbours were drawn at random.

    Args:
      pid: int[n].
      camid: int[n].

    Returns:
      Mean over images of the share of their own camera among all images of other identities.
    """
    pid, camid = _check_labels(pid, camid)
    if len(pid) == 0:
        return 0.0
    strangers = len(pid) - _group_size(pid)
    # Pairs as one number: labels may be negative, so they are numbered first.
    _, pid_index = np.unique(pid, return_inverse=True)
    _, cam_index = np.unique(camid, return_inverse=True)
    both = _group_size(pid_index.astype(np.int64) * (int(cam_index.max()) + 1) + cam_index)
    same = _group_size(camid) - both
    return float(np.sum(same / np.maximum(strangers, 1)) / max(int(np.sum(strangers > 0)), 1))


def _mean_over_images(of_block, f, pid, camid, *, block, limit, empty: float) -> float:
    """Mean of what `of_block` finds of each image, over those for which it finds something."""
    pid, camid = _check_labels(pid, camid)
    n = len(pid)
    if np.ndim(f) != 2 or len(f) != n or limit < 1:
        raise ValueError(
            f"features {np.shape(f)} for {n} labels with limit={limit}: expected [{n}, dim] and "
            "limit 1 or more"
        )
    if n == 0:
        return empty
    f = jnp.asarray(joined("cosine", extracted=f).rows)
    rows = np.linspace(0, n - 1, min(n, limit)).round().astype(np.int32)
    block = min(block or max(8, _BLOCK_ELEMENTS // n), len(rows))
    found, valid = [], []
    for start in range(0, len(rows), block):
        some = rows[start : start + block]
        # The last block is filled up, so that all have one shape.
        full = np.pad(some, (0, block - len(some)), mode="edge")
        value, has = of_block(f, pid, camid, full)
        found.append(np.asarray(value)[: len(some)])
        valid.append(np.asarray(has)[: len(some)])
    number = int(np.sum(np.concatenate(valid)))
    return float(np.sum(np.concatenate(found)) / number) if number else empty


@jax.jit
def _block_auc(f, pid, camid, rows) -> tuple[jax.Array, jax.Array]:
    """Area under the curve of some rows, 0 for those without both kinds of pairs."""
    scores = numerics.einsum("qd,gd->qg", f[rows], f)
    same_pid = pid[rows][:, None] == pid
    same_camera = camid[rows][:, None] == camid
    positive, negative = same_pid & ~same_camera, ~same_pid & same_camera
    against = jnp.sort(jnp.where(negative, scores, jnp.inf), axis=1)

    def below(side: str) -> jax.Array:
        return jax.vmap(functools.partial(jnp.searchsorted, side=side))(against, scores)

    wins = jnp.where(positive, (below("left") + below("right")) / 2, 0)
    pairs = jnp.sum(positive, axis=1) * jnp.sum(negative, axis=1)
    return jnp.sum(wins, axis=1) / jnp.maximum(pairs, 1), pairs > 0


@functools.partial(jax.jit, static_argnames="k")
def _block_share(f, pid, camid, rows, k: int) -> tuple[jax.Array, jax.Array]:
    """Own-camera share among the k nearest strangers of some rows."""
    scores = numerics.einsum("qd,gd->qg", f[rows], f)
    scores = jnp.where(pid[rows][:, None] == pid, numerics.NEG, scores)
    best, index = jax.lax.top_k(scores, k)
    stranger = best > numerics.NEG / 2
    same = stranger & (camid[index] == camid[rows][:, None])
    number = jnp.sum(stranger, axis=1)
    return jnp.sum(same, axis=1) / jnp.maximum(number, 1), number > 0


def _group_size(label: np.ndarray) -> np.ndarray:
    """How many entries share each entry's value."""
    _, inverse, count = np.unique(label, return_inverse=True, return_counts=True)
    return count[inverse.reshape(-1)]


def _check_labels(pid: np.ndarray, camid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pid, camid = np.asarray(pid), np.asarray(camid)
    if pid.ndim != 1 or pid.shape != camid.shape:
        raise ValueError(f"pid {pid.shape} and camid {camid.shape} must be equal, one-dimensional")
    return check_labels("pid", pid), check_labels("camid", camid)
