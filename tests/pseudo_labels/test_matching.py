"""Matching against reference values, SciPy on the rows in use, and all assignments of few."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from ccafl_jax.numerics import l2_normalize
from ccafl_jax.pseudo_labels import matching
from ccafl_jax.pseudo_labels.matching import (
    match_prototypes,
    match_similarity,
    matching_precision,
)
from tests.comparison import assert_close
from tests.golden_data import golden

TAGS = sorted({name.split("/")[0] for name in golden("memory_cm", "cclnet")})
SHAPES = st.sampled_from([(1, 1), (4, 4), (3, 5), (5, 3), (2, 6)])


def _unit(rng, rows, dim=4):
    return np.array(l2_normalize(np.float32(rng.normal(size=(rows, dim)))))


@pytest.mark.parametrize("tag", TAGS)
def test_published(tag):
    data = golden("memory_cm", "cclnet")
    visible, infrared = data[f"{tag}/mem_rgb_momentum_only"], data[f"{tag}/mem_ir_momentum_only"]
    result = match_prototypes(visible, infrared)
    row, column = data[f"{tag}/match_rgb"], data[f"{tag}/match_ir"]
    similarity = data[f"{tag}/cost"][row, column]
    assert np.array_equal(result.pairs, np.stack([row, column], axis=1))  # no case is tied
    assert_close(result.similarity, similarity, 1e-5)
    assert result.diagnostics["total"] == pytest.approx(similarity.sum(), abs=1e-5)
    accepted = similarity >= 0
    assert accepted.all() == (tag != "swap_negative")
    table = np.full(len(visible), -1)
    table[row[accepted]] = column[accepted]
    assert np.array_equal(result.infrared_of, table)
    assert result.diagnostics["accepted"] == accepted.sum()
    assert result.diagnostics["mean_similarity"] == pytest.approx(similarity[accepted].mean(), 1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), SHAPES)
def test_total_is_the_greatest_of_all_assignments(seed, shape):
    rng = np.random.default_rng(seed)
    visible, infrared = _unit(rng, shape[0]), _unit(rng, shape[1])
    similarity = np.float64(visible) @ np.float64(infrared).T
    wide = similarity if shape[0] <= shape[1] else similarity.T
    rows = np.arange(len(wide))
    best = max(
        wide[rows, list(chosen)].sum()
        for chosen in itertools.permutations(range(wide.shape[1]), len(wide))
    )
    result = match_prototypes(visible, infrared, min_similarity=-2.0)
    assert result.diagnostics["total"] == pytest.approx(best, abs=1e-5)
    assert len(result.pairs) == result.diagnostics["accepted"] == min(shape)
    assert len(np.unique(result.pairs[:, 1])) == min(shape)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_rows_out_of_use_never_match(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31 - 1)))
    masks = [
        np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool) for n in (6, 7)
    ]
    sides = [_unit(rng, len(mask)) for mask in masks]
    for side, mask in zip(sides, masks, strict=True):
        side[~mask] = rng.choice([0, np.nan, 1e9])
    result = match_prototypes(*sides, *masks, min_similarity=0.2)
    in_use = [side[mask] for side, mask in zip(sides, masks, strict=True)]
    numbers = [np.flatnonzero(mask) for mask in masks]
    similarity = in_use[0] @ in_use[1].T
    row, column = linear_sum_assignment(similarity, maximize=True)
    assert np.array_equal(result.pairs[:, 0], numbers[0][row])
    assert result.diagnostics["total"] == pytest.approx(similarity[row, column].sum(), abs=1e-5)
    assert result.diagnostics["pairs"] == min(map(len, numbers))
    small = match_prototypes(*in_use, min_similarity=0.2)
    assert np.array_equal(result.pairs[:, 1], numbers[1][small.pairs[:, 1]])
    for table, inverse in (
        (result.infrared_of, result.visible_of),
        (result.visible_of, result.infrared_of),
    ):
        assert table.dtype == np.int32
        matched = np.flatnonzero(table >= 0)
        assert np.array_equal(inverse[table[matched]], matched)
        assert len(matched) == result.diagnostics["accepted"]
    assert np.all(masks[0][result.infrared_of >= 0]) and np.all(masks[1][result.visible_of >= 0])
    refused = result.similarity < 0.2
    assert np.all(result.infrared_of[result.pairs[refused, 0]] == -1)
    assert np.array_equal(result.infrared_of[result.pairs[~refused, 0]], result.pairs[~refused, 1])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), SHAPES)
def test_order_of_rows_means_nothing(seed, shape):
    rng = np.random.default_rng(seed)
    visible, infrared = _unit(rng, shape[0]), _unit(rng, shape[1])
    straight = match_prototypes(visible, infrared)
    row, column = rng.permutation(shape[0]), rng.permutation(shape[1])
    moved = match_prototypes(visible[row], infrared[column])
    back = np.where(moved.infrared_of >= 0, column[moved.infrared_of], -1)
    assert np.array_equal(back, straight.infrared_of[row])
    swapped = match_prototypes(infrared, visible)
    assert np.array_equal(swapped.infrared_of, straight.visible_of)


def test_ties_are_the_same_in_every_call():
    rng = np.random.default_rng(0)
    visible, infrared = _unit(rng, 3)[[0, 0, 1, 2]], _unit(rng, 3)[[1, 1, 0, 2, 2]]
    first = match_prototypes(visible, infrared)
    padded = match_prototypes(
        np.concatenate([visible, np.ones((3, 4), np.float32)]),
        np.concatenate([infrared, np.ones((2, 4), np.float32)]),
        np.arange(7) < 4,
        np.arange(7) < 5,
    )
    for again in (match_prototypes(visible, infrared), padded):
        assert np.array_equal(again.pairs, first.pairs)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_an_empty_side_has_no_pairs(shape):
    visible, infrared = np.ones((shape[0], 2), np.float32), np.ones((shape[1], 2), np.float32)
    empty = match_prototypes(visible, infrared)
    assert np.all(empty.infrared_of == -1) and np.all(empty.visible_of == -1)
    assert empty.infrared_of.shape + empty.visible_of.shape == shape
    assert empty.pairs.shape == (0, 2) and set(empty.diagnostics.values()) == {0}
    none = np.zeros(3, bool)
    assert not len(match_prototypes(np.ones((3, 2)), np.ones((4, 2)), none).pairs)
    assert matching_precision(empty, *[np.zeros(0, int)] * 4) == 0


def test_the_least_similarity_is_accepted():
    visible, infrared = np.float32([[1, 0, 0]]), np.float32([[0, 1, 0]])
    assert match_prototypes(visible, infrared).infrared_of.tolist() == [0]
    refused = match_prototypes(visible, infrared, min_similarity=0.01)
    assert refused.infrared_of.tolist() == refused.visible_of.tolist() == [-1]
    assert refused.diagnostics == {"pairs": 1, "accepted": 0, "mean_similarity": 0, "total": 0}


def test_half_precision_and_device_arrays():
    rng = np.random.default_rng(1)
    visible, infrared = (jnp.asarray(_unit(rng, n), jnp.bfloat16) for n in (4, 5))
    result = match_prototypes(visible, infrared)
    exact = match_prototypes(np.float32(visible), np.float32(infrared))
    assert result.similarity.dtype == np.float32
    assert np.array_equal(result.similarity, exact.similarity)


def test_a_capacity_is_compiled_once():
    rng = np.random.default_rng(2)
    visible, infrared = _unit(rng, 8, 6), _unit(rng, 9, 6)
    before = matching._similarities._cache_size()
    for rows in (3, 8, 5):
        match_prototypes(visible, infrared, np.arange(8) < rows, np.arange(9) < rows)
        visible = np.roll(visible, 1, axis=0)
    assert matching._similarities._cache_size() == before + 1


def test_precision_of_pairs():
    eye = np.eye(4, dtype=np.float32)
    result = match_prototypes(eye, eye[:3], min_similarity=0.5)
    assert result.infrared_of.tolist() == [0, 1, 2, -1]
    visible_labels, visible_pid = np.array([0, 0, 0, 1, 1, 2, 3, -1]), [7, 6, 7, 5, 4, 9, 1, 2]
    infrared_labels, infrared_pid = np.array([0, 1, 1, 2, -1]), [7, 4, 6, 3, 9]
    # 7 = 7 by majority, 4 = 4 as the smallest of equals, 9 is not 3.
    arguments = visible_labels, visible_pid, infrared_labels, infrared_pid
    assert matching_precision(result, *arguments) == pytest.approx(2 / 3)
    # A cluster without image agrees with none, not even with identity 0.
    alone = np.array([0, 1, 1, -1, -1]), np.array([7, 4, 6, 3, 9])
    zeros = np.where(visible_labels == 2, 0, visible_pid)
    assert matching_precision(result, visible_labels, zeros, *alone) == pytest.approx(2 / 3)
    assert matching_precision(result, *alone, *alone) == pytest.approx(2 / 3)


def test_errors():
    good = np.eye(3, dtype=np.float32)
    for bad_value in (np.nan, np.inf):
        bad = good.copy()
        bad[1, 2] = bad_value
        with pytest.raises(ValueError, match=r"1 infrared prototypes \(first: row 1\) hold NaN"):
            match_prototypes(good, bad)
        with pytest.raises(ValueError, match=r"1 visible prototypes \(first: row 1\)"):
            match_prototypes(bad, np.zeros((0, 3), np.float32))
        assert len(match_prototypes(bad, good, np.array([True, False, True])).pairs) == 2
    with pytest.raises(
        ValueError, match="visible prototypes have 3 dimensions and infrared ones 2"
    ):
        match_prototypes(good, good[:, :2])
    with pytest.raises(ValueError, match=r"infrared has shape \(3, 3\) and infrared_valid \(2,\)"):
        match_prototypes(good, good, None, np.ones(2, bool))
    with pytest.raises(ValueError, match=r"visible has shape \(3,\)"):
        match_prototypes(good[0], good)
    labels = np.arange(3)
    with pytest.raises(ValueError, match="label 3 found, expected labels below 3"):
        matching_precision(match_prototypes(good, good), labels + 1, labels, labels, labels)
    with pytest.raises(ValueError, match=r"labels have shape \(3,\) and identities \(2,\)"):
        matching_precision(match_prototypes(good, good), labels, labels[:2], labels, labels)


def test_matching_from_similarities_is_that_of_prototypes():
    rng = np.random.default_rng(3)
    visible, infrared = _unit(rng, 6), _unit(rng, 8)
    masks = np.arange(6) != 2, np.arange(8) < 7
    similarity = np.array(visible @ infrared.T)
    similarity[2] = np.nan  # padding may hold anything
    expected = match_prototypes(visible, infrared, *masks, min_similarity=0.1)
    found = match_similarity(similarity, *masks, min_similarity=0.1)
    np.testing.assert_array_equal(found.infrared_of, expected.infrared_of)
    np.testing.assert_array_equal(found.visible_of, expected.visible_of)
    similarity[0, 0] = np.inf
    with pytest.raises(ValueError, match="1 similarities of prototypes are NaN or infinite"):
        match_similarity(similarity, *masks)
