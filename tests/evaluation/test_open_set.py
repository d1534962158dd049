import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.evaluation import open_set as module
from ccafl_jax.evaluation.open_set import (
    Threshold,
    as_file,
    choose,
    hold_out_identities,
    open_set,
    read_threshold,
)
from ccafl_jax.evaluation.relevance import Lists, relevance
from ccafl_jax.files import write_json
from ccafl_jax.neighbors.similarity import FeatureScores, MatrixScores

TINY = np.finfo(np.float32).tiny


def lists(rows):
    offsets = np.append(0, np.cumsum([len(row) for row in rows]))
    return Lists(offsets.astype(np.int64), np.array([x for row in rows for x in row], np.int64))


def split(scores, query_pid, gallery_pid, query_camid, gallery_camid, same_camera="identity"):
    """By query: the mates and the strangers as (score, gallery row), one pair after the other."""
    searches = []
    for q in range(len(query_pid)):
        mates, strangers = [], []
        for g in range(len(gallery_pid)):
            same = query_pid[q] == gallery_pid[g]
            camera = query_camid[q] == gallery_camid[g] and query_camid[q] >= 0
            left_out = {"identity": same and camera, "location": camera, "none": False}
            if gallery_pid[g] == -1 or left_out[same_camera]:
                continue
            (mates if same else strangers).append((float(scores[q][g]), g))
        searches.append((mates, strangers))
    return searches


def share_at(scores, t):
    return sum(s >= t for s in scores) / len(scores)


def lowest_threshold(impostors, target):
    """The smallest float32 that few enough impostors reach, found by trying one after another."""
    for score in sorted(set(impostors)):
        above = np.nextafter(np.float32(score), np.float32(np.inf))
        above = float(TINY if 0 < above < TINY else above)
        if share_at(impostors, above) <= target:
            break
    return above


def check_verification(found, searches, targets):
    genuine = [s for mates, _ in searches for s, _ in mates]
    impostor = [s for _, strangers in searches for s, _ in strangers]
    assert (found["genuine"], found["impostor"]) == (len(genuine), len(impostor))
    assert found["resolution"] == 1 / len(impostor)
    assert [point["fpr"] for point in found["points"]] == list(targets)
    for target, point in zip(targets, found["points"], strict=True):
        t = point["threshold"]
        assert t == lowest_threshold(impostor, target)
        assert point["false_rate"] == share_at(impostor, t) <= target
        below = 0.0 if t == TINY else float(np.nextafter(np.float32(t), np.float32(-np.inf)))
        assert share_at(impostor, below) > target
        assert point["tpr"] == share_at(genuine, t)
        assert point["resolved"] == (target >= 1 / len(impostor))


def check_identification(found, searches, targets, rank):
    best, mated, empty = [], [], 0
    for mates, strangers in searches:
        if mates:
            order = sorted(mates + strangers, key=lambda pair: (-pair[0], pair[1]))
            place = 1 + next(i for i, pair in enumerate(order) if pair in mates)
            mated.append((place, max(mates)[0]))
        elif strangers:
            best.append(max(strangers)[0])
        else:
            empty += 1
    counts = (found["mated"], found["non_mated"], found["empty"], found["rank"])
    assert counts == (len(mated), len(best), empty, rank)
    assert found["resolution"] == 1 / len(best)
    for target, point in zip(targets, found["points"], strict=True):
        t = point["threshold"]
        assert point["fpir"] == target and t == lowest_threshold(best, target)
        assert point["false_rate"] == share_at(best, t) <= target
        missed = sum(not ((rank is None or place <= rank) and s >= t) for place, s in mated)
        assert point["fnir"] == pytest.approx(missed / len(mated), abs=1e-15)
        assert point["resolved"] == (target >= 1 / len(best))


@st.composite
def problems(draw):
    """Scores with many ties around zero, junk, cameras, searches without a mate."""
    queries, gallery = draw(st.sampled_from([(4, 6), (9, 31), (30, 50)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 4, 2**20]))
    scores = (rng.integers(-levels, levels + 1, (queries, gallery)) / 8).astype(np.float32)
    scores *= rng.choice([1, -1], scores.shape).astype(np.float32)  # -0 too
    query_pid = rng.integers(0, 6, queries)
    gallery_pid = rng.integers(-1, 4, gallery)
    query_pid[:2], gallery_pid[:2] = (1, 5), (1, 2)  # a mated search, and one without a mate
    query_camid = rng.integers(-1, 3, queries)
    gallery_camid = rng.integers(-1, 3, gallery)
    query_camid[:2], gallery_camid[:2] = 0, 1
    return scores, query_pid, gallery_pid, query_camid, gallery_camid


