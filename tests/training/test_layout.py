"""The table that lays a state over the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ccafl_jax.methods.ccafl.phases import initial_state
from ccafl_jax.training.layout import BY_CLASS, REPLICATED, layout, padded_rows, path_of, with_rows
from ccafl_jax.training.sharding import make_mesh
from tests.methods.small_run import SMALL


@pytest.fixture(scope="module")
def state():
    params = {"neck/scale": jnp.ones(4), "attnpool/q/kernel": jnp.ones((8, 4))}
    made = initial_state(SMALL, params, {"neck/mean": jnp.ones(4)}, jnp.ones((16, 4)))
    return made.replace(memory={"instances": jnp.ones((16, 3, 4)), "clusters": jnp.ones((8, 4))})


def specs(state, rules):
    found = jax.tree_util.tree_flatten_with_path(layout(state, make_mesh(8), rules))[0]
    return {path_of(keys): sharding.spec for keys, sharding in found}


def test_everything_is_everywhere_by_default(state):
    assert set(specs(state, REPLICATED).values()) == {PartitionSpec()}


def test_tables_of_classes_are_split_and_nothing_else(state):
    found = specs(state, BY_CLASS)
    split = {path for path, spec in found.items() if spec == PartitionSpec("data")}
    assert split == {
        "classifier",
        "memory/instances",
        "memory/clusters",
        *(path for path in found if path.startswith("classifier_opt/") and path[-2:] in "mu nu"),
    }
    assert sum(path.startswith("classifier_opt/") for path in split) == 2
    assert {"step", "params/neck/scale"} <= found.keys() - split


def test_a_path_without_a_rule_is_an_error(state):
    with pytest.raises(ValueError, match="no sharding rule covers step"):
        layout(state, make_mesh(8), BY_CLASS[:1])


def test_rows_that_the_devices_do_not_divide_are_an_error(state):
    other = state.replace(classifier=jnp.ones((15, 4)))
    with pytest.raises(ValueError, match="classifier has 15 rows, which 8 devices do not divide"):
        layout(other, make_mesh(8), BY_CLASS)


def test_rows_are_added_and_taken_away_at_the_end():
    mesh = make_mesh(8)
    assert padded_rows(17, mesh) == 24 and padded_rows(16, mesh) == 16
    table = np.arange(6.0).reshape(3, 2)
    wide = with_rows(jnp.asarray(table), 5)
    np.testing.assert_array_equal(wide, np.pad(table, ((0, 2), (0, 0))))
    np.testing.assert_array_equal(with_rows(np.asarray(wide), 3), table)
    assert with_rows(np.float32(3), 5) == 3  # a counter has no rows
