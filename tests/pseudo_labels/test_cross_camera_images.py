"""Associations from the features of images, all of them through one signature."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.memory import init_centroids
from ccafl_jax.pseudo_labels import associate
from ccafl_jax.pseudo_labels.associations import (
    ASSOCIATIONS,
    dbscan,
    greedy_cc,
    greedy_cc_cam,
    greedy_groups,
    mnn,
)
from ccafl_jax.pseudo_labels.cross_camera import mutual_nearest
from ccafl_jax.pseudo_labels.dbscan import jaccard_dbscan
from ccafl_jax.pseudo_labels.jaccard import jaccard
from ccafl_jax.pseudo_labels.labels import labeller

METHODS = sorted(ASSOCIATIONS)


def _people(seed=0, *, identities=6, cameras=3, images=4, noise=0.5, dim=6):
    """Every identity under every camera: features, class of each image, camera of each class."""
    rng = np.random.default_rng(seed)
    cam_of = np.repeat(np.arange(cameras), identities)
    pid_of = np.tile(np.arange(identities), cameras)
    label = np.repeat(np.arange(len(cam_of)), images)
    x = rng.normal(size=(identities, dim))[pid_of[label]]
    x += noise * rng.normal(size=x.shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), label, cam_of


def _check_labels(found, cam_of):
    assert found.labels.dtype == np.int32 and found.labels.shape == cam_of.shape
    assert found.num_clusters == found.labels.max(initial=-1) + 1
    for cluster in range(found.num_clusters):
        assert len(set(cam_of[found.labels == cluster])) >= 2
    firsts = [np.argmax(found.labels == cluster) for cluster in range(found.num_clusters)]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("name", METHODS)
def test_short_names_find_one_signature(name):
    features, label, cam_of = _people(noise=0.1)
    found = labeller(name, ASSOCIATIONS)(features, label, cam_of)
    _check_labels(found, cam_of)


def test_class_means_are_associated():
    features, label, cam_of = _people(noise=1.0)
    x = np.asarray(init_centroids(features, label, len(cam_of)))
    options = {"rate": 1.0, "mutual": 2, "max_distance": 1.5}
    for method in (greedy_cc, greedy_cc_cam):
        found = method(features, label, cam_of, **options)
        expected = associate(x, cam_of, method=method.__name__, **options)
        assert np.array_equal(found.edges, expected.edges) and len(found.edges)
    found = mnn(features, label, cam_of, nearest=2, max_distance=1.0)
    expected = mutual_nearest(x, cam_of, nearest=2, max_distance=1.0)
    assert np.array_equal(found.edges, expected.edges) and len(found.edges)


def _groups_by_hand(distance, label, cam_of, limit):
    """Class distances by loops, then sets that merge unless they share a camera."""
    classes = range(len(cam_of))
    pairs = []
    for a in classes:
        for b in range(a + 1, len(cam_of)):
            nearest = distance[np.ix_(label == a, label == b)].min()
            if cam_of[a] != cam_of[b] and nearest < limit:
                pairs.append((round(float(nearest) * 2**20), a, b))
    group, edges = {a: {a} for a in classes}, []
    for _, a, b in sorted(pairs):
        if not {cam_of[i] for i in group[a]} & {cam_of[i] for i in group[b]}:
            merged = group[a] | group[b]
            group.update(dict.fromkeys(merged, merged))
            edges.append((a, b))
    return edges, [sorted(group[a]) for a in classes], len(pairs)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([0.3, 0.8, 2.0]),
    st.sampled_from([0.4, 0.7, 0.95]),
    st.booleans(),
)
def test_greedy_groups_is_the_oracle(seed, identities, cameras, noise, limit, copied):
    features, label, cam_of = _people(seed, identities=identities, cameras=cameras, noise=noise)
    rng = np.random.default_rng(seed)
    label = rng.permutation(label)
    if copied:  # images that are seen under several classes
        features = features[rng.integers(0, len(features), len(features))]
    found = greedy_groups(features, label, cam_of, k1=6, k2=2, group_distance=limit)
    _check_labels(found, cam_of)
    distance = jaccard(features, k1=6, k2=2).dense()
    edges, groups, candidates = _groups_by_hand(distance, label, cam_of, np.float32(limit))
    assert [tuple(edge) for edge in found.edges.tolist()] == edges
    assert found.diagnostics == {"candidates": candidates}
    for a in range(len(cam_of)):
        members = np.flatnonzero(found.labels == found.labels[a]) if found.labels[a] >= 0 else [a]
        assert list(members) == groups[a]


def test_many_copies_cost_pairs_of_classes_only():
    """3000 equal images under 6 classes: millions of pairs of images, fifteen of classes."""
    label = np.arange(3000) % 6
    cam_of = np.array([0, 0, 1, 1, 2, 2])
    found = greedy_groups(np.ones((3000, 4), np.float32), label, cam_of)
    assert found.edges.tolist() == [[0, 2], [0, 4], [1, 3], [1, 5]]


def test_dbscan_by_votes():
    features, label, cam_of = _people(noise=0.9, identities=8, images=6)
    options = {"k1": 12, "k2": 3, "eps": 0.6, "min_samples": 4}
    found = dbscan(features, label, cam_of, **options)
    images = jaccard_dbscan(features, **options).labels
    assert -1 in images
    votes = []
    for a in range(len(cam_of)):
        mine = images[label == a].tolist()
        most = max(map(mine.count, mine))
        votes.append(min({c for c in mine if mine.count(c) == most}, key=lambda c: (c < 0, c)))
    cameras = {c: {cam_of[a] for a in range(len(cam_of)) if votes[a] == c} for c in set(votes)}
    linked = [c if c >= 0 and len(cameras[c]) > 1 else -1 for c in votes]
    assert any(c >= 0 and len(cameras[c]) == 1 for c in votes), "no cluster is dissolved here"
    numbers = {}
    expected = [-1 if c < 0 else numbers.setdefault(c, len(numbers)) for c in linked]
    assert found.labels.tolist() == expected and found.edges is None
    assert found.num_clusters == len(numbers)
    clusters = images.max() + 1
    dissolved = clusters - len(numbers)
    assert found.diagnostics == {"image_clusters": clusters, "dissolved": dissolved}


def test_a_tie_goes_to_a_cluster_and_then_to_the_smaller_number(monkeypatch):
    from ccafl_jax.pseudo_labels import associations
    from ccafl_jax.pseudo_labels.labels import Labels

    images = np.array([1, 1, -1, 1, 0, 1, 0, -1, 0, 0, -1, -1], np.int32)
    monkeypatch.setattr(associations, "jaccard_dbscan", lambda *_, **__: Labels(images, 2))
    label = np.repeat(np.arange(6), 2)
    found = dbscan(np.ones((12, 2)), label, np.array([0, 1, 0, 1, 1, 1]))
    #  Votes: 1; 1 before the outlier; 0 before 1; 0 before the outlier; 0; outliers.
    assert found.labels.tolist() == [0, 0, 1, 1, 1, -1]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("cam_of", [[], [0], [3, 3, 3, 3]], ids=["nothing", "one", "one_camera"])
def test_one_camera_has_nothing_to_associate(name, cam_of):
    cam_of = np.array(cam_of, np.int64)
    label = np.repeat(np.arange(len(cam_of)), 2)
    features = np.random.default_rng(0).normal(size=(len(label), 4)).astype(np.float32)
    found = labeller(name, ASSOCIATIONS)(features, label, cam_of)
    assert found.labels.tolist() == [-1] * len(cam_of) and found.num_clusters == 0
    assert found.edges is None or found.edges.shape == (0, 2)


@pytest.mark.parametrize("name", METHODS)
def test_nan_is_one_line(name):
    features, label, cam_of = _people()
    features[5] = np.nan
    with pytest.raises(ValueError, match="NaN") as error:
        labeller(name, ASSOCIATIONS)(features, label, cam_of)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_equal_features_end(name):
    cam_of = np.repeat(np.arange(3), 50)
    label = np.repeat(np.arange(150), 4)
    found = labeller(name, ASSOCIATIONS)(np.ones((600, 8), np.float32), label, cam_of)
    _check_labels(found, cam_of)


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_the_classes_only_renumbers(name):
    features, label, cam_of = _people(3, identities=10, noise=0.8, images=5)
    order = np.random.default_rng(0).permutation(len(cam_of))  # old class at each new number
    # Averages over neighbours (k2) make rows equal, and ties go by class index.
    options = {"k1": 10, "k2": 1} if name in ("greedy_groups", "dbscan") else {}
    method = labeller(name, ASSOCIATIONS)
    plain = method(features, label, cam_of, **options)
    moved = method(features, np.argsort(order)[label], cam_of[order], **options)
    together = plain.labels[:, None] == plain.labels
    assert plain.num_clusters > 1
    assert np.array_equal(together[np.ix_(order, order)], moved.labels[:, None] == moved.labels)
    assert np.array_equal(plain.labels[order] < 0, moved.labels < 0)


@pytest.mark.parametrize("method", [greedy_cc, greedy_groups, dbscan])
def test_labels_that_do_not_fit(method):
    features, label, cam_of = _people()
    with pytest.raises(ValueError, match=r"expected \[images, dim\], \[images\] and \[classes\]"):
        method(features, label[1:], cam_of)
    with pytest.raises(ValueError, match="class 18 has no image or no camera"):
        method(features, label, np.append(cam_of, 0))
    with pytest.raises(ValueError, match="class 17 has no image or no camera"):
        method(features, label, cam_of[:-1])


def test_group_distance_out_of_range():
    with pytest.raises(ValueError, match=r"group_distance is 1\.0; expected a Jaccard distance"):
        greedy_groups(*_people(), group_distance=1.0)
