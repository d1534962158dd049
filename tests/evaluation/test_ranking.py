import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.evaluation import ranking
from tests.golden_data import case_group, golden


def oracle(scores, query_pid, gallery_pid, query_camid, gallery_camid):
    """Per query: AP, rank of the first match, inverse negative penalty; None without a match."""
    results = []
    for row in range(len(query_pid)):
        order = sorted(range(len(gallery_pid)), key=lambda j: (-scores[row][j], j))
        hits, place = [], 0
        for j in order:
            same = gallery_pid[j] == query_pid[row]
            if gallery_pid[j] == -1 or (same and gallery_camid[j] == query_camid[row]):
                continue
            place += 1
            if same:
                hits.append(place)
        if not hits:
            results.append(None)
            continue
        ap = sum((k + 1) / hit for k, hit in enumerate(hits)) / len(hits)
        results.append((ap, hits[0], len(hits) / hits[-1]))
    return results


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
@given(problems(), st.sampled_from(["skip", "zero"]), st.sampled_from([None, 4]))
def test_scores_match_the_oracle(problem, no_match, query_block):
    found = ranking.rank_scores(*problem, no_match=no_match, query_block=query_block, max_rank=12)
    check_against_oracle(found, oracle(*problem), no_match)


@settings(max_examples=20, deadline=None)
@given(problems(), st.sampled_from(["cosine", "euclidean"]), st.integers(0, 2**32 - 1))
def test_features_match_the_oracle(problem, metric, seed):
    """On a dyadic grid all arithmetic is exact, ties included."""
    _, query_pid, gallery_pid, query_camid, gallery_camid = problem
    rng = np.random.default_rng(seed)
    if metric == "cosine":  # one entry of +-2^k per row: norms and cosines are exact
        query, gallery = (one_hot_rows(rng, len(pid)) for pid in (query_pid, gallery_pid))
        exact = np.sign(query) @ np.sign(gallery).T
    else:
        query = rng.integers(-2, 3, (len(query_pid), 4)) / 2.0
        gallery = rng.integers(-2, 3, (len(gallery_pid), 4)) / 2.0
        exact = -np.sum((query[:, None] - gallery) ** 2, axis=-1)
    labels = (query_pid, gallery_pid, query_camid, gallery_camid)
    found = ranking.rank(
        query.astype(np.float32), gallery.astype(np.float32), *labels, metric=metric, max_rank=12
    )
    check_against_oracle(found, oracle(exact, *labels))


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
    np.testing.assert_array_equal(found.ranks, [[1, 4], [0, 0]])


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


def test_blocks_give_one_result_and_one_compilation(real_valued):
    whole = ranking.rank(*real_valued)
    ranking.rank(*real_valued, query_block=16)
    before = ranking._positive_ranks._cache_size()
    parts = ranking.rank(*real_valued, query_block=16)
    assert ranking._positive_ranks._cache_size() == before
    np.testing.assert_array_equal(whole.ranks, parts.ranks)
    np.testing.assert_array_equal(whole.cmc, parts.cmc)


def test_equal_features_rank_in_gallery_order():
    """Every gallery row is the same vector: the i-th kept row has rank i, in the last block too."""
    rng = np.random.default_rng(0)
    gallery = np.repeat(rng.standard_normal((1, 96)), 700, axis=0)
    query = rng.standard_normal((9, 96))
    gallery_pid = np.zeros(700, int)
    gallery_pid[[5, 255, 256, 511, 699]] = 1
    found = ranking.rank(query, gallery, np.ones(9, int), gallery_pid, np.zeros(9), np.ones(700))
    np.testing.assert_array_equal(found.ranks[:, :5], np.tile([6, 256, 257, 512, 700], (9, 1)))


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
    assert fine.ranks[0, 0] == 3
    assert features.ranks[0, 0] == 1  # 1 - 1e-12 is the farthest from 0, so the nearest to 1


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
        ({"metric": "manhattan"}, "metric='manhattan'"),
        ({"no_match": "ignore"}, "no_match='ignore'"),
        ({"query_block": 0}, "query_block 0"),
        ({"query_f": np.ones((2, 3))}, r"found \(2, 3\) and \(3, 4\)"),
        ({"query_f": np.array([[1, 1, 1, 1], [1, np.nan, 1, 1]])}, "1 of 2 query features .*row 1"),
        ({"gallery_pid": np.ones(2, int)}, "gallery: 3 rows"),
        ({"query_camid": np.ones(3, int)}, "query: 2 rows"),
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
