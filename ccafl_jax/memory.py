"""Memory banks: class means, centroids and instance slots, and the rules that refresh them.

The coefficient `m` of every update multiplies the old value: m = 0.1 replaces nine tenths.
Updates take the batch's features as constants, read the memory from before the batch, and leave
the rows of absent classes as they are, bit for bit.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.numerics import at_least_float32, einsum, l2_normalize


def class_means(
    f: jax.Array,
    label: jax.Array,
    num_classes: int,
    valid: jax.Array | None = None,
    *,
    weight: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mean of the rows of each class, not normalised.

    Args:
      f: float[rows, dim].
      label: int[rows]; -1 drops the row.
      num_classes: static number of classes (or their capacity).
      valid: bool[rows]; None for all.
      weight: float[rows], e.g. the number of images behind each row; None for 1.

    Returns:
      float[num_classes, dim] means (0 for a class without rows), and float[num_classes], the
      total weight of each class.
    """
    f = at_least_float32(f)
    used = label >= 0 if valid is None else valid & (label >= 0)
    # An index past the end is dropped; a negative one would wrap around.
    segment = jnp.where(used, label, num_classes)
    weight = jnp.ones(label.shape, f.dtype) if weight is None else weight.astype(f.dtype)
    rows = jnp.where(used[:, None], f * weight[:, None], 0)
    total = jax.ops.segment_sum(rows, segment, num_classes)
    count = jax.ops.segment_sum(jnp.where(used, weight, 0), segment, num_classes)
    return total / jnp.where(count > 0, count, 1)[:, None], count


def centered_by_group(f: jax.Array, group: np.ndarray) -> jax.Array:
    """Features without the mean of their group (a camera), L2-normalised.

    Args:
      f: float[rows, dim].
      group: int[rows] (numpy), from 0.
    """
    group = np.asarray(group)
    index = jnp.asarray(group, jnp.int32)
    means, _ = class_means(f, index, int(group.max(initial=-1)) + 1)
    return l2_normalize(f - means[index])


def init_centroids(
    f: jax.Array, label: jax.Array, num_classes: int, valid: jax.Array | None = None
) -> jax.Array:
    """L2-normalised class means; see `class_means` for the arguments.

    Returns:
      float[num_classes, dim]; a class without rows is 0.

    Source: CCAFL, both memories are rebuilt so before every epoch.
    """
    return l2_normalize(class_means(f, label, num_classes, valid)[0])


def draw_instances(
    label: np.ndarray, num_classes: int, slots: int, seed: int | Sequence[int]
) -> np.ndarray:
    """Draws the images that fill the instance slots, with replacement, on the host.

    Args:
      label: int[images] (numpy), class of each image; -1 for an image of no class.
      num_classes: number of classes; each needs an image.
      slots: instances per class.
      seed: seed of numpy's generator, an integer or several, e.g. (seed, epoch).

    Returns:
      int32[num_classes, slots] image indices.

    Raises:
      ValueError: a class without images, or a label outside the classes.

    Source: CCAFL as released, 32 draws per class.
    """
    label = np.asarray(label)
    if label.size and int(label.max()) >= num_classes:
        raise ValueError(
            f"label {int(label.max())} found, expected labels below num_classes = {num_classes}; "
            "pass the number of accumulated classes"
        )
    count = np.bincount(label[label >= 0], minlength=num_classes)
    if np.any(count == 0):
        raise ValueError(
            f"class {int(np.argmin(count))} has no image, expected at least one per class; "
            "number the classes without gaps"
        )
    by_class = np.argsort(label, kind="stable")[np.sum(label < 0) :]
    first = np.cumsum(count) - count
    draw = np.random.default_rng(seed).integers(0, count[:, None], size=(num_classes, slots))
    return by_class[first[:, None] + draw].astype(np.int32)


def init_instances(f: jax.Array, draws: jax.Array) -> jax.Array:
    """L2-normalised features of the drawn images.

    Args:
      f: float[images, dim].
      draws: int[classes, slots] image indices, from `draw_instances`.

    Returns:
      float[classes, slots, dim].
    """
    return l2_normalize(f)[draws]


