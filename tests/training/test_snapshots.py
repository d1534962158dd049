"""Snapshots: the same images at every stage, small, and never in the way of a run."""

import dataclasses

import numpy as np
import pytest

from ccafl_jax.training import snapshots
from ccafl_jax.training.loop import Loop
from ccafl_jax.training.preemption import Preempted
from tests.methods.small_run import SMALL, small_run


def labels(people=30, cameras=4, images=3):
    pid, camid, _ = np.meshgrid(
        np.arange(people), np.arange(cameras), np.arange(images), indexing="ij"
    )
    return pid.ravel(), camid.ravel()


def test_identities_seen_by_most_cameras_are_chosen():
    pid = np.array([1, 1, 2, 2, 2, 3, 3, -1, -1, 4, 4])
    camid = np.array([0, 0, 0, 1, 2, 0, 1, 0, 1, -1, 3])
    rows = snapshots.choose(pid, camid, np.array([1, 2, 3, 4, -1]), identities=2)
    assert rows.tolist() == [2, 3, 4, 5, 6]


def test_the_share_of_an_identity_is_taken_from_its_cameras_in_turn():
    pid, camid = labels()
    rows = snapshots.choose(pid, camid, pid, identities=10, images=50)
    assert len(rows) == 50
    for person in range(10):
        own = rows[pid[rows] == person]
        assert np.bincount(camid[own]).tolist() == [2, 1, 1, 1]


def test_no_known_camera_gives_no_sample(tmp_path):
    pid = np.arange(5)
    assert snapshots.sample(np.eye(5), pid, np.full(5, -1), pid) is None
    snapshots.keep(tmp_path, "zero_shot", None)
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_is_read_as_it_was_kept(tmp_path):
    pid, camid = labels(people=40)
    features = np.random.default_rng(0).normal(size=(len(pid), 8))
    snapshots.keep(tmp_path, "inter", snapshots.sample(features, pid, camid, pid[:300]))
    (found,) = snapshots.load(tmp_path, ["zero_shot", "inter"])
    assert found.stage == "inter" and len(np.unique(found.pid)) == snapshots.IDENTITIES
    np.testing.assert_array_equal(found.pid, pid[found.row])
    np.testing.assert_array_equal(found.camid, camid[found.row])
    np.testing.assert_allclose(found.features, features[found.row], atol=2e-3)
    assert found.probes["chance"] == 0.25 and 0 <= found.probes["linear"] <= 1


def test_probes_are_fitted_on_a_bounded_number_of_images(monkeypatch):
    monkeypatch.setattr(snapshots, "PROBED", 100)
    pid, camid = labels(people=100)
    found = snapshots.sample(np.zeros((len(pid), 2)), pid, camid, pid)
    shown = int(found.shown.sum())
    assert shown == 24 * 12 and shown <= len(found.row) <= shown + 100
    assert np.all(np.diff(found.row) > 0)


def test_features_that_are_not_finite_or_a_full_disk_are_warnings(tmp_path, caplog):
    pid, camid = labels()
    broken = snapshots.sample(np.full((len(pid), 4), np.nan), pid, camid, pid)
    snapshots.keep(tmp_path, "inter", broken)
    assert "no snapshot of the stage inter" in caplog.text
    (tmp_path / "file").write_text("in the way")
    fine = snapshots.sample(np.random.default_rng(0).normal(size=(len(pid), 4)), pid, camid, pid)
    snapshots.keep(tmp_path / "file", "intra", fine)
    assert "no snapshot of the stage intra" in caplog.text
    assert snapshots.load(tmp_path, ["inter", "intra"]) == []


def test_a_damaged_snapshot_is_named(tmp_path):
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "inter.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"inter\.npz is damaged .* remove it"):
        snapshots.load(tmp_path, ["inter"])


@pytest.mark.ci
def test_a_run_that_was_stopped_keeps_the_same_snapshots(tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    config = dataclasses.replace(SMALL, stages=("intra", "inter"))
    config = dataclasses.replace(
        config, text=dataclasses.replace(config.text, intra=False, inter=False)
    )
    small_run(whole, config).train()
    with pytest.raises(Preempted):
        small_run(halves, config).train(loop=Loop(stop=lambda dispatch: dispatch == 12))
    small_run(halves, config).train(resume=True)
    names = sorted(path.name for path in (whole / "snapshots").iterdir())
    assert names == ["inter.npz", "intra.npz", "zero_shot.npz"]
    for name in names:
        assert (halves / "snapshots" / name).read_bytes() == (
            whole / "snapshots" / name
        ).read_bytes()
    stages = ("zero_shot", "intra", "inter")
    first, *later = snapshots.load(whole, stages)
    for other in later:
        np.testing.assert_array_equal(other.row, first.row)
        assert np.abs(other.features - first.features).max() > 0
