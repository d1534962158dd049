"""Open sets: people that the gallery does not hold, and the thresholds that turn them away.

A score at or above the threshold is accepted. Two questions are asked of it:

- verification, over pairs: TPR, the share of genuine pairs accepted, at FPR, the share of impostor
  pairs accepted;
- identification, over searches: FNIR, the share of searches with a mate in the gallery that miss
  it, at FPIR, the share of searches without a mate whose best score is accepted. A mate is missed
  if its place is behind `rank`, or its score below the threshold.

A query without any match in its gallery, after what is left out for its camera, is a search
without a mate. A threshold is the smallest one whose false rate does not exceed what is asked: the
next float32 above the best score that must be turned away. All scores that tie with that one are
turned away too. With too few impostors for a rate it lies just above the best of them; the rate
then reached is 0, and `resolution` says what one impostor is worth.

All figures are exact, and no step holds more than a block of scores and some tens of MiB for each
core: pairs are counted in histograms of the bits of their scores, in two passes over the blocks
(the upper halves, then the lower halves where a threshold falls). Identification takes one pass.

Source: ISO/IEC 19795-1 and the NIST FRVT 1:N reports (FNIR, FPIR, rank).
"""

import dataclasses
import json
import os
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ccafl_jax.evaluation.relevance import Lists, Relevance
from ccafl_jax.neighbors.similarity import BLOCK_ELEMENTS, METRICS, ScoreProvider, in_threads
from ccafl_jax.options import from_mapping, require, require_choice

RULES = ("fpir", "fpr")
FORMAT = 1

_BINS = 2**16
_SIGN = np.uint32(1 << 31)
_NOT_FINITE = 2**7  # bins at either end that hold infinite values and NaN


def open_set(
    scores: ScoreProvider,
    relevance: Relevance,
    *,
    fpr: Sequence[float] = (1e-3, 1e-2, 1e-1),
    fpir: Sequence[float] = (0.01, 0.1),
    rank: int | None = 1,
    elements: int = BLOCK_ELEMENTS,
) -> dict[str, Any]:
    """Thresholds and rates at the asked false rates.

    Args:
      scores: of Q queries against G gallery items; their reported values, as float32, are what
        thresholds compare (for `euclidean` the negative distances).
      relevance: which of them match, and which are left out.
      fpr: rates of false pairs, each between 0 and 1; empty to leave verification out.
      fpir: rates of false searches, each between 0 and 1; empty to leave identification out.
      rank: the last place where a mate counts as found, the images of the gallery counted as in
        a ranking; any place when None.
      elements: scores of a block, the bound on memory.

    Returns:
      `verification`: `genuine` and `impostor` (numbers of pairs), `resolution` (1 / impostor),
      and `points`, each with `fpr` (asked), `threshold`, `false_rate` (reached), `tpr` and
      `resolved` (False: fewer impostors than the rate needs for a single one).
      `identification`: `mated`, `non_mated` (numbers of searches), `empty` (queries with nothing
      to search), `rank`, `resolution` (1 / non_mated), and `points` with `fpir`, `threshold`,
      `false_rate`, `fnir` and `resolved`.
      What is left out is absent.

    Raises:
      ValueError: shapes that do not fit, rates out of range, no genuine or no impostor pairs, no
        mated or no non-mated searches, scores that are NaN or infinite or that change from one
        pass to the next.

    Source: ISO/IEC 19795-1; NIST FRVT 1:N (FNIR(N, R, T), FPIR(N, T)).
    """
    fpr, fpir = _check_rates("fpr", fpr), _check_rates("fpir", fpir)
    require(bool(fpr or fpir), "fpr and fpir are both empty: ask for one rate or more")
    require(rank is None or rank >= 1, f"rank is {rank}, must be 1 or more, or None for any place")
    relevance.check(tuple(scores.shape))
    relevance.prepare()
    matches = relevance.matches()
    pairs = _Histogram.empty(1) if fpr else None
    searches = _Searches.empty(len(relevance.query_pid)) if fpir else None

    def first(rows: np.ndarray, raw: np.ndarray, values: np.ndarray, sides: _Sides) -> None:
        if pairs is not None:
            for side, mask in enumerate(sides):
                pairs.add(side, _keys(values[mask]) >> 16)
        if searches is not None:
            searches.add(rows, raw, values, sides)

    _each_chunk(scores, relevance, matches, elements, first)
    result: dict[str, Any] = {}
    if pairs is not None:

        def again(work) -> None:
            _each_chunk(scores, relevance, matches, elements, work)

        result["verification"] = _verification(again, pairs.counts[:, 0], fpr)
    if searches is not None:
        result["identification"] = _identification(searches, fpir, rank)
    return result


