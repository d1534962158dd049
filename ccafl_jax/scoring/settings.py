"""The options of an evaluation, checked before any work is done."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from ccafl_jax.data.layouts import layout_of
from ccafl_jax.data.records import Collection
from ccafl_jax.evaluation.protocols import PROTOCOLS, TRIAL_OPTIONS, Protocol, protocol_of
from ccafl_jax.neighbors.similarity import ENGINES, METRICS
from ccafl_jax.options import nearest_key, require, require_choice
from ccafl_jax.scoring.published_lists import USES
from ccafl_jax.scoring.scores import POOLS, Expand, Rerank

OWN_CAMERAS = "manifest"
"""Protocol of features that name no data set."""

_LEAST_SAMPLES = 40  # an interval of 95 % needs one outside it on either side


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of `ccafl_jax.scoring.evaluate.evaluate` beside the protocol; see there.

    Raises:
      ValueError: a value that an option does not know, or options that do not go together.
    """

    metric: str = "cosine"
    rerank: Rerank | None = None
    expand: Expand | None = None
    multi_query: str | None = None
    tracks: bool = False
    distractors: bool = False
    published_lists: str = "ignore"
    bootstrap: int = 0
    camera_pairs: bool = False
    top: int = 0
    engine: str = "auto"
    mesh: Mesh | None = None
    progress: bool = False

    def __post_init__(self):
        require_choice("metric", self.metric, METRICS)
        require_choice("published_lists", self.published_lists, USES)
        if self.multi_query is not None:
            require_choice("multi_query", self.multi_query, POOLS)
        for name, kind in (("rerank", Rerank), ("expand", Expand)):
            value = getattr(self, name)
            require(
                value is None or isinstance(value, kind),
                f"{name} is {value!r}, must be None or a {kind.__name__} of scoring.scores",
            )
        require(
            self.metric != "dot" or not self.rerank,
            "re-ranking goes by distances: choose the metric cosine or euclidean, not dot",
        )
        require(
            self.metric == "cosine" or not self.expand,
            f"expansion makes unit vectors: choose the metric cosine, not {self.metric}",
        )
        require(self.top >= 0, f"top is {self.top}, must be 0 or more items")
        require(
            self.bootstrap == 0 or self.bootstrap >= _LEAST_SAMPLES,
            f"bootstrap is {self.bootstrap}, must be 0 or {_LEAST_SAMPLES} samples or more",
        )
        require(
            not self.tracks or self.published_lists == "ignore",
            "published lists are of images, not of tracks: use one of the two",
        )
        require(
            not (self.tracks and self.distractors),
            "distractors are in no track: use one of the two",
        )
        self._check_engine()

    def _check_engine(self) -> None:
        """Raises ValueError where engine or mesh would have no effect."""
        require_choice("engine", self.engine, ENGINES)
        not_features = (
            "tracks are" if self.tracks else "re-ranked scores are" if self.rerank else ""
        )
        require(
            self.engine != "device" or not not_features,
            f"engine is 'device', which ranks by features, but {not_features} ranked on the host: "
            "leave engine out",
        )
        if self.mesh is None:
            return
        axes = self.mesh.axis_names
        require(
            "data" in axes,
            f"the mesh has the axes {', '.join(map(repr, axes))}; expected 'data', over which "
            "queries are split",
        )
        reason = not_features or ("with engine 'host' all is" if self.engine == "host" else "")
        require(
            not reason,
            f"a mesh splits the ranking by features, but {reason} ranked on the host: leave mesh "
            "out",
        )


def check_options(collection: Collection, *, protocol: str | None = None, **options: Any) -> None:
    """Raises ValueError for options of an evaluation that features of a data set will not take.

    Args:
      collection: the data set.
      protocol: see `ccafl_jax.scoring.evaluate.evaluate`.
      **options: see there.
    """
    own = {field.name for field in dataclasses.fields(Settings)}
    settings = Settings(**{name: value for name, value in options.items() if name in own})
    rules = {name: value for name, value in options.items() if name not in own}
    check_names(rules)
    chosen = protocol_of(protocol or collection.name).replace(**rules)
    if layout_of(collection.name).kind != "visible_infrared":
        asked = [*rules] if protocol is None else [*rules, "protocol"]
        check_no_trials(collection.name, chosen, asked)
    elif chosen.trial == "parts":
        raise ValueError(
            f"{collection.name} has no fixed queries and gallery, which {chosen.name} needs; use "
            "the protocol of the data set"
        )
    wanted = {"track.values": settings.tracks, "gt.query": settings.published_lists != "ignore"}
    names = {"track.values": "tracks", "gt.query": "published lists"}
    for table, asked_for in wanted.items():
        require(
            not asked_for or table in collection.tables,
            f"{collection.root} comes without {names[table]}; score it without them",
        )


def check_no_trials(dataset: str, protocol: Protocol, options: Sequence[str]) -> None:
    """Raises ValueError for options of draws and directions, which queries and a gallery preclude.

    A protocol that was asked for by name asks for what it does otherwise than that of the data set.

    Args:
      dataset: name of the set that the features are of.
      protocol: with the options.
      options: names of those that were given, and `protocol`.
    """
    asked = [option for option in TRIAL_OPTIONS if option in options]
    own = PROTOCOLS.get(dataset)
    if "protocol" in options and own is not None and own.trial == protocol.trial:
        asked += [o for o in TRIAL_OPTIONS if getattr(own, o) != getattr(protocol, o)]
    if asked:
        raise ValueError(
            "these features have queries and a gallery of their own, ranked once: leave out "
            f"{', '.join(dict.fromkeys(asked))}, or extract the whole test set"
        )


def check_names(options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that is none, naming the nearest of all."""
    rules = {field.name for field in dataclasses.fields(Protocol)}
    known = [*(field.name for field in dataclasses.fields(Settings)), *sorted(rules)]
    for name in options:
        if name not in rules:
            near = nearest_key(name, known)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"unknown option {name}: {hint}")