@settings(max_examples=40, deadline=None)
@given(
    problem=problems(),
    same_camera=st.sampled_from(["identity", "location", "none"]),
    rank=st.sampled_from([1, 3, None]),
    elements=st.sampled_from([1, 200, 2**20]),
)
def test_is_a_plain_search_for_the_lowest_threshold(problem, same_camera, rank, elements):
    scores, *labels = problem
    fpr, fpir = (1e-3, 0.1, 0.29, 0.5, 0.999), (0.01, 0.3, 0.5, 0.9)
    found = open_set(
        MatrixScores(scores),
        relevance(*labels, same_camera=same_camera),
        fpr=fpr,
        fpir=fpir,
        rank=rank,
        elements=elements,
    )
    searches = split(scores, *labels, same_camera)
    check_verification(found["verification"], searches, fpr)
    check_identification(found["identification"], searches, fpir, rank)
    assert json.loads(json.dumps(found)) == found


def by_hand():
    """Three searches with a mate in column 0, 1 or 2, four without; columns 3 and 4 strangers."""
    scores = np.array(
        [
            [0.9, 0.1, 0.2, 0.3, 0.1],  # found at 0.9
            [0.1, 0.6, 0.2, 0.7, 0.1],  # its mate is second
            [0.1, 0.2, 0.5, 0.3, 0.5],  # its mate ties with a later stranger, so is first
            [0.1, 0.2, 0.3, 0.4, 0.1],
            [0.1, 0.2, 0.3, 0.6, 0.1],
            [0.1, 0.2, 0.3, 0.6, 0.1],
            [0.1, 0.2, 0.3, 0.8, 0.1],
        ],
        np.float32,
    )
    query_pid, gallery_pid = np.array([1, 2, 3, 11, 12, 13, 14]), np.array([1, 2, 3, 21, 22])
    cameras = np.zeros(7, int), np.ones(5, int)
    return scores, relevance(query_pid, gallery_pid, *cameras)


def test_rates_by_hand():
    scores, labels = by_hand()
    found = open_set(MatrixScores(scores), labels, fpr=(), fpir=(0.2, 0.25, 0.6, 0.75))
    points = found["identification"]["points"]
    # Best scores without a mate: 0.8, 0.6, 0.6, 0.4.
    above = [float(np.nextafter(np.float32(s), np.float32(1))) for s in (0.8, 0.6, 0.6, 0.4)]
    assert [point["threshold"] for point in points] == above
    assert [point["false_rate"] for point in points] == [0.0, 0.25, 0.25, 0.75]
    assert [point["resolved"] for point in points] == [False, True, True, True]
    # At 0.4+ the second search still misses by its place, the third is found.
    assert [point["fnir"] for point in points] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 1 / 3])
    assert "verification" not in found
    found = open_set(MatrixScores(scores), labels, fpr=(0.05,), fpir=())
    # 32 impostor pairs, one of them allowed: the next two are 0.7 and 0.6, so above 0.7.
    assert found["verification"]["impostor"] == 7 * 5 - 3
    (point,) = found["verification"]["points"]
    assert point["threshold"] == float(np.nextafter(np.float32(0.7), np.float32(1)))
    assert (point["false_rate"], point["tpr"]) == (1 / 32, 1 / 3)
    assert "identification" not in found


def test_a_larger_rank_finds_mates_that_are_not_first():
    scores, labels = by_hand()
    fnir = {}
    for rank in (1, 2, None):
        found = open_set(MatrixScores(scores), labels, fpr=(), fpir=(0.75,), rank=rank)
        fnir[rank] = found["identification"]["points"][0]["fnir"]
    assert fnir[1] == pytest.approx(1 / 3) and fnir[2] == fnir[None] == 0.0


def test_too_few_impostors_give_a_threshold_above_all_of_them():
    scores, labels = by_hand()
    found = open_set(MatrixScores(scores), labels, fpr=(1e-6,), fpir=(1e-6,))
    for part, resolution in (("verification", 1 / 32), ("identification", 1 / 4)):
        (point,) = found[part]["points"]
        assert found[part]["resolution"] == resolution
        assert not point["resolved"] and point["false_rate"] == 0.0
        assert point["threshold"] == float(np.nextafter(np.float32(0.8), np.float32(1)))


