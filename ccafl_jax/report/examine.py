"""What the rankings of a test set show: curves, cameras, and the lists of some queries."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ccafl_jax.data.records import Collection
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.evaluation import results
from ccafl_jax.report import pictures
from ccafl_jax.report.data import Activation, Findings, Picture, RankList
from ccafl_jax.report.figures import rules_text
from ccafl_jax.scoring.evaluate import Evaluation, Scored, evaluate
from ccafl_jax.scoring.feature_set import FeatureSet

_SCORES = ("rerank", "expand", "multi_query", "tracks", "bootstrap", "top", "camera_pairs")

LENGTH = 10
"""Items of a list."""
LISTS = 10
"""Queries of each kind."""
ACTIVATIONS = 4
"""Queries of each kind whose activations are shown."""

_KINDS: Mapping[str, Callable[[results.Retrieval, int], np.ndarray]] = {
    "best": results.best,
    "median": results.median,
    "worst": results.worst,
}


def pairs_of_cameras(features: FeatureSet, options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The mAP by pair of cameras of the plain features, or None where no camera is known.

    Args:
      features: of the test set; of several trials the first one counts.
      options: of the evaluation; what changes the scores of features, such as re-ranking, is
        passed over.
    """
    if not np.any(features.camid >= 0):
        return None
    plain = {name: value for name, value in options.items() if name not in _SCORES}
    scored = evaluate(features, **plain, camera_pairs=True).scored
    return scored[0].figures["camera_pairs"]


def examine(
    evaluation: Evaluation,
    *,
    pairs: Mapping[str, Any] | None = None,
    bundle: ModelBundle | None = None,
    collection: Collection | None = None,
    lists: int = LISTS,
) -> Findings:
    """What a page shows of an evaluation; of its first ranking, where there are several.

    Args:
      evaluation: with the best items of each query (`top`).
      pairs: see `pairs_of_cameras`.
      bundle: the model, for activations; None leaves them out.
      collection: the data set, for images; None leaves them out.
      lists: queries of each kind.

    Raises:
      ValueError, FileNotFoundError: images that cannot be read, or of another data set.
    """
    one, found = evaluation.scored[0], evaluation.retrieval(0)
    features = one.features
    images = None if collection is None else pictures.TestImages(features, collection)
    cameras = camera_names(features)
    chosen = choose_queries(found, lists)
    sizes = None if bundle is None else bundle.preprocess
    width = pictures.shown_width(sizes.height, sizes.width) if sizes else pictures.HEIGHT // 2
    picture = functools.partial(_picture, features, images, width, cameras)
    ranked = [
        _list(found, one, row, kind, picture) for kind, rows in chosen.items() for row in rows
    ]
    shown = [one.query[row] for rows in chosen.values() for row in rows[:ACTIVATIONS]]
    return Findings(
        dataset=features.dataset,
        unit=features.meta.get("unit", "image"),
        rules=rules_text(evaluation.figures["rules"]),
        figures={k: v for k, v in evaluation.figures.items() if isinstance(v, float)},
        trial=one.name if len(evaluation.scored) > 1 else "",
        queries=one.ranking.queries,
        cmc=[float(share) for share in one.ranking.cmc],
        cameras=[cameras[camid] for camid in np.unique(features.camid[features.camid >= 0])],
        camera_pairs=pairs and _with_names(pairs),
        lists=ranked,
        activations=_activations(bundle, collection, features, images, shown, cameras),
    )


def camera_names(features: FeatureSet) -> dict[int, str]:
    """By camid, how people call the cameras; -1 for those that are not known."""
    return {-1: "?"} | {camid: _name(code) for camid, code in enumerate(features.camera_codes)}


def choose_queries(found: results.Retrieval, lists: int) -> dict[str, np.ndarray]:
    """Rows of the best, the median and the worst queries, each query once, by kind.

    Args:
      found: a retrieval.
      lists: of each kind, at most; fewer where there are not three times as many queries.
    """
    valid = int(np.sum(results.rescore(found).valid))
    each = max(1, min(lists, valid // 3))
    chosen, seen = {}, np.zeros(0, np.int64)
    for kind, pick in _KINDS.items():
        rows = pick(found, each)
        chosen[kind] = rows[~np.isin(rows, seen)]
        seen = np.concatenate([seen, rows])
    return chosen


def _with_names(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """A table of camera pairs with the names that people know."""
    found = dict(pairs) | {"cameras": [_name(code) for code in pairs["cameras"]]}
    if found["worst"] is not None:
        worst = found["worst"]
        found["worst"] = worst | {side: _name(worst[side]) for side in ("query", "gallery")}
    return found


def _name(code: int | str) -> str:
    return f"c{code}" if isinstance(code, int) else str(code)


def _picture(features, images, width, cameras, row: int, **more) -> Picture:
    """A row of the features as it is shown."""
    encoded = b""
    if images is not None:
        pixels = images.pixels([row], height=pictures.HEIGHT, width=width)[0]
        encoded = pictures.jpeg(pixels)
    return Picture(
        jpeg=encoded,
        pid=int(features.pid[row]),
        camera=cameras[int(features.camid[row])],
        name=str(features.names[row]),
        **more,
    )


def _list(found, one: Scored, row: int, kind: str, picture: Callable[..., Picture]) -> RankList:
    """The list of one query of a ranking."""
    items = [
        picture(int(one.gallery[item]), match=bool(match), score=float(score))
        for item, match, score in zip(
            found.indices[row, :LENGTH],
            found.matches[row, :LENGTH],
            found.scores[row, :LENGTH],
            strict=True,
        )
        if item >= 0
    ]
    return RankList(
        kind=kind,
        query=picture(int(one.query[row])),
        items=items,
        ap=float(one.ranking.ap[row]),
        first=int(found.first[row]),
        matches=int(found.offsets[row + 1] - found.offsets[row]),
    )


def _activations(bundle, collection, features, images, rows, cameras) -> list[Activation]:
    if bundle is None or images is None or not len(rows):
        return []
    size = bundle.preprocess
    records = images.records.take(np.asarray(rows))
    kinds = pictures.kinds_of(bundle, collection, records)
    seen = images.pixels(rows, height=size.height, width=size.width)
    maps = pictures.activation_maps(bundle, seen, kinds)
    width = pictures.shown_width(size.height, size.width)
    shown = images.pixels(rows, height=pictures.HEIGHT, width=width)
    return [
        Activation(
            image=pictures.jpeg(pixels),
            overlay=pictures.jpeg(pictures.overlay(pixels, found)),
            pid=int(features.pid[row]),
            camera=cameras[int(features.camid[row])],
        )
        for row, pixels, found in zip(rows, shown, maps, strict=True)
    ]
