"""Training images without an identity, and the clusters that stand in for it."""

import json
import logging

import jax
import numpy as np
import pytest

from ccafl_jax.methods.cameras import hide_identities
from ccafl_jax.methods.ccafl import local_identities, setup
from ccafl_jax.methods.ccafl.config import CCAFLConfig
from ccafl_jax.options import from_mapping
from configs.ccafl_demo import get_config
from data_prep.synthetic import SyntheticConfig, write_folder

PEOPLE = SyntheticConfig(seed=3, train_ids=12, test_ids=4, cameras=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    write_folder(folder, PEOPLE)
    return str(folder)


def config(**data):
    raw = get_config("smoke").to_dict()
    raw["data"] |= data
    raw["devices"] = 1
    raw["model"]["bn_group"] = 0
    return from_mapping(CCAFLConfig, raw)


def prepared(root, workdir, **data):
    return setup.prepare_run(config(**data), workdir=workdir, root=root)


def test_unlabelled_images_are_left_out_unless_asked_for(root, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "ccafl_jax"):
        run = prepared(root, tmp_path, unlabelled_cameras=(2,))
    assert "training images without an identity are left out; data.unlabelled=cluster" in (
        caplog.text
    )
    codes = run.dataset.camera_codes
    assert codes.index(2) not in run.dataset.train.camid
    assert run.dataset.train.pid.min() >= 0
    assert not (tmp_path / local_identities.FILE).exists()


def test_clusters_stand_in_for_identities_of_their_camera(root, tmp_path, monkeypatch):
    whole = prepared(root, tmp_path / "whole").dataset.train
    run = prepared(root, tmp_path / "half", unlabelled="cluster", unlabelled_cameras=(2,))
    train, hidden = run.dataset.train, run.dataset.camera_codes.index(2)
    assert list(train.path) == list(whole.path)  # no image is lost
    made_up = train.camid == hidden
    np.testing.assert_array_equal(train.pid[~made_up], whole.pid[~made_up])
    assert np.all(train.pid[made_up] <= local_identities.FIRST)
    assert len(np.unique(train.pid[made_up])) == made_up.sum() // 5
    assert np.all((run.labels.pid_of < 0) == (run.labels.cam_of == hidden))
    # A run that goes on reads them: nothing is extracted again.
    monkeypatch.setattr(local_identities, "_features", None)
    again = prepared(root, tmp_path / "half", unlabelled="cluster", unlabelled_cameras=(2,))
    np.testing.assert_array_equal(again.dataset.train.pid, train.pid)
    # What they depend on has changed: they are made anew.
    with pytest.raises(TypeError):
        prepared(
            root,
            tmp_path / "half",
            unlabelled="cluster",
            unlabelled_cameras=(2,),
            local_clusters="n//4",
        )


@pytest.mark.ci
def test_clusters_find_people_inside_a_camera(root, tmp_path):
    """Better than chance, and no cluster holds images of two cameras."""
    codes = prepared(root, tmp_path / "whole").dataset.camera_codes
    run = prepared(
        root, tmp_path / "none", unlabelled="cluster", unlabelled_cameras=codes, local_clusters=12
    )
    truth = prepared(root, tmp_path / "whole").dataset.train.pid
    train = run.dataset.train
    for made_up in np.unique(train.pid):
        assert len(np.unique(train.camid[train.pid == made_up])) == 1
    together = (train.pid[:, None] == train.pid) & (train.camid[:, None] == train.camid)
    same = truth[:, None] == truth
    pairs = np.triu(np.ones_like(same), 1) & (train.camid[:, None] == train.camid)
    found = same[together & pairs].mean()
    assert found > 3 * same[pairs].mean()


@pytest.mark.ci
def test_a_run_without_any_label_trains(root, tmp_path):
    codes = prepared(root, tmp_path / "whole").dataset.camera_codes
    run = prepared(root, tmp_path / "run", unlabelled="cluster", unlabelled_cameras=codes)
    summary = run.train()
    assert [stage["name"] for stage in summary["stages"]] == ["prompts", "intra", "inter"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert lines[-1]["association_clusters"] >= 0
    assert "association_precision" not in lines[-1]  # nobody knows
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(run.state.params))


def test_cameras_must_be_known(root, tmp_path):
    with pytest.raises(ValueError, match="names 9, and the cameras of synthetic are 1, 2, 3: "):
        prepared(root, tmp_path, unlabelled_cameras=(9,))
    with pytest.raises(ValueError, match="unlabelled"):
        config(unlabelled="guess")
    with pytest.raises(ValueError, match="clusters is 'n/5'"):
        config(local_clusters="n/5")


def test_standardized_by_camera():
    x = np.array([[1, 5], [3, 5], [10, 0], [30, 8]], np.float32)
    expected = [[-1, 0], [1, 0], [-1, -1], [1, 1]]
    np.testing.assert_allclose(
        local_identities.standardized_by_camera(x, np.array([0, 0, 1, 1])), expected, atol=1e-6
    )


def test_numbered_through():
    labels, camid = np.array([0, 1, 0, 1, 0]), np.array([1, 1, 0, 0, 1])
    assert local_identities.numbered_through(labels, camid).tolist() == [2, 3, 0, 1, 2]


def test_identities_are_hidden_by_camera(root, tmp_path):
    dataset = prepared(root, tmp_path).dataset
    hidden = hide_identities(dataset, ("1", "3"))
    left = hidden.train.pid >= 0
    np.testing.assert_array_equal(left, hidden.train.camid == dataset.camera_codes.index(2))
    assert hidden.query is dataset.query
    assert hidden.gallery is dataset.gallery
    assert hide_identities(dataset, ()) is dataset
