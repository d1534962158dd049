"""Refinement against reference values, plain loops over images, and its edges."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.memory import class_means, init_centroids
from ccafl_jax.neighbors.top_k import Neighbors
from ccafl_jax.pseudo_labels.infomap import Graph, graph_of_lists, knn_graph
from ccafl_jax.pseudo_labels.labels import in_order_of_members
from ccafl_jax.pseudo_labels.quality import pairwise
from ccafl_jax.pseudo_labels.refinement import (
    RULES,
    SCHEDULES,
    camera_entropy_weights,
    choose_pivots,
    informativeness,
    refine,
    removal_figures,
    removal_probability,
)
from tests.golden_data import golden
from tests.pseudo_labels.test_jaccard import people

SCENES = ("s0", "s1", "s2")
SIZES = st.sampled_from([0, 1, 5, 30, 200])
SEEDS = st.integers(0, 2**31)


def scene_of(name):
    return {key[3:]: x for key, x in golden("refine", "calr").items() if key.startswith(name)}


def scene_from(seed, n, *, ties=False):
    """Labels, scores, cameras, local clusters and identities of n images."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, max(n // 9, 1), n)
    labels = in_order_of_members(group, rng.random(n) < 0.9)
    score = rng.integers(0, 4, n).astype(float) if ties else rng.random(n)
    pid = np.where(rng.random(n) < 0.6, group, rng.integers(0, max(n // 12, 1), n))
    return labels, score, rng.choice([1, 4, 5], n), rng.integers(0, 3, n), pid


def plain_pivots(labels, score, camid, rule):
    mean = sum(score.tolist()) / max(len(score), 1)
    chosen = {}
    for i in range(len(labels)):
        if labels[i] < 0 or score[i] <= mean:
            continue
        key = (labels[i], camid[i] if rule == "max_per_camera" else 0)
        if key not in chosen or rule == "last" or score[i] > score[chosen[key]]:
            chosen[key] = i
    return [chosen[key] for key in sorted(chosen)]


def plain_removed(labels, camid, local, pivots):
    removed = set()
    for p in pivots:
        for x in range(len(labels)):
            together = labels[x] == labels[p] and camid[x] == camid[p]
            if together and local[x] != local[p]:
                removed.add(x)
    return sorted(removed)


def plain_weights(labels, camid):
    weights = []
    for cluster in range(labels.max(initial=-1) + 1):
        cameras = camid[labels == cluster].tolist()
        shares = [cameras.count(c) / len(cameras) for c in set(cameras)]
        weights.append(math.log(1 - sum(q * math.log(q) for q in shares)))
    return weights


def plain_figures(labels, camid, pivots, removed, pid):
    majority = {}
    for cluster in set(labels[labels >= 0].tolist()):
        inside = pid[labels == cluster].tolist()
        majority[cluster] = min(
            set(inside), key=lambda identity: (-inside.count(identity), identity)
        )
    wrong = {i for i in range(len(pid)) if labels[i] >= 0 and pid[i] != majority[labels[i]]}
    off = {
        i
        for i in range(len(pid))
        for p in pivots
        if labels[i] == labels[p] and camid[i] == camid[p] and pid[i] != pid[p]
    }
    removed = set(removed)
    return {
        "precision": len(removed & wrong) / max(len(removed), 1),
        "recall": len(removed & wrong) / max(len(wrong), 1),
        "pivot_precision": len(removed & off) / max(len(removed), 1),
        "pivot_recall": len(removed & off) / max(len(off), 1),
    }


@pytest.mark.parametrize("name", SCENES)
def test_calr_scores(name):
    case = scene_of(name)
    searched = knn_graph(case["feat"])
    given_lists = graph_of_lists(Neighbors(case["nbr"], 1 - case["dist"]))
    for graph in (searched, given_lists):
        score = informativeness(graph)
        assert score.dtype == np.float64
        np.testing.assert_allclose(score, case["score"], atol=5e-5)
        assert score.mean() == pytest.approx(float(case["score_mean"]), abs=5e-5)
        assert not score[case["single"]].any()


@pytest.mark.parametrize("name", SCENES)
def test_calr_pivots(name):
    case = scene_of(name)
    labels, reference = case["labels"], case["pivot"]
    score = informativeness(knn_graph(case["feat"]))
    last = choose_pivots(labels, score, rule="last")
    assert last.dtype == np.int32
    np.testing.assert_array_equal(last, reference[reference >= 0])
    # The most informative member, where it is above the mean.
    best = case["dominant"]
    expected = best[score[best] > score.mean()]
    np.testing.assert_array_equal(choose_pivots(labels, score), expected)
    np.testing.assert_array_equal(labels[expected], np.flatnonzero(reference >= 0))


def test_calr_pivots_beside_small_clusters():
    case = golden("refine", "calr")
    labels, reference = case["small_labels"], case["small_pivot"]
    score = informativeness(knn_graph(case["small_feat"]))
    found = choose_pivots(labels, score, rule="last")
    np.testing.assert_array_equal(found, reference[reference >= 0])


@pytest.mark.parametrize("name", SCENES)
def test_calr_refinement(name):
    case = scene_of(name)
    labels, camid = case["labels"], case["cam"]
    pivots = case["pivot"][case["pivot"] >= 0]
    found = refine(labels, camid, case["local"], pivots)
    np.testing.assert_array_equal(found.labels, case["refined"])
    assert found.labels.dtype == np.int32 and found.num_clusters == labels.max() + 1
    np.testing.assert_array_equal(found.removed, np.flatnonzero(case["refined"] != labels))
    removed = int(case["removed"])
    assert found.diagnostics == {"pivots": len(pivots), "candidates": removed, "removed": removed}
    weights = camera_entropy_weights(found.labels, camid)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, case["weights"], atol=1e-5)
    means, _ = class_means(case["feat"], found.labels, found.num_clusters)
    np.testing.assert_allclose(means, case["centroid"], atol=1e-5)
    memory = init_centroids(case["feat"], found.labels, found.num_clusters)
    np.testing.assert_allclose(memory, case["mem_init"], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "before", "after"), [("s0", 0.696, 0.720), ("s1", 0.659, 0.696), ("s2", 0.682, 0.717)]
)
def test_refinement_raises_the_precision_of_pairs(name, before, after):
    case = scene_of(name)
    labels, pid = case["labels"], case["pid"]
    score = informativeness(knn_graph(case["feat"]))
    pivots = choose_pivots(labels, score, rule="last")
    found = refine(labels, case["cam"], case["local"], pivots)
    assert pairwise(labels, pid, outliers="drop").precision == pytest.approx(before, abs=5e-4)
    refined = pairwise(found.labels, pid, outliers="drop").precision
    assert refined == pytest.approx(after, abs=5e-4)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 9, 60]), st.booleans(), SEEDS)