def update_mean(
    mem: jax.Array, f: jax.Array, lab: jax.Array, valid: jax.Array | None = None, *, m: float = 0.1
) -> jax.Array:
    """Moves each class of the batch towards the mean of its rows: L2(m old + (1 - m) mean).

    Args:
      mem: float[classes, dim].
      f: float[batch, dim], L2-normalised.
      lab: int[batch], row of `mem`; -1 drops the row.
      valid: bool[batch]; None for all.
      m: weight of the old value.

    Returns:
      float[classes, dim], the new memory.

    Source: CCAFL as released, centroids of the intra-camera memory.
    """
    mem, f = jnp.asarray(mem), jax.lax.stop_gradient(at_least_float32(f))
    used, together = _same_class(lab, valid)
    share = together / jnp.maximum(jnp.sum(together, axis=1, keepdims=True), 1).astype(f.dtype)
    mean = einsum("bc,cd->bd", share.astype(f.dtype), f)
    first = used & (_rank_in_class(together) == 0)
    return _blend(mem, mean, lab, first, m)


def update_hard(
    mem: jax.Array, f: jax.Array, lab: jax.Array, valid: jax.Array | None = None, *, m: float = 0.1
) -> jax.Array:
    """Moves each class of the batch towards its row that is least similar to the old memory.

    Of equally dissimilar rows the first in the batch is taken. Arguments and result as in
    `update_mean`.

    Source: ClusterContrast and HHCL ("hard"), CCAFL's cluster memory.
    """
    mem, f = jnp.asarray(mem), jax.lax.stop_gradient(at_least_float32(f))
    used, together = _same_class(lab, valid)
    similarity = jnp.sum(f * mem[jnp.maximum(lab, 0)], axis=1)  # [batch]
    order = jnp.arange(lab.shape[0])
    before = (similarity[None, :] < similarity[:, None]) | (
        (similarity[None, :] == similarity[:, None]) & (order[None, :] < order[:, None])
    )
    hardest = used & ~jnp.any(together & before, axis=1)
    return _blend(mem, f, lab, hardest, m)


def update_each(
    mem: jax.Array, f: jax.Array, lab: jax.Array, valid: jax.Array | None = None, *, m: float = 0.1
) -> jax.Array:
    """Moves each class by its rows one after another, in batch order.

    Arguments and result as in `update_mean`.

    Source: ClusterContrast ("CM"), an option for CCAFL's cluster memory.
    """
    mem, f = jnp.asarray(mem), jax.lax.stop_gradient(at_least_float32(f))
    used, together = _same_class(lab, valid)
    turn = _rank_in_class(together)

    def one_turn(number: jax.Array, mem: jax.Array) -> jax.Array:
        return _blend(mem, f, lab, used & (turn == number), m)

    # Rows of different classes do not meet: as many turns as the largest class has rows, and not
    # one for each row of the batch, whose kernels a GPU would be given one by one.
    turns = jnp.max(jnp.where(used, turn + 1, 0), initial=0)
    return jax.lax.fori_loop(0, turns, one_turn, mem)


