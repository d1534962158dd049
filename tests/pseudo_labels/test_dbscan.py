"""DBSCAN against scikit-learn and reference labels, and the edges of what it is asked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.pseudo_labels.dbscan import dbscan, jaccard_dbscan
from ccafl_jax.pseudo_labels.jaccard import Pairs, jaccard
from tests.golden_data import golden
from tests.pseudo_labels.test_jaccard import ENGINES, people

sklearn_cluster = pytest.importorskip("sklearn.cluster", reason="compares with scikit-learn")


def scikit(distance, eps, min_samples):
    model = sklearn_cluster.DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")
    return model.fit(distance).labels_


def pairs_of(distance, eps):
    first, second = np.nonzero(np.triu(distance <= eps, 1))
    return Pairs(first, second, distance[first, second])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([1, 2, 7, 40, 120]),
    st.integers(1, 6),
    st.floats(0.02, 0.9),
    st.sampled_from(["plane", "line", "grid", "copies"]),
    st.integers(0, 2**31),
)
def test_labels_are_those_of_scikit_learn(n, min_samples, eps, kind, seed):
    rng = np.random.default_rng(seed)
    points = rng.random((n, 1 if kind == "line" else 2))
    if kind == "grid":  # many equal distances, many borders between clusters
        points, eps = np.round(points * 8) / 8, round(eps * 8) / 8 + 1 / 16
    if kind == "copies":
        points[rng.random(n) < 0.5] = points[0]
    distance = np.sqrt(np.square(points[:, None] - points).sum(axis=2))
    found = dbscan(pairs_of(distance, eps), n, min_samples=min_samples)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, scikit(distance, eps, min_samples))
    # The direction and the order of pairs mean nothing.
    first, second, _ = pairs_of(distance, eps)
    mixed = rng.permutation(len(first))
    turned = Pairs(second[mixed], first[mixed], None)
    np.testing.assert_array_equal(dbscan(turned, n, min_samples=min_samples), found)


def test_a_border_item_joins_the_first_cluster():
    # 2 - 3 - 4 is dense, and 5 - 6 - 7; 0 lies between 3 and 6, and 1 beside 6.
    first, second = np.array([2, 2, 3, 5, 5, 6, 0, 0, 1]), np.array([3, 4, 4, 6, 7, 7, 3, 6, 6])
    labels = dbscan(Pairs(first, second, None), 9, min_samples=3)
    # Item 0 has three items within the distance: it joins both clusters to one.
    assert labels.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, -1]
    labels = dbscan(Pairs(first, second, None), 9, min_samples=4)
    # Only 3 and 6 are core items; item 0 is near both.
    assert labels.tolist() == [0, 1, 0, 0, 0, 1, 1, 1, -1]


def test_counts_stand_for_equal_items():
    first, second = np.array([0, 1]), np.array([1, 2])
    one_each = dbscan(Pairs(first, second, None), 3, min_samples=4)
    assert one_each.tolist() == [-1, -1, -1]
    labels = dbscan(Pairs(first, second, None), 3, min_samples=4, count=np.array([1, 1, 2]))
    # Item 1 has 1 + 1 + 2 items within the distance and is the only core item.
    assert labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", "abc")
def test_cclnet_labels(name, engine):
    case = golden("jaccard_dbscan", "cclnet")
    options = {key: case[f"{name}/{key}"].item() for key in ("k1", "k2", "eps", "min_samples")}
    found = jaccard_dbscan(case[f"{name}/feats"], **options, engine=engine)
    labels = case[f"{name}/labels"]
    np.testing.assert_array_equal(found.labels, labels)
    assert found.num_clusters == labels.max() + 1
    lists = case[f"{name}/initial_rank"]
    given_lists = jaccard_dbscan(case[f"{name}/feats"], **options, neighbors=lists, engine=engine)
    np.testing.assert_array_equal(given_lists.labels, labels)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 30, 90]),
    st.booleans(),
    st.floats(0.2, 0.9),
    st.integers(1, 5),
    st.integers(0, 2**31),
)
def test_jaccard_dbscan_is_scikit_learn_on_the_dense_matrix(n, copies, eps, min_samples, seed):
    f = people(np.random.default_rng(seed), n, copies=copies)
    rows = {"k1": 8, "k2": 3}
    found = jaccard_dbscan(f, **rows, eps=eps, min_samples=min_samples, engine="host")
    expected = scikit(jaccard(f, **rows, engine="host").dense(), eps, min_samples)
    np.testing.assert_array_equal(found.labels, expected)
    assert found.num_clusters == expected.max() + 1
    assert found.diagnostics["outliers"] == np.sum(expected < 0)


def test_engines_agree_and_options_change_labels():
    f = people(np.random.default_rng(1), 120)
    options = {"k1": 8, "k2": 3, "eps": 0.5, "min_samples": 3}
    plain = jaccard_dbscan(f, **options, engine="host").labels
    np.testing.assert_array_equal(jaccard_dbscan(f, **options, engine="device").labels, plain)
    for name, value in (("k1", 4), ("k2", 1), ("eps", 0.3), ("min_samples", 6)):
        other = jaccard_dbscan(f, **{**options, name: value}).labels
        assert not np.array_equal(other, plain), name


def test_a_permutation_only_renumbers():
    rng = np.random.default_rng(2)
    f = people(rng, 120)
    order = rng.permutation(120)
    options = {"k1": 8, "k2": 3, "eps": 0.5, "min_samples": 3}
    plain = jaccard_dbscan(f, **options).labels[order]
    moved = jaccard_dbscan(f[order], **options).labels
    np.testing.assert_array_equal(moved < 0, plain < 0)
    inside = moved >= 0
    together = np.unique(np.stack([moved[inside], plain[inside]]), axis=1)
    assert inside.any() and together.shape[1] == moved.max() + 1 == plain.max() + 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("k2", [1, 6])
def test_copies_of_one_image_are_one_cluster(engine, k2):
    rng = np.random.default_rng(3)
    f = people(rng, 200)
    f[rng.random(200) < 0.6] = f[7]
    found = jaccard_dbscan(f, k1=10, k2=k2, engine=engine)
    equal = (f == f[7]).all(axis=1)
    assert equal.sum() > 100 and len(set(found.labels[equal])) == 1
    assert found.labels[7] >= 0 and found.diagnostics["copies"] >= equal.sum() - 10
    # All items at one point, as many as would make 50 million pairs.
    point = np.repeat(f[:1], 10_000, axis=0) if engine == "host" else np.repeat(f[:1], 300, axis=0)
    assert (jaccard_dbscan(point, k1=10, k2=k2, engine=engine).labels == 0).all()


def test_all_outliers_and_one_giant_cluster():
    apart = np.eye(30, dtype=np.float32)
    found = jaccard_dbscan(apart, k1=5, k2=1, eps=0.01, min_samples=4)
    assert found.num_clusters == 0 and (found.labels == -1).all()
    assert found.diagnostics == {"pairs": 0, "outliers": 30, "copies": 0}
    angle = np.linspace(0, 1.5, 200)
    chain = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    found = jaccard_dbscan(chain, k1=12, k2=3, eps=0.8)
    assert found.num_clusters == 1 and (found.labels == 0).all()
    # Few items: all of them are neighbours.
    assert jaccard_dbscan(chain[:3], min_samples=3).labels.tolist() == [0, 0, 0]
    assert jaccard_dbscan(chain[:1]).labels.tolist() == [-1]
    assert jaccard_dbscan(chain[:1], min_samples=1).labels.tolist() == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: dbscan(p, 5, min_samples=0), "min_samples is 0; expected a whole number"),
        (lambda p: dbscan(p, 5, min_samples=1.5), "min_samples is 1.5"),
        (lambda p: dbscan(p, 2), r"pairs hold items 0\.\.4; expected 0\.\.1"),
        (lambda p: jaccard_dbscan(np.ones((4, 2)), eps=1.0), "eps is 1.0; expected a distance"),
        (lambda p: jaccard_dbscan(np.full((4, 2), np.nan)), "4 of 4 image features are NaN"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    pairs = Pairs(np.array([0, 1]), np.array([1, 4]), None)
    with pytest.raises(ValueError, match=message):
        call(pairs)