def test_scores_are_those_of_plain_loops(n, copies, seed):
    graph = knn_graph(people(np.random.default_rng(seed), n, copies=copies), k=5)
    expected = np.zeros(n)
    for i, d in zip(graph.source.tolist(), graph.distance.tolist(), strict=True):
        expected[i] += 1 / max(d + graph.mean_distance, 2**-23)
    np.testing.assert_allclose(informativeness(graph), expected, rtol=1e-9)


def test_scores_by_hand():
    lists = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 0]])
    cosine = np.array([[1, 0.9, 0.3], [1, 0.9, 0.6], [1, 0.6, 0.3]], np.float32)
    mean = (0.1 + 0.7 + 0.1 + 0.4 + 0.4 + 0.7) / 9
    score = informativeness(graph_of_lists(Neighbors(lists, cosine)))
    expected = [1 / (0.1 + mean), 1 / (0.1 + mean) + 1 / (0.4 + mean), 1 / (0.4 + mean)]
    np.testing.assert_allclose(score, expected, rtol=1e-6)


def test_scores_of_copies_are_finite():
    score = informativeness(knn_graph(np.ones((8, 4)), k=4))
    assert np.isfinite(score).all() and (score > 0).all()
    # Rounding may put copies below a distance of 0, and never turns the score around.
    edges = np.zeros(3, np.int32), np.arange(1, 4), np.full(3, -1.2e-7, np.float32)
    score = informativeness(Graph(5, *edges, 0.0))
    assert score[0] > 1e6 and not score[1:].any()


