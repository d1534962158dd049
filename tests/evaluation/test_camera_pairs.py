import json

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from ccafl_jax.evaluation import camera_pairs
from ccafl_jax.evaluation.camera_pairs import CameraPairs, map_by_camera_pair
from ccafl_jax.evaluation.ranking import rank_scores
from ccafl_jax.neighbors.similarity import FeatureScores, MatrixScores


def oracle(scores, q_pid, g_pid, q_cam, g_cam, *, within=False, same_item=None, places=None):
    """Dicts (query camera, gallery camera) -> list of average precisions, query by query."""
    found = {}
    for q in range(len(q_pid)):
        for camera in np.unique(g_cam[g_cam >= 0]):
            own = camera == q_cam[q]
            if q_cam[q] < 0 or (own and not within):
                continue
            if not own and places is not None and places[camera] == places[q_cam[q]]:
                continue
            items = [
                g
                for g in range(len(g_pid))
                if g_cam[g] == camera
                and g_pid[g] != -1
                and (same_item is None or same_item[0][q] != same_item[1][g])
            ]
            items.sort(key=lambda g: (-scores[q, g], g))
            hits = np.array([g_pid[g] == q_pid[q] for g in items], bool)
            if hits.any():
                precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
                found.setdefault((int(q_cam[q]), int(camera)), []).append(precision[hits].mean())
    return found


def assert_table(pairs, expected):
    cameras = pairs.cameras.tolist()
    for i, a in enumerate(cameras):
        for j, b in enumerate(cameras):
            aps = expected.get((a, b), [])
            assert pairs.queries[i, j] == len(aps) and pairs.valid[i, j] == bool(aps)
            assert pairs.mAP[i, j] == pytest.approx(np.mean(aps) if aps else 0.0, abs=1e-9)


@pytest.fixture(scope="module")
def data():
    """Cameras 0, 2, 3 and unknown ones; ties; junk; a camera without matches for some."""
    rng = np.random.default_rng(0)
    cams = np.array([0, 2, 3, -1])
    q_pid, q_cam = rng.integers(0, 8, 40), cams[rng.choice(4, 40, p=[0.3, 0.3, 0.3, 0.1])]
    g_pid, g_cam = rng.integers(-1, 8, 90), cams[rng.choice(4, 90, p=[0.4, 0.3, 0.2, 0.1])]
    centre = rng.standard_normal((9, 8))
    query = centre[q_pid] + rng.standard_normal((40, 8))
    gallery = centre[g_pid] + rng.standard_normal((90, 8))
    return query.astype(np.float32), gallery.astype(np.float32), (q_pid, g_pid, q_cam, g_cam)


def scores_of(query, gallery):
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
    gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    return query.astype(float) @ gallery.T.astype(float)


class Other:
    """A provider that is neither of features nor of a matrix."""

    def __init__(self, scores):
        self.scores = scores
        self.shape = scores.shape

    def blocks(self, order=None, *, elements=2**26):
        order = np.arange(len(self.scores)) if order is None else order
        for start in range(0, len(order), 7):
            rows = order[start : start + 7]
            yield rows, self.scores[rows].astype(np.float32)

    def reported(self, rows, scores):
        return scores


@pytest.mark.parametrize("within", [False, True])
def test_matches_the_oracle(data, within):
    query, gallery, labels = data
    expected = oracle(scores_of(query, gallery), *labels, within=within)
    pairs = map_by_camera_pair(FeatureScores(query, gallery), *labels, within=within)
    assert_table(pairs, expected)
    assert pairs.cameras.tolist() == [0, 2, 3]
    assert np.diag(pairs.valid).any() == within
    assert (pairs.unknown_queries, pairs.unknown_gallery) == (
        np.sum(labels[2] == -1),
        np.sum(labels[3] == -1),
    )


def test_ties_rank_in_the_order_of_the_gallery(data):
    query, gallery, labels = data
    scores = np.round(scores_of(query, gallery), 1)
    assert_table(map_by_camera_pair(MatrixScores(scores), *labels), oracle(scores, *labels))


def test_every_provider_gives_the_same_table(data):
    query, gallery, labels = data
    scores = scores_of(query, gallery)
    reference = map_by_camera_pair(FeatureScores(query, gallery), *labels)
    for provider in (MatrixScores(scores), Other(scores)):
        pairs = map_by_camera_pair(provider, *labels)
        np.testing.assert_array_equal(pairs.mAP, reference.mAP)
        np.testing.assert_array_equal(pairs.queries, reference.queries)


def test_columns_of_a_provider_are_kept(data):
    query, gallery, (q_pid, g_pid, q_cam, g_cam) = data
    columns = np.arange(1, 90, 2)
    labels = q_pid, g_pid[columns], q_cam, g_cam[columns]
    expected = map_by_camera_pair(FeatureScores(query, gallery[columns]), *labels)
    for provider in (
        FeatureScores(query, gallery, columns=columns),
        MatrixScores(scores_of(query, gallery), columns=columns),
    ):
        np.testing.assert_array_equal(map_by_camera_pair(provider, *labels).mAP, expected.mAP)


