import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from ccafl_jax.evaluation import device_ranks, ranking
from ccafl_jax.evaluation.relevance import Lists, Relevance, relevance
from ccafl_jax.neighbors.similarity import FeatureScores, MatrixScores
from tests.golden_data import case_group, golden


def listed(scores, query_pid, gallery_pid, query_camid, gallery_camid):
    """The whole list of every query, as (gallery row, is a match)."""
    lists = []
    for row in range(len(query_pid)):
        same = gallery_pid == query_pid[row]
        known = (gallery_camid == query_camid[row]) & (query_camid[row] >= 0)
        kept = np.flatnonzero((gallery_pid != -1) & ~(same & known))
        order = sorted(kept, key=lambda j, row=row: (-scores[row][j], j))
        lists.append([(j, bool(same[j])) for j in order])
    return lists


def oracle(scores, *labels):
    """Per query: AP, rank of the first match, inverse negative penalty; None without a match."""
    results = []
    for entries in listed(scores, *(np.asarray(x) for x in labels)):
        hits = [place for place, (_, match) in enumerate(entries, 1) if match]
        if not hits:
            results.append(None)
            continue
        ap = sum((k + 1) / hit for k, hit in enumerate(hits)) / len(hits)
        results.append((ap, hits[0], len(hits) / hits[-1]))
    return results


def devices(count):
    return Mesh(np.array(jax.devices()[:count]), ("data",))


def check_against_oracle(found, expected, no_match="skip"):
    valid = [entry is not None for entry in expected]
    np.testing.assert_array_equal(found.valid, valid)
    real = [entry for entry in expected if entry is not None]
    counted = len(expected) if no_match == "zero" else len(real)
    assert found.queries == counted
    assert found.skipped == len(expected) - counted
    divisor = max(counted, 1)
    np.testing.assert_allclose(
        found.ap, [0.0 if e is None else e[0] for e in expected], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(found.mAP, sum(e[0] for e in real) / divisor, atol=1e-12)
    np.testing.assert_allclose(found.mINP, sum(e[2] for e in real) / divisor, atol=1e-12)
    cmc = [sum(e[1] <= k for e in real) / divisor for k in range(1, len(found.cmc) + 1)]
    np.testing.assert_allclose(found.cmc, cmc, atol=1e-12)


@st.composite
def problems(draw):
    """Small grids of scores (many ties), junk, distractors, queries without a match."""
    queries, gallery = draw(st.sampled_from([(1, 5), (4, 12), (9, 30)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 3, 1000]))
    scores = rng.integers(0, levels, (queries, gallery)) / 8.0
    query_pid = rng.integers(0, 5, queries)
    gallery_pid = rng.integers(-1, 4, gallery)
    gallery_pid[0] = 1  # a gallery of junk alone is an error, tested elsewhere
    cameras = draw(st.sampled_from([1, 2, 4]))
    return (
        scores,
        query_pid,
        gallery_pid,
        rng.integers(0, cameras, queries),
        rng.integers(0, cameras, gallery),
    )


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from(["skip", "zero"]), st.sampled_from([None, 40]))
def test_scores_match_the_oracle(problem, no_match, elements):
    found = ranking.rank_scores(*problem, no_match=no_match, block_elements=elements, max_rank=12)
    check_against_oracle(found, oracle(*problem), no_match)


ENGINES = {
    "host": {"engine": "host"},
    "host, small blocks": {"engine": "host", "block_elements": 256},
    "device": {"engine": "device", "mesh": devices(1)},
    "two devices": {"mesh": devices(2)},
    "eight devices": {"mesh": devices(8)},
    "eight devices, small blocks": {"mesh": devices(8), "block_elements": 512},
}


@settings(max_examples=12, deadline=None)
@given(problems(), st.sampled_from(["cosine", "euclidean", "dot"]), st.integers(0, 2**32 - 1))
def test_features_match_the_oracle_bitwise(problem, metric, seed):
    """On a dyadic grid all arithmetic is exact, ties included: every engine finds the same."""
    _, query_pid, gallery_pid, query_camid, gallery_camid = problem
    rng = np.random.default_rng(seed)
    if metric == "cosine":  # one entry of +-2^k per row: norms and cosines are exact
        query, gallery = (one_hot_rows(rng, len(pid)) for pid in (query_pid, gallery_pid))
        exact = np.sign(query) @ np.sign(gallery).T
    else:
        query = rng.integers(-2, 3, (len(query_pid), 4)) / 2.0
        gallery = rng.integers(-2, 3, (len(gallery_pid), 4)) / 2.0
        exact = -np.sum((query[:, None] - gallery) ** 2, axis=-1)
        exact = exact if metric == "euclidean" else query @ gallery.T
    labels = (query_pid, gallery_pid, query_camid, gallery_camid)
    features = query.astype(np.float32), gallery.astype(np.float32)
    expected = listed(exact, *labels)
    top = 6  # more than some galleries hold
    for options in ENGINES.values():
        found = ranking.rank(*features, *labels, metric=metric, max_rank=12, top=top, **options)
        check_against_oracle(found, oracle(exact, *labels))
        check_details(found, exact, expected, metric)


