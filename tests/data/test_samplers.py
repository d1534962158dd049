import collections
import itertools
import time

import numpy as np
import pytest
from scipy import stats

from ccafl_jax.data.samplers import epoch_permutation, plan, plan_groups, shuffled_batches


def ragged_labels(num_classes, seed=0):
    """Classes of 1 to 20 images in random order."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.repeat(np.arange(num_classes), rng.integers(1, 21, num_classes)))


LABELS = ragged_labels(37)
SETTING = {"seed": 5, "classes_per_batch": 6, "images_per_class": 8}


def test_any_split_gives_the_same_stream():
    whole = plan(LABELS, first_step=0, steps=40, **SETTING)
    assert whole.shape == (40, 48) and whole.dtype == np.int32
    for cuts in ([0, 1, 2, 40], [0, 7, 13, 30, 40], [0, 40]):
        parts = [
            plan(LABELS, first_step=a, steps=b - a, **SETTING) for a, b in itertools.pairwise(cuts)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert plan(LABELS, first_step=3, steps=0, **SETTING).shape == (0, 48)


def test_every_pass_holds_every_class_once():
    steps = 37  # 37 batches of 6 classes are exactly 6 passes over 37 classes
    images = plan(LABELS, first_step=0, steps=steps, **SETTING)
    classes = LABELS[images.reshape(-1, 8)]
    assert np.all(classes == classes[:, :1])
    passes = classes[:, 0].reshape(6, 37)
    for order in passes:
        np.testing.assert_array_equal(np.sort(order), np.arange(37))
    assert any(not np.array_equal(passes[0], order) for order in passes[1:])


def test_draws_within_a_class():
    images = plan(LABELS, first_step=0, steps=37, **SETTING).reshape(-1, 8)
    size = np.bincount(LABELS)
    for row in images:
        n = size[LABELS[row[0]]]
        uses = collections.Counter(row.tolist())
        # 8 or more images: no repeats. Fewer: the multiset with 8 copies of each never runs out.
        assert max(uses.values()) == 1 if n >= 8 else max(uses.values()) <= 8
        if n == 1:
            assert len(uses) == 1


def test_draws_are_uniform():
    """One class of 10: each image, and each pair of first two images, comes equally often."""
    labels = np.zeros(10, int)
    images = plan(labels, seed=1, first_step=0, steps=9000, classes_per_batch=1, images_per_class=4)
    for column in range(4):
        assert stats.chisquare(np.bincount(images[:, column], minlength=10)).pvalue > 1e-4
    pairs = np.bincount(images[:, 0] * 10 + images[:, 1], minlength=100).reshape(10, 10)
    assert np.all(np.diag(pairs) == 0)
    assert stats.chisquare(pairs[~np.eye(10, dtype=bool)]).pvalue > 1e-4


def test_small_class_is_drawn_from_the_multiset():
    """Two images, four draws from {a a a a b b b b}: a comes hypergeometrically often."""
    images = plan(
        np.zeros(2, int), seed=2, first_step=0, steps=8000, classes_per_batch=1, images_per_class=4
    )
    found = np.bincount((images == 0).sum(axis=1), minlength=5)
    expected = stats.hypergeom(8, 4, 4).pmf(np.arange(5)) * 8000
    assert stats.chisquare(found, expected).pvalue > 1e-4


def test_seed_changes_classes_and_images():
    first = plan(LABELS, first_step=0, steps=5, **SETTING)
    other = plan(LABELS, first_step=0, steps=5, **(SETTING | {"seed": 6}))
    assert not np.array_equal(LABELS[first], LABELS[other])
    one_class = np.zeros(30, int)
    draws = [
        plan(one_class, seed=s, first_step=0, steps=1, classes_per_batch=1, images_per_class=8)
        for s in (0, 1)
    ]
    assert not np.array_equal(*draws)


def test_rows_without_a_class_are_never_drawn():
    labels = LABELS.copy()
    labels[::3] = -1
    _, labels[labels >= 0] = np.unique(labels[labels >= 0], return_inverse=True)
    images = plan(labels, first_step=0, steps=30, **SETTING)
    assert np.all(labels[images] >= 0)


def test_all_classes_in_one_batch():
    setting = SETTING | {"classes_per_batch": 37}
    images = plan(LABELS, first_step=0, steps=3, **setting)
    np.testing.assert_array_equal(np.sort(LABELS[images], axis=1)[:, ::8], [np.arange(37)] * 3)


@pytest.mark.parametrize(
    ("labels", "change", "message"),
    [
        (
            LABELS,
            {"classes_per_batch": 38},
            "38; the labels hold 37 classes, so it must be 1 to 37",
        ),
        (LABELS, {"classes_per_batch": 0}, "must be 1 to 37"),
        (LABELS, {"images_per_class": 0}, "images_per_class 0"),
        (LABELS, {"first_step": -1}, "first_step -1"),
        (np.array([0, 2, 2]), {}, r"1 of 3 classes have no image \(e.g. class 1\)"),
        (np.array([-1, -1]), {}, "no labelled image"),
        (np.zeros(0, int), {}, "no labelled image"),
        (np.zeros(3), {}, "labels must be int"),
    ],
)
def test_wrong_input_is_named(labels, change, message):
    with pytest.raises(ValueError, match=message):
        plan(labels, **({"first_step": 0, "steps": 2} | SETTING | change))


def test_market_size_is_fast():
    labels = ragged_labels(3262)
    seconds = []
    for step in (0, 1000, 5000):
        start = time.perf_counter()
        plan(labels, seed=0, first_step=step, steps=200, classes_per_batch=16, images_per_class=8)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1


def test_shuffled_batches_hold_every_image_once():
    indices, valid = shuffled_batches(70, seed=0, epoch=3, batch=32)
    assert indices.shape == valid.shape == (3, 32) and indices.dtype == np.int32
    assert valid.sum() == 70 and valid[:2].all() and valid[2, :6].all()
    np.testing.assert_array_equal(np.sort(indices[valid]), np.arange(70))
    np.testing.assert_array_equal(indices[valid], epoch_permutation(70, seed=0, epoch=3))
    assert np.all(indices[~valid] == 0)


def test_epochs_and_seeds_have_their_own_order():
    base = epoch_permutation(50, seed=0, epoch=0)
    np.testing.assert_array_equal(base, epoch_permutation(50, seed=0, epoch=0))
    assert not np.array_equal(base, epoch_permutation(50, seed=0, epoch=1))
    assert not np.array_equal(base, epoch_permutation(50, seed=1, epoch=0))
    with pytest.raises(ValueError, match="0 images"):
        shuffled_batches(0, seed=0, epoch=0, batch=4)


def grouped(labels, **changes):
    options = {"seed": 0, "epoch": 0, "classes_per_batch": 3, "images_per_class": 4}
    return plan_groups(labels, **options | changes)


def test_groups_show_each_image_once():
    labels = np.repeat(np.arange(6), [4, 9, 12, 17, 8, 5])
    found = grouped(labels)
    assert found.dtype == np.int32 and found.shape[1] == 12
    for batch in found:
        by_class = labels[batch].reshape(3, 4)
        assert np.all(by_class == by_class[:, :1]) and len(set(by_class[:, 0])) == 3
    shown = np.bincount(found.ravel(), minlength=len(labels))
    assert shown.max() == 1
    groups = np.bincount(labels[found[:, ::4]].ravel(), minlength=6)
    limit = np.array([1, 2, 3, 4, 2, 1])
    assert np.all(groups <= limit) and np.count_nonzero(limit - groups) < 3


def test_a_class_with_few_images_repeats_them():
    labels = np.repeat(np.arange(4), [2, 4, 4, 1])
    found = grouped(labels, classes_per_batch=4)
    assert found.shape == (1, 16)
    by_class = {labels[rows[0]]: rows for rows in found.reshape(4, 4)}
    assert set(by_class[0]) <= {0, 1} and set(by_class[3]) == {10}
    assert sorted(by_class[1]) == [2, 3, 4, 5]


def test_groups_depend_on_seed_and_epoch_alone():
    labels = np.repeat(np.arange(8), 9)
    first = grouped(labels)
    np.testing.assert_array_equal(first, grouped(labels))
    for changes in ({"seed": 1}, {"epoch": 1}):
        other = grouped(labels, **changes)
        assert first.shape != other.shape or not np.array_equal(first, other)
    with pytest.raises(ValueError, match="it must be 1 to 8"):
        grouped(labels, classes_per_batch=9)
    with pytest.raises(ValueError, match="images_per_class 0 must be 1 or more"):
        grouped(labels, images_per_class=0)


def test_groups_have_all_classes_equally_often():
    labels = np.repeat(np.arange(10), 8)
    times = sum(
        np.bincount(labels[grouped(labels, epoch=epoch)[:, ::4]].ravel(), minlength=10)
        for epoch in range(200)
    )
    assert times.min() > 0.9 * times.max()