def test_as_many_false_ones_are_allowed_as_the_rate_holds():
    """Also where a product rounds across a whole number, as 0.29 * 100 and 0.07 * 100 do."""
    for negatives in [*range(1, 130), 1000, 999_999]:
        for target in (1e-3, 0.01, 0.07, 0.29, 0.3, np.nextafter(0.9, 0), 0.56, 1 - 2**-53):
            number = module._allowed(target, negatives)
            assert 0 <= number < negatives
            assert number / negatives <= target < (number + 1) / negatives


def test_the_threshold_above_zero_is_no_subnormal_number():
    scores, labels = by_hand()
    found = open_set(MatrixScores(np.minimum(scores - 0.8, 0)), labels, fpr=(0.01,), fpir=(0.1,))
    for part in found.values():
        assert part["points"][0]["threshold"] == float(TINY)
        assert part["points"][0]["false_rate"] == 0.0


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_features_are_compared_by_what_is_reported(metric):
    rng = np.random.default_rng(0)
    pid = rng.integers(0, 40, 300)
    centers = rng.normal(size=(40, 8))
    features = (centers[pid] + 0.4 * rng.normal(size=(300, 8))).astype(np.float32)
    features *= rng.uniform(0.5, 2, (300, 1)).astype(np.float32)
    query, gallery = features[:100], features[100:]
    camid = rng.integers(0, 3, 300)
    kept = hold_out_identities(pid[:100], pid[100:], 0.5, 0)
    labels = relevance(pid[:100], np.where(kept, pid[100:], -1), camid[:100], camid[100:])
    found = open_set(FeatureScores(query, gallery, metric), labels, fpr=(0.01, 0.1), fpir=(0.2,))
    q, g = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "cosine":
        q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
    exact = q @ g.T
    if metric == "euclidean":
        exact = -np.linalg.norm(q[:, None] - g[None], axis=2)
    plain = open_set(MatrixScores(exact), labels, fpr=(0.01, 0.1), fpir=(0.2,))
    for part in ("verification", "identification"):
        for one, other in zip(found[part]["points"], plain[part]["points"], strict=True):
            assert one["threshold"] == pytest.approx(other["threshold"], abs=1e-4)
            for key in set(one) - {"threshold"}:
                assert one[key] == pytest.approx(other[key], abs=2e-2)
    assert 0 < found["identification"]["non_mated"] < 100


def test_published_lists_stand_in_for_identities():
    scores, labels = by_hand()
    good, junk = lists([[1], [], [], [], [], [], []]), lists([[2], [0, 3], [], [], [], [], []])
    listed = dataclasses.replace(labels, good=good, junk=junk)
    found = open_set(MatrixScores(scores), listed, fpr=(0.1,), fpir=(0.5,))
    assert found["verification"]["genuine"] == listed.matches().offsets[-1] == 1
    assert found["verification"]["impostor"] == 35 - 1 - 3
    assert (found["identification"]["mated"], found["identification"]["non_mated"]) == (1, 6)


def test_a_search_of_nothing_is_counted_apart():
    scores = np.array([[0.5, 0.2], [0.4, 0.9], [0.3, 0.3]])
    labels = relevance([1, 9, 9], [1, 2], [0, 0, 5], [5, 5], same_camera="location")
    found = open_set(MatrixScores(scores), labels, fpr=(), fpir=(0.5,))["identification"]
    assert (found["mated"], found["non_mated"], found["empty"]) == (1, 1, 1)


def test_memory_is_a_few_blocks_whatever_the_number_of_pairs():
    """Half of all pairs are asked for as false ones; none of them is kept."""
    sizes = []

    class Scores:
        shape = (400, 1000)

        def blocks(self, order=None, *, elements):
            rng = np.random.default_rng(0)
            step = elements // 1000
            for start in range(0, 400, step):
                block = rng.random((step, 1000), np.float32)
                sizes.append(block.size)
                yield np.arange(start, start + step), block

        def reported(self, rows, scores):
            return scores

    pid = np.random.default_rng(1).integers(0, 50, 1400)
    labels = relevance(pid[:400], pid[400:], np.zeros(400), np.ones(1000))
    found = open_set(Scores(), labels, fpr=(0.5,), fpir=(), elements=10_000)["verification"]
    assert max(sizes) <= 10_000 and len(sizes) == 2 * 40
    assert found["points"][0]["threshold"] == pytest.approx(0.5, abs=0.01)
    assert found["points"][0]["false_rate"] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 3])  # a mate, a stranger
