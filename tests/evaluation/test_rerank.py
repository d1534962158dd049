import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.evaluation.ranking import rank_by, rank_scores
from ccafl_jax.evaluation.relevance import relevance
from ccafl_jax.evaluation.rerank import DISTANCES, expand_gallery, expand_queries, rerank
from tests import reciprocal_oracle
from tests.golden_data import golden


def distances(scores, **options):
    """The whole matrix of re-ranked distances."""
    found = np.full(scores.shape, np.nan, np.float32)
    for rows, block in scores.blocks(**options):
        found[rows] = -block
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("default", {}),
        ("k1_10_k2_3_l05", {"k1": 10, "k2": 3, "lambda_": 0.5}),
        ("k2_1", {"k1": 12, "k2": 1}),
    ],
)
def test_calr_reference(name, options):
    case = golden("rerank", "calr")
    options = {"metric": "euclidean", "distance": "squared_twice", **options}
    found = distances(rerank(case["q"], case["g"], **options))
    np.testing.assert_allclose(found, case[f"final_{name}"], atol=2e-5)


def test_ccafl_reference():
    case = golden("11_reranking_s0")
    query, gallery = case["query"], case["gallery"]
    found = distances(rerank(query, gallery, metric="euclidean"))
    np.testing.assert_allclose(found, case["ics_rerank_final_dist"], atol=2e-6)
    # Computed in float16 in the reference.
    np.testing.assert_allclose(found, case["clipreid_final_dist"], atol=5e-3)
    wide = distances(rerank(query, gallery, metric="euclidean", k1=50, k2=15))
    np.testing.assert_allclose(wide, case["clipreid_final_dist_k1_50_k2_15"], atol=1e-2)


def test_tfclip_reference():
    case = golden("evaluation", "tfclip")
    f, pid, camid = case["in/feats"], case["in/pids"], case["in/camids"]
    size = int(case["in/num_query"])
    scores = rerank(f[:size], f)  # the gallery holds the queries too
    np.testing.assert_allclose(distances(scores), case["out/rerank_k20_6_l03"], atol=1.5e-2)
    ranking = rank_by(scores, relevance(pid[:size], pid, camid[:size], camid))
    # Near ties change places in float16.
    assert ranking.mAP == pytest.approx(float(case["out/rerank_mAP"]), abs=5e-3)
    np.testing.assert_allclose(ranking.cmc, case["out/rerank_cmc"], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(1, 1), (1, 9), (5, 20), (12, 48)]),
    st.integers(1, 15),
    st.integers(1, 16),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(["cosine", "euclidean"]),
    st.sampled_from(DISTANCES),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_matches_the_dense_oracle(sizes, k1, k2, lambda_, metric, distance, copies, seed):
    rng = np.random.default_rng(seed)
    f = rng.standard_normal((sum(sizes), 16)).astype(np.float32)
    if copies:
        f = f[rng.integers(0, 1 + len(f) // 4, len(f))]
    k1 = min(k1, len(f) - 1)
    options = {"k1": k1, "k2": min(k2, k1 + 1), "lambda_": lambda_, "metric": metric}
    query, gallery = f[: sizes[0]], f[sizes[0] :]
    found = distances(rerank(query, gallery, distance=distance, **options))
    power = DISTANCES.index(distance) + 1
    expected = reciprocal_oracle.rerank(query, gallery, power=power, **options)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.fixture(scope="module")
def people():
    """Features of 20 people under 4 cameras, with noise."""
    rng = np.random.default_rng(0)
    pid, camid = np.arange(160) % 20, np.arange(160) // 20 % 4
    f = rng.standard_normal((20, 16))[pid] + 0.9 * rng.standard_normal((160, 16))
    f = f.astype(np.float32)
    return f[:40], f[40:], pid[:40], pid[40:], camid[:40], camid[40:]


def test_ranks_by_it(people):
    query, gallery, *labels = people
    scores = rerank(query, gallery)
    ranking = rank_by(scores, relevance(*labels))
    dense = rank_scores(-distances(scores), *labels)
    assert ranking.mAP == dense.mAP
    before = rank_scores(query @ gallery.T, *labels)
    assert ranking.mAP > before.mAP


def test_blocks_and_order_change_nothing(people):
    scores = rerank(*people[:2])
    whole = distances(scores)
    order = np.random.default_rng(1).permutation(40)
    np.testing.assert_array_equal(distances(scores, order=order, elements=1), whole)
    seen = [rows for rows, _ in scores.blocks(order, elements=8 * 120)]
    np.testing.assert_array_equal(np.concatenate(seen), order)
    assert len(seen) > 1
    block = next(scores.blocks())[1]
    np.testing.assert_array_equal(scores.reported(np.arange(40), block), block)


@pytest.mark.parametrize(
    "option",
    [
        {"k1": 10},
        {"k2": 1},
        {"lambda_": 0.5},
        {"metric": "euclidean"},
        {"distance": "squared_twice"},
    ],
)
def test_every_option_counts(people, option):
    base = distances(rerank(*people[:2]))
    assert np.abs(distances(rerank(*people[:2], **option)) - base).max() > 1e-3


def test_engines_agree(people):
    host, device = (distances(rerank(*people[:2], engine=engine)) for engine in ("host", "device"))
    np.testing.assert_allclose(host, device, atol=1e-6)


def test_cosine_ignores_lengths(people):
    query, gallery = people[:2]
    longer = rerank(query * 8, gallery * (1 + np.arange(120, dtype=np.float32)[:, None]))
    np.testing.assert_allclose(distances(longer), distances(rerank(query, gallery)), atol=1e-6)


def test_one_point_has_no_distances():
    found = distances(rerank(np.ones((2, 4)), np.ones((5, 4)), k1=6))
    np.testing.assert_allclose(found, 0.0, atol=1e-6)


def average(query, gallery, k, alpha):
    query, gallery = reciprocal_oracle.unit(query), reciprocal_oracle.unit(gallery)
    result = []
    for q in query:
        near = np.argsort(-gallery @ q, kind="stable")[:k]
        weights = np.maximum(gallery[near] @ q, 0) ** alpha if alpha else np.ones(k)
        result.append(q + weights @ gallery[near])
    return reciprocal_oracle.unit(result)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 6, 120])
