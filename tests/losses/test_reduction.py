"""Row weights and masks."""

import jax
import numpy as np
import pytest

from ccafl_jax.losses.reduction import camera_mask, camera_row_weights, pick, weighted_sum
from tests.comparison import assert_close

weights = jax.jit(camera_row_weights, static_argnames="reduce")


def test_row_weights_by_hand():
    camera = np.array([0, 0, 0, 4, 4, 2])
    valid = np.array([True, True, True, True, False, True])
    assert_close(weights(camera, valid), [1 / 3, 1 / 3, 1 / 3, 1, 0, 1], 1e-7)
    mean = weights(camera, valid, reduce="mean_cam_mean")
    assert_close(mean, np.array([1 / 3, 1 / 3, 1 / 3, 1, 0, 1]) / 3, 1e-7)
    assert_close(weights(camera, valid, reduce="batch_mean"), valid / 5, 1e-7)
    assert_close(weights(camera), [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 1], 1e-7)


@pytest.mark.parametrize("reduce", ["sum_cam_mean", "mean_cam_mean", "batch_mean"])
def test_nothing_valid(reduce):
    assert not np.any(weights(np.zeros(3, int), np.zeros(3, bool), reduce=reduce))


def test_unknown_reduction():
    with pytest.raises(ValueError, match="reduce is 'sum'; expected one of 'sum_cam_mean'"):
        camera_row_weights(np.zeros(3, int), reduce="sum")


def test_masks_and_sums():
    mask = camera_mask(np.array([1, 0]), np.array([0, 1, -1]))
    assert mask.tolist() == [[False, True, False], [True, False, False]]
    own = np.array([[False, True], [False, False]])
    assert pick(np.float32([[1, 2], [3, 4]]), own).tolist() == [2, 0]
    assert weighted_sum(np.float32([1, np.inf]), np.float32([0.5, 0])) == 0.5