def test_the_metric_is_that_of_the_scores(data):
    query, gallery, labels = data
    gallery = gallery * np.linspace(0.1, 5, len(gallery), dtype=np.float32)[:, None]
    tables = [
        map_by_camera_pair(FeatureScores(query, gallery, metric), *labels).mAP
        for metric in ("cosine", "euclidean", "dot")
    ]
    assert not np.array_equal(tables[0], tables[1]) and not np.array_equal(tables[1], tables[2])
    distance = np.linalg.norm(query[:, None] - gallery, axis=2)
    np.testing.assert_allclose(
        tables[1], map_by_camera_pair(MatrixScores(-distance), *labels).mAP, atol=1e-9
    )


def test_by_hand():
    # Camera 1 shows identities 7 8 7 to query 0: places 1 and 3. Query 1 finds its own at place 2.
    scores = np.array([[0.9, 0.8, 0.7, 0.5, 0.4], [0.3, 0.2, 0.1, 0.6, 0.5]])
    pairs = map_by_camera_pair(
        MatrixScores(scores),
        np.array([7, 9]),
        np.array([7, 8, 7, 8, 9]),
        np.array([0, 1]),
        np.array([1, 1, 1, 0, 0]),
    )
    np.testing.assert_allclose(pairs.mAP, [[0, (1 + 2 / 3) / 2], [0.5, 0]])
    np.testing.assert_array_equal(pairs.queries, [[0, 1], [1, 0]])
    assert pairs.mean == pytest.approx(2 / 3) and pairs.std == pytest.approx(1 / 6)
    assert pairs.worst == (1, 0) and pairs.within is None
    figures = json.loads(json.dumps(pairs.as_dict((11, 12)), allow_nan=False))
    assert figures["mAP"] == [[None, pytest.approx(5 / 6)], [0.5, None]]
    assert figures["worst"] == {"query": 12, "gallery": 11, "mAP": 0.5}
    assert figures["cameras"] == [11, 12] and figures["within"] is None
    assert pairs.table((11, 12)).splitlines() == [
        "   query     c11     c12",
        "     c11       -    83.3",
        "     c12    50.0       -",
        "mAP over pairs of two cameras: mean 66.7, std 16.7, worst 50.0 (c12 in c11)",
    ]


def test_permuted_camera_numbers_permute_the_table(data):
    query, gallery, (q_pid, g_pid, q_cam, g_cam) = data
    scores = FeatureScores(query, gallery)
    new = np.array([5, 9, 1, 4, -1])  # of 0, 1, 2, 3 and unknown
    one = map_by_camera_pair(scores, q_pid, g_pid, q_cam, g_cam, within=True)
    other = map_by_camera_pair(scores, q_pid, g_pid, new[q_cam], new[g_cam], within=True)
    place = np.searchsorted(other.cameras, new[one.cameras])
    assert place.tolist() != [0, 1, 2]
    np.testing.assert_array_equal(other.mAP[np.ix_(place, place)], one.mAP)
    np.testing.assert_array_equal(other.queries[np.ix_(place, place)], one.queries)
    assert (other.mean, other.std, other.within) == pytest.approx((one.mean, one.std, one.within))


def test_a_query_in_the_gallery_does_not_find_itself(data):
    _, gallery, (_, g_pid, _, g_cam) = data
    labels, same_item = (g_pid[:30], g_pid, g_cam[:30], g_cam), (np.arange(30), np.arange(90))
    scores = FeatureScores(gallery[:30], gallery)
    pairs = map_by_camera_pair(scores, *labels, within=True, same_item=same_item)
    plain = scores_of(gallery[:30], gallery)
    assert_table(pairs, oracle(plain, *labels, within=True, same_item=same_item))
    itself = map_by_camera_pair(scores, *labels, within=True)
    assert itself.within > pairs.within and itself.mean == pairs.mean


def test_cameras_at_one_place(data):
    query, gallery, labels = data
    places = {0: 0, 2: 1, 3: 1}
    pairs = map_by_camera_pair(
        FeatureScores(query, gallery), *labels, same_camera="location", locations=[0, 0, 1, 1]
    )
    assert_table(pairs, oracle(scores_of(query, gallery), *labels, places=places))
    assert not pairs.valid[1, 2] and not pairs.valid[2, 1] and pairs.valid[0, 1]


def test_a_rule_that_leaves_out_nothing_has_pairs_within(data):
    query, gallery, labels = data
    none = map_by_camera_pair(FeatureScores(query, gallery), *labels, same_camera="none")
    within = map_by_camera_pair(FeatureScores(query, gallery), *labels, within=True)
    np.testing.assert_array_equal(none.mAP, within.mAP)


def test_average_precision_and_junk_are_options(data):
    query, gallery, labels = data
    scores = FeatureScores(query, gallery)
    plain = map_by_camera_pair(scores, *labels).mAP
    assert not np.array_equal(map_by_camera_pair(scores, *labels, ap="trapezoid").mAP, plain)
    assert not np.array_equal(map_by_camera_pair(scores, *labels, junk=(-1, 3)).mAP, plain)


