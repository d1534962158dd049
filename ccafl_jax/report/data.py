"""What a report says, as plain data: made by `collect`, drawn by `page`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FIGURES = (
    ("mAP", "mAP"),
    ("rank1", "rank-1"),
    ("rank5", "rank-5"),
    ("rank10", "rank-10"),
    ("mINP", "mINP"),
)
"""Those of the summary, with their titles."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A row of the summary.

    Attributes:
      title: of the stage, in words.
      dataset: that the figures are of.
      figures: shares in 0..1 by name; what is not known is absent.
      seconds: that the stage took; None where that is not known.
      note: what a reader has to know of the row.
      kind: `start`, `trained`, `evaluation` or `published`.
    """

    title: str
    dataset: str
    figures: Mapping[str, float]
    seconds: float | None = None
    note: str = ""
    kind: str = "trained"


@dataclasses.dataclass(frozen=True)
class Curves:
    """Scalars of the epochs of one log.

    Attributes:
      stage: name of the log.
      epochs: counted from 1.
      columns: by name, a value for each epoch; None where an epoch has none.
    """

    stage: str
    epochs: Sequence[int]
    columns: Mapping[str, Sequence[float | None]]


@dataclasses.dataclass(frozen=True)
class Probe:
    """Balanced accuracy of camera probes at the end of a stage, and what guessing gives."""

    title: str
    linear: float
    knn: float
    chance: float


@dataclasses.dataclass(frozen=True, eq=False)
class Embedding:
    """Points of a t-SNE.

    Attributes:
      title: of the stage.
      points: float64[n, 2].
      pid: int32[n].
      camera: n names of cameras.
    """

    title: str
    points: np.ndarray
    pid: np.ndarray
    camera: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A test image, or the middle frame of a tracklet.

    Attributes:
      jpeg: its file; empty where the image is not at hand.
      pid: identity.
      camera: name of the camera.
      name: path in the data set.
      match: whether it shows the identity of the query; None of a query.
      score: similarity to the query, or less than that of worse items.
    """

    jpeg: bytes
    pid: int
    camera: str
    name: str
    match: bool | None = None
    score: float = 0.0


@dataclasses.dataclass(frozen=True)
class RankList:
    """The best items of one query.

    Attributes:
      kind: `best`, `median` or `worst`.
      query: the query.
      items: the best first.
      ap: average precision.
      first: place of the first match.
      matches: items that show the query's identity.
    """

    kind: str
    query: Picture
    items: Sequence[Picture]
    ap: float
    first: int
    matches: int


@dataclasses.dataclass(frozen=True)
class Activation:
    """An image, and the same under the activation of the last feature map; two JPEG files."""

    image: bytes
    overlay: bytes
    pid: int
    camera: str


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """What the rankings of a test set show.

    Attributes:
      dataset: its name.
      unit: `image` or `tracklet`.
      rules: by which they were ranked, in words.
      figures: means over all rankings.
      trial: name of the ranking that lists and curves are of, where there are several; else empty.
      queries: of that ranking.
      cmc: shares of the queries with a match among the first 1, 2, ... items.
      cameras: names of all cameras.
      camera_pairs: `CameraPairs.as_dict` under these names; None where no camera is known.
      lists: of the best, the median and the worst queries.
      activations: of some queries.
    """

    dataset: str
    unit: str
    rules: str
    figures: Mapping[str, Any]
    trial: str
    queries: int
    cmc: Sequence[float]
    cameras: Sequence[str]
    camera_pairs: Mapping[str, Any] | None
    lists: Sequence[RankList]
    activations: Sequence[Activation] = ()


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of the recipe; `differs` from the default of its method."""

    name: str
    value: str
    default: str
    differs: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """All that a page shows; see the attributes' classes.

    Attributes:
      title: the heading.
      about: a sentence below it.
      summary: the rows of the first table; the headline is the last one that was measured here.
      published: words of the recipe that the published row was read from.
      curves: of training, by log.
      probes: by stage.
      embeddings: before and after training, or of the one stage there is.
      perplexity: of the embeddings; 0 where there are none.
      findings: of the test set; None where the images, the model or both are not at hand.
      options: of the recipe.
      facts: versions, devices and times, by name.
      notes: what is missing, and why.
    """

    title: str
    about: str
    summary: Sequence[Stage]
    published: str = ""
    curves: Sequence[Curves] = ()
    probes: Sequence[Probe] = ()
    embeddings: Sequence[Embedding] = ()
    perplexity: float = 0.0
    findings: Findings | None = None
    options: Sequence[Option] = ()
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()

    @property
    def headline(self) -> Stage | None:
        """The row of the summary that stands for the run."""
        measured = [row for row in self.summary if row.kind != "published"]
        return measured[-1] if measured else None