def test_query_expansion_matches_the_oracle(people, k, alpha):
    query, gallery = people[:2]
    found = expand_queries(query, gallery, k=k, alpha=alpha)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, average(query, gallery, k, alpha), atol=2e-6)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_gallery_expansion_matches_the_oracle(people, alpha):
    gallery = people[1]
    found = expand_gallery(gallery, k=4, alpha=alpha)
    unit = reciprocal_oracle.unit(gallery)
    for i in range(0, 120, 7):
        others = np.delete(unit, i, axis=0)
        expected = average(unit[i : i + 1], others, 4, alpha)[0]
        np.testing.assert_allclose(found[i], expected, atol=2e-6)


def test_expansions_by_hand():
    query, gallery = np.array([[2.0, 0]]), np.array([[0, 3.0], [5, 0], [-1, 0]])
    np.testing.assert_allclose(expand_queries(query, gallery, k=1), [[1, 0]])
    diagonal = [[2 / np.sqrt(5), 1 / np.sqrt(5)]]
    np.testing.assert_allclose(expand_queries(query, gallery, k=2), diagonal, atol=1e-6)
    np.testing.assert_allclose(expand_queries(query, gallery, k=3, alpha=1), [[1, 0]])
    # The query and its opposite leave nothing: it stays.
    np.testing.assert_allclose(expand_queries(query, gallery[2:], k=1), [[1, 0]])
    same = np.tile([[0.6, 0.8]], (5, 1))
    np.testing.assert_allclose(expand_gallery(same, k=2), same, atol=1e-6)