def check_details(found, exact, expected, metric):
    """Ranks, tied counts, candidates and the best items, against whole lists."""
    for row, entries in enumerate(expected):
        span = slice(found.offsets[row], found.offsets[row + 1])
        hits = [place for place, (_, match) in enumerate(entries, 1) if match]
        assert found.ranks[span].tolist() == hits
        values = [exact[row, j] for j, _ in entries]
        tied = [sum(v >= values[hit - 1] for v in values) for hit in hits]
        assert found.tied[span].tolist() == tied
        assert found.candidates[row] == len(entries)
        assert found.first[row] == (hits[0] if hits else 0)
        assert found.top.indices.shape[1] <= 6
        best = entries[: found.top.indices.shape[1]]
        absent = found.top.indices.shape[1] - len(best)
        assert found.top.indices[row].tolist() == [j for j, _ in best] + [-1] * absent
        assert found.top.matches[row].tolist() == [m for _, m in best] + [False] * absent
        score = np.array(values[: len(best)])
        score = -np.sqrt(-score) if metric == "euclidean" else score
        np.testing.assert_allclose(found.top.scores[row, : len(best)], score, atol=1e-6)
        assert np.isneginf(found.top.scores[row, len(best) :]).all()


def one_hot_rows(rng, n, dim=4):
    rows = np.zeros((n, dim))
    rows[np.arange(n), rng.integers(0, dim, n)] = rng.choice([-2.0, -1.0, 0.5, 4.0], n)
    return rows


@pytest.mark.parametrize("kind", ["noties", "ties"])
def test_published_eval_func(kind):
    data = golden("12_eval_s0")
    labels = (data["q_ids"], data["g_ids"], data["q_cams"], data["g_cams"])
    found = ranking.rank_scores(-data[f"{kind}_dist"], *labels)
    np.testing.assert_allclose(found.mAP, data[f"{kind}_evalfunc_map_stable"], atol=1e-6)
    np.testing.assert_allclose(found.cmc, data[f"{kind}_evalfunc_cmc_stable"], atol=1e-6)
    assert found.skipped == 2 and not found.valid[:2].any()
    longer = ranking.rank_scores(-data[f"{kind}_dist"], *labels, max_rank=100)
    np.testing.assert_allclose(
        longer.cmc, data[f"{kind}_ranking_cmc_first_match_stable"], atol=1e-6
    )


def test_published_person_reid_map():
    data = golden("12_eval_s0")
    features = data["q_features"], data["g_features"]
    labels = (data["q_ids"], data["personreidmap_g_ids"], data["q_cams"], data["g_cams"])
    found = ranking.rank(*features, *labels, no_match="zero", max_rank=291)
    np.testing.assert_allclose(found.mAP, data["personreidmap_map"], atol=1e-6)
    np.testing.assert_allclose(found.ap, data["personreidmap_aps"], atol=1e-6)
    np.testing.assert_allclose(found.cmc, data["personreidmap_cmc"], atol=1e-6)
    assert (found.queries, found.skipped) == (40, 0)
    skipping = ranking.rank(*features, *labels)
    assert (skipping.queries, skipping.skipped) == (38, 2)
    np.testing.assert_allclose(skipping.mAP, found.mAP * 40 / 38, atol=1e-9)


@pytest.mark.parametrize("case", case_group("evaluate"), ids=lambda case: case["id"])
def test_cases(case):
    inputs, expected = case["inputs"], case["expected"]
    labels = (inputs["q_id"], inputs["g_id"], inputs["q_cam"], inputs["g_cam"])
    summary = ranking.rank_scores(-np.array(inputs["dist"]), *labels).summary()
    assert summary["queries"] == expected["valid_queries"]
    if "mAP" in expected:
        np.testing.assert_allclose(summary["mAP"], expected["mAP"], atol=1e-9)
        cmc = [summary["rank1"], summary["rank5"], summary["rank10"]]
        np.testing.assert_allclose(cmc, expected["cmc_1_5_10"], atol=1e-9)


