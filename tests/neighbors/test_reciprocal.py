import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.neighbors import reciprocal
from ccafl_jax.neighbors.reciprocal import encode, half_columns, jaccard_block, pair_distances
from ccafl_jax.neighbors.top_k import self_top_k
from tests import reciprocal_oracle
from tests.golden_data import golden


def encode_features(f, neighbors, **options):
    return encode(neighbors, lambda i, j: pair_distances(f, i, j), **options)


def jaccard(f, neighbors, *, k1, k2, columns=None):
    """The published Jaccard distance: k1 columns, the item itself among them."""
    options = {"columns": columns or k1, "half": half_columns(k1), "k2": k2}
    encoding = encode_features(f, neighbors, **options)
    return jaccard_block(encoding, encoding.tocsc())


@pytest.mark.parametrize("name", "abcd")
def test_calr_reference(name):
    case = golden("jaccard", "calr")
    k1, k2 = case[f"{name}_k"]
    found = jaccard(case[f"{name}_feat"], case[f"{name}_rank"], k1=int(k1), k2=int(k2))
    np.testing.assert_allclose(found, case[f"{name}_jaccard"], atol=2e-6)


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (30, 6), (20, 1)])
def test_ccafl_reference(k1, k2):
    case = golden("11_jaccard_s0")
    expected = case[f"jaccard_k1_{k1}_k2_{k2}"]
    found = jaccard(case["features"], case[f"initial_rank_k1_{k1}"], k1=k1, k2=k2)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    searched = self_top_k(case["features"], k1, metric="euclidean").indices
    np.testing.assert_allclose(jaccard(case["features"], searched, k1=k1, k2=k2), found, atol=2e-6)


def test_one_column_more_is_another_distance():
    case = golden("11_jaccard_s0")
    neighbors = case["initial_rank_k1_30"]
    published = jaccard(case["features"], neighbors, k1=20, k2=6)
    other = jaccard(case["features"], neighbors, k1=20, k2=6, columns=21)
    assert 0.01 < np.abs(published - other).max() < 0.1


@pytest.mark.parametrize("name", "abc")
def test_cclnet_reference(name):
    case = golden("jaccard_dbscan", "cclnet")
    k1, k2 = int(case[f"{name}/k1"]), int(case[f"{name}/k2"])
    found = jaccard(case[f"{name}/feats"], case[f"{name}/initial_rank"], k1=k1, k2=k2)
    np.testing.assert_allclose(found, case[f"{name}/jaccard"], atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([4, 30, 61]),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 12),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_matches_the_oracle(n, columns, half, k2, copies, seed):
    rng = np.random.default_rng(seed)
    f = rng.standard_normal((n, 3)).astype(np.float32)
    if copies:
        f = f[rng.integers(0, max(1, n // 5), n)]
    distance = reciprocal_oracle.squared_distances(f)
    order = np.argsort(distance, axis=1, kind="stable")
    counts = {"columns": min(columns, n), "half": min(half, n), "k2": min(k2, n)}
    expected = reciprocal_oracle.encode(order, distance, **counts)
    found = encode_features(f, order[:, : max(counts.values())], **counts)
    assert found.data.dtype == np.float32 and found.has_sorted_indices
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-6)
    pairs = jaccard_block(found[1:3], found[2:].tocsc())
    assert pairs.dtype == np.float32
    np.testing.assert_allclose(
        pairs, reciprocal_oracle.jaccard(expected[1:3], expected[2:]), atol=1e-6
    )


def test_blocks_change_nothing(monkeypatch):
    f = np.random.default_rng(0).standard_normal((90, 4)).astype(np.float32)
    neighbors = self_top_k(f, 12, metric="euclidean").indices
    options = {"columns": 12, "half": 6, "k2": 4}
    whole = encode_features(f, neighbors, **options)
    distances = jaccard_block(whole, whole.tocsc())
    for name, value in (("_ROWS", 7), ("_PAIRS", 5), ("_TRIPLES", 50)):
        monkeypatch.setattr(reciprocal, name, value)
    parts = encode_features(f, neighbors, **options, progress=True)
    np.testing.assert_array_equal(parts.toarray(), whole.toarray())
    np.testing.assert_array_equal(jaccard_block(whole, whole.tocsc()), distances)


def test_an_expansion_by_hand():
    # Two pairs and one between: 2 is a mutual neighbour of both 1 and 3.
    neighbors = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 3], [3, 4, 2], [4, 3, 2]])
    level = lambda i, j: np.zeros(len(i))  # noqa: E731
    sets = encode(neighbors, level, columns=3, half=2).toarray() > 0
    # R(0) = {0, 1}, R(1) = {0, 1, 2}, R(2) = {1, 2, 3}; R(2, half) = {2}, others are the pairs.
    assert [np.flatnonzero(row).tolist() for row in sets] == [
        [0, 1],
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
        [3, 4],
    ]
    # With all columns in the half, R(1) = {0, 1, 2} joins the set of 0 only if 3 * 2 > 2 * 3.
    wide = encode(neighbors, level, columns=3, half=3).toarray() > 0
    assert np.flatnonzero(wide[0]).tolist() == [0, 1]
    weights = encode(neighbors, lambda i, j: np.log(1.0 + (i != j)), columns=3, half=2).toarray()
    np.testing.assert_allclose(weights[1], [0.25, 0.5, 0.25, 0, 0], atol=1e-7)
    mean = encode(neighbors, level, columns=3, half=2, k2=2).toarray()
    np.testing.assert_allclose(mean[0], [5 / 12, 5 / 12, 1 / 6, 0, 0], atol=1e-7)


def test_more_equal_items_than_columns():
    neighbors = self_top_k(np.ones((9, 4), np.float32), 3).indices
    encoding = encode_features(np.ones((9, 4)), neighbors, columns=3, half=2, k2=1)
    # Items 3 to 8 are not in their own lists and are as item 0, which is in all of them.
    assert encoding.indices.reshape(9, 3).tolist() == [[0, 1, 2]] * 9
    np.testing.assert_allclose(encoding.data, 1 / 3, atol=1e-7)
    np.testing.assert_allclose(jaccard_block(encoding, encoding.tocsc()), 0, atol=1e-6)


@pytest.mark.parametrize(("k1", "columns"), [(1, 1), (5, 3), (7, 5), (15, 9), (20, 11), (30, 16)])
def test_half_columns_round_to_even(k1, columns):
    assert half_columns(k1) == columns


@pytest.mark.parametrize(
    ("neighbors", "options", "message"),
    [
        (np.zeros((3, 2)), {}, "expected indices"),
        (np.zeros(3, int), {}, "expected indices"),
        (np.full((3, 2), -1), {}, r"-1\.\.-1; expected rows of the same set, 0\.\.2"),
        (np.full((3, 2), 3), {}, "expected rows of the same set"),
        (np.zeros((3, 2), int), {"columns": 3}, r"columns is 3; expected 1\.\.2"),
        (np.zeros((3, 2), int), {"half": 0}, r"half is 0; expected 1\.\.2"),
        (np.zeros((3, 2), int), {"k2": 3}, r"k2 is 3; expected 1\.\.2"),
    ],
)
def test_errors_say_what_is_wrong(neighbors, options, message):
    with pytest.raises(ValueError, match=message):
        encode_features(np.ones((3, 2)), neighbors, **{"columns": 2, "half": 1, **options})
