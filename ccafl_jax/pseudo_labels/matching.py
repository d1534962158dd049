"""Cross-modality matching: which visible cluster and which infrared one are the same person.

The assignment runs on the host. It is a function of the similarities alone, so equal arrays give
equal pairs in every call; among assignments of one total, which tied or duplicate prototypes
allow, SciPy's solver decides. Similarities of two kinds of device may differ in their last bits:
with several hosts one of them matches, and sends its pairs to the others.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from ccafl_jax.numerics import einsum
from ccafl_jax.pseudo_labels.labels import commonest


@dataclasses.dataclass(frozen=True, eq=False)
class Matching:
    """Result of `match_prototypes`.

    Attributes:
      infrared_of: int32[visible rows], infrared partner of each visible row; -1 for none.
      visible_of: int32[infrared rows], the inverse; -1 for none.
      pairs: int32[pairs, 2], all assigned pairs (visible, infrared) by ascending visible row,
        also those below the least similarity, which the two tables leave out.
      similarity: float32[pairs], of each pair.
      diagnostics: pairs, assigned; accepted, in the tables; mean_similarity, of the accepted
        pairs (0 without any); total, the similarity of all pairs, which the assignment maximises.
    """

    infrared_of: np.ndarray
    visible_of: np.ndarray
    pairs: np.ndarray
    similarity: np.ndarray
    diagnostics: Mapping[str, float | int]


def match_prototypes(
    visible: jax.Array,
    infrared: jax.Array,
    visible_valid: np.ndarray | None = None,
    infrared_valid: np.ndarray | None = None,
    *,
    min_similarity: float = 0.0,
) -> Matching:
    """Pairs visible and infrared prototypes one to one, with the greatest total similarity.

    The smaller side is assigned completely; pairs below `min_similarity` are refused afterwards
    and find no other partner.

    Args:
      visible: float[visible rows, dim], L2-normalised prototypes; used as they are.
      infrared: float[infrared rows, dim], of the same space.
      visible_valid: bool[visible rows], rows in use; None for all. Others never match, whatever
        they hold.
      infrared_valid: bool[infrared rows], likewise.
      min_similarity: least similarity (dot product) of an accepted pair.

    Returns:
      The matching; without pairs if a side has no row in use.

    Raises:
      ValueError: shapes that do not fit, or a row in use that holds NaN or infinity.

    Source: CCLNet, memory matching; the published code accepts similarities from 0.
    """
    rows = _rows_in_use("visible", visible, visible_valid)
    columns = _rows_in_use("infrared", infrared, infrared_valid)
    if visible.shape[1] != infrared.shape[1]:
        raise ValueError(
            f"visible prototypes have {visible.shape[1]} dimensions and infrared ones "
            f"{infrared.shape[1]}; expected one space, pass features of one encoder"
        )
    similarity, *finite = jax.device_get(_similarities(visible, infrared))
    _check_finite("visible", rows, finite[0])
    _check_finite("infrared", columns, finite[1])
    return _match(similarity, rows, columns, min_similarity)


def match_similarity(
    similarity: np.ndarray,
    visible_valid: np.ndarray,
    infrared_valid: np.ndarray,
    *,
    min_similarity: float = 0.0,
) -> Matching:
    """`match_prototypes` from similarities that were computed elsewhere.

    Args:
      similarity: float[visible rows, infrared rows].
      visible_valid: bool[visible rows], rows in use.
      infrared_valid: bool[infrared rows].
      min_similarity: least similarity of an accepted pair.

    Raises:
      ValueError: a similarity of rows in use that is NaN or infinite.
    """
    rows, columns = np.flatnonzero(visible_valid), np.flatnonzero(infrared_valid)
    finite = np.isfinite(similarity[np.ix_(rows, columns)])
    if not finite.all():
        raise ValueError(
            f"{np.sum(~finite)} similarities of prototypes are NaN or infinite; expected finite "
            "numbers: the training has diverged, or a row in use is padding"
        )
    return _match(similarity, rows, columns, min_similarity)


def _match(
    similarity: np.ndarray, rows: np.ndarray, columns: np.ndarray, min_similarity: float
) -> Matching:
    visible_rows, infrared_rows = similarity.shape
    # Padding is taken out first, so that it decides no tie.
    in_use = similarity[np.ix_(rows, columns)]
    row, column = linear_sum_assignment(in_use, maximize=True)
    pairs = np.stack([rows[row], columns[column]], axis=1).astype(np.int32)
    similarity = in_use[row, column]
    accepted = similarity >= min_similarity
    infrared_of = np.full(visible_rows, -1, np.int32)
    visible_of = np.full(infrared_rows, -1, np.int32)
    infrared_of[pairs[accepted, 0]] = pairs[accepted, 1]
    visible_of[pairs[accepted, 1]] = pairs[accepted, 0]
    figures = {
        "pairs": len(pairs),
        "accepted": int(np.sum(accepted)),
        "mean_similarity": float(np.mean(similarity[accepted])) if accepted.any() else 0.0,
        "total": float(np.sum(similarity, dtype=np.float64)),
    }
    return Matching(infrared_of, visible_of, pairs, similarity, figures)


def matching_precision(
    matching: Matching,
    visible_labels: np.ndarray,
    visible_pid: np.ndarray,
    infrared_labels: np.ndarray,
    infrared_pid: np.ndarray,
) -> float:
    """Share of accepted pairs whose clusters have one majority identity, which no method may see.

    Args:
      matching: result of `match_prototypes`.
      visible_labels: int[visible images], row of each image's cluster; -1 for an outlier.
      visible_pid: int[visible images], true identities.
      infrared_labels: int[infrared images].
      infrared_pid: int[infrared images], numbered as the visible ones.

    Returns:
      The share, 0 without an accepted pair. The majority of equals is the smallest identity; a
      cluster without image agrees with none.

    Raises:
      ValueError: shapes that do not fit, or a label outside the rows of the matching.
    """
    visible = np.flatnonzero(matching.infrared_of >= 0)
    infrared = matching.infrared_of[visible]
    pid_of_visible, known = _majority(visible_labels, visible_pid, len(matching.infrared_of))
    pid_of_infrared, also = _majority(infrared_labels, infrared_pid, len(matching.visible_of))
    agree = pid_of_visible[visible] == pid_of_infrared[infrared]
    agree &= known[visible] & also[infrared]
    return float(np.mean(agree)) if len(agree) else 0.0


@jax.jit
def _similarities(
    visible: jax.Array, infrared: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """float32[visible rows, infrared rows], and which rows of each side are finite."""
    visible, infrared = jnp.asarray(visible, jnp.float32), jnp.asarray(infrared, jnp.float32)
    similarity = einsum("rd,td->rt", visible, infrared)
    return similarity, *(jnp.all(jnp.isfinite(x), axis=1) for x in (visible, infrared))


def _rows_in_use(side: str, x: jax.Array, valid: np.ndarray | None) -> np.ndarray:
    shape = None if valid is None else np.shape(valid)
    if len(x.shape) != 2 or shape not in (None, x.shape[:1]):
        raise ValueError(
            f"{side} has shape {x.shape} and {side}_valid {shape}; expected [rows, dim] and [rows]"
        )
    return np.arange(x.shape[0]) if valid is None else np.flatnonzero(np.asarray(valid, bool))


def _check_finite(side: str, rows: np.ndarray, finite: np.ndarray) -> None:
    bad = rows[~finite[rows]]
    if len(bad):
        raise ValueError(
            f"{len(bad)} {side} prototypes (first: row {bad[0]}) hold NaN or infinity; expected "
            "finite numbers: the training has diverged, or a row in use is padding"
        )


def _majority(labels: np.ndarray, pid: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Majority identity of each row's images, int64[rows], and which rows have any."""
    labels, pid = np.asarray(labels), np.asarray(pid)
    if labels.ndim != 1 or labels.shape != pid.shape:
        raise ValueError(
            f"labels have shape {labels.shape} and identities {pid.shape}; expected [images] both"
        )
    if labels.size and int(labels.max()) >= rows:
        raise ValueError(
            f"label {int(labels.max())} found, expected labels below {rows}, the rows that were "
            "matched; pass the labels behind these prototypes"
        )
    inside = labels >= 0
    row, identity = commonest(labels[inside], pid[inside])
    majority, known = np.zeros(rows, np.int64), np.zeros(rows, bool)
    majority[row], known[row] = identity, True
    return majority, known