def hold_out_identities(
    query_pid: np.ndarray, gallery_pid: np.ndarray, share: float, seed: int
) -> np.ndarray:
    """Takes a share of the identities out of the gallery, so that a closed set becomes open.

    Only identities of both sides are taken: distractors stay, and junk (negative ids) is left as
    it is.

    Args:
      query_pid: int[Q].
      gallery_pid: int[G].
      share: of the identities that stand on both sides, between 0 and 1; rounded to whole
        identities, one at least is taken and one stays.
      seed: of the draw.

    Returns:
      bool[G], the gallery rows that stay.

    Raises:
      ValueError: a share out of range, fewer than 2 identities on both sides.
    """
    query_pid, gallery_pid = np.asarray(query_pid), np.asarray(gallery_pid)
    require(0.0 < share < 1.0, f"share is {share}, must lie between 0 and 1 (0.5)")
    both = np.intersect1d(query_pid, gallery_pid)
    both = both[both >= 0]
    require(
        len(both) >= 2,
        f"{len(both)} identities stand in both query and gallery: expected 2 or more to hold one "
        "out and keep one",
    )
    number = min(max(round(share * len(both)), 1), len(both) - 1)
    held = np.random.default_rng(seed).permutation(both)[:number]
    return ~np.isin(gallery_pid, held)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A threshold with the rule, the model and the data it was made from.

    Attributes:
      value: scores at or above it are accepted; a float32 number, in the unit of the metric
        (`euclidean`: negative distance).
      metric: of the scores.
      rule: the false rate that was asked for: "fpir" over searches, "fpr" over pairs.
      target: that rate.
      false_rate: the rate reached, at most the target.
      miss_rate: share missed at it: FNIR, or 1 - TPR.
      resolution: what one impostor is worth; a target below it could not be measured.
      positives: mated searches, or genuine pairs.
      negatives: searches without a mate, or impostor pairs.
      rank: the last place where a mate counts; None for any, and for pairs.
      model: fingerprint of what made the features.
      data: fingerprint of the features and labels.
      dataset: name of the data set.
      protocol: name of the rules by which images matched and were left out.
      hold_out: share of identities taken out of the gallery; 0 for none.
      seed: of that draw.
    """

    value: float
    metric: str
    rule: str
    target: float
    false_rate: float
    miss_rate: float
    resolution: float
    positives: int
    negatives: int
    rank: int | None
    model: str
    data: str
    dataset: str
    protocol: str
    hold_out: float = 0.0
    seed: int = 0

    def __post_init__(self):
        require_choice("metric", self.metric, METRICS)
        require_choice("rule", self.rule, RULES)
        require(
            bool(np.isfinite(self.value)) and float(np.float32(self.value)) == self.value,
            f"value is {self.value!r}, must be a finite float32 number",
        )
        require(0.0 < self.target < 1.0, f"target is {self.target}, must lie between 0 and 1")
        require(
            0.0 <= self.false_rate <= self.target,
            f"false_rate is {self.false_rate}, must lie between 0 and the target {self.target}",
        )
        require(0.0 <= self.miss_rate <= 1.0, f"miss_rate is {self.miss_rate}, must lie in 0..1")
        require(
            self.positives >= 1 and self.negatives >= 1,
            f"positives {self.positives} and negatives {self.negatives} must be 1 or more",
        )
        require(
            self.resolution == 1.0 / self.negatives,
            f"resolution is {self.resolution}, must be 1 / negatives ({1.0 / self.negatives})",
        )
        require(
            self.rank is None or (type(self.rank) is int and self.rank >= 1),
            f"rank is {self.rank!r}, must be 1 or more, or null",
        )
        require(bool(self.model), "model is empty, must be the fingerprint of the feature model")
        require(0.0 <= self.hold_out < 1.0, f"hold_out is {self.hold_out}, must lie in 0..1")

    @property
    def resolved(self) -> bool:
        """The data hold enough impostors to measure the target."""
        return self.target >= self.resolution

    def accepts(self, scores: np.ndarray) -> np.ndarray:
        """Which scores are at or above the threshold: bool, in the shape of `scores`."""
        return np.asarray(scores, np.float32) >= np.float32(self.value)

    def check(self, fingerprint: str, *, metric: str | None = None) -> None:
        """Refuses scores that the threshold was not made for.

        Args:
          fingerprint: of the model that made the features.
          metric: of the scores; not looked at when None.

        Raises:
          ValueError: another model, another metric.
        """
        require(
            fingerprint == self.model,
            f"the threshold was made for model {self.model[:16]}, these features are of model "
            f"{fingerprint[:16]}: calibrate anew with its features (scripts/calibrate.py)",
        )
        require(
            metric in (None, self.metric),
            f"the threshold is one of metric {self.metric}, the scores are of {metric}: score with "
            f"{self.metric}, or calibrate anew (scripts/calibrate.py)",
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; `from_json` reads them back to the bit."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Threshold":
        """Reads what `to_json` gave.

        Raises:
          ValueError: a field that is missing, unknown, of the wrong type or out of range.
        """
        require(isinstance(values, Mapping), f"a threshold is a JSON object, found {values!r:.60}")
        missing = [
            field.name
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING and field.name not in values
        ]
        require(not missing, f"the threshold lacks {', '.join(missing)}: calibrate anew")
        return from_mapping(cls, values, where="threshold")


def choose(
    result: Mapping[str, Any],
    *,
    rule: str,
    target: float,
    metric: str,
    model: str,
    data: str,
    dataset: str,
    protocol: str,
    hold_out: float = 0.0,
    seed: int = 0,
) -> Threshold:
    """The threshold at one of the rates that `open_set` was asked for.

    Args:
      result: of `open_set`.
      rule: "fpir" or "fpr".
      target: one of the rates asked for.
      metric: see `Threshold`.
      model: see `Threshold`.
      data: see `Threshold`.
      dataset: see `Threshold`.
      protocol: see `Threshold`.
      hold_out: see `Threshold`.
      seed: see `Threshold`.

    Raises:
      ValueError: the result holds no such rate.
    """
    require_choice("rule", rule, RULES)
    part = result.get({"fpr": "verification", "fpir": "identification"}[rule], {})
    points = [point for point in part.get("points", ()) if point[rule] == target]
    require(bool(points), f"the result holds no {rule} of {target}: ask open_set for it")
    point, pairs = points[0], rule == "fpr"
    return Threshold(
        value=point["threshold"],
        metric=metric,
        rule=rule,
        target=target,
        false_rate=point["false_rate"],
        miss_rate=1.0 - point["tpr"] if pairs else point["fnir"],
        resolution=part["resolution"],
        positives=part["genuine" if pairs else "mated"],
        negatives=part["impostor" if pairs else "non_mated"],
        rank=None if pairs else part["rank"],
        model=model,
        data=data,
        dataset=dataset,
        protocol=protocol,
        hold_out=hold_out,
        seed=seed,
    )


def as_file(threshold: Threshold, curve: Mapping[str, Any]) -> dict[str, Any]:
    """What a threshold file holds: the threshold, and the curve it was chosen from."""
    return {"format": FORMAT, "threshold": threshold.to_json(), "curve": dict(curve)}


def read_threshold(path: str | os.PathLike) -> Threshold:
    """Reads a file that holds `as_file`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is no threshold file, is of another format, or a field is wrong.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; make one with scripts/calibrate.py")
    try:
        content = json.loads(path.read_text())
        version = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no threshold file ({type(error).__name__}): make one with "
            "scripts/calibrate.py"
        ) from None
    require(
        version == FORMAT,
        f"{path} has format {version}, this version reads {FORMAT}: calibrate anew",
    )
    try:
        return Threshold.from_json(content.get("threshold"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


_Sides = tuple[np.ndarray, np.ndarray]  # genuine and impostor: bool[b, G] each


@dataclasses.dataclass(frozen=True, eq=False)
class _Histogram:
    """Counts of 16 bits of the scores of genuine (0) and impostor (1) pairs, slot by slot."""

    counts: np.ndarray  # int64[2, slots, _BINS]
    lock: threading.Lock

    @classmethod
    def empty(cls, slots: int) -> "_Histogram":
        return cls(np.zeros((2, slots, _BINS), np.int64), threading.Lock())

    def add(self, side: int, bins: np.ndarray) -> None:
        """Counts slot * _BINS + bits."""
        if len(bins) == 0:
            return
        found = np.bincount(bins, minlength=self.counts[side].size)
        with self.lock:
            self.counts[side] += found.reshape(self.counts[side].shape)


@dataclasses.dataclass(frozen=True, eq=False)
class _Searches:
    """By query: the best scores of strangers and of mates (-inf: none), the best mate's place."""

    stranger: np.ndarray  # float32[Q]
    mate: np.ndarray  # float32[Q]
    place: np.ndarray  # int32[Q], 0 without a mate

    @classmethod
    def empty(cls, queries: int) -> "_Searches":
        none = np.full(queries, -np.inf, np.float32)
        return cls(none, none.copy(), np.zeros(queries, np.int32))

    def add(self, rows: np.ndarray, raw: np.ndarray, values: np.ndarray, sides: _Sides) -> None:
        genuine, impostor = sides
        # NaN must not lose a maximum unseen: it wins it here, and is refused later.
        strangers = np.where(impostor, raw, -np.inf)
        self.stranger[rows] = np.where(impostor, values, -np.inf).max(axis=1)
        mated = np.flatnonzero(genuine.any(axis=1))
        mates = np.where(genuine[mated], raw[mated], -np.inf)
        index = mates.argmax(axis=1)  # NaN first, else the first of the largest
        self.mate[rows[mated]] = values[mated, index]
        best = mates[np.arange(len(mated)), index][:, None]
        strangers = strangers[mated]
        before = strangers > best
        before |= (strangers == best) & (np.arange(raw.shape[1]) < index[:, None])
        self.place[rows[mated]] = 1 + before.sum(axis=1)


def _each_chunk(
    scores: ScoreProvider, relevance: Relevance, matches: Lists, elements: int, work
) -> None:
    """Calls work(rows, scores, reported float32, sides) on small chunks, in threads."""
    for rows, block in scores.blocks(elements=elements):

        def chunk(start: int, stop: int, rows=rows, block=block) -> None:
            raw = block[start:stop]
            values = scores.reported(rows[start:stop], raw).astype(np.float32, copy=False)
            work(rows[start:stop], raw, values, _sides(relevance, matches, rows[start:stop]))

        in_threads(chunk, len(rows), block.shape[1])


def _sides(relevance: Relevance, matches: Lists, rows: np.ndarray) -> _Sides:
    """Genuine and impostor pairs of the queries `rows`."""
    marks = np.zeros((len(rows), relevance.shape[1]), np.float16)
    relevance.leave_out(rows, marks)
    genuine, impostor = np.zeros(marks.shape, bool), marks == 0
    places = matches.take(rows)
    genuine[places], impostor[places] = True, False
    return genuine, impostor


def _verification(again, upper: np.ndarray, fpr) -> dict[str, Any]:
    """From the upper halves of the bits (int64[2, _BINS]) to exact thresholds.

    `again(work)` goes over all chunks once more.
    """
    ends = upper[:, :_NOT_FINITE].sum() + upper[:, -_NOT_FINITE:].sum()
    require(ends == 0, f"{ends} scores are NaN or infinite; expected finite ones")
    genuine, impostor = (int(n) for n in upper.sum(axis=1))
    require(
        genuine > 0 and impostor > 0,
        f"verification needs pairs of both kinds, found {genuine} genuine and {impostor} impostor "
        "ones: look at the identities of both sides, or leave verification (fpr) out",
    )
    above = np.cumsum(upper[1, ::-1])[::-1]  # impostors in a bin and higher
    allowed = [_allowed(target, impostor) for target in fpr]
    bins = [int(np.flatnonzero(above > number)[-1]) for number in allowed]
    slots = {b: slot for slot, b in enumerate(sorted(set(bins)))}
    lower = _lower_halves(again, slots)
    for b, slot in slots.items():
        require(
            bool(np.all(lower[:, slot].sum(axis=1) == upper[:, b])),
            "the scores changed between two passes: give the same scores on every call of blocks",
        )
    points = []
    for target, number, b in zip(fpr, allowed, bins, strict=True):
        higher = int(above[b] - upper[1, b])
        within = np.cumsum(lower[1, slots[b], ::-1])[::-1] + higher
        refused = (b << 16) + int(np.flatnonzero(within > number)[-1])
        threshold = _just_above(_score(refused))
        false, true = (
            _at_or_above(int(_keys(threshold[None])[0]), upper[side], lower[side], slots)
            for side in (1, 0)
        )
        points.append(
            {
                "fpr": target,
                "threshold": float(threshold),
                "false_rate": false / impostor,
                "tpr": true / genuine,
                "resolved": number > 0,
            }
        )
    return {
        "genuine": genuine,
        "impostor": impostor,
        "resolution": 1.0 / impostor,
        "points": points,
    }


def _lower_halves(again, slots: dict[int, int]) -> np.ndarray:
    """Counts of the lower 16 bits in the bins of `slots`: int64[2, slots, _BINS]."""
    slot_of = np.full(_BINS, -1, np.int32)
    slot_of[list(slots)] = list(slots.values())
    histogram = _Histogram.empty(len(slots))

    def second(rows: np.ndarray, raw: np.ndarray, values: np.ndarray, sides: _Sides) -> None:
        del rows, raw
        for side, mask in enumerate(sides):
            keys = _keys(values[mask])
            slot = slot_of[keys >> 16]
            inside = slot >= 0
            histogram.add(side, slot[inside] * _BINS + (keys[inside] & (_BINS - 1)).astype(int))

    again(second)
    return histogram.counts


def _at_or_above(key: int, upper: np.ndarray, lower: np.ndarray, slots: dict[int, int]) -> int:
    """Number of scores with this key or a higher one."""
    b, low = key >> 16, key & (_BINS - 1)
    if low == 0:  # may be a bin of which no lower halves were counted
        return int(upper[b:].sum())
    return int(upper[b + 1 :].sum() + lower[slots[b], low:].sum())


def _identification(searches: _Searches, fpir, rank: int | None) -> dict[str, Any]:
    mated = searches.place > 0
    empty = ~mated & (searches.stranger == -np.inf)
    best = searches.stranger[~mated & ~empty]
    place, mate = searches.place[mated], searches.mate[mated]
    used = np.concatenate([searches.stranger[mated], best, mate])
    wrong = int(np.sum(np.isnan(used) | (used == np.inf)) + np.sum(mate == -np.inf))
    require(wrong == 0, f"{wrong} scores are NaN or infinite; expected finite ones")
    require(
        len(place) > 0,
        f"identification needs searches with a mate: none of {len(mated)} queries has a match in "
        "its gallery; look at the identities of both sides, or leave identification (fpir) out",
    )
    require(
        len(best) > 0,
        f"identification needs searches without a mate, but all {len(place)} queries that search "
        "have a match: take identities out of the gallery, or leave identification (fpir) out",
    )
    ordered = np.sort(best)[::-1]
    near = np.ones(len(place), bool) if rank is None else place <= rank
    points = []
    for target in fpir:
        number = _allowed(target, len(best))
        threshold = _just_above(ordered[number])
        found = near & (mate >= threshold)
        points.append(
            {
                "fpir": target,
                "threshold": float(threshold),
                "false_rate": int(np.sum(best >= threshold)) / len(best),
                "fnir": int(np.sum(~found)) / len(place),
                "resolved": number > 0,
            }
        )
    return {
        "rank": rank,
        "mated": len(place),
        "non_mated": len(best),
        "empty": int(empty.sum()),
        "resolution": 1.0 / len(best),
        "points": points,
    }


def _allowed(target: float, negatives: int) -> int:
    """The largest number n of false ones with n / negatives <= target, below `negatives`."""
    number = int(target * negatives)
    # A product may round across a whole number: 0.29 * 100 is below 29.
    if (number + 1) / negatives <= target:
        number += 1
    if number / negatives > target:
        number -= 1
    return number


def _just_above(score: np.float32) -> np.float32:
    """The next float32; above 0 the smallest normal one, as accelerators take others for 0."""
    above = np.nextafter(np.float32(score), np.float32(np.inf))
    return np.finfo(np.float32).tiny if 0 < above < np.finfo(np.float32).tiny else above


def _keys(scores: np.ndarray) -> np.ndarray:
    """uint32 in the order of the float32 scores; -0 comes before 0, and no threshold between."""
    bits = scores.view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _score(key: int) -> np.float32:
    """The score of a key."""
    key = np.uint32(key)
    return np.array(key ^ _SIGN if key & _SIGN else ~key, np.uint32).view(np.float32)[()]


def _check_rates(name: str, rates: Sequence[float]) -> tuple[float, ...]:
    rates = tuple(float(rate) for rate in rates)
    for rate in rates:
        require(0.0 < rate < 1.0, f"{name} holds {rate}, every rate must lie between 0 and 1")
    return rates
