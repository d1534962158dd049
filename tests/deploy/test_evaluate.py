import dataclasses
import types

import numpy as np
import pytest

from ccafl_jax.deploy.archive import read_archive, write_orbax
from ccafl_jax.deploy.evaluate import camera_rows, extract_features
from ccafl_jax.deploy.run_folder import read_run, write_run
from tests.deploy import tiny


def dataset(*codes):
    return types.SimpleNamespace(camera_codes=codes, root="DIR")


def test_cameras_are_matched_by_their_numbers():
    bundle = tiny.bundle("vit")
    np.testing.assert_array_equal(camera_rows(bundle, dataset(1, 2, 5)), [0, 1, 2])
    np.testing.assert_array_equal(camera_rows(bundle, dataset(2, 5)), [1, 2])
    with pytest.raises(ValueError, match=r"has the cameras \[3\].*it knows \[1, 2, 5\]"):
        camera_rows(bundle, dataset(1, 3))
    unnamed = dataclasses.replace(bundle, camera_codes=())  # as converted models are
    np.testing.assert_array_equal(camera_rows(unnamed, dataset(1, 3)), [0, 2])
    np.testing.assert_array_equal(camera_rows(tiny.bundle("resnet"), dataset(7, 9)), [0, 0])


def test_what_is_written_comes_back(tmp_path):
    bundle = tiny.bundle("vit")
    write_run(tmp_path / "run", bundle)
    (tmp_path / "orbax").mkdir()
    write_orbax(tmp_path / "orbax", bundle)
    for again in (read_run(tmp_path / "run"), read_archive(tmp_path / "orbax")):
        assert again.model == bundle.model and again.preprocess == bundle.preprocess
        assert again.camera_codes == (1, 2, 5)
        assert again.recipe == bundle.recipe
    with pytest.raises(FileExistsError, match="choose another folder"):
        write_run(tmp_path / "run", bundle)


def test_features_use_the_camera_of_each_image():
    bundle, images = tiny.bundle("vit"), tiny.pixels(6)
    cameras = np.arange(6) % 3
    one = extract_features(bundle, images, cameras)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    other = np.asarray(extract_features(bundle, images, np.array([0, 1, 0, 0, 1, 0])))
    np.testing.assert_allclose(other[[0, 1, 3, 4]], one[np.array([0, 1, 3, 4])], atol=1e-6)
    assert np.abs(other[[2, 5]] - one[np.array([2, 5])]).min(axis=1).max() < 1
    assert (np.abs(other[[2, 5]] - one[np.array([2, 5])]).max(axis=1) > 1e-3).all()
