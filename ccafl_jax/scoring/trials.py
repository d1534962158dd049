"""Which rows of a set of features are queries and gallery, once or several times over."""

import dataclasses

import numpy as np

from ccafl_jax.data.layouts.sysumm01 import GALLERY_CAMERAS, draw_gallery, official_draws
from ccafl_jax.data.records import INFRARED, VISIBLE
from ccafl_jax.evaluation.protocols import Protocol
from ccafl_jax.options import require
from ccafl_jax.scoring.feature_set import DISTRACTOR, GALLERY, QUERY, TEST, FeatureSet

_MODALITIES = {"visible": VISIBLE, "thermal": INFRARED}


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One ranking.

    Attributes:
      name: what tells it from others, such as `draw 3`.
      query: int64[Q], rows of the feature set.
      gallery: int64[G], rows of the feature set, in the order of the ranking.
      junk: gallery rows that show nobody, left out.
      unlabelled: queries that show nobody known, left out.
    """

    name: str
    query: np.ndarray
    gallery: np.ndarray
    junk: int = 0
    unlabelled: int = 0


def trials(
    features: FeatureSet, protocol: Protocol, *, distractors: bool = False
) -> tuple[Trial, ...]:
    """All rankings of a protocol.

    A set that holds queries and a gallery is ranked once, whatever draws the protocol has.

    Args:
      features: the set.
      protocol: its rules.
      distractors: join the part `distractors` to the gallery.

    Raises:
      ValueError: queries or gallery are empty, or a trial needs what the set does not hold.
    """
    test = features.rows(TEST)
    if not test.size:
        found = [("queries and gallery", features.rows(QUERY), features.rows(GALLERY))]
    elif protocol.trial == "draws":
        found = _draws(features, protocol, test)
    elif protocol.trial == "directions":
        found = _directions(features, protocol, test)
    else:
        raise ValueError(
            f"{len(test)} rows are neither query nor gallery, which {protocol.name} needs; use the "
            "protocol of the data set that they are of"
        )
    extra = features.rows(DISTRACTOR)
    require(
        len(extra) > 0 or not distractors,
        "there are no features of distractors; extract them, or leave distractors out",
    )
    extra = extra if distractors else extra[:0]
    return tuple(
        _trial(features, protocol, name, query, np.concatenate([gallery, extra]))
        for name, query, gallery in found
    )


def same_item(features: FeatureSet, trial: Trial) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images on both sides, by which a query is not found in itself.

    Images of one name are one image; without names, those of one row are.

    Returns:
      int32[Q] and int32[G]; -1 in the gallery stands for images that are no query.
    """
    if np.all(features.names[trial.query] != ""):
        query, gallery = features.names[trial.query], features.names[trial.gallery]
    else:
        query, gallery = trial.query, trial.gallery
    known, numbers = np.unique(query, return_inverse=True)
    place = np.minimum(np.searchsorted(known, gallery), len(known) - 1)
    there = np.where(known[place] == gallery, place, -1)
    return numbers.reshape(-1).astype(np.int32), there.astype(np.int32)


def _trial(
    features: FeatureSet, protocol: Protocol, name: str, query: np.ndarray, gallery: np.ndarray
) -> Trial:
    known = ~np.isin(features.pid[query], protocol.junk)
    if protocol.query_in_gallery:
        gallery = np.concatenate([query, gallery])
    real = ~np.isin(features.pid[gallery], protocol.junk)
    if not (known.any() and real.any()):
        raise ValueError(
            f"{features.dataset or 'these features'}, {name}: {len(query)} queries (of which "
            f"{int(known.sum())} with an identity) and {len(gallery)} gallery rows (of which "
            f"{int(real.sum())} are not junk); expected 1 or more of both"
        )
    return Trial(
        name=name,
        query=query[known],
        gallery=gallery[real],
        junk=int(np.sum(~real)),
        unlabelled=int(np.sum(~known)),
    )


def _draws(features: FeatureSet, protocol: Protocol, test: np.ndarray):
    """Infrared queries against drawn visible images."""
    modality = _modality(features, test, protocol)
    codes = np.asarray(features.camera_codes)[features.camid[test]]
    permutations = None
    if protocol.draw == "official":
        permutations = official_draws(features.tables, features.dataset or "the data set")
    found = []
    for number in range(protocol.trials):
        drawn = draw_gallery(
            features.pid[test],
            codes,
            cameras=GALLERY_CAMERAS[protocol.mode],
            shots=protocol.shots,
            trial=number,
            permutations=permutations,
        )
        found.append((f"draw {number}", test[modality == INFRARED], test[drawn]))
    return found


def _directions(features: FeatureSet, protocol: Protocol, test: np.ndarray):
    """All images of one modality against all of the other."""
    modality = _modality(features, test, protocol)
    query, gallery = (_MODALITIES[side] for side in protocol.direction.split("_to_"))
    return [(protocol.direction, test[modality == query], test[modality == gallery])]


def _modality(features: FeatureSet, test: np.ndarray, protocol: Protocol) -> np.ndarray:
    require(
        features.modality is not None,
        f"{protocol.name} goes by modality, which these features do not have; expected 0 (visible) "
        "or 1 (infrared) for each row",
    )
    return features.modality[test]
