"""Jaccard distances against reference values, a dense oracle, and both engines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.neighbors import reciprocal_on_devices
from ccafl_jax.pseudo_labels import jaccard as module
from ccafl_jax.pseudo_labels import jaccard_on_devices, jaccard_on_host
from ccafl_jax.pseudo_labels.jaccard import ONE, Jaccard, jaccard
from tests import reciprocal_oracle
from tests.golden_data import golden

ENGINES = ("host", "device")


def oracle(features, k1, k2, *, decimals=9):
    """Dense distances in float64 from a stable sort of all distances; own item at 0."""
    distance = reciprocal_oracle.squared_distances(reciprocal_oracle.unit(features))
    # Equal features are at 0 from each other, and stand in the order of their index.
    order = np.argsort(np.round(distance, decimals), axis=1, kind="stable")
    k1 = min(k1, len(features))
    half = min(int(np.rint(k1 / 2)) + 1, k1)
    weights = reciprocal_oracle.encode(order, distance, columns=k1, half=half, k2=min(k2, k1))
    found = reciprocal_oracle.jaccard(weights, weights)
    np.fill_diagonal(found, 0)
    return found


def people(rng, n, *, copies=False):
    """Features around a few centres; with copies a third of the items equal another one."""
    f = rng.standard_normal((max(n // 6, 1), 8))[rng.integers(0, max(n // 6, 1), n)]
    f = (f + 0.4 * rng.standard_normal((n, 8))).astype(np.float32)
    if copies:
        f[rng.random(n) < 0.33] = f[0]
    return f


def as_matrix(pairs, size):
    found = np.full((size, size), np.inf, np.float32)
    found[pairs.first, pairs.second] = found[pairs.second, pairs.first] = pairs.distance
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", "abcd")
def test_calr_reference(name, engine):
    case = golden("jaccard", "calr")
    k1, k2 = (int(k) for k in case[f"{name}_k"])
    lists = case[f"{name}_rank"]
    rows = jaccard(case[f"{name}_feat"], k1=k1, k2=k2, neighbors=lists, engine=engine)
    np.testing.assert_allclose(rows.dense(), case[f"{name}_jaccard"], atol=2e-6)
    searched = jaccard(case[f"{name}_feat"], k1=k1, k2=k2, engine=engine)
    np.testing.assert_allclose(searched.dense(), case[f"{name}_jaccard"], atol=2e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (30, 6), (20, 1)])
def test_ccafl_reference(k1, k2, engine):
    case = golden("11_jaccard_s0")
    expected = case[f"jaccard_k1_{k1}_k2_{k2}"]
    found = jaccard(case["features"], k1=k1, k2=k2, engine=engine).dense()
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", "abc")
def test_cclnet_reference(name, engine):
    case = golden("jaccard_dbscan", "cclnet")
    k1, k2 = int(case[f"{name}/k1"]), int(case[f"{name}/k2"])
    features, lists = case[f"{name}/feats"], case[f"{name}/initial_rank"]
    found = jaccard(features, k1=k1, k2=k2, neighbors=lists, engine=engine).dense()
    np.testing.assert_allclose(found, case[f"{name}/jaccard"], atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 2, 30, 61]),
    st.sampled_from([(1, 1), (4, 2), (9, 1), (9, 9), (100, 6)]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_host_is_the_oracle(n, counts, copies, seed):
    k1, k2 = counts
    f = people(np.random.default_rng(seed), n, copies=copies)
    rows = jaccard(f, k1=k1, k2=k2, engine="host")
    expected = oracle(f, k1, k2)
    np.testing.assert_allclose(rows.dense(), expected, atol=2e-6)
    some = np.random.default_rng(seed).integers(0, n, 3)
    np.testing.assert_array_equal(rows.block(some), rows.dense()[some])


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([(4, 2), (9, 1)]), st.booleans(), st.integers(0, 2**31))
def test_device_is_the_host(counts, copies, seed):
    k1, k2 = counts
    f = people(np.random.default_rng(seed), 61, copies=copies)
    host, device = (jaccard(f, k1=k1, k2=k2, engine=engine) for engine in ENGINES)
    wide = max(host.indices.shape[1], device.indices.shape[1])
    for name, fill in (("indices", len(f)), ("weights", 0)):
        a, b = (
            np.pad(x, ((0, 0), (0, wide - x.shape[1])), constant_values=fill)
            for x in (np.asarray(getattr(rows, name)) for rows in (host, device))
        )
        # Exponentials of float32 may differ in the last bit.
        np.testing.assert_allclose(a, b, atol=0 if name == "indices" else 1e-7 * ONE)
    found = as_matrix(device.within(0.7), len(f))
    expected = as_matrix(host.within(0.7), len(f))
    border = np.abs(host.dense() - 0.7) < 1e-6
    np.testing.assert_allclose(np.where(border, 0, found), np.where(border, 0, expected), atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("eps", [0.05, 0.6, 0.95])
def test_pairs_are_those_of_the_dense_matrix(engine, copies, eps):
    f = people(np.random.default_rng(5), 90, copies=copies)
    rows = jaccard(f, k1=8, k2=3, engine=engine)
    dense = rows.dense()
    first, second = np.nonzero(np.triu(dense <= eps, 1))
    found = rows.within(eps)
    np.testing.assert_array_equal(found.first, first)
    np.testing.assert_array_equal(found.second, second)
    np.testing.assert_array_equal(found.distance, dense[first, second])
    assert len(first) > 0 and found.first.dtype == np.int32
    np.testing.assert_array_equal(dense, dense.T)
    assert (np.diag(dense) == 0).all()


def test_without_copies_only_originals_pair():
    f = people(np.random.default_rng(6), 60, copies=True)
    rows = jaccard(f, k1=5, k2=2)
    original = rows.originals
    equal = (f[:, None] == f).all(axis=2)
    beyond = np.flatnonzero(equal[0])[5:]  # more equal items than columns
    assert len(beyond) > 3 and (original[beyond] == 0).all()
    assert (original[original] == original).all() and (original <= np.arange(60)).all()
    alone = rows.within(0.6, copies=False)
    assert np.isin([alone.first, alone.second], np.unique(original)).all()
    assert len(rows.within(0.6).first) > len(alone.first)


@pytest.mark.parametrize("engine", ENGINES)
def test_blocks_change_nothing(monkeypatch, engine):
    f = people(np.random.default_rng(7), 150)
    whole = jaccard(f, k1=12, k2=4, engine=engine)
    pairs = whole.within(0.6)
    monkeypatch.setattr(reciprocal_on_devices, "_ELEMENTS", 4096)
    monkeypatch.setattr(jaccard_on_devices, "_TABLE", 2048)
    monkeypatch.setattr(jaccard_on_devices, "_SHARED", 512)
    monkeypatch.setattr(jaccard_on_host, "_SHARED", 50)
    monkeypatch.setattr(jaccard_on_host, "_ITEMS", 7)
    parts = jaccard(f, k1=12, k2=4, engine=engine, progress=True)
    np.testing.assert_array_equal(parts.indices, whole.indices)
    # XLA may round exponentials of blocks of another shape otherwise.
    rounding = 1e-7 * ONE if engine == "device" else 0
    np.testing.assert_allclose(parts.weights, whole.weights, atol=rounding)
    found = whole.within(0.6, progress=True)
    for some, all_of_them in zip(found, pairs, strict=True):
        np.testing.assert_array_equal(some, all_of_them)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_devices_change_nothing(monkeypatch, devices):
    import jax

    f = people(np.random.default_rng(8), 77)
    expected = jaccard(f, k1=9, k2=3, engine="device")
    pairs = expected.within(0.6)
    every = jax.local_devices()
    assert len(every) == 8
    monkeypatch.setattr(jax, "local_devices", lambda *args, **options: every[:devices])
    found = jaccard(f, k1=9, k2=3, engine="device")
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.weights, expected.weights)
    for some, all_of_them in zip(found.within(0.6), pairs, strict=True):
        np.testing.assert_array_equal(some, all_of_them)


def test_capacities_grow_until_all_fits(monkeypatch):
    f = people(np.random.default_rng(9), 120)
    expected = jaccard(f, k1=12, k2=6, engine="device")
    pairs = expected.within(0.9)
    real = reciprocal_on_devices.power_of_two
    # Rows start with room for two members, and blocks of items with room for one pair.
    monkeypatch.setattr(
        reciprocal_on_devices, "power_of_two", lambda n: 2 if n in (24, 48) else real(n)
    )
    found = jaccard(f, k1=12, k2=6, engine="device")
    assert found.indices.shape[1] < expected.indices.shape[1]
    wide = found.indices.shape[1]
    np.testing.assert_array_equal(found.indices, np.asarray(expected.indices)[:, :wide])
    np.testing.assert_array_equal(found.weights, np.asarray(expected.weights)[:, :wide])
    monkeypatch.setattr(jaccard_on_devices, "_STARTING_PAIRS", 0)
    for some, all_of_them in zip(found.within(0.9), pairs, strict=True):
        np.testing.assert_array_equal(some, all_of_them)


def test_a_permutation_permutes_the_distances():
    rng = np.random.default_rng(10)
    f = people(rng, 80)
    order = rng.permutation(80)
    found = jaccard(f[order], k1=10, k2=4, engine="host").dense()
    expected = jaccard(f, k1=10, k2=4, engine="host").dense()[np.ix_(order, order)]
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("k2", [1, 3])
def test_one_image_many_times(engine, k2):
    f = np.repeat(np.random.default_rng(11).standard_normal((1, 8)), 40, axis=0)
    rows = jaccard(f.astype(np.float32), k1=6, k2=k2, engine=engine)
    np.testing.assert_allclose(rows.dense(), 0, atol=1e-6)
    assert (rows.originals == 0).all()
    assert len(rows.within(0.5).first) == 40 * 39 // 2
    assert len(rows.within(0.5, copies=False).first) == 0


def test_k1_above_the_number_of_items_counts_as_it():
    f = people(np.random.default_rng(12), 20)
    np.testing.assert_array_equal(jaccard(f, k1=500).dense(), jaccard(f, k1=20).dense())
    assert jaccard(f[:1]).dense().tolist() == [[0.0]]


def test_options_change_the_distances():
    f = people(np.random.default_rng(13), 60)
    plain = jaccard(f, k1=10, k2=3).dense()
    assert np.abs(jaccard(f, k1=8, k2=3).dense() - plain).max() > 1e-3
    assert np.abs(jaccard(f, k1=10, k2=4).dense() - plain).max() > 1e-3
    reversed_lists = np.argsort(-np.arange(60) % 60)[None] + np.zeros((60, 1), int)
    given_lists = jaccard(f, k1=10, k2=3, neighbors=reversed_lists).dense()
    assert np.abs(given_lists - plain).max() > 1e-3
    scaled = jaccard(3.0 * f, k1=10, k2=3).dense()
    np.testing.assert_allclose(scaled, plain, atol=1e-5)


def test_items_without_members_are_at_one():
    rows = Jaccard(
        np.array([[0, 3], [3, 3], [3, 3]], np.int32), np.array([[ONE, 0], [0, 0], [0, 0]])
    )
    assert rows.dense().tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert rows.originals.tolist() == [0, 1, 2]
    assert len(rows.within(0.9).first) == 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k1": 0}, "k1 is 0; expected a whole number of neighbours"),
        ({"k1": 2.5}, "k1 is 2.5; expected a whole number"),
        ({"k1": 4, "k2": 5}, r"k2 is 5; expected a whole number in 1\.\.4"),
        ({"neighbors": np.zeros((3, 9), int)}, r"neighbours have shape \(3, 9\); expected \[9, 4"),
        ({"neighbors": np.zeros((9, 3), int)}, "k1 columns"),
        ({"neighbors": np.full((9, 4), 9)}, r"expected rows of the same set, 0\.\.8"),
    ],
)
def test_errors_say_what_is_wrong(engine, options, message):
    f = people(np.random.default_rng(14), 9)
    with pytest.raises(ValueError, match=message):
        jaccard(f, **{"k1": 4, "k2": 2, "engine": engine, **options})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_features_that_are_none(engine, value):
    f = people(np.random.default_rng(15), 9)
    f[4] = value
    with pytest.raises(ValueError, match=r"1 of 9 image features are .*\(first: row 4\)"):
        jaccard(f, k1=4, k2=2, engine=engine)
    with pytest.raises(ValueError, match="features must be"):
        jaccard(f[:, 0], k1=4, k2=2, engine=engine)
    with pytest.raises(ValueError, match="features must be"):
        jaccard(f[:0], k1=4, k2=2, engine=engine)


@pytest.mark.parametrize("eps", [0.0, 1.0, -1.0, np.nan])
def test_eps_out_of_range(eps):
    rows = jaccard(people(np.random.default_rng(16), 9), k1=3, k2=1)
    with pytest.raises(ValueError, match="expected a distance above 0 and below 1"):
        rows.within(eps)


def test_features_far_away_keep_their_neighbourhoods():
    rng = np.random.default_rng(17)
    f = people(rng, 60).astype(np.float64)
    narrow = f * 1e-4 + np.ones(8)  # nearly one direction
    found = jaccard(narrow, k1=8, k2=3, engine="host").dense()
    np.testing.assert_allclose(found, oracle(narrow, 8, 3, decimals=15), atol=1e-3)
    assert module.jaccard(narrow, k1=8, k2=3, engine="device").dense().std() > 0.1
