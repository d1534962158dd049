"""The rules by which each data set is scored, declared in one table.

    protocol = protocol_of("market1501").replace(ap="trapezoid")

A rule that a paper or a released program does otherwise is an option, and figures name the rules
they were made by: see `Protocol.as_dict`.
"""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ccafl_jax.evaluation.ranking import AP_RULES, CMC_RULES, NO_MATCH
from ccafl_jax.evaluation.relevance import SAME_CAMERA, Lists, Relevance, relevance
from ccafl_jax.options import nearest_key, require, require_choice

CHOICES: Mapping[str, tuple[str, ...]] = {
    "same_camera": SAME_CAMERA,
    "cmc": CMC_RULES,
    "ap": AP_RULES,
    "no_match": NO_MATCH,
    "trial": ("parts", "draws", "directions"),
    "mode": ("all", "indoor"),
    "draw": ("seeded", "official"),
    "direction": ("visible_to_thermal", "thermal_to_visible"),
}
"""Values of the options that are words."""

TRIAL_OPTIONS = ("mode", "shots", "draw", "trials", "direction")
"""Options of how queries and gallery are taken from a test set."""

_TAKEN_BY = {"mode": "draws", "draw": "draws", "shots": "draws", "direction": "directions"}
_WHOLE = ("max_rank", "trials", "shots")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a data set is scored.

    Attributes:
      name: in PROTOCOLS.
      same_camera: which gallery images a query does not meet: `identity` leaves out those of its
        identity and its camera, `location` all at its camera's location whoever they show, `none`
        none. The query image itself is left out by all three.
      locations: pairs of camera codes; the first stands where the second does. For `location`.
      cameras: the codes that the data set's cameras have; any where empty.
      junk: identities that are in no ranking.
      query_in_gallery: the gallery is that of the data set behind the queries.
      cmc: `image`, or `identity`, where a list counts each identity at its first image.
      ap: `step`, `trapezoid` or `tied`; see `ccafl_jax.evaluation.ranking`.
      no_match: queries without a match are left out (`skip`) or count as 0 (`zero`).
      max_rank: length of the CMC.
      trial: what queries and gallery are: `parts` of the data set, `draws` of gallery images for
        infrared queries, or `directions`, one modality searched in the other.
      trials: number of draws, over which figures are averaged.
      mode: cameras that a gallery is drawn from.
      shots: images drawn for each identity and camera.
      draw: `seeded`, as most published code draws, or `official`, by the data set's permutations.
      direction: of the search.
      figures: that are reported.
      note: where the rules are from.

    Raises:
      ValueError: a value that an option does not know.
    """

    name: str
    same_camera: str = "identity"
    locations: tuple[tuple[int, int], ...] = ()
    cameras: tuple[int, ...] = ()
    junk: tuple[int, ...] = (-1, -2)
    query_in_gallery: bool = False
    cmc: str = "image"
    ap: str = "step"
    no_match: str = "skip"
    max_rank: int = 50
    trial: str = "parts"
    trials: int = 1
    mode: str | None = None
    shots: int | None = None
    draw: str | None = None
    direction: str | None = None
    figures: tuple[str, ...] = ("mAP", "rank1", "rank5", "rank10", "mINP")
    note: str = ""

    def __post_init__(self):
        self._check_types()
        require(
            not self.locations or self.same_camera == "location",
            f"locations are for same_camera location, not {self.same_camera}; leave them out",
        )
        for option, choices in CHOICES.items():
            value = getattr(self, option)
            if value is not None:
                require_choice(option, value, choices)
        for option, trial in _TAKEN_BY.items():
            taken = self.trial == trial
            require(
                (getattr(self, option) is not None) == taken,
                f"{self.name} {'needs' if taken else 'takes no'} {option}",
            )
        require(
            self.trials == 1 or self.trial == "draws",
            f"trials is {self.trials}, but {self.name} has one",
        )
        for figure in self.figures:
            if figure in ("mAP", "mINP"):
                continue
            place = figure.removeprefix("rank")
            known = figure != place and place.isdecimal() and int(place) >= 1
            require(known, f"unknown figure {figure!r}; expected mAP, mINP, rank1, rank5, ...")
            require(
                int(place) <= self.max_rank,
                f"{figure} is reported, but max_rank is {self.max_rank}; choose more, or other "
                "figures",
            )

    def _check_types(self) -> None:
        """Refuses values of a wrong type; sequences become tuples, numbers those of Python."""
        for option in ("junk", "cameras", "locations", "figures"):
            value = getattr(self, option)
            if isinstance(value, str) or not hasattr(value, "__iter__"):
                raise ValueError(f"{option} is {value!r}, must be a sequence, such as ({value!r},)")
            object.__setattr__(self, option, tuple(value))
        for option in ("junk", "cameras"):
            values = getattr(self, option)
            require(all(map(_is_whole, values)), f"{option} is {values}, must hold whole numbers")
            object.__setattr__(self, option, tuple(map(int, values)))
        pairs = [tuple(pair) if np.ndim(pair) == 1 else (pair,) for pair in self.locations]
        require(
            all(len(pair) == 2 and all(map(_is_whole, pair)) for pair in pairs),
            f"locations are {self.locations}, must be pairs of camera codes, such as ((3, 2),)",
        )
        object.__setattr__(self, "locations", tuple((int(a), int(b)) for a, b in pairs))
        for option in _WHOLE:
            value = getattr(self, option)
            if value is None and option == "shots":
                continue
            require(_is_whole(value), f"{option} is {value!r}, must be a whole number")
            require(value >= 1, f"{option} is {value}, must be 1 or more")
            object.__setattr__(self, option, int(value))
        require(
            isinstance(self.query_in_gallery, bool),
            f"query_in_gallery is {self.query_in_gallery!r}, must be True or False",
        )
        for figure in self.figures:
            require(isinstance(figure, str), f"figures hold {figure!r}, must be names")

    def replace(self, **options: Any) -> "Protocol":
        """The same with other values of some options.

        Another `same_camera` than `location` leaves out the locations, which are for that rule.

        Raises:
          ValueError: an option that there is not (the nearest is named) or that this protocol has
            no use for, or a value that it does not know.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for option in options:
            if option not in known:
                near = nearest_key(option, known)
                hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
                raise ValueError(f"unknown option {option} of a protocol: {hint}")
        if options.get("same_camera", "location") != "location":
            options = {"locations": ()} | options
        return dataclasses.replace(self, **options)

    def of_parts(self) -> "Protocol":
        """The same for features that have queries and a gallery of their own, ranked once."""
        if self.trial == "parts":
            return self
        return self.replace(
            trial="parts",
            trials=1,
            **dict.fromkeys(_TAKEN_BY),
            note="Queries and gallery as the features have them, ranked once, not drawn from the "
            "test set.",
        )

    def as_dict(self) -> dict[str, Any]:
        """The rules as JSON-able values, without those that do not apply."""
        rules = dataclasses.asdict(self)
        for key in ("junk", "figures"):
            rules[key] = list(rules[key])
        rules["locations"] = [list(pair) for pair in self.locations]
        rules["cameras"] = list(self.cameras) or None
        return {key: value for key, value in rules.items() if value not in (None, "")}

    def ranking_options(self) -> dict[str, Any]:
        """The options of `ccafl_jax.evaluation.ranking.rank_by`."""
        return {key: getattr(self, key) for key in ("ap", "no_match", "cmc", "max_rank")}

    def relevance(
        self,
        query_pid: np.ndarray,
        gallery_pid: np.ndarray,
        query_camid: np.ndarray,
        gallery_camid: np.ndarray,
        *,
        camera_codes: Sequence[int] = (),
        same_item: tuple[np.ndarray, np.ndarray] | None = None,
        good: Lists | None = None,
        junk_lists: Lists | None = None,
    ) -> Relevance:
        """What counts as a match and what is left out, for each query.

        Args:
          query_pid: int[Q].
          gallery_pid: int[G].
          query_camid: int[Q], cameras counted from 0; -1 (unknown) is no camera of any other.
          gallery_camid: int[G].
          camera_codes: raw code of each camid; needed where the protocol has `locations`.
          same_item: int[Q] and int[G], numbers of the images; a query does not meet itself.
          good: gallery items that are matches, by query, in place of the identities.
          junk_lists: gallery items that a query does not meet, in place of the camera rule.

        Raises:
          ValueError: no camera codes, or see `relevance`.
        """
        cameras = np.concatenate([np.ravel(query_camid), np.ravel(gallery_camid)])
        highest = int(cameras.max(initial=-1))
        return relevance(
            query_pid,
            gallery_pid,
            query_camid,
            gallery_camid,
            same_camera=self.same_camera if junk_lists is None else "none",
            junk=self.junk,
            locations=self.location_by_camid(camera_codes, highest=highest),
            same_item=same_item,
            good=good,
            junk_lists=junk_lists,
        )

    def location_by_camid(
        self, camera_codes: Sequence[int], *, highest: int = -1
    ) -> np.ndarray | None:
        """The location of each camera, as the code of the camera that stands for it.

        Args:
          camera_codes: raw code of each camid.
          highest: camid, for which there must be a code.

        Returns:
          int32[cameras], or None where each camera has a location of its own.

        Raises:
          ValueError: fewer codes than cameras.
        """
        if self.same_camera != "location" or not self.locations:
            return None
        require(
            len(camera_codes) > highest,
            f"{self.name} goes by camera codes, and camid reaches {highest} with "
            f"{len(camera_codes)} camera_codes; expected the code of each camid",
        )
        place = dict(self.locations)
        return np.array([place.get(int(code), int(code)) for code in camera_codes], np.int32)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def protocol_of(name: str) -> Protocol:
    """The protocol of a data set.

    Raises:
      ValueError: there is none of that name; the nearest known one is named.
    """
    if name not in PROTOCOLS:
        near = nearest_key(name, PROTOCOLS)
        hint = f"did you mean {near}? " if near else ""
        raise ValueError(f"unknown protocol {name!r}; {hint}known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


_MARKET = Protocol(
    "market1501",
    note="Junk (-1) dropped, distractors (0) kept; images of a query's identity and camera left "
    "out; single queries.",
)
_SYSU = Protocol(
    "sysumm01",
    same_camera="location",
    locations=((3, 2),),
    cameras=(1, 2, 3, 4, 5, 6),
    cmc="identity",
    max_rank=20,
    trial="draws",
    trials=10,
    mode="all",
    shots=1,
    draw="seeded",
    figures=("rank1", "rank5", "rank10", "rank20", "mAP", "mINP"),
    note="Infrared queries; camera 3 stands where camera 2 does, so its queries do not meet the "
    "images of that one, whoever they show; the CMC counts identities; mean over ten draws.",
)
_REGDB = Protocol(
    "regdb",
    same_camera="none",
    max_rank=20,
    trial="directions",
    direction="visible_to_thermal",
    figures=("rank1", "rank5", "rank10", "rank20", "mAP", "mINP"),
    note="One modality searched in the other, no camera rule; mean over the models of ten splits.",
)
_MARS = Protocol(
    "mars",
    query_in_gallery=True,
    note="Queries stand in the gallery, too (140 of them have no match without); junk (-1) "
    "dropped, distractors (0) kept; tracklets of a query's identity and camera left out.",
)
_LIKE_MARKET = "As Market-1501."

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _MARKET,
        *(
            dataclasses.replace(_MARKET, name=name, note=_LIKE_MARKET)
            for name in (
                "dukemtmcreid",
                "msmt17",
                "msmt17_v1",
                "msmt17_v2",
                "personx",
                "manifest",
                "market_like",
                "synthetic",
            )
        ),
        dataclasses.replace(
            _MARKET,
            name="veri776",
            note="As Market-1501. The queries' images are in the gallery as copies, which the "
            "camera rule leaves out.",
        ),
        _MARS,
        dataclasses.replace(_MARS, name="lsvid", note="Queries stand in the gallery, too."),
        dataclasses.replace(_MARS, name="synthetic_tracklets", note="As MARS."),
        Protocol(
            "ilidsvid",
            figures=("rank1", "rank5", "rank10", "rank20"),
            note="Camera 1 searched in camera 2, one match each: the CMC says it all; mean over "
            "the models of ten splits.",
        ),
        _SYSU,
        dataclasses.replace(_SYSU, name="synthetic_sysumm01"),
        dataclasses.replace(_SYSU, name="sysumm01_indoor", mode="indoor"),
        dataclasses.replace(_SYSU, name="sysumm01_10shot", shots=10),
        dataclasses.replace(_SYSU, name="sysumm01_indoor_10shot", mode="indoor", shots=10),
        _REGDB,
        dataclasses.replace(_REGDB, name="synthetic_regdb"),
        dataclasses.replace(_REGDB, name="regdb_reverse", direction="thermal_to_visible"),
        Protocol(
            "no_cameras",
            same_camera="none",
            note="Cameras are not known: nothing is left out but the query image itself, so "
            "matches from a query's own camera count, and figures are higher than across cameras.",
        ),
    )
}
"""By name of the data set, and variants."""
