"""From a re-identification model to features, and from test features to figures."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ccafl_jax.data.augment import normalize
from ccafl_jax.data.records import ReIDDataset
from ccafl_jax.evaluation.camera_bias import same_camera_share
from ccafl_jax.evaluation.ranking import rank
from ccafl_jax.training.extract import Extractor, make_extractor


class Extracted(NamedTuple):
    """The features that an evaluation made of a test set.

    Attributes:
      features: float32[n, dim].
      names: paths of the images in the order of the features; None for tracklets, which are those
        of the queries and then of the gallery.
    """

    features: np.ndarray
    names: list[str] | None

    def of(self, names: Sequence[str]) -> np.ndarray:
        """Unit features of images in another order, or of the tracklets, float32[n, dim].

        Args:
          names: paths of the images; of tracklets nothing is read of them.

        Raises:
          ValueError: an image that was not among them.
        """
        if self.names is None:
            return unit_rows(self.features)
        place = {name: row for row, name in enumerate(self.names)}
        try:
            return unit_rows(self.features[[place[name] for name in names]])
        except KeyError as missing:
            raise ValueError(f"{missing} was not in the test set of the run") from None


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows at unit length, float32; one of zeros stays so, which checks of features report."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.maximum(lengths, 1e-12)).astype(np.float32)


def feature_extractor(
    graphdef: nnx.GraphDef,
    method: str,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch: int,
    mesh: Mesh,
    description: str,
) -> Extractor:
    """An extractor of what `method` of the image model returns in evaluation mode.

    Args:
      graphdef: of a `ReIDModel`.
      method: "embed" (f), "image_features" (g, which knows no cameras) or "pooled" (before the
        neck). The extractor takes the kind of each image, see `ReIDModel`.
      mean: subtracted from pixels scaled to 0..1, by channel.
      std: divides them then, by channel.
      batch: images a call.
      mesh: the devices.
      description: of the progress bar.
    """

    def forward(model: nnx.Module, images: jax.Array, kind: jax.Array) -> jax.Array:
        x = normalize(images, mean, std, dtype=model.neck.scale[...].dtype)
        if not model.kinds or (method == "image_features" and model.heads.cameras):
            return getattr(model, method)(x)
        return getattr(model, method)(x, kind)

    return make_extractor(graphdef, forward, batch=batch, mesh=mesh, description=description)


def clip_extractor(
    graphdef: nnx.GraphDef,
    method: str,
    *,
    frames: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch: int,
    mesh: Mesh,
    description: str,
) -> Extractor:
    """An extractor of what `method` of a video model returns of clips.

    Args:
      graphdef: of a `VideoModel`.
      method: "embed" or "joint_means" (which knows no cameras).
      frames: of a clip.
      mean: subtracted from pixels scaled to 0..1, by channel.
      std: divides them then, by channel.
      batch: images a call, so that as many clips are as fit.
      mesh: the devices.
      description: of the progress bar.
    """

    def forward(model: nnx.Module, clips: jax.Array, cameras: jax.Array) -> jax.Array:
        x = normalize(clips, mean, std, dtype=model.necks["image"].scale[...].dtype)
        if method == "joint_means" or not model.sizes.cameras:
            return getattr(model, method)(x)
        return getattr(model, method)(x, cameras)

    return make_extractor(
        graphdef,
        forward,
        batch=max(1, batch // frames),
        mesh=mesh,
        frames=frames,
        description=description,
    )


def score(features: jax.Array, dataset: ReIDDataset, *, no_match: str = "skip") -> dict[str, Any]:
    """Ranking metrics and camera bias of test features.

    Args:
      features: float[queries + gallery, dim].
      dataset: records of both.
      no_match: see :func:`ccafl_jax.evaluation.ranking.rank`.

    Returns:
      The summary of the ranking, with the name of the data set (`dataset`), and
      `same_camera_share`: of the five nearest images of other identities, the share from the
      image's own camera (junk and distractors left out).
    """
    query, gallery = dataset.query, dataset.gallery
    count = len(query)
    result = rank(
        features[:count],
        features[count:],
        query.pid,
        gallery.pid,
        query.camid,
        gallery.camid,
        no_match=no_match,
    ).summary()
    pid, camid = query_then_gallery(dataset)
    people = np.flatnonzero(np.isin(pid, query.pid))
    result["same_camera_share"] = same_camera_share(features[people], pid[people], camid[people])
    return {"dataset": dataset.name, **result}


def query_then_gallery(dataset: ReIDDataset) -> tuple[np.ndarray, np.ndarray]:
    """Identities and cameras (int32[queries + gallery]) in the order of test features."""
    query, gallery = dataset.query, dataset.gallery
    pid = np.concatenate([query.pid, gallery.pid])
    return pid, np.concatenate([query.camid, gallery.camid])
