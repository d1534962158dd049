"""Association against reference values, a plain oracle, and its stated properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax import memory
from ccafl_jax.pseudo_labels import Association, associate, diagnostics
from tests.comparison import typed
from tests.golden_data import case_group, golden


def _by_hand(x, cam_of, budget, method):
    """The algorithm as written: all pairs sorted, one pass, labels spread until they rest."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    n = len(x)
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n) if cam_of[a] != cam_of[b]]
    pairs.sort(key=lambda pair: (round(2 - 2 * float(x[pair[0]] @ x[pair[1]]), 12), pair))
    component, partner, edges = list(range(n)), {}, []
    for a, b in pairs[:budget]:
        group = [i for i in range(n) if component[i] in (component[a], component[b])]
        shared = len({cam_of[i] for i in group}) < len(group)
        taken = (a, cam_of[b]) in partner or (b, cam_of[a]) in partner
        if taken or (method == "greedy_cc_cam" and (shared or component[a] == component[b])):
            continue
        partner[a, cam_of[b]], partner[b, cam_of[a]] = b, a
        edges.append((a, b))
        for i in group:
            component[i] = component[a]
    labels, numbers = [], {}
    for i in range(n):
        alone = component.count(component[i]) == 1
        labels.append(-1 if alone else numbers.setdefault(component[i], len(numbers)))
    return labels, edges


@pytest.mark.parametrize("case", case_group("associate"), ids=lambda case: case["id"])
def test_associate_cases(case):
    given, expected = typed(case["inputs"], "float64"), case["expected"]
    result = associate(given["cent"], given["cam_of"], budget=given["budget"])
    assert result.labels.tolist() == expected["labels"]
    assert result.edges.tolist() == expected["edges"]
    assert result.num_clusters == max(expected["labels"]) + 1


@pytest.mark.parametrize("rate", [0.5, 1.3, 1.5, 1.7, 3.0])
def test_association_published(rate):
    data = golden("10_association_s0")
    name = f"rate{rate}".replace(".", "_")
    result = associate(data["centroids"], data["cams"], rate=rate)
    assert np.array_equal(result.labels, data[f"{name}_labels"])
    accepted = np.stack(np.nonzero(np.triu(data[f"{name}_adjacency"])), axis=1)
    assert np.array_equal(result.edges[np.lexsort(result.edges.T[::-1])], accepted)
    assert result.candidates == int(rate * len(data["centroids"]))


def test_association_from_image_features_published():
    data = golden("10_association_s0")
    x, count = memory.class_means(data["features"], data["global_labels"], len(data["cams"]))
    assert np.all(count > 0)
    result = associate(x, data["cams"], rate=1.7)
    assert np.array_equal(result.labels, data["img_association_labels_market"])
    figures = diagnostics(result, data["IDs"], data["cams"])
    edges = result.edges
    assert figures["correct"] == np.sum(data["IDs"][edges[:, 0]] == data["IDs"][edges[:, 1]])
    assert figures["accepted"] == len(edges)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.integers(1, 14),
    st.integers(1, 4),
    st.integers(0, 60),
    st.sampled_from(["greedy_cc", "greedy_cc_cam"]),
    st.booleans(),
)
def test_association_is_the_oracle(seed, n, cameras, budget, method, tied):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    if tied:  # few directions: many pairs at the same distance
        x = np.eye(3)[rng.integers(0, 3, n)] + 0.5
    cam_of = rng.integers(0, cameras, n)
    result = associate(x, cam_of, budget=budget, method=method)
    labels, edges = _by_hand(x, cam_of, budget, method)
    assert result.labels.tolist() == labels
    assert [tuple(edge) for edge in result.edges.tolist()] == edges
    # A labelled class has a mate in another camera.
    for cluster in range(result.num_clusters):
        members = cam_of[result.labels == cluster]
        assert len(set(members)) >= 2
        if method == "greedy_cc_cam":
            assert len(set(members)) == len(members)
    figures = diagnostics(result, rng.integers(0, 4, n), cam_of)
    assert 0 <= figures["precision"] <= 1 and figures["clusters"] == result.num_clusters


def test_blocks_do_not_matter(monkeypatch):
    data = golden("10_association_s0")
    whole = associate(data["centroids"], data["cams"], rate=1.7)
    monkeypatch.setattr("ccafl_jax.pseudo_labels.cross_camera._BLOCK", 7)
    parts = associate(data["centroids"], data["cams"], rate=1.7)
    assert np.array_equal(whole.edges, parts.edges)


def test_transitive_conflict_is_refused_by_greedy_cc_cam():
    case = next(c for c in case_group("associate") if c["id"] == "s4_transitive")
    given = typed(case["inputs"], "float64")
    options = {"budget": given["budget"]}
    plain = associate(given["cent"], given["cam_of"], **options)
    strict = associate(given["cent"], given["cam_of"], method="greedy_cc_cam", **options)
    assert plain.labels.tolist() == [0, 0, 0, 0]
    assert strict.edges.tolist() == [[2, 3], [1, 2]] and strict.labels.tolist() == [-1, 0, 0, 0]
    pid_of = np.array([0, 0, 0, 1])
    assert diagnostics(plain, pid_of, given["cam_of"])["same_camera_clusters"] == 1
    assert diagnostics(strict, pid_of, given["cam_of"])["same_camera_clusters"] == 0


def test_diagnostics_by_hand():
    association = Association(
        labels=np.array([0, 0, 0, 1, 1, -1], np.int32),
        num_clusters=2,
        edges=np.array([[0, 1], [1, 2], [3, 4]], np.int32),
        candidates=9,
    )
    figures = diagnostics(association, np.array([5, 5, 6, 7, 7, 6]), np.array([0, 1, 2, 0, 1, 0]))
    assert figures == {
        "accepted": 3,
        "correct": 2,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "true_pairs": 3,
        "clusters": 2,
        "outlier_share": 1 / 6,
        "pure_share": 0.5,
        "same_camera_clusters": 0,
    }


def test_bad_input():
    x, cam_of = np.eye(3), np.array([0, 1, 0])
    with pytest.raises(ValueError, match=r"features of 1 classes \(first: 2\) hold NaN"):
        associate(np.where(x, x, [[0], [0], [np.nan]]), cam_of, budget=1)
    with pytest.raises(ValueError, match="give exactly one"):
        associate(x, cam_of)
    with pytest.raises(ValueError, match="method is 'mnn'"):
        associate(x, cam_of, budget=1, method="mnn")
    with pytest.raises(ValueError, match=r"expected \[classes, dim\] and \[classes\]"):
        associate(x, cam_of[:2], budget=1)
