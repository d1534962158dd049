"""The encoding on devices against the one on the host."""

import jax.numpy as jnp
import numpy as np
import pytest

from ccafl_jax.neighbors import reciprocal
from ccafl_jax.neighbors.reciprocal_on_devices import ONE, encode
from tests import reciprocal_oracle


@pytest.mark.parametrize(
    ("columns", "half", "k2"), [(1, 1, 1), (6, 4, 1), (9, 9, 3), (7, 2, 7)], ids=str
)
@pytest.mark.parametrize("copies", [False, True])
def test_rows_are_those_of_the_host(columns, half, k2, copies):
    rng = np.random.default_rng(0)
    f = reciprocal_oracle.unit(rng.standard_normal((70, 4))).astype(np.float32)
    if copies:
        f[rng.random(70) < 0.4] = f[2]
    order = np.argsort(reciprocal_oracle.squared_distances(f), axis=1, kind="stable")
    lists, counts = order[:, :9], {"columns": columns, "half": half, "k2": k2}
    expected = reciprocal.encode(
        lists, lambda i, j: reciprocal.pair_distances(f, i, j), **counts
    ).toarray()
    # More rows than items: the features may be padded.
    members, weights = encode(lists, jnp.pad(f, ((0, 5), (0, 0))), **counts)
    members, weights = np.asarray(members), np.asarray(weights)
    assert members.dtype == weights.dtype == np.int32
    found = np.zeros((70, 71))
    np.put_along_axis(found, members, weights / ONE, axis=1)
    np.testing.assert_allclose(found[:, :70], expected, atol=3e-7)
    used = members < 70
    assert (weights[~used] == 0).all() and (np.diff(members, axis=1)[used[:, 1:]] > 0).all()
    assert np.abs(weights.sum(axis=1) - ONE).max() < 256


def test_errors_are_those_of_the_host():
    with pytest.raises(ValueError, match=r"half is 4; expected 1\.\.3"):
        encode(np.zeros((3, 3), int), jnp.ones((3, 2)), columns=3, half=4)