@settings(max_examples=120, deadline=None)
@given(SIZES, st.sampled_from(RULES), st.booleans(), SEEDS)
def test_pivots_and_refinement_are_those_of_plain_loops(n, rule, ties, seed):
    labels, score, camid, local, pid = scene_from(seed, n, ties=ties)
    pivots = choose_pivots(labels, score, camid, rule=rule)
    assert pivots.tolist() == plain_pivots(labels, score, camid, rule)
    found = refine(labels, camid, local, pivots)
    removed = plain_removed(labels, camid, local, pivots)
    assert found.removed.tolist() == found.candidates.tolist() == removed
    expected = labels.copy()
    expected[removed] = -1
    np.testing.assert_array_equal(found.labels, expected)
    np.testing.assert_array_equal(found.pivots, pivots)
    # A pivot stays, so that clusters keep their numbers and a member.
    np.testing.assert_array_equal(found.labels[pivots], labels[pivots])
    clusters = labels.max(initial=-1) + 1
    assert set(found.labels.tolist()) - {-1} == set(range(clusters))
    assert found.num_clusters == clusters
    figures = removal_figures(labels, found, pid)
    assert figures == pytest.approx(plain_figures(labels, camid, pivots, removed, pid))
    weights = camera_entropy_weights(found.labels, camid)
    np.testing.assert_allclose(weights, plain_weights(found.labels, camid), atol=1e-6)


def test_rules_by_hand():
    labels = np.array([1, 1, 1, 1, 0, 0, -1])
    score = np.array([5.0, 9.0, 9.0, 6.0, 1.0, 0.0, 3.0])  # of mean 33 / 7
    camid = np.array([0, 1, 0, 1, 0, 0, 0])
    assert choose_pivots(labels, score).tolist() == [1]  # of equals the first
    assert choose_pivots(labels, score, rule="last").tolist() == [3]
    assert choose_pivots(labels, score, camid, rule="max_per_camera").tolist() == [2, 1]
    # Outliers count in the mean: now only the two best are above it.
    score[6] = 20
    assert choose_pivots(labels, score, rule="last").tolist() == [2]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("n", "value"),
    [(1, 0.1), (10, 0.0), (10, 0.1), (3, 12.48232985667492), (7, 1.7856362169764983)],
)
def test_equal_scores_have_no_pivot(n, value, rule):
    # Sums of these values, or their quotients, are rounded to means below the values themselves.
    labels, score, camid = np.zeros(n, int), np.full(n, value), np.zeros(n, int)
    assert choose_pivots(labels, score, camid, rule=rule).tolist() == []


def test_the_mean_does_not_depend_on_the_order():
    values = np.array([0.1, 0.2, 0.3])  # whose sum does, and 0.2 is the mean but for rounding
    chosen = {
        tuple(sorted(values[list(order)][choose_pivots(np.arange(3), values[list(order)])]))
        for order in itertools.permutations(range(3))
    }
    assert len(chosen) == 1


def test_refinement_by_hand():
    #                 0  1  2  3  4  5  6  7  8
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, -1])
    camid = np.array([2, 2, 2, 6, 6, 2, 2, 6, 2])
    local = np.array([4, 4, 9, 9, 1, 4, 9, 9, 9])
    found = refine(labels, camid, local, np.array([0]))
    assert found.labels.tolist() == [0, 0, -1, 0, 0, 1, 1, 1, -1]
    assert found.pivot_of.tolist() == [0, 0, 0, -1, -1, -1, -1, -1, -1]
    both = refine(labels, camid, local, np.array([6, 3, 1]))
    assert both.labels.tolist() == [0, 0, -1, 0, -1, -1, 1, 1, -1]
    assert both.pivot_of.tolist() == [1, 1, 1, 3, 3, 6, 6, -1, -1]
    assert both.diagnostics == {"pivots": 3, "candidates": 3, "removed": 3}
    none = refine(labels, camid, local, np.array([], int))
    np.testing.assert_array_equal(none.labels, labels)
    assert none.diagnostics == {"pivots": 0, "candidates": 0, "removed": 0}


