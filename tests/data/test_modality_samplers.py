"""Batches of visible and infrared images."""

import numpy as np
import pytest

from ccafl_jax.data.samplers import plan_of_modalities, shuffled_pairs
from tests.golden_data import golden

SETTING = {"seed": 3, "classes_per_batch": 4, "images_per_class": 6}


def labels_of_two(visible=9, infrared=7, seed=0):
    """Labels of each modality, visible first, with outliers among them."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.permutation(np.repeat(np.arange(-1, n), rng.integers(1, 12, n + 1)))
        for n in (visible, infrared)
    ]
    return np.concatenate(parts), np.repeat([False, True], [len(part) for part in parts])


def test_released_draws_golden():
    data = golden("sampler", "cclnet")
    labels = np.concatenate([data["labels_rgb"], data["labels_ir"]])
    infrared = np.arange(len(labels)) >= len(data["labels_rgb"])
    found = plan_of_modalities(
        labels,
        infrared,
        seed=int(data["seed"]),
        steps=int(data["n_batches"]),
        classes_per_batch=int(data["batch_size"]),
        images_per_class=int(data["num_instances"]),
        draws="released",
    )
    np.testing.assert_array_equal(found[:, :64].ravel(), data["index_rgb"])
    np.testing.assert_array_equal(found[:, 64:].ravel() - 150, data["index_ir"])


@pytest.mark.parametrize("draws", ["stream", "released"])
def test_halves_hold_classes_of_their_own_modality(draws):
    labels, infrared = labels_of_two()
    found = plan_of_modalities(labels, infrared, steps=20, draws=draws, **SETTING)
    assert found.shape == (20, 48) and found.dtype == np.int32
    assert not infrared[found[:, :24]].any() and infrared[found[:, 24:]].all()
    classes = labels[found].reshape(20, 8, 6)
    assert (classes == classes[..., :1]).all() and classes.min() == 0
    for half in (classes[:, :4, 0], classes[:, 4:, 0]):
        repeated = sum(len(set(batch)) < 4 for batch in half.tolist())
        assert repeated <= (0 if draws == "released" else 10)


def test_a_stream_shows_every_class_equally_often_and_modalities_apart():
    labels, infrared = labels_of_two(8, 8)
    found = plan_of_modalities(labels, infrared, steps=20, **SETTING)
    classes = labels[found].reshape(20, 8, 6)[..., 0]
    for half in (classes[:, :4], classes[:, 4:]):
        np.testing.assert_array_equal(np.bincount(half.ravel()), np.full(8, 10))
    assert not np.array_equal(classes[:, :4], classes[:, 4:])


def test_a_modality_of_fewer_classes_than_a_batch_repeats_them():
    labels, infrared = labels_of_two(2, 7)
    found = plan_of_modalities(labels, infrared, steps=5, **SETTING)
    assert set(labels[found[:, :24]].ravel()) == {0, 1}
    with pytest.raises(ValueError, match="a modality has 2 classes"):
        plan_of_modalities(labels, infrared, steps=5, draws="released", **SETTING)


def test_plans_that_cannot_be_are_refused():
    labels, infrared = labels_of_two()
    with pytest.raises(ValueError, match="no labelled image"):
        plan_of_modalities(np.where(infrared, -1, labels), infrared, steps=1, **SETTING)
    with pytest.raises(ValueError, match="draws is 'other'"):
        plan_of_modalities(labels, infrared, steps=1, draws="other", **SETTING)
    with pytest.raises(ValueError, match="expected"):
        plan_of_modalities(labels, infrared[1:], steps=1, **SETTING)


def test_the_shorter_modality_is_topped_up():
    visible, infrared = np.arange(10, 33), 100 + np.arange(9)
    rows, valid = shuffled_pairs(visible, infrared, seed=1, epoch=4, batch=5)
    assert rows.shape == valid.shape == (5, 10) and rows.dtype == np.int32
    assert (
        valid.sum() == 46
        and valid[-1].tolist() == [True] * 3 + [False] * 2 + [True] * 3 + [False] * 2
    )
    first = rows[:, :5][valid[:, :5]]
    np.testing.assert_array_equal(np.sort(first), visible)
    second = rows[:, 5:][valid[:, 5:]]
    np.testing.assert_array_equal(np.sort(second[:9]), infrared)
    assert set(second) <= set(infrared)
    other, _ = shuffled_pairs(visible, infrared, seed=1, epoch=5, batch=5)
    assert not np.array_equal(rows, other)


def test_a_batch_that_divides_the_images_has_no_empty_successor():
    rows, valid = shuffled_pairs(np.arange(8), np.arange(8, 16), seed=0, epoch=0, batch=4)
    assert rows.shape == (2, 8) and valid.all()  # the published loop adds an empty batch here
    with pytest.raises(ValueError, match="all must be 1 or more"):
        shuffled_pairs(np.arange(8), np.arange(0), seed=0, epoch=0, batch=4)
