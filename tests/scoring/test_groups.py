import numpy as np
import pytest

from ccafl_jax.neighbors.similarity import FeatureScores, MatrixScores
from ccafl_jax.scoring.groups import GroupedScores


def test_a_group_scores_as_its_best_item():
    scores = MatrixScores(np.float32([[1, 5, 2, 0], [4, 3, 2, 9]]))
    groups = GroupedScores(scores, np.array([0, 2, 3, 5]), np.array([2, 0, 1, 3, 0]))
    assert groups.shape == (2, 3)
    for order, elements in ((None, 100), (np.array([1, 0]), 1)):
        found = np.zeros((2, 3))
        for rows, block in groups.blocks(order, elements=elements):
            found[rows] = block
            block[:] = -1  # the caller may overwrite it
        assert found.tolist() == [[2, 5, 1], [4, 3, 9]]


def test_distances_of_groups_are_reported():
    rng = np.random.default_rng(0)
    query, gallery = rng.standard_normal((3, 4)), rng.standard_normal((5, 4))
    values = np.array([0, 1, 2, 3, 4])
    groups = GroupedScores(FeatureScores(query, gallery, "euclidean"), np.array([0, 2, 5]), values)
    distance = np.linalg.norm(query[:, None] - gallery, axis=2)
    expected = np.stack([distance[:, :2].min(axis=1), distance[:, 2:].min(axis=1)], axis=1)
    for rows, block in groups.blocks():
        np.testing.assert_allclose(groups.reported(rows, block), -expected[rows], atol=1e-5)


@pytest.mark.parametrize(
    ("offsets", "values", "message"),
    [
        ([0], [], "0 of 0 groups are empty"),
        ([0, 1, 1], [0], "1 of 2 groups are empty"),
        ([0, 2, 1, 3], [0, 1, 2], "1 of 3 groups are empty"),
        ([1, 2], [0, 1], "offsets reach from 1 to 2; expected 0 to 2, the number of values"),
        ([0, 1], [0, 1], "offsets reach from 0 to 1; expected 0 to 2"),
        ([0, 3], [0, 1], "offsets reach from 0 to 3; expected 0 to 2"),
        ([0, 2], [0, 4], "groups hold gallery items 0 to 4; expected 0 to 3"),
        ([0, 2], [-1, 1], "groups hold gallery items -1 to 1"),
    ],
)
def test_bad_groups(offsets, values, message):
    scores = MatrixScores(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match=message):
        GroupedScores(scores, np.array(offsets), np.array(values, np.int64))
