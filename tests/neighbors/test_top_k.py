import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.neighbors import similarity
from ccafl_jax.neighbors import top_k as module
from ccafl_jax.neighbors.similarity import METRICS
from ccafl_jax.neighbors.top_k import joined, largest, self_top_k, top_k


def oracle(scores, k):
    indices = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, indices, axis=1)
    return np.where(best > -np.inf, indices, -1), best


def exact_scores(query, gallery, metric):
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "euclidean":
        return -np.sqrt(np.square(query[:, None] - gallery).sum(axis=2))
    if metric == "cosine":
        query = query / np.linalg.norm(query, axis=1, keepdims=True)
        gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    return query @ gallery.T


def assert_neighbors(found, scores, k, tolerance=2e-6):
    """The best scores in order, each at its index, equal ones by index."""
    assert found.indices.dtype == np.int32 and found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores, oracle(scores, k)[1], atol=tolerance)
    own = np.take_along_axis(scores, found.indices, axis=1)
    np.testing.assert_allclose(found.scores, own, atol=tolerance)
    assert all(len(set(row)) == k for row in found.indices.tolist())
    # The root that makes a distance can make two neighbouring numbers one: those are no ties.
    tie = (np.diff(found.scores, axis=1) == 0) & (np.diff(own, axis=1) == 0)
    assert np.all(np.diff(found.indices, axis=1)[tie] > 0)


def repeated(rng, n, dim):
    """Features of which a third are copies of the first."""
    f = rng.standard_normal((n, dim)).astype(np.float32)
    f[rng.random(n) < 0.3] = f[0]
    return f


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(1, 1), (7, 40), (30, 333), (3, 5000)]),
    st.sampled_from(["normal", "level", "coarse", "holes", "one row level", "nothing"]),
    st.sampled_from([1, 3, 21, 0]),
    st.integers(0, 2**31),
)
def test_largest_is_a_stable_sort(shape, kind, k, seed):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal(shape).astype(np.float32)
    if kind == "level":
        scores[:] = 0.5
    elif kind == "coarse":
        scores = np.round(scores)
    elif kind == "holes":
        scores[rng.random(shape) < 0.97] = -np.inf
    elif kind == "one row level":
        scores[shape[0] // 2] = -1
    elif kind == "nothing":
        scores[:] = -np.inf
    k = min(k or shape[1], shape[1])
    found = largest(scores, k)
    indices, best = oracle(scores, k)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.scores, best)


def test_largest_by_hand():
    inf = np.inf
    scores = np.array([[1, 3, 3, -inf], [-inf, -inf, inf, -3e38], [0.0, -0.0, 0.0, 1]], np.float32)
    found = largest(scores, 3)
    assert found.indices.tolist() == [[1, 2, 0], [2, 3, -1], [3, 0, 1]]
    assert found.scores[1, 2] == -inf


