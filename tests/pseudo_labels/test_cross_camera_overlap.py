"""The estimated number of true pairs on people whose pairs are known."""

import numpy as np
import pytest

from ccafl_jax.pseudo_labels import associate
from ccafl_jax.pseudo_labels.overlap import estimate_pairs


def _people(cameras, overlap, *, noise, size=120, dim=64, shift=1.0, seed=0):
    """Class means: a direction for each identity, noise for each class, a shift for each camera.

    Each camera sees `size` identities, a share `overlap` of all; nobody is seen twice if it is 0.
    """
    rng = np.random.default_rng(seed)
    cam_of = np.repeat(np.arange(cameras), size)
    pid = np.arange(cameras * size)
    if overlap:
        everybody = int(size / overlap)
        pid = np.concatenate([rng.choice(everybody, size, replace=False) for _ in range(cameras)])

    def directions(count):
        x = rng.normal(size=(count, dim))
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    x = directions(pid.max() + 1)[pid]
    x += noise * rng.normal(size=x.shape) / np.sqrt(dim)
    x += shift * directions(cameras)[cam_of]
    seen = np.unique(pid, return_counts=True)[1]
    return x, cam_of, int(np.sum(seen * (seen - 1) // 2))


@pytest.mark.parametrize("overlap", [1.0, 0.5, 0.2, 0.1])
@pytest.mark.parametrize("cameras", [3, 8])
@pytest.mark.parametrize(("noise", "least", "most"), [(0.6, 0.95, 1.05), (1.0, 0.5, 1.0)])
def test_estimate_is_near_the_true_number(cameras, overlap, noise, least, most):
    x, cam_of, true = _people(cameras, overlap, noise=noise)
    assert least * true - 10 <= estimate_pairs(x, cam_of) <= most * true + 10


def test_estimate_of_many_cameras():
    x, cam_of, true = _people(15, 0.2, noise=0.6)
    assert abs(estimate_pairs(x, cam_of) - true) < 0.02 * true


def test_cameras_of_very_different_sizes():
    x, cam_of, _ = _people(8, 0.5, noise=0.6)
    keep = np.arange(len(x)) % 120 < np.array([120, 4, 60, 2, 90, 1, 120, 15])[cam_of]
    truth = _people(8, 0.5, noise=0.0, shift=0.0)[0].round(6)[keep]
    _, seen = np.unique(truth, axis=0, return_counts=True)
    true = int(np.sum(seen * (seen - 1) // 2))
    assert 0.85 * true <= estimate_pairs(x[keep], cam_of[keep]) <= 1.05 * true


@pytest.mark.parametrize("cameras", [2, 8, 15])
def test_strangers_are_hardly_counted(cameras):
    x, cam_of, true = _people(cameras, 0, noise=0.6)
    assert true == 0 and estimate_pairs(x, cam_of) <= 0.001 * len(x) * cameras + 5


def test_estimate_sees_no_names():
    x, cam_of, _ = _people(4, 0.5, noise=0.8, size=40)
    order = np.random.default_rng(1).permutation(len(x))
    assert estimate_pairs(x[order], 9 - cam_of[order]) == estimate_pairs(x, cam_of) > 0


@pytest.mark.parametrize("sizes", [[], [1], [30], [1, 1], [2, 2, 2], [2, 1, 1]])
def test_too_few_classes_have_no_pairs(sizes):
    rng = np.random.default_rng(0)
    cam_of = np.repeat(np.arange(len(sizes)), sizes)
    assert estimate_pairs(rng.normal(size=(len(cam_of), 8)), cam_of) == 0


def test_equal_features_have_no_pairs():
    cam_of = np.repeat(np.arange(3), 20)
    assert estimate_pairs(np.ones((60, 4)), cam_of) == 0
    assert estimate_pairs(np.zeros((60, 4)), cam_of) == 0


@pytest.mark.parametrize("method", ["greedy_cc", "greedy_cc_cam"])
@pytest.mark.parametrize("mutual", [0, 1])
def test_auto_is_the_estimate_as_budget(method, mutual):
    x, cam_of, true = _people(5, 0.5, noise=0.8, size=40)
    budget = estimate_pairs(x, cam_of)
    options = {"method": method, "mutual": mutual}
    auto = associate(x, cam_of, rate="auto", **options)
    plain = associate(x, cam_of, budget=budget, **options)
    assert np.array_equal(auto.edges, plain.edges) and auto.diagnostics == plain.diagnostics
    assert 0.5 * true < auto.diagnostics["budget"] < true
