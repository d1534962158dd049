"""Figures of features under the protocol of their data set, with every rule they were made by."""

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ccafl_jax.evaluation import results
from ccafl_jax.evaluation.bootstrap import bootstrap as bootstrap_intervals
from ccafl_jax.evaluation.camera_pairs import map_by_camera_pair
from ccafl_jax.evaluation.protocols import PROTOCOLS, Protocol, protocol_of
from ccafl_jax.evaluation.ranking import Ranking, rank_by
from ccafl_jax.options import require
from ccafl_jax.scoring.feature_set import DISTRACTOR, TEST, FeatureSet
from ccafl_jax.scoring.groups import GroupedScores, tracks_of
from ccafl_jax.scoring.published_lists import agreement
from ccafl_jax.scoring.published_lists import published_lists as lists_of
from ccafl_jax.scoring.scores import Expand, Rerank, scores_of
from ccafl_jax.scoring.settings import OWN_CAMERAS, Settings, check_names, check_no_trials
from ccafl_jax.scoring.trials import Trial, same_item, trials

_SHARED = ("feature", "flip", "pooling", "preprocess", "unit", "orientation")


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """One ranking of an evaluation.

    Attributes:
      name: of the trial, with the split where there are several sets.
      features: the set that was ranked.
      query: int64[Q], its rows that are the queries.
      gallery: int64[G], its rows that are the gallery; of tracks, the first image of each.
      gallery_pid: int32[G], identities as they were ranked; see `Trial`.
      ranking: of them.
      figures: of this ranking alone, and counts.
    """

    name: str
    features: FeatureSet
    query: np.ndarray
    gallery: np.ndarray
    gallery_pid: np.ndarray
    ranking: Ranking
    figures: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Attributes:
      figures: means over all rankings, the rules, counts and warnings; JSON-able.
      per_trial: figures and counts of each ranking.
      scored: the rankings.
    """

    figures: dict[str, Any]
    per_trial: list[dict[str, Any]]
    scored: tuple[Scored, ...]

    def retrieval(self, number: int = 0) -> results.Retrieval:
        """One ranking with names, labels and rules, to be saved or looked at.

        Args:
          number: of the ranking.
        """
        one = self.scored[number]
        sides = {}
        for side, rows in (("query", one.query), ("gallery", one.gallery)):
            sides[f"{side}_names"] = one.features.names[rows]
            sides[f"{side}_pid"] = one.features.pid[rows]
            sides[f"{side}_camid"] = one.features.camid[rows]
        sides["gallery_pid"] = one.gallery_pid
        own, all_rules = one.ranking.rules, self.figures["rules"]
        rules = {key: value for key, value in all_rules.items() if key not in own}
        rules |= {"feature_metric": all_rules["metric"]}
        rules |= {"dataset": self.figures["dataset"], "trial_name": one.name}
        return results.retrieval(one.ranking, rules=rules, **sides)


def evaluate(
    sets: FeatureSet | Sequence[FeatureSet],
    *,
    protocol: str | Protocol | None = None,
    metric: str = "cosine",
    rerank: Rerank | None = None,
    expand: Expand | None = None,
    multi_query: str | None = None,
    tracks: bool = False,
    distractors: bool = False,
    published_lists: str = "ignore",
    bootstrap: int = 0,
    camera_pairs: bool = False,
    top: int = 0,
    engine: str = "auto",
    mesh: Mesh | None = None,
    progress: bool = False,
    **options: Any,
) -> Evaluation:
    """Scores features.

    Args:
      sets: features of a test set; or several, one for each model of a data set with splits, whose
        figures are averaged.
      protocol: a `Protocol` or the name of one; by default that of the data set, and of sets that
        know no camera `no_cameras`.
      metric: `cosine`, `euclidean` or `dot`.
      rerank: re-rank by k-reciprocal neighbours; for `cosine` and `euclidean`.
      expand: average each query with its nearest gallery items first; for `cosine`.
      multi_query: `mean` or `max`: what the part `multi_query` holds of a query's identity and
        camera is pooled to its feature.
      tracks: the gallery is one of tracks (VeRi-776), each as near as the nearest of its images.
      distractors: join the part `distractors` to the gallery.
      published_lists: `ignore`, `use` the data set's good and junk lists in place of identities
        and cameras, or `check`: compare the two and go by identities.
      bootstrap: samples of 95 % intervals over the identities of the queries; 0 for none.
      camera_pairs: mAP for each pair of cameras, too.
      top: number of best items that rankings keep of each query.
      engine: of the ranking, see `ccafl_jax.evaluation.ranking.rank_by`; re-ranked scores and
        tracks are ranked on the host.
      mesh: the devices that the ranking by features is split over, on the axis `data`.
      progress: show bars.
      **options: of the protocol, in place of its own: `ap`, `no_match`, `same_camera`, `mode`,
        `shots`, `draw`, `trials`, `direction`, ...; see `Protocol`. The last five are not for
        features that come with queries and a gallery.

    Returns:
      `Evaluation`. Its figures are means over the trials of a set, then over the sets; `NAME_std`
      is the standard deviation (n - 1) over the sets or, of one set, over its trials. Where sets
      were trained on different data, `trained_on` lists all.

    Raises:
      ValueError: an unknown option or value, sets that do not belong together, or a set that lacks
        what is asked for.
    """
    sets = (sets,) if isinstance(sets, FeatureSet) else tuple(sets)
    for features in sets:
        require(
            isinstance(features, FeatureSet),
            f"found {type(features).__name__} in place of features; load files with "
            "scoring.feature_set.load",
        )
    _check_together(sets)
    settings = Settings(
        metric=metric,
        rerank=rerank,
        expand=expand,
        multi_query=multi_query,
        tracks=tracks,
        distractors=distractors,
        published_lists=published_lists,
        bootstrap=bootstrap,
        camera_pairs=camera_pairs,
        top=top,
        engine=engine,
        mesh=mesh,
        progress=progress,
    )
    require(
        not bootstrap or len(sets) == 1,
        "bootstrap goes over the queries of one set; the spread over several is NAME_std",
    )
    asked = protocol
    protocol, warnings = _protocol(sets, protocol)
    check_names(options)
    protocol = protocol.replace(**options)
    if not np.any(sets[0].part == TEST):
        check_no_trials(
            sets[0].dataset, protocol, [*options] if asked is None else [*options, "protocol"]
        )
        protocol = protocol.of_parts()
    by_set = [_score_set(features, protocol, settings, several=len(sets) > 1) for features in sets]
    scored = tuple(one for found in by_set for one in found)
    figures = {
        "dataset": sets[0].dataset,
        "protocol": protocol.name,
        **_means(by_set, protocol.figures),
        "counts": _counts(scored),
        "rules": _rules(sets, protocol, settings, by_set),
        "warnings": [*_warnings(sets), *warnings, *_camera_warnings(scored, protocol)],
    }
    trained_on = list(dict.fromkeys(features.meta.get("trained_on") for features in sets))
    if any(name is not None for name in trained_on):
        names = ["unknown" if name is None else name for name in trained_on]
        figures["trained_on"] = names[0] if len(names) == 1 else names
    if bootstrap:
        figures["intervals"] = _intervals(scored, protocol, bootstrap)
    for key in ("published_lists", "camera_pairs"):
        if len(scored) == 1 and key in scored[0].figures:
            figures[key] = scored[0].figures[key]
    return Evaluation(figures, [one.figures for one in scored], scored)


def values_by_query(
    scored: Sequence[Scored], figures: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """What each query contributes to figures; its mean over the trials where it counts.

    Args:
      scored: rankings of the same queries.
      figures: their names.

    Returns:
      By name float64[Q]; bool[Q], whether it counts in any trial; int32[Q], identities.
    """
    valid = np.stack([one.ranking.valid for one in scored])
    times = np.maximum(valid.sum(axis=0), 1)
    values = {
        figure: np.stack([_by_query(one.ranking, figure) for one in scored]).sum(axis=0) / times
        for figure in figures
    }
    return values, valid.any(axis=0), scored[0].features.pid[scored[0].query]


def _warnings(sets: tuple[FeatureSet, ...]) -> list[str]:
    """What was to be said about the data sets when the features were made."""
    found = (text for features in sets for text in features.meta.get("warnings", ()))
    return list(dict.fromkeys(found))


def _check_together(sets: tuple[FeatureSet, ...]) -> None:
    """Raises ValueError unless figures of the sets may be averaged."""
    require(len(sets) > 0, "there is no set of features to score")
    names = sorted({features.dataset for features in sets})
    require(
        len(names) == 1,
        f"the sets are of {' and '.join(map(repr, names))}; expected one data set: score them one "
        "by one",
    )
    for key in _SHARED:
        values = [features.meta.get(key) for features in sets]
        for value in values:
            require(
                value == values[0],
                f"{key} is {values[0]!r} in one set and {value!r} in another; expected features "
                "of one kind",
            )
    drawn = [bool(np.any(features.part == TEST)) for features in sets]
    require(
        len(set(drawn)) == 1,
        f"{drawn.count(False)} of {len(sets)} sets have queries and a gallery of their own, the "
        "others not; expected sets of one kind",
    )
    splits = [features.meta.get("split") for features in sets]
    require(
        len({split is None for split in splits}) == 1,
        f"{splits.count(None)} of {len(sets)} sets name no split; expected all of them to, or none",
    )
    for split in splits:
        require(
            split is None or splits.count(split) == 1,
            f"there are {splits.count(split)} sets of split {split}; expected one of each split",
        )
    for (i, first), (j, second) in itertools.combinations(enumerate(sets, start=1), 2):
        require(
            splits[0] is not None or not np.array_equal(first.features, second.features),
            f"sets {i} and {j} hold the same features; expected those of different models",
        )
        same = all(
            np.array_equal(getattr(first, column), getattr(second, column))
            for column in ("pid", "camid", "part")
        )
        require(
            splits[0] is not None or same,
            f"sets {i} and {j} are of different images; expected features of one test set, or "
            "splits that are named",
        )


def _protocol(
    sets: tuple[FeatureSet, ...], asked: str | Protocol | None
) -> tuple[Protocol, list[str]]:
    """The protocol before options, and warnings."""
    known = any(np.any(features.camid >= 0) for features in sets)
    if isinstance(asked, Protocol):
        protocol = asked
    else:
        protocol = protocol_of(asked or sets[0].dataset or OWN_CAMERAS)
    if known or protocol.same_camera == "none":
        return protocol, []
    if asked is not None:
        return protocol, [f"no camera is known: the camera rule of {protocol.name} has no effect"]
    without = PROTOCOLS["no_cameras"]
    text = "no camera is known: nothing is left out but the query image itself"
    rules = {key: getattr(without, key) for key in ("name", "same_camera", "note")}
    return protocol.replace(**rules, cameras=()), [text]


def _score_set(
    features: FeatureSet, protocol: Protocol, settings: Settings, *, several: bool
) -> list[Scored]:
    split = f"split {features.meta.get('split', '?')}, " if several else ""
    return [
        _score_trial(features, trial, protocol, settings, name=split + trial.name)
        for trial in trials(features, protocol, distractors=settings.distractors)
    ]


def _score_trial(
    features: FeatureSet, trial: Trial, protocol: Protocol, settings: Settings, *, name: str
) -> Scored:
    scores, counted = scores_of(
        features,
        trial,
        metric=settings.metric,
        rerank=settings.rerank,
        expand=settings.expand,
        multi_query=settings.multi_query,
        progress=settings.progress,
    )
    gallery, gallery_pid, items = trial.gallery, trial.gallery_pid, same_item(features, trial)
    if settings.tracks:
        offsets, values, more = tracks_of(features, trial)
        scores, counted = GroupedScores(scores, offsets, values), counted | more
        first = values[offsets[:-1]]
        gallery, gallery_pid, items = gallery[first], gallery_pid[first], None
    camids = (features.camid[rows] for rows in (trial.query, gallery))
    labels = [features.pid[trial.query], gallery_pid, *camids]
    codes = features.camera_codes
    rules = protocol.relevance(*labels, camera_codes=codes, same_item=items)
    figures: dict[str, Any] = {"trial": name}
    if settings.published_lists != "ignore":
        lists = lists_of(features, trial)
        figures["published_lists"] = agreement(lists, rules)
        if settings.published_lists == "use":
            rules = protocol.relevance(
                *labels,
                camera_codes=codes,
                same_item=items,
                good=lists.good,
                junk_lists=lists.junk,
            )
    ranking = rank_by(
        scores,
        rules,
        top=settings.top,
        engine=settings.engine,
        mesh=settings.mesh,
        progress=settings.progress,
        **protocol.ranking_options(),
    )
    figures |= {figure: _value(ranking, figure) for figure in protocol.figures}
    _check_matches(ranking, name, protocol)
    figures |= {"queries": ranking.queries, "skipped": ranking.skipped}
    counted["queries_without_match"] = int(np.sum(~ranking.valid))
    figures["counts"] = _trial_counts(features, trial, gallery_pid) | counted
    if settings.camera_pairs:
        pairs = map_by_camera_pair(
            scores,
            *labels,
            same_camera=protocol.same_camera,
            locations=protocol.location_by_camid(codes),
            junk=protocol.junk,
            same_item=items,
            ap=protocol.ap,
            engine=settings.engine,
            mesh=settings.mesh,
        )
        figures["camera_pairs"] = pairs.as_dict(codes)
    return Scored(name, features, trial.query, gallery, gallery_pid, ranking, figures)


def _trial_counts(features: FeatureSet, trial: Trial, gallery_pid: np.ndarray) -> dict[str, int]:
    without = ~np.isin(gallery_pid, features.pid[trial.query])
    return {
        "queries": len(trial.query),
        "gallery": len(gallery_pid),
        "junk_dropped": trial.junk,
        "queries_without_identity_dropped": trial.unlabelled,
        "gallery_of_ids_without_query": int(without.sum()),
        "distractors_joined": int(np.sum(features.part[trial.gallery] == DISTRACTOR)),
    }


def _check_matches(ranking: Ranking, name: str, protocol: Protocol) -> None:
    """Raises ValueError where there is nothing to measure."""
    require(
        bool(ranking.valid.any()),
        f"{name}: none of the {len(ranking.valid)} queries has a match in the gallery once the "
        f"rules of {protocol.name} have left out what they do; check identities and cameras",
    )


def _value(ranking: Ranking, figure: str) -> float:
    if figure in ("mAP", "mINP"):
        return float(getattr(ranking, figure))
    return float(ranking.cmc[int(figure.removeprefix("rank")) - 1])


def _means(by_set: list[list[Scored]], names: Sequence[str]) -> dict[str, Any]:
    """Means over the trials of each set, then over the sets, and their spread."""
    figures: dict[str, Any] = {}
    several = by_set if len(by_set) > 1 else [[one] for one in by_set[0]]
    for name in names:
        own = [statistics.fmean(one.figures[name] for one in found) for found in several]
        figures[name] = statistics.fmean(own)
        if len(own) > 1:
            figures[f"{name}_std"] = statistics.stdev(own)
    if len(several) > 1:
        figures["std_over"] = "sets" if len(by_set) > 1 else "trials"
    for name in ("queries", "skipped"):
        own = [statistics.fmean(one.figures[name] for one in found) for found in by_set]
        figures[name] = round(sum(own))
    return figures


def _counts(scored: tuple[Scored, ...]) -> dict[str, Any]:
    """Counts that all rankings share as numbers, others as lists."""
    found: dict[str, Any] = {"sets_and_trials": len(scored)}
    for key in scored[0].figures["counts"]:
        values = [one.figures["counts"][key] for one in scored]
        found[key] = values[0] if len(set(values)) == 1 else values
    return found


def _rules(
    sets: tuple[FeatureSet, ...],
    protocol: Protocol,
    settings: Settings,
    by_set: list[list[Scored]],
) -> dict[str, Any]:
    rules = protocol.as_dict()
    rules["protocol"] = rules.pop("name")
    rules |= {
        "metric": settings.metric,
        "rerank": settings.rerank and dataclasses.asdict(settings.rerank),
        "expand": settings.expand and dataclasses.asdict(settings.expand),
        "multi_query": settings.multi_query,
        "tracks": settings.tracks,
        "distractors": settings.distractors,
        "published_lists": settings.published_lists,
        "sets": len(sets),
        "trials": len(by_set[0]),
    }
    rules |= {key: sets[0].meta.get(key) for key in _SHARED}
    splits = [features.meta.get("split") for features in sets]
    rules["splits"] = splits if any(split is not None for split in splits) else None
    return rules


def _intervals(
    scored: tuple[Scored, ...], protocol: Protocol, samples: int
) -> dict[str, dict[str, float | int]]:
    """Intervals over identities."""
    values, valid, pid = values_by_query(scored, protocol.figures)
    found = bootstrap_intervals(values, valid, pid, samples=samples, no_match=protocol.no_match)
    return {figure: interval.to_json() for figure, interval in found.items()}


def _by_query(ranking: Ranking, figure: str) -> np.ndarray:
    if figure in ("mAP", "mINP"):
        return {"mAP": ranking.ap, "mINP": ranking.inp}[figure]
    place = int(figure.removeprefix("rank"))
    return ((ranking.first > 0) & (ranking.first <= place)).astype(np.float64)


def _camera_warnings(scored: tuple[Scored, ...], protocol: Protocol) -> list[str]:
    """Says where the camera rule has nothing to go by."""
    one = scored[0]
    if protocol.same_camera == "none" or not np.any(one.features.camid >= 0):
        return []
    sought = np.isin(one.gallery_pid, one.features.pid[one.query])
    unknown = [
        int(np.sum(one.features.camid[rows] < 0)) for rows in (one.query, one.gallery[sought])
    ]
    if not any(unknown):
        return []
    return [
        f"{unknown[0]} queries and {unknown[1]} gallery images of their identities have no known "
        "camera: for these the camera rule has no effect"
    ]
