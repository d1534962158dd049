"""Galleries of groups: a track of images is as near to a query as the nearest of them."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from ccafl_jax.neighbors.similarity import BLOCK_ELEMENTS, ScoreProvider
from ccafl_jax.options import require
from ccafl_jax.scoring.feature_set import FeatureSet
from ccafl_jax.scoring.published_lists import gallery_places
from ccafl_jax.scoring.trials import Trial


@dataclasses.dataclass(frozen=True, eq=False)
class GroupedScores:
    """Scores of groups of gallery items; the score of a group is its best one.

    Attributes:
      scores: of the items.
      offsets: int64[T + 1].
      values: int64[offsets[T]]; group t holds the items `values[offsets[t] : offsets[t + 1]]`.

    Raises:
      ValueError: no group, an empty one, offsets that do not fit, or items that are not in the
        gallery.
    """

    scores: ScoreProvider
    offsets: np.ndarray
    values: np.ndarray

    def __post_init__(self):
        lengths = np.diff(self.offsets)
        if len(lengths) and (self.offsets[0], self.offsets[-1]) != (0, len(self.values)):
            raise ValueError(
                f"offsets reach from {self.offsets[0]} to {self.offsets[-1]}; expected 0 to "
                f"{len(self.values)}, the number of values"
            )
        if not len(lengths) or np.any(lengths < 1):
            raise ValueError(
                f"{int(np.sum(lengths < 1))} of {len(lengths)} groups are empty; expected one or "
                "more groups of one or more gallery items each"
            )
        size = self.scores.shape[1]
        if np.min(self.values) < 0 or np.max(self.values) >= size:
            raise ValueError(
                f"groups hold gallery items {np.min(self.values)} to {np.max(self.values)}; "
                f"expected 0 to {size - 1}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and of groups."""
        return self.scores.shape[0], len(self.offsets) - 1

    def blocks(
        self, order: np.ndarray | None = None, *, elements: int = BLOCK_ELEMENTS
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `ccafl_jax.neighbors.similarity.ScoreProvider.blocks`."""
        for rows, scores in self.scores.blocks(order, elements=elements):
            yield rows, np.maximum.reduceat(scores[:, self.values], self.offsets[:-1], axis=1)

    def reported(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """See `ccafl_jax.neighbors.similarity.ScoreProvider.reported`."""
        return self.scores.reported(rows, scores)


def tracks_of(features: FeatureSet, trial: Trial) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """The tracks of a data set whose images are in the gallery of a trial.

    Returns:
      Offsets (int64[T + 1]) and places in the gallery, as `GroupedScores` takes them, and counts
      of tracks, of those without an image, and of images in no track.

    Raises:
      ValueError: there are no tracks, they are of another data set, or images of one differ in
        identity or camera.
    """
    require(
        "track.values" in features.tables,
        f"the features of {features.dataset or 'this set'} come without tracks (the tables "
        "track.values and track.offsets); score images",
    )
    offsets, values = features.lists("track")
    places = gallery_places(features, trial, values)
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    there = places >= 0
    owner, places = owner[there], places[there]
    require(len(places) > 0, "no image of a track is in the gallery; score images")
    start = np.flatnonzero(np.append(True, np.diff(owner) != 0))
    first = trial.gallery[places[start]]
    track = np.cumsum(np.append(False, np.diff(owner) != 0))
    for kind in ("pid", "camid"):
        column = getattr(features, kind)
        mixed = np.flatnonzero(column[trial.gallery[places]] != column[first][track])
        if mixed.size:
            at = features.describe(int(trial.gallery[places[mixed[0]]]))
            raise ValueError(
                f"{len(mixed)} images of tracks (first: {at}) differ in {kind} from the first one "
                "of their track; expected one vehicle and camera a track"
            )
    counted = {
        "tracks": len(start),
        "tracks_without_image": len(offsets) - 1 - len(start),
        "images_in_no_track": len(trial.gallery) - len(np.unique(places)),
    }
    return np.append(start, len(places)), places, counted