def test_expansion_helps(people):
    query, gallery, *labels = people
    before = rank_scores(query @ gallery.T, *labels).mAP
    assert rank_scores(expand_queries(query, gallery, k=5) @ gallery.T, *labels).mAP > before
    larger = expand_gallery(gallery, k=5)
    assert rank_scores(query @ larger.T, *labels).mAP > before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, g: rerank(q, g, k1=0), r"k1 is 0; expected an integer in 1\.\.6"),
        (lambda q, g: rerank(q, g, k1=7), r"k1 is 7; expected an integer in 1\.\.6"),
        (lambda q, g: rerank(q, g, k1=2.5), "k1 is 2.5"),
        (lambda q, g: rerank(q, g, k1=4, k2=0), r"k2 is 0; expected an integer in 1\.\.5"),
        (lambda q, g: rerank(q, g, k1=4, k2=6), r"k2 is 6; expected an integer in 1\.\.5"),
        (lambda q, g: rerank(q, g, k1=4, k2=2, lambda_=1.1), r"lambda_ is 1.1; .* in 0\.\.1"),
        (lambda q, g: rerank(q, g, k1=4, k2=2, lambda_=np.nan), "lambda_ is nan"),
        (lambda q, g: rerank(q, g, k1=4, k2=2, metric="dot"), "one of cosine, euclidean"),
        (lambda q, g: rerank(q, g, k1=4, k2=2, distance="cubed"), "one of squared, squared_twice"),
        (lambda q, g: rerank(q, g, k1=4, k2=2, engine="tpu"), "one of auto, host, device"),
        (lambda q, g: rerank(q * 0, g, k1=4, k2=2), "2 of 2 query features are zero vectors"),
        (lambda q, g: rerank(q, g + np.nan, k1=4, k2=2), "5 of 5 gallery features are NaN"),
        (lambda q, g: rerank(q, g[:, :2], k1=4, k2=2), "one dim"),
        (lambda q, g: rerank(q[0], g, k1=4, k2=2), "one dim"),
        (lambda q, g: expand_queries(q, g, k=0), r"k is 0; expected 1\.\.5"),
        (lambda q, g: expand_queries(q, g, k=6), r"k is 6; expected 1\.\.5"),
        (lambda q, g: expand_queries(q, g, k=1, alpha=-1), "alpha is -1; expected 0 or more"),
        (lambda q, g: expand_queries(q * 0, g, k=1), "zero vectors"),
        (lambda q, g: expand_gallery(g, k=5), r"k is 5; expected 1\.\.4"),
        (lambda q, g: expand_gallery(g, k=1, alpha=np.inf), "alpha is inf"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    rng = np.random.default_rng(2)
    query, gallery = rng.standard_normal((2, 4)), rng.standard_normal((5, 4))
    with pytest.raises(ValueError, match=message) as error:
        call(query, gallery)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("spread", [1e-3, 1.0])
def test_a_far_mean_does_not_cost_digits(metric, spread):
    rng = np.random.default_rng(5)
    who = rng.integers(0, 6, 60)
    f = 10 + spread * (3 * rng.normal(size=(6, 16))[who] + rng.normal(size=(60, 16)))
    f = f.astype(np.float32)
    options = {"k1": 8, "k2": 3, "lambda_": 0.3, "metric": metric}
    found = distances(rerank(f[:10], f[10:], **options))
    expected = reciprocal_oracle.rerank(f[:10], f[10:], **options)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_sets_of_a_small_spread_are_no_single_point():
    """The furthest distance is a ten-thousandth of the squared lengths, far above rounding."""
    rng = np.random.default_rng(6)
    f = rng.normal(size=(40, 16))
    f = np.where(np.arange(16) < 8, f * 1e-2, 0.0) + np.eye(16)[np.arange(40) % 2 + 8]
    f = f.astype(np.float32)
    found = distances(rerank(f[:8], f[8:], k1=5, k2=2))
    expected = reciprocal_oracle.rerank(f[:8], f[8:], k1=5, k2=2)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    close = (np.eye(16)[:1] + 1e-2 * rng.normal(size=(40, 16))).astype(np.float32)
    found = distances(rerank(close[:8], close[8:], k1=5, k2=2))
    np.testing.assert_allclose(
        found, reciprocal_oracle.rerank(close[:8], close[8:], k1=5, k2=2), atol=2e-3
    )