def test_figures_by_hand():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, -1])
    camid, local = np.array([0, 0, 0, 0, 1, 0, 0, 0]), np.array([0, 1, 1, 0, 0, 0, 1, 0])
    pid = np.array(["a", "b", "a", "c", "b", "d", "e", "f"])
    found = refine(labels, camid, local, np.array([0]))
    assert found.removed.tolist() == [1, 2]
    # "a" is the majority of cluster 0, before "b" of as many images; "d" that of cluster 1.
    expected = {
        "precision": 1 / 2,
        "recall": 1 / 4,
        "pivot_precision": 1 / 2,
        "pivot_recall": 1 / 2,
    }
    assert removal_figures(labels, found, pid) == pytest.approx(expected)
    nothing = refine(labels, camid, local, np.array([], int))
    assert removal_figures(labels, nothing, pid) == dict.fromkeys(expected, 0)


def test_candidates_are_removed_with_a_probability():
    n = 6000
    labels, camid = np.zeros(n, int), np.zeros(n, int)
    local = np.arange(n) % 3
    pivots = np.array([0])

    def removed(probability, seed=0):
        found = refine(labels, camid, local, pivots, probability=probability, seed=seed)
        assert len(found.candidates) == n - n // 3
        assert found.diagnostics["removed"] == len(found.removed)
        np.testing.assert_array_equal(found.removed, np.flatnonzero(found.labels < 0))
        return set(found.removed.tolist())

    everyone = set(np.flatnonzero(local).tolist())
    assert removed(1.0) == everyone and removed(0.0) == set()
    assert len(removed(0.75)) == pytest.approx(3000, abs=150)
    assert removed(0.25) < removed(0.75) < everyone
    assert removed(0.75, (3, 1)) == removed(0.75, (3, 1))
    other = [removed(0.75, seed) for seed in (0, 1, (3, 1), (3, 2))]
    assert len({frozenset(images) for images in other}) == 4
    # Whether other images are candidates changes no draw.
    fewer = refine(labels, camid, np.where(local == 2, 0, local), pivots, probability=0.75)
    ones = set(np.flatnonzero(local == 1).tolist())
    assert set(fewer.removed.tolist()) == removed(0.75) & ones


def test_schedules():
    for epoch in (0, 7, 50):
        assert removal_probability(epoch, epochs=50) == 1
    falling = [removal_probability(e, epochs=50, schedule="cosine") for e in range(51)]
    assert falling[0] == 1 and falling[50] == pytest.approx(0.75)
    assert falling[25] == pytest.approx(0.5 * (1 + math.sqrt(3) / 2))
    assert all(np.diff(falling) < 0)
    assert set(SCHEDULES) == {"one", "cosine"}


def test_weights_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, -1])
    camid = np.array([0, 1, 2, 3, 5, 5, 0, 0, 9, 7])
    mixed = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    expected = [math.log(1 + math.log(4)), 0, math.log(1 + mixed)]
    np.testing.assert_allclose(camera_entropy_weights(labels, camid), expected, rtol=1e-6)
    assert camera_entropy_weights(labels, camid)[1] == 0


def test_without_clusters():
    labels = np.full(4, -1)
    pivots = choose_pivots(labels, np.arange(4.0), np.zeros(4, int), rule="max_per_camera")
    found = refine(labels, np.zeros(4, int), np.zeros(4, int), pivots)
    assert (pivots.tolist(), found.labels.tolist(), found.num_clusters) == ([], [-1] * 4, 0)
    assert camera_entropy_weights(found.labels, np.zeros(4, int)).tolist() == []
    assert set(removal_figures(labels, found, np.arange(4)).values()) == {0}


@pytest.mark.parametrize("rule", ["max", "max_per_camera"])
def test_a_permutation_changes_nothing_but_the_order(rule):
    labels, score, camid, local, pid = scene_from(5, 200)
    order = np.random.default_rng(6).permutation(200)
    pivots = choose_pivots(labels, score, camid, rule=rule)
    moved = choose_pivots(labels[order], score[order], camid[order], rule=rule)
    np.testing.assert_array_equal(order[moved], pivots)
    plain = refine(labels, camid, local, pivots)
    found = refine(labels[order], camid[order], local[order], moved)
    np.testing.assert_array_equal(found.labels, plain.labels[order])
    assert plain.diagnostics["removed"] > 0
    weights = camera_entropy_weights(plain.labels, camid)
    np.testing.assert_allclose(camera_entropy_weights(found.labels, camid[order]), weights)
    figures = removal_figures(labels[order], found, pid[order])
    assert figures == pytest.approx(removal_figures(labels, plain, pid))