def test_inverse_negative_penalty_by_hand():
    # Matches at ranks 1 and 4: AP (1 + 2/4) / 2, mINP 2/4; the second query has its match first.
    scores = np.array([[4.0, 3.0, 2.0, 1.0], [0.0, 1.0, 2.0, 3.0]])
    found = ranking.rank_scores(scores, [7, 8], [7, 9, 9, 7], [0, 0], [1, 1, 1, 2])
    assert found.summary() == {
        "mAP": 0.75,
        "rank1": 1.0,
        "rank5": 1.0,
        "rank10": 1.0,
        "mINP": 0.5,
        "queries": 1,
        "skipped": 1,
    }
    np.testing.assert_array_equal(found.ranks, [1, 4])
    np.testing.assert_array_equal(found.offsets, [0, 2, 2])


@pytest.fixture(scope="module")
def real_valued():
    rng = np.random.default_rng(3)
    query_pid, gallery_pid = rng.integers(0, 12, 70), rng.integers(-1, 12, 300)
    centre = rng.standard_normal((13, 24))
    return (
        centre[query_pid] + rng.standard_normal((70, 24)) * 2,
        centre[gallery_pid] + rng.standard_normal((300, 24)) * 2,
        query_pid,
        gallery_pid,
        rng.integers(0, 4, 70),
        rng.integers(0, 4, 300),
    )


def test_metrics_differ_and_match_the_oracle(real_valued):
    query, gallery, *labels = real_valued
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)]
    exact = {
        "cosine": unit[0] @ unit[1].T,
        "euclidean": -np.linalg.norm(query[:, None] - gallery, axis=-1),
    }
    found = {metric: ranking.rank(query, gallery, *labels, metric=metric) for metric in exact}
    for metric, scores in exact.items():
        check_against_oracle(found[metric], oracle(scores, *labels))
    assert found["cosine"].mAP != found["euclidean"].mAP


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("name", ENGINES)
def test_engines_agree_on_real_values(real_valued, metric, name):
    whole = ranking.rank(*real_valued, metric=metric, top=20)
    parts = ranking.rank(*real_valued, metric=metric, top=20, **ENGINES[name])
    for figure in ("mAP", "mINP", "ap", "cmc"):
        np.testing.assert_allclose(getattr(parts, figure), getattr(whole, figure), atol=1e-6)
    np.testing.assert_array_equal(whole.ranks, parts.ranks)
    np.testing.assert_array_equal(whole.top.indices, parts.top.indices)
    np.testing.assert_allclose(whole.top.scores, parts.top.scores, atol=2e-6)


def test_devices_compile_once_for_all_blocks(real_valued):
    query, gallery, query_pid, gallery_pid, *cameras = real_valued
    labels = (query_pid, np.where(gallery_pid > 3, gallery_pid, 0), *cameras)
    options = {"mesh": devices(2), "block_elements": 16 * 512}
    ranking.rank(query, gallery, *labels, **options)
    before = device_ranks._device_ranks._cache_size()
    ranking.rank(query + 1, gallery, *labels, **options)
    assert device_ranks._device_ranks._cache_size() == before


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("size", [700, 5003])
def test_equal_features_rank_in_gallery_order(name, size):
    """Every gallery row is the same vector: the i-th kept row has rank i, in the last tile too."""
    rng = np.random.default_rng(0)
    gallery = np.repeat(rng.standard_normal((1, 96)), size, axis=0)
    query = rng.standard_normal((9, 96))
    gallery_pid = np.zeros(size, int)
    rows = np.array([5, 255, 256, 511, 699, size - 1])
    gallery_pid[rows] = 1
    labels = np.ones(9, int), gallery_pid, np.zeros(9), np.ones(size)
    options = ENGINES[name] | ({"block_elements": 6144 * 8} if "small" in name else {})
    found = ranking.rank(query, gallery, *labels, **options)
    expected = np.unique(rows) + 1
    np.testing.assert_array_equal(found.ranks.reshape(9, -1), np.tile(expected, (9, 1)))
    assert np.all(found.tied == size)


def test_half_precision_and_float64(real_valued):
    query, gallery, *labels = real_valued
    half = ranking.rank(
        jnp.asarray(query, jnp.bfloat16), jnp.asarray(gallery, jnp.bfloat16), *labels
    )
    assert abs(half.mAP - ranking.rank(query, gallery, *labels).mAP) < 0.05
    # Scores that only float64 tells apart.
    close = np.array([[1.0 + 2e-12, 1.0 + 1e-12, 1.0 + 3e-12]])
    with jax.enable_x64(True):
        fine = ranking.rank_scores(close, [1], [2, 1, 2], [0], [1, 1, 1])
        features = ranking.rank(
            np.array([[1.0]]), 1 - close.T, [1], [2, 1, 2], [0], [1, 1, 1], metric="euclidean"
        )
    assert fine.ranks[0] == 3
    assert features.ranks[0] == 1  # 1 - 1e-12 is the farthest from 0, so the nearest to 1