@pytest.mark.parametrize("level", [0, 1])
def test_largest_takes_bounded_memory(monkeypatch, level):
    def in_one_thread(work, rows, elements):
        for start in range(0, rows, 2**21 // elements):
            work(start, min(start + 2**21 // elements, rows))

    monkeypatch.setattr(module, "in_threads", in_one_thread)
    # Every entry is a candidate: their indices alone would take 64 MB.
    scores = np.full((4000, 2000), np.float32(level))
    tracemalloc.start()
    found = largest(scores, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.indices == np.arange(5)).all()
    assert peak < 45e6


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("engine", ["host", "device"])
def test_top_k_of_a_gallery(metric, engine):
    rng = np.random.default_rng(1)
    query, gallery = repeated(rng, 9, 12), repeated(rng, 301, 12)
    query[3] = gallery[0]
    found = top_k(query, gallery, 120, metric=metric, engine=engine)
    # The distance of equal features is the root of a rounding error.
    tolerance = 4e-3 if metric == "euclidean" else 4e-6
    assert_neighbors(found, exact_scores(query, gallery, metric), 120, tolerance)


@pytest.mark.parametrize("kind", ["grid", "coarse", "copies", "all equal", "later is better"])
@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("devices", [1, 8])
def test_groups_of_columns_on_devices(monkeypatch, kind, k, devices):
    use(monkeypatch, devices)
    rng = np.random.default_rng(2)
    gallery = np.round(8 * rng.standard_normal((3001, 4))) / 8  # whose products are exact
    if kind == "coarse":
        gallery = np.round(gallery)
    elif kind == "copies":
        gallery[rng.random(3001) < 0.5] = gallery[17]
    elif kind == "all equal":
        gallery[:] = gallery[0]
    elif kind == "later is better":
        gallery = np.arange(3001)[:, None] / 8 * np.ones(4)
    query = np.concatenate([gallery[:9], gallery[17:18]])
    assert devices == 8 or module._group_size(3072, k) > 1
    found = top_k(query.astype("f"), gallery.astype("f"), k, metric="dot", engine="device")
    indices, best = oracle(query @ gallery.T, k)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.scores, best)


def test_groups_balance_both_stages():
    assert module._group_size(12_936, 30) == 16 and module._group_size(500_224, 30) == 128
    assert module._group_size(256, 30) == 1  # too few columns for groups


def use(monkeypatch, devices):
    """Lets JAX see the first devices alone."""
    every = jax.local_devices()
    assert len(every) == 8
    monkeypatch.setattr(jax, "local_devices", lambda *args, **options: every[:devices])


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_devices_change_nothing(monkeypatch, devices):
    f = np.random.default_rng(3).standard_normal((301, 12)).astype(np.float32)
    expected = top_k(f, f[:200], 5, engine="host")
    use(monkeypatch, devices)
    found = top_k(f, f[:200], 5, engine="device")
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize(("size", "k"), [(2048, 3), (2049, 700), (300, 300), (5, 5)])
def test_devices_share_the_gallery(monkeypatch, size, k):
    rng = np.random.default_rng(5)
    gallery = rng.integers(-2, 3, (size, 8)).astype(np.float32)  # many equal scores
    query, held = rng.integers(-2, 3, (6, 8)).astype(np.float32), []
    whole = similarity.FeatureScores.on_device

    def watched(self, rows):
        held.append(whole(self, rows))
        return held[-1]

    monkeypatch.setattr(similarity.FeatureScores, "on_device", watched)
    found = top_k(query, gallery, k, metric="dot", engine="device")
    indices, best = oracle(query @ gallery.T, k)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.scores, best)
    ((rows, bias),) = held
    parts = [[part.data.shape[0] for part in side.addressable_shards] for side in (rows, bias)]
    assert parts == [[256 * (2 if size == 2049 else 1)] * 8] * 2


def test_lengths_of_features_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(similarity, "_on_accelerator", lambda features: True)
    rng = np.random.default_rng(4)
    f = rng.standard_normal((50, 8)).astype(np.float32)
    f[3], f[4], f[5] = 0, 1e30, np.nan
    divisor, center = rng.uniform(1, 2, 50).astype(np.float32), rng.standard_normal(8)
    plain = similarity.squared_lengths(jnp.asarray(f))
    np.testing.assert_allclose(plain, np.square(f.astype(np.float64)).sum(axis=1), rtol=1e-6)
    moved = similarity.squared_lengths(jnp.asarray(f), divisor, center)
    exact = np.square(f.astype(np.float64) / divisor[:, None] - center).sum(axis=1)
    np.testing.assert_allclose(moved, exact, rtol=1e-5)
    with pytest.raises(ValueError, match=r"1 of 50 features features are NaN .*row 5"):
        similarity.check_features("dot", features=jnp.asarray(f))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([1, 2, 63, 300]),
    st.sampled_from(METRICS),
    st.sampled_from([1, 7, 100]),
    st.integers(0, 2**31),
)
def test_self_top_k_is_top_k(n, metric, k, seed):
    f = repeated(np.random.default_rng(seed), n, 8)
    k = min(k, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TILE", 128)
        found, low = self_top_k(f, k, metric=metric, worst=True, engine="host")
    straight = top_k(f, f, k, metric=metric, engine="host")
    tolerance = 4e-3 if metric == "euclidean" else 4e-6
    scores = exact_scores(f, f, metric)
    assert_neighbors(found, scores, k, tolerance)
    np.testing.assert_allclose(found.scores, straight.scores, atol=tolerance)
    np.testing.assert_allclose(low, scores.min(axis=1), atol=tolerance)


@pytest.mark.parametrize("order", ["later is better", "all equal", "two halves"])
def test_self_top_k_where_thresholds_help_little(monkeypatch, order):
    monkeypatch.setattr(module, "_TILE", 256)
    n, k = 900, 10
    angle = {
        "later is better": np.linspace(0, np.pi, n)[::-1],
        "all equal": np.zeros(n),
        "two halves": np.repeat([0.0, 2.0], n // 2) + np.tile(np.linspace(0, 0.1, n // 2), 2),
    }[order]
    f = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    found, low = self_top_k(f, k, metric="dot", worst=True, engine="host")
    assert_neighbors(found, exact_scores(f, f, "dot"), k)
    np.testing.assert_allclose(low, exact_scores(f, f, "dot").min(axis=1), atol=2e-6)
    if order == "all equal":
        assert (found.indices == np.arange(k)).all()


@pytest.mark.parametrize("metric", METRICS)
def test_equal_features_score_equally_in_both_directions(monkeypatch, metric):
    monkeypatch.setattr(module, "_TILE", 256)
    rng = np.random.default_rng(6)
    who = rng.integers(0, 15, 900)
    f = rng.standard_normal((15, 40)).astype(np.float32)[who]
    found = self_top_k(f, 200, metric=metric, engine="host")
    same = np.diff(who[found.indices], axis=1) == 0
    assert same.mean() > 0.9
    assert np.all(np.diff(found.scores, axis=1)[same] == 0)
    assert np.all(np.diff(found.indices, axis=1)[same] > 0)


def test_self_top_k_engines_and_dtypes_agree():
    f = np.random.default_rng(2).standard_normal((70, 16))
    host, host_low = self_top_k(f, 5, worst=True, engine="host")
    device, device_low = self_top_k(f, 5, worst=True, engine="device")
    np.testing.assert_array_equal(host.indices, device.indices)
    np.testing.assert_allclose(host.scores, device.scores, atol=1e-6)
    np.testing.assert_allclose(host_low, device_low, atol=1e-6)
    half = self_top_k(f.astype(np.float16), 5)
    np.testing.assert_allclose(host.scores, half.scores, atol=5e-3)
    assert half.scores.dtype == np.float32


def test_features_are_left_alone():
    f = np.random.default_rng(3).standard_normal((40, 16)).astype(np.float32)
    before = f.copy()
    for metric in METRICS:
        self_top_k(f, 3, metric=metric)
        top_k(f, f, 3, metric=metric)
    np.testing.assert_array_equal(f, before)


def test_joined_rows_are_unit_vectors_of_all_sides():
    rng = np.random.default_rng(4)
    query, gallery = rng.standard_normal((3, 5)), rng.standard_normal((4, 5))
    rows, squares, center = joined("cosine", query=query, gallery=gallery)
    both = np.concatenate([query, gallery])
    assert center is None
    np.testing.assert_allclose(squares, 1.0, rtol=1e-6)
    lengths = np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(rows * lengths, both, atol=1e-6)
    plain = joined("dot", f=both)
    np.testing.assert_array_equal(plain.rows, both.astype(np.float32))
    np.testing.assert_allclose(plain.squares, np.sum(both * both, axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: largest(f[0], 1), r"expected floats \[rows, columns\]"),
        (lambda f: largest(f.astype(int), 1), "scores are int64"),
        (lambda f: largest(f, 5), r"k is 5; expected 1\.\.4"),
        (lambda f: largest(np.full((2, 4), np.nan), 1), "scores hold NaN"),
        (lambda f: largest(np.full((2, 400), np.nan), 1), "scores hold NaN"),
        (lambda f: top_k(f, f, 0), r"k is 0; expected 1\.\.3"),
        (lambda f: top_k(f, f, 4), r"k is 4; expected 1\.\.3"),
        (lambda f: self_top_k(f, 4), r"k is 4; expected 1\.\.3"),
        (lambda f: self_top_k(f, 4, engine="device"), r"k is 4; expected 1\.\.3"),
        (lambda f: top_k(f, f, 1, engine="tpu"), "must be one of auto, host, device"),
        (lambda f: self_top_k(f * 0, 1), "zero vectors"),
        (lambda f: self_top_k(f / 0, 1, metric="dot"), "NaN or infinite"),
        (lambda f: top_k(f, f[:, :2], 1), "one dim"),
        (lambda f: self_top_k(f, 1, metric="hamming"), "cosine, euclidean, dot"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    f = np.random.default_rng(5).standard_normal((3, 4)).astype(np.float32)
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match=message) as error:
        call(f)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("metric", METRICS)
def test_crowded_lines_of_small_tiles(monkeypatch, metric):
    """Items come in the order of likeness, so every tile brings better ones for whole lines."""
    monkeypatch.setattr(module, "_TILE", 256)
    monkeypatch.setattr(module, "_CROWDED", 1)
    angle = np.linspace(0, np.pi / 2, 700) ** 2
    f = np.stack([np.cos(angle), np.sin(angle), np.full(700, 0.1)], axis=1).astype(np.float32)
    found = self_top_k(f, 20, metric=metric)
    wide = f.astype(np.float64)
    scores = wide @ wide.T
    if metric == "cosine":
        norm = np.linalg.norm(wide, axis=1)
        scores = scores / norm / norm[:, None]
    if metric == "euclidean":
        scores = -np.sqrt(np.square(wide[:, None] - wide).sum(axis=2))
    expected = -np.sort(-scores, axis=1)[:, :20]
    np.testing.assert_allclose(found.scores, expected, atol=2e-3 if metric == "euclidean" else 1e-6)
    own = np.take_along_axis(scores, found.indices, axis=1)
    np.testing.assert_allclose(own, expected, atol=2e-3 if metric == "euclidean" else 1e-6)
    assert all(len(set(row)) == 20 for row in found.indices.tolist())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("engine", ["host", "device"])
def test_a_far_mean_does_not_cost_digits(metric, dtype, engine):
    """Rows around one far point, and so vectors of nearly one direction."""
    offset = 1e3 if dtype == np.float32 or metric == "cosine" else 1e6
    rng = np.random.default_rng(7)
    f = (np.round(rng.normal(size=(120, 12)) * 64) / 64 + offset).astype(dtype)
    wide = f.astype(np.float64)
    distance = np.square(wide[:, None] - wide).sum(axis=2)
    if metric == "cosine":
        unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
        distance = np.square(unit[:, None] - unit).sum(axis=2)
    expected = np.sort(distance, axis=1)[:, :6]
    for found in (
        self_top_k(f, 6, metric=metric, engine=engine),
        top_k(f, f, 6, metric=metric, engine=engine),
    ):
        near = np.take_along_axis(distance, found.indices, axis=1)
        # In float32 a unit vector has its own rounding, here a hundredth of the spread.
        tolerance = 3e-2 * expected.max() if metric == "cosine" else 1e-4 * expected.max()
        np.testing.assert_allclose(near, expected, atol=tolerance)
        scores = 1 - near / 2 if metric == "cosine" else -np.sqrt(near)
        np.testing.assert_allclose(found.scores, scores, atol=1e-6 if metric == "cosine" else 0.03)