def test_every_rule_chooses_other_pivots():
    labels, score, camid, *_ = scene_from(7, 200)
    found = {tuple(choose_pivots(labels, score, camid, rule=rule).tolist()) for rule in RULES}
    assert len(found) == 3
    plain = choose_pivots(labels, score)
    np.testing.assert_array_equal(plain, choose_pivots(labels, score, rule="max"))


LABELS, CAMID, LOCAL = np.array([0, 0, 1, 1, -1]), np.zeros(5, int), np.zeros(5, int)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[:4]}, r"labels have shape \(4,\) and camid \(5,\); expected \[n\]"),
        ({"labels": LABELS[None]}, r"labels have shape \(1, 5\) and camid \(5,\)"),
        ({"local": LOCAL[:4]}, r"labels have shape \(5,\) and local \(4,\)"),
        ({"labels": LABELS.astype(float)}, "labels is float64, expected integers"),
        ({"camid": CAMID.astype(float)}, "camid is float64, expected integers"),
        ({"labels": np.array([0, 0, 2, 2, -1])}, "cluster 1 of 3 has no image; expected numbers"),
        ({"labels": np.array([0, 0, 1, 1, -2])}, "label -2 found; expected clusters from 0"),
        ({"local": np.array([0, -1, 0, -1, 0])}, r"2 images have no local cluster \(first: 1\)"),
        ({"pivots": np.array([4])}, "pivot 4 is an outlier; expected members of clusters"),
        ({"pivots": np.array([5])}, "pivot 5 found; expected images, 0..4"),
        ({"pivots": np.array([0, -1])}, "pivot -1 found; expected images, 0..4"),
        ({"pivots": np.array([0.0])}, r"pivots are float64 of shape \(1,\); expected indices"),
        ({"pivots": np.array([True])}, r"pivots are bool of shape \(1,\); expected indices"),
        ({"pivots": np.array([[0]])}, r"pivots are int64 of shape \(1, 1\); expected indices"),
        ({"pivots": np.array([0, 1])}, "two pivots share a cluster and a camera"),
        ({"pivots": np.array([0, 0])}, "two pivots share a cluster and a camera"),
        ({"probability": 1.5}, "probability is 1.5; expected 0..1"),
        ({"probability": np.nan}, "probability is nan; expected 0..1"),
    ],
)
def test_what_cannot_be_refined(change, message):
    case = {"labels": LABELS, "camid": CAMID, "local": LOCAL, "pivots": np.array([0, 2])}
    refine(**case)
    with pytest.raises(ValueError, match=message):
        refine(**{**case, **change})


def test_other_wrong_input():
    score = np.arange(5.0)
    with pytest.raises(ValueError, match="rule is 'best', must be one of max, max_per_camera"):
        choose_pivots(LABELS, score, rule="best")
    with pytest.raises(ValueError, match="rule max_per_camera needs the camera of each item"):
        choose_pivots(LABELS, score, rule="max_per_camera")
    with pytest.raises(ValueError, match=r"labels have shape \(5,\) and score \(4,\)"):
        choose_pivots(LABELS, score[:4])
    with pytest.raises(ValueError, match="scores of 1 items are NaN or infinite"):
        choose_pivots(LABELS, np.where(score == 2, np.nan, score))
    with pytest.raises(ValueError, match=r"labels have shape \(5,\) and camid \(4,\)"):
        camera_entropy_weights(LABELS, CAMID[:4])
    with pytest.raises(ValueError, match="cluster 0 of 2 has no image"):
        camera_entropy_weights(np.array([1, 1]), CAMID[:2])
    with pytest.raises(ValueError, match=r"schedule is 'linear', must be one of one, cosine"):
        removal_probability(0, epochs=5, schedule="linear")
    for epoch, epochs in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match=f"epoch is {epoch} of {epochs}; expected 0..epochs"):
            removal_probability(epoch, epochs=epochs)
    found = refine(LABELS, CAMID, LOCAL, np.array([0]))
    with pytest.raises(ValueError, match=r"labels have shape \(5,\) and pid \(4,\)"):
        removal_figures(LABELS, found, np.arange(4))
    with pytest.raises(ValueError, match=r"refined labels have shape \(5,\) and labels \(4,\)"):
        removal_figures(LABELS[:4], found, np.arange(4))