def test_max_rank_and_no_match_change_the_result(real_valued):
    query, gallery, query_pid, *rest = real_valued
    query_pid = query_pid.copy()
    query_pid[:10] = 99
    skip = ranking.rank(query, gallery, query_pid, *rest, max_rank=3)
    zero = ranking.rank(query, gallery, query_pid, *rest, no_match="zero")
    assert len(skip.cmc) == 3 and len(zero.cmc) == 50
    assert skip.skipped == 10 and zero.skipped == 0
    np.testing.assert_allclose(zero.mAP, skip.mAP * 60 / 70)
    assert skip.summary()["rank5"] == skip.cmc[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "manhattan"}, "metric is 'manhattan', must be one of cosine"),
        ({"no_match": "ignore"}, "no_match is 'ignore'"),
        ({"ap": "area"}, "ap is 'area'"),
        ({"cmc": "person"}, "cmc is 'person'"),
        ({"engine": "gpu"}, "engine is 'gpu'"),
        ({"same_camera": "yes"}, "same_camera is 'yes'"),
        ({"block_elements": 0}, "block_elements 0"),
        ({"max_rank": 0}, "max_rank 0"),
        ({"top": -1}, "top is -1, must be 0 or more"),
        ({"query_f": np.ones((2, 3))}, r"found query \(2, 3\), gallery \(3, 4\)"),
        ({"gallery_f": np.zeros((0, 4))}, r"found query \(2, 4\), gallery \(0, 4\)"),
        ({"gallery_f": np.eye(3, 4) * [[1], [1], [0]]}, "1 of 3 gallery features are zero .*row 2"),
        ({"query_f": np.array([[1, 1, 1, 1], [1, np.nan, 1, 1]])}, "1 of 2 query features .*row 1"),
        ({"gallery_pid": np.ones(2, int), "gallery_camid": np.ones(2)}, "gallery: 3 rows"),
        ({"query_camid": np.ones(3, int)}, r"query: pid \(2,\) and camid \(3,\)"),
        ({"gallery_pid": np.full(3, -1)}, "of which 3 are junk"),
    ],
)
def test_wrong_input_is_named(change, message):
    inputs = {
        "query_f": np.ones((2, 4)),
        "gallery_f": np.ones((3, 4)),
        "query_pid": np.ones(2, int),
        "gallery_pid": np.ones(3, int),
        "query_camid": np.zeros(2, int),
        "gallery_camid": np.ones(3, int),
    }
    with pytest.raises(ValueError, match=message) as error:
        ranking.rank(**(inputs | change))
    assert "\n" not in str(error.value)


def test_wrong_scores_are_named():
    with pytest.raises(ValueError, match="NaN"):
        ranking.rank_scores(np.array([[np.nan]]), [1], [1], [0], [1])
    with pytest.raises(ValueError, match="scores must be"):
        ranking.rank_scores(np.zeros(3), [1], [1], [0], [1])
    with pytest.raises(ValueError, match="ranks by features"):
        ranking.rank_scores(np.ones((1, 1)), [1], [1], [0], [1], engine="device")


# Rules.


@pytest.fixture(scope="module")
def ranked_by_hand():
    """One query; matches at ranks 2, 3 and 6, the third of which ties with a stranger before it."""
    scores = np.array([[9.0, 8.0, 7.0, 6.0, 5.0, 5.0, 1.0]])
    return scores, [1], [2, 1, 1, 3, 2, 1, 4], [0], np.ones(7)


@pytest.mark.parametrize(
    ("ap", "expected"),
    [
        ("step", [1 / 2, 2 / 3, 3 / 6]),
        ("trapezoid", [(0 / 1 + 1 / 2) / 2, (1 / 2 + 2 / 3) / 2, (2 / 5 + 3 / 6) / 2]),
        ("tied", [1 / 2, 2 / 3, 3 / 6]),
    ],
)
def test_average_precision_by_hand(ranked_by_hand, ap, expected):
    found = ranking.rank_scores(*ranked_by_hand, ap=ap)
    np.testing.assert_allclose(found.mAP, np.mean(expected))


def test_tied_average_precision_does_not_see_the_order():
    scores = np.array([[2.0, 1.0, 1.0, 1.0]])
    for pid, step in (([2, 1, 1, 2], (1 / 2 + 2 / 3) / 2), ([2, 2, 1, 1], (1 / 3 + 2 / 4) / 2)):
        labels = [1], pid, [0], np.ones(4)
        assert ranking.rank_scores(scores, *labels, ap="tied").mAP == 2 / 4
        np.testing.assert_allclose(ranking.rank_scores(scores, *labels).mAP, step)
    # A match at rank 1 counts a precision of 1 before it.
    first = ranking.rank_scores(scores, [1], [1, 2, 2, 2], [0], np.ones(4), ap="trapezoid")
    assert first.mAP == 1.0


