"""Start of an epoch: features -> association -> memory banks and tables of the phase; batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ccafl_jax.data.samplers import plan
from ccafl_jax.memory import (
    centered_by_group,
    class_means,
    draw_instances,
    init_centroids,
    init_instances,
)
from ccafl_jax.methods.ccafl.config import AssociationConfig, CCAFLConfig
from ccafl_jax.methods.ccafl.phases import Context, Phase
from ccafl_jax.numerics import NEG, einsum, l2_normalize
from ccafl_jax.pseudo_labels.associations import class_directions
from ccafl_jax.pseudo_labels.cross_camera import reach
from ccafl_jax.pseudo_labels.labels import Labels
from ccafl_jax.training.layout import padded_rows, with_rows
from ccafl_jax.training.state import FlatDict


@dataclasses.dataclass(frozen=True)
class InstanceDraws:
    """Which images fill the instance slots of each class.

    Attributes:
      index: int32[classes, slots], images.
      valid: bool[classes, slots]; all true unless every image of a class is kept.
    """

    index: np.ndarray
    valid: np.ndarray


def associate_features(
    features: jax.Array,
    label: np.ndarray,
    cam_of: np.ndarray,
    config: AssociationConfig,
) -> Labels:
    """Cross-camera association of classes from image features (specification 3).

    Args:
      features: float[images, dim], L2-normalised.
      label: int[images], accumulated class.
      cam_of: int[classes].
      config: method, its options, centring.

    Returns:
      `Labels` of the classes; with pairs, their diagnostics say how far these reach.

    Raises:
      ValueError: what the method raises, or a function of the user's own does not return that.
    """
    if config.center_cameras:
        features = centered_by_group(features, np.asarray(cam_of)[np.asarray(label)])
    found = config.function()(features, label, cam_of)
    if not isinstance(found, Labels):
        raise ValueError(
            f"association.method {config.method} returned {type(found).__name__}; expected "
            "ccafl_jax.pseudo_labels.Labels"
        )
    labels, classes = np.asarray(found.labels), len(cam_of)
    numbers = np.unique(labels[labels >= 0]) if labels.dtype.kind in "iu" else None
    if labels.shape != (classes,) or not np.array_equal(numbers, np.arange(found.num_clusters)):
        raise ValueError(
            f"association.method {config.method} returned {labels.dtype} labels of shape "
            f"{labels.shape}; expected a whole number for each of the {classes} classes: clusters "
            f"0..{found.num_clusters - 1} (num_clusters - 1) without gaps, or -1"
        )
    if found.edges is None:
        return found
    far = reach(class_directions(features, label, cam_of), np.asarray(cam_of), found.edges)
    return dataclasses.replace(found, diagnostics={**found.diagnostics, **far})


def batch_plan(
    config: CCAFLConfig, phase: Phase, epoch: int, label: np.ndarray, clusters: np.ndarray
) -> np.ndarray:
    """The images of an epoch's batches, int[steps, batch].

    Args:
      config: options.
      phase: of the epoch.
      epoch: of stages 2 and 3, counted from 0.
      label: int[images], accumulated class.
      clusters: int[classes], the pseudo identities in force.
    """
    sampler, iterations = config.sampler, config.schedule.iterations
    seed, first_step = config.seed, epoch * iterations
    if sampler.kind == "cluster_pk" and phase.stage == "inter":
        # Labels change every epoch, and with them the stream starts anew.
        label = np.asarray(clusters)[label]
        seed, first_step = seed + 1_000_003 * (epoch + 1), 0
    return plan(
        label,
        seed=seed,
        first_step=first_step,
        steps=iterations,
        classes_per_batch=sampler.classes,
        images_per_class=sampler.images,
    )


def instance_draws(
    config: CCAFLConfig, label: np.ndarray, classes: int, epoch: int
) -> InstanceDraws:
    """The images that fill the instance slots in an epoch."""
    slots = config.icdl.instances
    if slots == 0:
        return all_instances(label, classes)
    index = draw_instances(label, classes, slots, (config.seed, epoch))
    return InstanceDraws(index=index, valid=np.ones(index.shape, bool))


def all_instances(label: np.ndarray, classes: int) -> InstanceDraws:
    """Every image of every class, padded to the largest class (`icdl.instances = 0`)."""
    counts = np.bincount(label, minlength=classes)
    order = np.argsort(label, kind="stable").astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    slot = np.arange(counts.max())
    valid = slot[None, :] < counts[:, None]
    position = np.where(valid, starts[:, None] + slot[None, :], starts[:, None])
    return InstanceDraws(index=order[position], valid=valid)


def table_rows(config: CCAFLConfig, classes: int, mesh: Mesh | None) -> tuple[int, int]:
    """Rows of the tables of classes, and of those of clusters.

    Args:
      config: options.
      classes: (camera, identity) classes.
      mesh: the devices; where they share the tables, these have rows that fill them up.
    """
    numbers = classes, max(1, classes // 2)
    if mesh is None or not config.scale.shard_classes:
        return numbers
    return tuple(padded_rows(number, mesh) for number in numbers)


def make_context(
    config: CCAFLConfig,
    *,
    label: np.ndarray,
    cam_of: np.ndarray,
    class_text: jax.Array,
    clusters: np.ndarray,
    draws: InstanceDraws,
    mesh: Mesh | None = None,
) -> Context:
    """Tables that a phase reads.

    Args:
      config: options.
      label: int[images], accumulated class of each image.
      cam_of: int[classes].
      class_text: float[classes, embed].
      clusters: int[classes], pseudo identity of each class, -1 for outliers.
      draws: instance slots.
      mesh: the devices; where they share the tables of classes, these get rows that fill them up.

    Returns:
      A context whose cluster tables have classes // 2 rows: a cluster joins two classes at least,
      so that is a bound, and no epoch changes a shape.
    """
    classes = cam_of.shape[0]
    rows, capacity = table_rows(config, classes, mesh)
    found = int(clusters.max(initial=-1)) + 1
    if found > capacity:
        raise ValueError(f"{found} clusters of {classes} classes: a cluster needs two classes")
    counts = np.bincount(label, minlength=classes)
    unused = (0, rows - classes)
    return Context(
        label=jnp.asarray(label, jnp.int32),
        cam_of=jnp.asarray(np.pad(cam_of, unused, constant_values=-1), jnp.int32),
        class_text=with_rows(class_text, rows),
        cluster_of=jnp.asarray(np.pad(clusters, unused, constant_values=-1), jnp.int32),
        cluster_valid=jnp.arange(capacity) < found,
        cluster_text=cluster_texts(
            class_text,
            jnp.asarray(clusters, jnp.int32),
            jnp.asarray(counts, jnp.int32),
            capacity=capacity,
            kind=config.text.cluster_text,
        ),
        instance_valid=with_rows(jnp.asarray(draws.valid), rows),
    )


def cluster_texts(
    class_text: jax.Array,
    clusters: jax.Array,
    counts: jax.Array,
    *,
    capacity: int,
    kind: str = "image_mean",
) -> jax.Array:
    """Descriptions of clusters from the texts of their classes, not normalised.

    Args:
      class_text: float[classes, embed].
      clusters: int[classes], -1 for outliers.
      counts: int[classes], images of each class.
      capacity: rows of the result.
      kind: `image_mean` weighs classes by their images (published), `class_mean` does not,
        `medoid` takes the class text with the largest cosine to the image mean.

    Returns:
      float[capacity, embed]; rows without a cluster are 0.
    """
    weight = None if kind == "class_mean" else counts
    mean, _ = class_means(class_text, clusters, capacity, weight=weight)
    if kind != "medoid":
        return mean
    cosine = einsum("ke,ne->kn", l2_normalize(mean), l2_normalize(class_text))
    member = clusters[None, :] == jnp.arange(capacity)[:, None]
    medoid = jnp.argmax(jnp.where(member, cosine, NEG), axis=1)
    return jnp.where(jnp.any(member, axis=1)[:, None], class_text[medoid], 0)


def make_memory(
    phase: Phase, features: jax.Array, context: Context, draws: InstanceDraws, *, cameras: int
) -> FlatDict:
    """Memory banks of a phase from features of all training images.

    Args:
      phase: its stage decides which banks.
      features: float[images, dim], L2-normalised.
      context: labels and tables.
      draws: instance slots.
      cameras: of the training set.

    Returns:
      Stage 2: `centroids` float[classes, dim] and `instances` float[classes, slots, dim]. Stage
      3: `clusters` float[capacity, dim] and, where the phase has one, `camera_head`
      float[cameras, dim]. Rows are L2-normalised.
    """
    if phase.stage == "intra":
        classes = context.cam_of.shape[0]
        return {
            "centroids": init_centroids(features, context.label, classes),
            "instances": with_rows(init_instances(features, jnp.asarray(draws.index)), classes),
        }
    capacity = context.cluster_valid.shape[0]
    clusters = context.cluster_of[context.label]
    banks = {"clusters": init_centroids(features, clusters, capacity)}
    if phase.camera_head:
        banks["camera_head"] = init_centroids(features, context.cam_of[context.label], cameras)
    return banks
