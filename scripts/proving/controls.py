"""Runs that are told what a real one cannot know, or are fed what means nothing.

They stand beside a method to show how much of its gain another explanation would give as well. None
is a way to train a model for use.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.memory import class_means
from ccafl_jax.methods.calr import run as calr
from ccafl_jax.methods.calr.labels import refine_by_pivots
from ccafl_jax.methods.ccafl.run import Run
from ccafl_jax.numerics import at_least_float32
from ccafl_jax.pseudo_labels.cross_camera import diagnostics
from ccafl_jax.pseudo_labels.labels import Labels, in_order_of_members


class TrueAssociation(Run):
    """Classes of one identity are linked as they are: the best that any association can give."""

    def _associate(self, epoch, phase, features):
        return _link(self, linked_where_several(self.labels.pid_of))


class RandomAssociation(Run):
    """As many clusters, of the same sizes over the same cameras, of classes drawn by chance."""

    def _associate(self, epoch, phase, features):
        scalars = super()._associate(epoch, phase, features)
        if not scalars:  # not renewed in this epoch
            return scalars
        random = np.random.default_rng((self.config.seed, epoch))
        return _link(self, shuffled_inside(self.progress.clusters, self.labels.cam_of, random))


class OtherTexts(Run):
    """What stands in place of the texts is made once, and saved with them."""

    def _train_encoder(self):
        if not (self.progress.encoder_epochs or self.progress.part):
            self.class_text = self._other_texts()
        super()._train_encoder()


class ShuffledTexts(OtherTexts):
    """Every class is described by the prompts of another one, drawn by chance and then kept."""

    def _other_texts(self):
        return self.class_text[
            np.random.default_rng(self.config.seed).permutation(self.num_classes)
        ]


class ImagePrototypes(OtherTexts):
    """The mean joint feature of a class's own images, as long as its text, in place of the text."""

    def _other_texts(self):
        return prototypes(self._extract(self.extract_g), self.labels.label, self.class_text)


class DropsAtRandom(calr.Run):
    """Refinement that removes as many images of each cluster and camera, drawn by chance."""

    def _refine(self, labels, camid, *arguments, seed, **options):
        found = refine_by_pivots(labels, camid, *arguments, seed=seed, **options)
        removed = drawn_inside(labels, camid, found.removed, np.random.default_rng(seed))
        left = np.asarray(labels).copy()
        left[removed] = -1
        return dataclasses.replace(found, labels=left, removed=removed)


def drawn_inside(
    labels: np.ndarray, camid: np.ndarray, removed: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """As many images of each cluster and camera as were removed, drawn by chance.

    Returns:
      int32[removed], ascending.
    """
    labels, camid = np.asarray(labels), np.asarray(camid)
    drawn = []
    for cluster, camera in sorted({*zip(labels[removed], camid[removed], strict=True)}):
        cell = np.flatnonzero((labels == cluster) & (camid == camera))
        count = np.sum((labels[removed] == cluster) & (camid[removed] == camera))
        drawn.append(random.permutation(cell)[:count])
    return np.sort(np.concatenate([np.zeros(0, np.int32), *drawn])).astype(np.int32)


def linked_where_several(pid_of: np.ndarray) -> np.ndarray:
    """Clusters of the classes of one identity, -1 for a class that is the only one of its own."""
    _, inverse, count = np.unique(np.asarray(pid_of), return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    return in_order_of_members(inverse, count[inverse] > 1)


def shuffled_inside(
    clusters: np.ndarray, cam_of: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Clusters after the classes of each camera have changed places."""
    clusters, cam_of = np.asarray(clusters), np.asarray(cam_of)
    shuffled = clusters.copy()
    for camera in np.unique(cam_of):
        members = np.flatnonzero(cam_of == camera)
        shuffled[members] = clusters[random.permutation(members)]
    return in_order_of_members(shuffled, shuffled >= 0)


def prototypes(g: jax.Array, label: np.ndarray, texts: jax.Array) -> jax.Array:
    """Mean features of classes, each scaled to the length of the class's text."""
    mean, _ = class_means(g, jnp.asarray(label, jnp.int32), texts.shape[0])
    length = jnp.linalg.norm(at_least_float32(texts), axis=1, keepdims=True)
    own = jnp.linalg.norm(mean, axis=1, keepdims=True)
    return (mean * (length / jnp.maximum(own, 1e-12))).astype(texts.dtype)


def _link(run: Run, clusters: np.ndarray) -> dict[str, float]:
    """Gives a run its clusters, and returns the figures that an association logs."""
    run.progress.clusters = clusters
    found = Labels(labels=clusters, num_clusters=int(clusters.max(initial=-1)) + 1)
    report = diagnostics(found, run.labels.pid_of, run.labels.cam_of)
    return {f"association_{key}": float(value) for key, value in report.items()}