def test_published_tied_average_precision():
    data = golden("12_eval_s0")
    labels = (data["q_ids"], data["g_ids"], data["q_cams"], data["g_cams"])
    for kind in ("ties", "noties"):
        found = ranking.rank_scores(-data[f"{kind}_dist"], *labels, ap="tied")
        np.testing.assert_allclose(found.mAP, data[f"{kind}_ranking_map"], atol=1e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_list_of_identities(name):
    """Before the match stand two images of identity 2 and one of identity 3: place 3, rank 4."""
    gallery = np.array([[0.9], [0.8], [0.95], [0.7], [0.6]])
    labels = [1], np.array([2, 3, 2, 1, 1]), [0], np.ones(5)
    for cmc, first in (("image", 4), ("identity", 3)):
        found = ranking.rank([[1.0]], gallery, *labels, metric="dot", cmc=cmc, **ENGINES[name])
        assert found.first.tolist() == [first]
        assert np.argmax(found.cmc) == first - 1
        assert found.ranks.tolist() == [4, 5]


@settings(max_examples=25, deadline=None)
@given(problems(), st.sampled_from(["host", "device"]))
def test_list_of_identities_against_the_oracle(problem, engine):
    _, *labels = problem
    rng = np.random.default_rng(len(labels[0]))
    query = rng.integers(-2, 3, (len(labels[0]), 3)) / 2.0
    gallery = rng.integers(-2, 3, (len(labels[1]), 3)) / 2.0
    found = ranking.rank(query, gallery, *labels, metric="dot", cmc="identity", engine=engine)
    for row, entries in enumerate(listed(query @ gallery.T, *labels)):
        seen = list(dict.fromkeys(labels[1][j] for j, _ in entries))
        hit = [place for place, pid in enumerate(seen, 1) if pid == labels[0][row]]
        assert found.first[row] == (hit[0] if hit else 0)


def test_cameras(real_valued):
    """What each rule leaves out, by candidates; an unknown camera is the same as no other."""
    query, gallery, query_pid, gallery_pid, query_camid, gallery_camid = real_valued
    labels = query_pid, gallery_pid, query_camid
    kept = gallery_pid != -1
    same_id = gallery_pid == query_pid[:, None]
    same_camera = gallery_camid == query_camid[:, None]
    left_out = {
        "identity": same_id & same_camera,
        "location": same_camera,
        "none": np.zeros_like(same_id),
    }
    for rule, dropped in left_out.items():
        for engine in ("host", "device"):
            options = {"same_camera": rule, "engine": engine}
            found = ranking.rank(query, gallery, *labels, gallery_camid, **options)
            np.testing.assert_array_equal(found.candidates, np.sum(kept & ~dropped, axis=1))
            unknown = ranking.rank(query, gallery, *labels, np.full(300, -1), **options)
            assert np.all(unknown.candidates == kept.sum())


def test_locations_join_cameras():
    rules = relevance(
        [1, 1], [1, 2, 1], [0, 1], [0, 1, 2], same_camera="location", locations=(0, 1, 1)
    )
    scores = MatrixScores(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]))
    found = ranking.rank_by(scores, rules)
    # Query 0 leaves out row 0 of its camera; query 1 rows 1 and 2 of its location.
    assert found.candidates.tolist() == [2, 1]
    assert found.ranks.tolist() == [1, 1]
    with pytest.raises(ValueError, match="camera 2 has no location"):
        relevance([1], [1], [0], [2], same_camera="location", locations=(0, 1))


@pytest.mark.parametrize("engine", ["host", "device"])
def test_published_lists(engine):
    """Good rows replace identities and junk rows are left out beyond the rules."""
    query, gallery = np.array([[1.0], [1.0]]), np.array([[5.0], [4.0], [3.0], [2.0], [9.0]])
    pid = np.array([1, 1, 2, 1, -1])
    rules = relevance([1, 2], pid, [0, 0], np.ones(5))
    lists = dataclasses.replace(
        rules,
        good=Lists(np.array([0, 2, 3]), np.array([3, 2, 1])),
        junk=Lists(np.array([0, 1, 1]), np.array([0])),
    )
    scores = FeatureScores(query, gallery, "dot")
    found = ranking.rank_by(scores, lists, engine=engine, top=3)
    # Query 0: row 0 is junk, row 4 in no list; of 1, 2, 3 the last two are good.
    assert found.offsets.tolist() == [0, 2, 3] and found.ranks.tolist() == [2, 3, 2]
    assert found.top.indices.tolist() == [[1, 2, 3], [0, 1, 2]]
    assert found.candidates.tolist() == [3, 4]
    plain = ranking.rank_by(scores, rules, engine=engine)
    assert plain.ranks.tolist() == [1, 2, 4, 3]


