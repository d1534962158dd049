"""Classes held out for validation: whole, drawn the same every time, never too many."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.data.labels import hold_out, intra_camera_labels

classes = st.tuples(st.integers(-2, 9), st.integers(-1, 3))
sets = st.lists(classes, max_size=120).map(lambda rows: np.array(rows, np.int32).reshape(-1, 2).T)
fractions = st.floats(0, 1, exclude_max=True)


@settings(max_examples=200, deadline=None)
@given(sets, fractions, st.integers(0, 3))
def test_whole_eligible_classes_and_never_too_many(rows, fraction, seed):
    pid, camid = rows
    mask = hold_out(pid, camid, fraction=fraction, seed=seed)
    assert mask.dtype == bool and mask.shape == pid.shape
    for camera in range(-1, 4):
        ids, images = np.unique(pid[(camid == camera) & (pid >= 0)], return_counts=True)
        held = [p for p in ids if mask[(camid == camera) & (pid == p)].any()]
        assert all(mask[(camid == camera) & (pid == p)].all() for p in held)
        eligible = int(np.sum(images >= 2)) if camera >= 0 else 0
        expected = min(max(2, round(fraction * len(ids))), eligible, len(ids) - 2)
        assert len(held) == (expected if fraction and expected >= 2 else 0)
        assert set(held) <= set(ids[images >= 2])
    assert not mask[(pid < 0) | (camid < 0)].any()


@settings(max_examples=50, deadline=None)
@given(sets, fractions, fractions, st.randoms())
def test_independent_of_order_and_nested(rows, one, other, random):
    pid, camid = rows
    small, large = (
        hold_out(pid, camid, fraction=fraction, seed=5) for fraction in sorted((one, other))
    )
    order = np.array(random.sample(range(len(pid)), len(pid)), int)
    again = hold_out(pid[order], camid[order], fraction=max(one, other), seed=5)
    np.testing.assert_array_equal(again, large[order])
    assert not np.any(small & ~large)


def people(ids, images, cameras=1):
    """`images` pictures of `ids` people under each camera."""
    pid, camid = (a.ravel() for a in np.meshgrid(np.arange(ids), np.arange(cameras)))
    return np.repeat(pid, images), np.repeat(camid, images)


@pytest.mark.parametrize(
    ("ids", "fraction", "expected"),
    [(3, 0.5, 0), (4, 0.01, 2), (4, 0.99, 2), (20, 0.1, 2), (100, 0.1, 10), (100, 0.999, 98)],
)
def test_how_many(ids, fraction, expected):
    pid, camid = people(ids, images=3)
    mask = hold_out(pid, camid, fraction=fraction, seed=1)
    assert mask.sum() == 3 * expected


def test_people_with_one_image_are_no_queries():
    pid = np.array([1, 2, 3, 4, 5, 5, 6, 6])
    mask = hold_out(pid, pid * 0, fraction=0.9, seed=1)
    assert pid[mask].tolist() == [5, 5, 6, 6]
    assert not hold_out(pid[:-1], pid[:-1] * 0, fraction=0.9, seed=1).any()  # one alone


def test_seeds_and_cameras_draw_differently():
    pid, camid = people(50, images=2, cameras=3)
    drawn = [hold_out(pid, camid, fraction=0.2, seed=seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.any(drawn[0] != drawn[2])
    by_camera = drawn[0].reshape(3, -1)
    assert np.any(by_camera[0] != by_camera[1]) and np.any(by_camera[1] != by_camera[2])
    alone = camid == 1
    np.testing.assert_array_equal(
        hold_out(pid[alone], camid[alone], fraction=0.2, seed=1), by_camera[1]
    )


def test_classes_that_stay_are_numbered_anew():
    pid, camid = people(10, images=2, cameras=2)
    mask = hold_out(pid, camid, fraction=0.3, seed=1)
    assert intra_camera_labels(pid[~mask], camid[~mask]).num_classes == 20 - 6


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_impossible_fractions(fraction):
    with pytest.raises(ValueError, match="must be at least 0 and below 1"):
        hold_out(np.zeros(3, int), np.zeros(3, int), fraction=fraction, seed=1)