def test_the_engine_does_not_change_the_table(data, monkeypatch):
    query, gallery, labels = data
    scores = FeatureScores(query, gallery)
    plain = map_by_camera_pair(scores, *labels, engine="host")
    given = []
    original = camera_pairs.rank_by

    def rank_by(*arguments, **options):
        given.append((options["engine"], options["mesh"]))
        return original(*arguments, **options)

    monkeypatch.setattr(camera_pairs, "rank_by", rank_by)
    mesh = Mesh(np.array(jax.local_devices()[:1]), ("data",))
    on_device = map_by_camera_pair(scores, *labels, engine="device", mesh=mesh)
    np.testing.assert_allclose(on_device.mAP, plain.mAP, atol=1e-12)
    assert set(given) == {("device", mesh)}


def test_a_camera_that_shows_only_junk_has_no_pair():
    labels = np.array([7, -1]), np.array([7, -1, -1]), np.array([0, 0]), np.array([1, 2, 2])
    pairs = map_by_camera_pair(MatrixScores(np.eye(2, 3)), *labels)
    assert pairs.queries.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_two_cameras_are_the_standard_ranking(data):
    query, gallery, (q_pid, g_pid, _, _) = data
    labels = q_pid, g_pid, np.zeros(40, int), np.ones(90, int)
    scores = scores_of(query, gallery)
    pairs = map_by_camera_pair(MatrixScores(scores), *labels)
    whole = rank_scores(scores, *labels)
    assert pairs.mAP[0, 1] == pytest.approx(whole.mAP) and pairs.queries[0, 1] == whole.queries
    assert pairs.mean == pairs.mAP[0, 1] and pairs.std == 0


def test_each_product_is_made_once(data, monkeypatch):
    query, gallery, labels = data
    made = []
    original = FeatureScores.blocks

    def blocks(self, order=None, **options):
        made.append(self.shape[1] * (self.shape[0] if order is None else len(order)))
        return original(self, order, **options)

    monkeypatch.setattr(FeatureScores, "blocks", blocks)
    map_by_camera_pair(FeatureScores(query, gallery), *labels, within=True)
    assert 0 < sum(made) <= len(query) * len(gallery)


def test_no_pair_has_no_figures():
    pairs = map_by_camera_pair(
        MatrixScores(np.eye(2)),
        np.array([1, 2]),
        np.array([1, 2]),
        np.array([0, 1]),
        np.array([0, 1]),
    )
    assert isinstance(pairs, CameraPairs) and not pairs.valid.any() and not pairs.mAP.any()
    figures = pairs.as_dict()
    assert figures["mean"] is figures["std"] is figures["worst"] is figures["within"] is None
    assert "mean" not in pairs.table() and np.isfinite(pairs.mAP).all()


def test_unknown_cameras_are_counted_in_the_table(data):
    query, gallery, labels = data
    pairs = map_by_camera_pair(FeatureScores(query, gallery), *labels, within=True)
    lines = pairs.table().splitlines()
    assert lines[-1] == (
        f"left out, camera unknown: {pairs.unknown_queries} queries, "
        f"{pairs.unknown_gallery} gallery images"
    )
    assert lines[-2] == f"within cameras: mean {100 * pairs.within:.1f}"
    assert pairs.table(["door", "?", "hall", "street"]).startswith(
        "   query    door    hall  street"
    )


def test_wrong_input_is_named(data):
    query, gallery, (q_pid, g_pid, q_cam, g_cam) = data
    scores = FeatureScores(query, gallery)
    with pytest.raises(ValueError, match=r"gallery_pid must be int\[90\] .* found int64\[40\]"):
        map_by_camera_pair(scores, q_pid, q_pid, q_cam, g_cam)
    with pytest.raises(ValueError, match=r"query_camid must be int\[40\].* found float64"):
        map_by_camera_pair(scores, q_pid, g_pid, q_cam * 1.0, g_cam)
    with pytest.raises(ValueError, match=r"query_pid: 40 of 40 labels .* 32 bits"):
        map_by_camera_pair(scores, q_pid + 2**32, g_pid, q_cam, g_cam)
    with pytest.raises(ValueError, match=r"same_item must hold int\[40\] and int\[90\]"):
        map_by_camera_pair(scores, q_pid, g_pid, q_cam, g_cam, same_item=(q_pid, q_pid))
    with pytest.raises(ValueError, match="no image has a known camera"):
        map_by_camera_pair(scores, q_pid, g_pid, q_cam * 0 - 1, g_cam * 0 - 1)
    for option in ("same_camera", "ap"):  # also where there is nothing to rank
        with pytest.raises(ValueError, match=f"{option} is 'exact', must be one of"):
            map_by_camera_pair(scores, q_pid + 100, g_pid, q_cam, g_cam, **{option: "exact"})
    pairs = map_by_camera_pair(scores, q_pid, g_pid, q_cam, g_cam)
    with pytest.raises(ValueError, match=r"camera \[3\] has no code, there are 3"):
        pairs.as_dict((1, 2, 3))