def update_instances(
    inst: jax.Array, f: jax.Array, y: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
    """Overwrites slots 0, 1, ... of each class with its rows of the batch, in batch order.

    Args:
      inst: float[classes, slots, dim].
      f: float[batch, dim], L2-normalised.
      y: int[batch], class; -1 drops the row.
      valid: bool[batch]; None for all.

    Returns:
      float[classes, slots, dim]; of more rows than slots the first ones are kept.

    Source: CCAFL as released, instances of the intra-camera memory (no momentum).
    """
    inst = jnp.asarray(inst)
    f = jax.lax.stop_gradient(f).astype(inst.dtype)
    used, together = _same_class(y, valid)
    row = jnp.where(used, y, inst.shape[0])  # past the end: dropped
    return inst.at[row, _rank_in_class(together)].set(f, mode="drop")


def swap_matched(
    visible: jax.Array,
    infrared: jax.Array,
    infrared_of: jax.Array,
    visible_lab: jax.Array,
    infrared_lab: jax.Array,
    visible_valid: jax.Array | None = None,
    infrared_valid: jax.Array | None = None,
    *,
    scale: float = 0.1,
    aliased: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Moves prototypes of the batch to their partners in the other modality.

    Of each pair (r, c), visible[r] becomes L2(scale visible[r] + (1 - scale) infrared[c]) if r is
    a label of the visible batch, and infrared[c] its mirror image if c is one of the infrared
    batch. Both read the memories from before the call. All other rows stay as they are, bit for
    bit.

    Args:
      visible: float[visible rows, dim], L2-normalised.
      infrared: float[infrared rows, dim], L2-normalised; both may be padded.
      infrared_of: int[visible rows], infrared partner of each visible row, -1 for none; no
        partner twice. From `pseudo_labels.matching.match_prototypes`.
      visible_lab: int[visible batch], row of `visible`; -1 drops the entry.
      infrared_lab: int[infrared batch], row of `infrared`; -1 drops the entry.
      visible_valid: bool[visible batch]; None for all.
      infrared_valid: bool[infrared batch]; None for all.
      scale: weight of a row's own old value, may be traced; 0 exchanges the prototypes, 1 leaves
        both memories as they are, bit for bit.
      aliased: infrared rows read visible rows that are already moved, as in the published code,
        so that a pair with both labels in the batch hardly changes its infrared row.

    Returns:
      The new memories, visible and infrared.

    Source: CCLNet, memory swapping; `aliased` as released (the copy there shares its storage).
    """
    visible, infrared = jnp.asarray(visible), jnp.asarray(infrared)
    visible_rows, infrared_rows = jnp.arange(visible.shape[0]), jnp.arange(infrared.shape[0])
    column = jnp.where(infrared_of >= 0, infrared_of, infrared.shape[0])  # past the end: dropped
    visible_of = jnp.full(infrared.shape[0], -1).at[column].set(visible_rows, mode="drop")
    # Normalising moves a row of unit length by its last bit, so scale = 1 chooses no row.
    moving = jnp.asarray(scale) != 1
    chosen = moving & (infrared_of >= 0) & _in_batch(visible_lab, visible_valid, visible.shape[0])
    partner = infrared[jnp.maximum(infrared_of, 0)]
    new_visible = _blend(visible, partner, visible_rows, chosen, scale)
    chosen = moving & (visible_of >= 0) & _in_batch(infrared_lab, infrared_valid, infrared.shape[0])
    partner = (new_visible if aliased else visible)[jnp.maximum(visible_of, 0)]
    return new_visible, _blend(infrared, partner, infrared_rows, chosen, scale)


def _in_batch(lab: jax.Array, valid: jax.Array | None, num_classes: int) -> jax.Array:
    """Classes with a used row, bool[num_classes]."""
    used = lab >= 0 if valid is None else valid & (lab >= 0)
    return jnp.zeros(num_classes, bool).at[jnp.where(used, lab, num_classes)].set(True, mode="drop")


def _same_class(lab: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Rows in use, bool[batch], and pairs of used rows of one class, bool[batch, batch]."""
    used = lab >= 0 if valid is None else valid & (lab >= 0)
    return used, (lab[:, None] == lab[None, :]) & used[:, None] & used[None, :]


def _rank_in_class(together: jax.Array) -> jax.Array:
    """Number of earlier used rows of the same class, int[batch]."""
    return jnp.sum(jnp.tril(together, k=-1), axis=1)


def _blend(
    mem: jax.Array, target: jax.Array, lab: jax.Array, chosen: jax.Array, m: float
) -> jax.Array:
    """Writes L2(m old + (1 - m) target) for the chosen rows, at most one of each class."""
    old = at_least_float32(mem)[jnp.maximum(lab, 0)]
    new = l2_normalize(m * old + (1 - m) * target).astype(mem.dtype)
    return mem.at[jnp.where(chosen, lab, mem.shape[0])].set(new, mode="drop")
