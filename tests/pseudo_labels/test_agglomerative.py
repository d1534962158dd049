"""Average linkage and silhouettes against reference values, scikit-learn and plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.pseudo_labels.agglomerative import (
    average_linkage,
    jaccard_linkage,
    local_clusters,
    number_of_clusters,
    silhouette,
)
from ccafl_jax.pseudo_labels.jaccard import jaccard
from ccafl_jax.pseudo_labels.labels import in_order_of_members
from tests.golden_data import golden
from tests.pseudo_labels.test_jaccard import people

SCENES = ("s0", "s1", "s2")
SIZES = st.sampled_from([2, 3, 11, 40, 75])
KINDS = st.sampled_from(["plane", "grid", "copies"])
SEEDS = st.integers(0, 2**31)


def distances(rng, n, kind, dtype=np.float32):
    """Distances of points; on a grid many are equal, with copies many are 0."""
    points = rng.random((n, 2))
    if kind == "grid":
        points = np.round(points * 4) / 4
    if kind == "copies":
        points[rng.random(n) < 0.5] = points[0]
    return np.sqrt(np.square(points[:, None] - points).sum(axis=2)).astype(dtype)


def plain_linkage(distance, clusters):
    """Joins the two groups of the smallest mean distance until `clusters` are left."""
    groups = [[i] for i in range(len(distance))]
    while len(groups) > clusters:
        pairs = [(a, b) for b in range(len(groups)) for a in range(b)]
        a, b = min(pairs, key=lambda p: distance[np.ix_(groups[p[0]], groups[p[1]])].mean())
        groups[a] += groups.pop(b)
    labels = np.empty(len(distance), int)
    for number, members in enumerate(groups):
        labels[members] = number
    return in_order_of_members(labels)


def plain_silhouette(distance, labels):
    values = []
    for i, own in enumerate(labels):
        mates = [j for j in range(len(labels)) if labels[j] == own and j != i]
        if not mates:
            values.append(0.0)
            continue
        a = float(np.mean([distance[i, j] for j in mates]))
        b = min(float(distance[i, labels == c].mean()) for c in set(labels.tolist()) - {own})
        values.append((b - a) / max(a, b) if max(a, b) else 0.0)
    return float(np.mean(values))


# The device compiles for every size of a camera, so that one scene has to do for it.
@pytest.mark.parametrize(
    ("scene", "engine"), [*((scene, "host") for scene in SCENES), ("s0", "device")]
)
def test_calr_local_clusters(scene, engine):
    case = golden("refine", "calr")
    camid, expected = case[f"{scene}_cam"], case[f"{scene}_local"]
    found = local_clusters(case[f"{scene}_local_feat"], camid, engine=engine)
    assert found.labels.dtype == np.int32 and found.cameras.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found.silhouette, case[f"{scene}_local_silhouette"], atol=1e-5)
    for camera in found.cameras:
        inside = camid == camera
        np.testing.assert_array_equal(found.labels[inside], in_order_of_members(expected[inside]))
        assert found.num_clusters[camera] == inside.sum() // 5 == expected[inside].max() + 1


@pytest.mark.parametrize("camera", range(5))
def test_calr_local_distances(camera):
    case = golden("refine", "calr")
    inside = case["s0_cam"] == camera
    distance, expected = case[f"s0_localJ{camera}"], case["s0_local"][inside]
    labels = average_linkage(distance)
    np.testing.assert_array_equal(labels, in_order_of_members(expected))
    figure = case["s0_local_silhouette"][camera]
    assert silhouette(distance, expected) == pytest.approx(figure, abs=1e-5)
    rows = jaccard(case["s0_local_feat"][inside], k1=15, k2=4)
    np.testing.assert_allclose(rows.dense(), distance, atol=2e-6)


@settings(max_examples=100, deadline=None)
@given(SIZES, KINDS, st.floats(0, 1), SEEDS)
def test_labels_are_those_of_scikit_learn(n, kind, share, seed):
    cluster = pytest.importorskip("sklearn.cluster", reason="compares with scikit-learn")
    distance = distances(np.random.default_rng(seed), n, kind)
    clusters = 1 + round(share * (n - 1))
    found = average_linkage(distance, clusters=clusters)
    model = cluster.AgglomerativeClustering(clusters, metric="precomputed", linkage="average")
    expected = model.fit(distance).labels_
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, in_order_of_members(expected))
    # As many as asked for, in order of members, however many distances are equal.
    np.testing.assert_array_equal(found, in_order_of_members(found))
    assert found.max() + 1 == clusters


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([2, 7, 25]), st.floats(0, 1), SEEDS)
def test_labels_are_those_of_plain_loops(n, share, seed):
    distance = distances(np.random.default_rng(seed), n, "plane", np.float64)
    clusters = 1 + round(share * (n - 1))
    found = average_linkage(distance, clusters=clusters)
    np.testing.assert_array_equal(found, plain_linkage(distance, clusters))


@settings(max_examples=100, deadline=None)
@given(SIZES, KINDS, st.integers(2, 9), SEEDS)
def test_silhouettes_are_those_of_scikit_learn_and_plain_loops(n, kind, clusters, seed):
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn")
    rng = np.random.default_rng(seed)
    distance = distances(rng, n, kind)
    labels = rng.integers(0, clusters, n) * 3  # gaps and any order are no matter
    found = silhouette(distance, labels)
    if len(set(labels.tolist())) in (1, n):
        assert found == 0
        return
    expected = metrics.silhouette_score(distance, labels, metric="precomputed")
    assert found == pytest.approx(expected, abs=1e-6)
    assert found == pytest.approx(plain_silhouette(distance, labels), abs=1e-6)


def test_silhouette_of_more_items_than_are_summed_at_a_time():
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn")
    distance = distances(np.random.default_rng(0), 1100, "plane")
    labels = average_linkage(distance)
    expected = metrics.silhouette_score(distance, labels, metric="precomputed")
    assert silhouette(distance, labels) == pytest.approx(expected, abs=1e-6)


def test_silhouette_by_hand():
    # A cluster of the items at 0 and 2, and an item alone at 9.
    points = np.array([0.0, 2.0, 9.0])
    distance = np.abs(points[:, None] - points)
    expected = ((9 - 2) / 9 + (7 - 2) / 7 + 0) / 3
    assert silhouette(distance, np.array([0, 0, 1])) == pytest.approx(expected)
    assert silhouette(distance, np.array([5, 7, 5])) < 0


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [2, 0, 1]])
def test_silhouette_without_a_comparison_is_zero(labels):
    distance = distances(np.random.default_rng(0), 3, "plane")
    assert silhouette(distance, np.array(labels)) == 0


def test_silhouette_of_copies_is_zero():
    assert silhouette(np.zeros((4, 4)), np.array([0, 0, 1, 1])) == 0
    assert silhouette(np.zeros((1, 1)), np.array([0])) == 0


@pytest.mark.parametrize(
    ("clusters", "n", "expected"),
    [
        ("n//5", 22, 4),
        ("n//5", 4, 1),
        ("n//5", 1, 1),
        ("n//1", 7, 7),
        ("n//10", 45, 4),
        (600, 600, 600),
        (600, 45, 45),
        (1, 45, 1),
        (np.int64(3), 45, 3),
    ],
)
def test_number_of_clusters(clusters, n, expected):
    assert number_of_clusters(clusters, n) == expected
    distance = distances(np.random.default_rng(0), n, "plane")
    assert average_linkage(distance, clusters=clusters).max() + 1 == expected


@pytest.mark.parametrize("clusters", [0, -1, 2.5, True, None, "5", "n/5", "n//0", "n//-2", "n//5 "])
def test_numbers_of_clusters_out_of_range(clusters):
    message = "clusters is .*; expected a whole number, 1 or more, or a share"
    for call in (
        lambda: average_linkage(np.zeros((4, 4)), clusters=clusters),
        lambda: jaccard_linkage(np.eye(4), clusters=clusters),
        lambda: local_clusters(np.eye(4), np.arange(4), clusters=clusters),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            call()


def test_only_the_upper_triangle_is_read():
    distance = distances(np.random.default_rng(1), 20, "plane")
    upper = np.triu(distance) + np.tril(np.ones_like(distance), -1)
    np.testing.assert_array_equal(average_linkage(upper), average_linkage(distance))


def test_jaccard_linkage_is_linkage_of_the_jaccard_distance():
    f = people(np.random.default_rng(2), 60)
    found = jaccard_linkage(f, clusters=9, k1=8, k2=3)
    distance = jaccard(f, k1=8, k2=3).dense()
    np.testing.assert_array_equal(found.labels, average_linkage(distance, clusters=9))
    assert found.num_clusters == 9 and found.labels.dtype == np.int32
    assert found.diagnostics == {"silhouette": silhouette(distance, found.labels)}
    lists = np.argsort(-f @ f.T, axis=1)[:, :8]  # by the product, not the cosine
    other = jaccard_linkage(f, clusters=9, k1=8, k2=3, neighbors=lists)
    expected = jaccard(f, k1=8, k2=3, neighbors=lists).dense()
    np.testing.assert_array_equal(other.labels, average_linkage(expected, clusters=9))
    assert not np.array_equal(other.labels, found.labels)


@pytest.mark.parametrize(
    ("name", "value"), [("clusters", 9), ("clusters", "n//4"), ("k1", 5), ("k2", 1)]
)
def test_every_option_changes_labels(name, value):
    f = people(np.random.default_rng(3), 120)
    camid = np.arange(120) % 2
    options = {"clusters": "n//5", "k1": 15, "k2": 4}
    for label in (jaccard_linkage, lambda f, **o: local_clusters(f, camid, **o)):
        plain = label(f)
        np.testing.assert_array_equal(label(f, **options).labels, plain.labels)  # the defaults
        changed = label(f, **{**options, name: value})
        assert not np.array_equal(changed.labels, plain.labels)


def test_a_permutation_only_renumbers():
    rng = np.random.default_rng(4)
    f = people(rng, 100)
    camid = rng.integers(0, 3, 100)
    order = rng.permutation(100)
    plain = jaccard_linkage(f)
    moved = jaccard_linkage(f[order])
    np.testing.assert_array_equal(moved.labels, in_order_of_members(plain.labels[order]))
    assert moved.diagnostics["silhouette"] == pytest.approx(plain.diagnostics["silhouette"])
    plain, moved = local_clusters(f, camid), local_clusters(f[order], camid[order])
    np.testing.assert_allclose(moved.silhouette, plain.silhouette, rtol=1e-9)
    for camera in range(3):
        inside = camid[order] == camera
        expected = in_order_of_members(plain.labels[order][inside])
        np.testing.assert_array_equal(moved.labels[inside], expected)


def test_cameras_do_not_touch_each_other():
    rng = np.random.default_rng(5)
    f = people(rng, 90)
    camid = rng.permutation(np.repeat([2, 7, 40], [40, 30, 20]))
    found = local_clusters(f, camid)
    assert found.cameras.tolist() == [2, 7, 40]
    assert found.num_clusters.tolist() == [8, 6, 4] and found.num_clusters.dtype == np.int32
    assert found.num_images.tolist() == [40, 30, 20] and found.num_images.dtype == np.int32
    for camera, count, figure in zip(
        found.cameras, found.num_clusters, found.silhouette, strict=True
    ):
        alone = jaccard_linkage(f[camid == camera])
        np.testing.assert_array_equal(found.labels[camid == camera], alone.labels)
        assert (count, figure) == (alone.num_clusters, alone.diagnostics["silhouette"])
    changed = f.copy()
    changed[camid == 7] = people(rng, 30)
    other = local_clusters(changed, camid).labels
    np.testing.assert_array_equal(other[camid != 7], found.labels[camid != 7])
    assert not np.array_equal(other, found.labels)


def test_small_cameras_and_copies():
    rng = np.random.default_rng(6)
    camid = np.repeat([0, 1, 2, 3], [1, 3, 4, 20])
    f = people(rng, 28)
    f[camid == 3] = f[-1]  # a camera of copies
    found = local_clusters(f, camid, clusters=4)
    assert found.num_clusters.tolist() == [1, 3, 4, 4]
    assert found.silhouette.tolist() == [0, 0, 0, 0]
    assert found.labels[camid == 0].tolist() == [0]
    assert found.labels[camid == 1].tolist() == [0, 1, 2]
    assert found.labels[camid == 2].tolist() == [0, 1, 2, 3]
    assert sorted(set(found.labels[camid == 3])) == [0, 1, 2, 3]
    by_share = local_clusters(f, camid)
    assert by_share.num_clusters.tolist() == [1, 1, 1, 4]
    assert jaccard_linkage(f[:1]).labels.tolist() == [0]


def test_copies_among_others_share_a_cluster():
    rng = np.random.default_rng(7)
    f = people(rng, 60)
    f[::4] = f[0]
    labels = jaccard_linkage(f).labels
    assert set(labels[::4]) == {0} and len(set(labels)) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance": np.zeros((3, 4))}, r"distances have shape \(3, 4\); expected \[n, n\]"),
        ({"distance": np.zeros(4)}, r"distances have shape \(4,\); expected"),
        ({"distance": np.zeros((0, 0))}, r"distances have shape \(0, 0\); expected"),
        ({"distance": np.diag([0, np.nan, 0, 0])}, r"1 of 4 rows of distances \(first: 1\) hold"),
        ({"distance": np.diag([0, 0, np.inf, 0])}, r"1 of 4 rows of distances \(first: 2\) hold"),
        ({"distance": np.full((4, 4), -1e-3)}, r"4 of 4 rows of distances \(first: 0\) hold"),
        ({"labels": np.zeros(3, int)}, r"labels are int64 of shape \(3,\); expected \[4\]"),
        ({"labels": np.zeros(4)}, r"labels are float64 of shape \(4,\); expected \[4\] integers"),
        ({"labels": np.array([0, 0, 1, -1])}, "leave outliers out"),
    ],
)
def test_wrong_distances_and_labels(change, message):
    case = {"distance": np.ones((4, 4)), "labels": np.array([0, 0, 1, 1])} | change
    with pytest.raises(ValueError, match=message):
        silhouette(case["distance"], case["labels"])
    if "distance" in change:
        with pytest.raises(ValueError, match=message):
            average_linkage(case["distance"])


def test_wrong_features_and_cameras():
    f = people(np.random.default_rng(8), 12)
    camid = np.repeat([0, 3], 6)
    with pytest.raises(ValueError, match=r"features have shape \(12, 8\) and camid \(11,\)"):
        local_clusters(f, camid[:-1])
    with pytest.raises(ValueError, match=r"features have shape \(0, 8\) and camid \(0,\)"):
        local_clusters(f[:0], camid[:0])
    with pytest.raises(ValueError, match="camid is float64, expected integers"):
        local_clusters(f, camid.astype(float))
    with pytest.raises(ValueError, match="k2 is 9; expected"):
        local_clusters(f, camid, k1=5, k2=9)
    f[8, 0] = np.nan
    with pytest.raises(ValueError, match=r"camera 3: 1 of 6 .* NaN or infinite \(first: row 2\)"):
        local_clusters(f, camid)
