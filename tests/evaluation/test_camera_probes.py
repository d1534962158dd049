import numpy as np
import pytest

from ccafl_jax.evaluation.camera_probes import camera_probes


def people(strength, *, identities=60, cameras=4, dim=32, seed=0):
    """Each identity once in each camera: a direction of its own plus one of the camera."""
    rng = np.random.default_rng(seed)
    pid = np.repeat(np.arange(identities), cameras)
    camid = np.tile(np.arange(cameras), identities)
    person = rng.standard_normal((identities, dim))
    camera = strength * rng.standard_normal((cameras, dim))
    return person[pid] + camera[camid] + 0.1 * rng.standard_normal((len(pid), dim)), pid, camid


def test_features_without_a_camera_are_at_chance():
    found = camera_probes(*people(0.0))
    assert found["chance"] == 0.25
    assert abs(found["linear"] - 0.25) < 0.1 and abs(found["knn"] - 0.25) < 0.1


def test_features_of_a_camera_are_read():
    found = camera_probes(*people(3.0))
    assert found["linear"] > 0.95 and found["knn"] > 0.95


def test_the_linear_probe_is_the_weighted_ridge_regression():
    """Against the normal equations with an intercept of their own that is not punished."""
    f, pid, camid = people(0.5, identities=20, cameras=3, dim=6)
    keep = (camid > 0) | (pid % 3 == 0)  # cameras of different size
    f, pid, camid = f[keep], pid[keep], camid[keep]
    x = f / np.linalg.norm(f, axis=1, keepdims=True)
    chosen = np.random.default_rng(5).permutation(np.unique(pid))[:10]
    fit = np.isin(pid, chosen)
    weight = 1 / np.bincount(camid[fit])[camid[fit]] / 3
    mean = weight @ x[fit]
    spread = np.trace((x[fit] - mean).T @ ((x[fit] - mean) * weight[:, None])) / 6
    rows = np.hstack([x[fit], np.ones((fit.sum(), 1))])
    penalty = 1e-3 * spread * np.diag([1.0] * 6 + [0.0])
    left = (rows * weight[:, None]).T @ rows + penalty
    slope = np.linalg.solve(left, (rows * weight[:, None]).T @ np.eye(3)[camid[fit]])
    given = np.argmax(np.hstack([x[~fit], np.ones(((~fit).sum(), 1))]) @ slope, axis=1)
    right = [np.mean(given[camid[~fit] == camera] == camera) for camera in range(3)]
    found = camera_probes(f, pid, camid, seed=5)
    assert found["linear"] == pytest.approx(np.mean(right))


def test_a_camera_that_only_one_side_knows_is_left_out():
    f, pid, camid = people(3.0, cameras=2)
    camid = np.where((pid == 0) & (camid == 1), 7, camid)
    assert camera_probes(f, pid, camid)["chance"] == 0.5


def test_one_camera_has_nothing_to_tell():
    found = camera_probes(np.eye(4), np.arange(4), np.zeros(4, int))
    assert np.isnan(list(found.values())).all()
    with pytest.raises(ValueError, match="3 identities"):
        camera_probes(np.eye(4), np.arange(3), np.zeros(4, int))
