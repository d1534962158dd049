"""Which rows of a set of features are queries and gallery, once or several times over."""

import dataclasses

import numpy as np

from ccafl_jax.data.layouts.sysumm01 import (
    GALLERY_CAMERAS,
    INFRARED_CAMERAS,
    draw_gallery,
    official_draws,
)
from ccafl_jax.data.records import INFRARED, UNKNOWN_CAMERA, VISIBLE
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
      gallery_pid: int32[G], identities that rankings go by: those of the rows, but that each
        distractor that was joined has one of its own, whatever number the set gives it.
      junk: gallery rows that show nobody, left out.
      unlabelled: queries that show nobody known, left out.
    """

    name: str
    query: np.ndarray
    gallery: np.ndarray
    gallery_pid: np.ndarray
    junk: int = 0
    unlabelled: int = 0

    def keep(self, kept: np.ndarray) -> "Trial":
        """The same with part of the gallery.

        Args:
          kept: bool[G].
        """
        return dataclasses.replace(
            self, gallery=self.gallery[kept], gallery_pid=self.gallery_pid[kept]
        )


def trials(
    features: FeatureSet, protocol: Protocol, *, distractors: bool = False
) -> tuple[Trial, ...]:
    """All rankings of a protocol.

    A set that holds queries and a gallery is ranked once, whatever draws the protocol has. Joined
    distractors match nobody and are never junk, whatever their identities.

    Args:
      features: the set.
      protocol: its rules.
      distractors: join the part `distractors` to the gallery.

    Raises:
      ValueError: queries or gallery are empty, a trial needs what the set does not hold, or
        cameras have other codes than the protocol knows.
    """
    test, query, gallery = (features.rows(part) for part in (TEST, QUERY, GALLERY))
    require(
        not (test.size and (query.size or gallery.size)),
        f"{len(test)} rows are of the part test, {len(query)} are queries and {len(gallery)} "
        "gallery; expected either the one or the other two",
    )
    if protocol.locations or (protocol.trial == "draws" and test.size):
        _check_codes(features, protocol)
    if not test.size:
        found = [("queries and gallery", query, gallery)]
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
    extra = features.part[gallery] == DISTRACTOR
    real = ~np.isin(features.pid[gallery], protocol.junk) | extra
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
        gallery_pid=np.where(extra, _unused(features, protocol, extra), features.pid[gallery])[
            real
        ],
        junk=int(np.sum(~real)),
        unlabelled=int(np.sum(~known)),
    )


def _unused(features: FeatureSet, protocol: Protocol, extra: np.ndarray) -> np.ndarray:
    """Where `extra` is True a number that is no identity and no junk, another one each; else 0."""
    used = np.union1d(features.pid, protocol.junk)
    count = int(extra.sum())
    # So many numbers that enough are left, whichever are used.
    free = np.setdiff1d(np.arange(-count - len(used), 0), used)[::-1]
    numbers = np.zeros(len(extra), np.int32)
    numbers[extra] = free[:count]
    return numbers


def _check_codes(features: FeatureSet, protocol: Protocol) -> None:
    """Raises ValueError for camera codes that the protocol does not know."""
    rows = np.isin(features.part, (QUERY, GALLERY, TEST)) & (features.camid != UNKNOWN_CAMERA)
    used = np.unique(features.camid[rows])
    found = sorted({int(features.camera_codes[camid]) for camid in used})
    if protocol.cameras and not set(found) <= set(protocol.cameras):
        raise ValueError(
            f"cameras have the codes {', '.join(map(str, found))}, but {protocol.name} goes by "
            f"codes and knows {', '.join(map(str, protocol.cameras))}: give the data set's own "
            "camera numbers"
        )


def _draws(features: FeatureSet, protocol: Protocol, test: np.ndarray):
    """Infrared queries against drawn visible images."""
    modality = _modality(features, test, protocol)
    unknown = int(np.sum(features.camid[test] == UNKNOWN_CAMERA))
    require(
        unknown == 0,
        f"{unknown} of {len(test)} rows have no known camera, but {protocol.name} draws its "
        "gallery by camera; give the camera of each",
    )
    codes = np.asarray(features.camera_codes)[features.camid[test]]
    wrong = int(np.sum((modality == INFRARED) != np.isin(codes, INFRARED_CAMERAS)))
    require(
        wrong == 0,
        f"{wrong} of {len(test)} rows have a modality that is not their camera's: cameras "
        f"{' and '.join(map(str, INFRARED_CAMERAS))} of {protocol.name} are infrared (1), all "
        "others visible (0)",
    )
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