def test_scores_that_are_not_finite_are_refused(bad, column):
    scores, labels = by_hand()

    class Scores(MatrixScores):
        def __post_init__(self):
            pass

    scores[0, column] = bad
    for rates in ({"fpir": ()}, {"fpr": ()}):
        with pytest.raises(ValueError, match="scores are NaN or infinite; expected finite ones"):
            open_set(Scores(scores), labels, **rates)


def test_scores_that_change_between_passes_are_refused():
    scores, labels = by_hand()

    class Scores(MatrixScores):
        def blocks(self, order=None, *, elements):
            yield from super().blocks(order, elements=elements)
            self.scores[:] += 0.25

    with pytest.raises(ValueError, match="changed between two passes"):
        open_set(Scores(scores), labels, fpir=())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fpr": (), "fpir": ()}, "fpr and fpir are both empty"),
        ({"fpr": (0.0,)}, "fpr holds 0.0, every rate must lie between 0 and 1"),
        ({"fpir": (1.0,)}, "fpir holds 1.0, every rate must lie between 0 and 1"),
        ({"fpir": (float("nan"),)}, "fpir holds nan"),
        ({"rank": 0}, "rank is 0, must be 1 or more"),
    ],
)
def test_wrong_options_are_named_in_one_line(options, message):
    scores, labels = by_hand()
    with pytest.raises(ValueError) as error:
        open_set(MatrixScores(scores), labels, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_sets_that_cannot_be_measured_are_named_in_one_line():
    _, labels = by_hand()
    closed = relevance([1, 2], [1, 2], [0, 0], [1, 1])
    apart = relevance([1, 2], [3, 4], [0, 0], [1, 1])
    alone = relevance([1, 1], [1, 1], [0, 0], [1, 1])
    small = MatrixScores(np.eye(2))
    cases = [
        (small, closed, {"fpr": ()}, "all 2 queries that search have a match: take identities out"),
        (small, apart, {"fpr": ()}, "none of 2 queries has a match in its gallery"),
        (small, apart, {"fpir": ()}, "found 0 genuine and 4 impostor ones"),
        (small, alone, {"fpir": ()}, "found 4 genuine and 0 impostor ones"),
        (small, labels, {}, "query: 2 rows of features or scores, but labels of shape (7,)"),
    ]
    for provider, names, options, message in cases:
        with pytest.raises(ValueError) as error:
            open_set(provider, names, **options)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_held_out_identities_leave_the_gallery_whole():
    rng = np.random.default_rng(0)
    query_pid, gallery_pid = rng.integers(1, 21, 200), rng.integers(-1, 31, 500)
    kept = hold_out_identities(query_pid, gallery_pid, 0.4, 0)
    held = set(gallery_pid[~kept])
    assert kept.dtype == bool and len(held) == 8 and not held & set(gallery_pid[kept])
    assert held <= set(range(1, 21))  # neither junk nor those whom nobody looks for
    np.testing.assert_array_equal(kept, hold_out_identities(query_pid, gallery_pid, 0.4, 0))
    assert held != set(gallery_pid[~hold_out_identities(query_pid, gallery_pid, 0.4, 1)])
    assert len(set(gallery_pid[~hold_out_identities(query_pid, gallery_pid, 0.01, 0)])) == 1
    assert len(set(gallery_pid[~hold_out_identities(query_pid, gallery_pid, 0.999, 0)])) == 19
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            hold_out_identities(query_pid, gallery_pid, share, 0)
    with pytest.raises(ValueError, match="1 identities stand in both query and gallery"):
        hold_out_identities(np.array([-1, 1]), np.array([-1, 1, 2]), 0.5, 0)


def threshold(rule="fpir", target=0.25):
    scores, labels = by_hand()
    result = open_set(MatrixScores(scores), labels, fpr=(0.05,), fpir=(0.25,))
    described = {"metric": "cosine", "model": "m" * 64, "data": "d" * 64, "dataset": "people"}
    return result, choose(
        result, rule=rule, target=target, protocol="market1501", hold_out=0.5, seed=3, **described
    )


def test_a_threshold_is_chosen_from_a_result_and_comes_back_from_its_file(tmp_path):
    result, chosen = threshold()
    point = result["identification"]["points"][0]
    assert (chosen.value, chosen.miss_rate) == (point["threshold"], point["fnir"])
    assert (chosen.positives, chosen.negatives, chosen.rank) == (3, 4, 1)
    assert chosen.resolved and chosen.resolution == 0.25
    write_json(tmp_path / "t.json", as_file(chosen, result))
    assert read_threshold(tmp_path / "t.json") == chosen
    assert json.loads((tmp_path / "t.json").read_text())["curve"] == result
    _, chosen = threshold("fpr", 0.05)
    assert chosen.miss_rate == pytest.approx(2 / 3) and chosen.rank is None
    assert Threshold.from_json(chosen.to_json()) == chosen
    with pytest.raises(ValueError, match=r"holds no fpr of 0\.5"):
        threshold("fpr", 0.5)
    with pytest.raises(ValueError, match="rule is 'far', must be one of fpir, fpr"):
        threshold("far")


def test_a_threshold_accepts_at_and_above_itself():
    _, chosen = threshold()
    below = np.nextafter(np.float32(chosen.value), np.float32(0))
    np.testing.assert_array_equal(
        chosen.accepts(np.array([[1.0, chosen.value, below]])), [[True, True, False]]
    )


def test_a_threshold_of_another_model_or_metric_is_refused():
    _, chosen = threshold()
    chosen.check("m" * 64)
    chosen.check("m" * 64, metric="cosine")
    with pytest.raises(ValueError, match=r"for model m{16}, these features are of model n{16}"):
        chosen.check("n" * 64)
    with pytest.raises(ValueError, match="one of metric cosine, the scores are of dot"):
        chosen.check("m" * 64, metric="dot")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("value", float("nan"), "must be a finite float32 number"),
        ("value", 0.1, "must be a finite float32 number"),
        ("value", "0.5", "threshold.value must be of type float, found '0.5'"),
        ("metric", "l1", "metric is 'l1', must be one of cosine, euclidean, dot"),
        ("rule", "far", "rule is 'far', must be one of fpir, fpr"),
        ("target", 0.0, "target is 0.0, must lie between 0 and 1"),
        ("false_rate", 0.5, "false_rate is 0.5, must lie between 0 and the target 0.25"),
        ("miss_rate", 1.5, "miss_rate is 1.5"),
        ("positives", 0, "must be 1 or more"),
        ("negatives", 5, "resolution is 0.25, must be 1 / negatives (0.2)"),
        ("rank", 0, "rank is 0, must be 1 or more, or null"),
        ("rank", "1", "rank is '1', must be 1 or more, or null"),
        ("model", "", "model is empty"),
        ("hold_out", 1.0, "hold_out is 1.0"),
        ("modl", "x", "unknown option threshold.modl: did you mean threshold.model?"),
    ],
)
def test_a_spoiled_threshold_is_refused_in_one_line(field, value, message):
    _, chosen = threshold()
    with pytest.raises(ValueError) as error:
        Threshold.from_json(chosen.to_json() | {field: value})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_files_that_hold_no_threshold_are_named(tmp_path):
    result, chosen = threshold()
    path = tmp_path / "t.json"
    with pytest.raises(FileNotFoundError, match=r"make one with scripts/calibrate\.py"):
        read_threshold(path)
    content = as_file(chosen, result)
    lacking = {k: v for k, v in chosen.to_json().items() if k != "model"}
    for text, message in (
        ("no json", "is no threshold file"),
        ("[1]", "is no threshold file"),
        ("{}", "is no threshold file"),
        (json.dumps(content | {"format": 2}), "has format 2, this version reads 1"),
        (json.dumps(content | {"threshold": lacking}), "the threshold lacks model"),
        (json.dumps({"format": 1}), "a threshold is a JSON object, found None"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            read_threshold(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_bits_are_in_the_order_of_the_scores():
    scores = np.array([-np.inf, -1e30, -1, -1e-40, 0, 1e-40, 1, 1e30, np.inf], np.float32)
    keys = module._keys(scores)
    assert np.all(np.diff(keys.astype(np.int64)) > 0)
    assert [module._score(int(key)) for key in keys] == scores.tolist()
    assert np.all(keys[[0, -1]] >> 16 == [module._NOT_FINITE - 1, 2**16 - module._NOT_FINITE])