def test_a_query_in_the_gallery_does_not_find_itself():
    f = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    pid, unknown, item = np.array([1, 1, 2]), np.full(3, -1), np.arange(3)
    itself = ranking.rank(f[:1], f, pid[:1], pid, unknown[:1], unknown)
    assert itself.ranks.tolist() == [1, 2]
    rules = relevance(pid[:1], pid, unknown[:1], unknown, same_item=(item[:1], item))
    assert ranking.rank_by(FeatureScores(f[:1], f), rules).ranks.tolist() == [1]


def test_relevance_that_does_not_fit_is_named():
    scores = MatrixScores(np.ones((2, 3)))
    rules = relevance([1, 2], [1, 1, 2], [0, 0], [1, 1, 1])
    wrong = {
        "good: expected lists for 2": {"good": Lists(np.array([0, 1]), np.array([0]))},
        "junk: expected gallery rows": {"junk": Lists(np.array([0, 1, 1]), np.array([3]))},
        r"kept has shape \(2,\)": {"kept": np.ones(2, bool)},
        "gallery: 3 rows": {"exclude": ((np.zeros(2), np.zeros(4)),)},
    }
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=message):
            ranking.rank_by(scores, dataclasses.replace(rules, **change))
    assert isinstance(rules, Relevance)


def test_rules_are_named(real_valued):
    found = ranking.rank(*real_valued, ap="tied", no_match="zero", max_rank=7, cmc="identity")
    assert found.rules == {
        "metric": "cosine", "ap": "tied", "no_match": "zero", "cmc": "identity", "max_rank": 7,
    }  # fmt: skip


# Scales, offsets and other inputs that cost digits.


