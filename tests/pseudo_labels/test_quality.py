"""Agreement figures against reference values, scikit-learn, a slow oracle and edge cases."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score, pair_confusion_matrix

from ccafl_jax.pseudo_labels import quality
from ccafl_jax.pseudo_labels.quality import agreement, b_cubed, nmi, pairwise
from tests.golden_data import golden

IMAGES = st.lists(
    st.tuples(st.integers(-1, 4), st.integers(-1, 4), st.integers(0, 2)), max_size=14
)  # label, pid, camid


def _columns(images):
    return np.array(images, np.int32).reshape(-1, 3).T


def _counted(labels, pid, outliers):
    """Plain (cluster, identity) of each image that counts."""
    images = [
        (label if label >= 0 else f"outlier {i}", identity)
        for i, (label, identity) in enumerate(zip(labels.tolist(), pid.tolist(), strict=True))
    ]
    return [image for image in images if outliers == "singletons" or isinstance(image[0], int)]


def _ratio(part, whole):
    return part / whole if whole else 0.0


def _f(precision, recall):
    return _ratio(2 * precision * recall, precision + recall)


def _pairwise_by_hand(images):
    pairs = list(itertools.combinations(images, 2))
    both = sum(a == b for a, b in pairs)
    precision = _ratio(both, sum(a[0] == b[0] for a, b in pairs))
    recall = _ratio(both, sum(a[1] == b[1] for a, b in pairs))
    return precision, recall, _f(precision, recall)


def _b_cubed_by_hand(images):
    shares = []
    for cluster, identity in images:
        both = images.count((cluster, identity))
        shares.append(
            (
                both / sum(c == cluster for c, _ in images),
                both / sum(i == identity for _, i in images),
            )
        )
    precision = _ratio(sum(p for p, _ in shares), len(images))
    recall = _ratio(sum(r for _, r in shares), len(images))
    clusters_of = [
        len({c for c, i in images if i == identity}) for identity in {i for _, i in images}
    ]
    return precision, recall, _f(precision, recall), _ratio(sum(clusters_of), len(clusters_of))


def _nmi_by_hand(images):
    def entropy(items):
        return -sum(c / len(items) * math.log(c / len(items)) for c in Counter(items).values())

    clusters, identities = [c for c, _ in images], [i for _, i in images]
    entropies = entropy(clusters) + entropy(identities)
    return 2 * (entropies - entropy(images)) / entropies if entropies else float(bool(images))


@pytest.mark.parametrize("tag", ["a", "b"])
def test_published(tag):
    data = golden("cluster_metrics", "calr")
    labels, pid = data[f"{tag}_pred"], data[f"{tag}_gt"]
    assert pairwise(labels, pid) == pytest.approx(data[f"{tag}_pairwise_f64"], abs=1e-9)
    assert b_cubed(labels, pid) == pytest.approx(data[f"{tag}_bcubed_f64"], abs=1e-9)
    assert nmi(labels, pid) == pytest.approx(float(data[f"{tag}_nmi_f64"]), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(IMAGES)
@pytest.mark.parametrize("outliers", quality.OUTLIERS)
def test_figures_are_the_plain_ones(outliers, images):
    labels, pid, camid = _columns(images)
    counted = _counted(labels, pid, outliers)
    over_pairs, over_images = _pairwise_by_hand(counted), _b_cubed_by_hand(counted)
    members = {label: np.flatnonzero(labels == label) for label in set(labels.tolist()) - {-1}}
    largest = [Counter(pid[rows].tolist()).most_common(1)[0][1] for rows in members.values()]
    expected = {
        "pairwise_precision": over_pairs[0],
        "pairwise_recall": over_pairs[1],
        "pairwise_f": over_pairs[2],
        "b_cubed_precision": over_images[0],
        "b_cubed_recall": over_images[1],
        "b_cubed_f": over_images[2],
        "expansion": over_images[3],
        "nmi": _nmi_by_hand(counted),
        "purity": _ratio(sum(largest), int(np.sum(labels >= 0))),
        "pure_share": _ratio(
            sum(len(set(pid[rows])) == 1 for rows in members.values()), len(members)
        ),
        "clusters": len(members),
        "outlier_share": _ratio(int(np.sum(labels < 0)), len(labels)),
        "single_camera_clusters": sum(len(set(camid[rows])) == 1 for rows in members.values()),
    }
    figures = agreement(labels, pid, camid, outliers=outliers)
    assert figures == pytest.approx(expected, abs=1e-12)
    assert list(figures) == list(expected)
    assert all(type(value) in (int, float) for value in figures.values())
    without_cameras = agreement(labels, pid, outliers=outliers)
    assert without_cameras.keys() == expected.keys() - {"single_camera_clusters"}
    assert pairwise(labels, pid, outliers=outliers) == pytest.approx(over_pairs, abs=1e-12)
    assert b_cubed(labels, pid, outliers=outliers) == pytest.approx(over_images, abs=1e-12)
    assert nmi(labels, pid, outliers=outliers) == figures["nmi"]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 300), st.integers(1, 20), st.integers(1, 20))
def test_figures_are_scikit_learns(seed, n, clusters, identities):
    rng = np.random.default_rng(seed)
    labels, pid = rng.integers(0, clusters, n), rng.integers(0, identities, n)
    assert nmi(labels, pid) == pytest.approx(normalized_mutual_info_score(pid, labels), abs=1e-9)
    (_, only_cluster), (only_pid, both) = pair_confusion_matrix(pid, labels)
    precision, recall, _ = pairwise(labels, pid)
    assert precision == pytest.approx(_ratio(both, both + only_cluster), abs=1e-12)
    assert recall == pytest.approx(_ratio(both, both + only_pid), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(IMAGES, st.randoms())
def test_numbers_and_order_mean_nothing(images, random):
    labels, pid, camid = _columns(images)
    number = np.array(random.sample(range(0, 10**9, 7), 6))
    order = np.array(random.sample(range(len(labels)), len(labels)), int)
    renamed = np.where(labels < 0, -1, number[labels])[order]
    moved = agreement(renamed, number[pid][order], number[camid][order])
    assert moved == pytest.approx(agreement(labels, pid, camid), abs=1e-12)


def test_what_becomes_of_outliers():
    labels, pid = np.array([0, 0, -1, -1, 1]), np.array([5, 5, 5, 6, 6])
    kept, dropped = agreement(labels, pid), agreement(labels, pid, outliers="drop")
    assert kept["pairwise_recall"] == 1 / 4 and dropped["pairwise_recall"] == 1
    assert kept["b_cubed_recall"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3 + 1 / 2 + 1 / 2) / 5)
    assert kept["expansion"] == 2 and dropped["expansion"] == 1
    assert kept["nmi"] < 1 and dropped["nmi"] == pytest.approx(1)
    for figures in (kept, dropped):
        assert figures["pairwise_precision"] == figures["purity"] == figures["pure_share"] == 1
        assert figures["clusters"] == 2 and figures["outlier_share"] == 2 / 5


def test_extremes():
    nothing = agreement(np.zeros(0, int), np.zeros(0, int), np.zeros(0, int))
    assert set(nothing.values()) == {0}
    assert agreement([], []) == agreement(np.zeros(0, int), np.zeros(0, int))
    pid, each = np.array([3, 3, 8, 9]), np.arange(4)
    outliers = agreement(np.full(4, -1), pid, each)
    assert outliers["outlier_share"] == 1 and outliers["expansion"] == 4 / 3
    assert outliers["clusters"] == outliers["purity"] == outliers["single_camera_clusters"] == 0
    alone = agreement(each, pid, each)
    assert alone["nmi"] == outliers["nmi"] and alone["purity"] == alone["b_cubed_precision"] == 1
    assert alone["pairwise_precision"] == alone["pairwise_f"] == 0
    assert alone["single_camera_clusters"] == 4
    left_out = agreement(np.full(4, -1), pid, each, outliers="drop")
    assert {key for key, value in left_out.items() if value} == {"outlier_share"}
    together = agreement(np.zeros(4, int), pid, each)
    assert together["nmi"] == together["pure_share"] == together["single_camera_clusters"] == 0
    assert together["pairwise_precision"] == 1 / 6 and together["purity"] == 1 / 2
    assert together["pairwise_recall"] == together["b_cubed_recall"] == together["expansion"] == 1
    perfect = agreement(np.array([0, 0, 1, 2]), pid)
    assert perfect["nmi"] == pytest.approx(1, abs=1e-15) and perfect["b_cubed_f"] == 1
    assert nmi(np.zeros(3, int), np.zeros(3, int)) == 1


def test_counts_of_half_a_million_images():
    n = 500_000
    labels = np.zeros(n, np.int32)
    pid = np.repeat(np.arange(2, dtype=np.int32), n // 2)
    precision, recall, _ = pairwise(labels, pid)
    assert recall == 1
    assert precision == 2 * math.comb(n // 2, 2) / math.comb(n, 2)
    assert b_cubed(labels, pid)[:2] == (0.5, 1)
    # Every image its own cluster and identity: the number of a cell passes 32 bits.
    each = np.arange(n, dtype=np.int32)
    assert b_cubed(each, each) == (1, 1, 1, 1) and nmi(each, each) == pytest.approx(1)
    assert agreement(each, each)["pure_share"] == 1


def test_errors():
    with pytest.raises(ValueError, match=r"labels has shape \(2,\) and pid \(3,\)"):
        pairwise(np.zeros(2, int), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"labels has shape \(2,\) and camid \(1,\)"):
        agreement(np.zeros(2, int), np.zeros(2, int), np.zeros(1, int))
    with pytest.raises(ValueError, match="labels are float64, expected integers"):
        b_cubed(np.zeros(2), np.zeros(2, int))
    with pytest.raises(ValueError, match="outliers is 'keep', must be one of singletons, drop"):
        nmi(np.zeros(2, int), np.zeros(2, int), outliers="keep")
