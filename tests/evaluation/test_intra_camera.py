import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.evaluation.intra_camera import rank_inside_cameras


def oracle(f, pid, camid):
    """AP and a first hit by image; None where it is no query."""
    found = []
    for i in range(len(pid)):
        others = [j for j in range(len(pid)) if camid[j] == camid[i] and j != i and pid[j] != -1]
        positive = [j for j in others if pid[j] == pid[i]]
        if pid[i] == -1 or not positive or len(positive) == len(others):
            # A camera with one identity is left out as a whole.
            found.append(None)
            continue
        order = sorted(others, key=lambda j: (-float(f[i] @ f[j]), j))
        ranks = [1 + order.index(j) for j in positive]
        ap = np.mean([(k + 1) / r for k, r in enumerate(sorted(ranks))])
        found.append((ap, min(ranks) == 1))
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_equals_the_oracle(seed, cameras, people, junk):
    rng = np.random.default_rng(seed)
    f = np.eye(4, dtype=np.float32)[rng.integers(0, 4, 24)]  # many ties
    f[::2] = rng.normal(size=(12, 4))
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    pid, camid = rng.integers(-int(junk), people, 24), rng.permutation(24) % cameras
    found, expected = rank_inside_cameras(f, pid, camid), oracle(f, pid, camid)
    np.testing.assert_array_equal(found.valid, [e is not None for e in expected])
    np.testing.assert_allclose(found.ap, [e[0] if e else 0.0 for e in expected], atol=1e-6)
    real = [e for e in expected if e]
    np.testing.assert_allclose(found.mAP, np.mean([e[0] for e in real]) if real else 0, atol=1e-6)
    np.testing.assert_allclose(found.rank1, np.mean([e[1] for e in real]) if real else 0)
    assert found.summary()["queries"] == len(real)


def test_by_hand():
    """Camera 0: ranks of the only match 2, 3, 3, 2. Camera 1 shows one person only."""
    angle = np.array([0, 40, 10, 55, 0, 1])
    f = np.stack([np.cos(np.radians(angle)), np.sin(np.radians(angle))], axis=1)
    pid, camid = np.array([7, 7, 8, 8, 7, 7]), np.array([0, 0, 0, 0, 1, 1])
    found = rank_inside_cameras(5 * f, pid, camid)  # 5: features need no unit length
    np.testing.assert_allclose(found.ap, [1 / 2, 1 / 3, 1 / 3, 1 / 2, 0, 0])
    assert found.valid.tolist() == [True] * 4 + [False] * 2
    assert found.summary() == {"mAP": pytest.approx(5 / 12), "rank1": 0.0, "queries": 4}


def test_other_cameras_change_nothing():
    rng = np.random.default_rng(0)
    f, pid = rng.normal(size=(20, 3)), rng.integers(0, 3, 20)
    camid = np.repeat([0, 1], 10)
    both = rank_inside_cameras(f, pid, camid)
    for camera in (0, 1):
        rows = camid == camera
        alone = rank_inside_cameras(f[rows], pid[rows], camid[rows])
        np.testing.assert_array_equal(alone.ap, both.ap[rows])


def test_nothing_to_rank_and_bad_shapes():
    assert rank_inside_cameras(np.ones((3, 2)), [1, 2, 3], [0, 0, 0]).summary() == {
        "mAP": 0.0, "rank1": 0.0, "queries": 0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"expected \[n, dim\], \[n\] and \[n\]"):
        rank_inside_cameras(np.ones((3, 2)), [1, 2], [0, 0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        rank_inside_cameras(np.full((3, 2), np.nan), [1, 1, 2], [0, 0, 0])
