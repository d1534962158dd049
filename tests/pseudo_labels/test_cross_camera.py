"""Association against reference values, a plain oracle, and its stated properties."""

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax import memory
from ccafl_jax.pseudo_labels import Labels, associate, diagnostics
from ccafl_jax.pseudo_labels.class_pairs import by_camera, closest_pairs, tiles
from ccafl_jax.pseudo_labels.cross_camera import mutual_nearest
from tests.comparison import typed
from tests.golden_data import case_group, golden


def _by_hand(x, cam_of, budget, method, *, mutual=0, max_distance=4.0):
    """The algorithm as written: all pairs sorted, one pass, labels spread until they rest."""
    pairs = _sorted_pairs(x, cam_of, mutual, max_distance)
    n = len(x)
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
    return _numbered(component), edges


def _sorted_pairs(x, cam_of, mutual, max_distance):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    n = len(x)

    def distance(a, b):
        return round(2 - 2 * float(x[a] @ x[b]), 12)

    def is_near(a, b):
        nearer = [i for i in range(n) if cam_of[i] == cam_of[b] and distance(a, i) < distance(a, b)]
        return not mutual or len(nearer) < mutual

    pairs = [
        (a, b)
        for a in range(n)
        for b in range(a + 1, n)
        if cam_of[a] != cam_of[b] and distance(a, b) <= max_distance
        if is_near(a, b) and is_near(b, a)
    ]
    return sorted(pairs, key=lambda pair: (distance(*pair), pair))


def _numbered(component):
    labels, numbers = [], {}
    for group in component:
        alone = component.count(group) == 1
        labels.append(-1 if alone else numbers.setdefault(group, len(numbers)))
    return labels


def _world(seed, n, cameras, tied):
    """Classes in three dimensions; `tied` gives them few directions, many at one distance."""
    rng = np.random.default_rng(seed)
    x = np.eye(3)[rng.integers(0, 3, n)] + 0.5 if tied else rng.normal(size=(n, 3))
    return x, rng.integers(0, cameras, n)


WORLDS = {
    "seed": st.integers(0, 2**31 - 1),
    "n": st.integers(1, 14),
    "cameras": st.integers(1, 4),
    "tied": st.booleans(),
}


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
    assert result.diagnostics["candidates"] == int(rate * len(data["centroids"]))


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


@settings(max_examples=60, deadline=None)
@given(
    st.builds(_world, **WORLDS),
    st.integers(0, 60),
    st.sampled_from(["greedy_cc", "greedy_cc_cam"]),
    st.sampled_from([0, 0, 1, 2]),
    st.sampled_from([4.0, 4.0, 0.9, 0.3]),
)
def test_association_is_the_oracle(world, budget, method, mutual, max_distance):
    x, cam_of = world
    limits = {"mutual": mutual, "max_distance": max_distance}
    result = associate(x, cam_of, budget=budget, method=method, **limits)
    labels, edges = _by_hand(x, cam_of, budget, method, **limits)
    assert result.labels.tolist() == labels
    assert [tuple(edge) for edge in result.edges.tolist()] == edges
    assert result.diagnostics["budget"] == budget
    # A labelled class has a mate in another camera.
    for cluster in range(result.num_clusters):
        members = cam_of[result.labels == cluster]
        assert len(set(members)) >= 2
        if method == "greedy_cc_cam":
            assert len(set(members)) == len(members)
    figures = diagnostics(result, np.arange(len(x)) % 4, cam_of)
    assert 0 <= figures["precision"] <= 1 and figures["clusters"] == result.num_clusters


@settings(max_examples=40, deadline=None)
@given(st.builds(_world, **WORLDS), st.integers(1, 3), st.sampled_from([4.0, 0.9]))
def test_mutual_nearest_is_the_oracle(world, nearest, max_distance):
    x, cam_of = world
    result = mutual_nearest(x, cam_of, nearest=nearest, max_distance=max_distance)
    pairs = _sorted_pairs(x, cam_of, nearest, max_distance)
    assert [tuple(edge) for edge in result.edges.tolist()] == pairs
    component = list(range(len(x)))
    for a, b in pairs:
        component = [component[a] if c == component[b] else c for c in component]
    assert result.labels.tolist() == _numbered(component)
    assert result.diagnostics == {"candidates": len(pairs)}


@pytest.mark.parametrize("most", [0, 1, 40, 700])
@pytest.mark.parametrize("mutual", [0, 2])
def test_a_budget_takes_the_first_of_all_pairs(most, mutual):
    """Pairs are dropped while tiles pass, and no pair that counts is among them."""
    data = golden("10_association_s0")
    cameras = by_camera(data["centroids"], data["cams"])
    every = closest_pairs(tiles(cameras), cameras, mutual=mutual)
    first = closest_pairs(tiles(cameras), cameras, most=most, mutual=mutual)
    assert 40 < len(every) and np.array_equal(first, every[:most])


