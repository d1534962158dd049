import numpy as np
import pytest

from ccafl_jax.evaluation.camera_bias import (
    other_camera_auc,
    same_camera_base_rate,
    same_camera_share,
)


def oracle(f, pid, camid, k):
    f = f / np.linalg.norm(f, axis=1, keepdims=True)
    shares = []
    for i in range(len(pid)):
        strangers = [j for j in range(len(pid)) if pid[j] != pid[i]]
        nearest = sorted(strangers, key=lambda j: (-(f[i] @ f[j]), j))[:k]
        if nearest:
            shares.append(np.mean([camid[j] == camid[i] for j in nearest]))
    return float(np.mean(shares)) if shares else 0.0


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    pid, camid = rng.integers(0, 9, 53), rng.integers(0, 3, 53)
    camera = rng.standard_normal((3, 16))
    return rng.standard_normal((53, 16)) + camera[camid], pid, camid


@pytest.mark.parametrize(("k", "block"), [(5, None), (1, None), (5, 20)])
def test_matches_the_oracle(data, k, block):
    found = same_camera_share(*data, k=k, block=block)
    assert found == pytest.approx(oracle(*data, k), abs=1e-6)


def test_a_limit_takes_images_evenly_spread(data):
    f, pid, camid = data
    rows = [0, 13, 26, 39, 52]
    shares = []
    for row in rows:
        strangers = np.flatnonzero(pid != pid[row])
        unit = f / np.linalg.norm(f, axis=1, keepdims=True)
        nearest = strangers[np.argsort(-(unit[strangers] @ unit[row]), kind="stable")[:5]]
        shares.append(np.mean(camid[nearest] == camid[row]))
    limited = same_camera_share(*data, limit=5, block=2)
    assert limited == pytest.approx(np.mean(shares), abs=1e-6)
    assert limited != same_camera_share(*data)


def test_extremes_by_hand():
    pid, camid = np.arange(6), np.array([0, 0, 0, 1, 1, 1])
    by_camera = np.eye(2)[camid]
    assert same_camera_share(by_camera, pid, camid, k=2) == 1.0
    # Pairs (0, 3), (1, 4), (2, 5) across the cameras are nearest to each other.
    across = np.tile(np.eye(3), (2, 1))
    assert same_camera_share(across, pid, camid, k=1) == 0.0


def test_the_length_of_features_is_of_no_account(data):
    f, pid, camid = data
    f = f.astype(np.float32)
    share = same_camera_share(f, pid, camid)
    for scale in (1e-20, 1e25):  # their squares are no float32
        assert same_camera_share(f * np.float32(scale), pid, camid) == pytest.approx(share)


def test_fewer_strangers_than_k():
    # Image 2 has two strangers, one in its camera; images 0 and 1 have one each.
    pid, camid = np.array([0, 0, 1]), np.array([0, 1, 0])
    f = np.eye(3)
    assert same_camera_share(f, pid, camid, k=5) == pytest.approx((1 + 0 + 0.5) / 3)
    assert same_camera_base_rate(pid, camid) == pytest.approx((1 + 0 + 0.5) / 3)


def test_nothing_to_compare_gives_zero():
    assert same_camera_share(np.eye(3), np.zeros(3, int), np.arange(3)) == 0.0
    assert same_camera_share(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, int)) == 0.0
    assert same_camera_base_rate(np.zeros(3, int), np.arange(3)) == 0.0


def test_base_rate_is_the_share_among_all_strangers(data):
    _, pid, camid = data
    rates = [np.mean((camid == c)[pid != p]) for p, c in zip(pid, camid, strict=True)]
    assert same_camera_base_rate(pid, camid) == pytest.approx(np.mean(rates))
    random = np.random.default_rng(1).standard_normal((53, 64))
    assert same_camera_share(random, pid, camid, k=20) == pytest.approx(np.mean(rates), abs=0.06)


def test_wrong_input_is_named(data):
    f, pid, camid = data
    with pytest.raises(ValueError, match=r"expected \[53, dim\]"):
        same_camera_share(f[:4], pid, camid)
    with pytest.raises(ValueError, match="NaN"):
        same_camera_share(np.where(np.arange(53)[:, None] == 3, np.nan, f), pid, camid)
    with pytest.raises(ValueError, match=r"1 of 53 extracted features are zero .*first: row 3\)"):
        same_camera_share(np.where(np.arange(53)[:, None] == 3, 0, f), pid, camid)
    with pytest.raises(ValueError, match=r"pid: 53 of 53 labels are no whole numbers of 32 bits"):
        same_camera_share(f, pid + 2**32, camid)
    with pytest.raises(ValueError, match="camid: labels are <U"):
        same_camera_base_rate(pid, camid.astype(str))
    with pytest.raises(ValueError, match="equal"):
        same_camera_share(f, pid[:4], camid)


def auc_oracle(f, pid, camid):
    f = f / np.linalg.norm(f, axis=1, keepdims=True)
    areas = []
    for i in range(len(pid)):
        own = [f[i] @ f[j] for j in range(len(pid)) if pid[j] == pid[i] and camid[j] != camid[i]]
        others = [f[i] @ f[j] for j in range(len(pid)) if pid[j] != pid[i] and camid[j] == camid[i]]
        if own and others:
            areas.append(np.mean([(a > b) + (a == b) / 2 for a in own for b in others]))
    return np.mean(areas) if areas else np.nan


@pytest.mark.parametrize("block", [None, 20])
def test_auc_matches_the_oracle(data, block):
    assert other_camera_auc(*data, block=block) == pytest.approx(auc_oracle(*data), abs=1e-6)


def test_auc_by_hand():
    pid, camid = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert other_camera_auc(np.eye(2)[pid], pid, camid) == 1.0
    assert other_camera_auc(np.eye(2)[camid], pid, camid) == 0.0
    assert other_camera_auc(np.ones((4, 2)), pid, camid) == 0.5
    assert np.isnan(other_camera_auc(np.eye(3), np.arange(3), np.zeros(3, int)))
    assert np.isnan(other_camera_auc(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, int)))
    with pytest.raises(ValueError, match="limit 1 or more"):
        other_camera_auc(np.eye(3), np.arange(3), np.arange(3), limit=0)