@pytest.mark.parametrize("engine", ["host", "device"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_scale_changes_nothing_or_is_an_error(real_valued, metric, engine):
    query, gallery, *labels = real_valued
    features = query.astype(np.float32), gallery.astype(np.float32)
    plain = ranking.rank(*features, *labels, metric=metric, engine=engine)
    for scale in (2.0**-40, 2.0**40, 2.0**50):  # powers of two are exact
        scaled = [x * np.float32(scale) for x in features]
        found = ranking.rank(*scaled, *labels, metric=metric, engine=engine)
        np.testing.assert_array_equal(found.ranks, plain.ranks)
    for scale in (1e-33, 1e33):
        scaled = [x * np.float32(scale) for x in features]
        with pytest.raises(ValueError, match=f"lengths from .*{metric} in float32 needs"):
            ranking.rank(*scaled, *labels, metric=metric, engine=engine)


@pytest.mark.parametrize("engine", ["host", "device"])
@pytest.mark.parametrize("junk", ["drawn", "zero"])
@pytest.mark.parametrize(
    ("offset", "dtype"),
    [(10.0, np.float32), (1e3, np.float32), (1e5, np.float32), (1e5, np.float64), (1e9, float)],
)
def test_a_far_mean_does_not_cost_euclidean_digits(real_valued, engine, offset, dtype, junk):
    query, gallery, *labels = real_valued
    query, gallery = (np.round(x * 8) / 8 + offset for x in (query, gallery))
    if junk == "zero":  # rows that no ranking contains
        gallery[labels[1] == -1] = 0.0
    features = query.astype(dtype), gallery.astype(dtype)
    exact = -np.sum((features[0].astype(float)[:, None] - features[1]) ** 2, axis=-1)
    found = ranking.rank(*features, *labels, metric="euclidean", engine=engine, top=5)
    check_against_oracle(found, oracle(exact, *labels))
    best = np.take_along_axis(exact, found.top.indices, axis=1)
    np.testing.assert_allclose(found.top.scores, -np.sqrt(-best), rtol=1e-5)


@pytest.mark.parametrize("engine", ["host", "device"])
def test_vectors_of_nearly_one_direction(engine):
    """Rows of a model that has nearly collapsed: cosines differ in the seventh digit."""
    rng = np.random.default_rng(3)
    pid = rng.integers(0, 9, 240)
    f = np.ones((240, 16)) + 1e-3 * (rng.normal(size=(9, 16))[pid] + rng.normal(size=(240, 16)))
    f = f.astype(np.float32)
    wide = f.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    exact = 1 - np.square(unit[:40, None] - unit[40:]).sum(axis=-1) / 2
    labels = pid[:40], pid[40:], np.zeros(40), np.ones(200)
    found = ranking.rank(f[:40], f[40:], *labels, engine=engine, top=3)
    expected = ranking.rank_scores(np.float32((exact - 1) * 1e6), *labels)
    assert found.mAP == pytest.approx(expected.mAP, abs=2e-4)
    np.testing.assert_allclose(
        found.top.scores, np.take_along_axis(exact, found.top.indices, axis=1), atol=1e-6
    )
    plain = ranking.rank_scores(f[:40] @ f[40:].T / 16, *labels)
    assert abs(plain.mAP - expected.mAP) > 1e-2  # what products alone would find


def test_a_gallery_of_one_point():
    gallery = np.full((6, 3), 1e4 + 1 / 3, np.float32)
    labels = [1], np.array([2, 1, 2, 1, 2, 1]), [0], np.ones(6)
    found = ranking.rank(gallery[:1] + 1, gallery, *labels, metric="euclidean")
    assert found.ranks.tolist() == [2, 4, 6]
    np.testing.assert_array_equal(found.tied, 6)


def test_float64_keeps_ties_where_jax_computes_in_it():
    rng = np.random.default_rng(5)
    query, gallery = rng.integers(-9, 10, (30, 3)) / 8, rng.integers(-9, 10, (200, 3)) / 8
    labels = rng.integers(0, 9, 30), rng.integers(0, 9, 200), np.zeros(30), np.ones(200)
    exact = -np.sum((query[:, None] - gallery) ** 2, axis=-1)
    with jax.enable_x64(True):
        for engine in ("host", "device"):
            found = ranking.rank(query, gallery, *labels, metric="euclidean", engine=engine)
            check_against_oracle(found, oracle(exact, *labels))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_engines_agree_where_many_scores_tie(metric):
    """Integer features: distances are exact, cosines are up to the rounding of products."""
    rng = np.random.default_rng(1)
    query, gallery = rng.integers(1, 5, (40, 7)), rng.integers(1, 5, (300, 7))
    labels = rng.integers(0, 9, 40), rng.integers(0, 9, 300), np.zeros(40), np.ones(300)
    features = query.astype(np.float32), gallery.astype(np.float32)
    found = [ranking.rank(*features, *labels, metric=metric, engine=e) for e in ("host", "device")]
    if metric == "euclidean":
        np.testing.assert_array_equal(found[0].ranks, found[1].ranks)
    np.testing.assert_allclose(found[0].mAP, found[1].mAP, atol=1e-3)


def test_many_matches_are_ranked_by_sorting(monkeypatch):
    monkeypatch.setattr(device_ranks, "_PASSES", 20)
    rng = np.random.default_rng(2)
    query, gallery = rng.integers(-2, 3, (9, 3)) / 2.0, rng.integers(-2, 3, (400, 3)) / 2.0
    labels = rng.integers(0, 3, 9), rng.integers(0, 3, 400), np.zeros(9), rng.integers(0, 2, 400)
    exact = query @ gallery.T
    found = ranking.rank(query, gallery, *labels, metric="dot", engine="device", top=6)
    assert np.diff(found.offsets).max() > 20
    check_against_oracle(found, oracle(exact, *labels))
    check_details(found, exact, listed(exact, *labels), "dot")


def test_signed_zeros_are_equal():
    gallery, labels = np.array([[0.0], [-0.0], [0.0]]), ([1], np.ones(3, int), [0], np.ones(3))
    for metric in ("dot", "euclidean"):
        for engine in ("host", "device"):
            for query in ([[1.0]], [[-1.0]]):
                found = ranking.rank(query, gallery, *labels, metric=metric, engine=engine, top=3)
                assert found.top.indices.tolist() == [[0, 1, 2]]
                assert found.tied.tolist() == [3, 3, 3]


@pytest.mark.parametrize("limit", [0, 2**22])
@pytest.mark.parametrize("engine", ["host", "device"])
def test_unknown_cameras_on_both_sides(monkeypatch, real_valued, engine, limit):
    from ccafl_jax.evaluation import relevance as module

    monkeypatch.setattr(module, "_LIST_ENTRIES", limit)  # keys are compared, or listed
    query, gallery, query_pid, gallery_pid, query_camid, gallery_camid = real_valued
    query_camid, gallery_camid = query_camid - 1, gallery_camid - 1
    labels = query_pid, gallery_pid, query_camid, gallery_camid
    found = ranking.rank(query, gallery, *labels, engine=engine)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)]
    check_against_oracle(found, oracle(unit[0] @ unit[1].T, *labels))
    located = ranking.rank(query, gallery, *labels, engine=engine, same_camera="location")
    same = (query_camid[:, None] == gallery_camid) & (query_camid[:, None] >= 0)
    expected = np.sum((gallery_pid != -1) & ~same, axis=1)
    np.testing.assert_array_equal(located.candidates, expected)