@pytest.mark.parametrize("options", [{}, {"method": "greedy_cc_cam"}, {"mutual": 3}])
def test_a_budget_beyond_all_pairs_examines_all(options):
    x, cam_of = _world(5, 12, 3, False)
    every = associate(x, cam_of, budget=10**6, **options)
    exact = associate(x, cam_of, budget=every.diagnostics["candidates"], **options)
    assert np.array_equal(every.edges, exact.edges)


def test_the_order_of_the_classes_only_renumbers():
    rng = np.random.default_rng(7)
    x, cam_of = rng.normal(size=(60, 5)), rng.integers(0, 4, 60)
    order = rng.permutation(60)
    for link in (
        functools.partial(associate, rate=1.5),
        functools.partial(associate, rate=1.5, mutual=2, method="greedy_cc_cam"),
        functools.partial(associate, rate="auto"),
        functools.partial(mutual_nearest, nearest=1),
    ):
        plain, moved = link(x, cam_of), link(x[order], cam_of[order])
        together = plain.labels[:, None] == plain.labels[None, :]
        moved_together = moved.labels[:, None] == moved.labels[None, :]
        assert np.array_equal(together[np.ix_(order, order)], moved_together)
        assert np.array_equal(plain.labels[order] < 0, moved.labels < 0)


def test_lengths_and_numbers_of_cameras_do_not_matter():
    x, cam_of = _world(3, 14, 4, False)
    plain = associate(x, cam_of, rate=1.0)
    scaled = associate(x * np.arange(1, 15)[:, None], cam_of * 100 - 7, rate=1.0)
    assert np.array_equal(plain.edges, scaled.edges)


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
    association = Labels(
        labels=np.array([0, 0, 0, 1, 1, -1], np.int32),
        num_clusters=2,
        edges=np.array([[0, 1], [1, 2], [3, 4]], np.int32),
        diagnostics={"candidates": 9},
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
        "b_cubed_f": pytest.approx(2 * 7 / 9 * 5 / 6 / (7 / 9 + 5 / 6)),
        "nmi": pytest.approx(0.7396673768),
    }
    by_groups = dataclasses.replace(association, edges=None)
    figures_of_groups = diagnostics(
        by_groups, np.array([5, 5, 6, 7, 7, 6]), np.array([0, 1, 2, 0, 1, 0])
    )
    # Who decides by groups accepts no pairs.
    pairs = {"accepted", "correct", "precision", "recall"}
    assert figures_of_groups == {k: v for k, v in figures.items() if k not in pairs}


def test_diagnostics_leave_out_what_nobody_knows():
    association = Labels(
        labels=np.array([0, 0, 0, 1, 1, -1, 2, 2], np.int32),
        num_clusters=3,
        edges=np.array([[0, 1], [1, 2], [3, 4], [6, 7]], np.int32),
    )
    cam_of = np.array([0, 1, 2, 0, 1, 0, 3, 3])
    figures = diagnostics(association, np.array([5, 5, -4, 7, 7, 6, -3, -5]), cam_of)
    assert figures["accepted"] == figures["correct"] == figures["true_pairs"] == 2
    assert figures["pure_share"] == figures["b_cubed_f"] == 1.0  # over five classes
    assert figures["clusters"] == 3
    assert figures["outlier_share"] == 1 / 8
    assert figures["same_camera_clusters"] == 1
    nothing = diagnostics(association, np.full(8, -3), cam_of)
    assert nothing.keys() == {"clusters", "outlier_share", "same_camera_clusters"}


def test_bad_input():
    x, cam_of = np.eye(3), np.array([0, 1, 0])
    with pytest.raises(ValueError, match=r"features of 1 classes \(first: 2\) hold NaN"):
        associate(np.where(x, x, [[0], [0], [np.nan]]), cam_of, budget=1)
    with pytest.raises(ValueError, match="give exactly one"):
        associate(x, cam_of)
    with pytest.raises(ValueError, match="method is 'mnn', must be one of greedy_cc, gre"):
        associate(x, cam_of, budget=1, method="mnn")
    with pytest.raises(ValueError, match=r"expected \[classes, dim\] and \[classes\]"):
        associate(x, cam_of[:2], budget=1)
    for rate in ("fast", -1.0, float("nan"), float("inf"), True):
        with pytest.raises(ValueError, match=r"rate is .*; expected a number of candidate pairs"):
            associate(x, cam_of, rate=rate)
    with pytest.raises(ValueError, match=r"mutual is -1; expected a whole number of 0 or more"):
        associate(x, cam_of, budget=1, mutual=-1)
    with pytest.raises(ValueError, match=r"nearest is 0; expected a whole number of 1 or more"):
        mutual_nearest(x, cam_of, nearest=0)
    with pytest.raises(ValueError, match=r"max_distance is nan; expected a squared distance"):
        mutual_nearest(x, cam_of, max_distance=float("nan"))