def test_blocks_of_tied_matches_end_with_their_query():
    """Both queries' last and first matches have the same number of items above: no block joins."""
    scores = np.array([[3.0, 2.0, 2.0], [3.0, 3.0, 1.0]])
    found = ranking.rank_scores(scores, [1, 2], [2, 1, 3], [0, 0], np.ones(3), ap="tied")
    np.testing.assert_array_equal(found.tied, [3, 2])
    single = ranking.rank_scores(
        np.array([[2.0, 1.0], [1.0, 2.0]]), [1, 1], [2, 1], [0, 0], [1, 1], ap="tied"
    )
    np.testing.assert_allclose(single.ap, [1 / 2, 1.0])
    same = ranking.rank_scores(
        np.array([[2.0, 1.0]] * 2), [1, 1], [2, 1], [0, 0], [1, 1], ap="tied"
    )
    np.testing.assert_allclose(same.ap, [1 / 2, 1 / 2])
    many = ranking.rank_scores(np.ones((2, 4)), [1, 1], [1, 1, 2, 2], [0, 0], np.ones(4), ap="tied")
    np.testing.assert_allclose(many.ap, [2 / 4, 2 / 4])


def test_published_lists_are_renumbered_when_junk_goes():
    rules = relevance([1], [-1, 2, -1, 1, 1], [0], np.ones(5))
    lists = dataclasses.replace(rules, good=Lists(np.array([0, 2]), np.array([1, 4])))
    found = ranking.rank_by(MatrixScores(np.array([[9.0, 1.0, 9.0, 5.0, 3.0]])), lists, top=3)
    assert found.ranks.tolist() == [2, 3]
    assert found.top.indices.tolist() == [[3, 4, 1]]
    assert found.top.matches.tolist() == [[False, True, True]]


@pytest.mark.parametrize("engine", ["host", "device"])
def test_unlisted_items_of_the_own_identity_are_no_strangers(engine):
    rules = relevance([1], [1, 2, 1], [0], np.ones(3))
    lists = dataclasses.replace(rules, good=Lists(np.array([0, 1]), np.array([2])))
    scores = FeatureScores([[1.0]], [[3.0], [2.0], [1.0]], "dot")
    found = ranking.rank_by(scores, lists, cmc="identity", engine=engine)
    assert found.ranks.tolist() == [3] and found.first.tolist() == [2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([2**32 + 1, 1], "query pid: 1 of 2 labels are no whole numbers of 32 bits"),
        ([1.5, 1.0], "first: 1.5"),
        ([np.nan, 1.0], "first: nan"),
        (["1", "2"], "query pid: labels are <U1"),
    ],
)
def test_labels_that_are_no_int32_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        ranking.rank(np.eye(2), np.eye(2), np.array(labels), [1, 2], [0, 0], [1, 1])


def test_scores_of_a_provider_that_are_nan_are_named():
    class Broken:
        shape = (1, 2)

        def blocks(self, order=None, *, elements=0):
            yield np.array([0]), np.array([[np.nan, 1.0]])

    with pytest.raises(ValueError, match="scores hold NaN"):
        ranking.rank_by(Broken(), relevance([1], [1, 2], [0], [1, 1]))


def test_meshes_that_cannot_split_are_named(real_valued):
    wrong = Mesh(np.array(jax.devices()[:2]), ("model",))
    with pytest.raises(ValueError, match="expected one named 'data'"):
        ranking.rank(*real_valued, mesh=wrong)
    for options in ({"engine": "host"}, {}):
        rules = relevance([1], [1], [0], [1])
        with pytest.raises(ValueError, match="a mesh is for the engine"):
            ranking.rank_by(MatrixScores(np.ones((1, 1))), rules, mesh=devices(1), **options)


def test_columns_that_do_not_fit_are_named():
    for columns in ([0, 2, 1], [0, 3], [-1, 0], [1, 1]):
        with pytest.raises(ValueError, match="columns must be ascending rows of the gallery"):
            FeatureScores(np.ones((1, 2)), np.ones((3, 2)), columns=np.array(columns))
    with pytest.raises(ValueError, match="expected real numbers"):
        FeatureScores(np.ones((1, 2), complex), np.ones((3, 2)))


def test_no_cameras_and_a_short_name(real_valued):
    query, gallery, query_pid, gallery_pid, *_ = real_valued
    found = ranking.rank(query, gallery, query_pid, gallery_pid)
    unknown = np.full(70, -1), np.full(300, -1)
    same = ranking.rank(query, gallery, query_pid, gallery_pid, *unknown)
    np.testing.assert_array_equal(found.ap, same.ap)
    assert repr(found).startswith(f"Ranking(mAP={found.mAP:.4g}, rank1=") and len(repr(found)) < 150
    many = ranking.rank(query, gallery, query_pid, gallery_pid, top=10_000)
    assert many.top.indices.shape == (70, int(np.sum(gallery_pid != -1)))
