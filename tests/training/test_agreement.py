import json

import jax.numpy as jnp
import numpy as np
import pytest

from ccafl_jax.training import agreement


def test_a_process_that_is_alone_builds_for_itself():
    value = object()
    assert agreement.from_first(lambda: value) is value


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": [1, 2.5, True, "x"], "b": {"c": ()}},
        (1, [(2,)]),
        np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::2],
        np.asarray([1.5, -2], jnp.bfloat16),
        np.asarray(["a", "longer"]),
        {"nan": [float("inf")], "empty": np.zeros((0, 2))},
        np.float32(0.1),
    ],
)
def test_values_survive_the_way_to_other_processes(value):
    found = agreement._unpack(json.loads(json.dumps(agreement._pack(value))))
    assert type(found) is type(value)
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype and found.flags.writeable
    np.testing.assert_equal(found, value)


@pytest.mark.parametrize("value", [{1: 2}, {3}, np.asarray([None]), [lambda: 0]])
def test_values_that_would_change_on_the_way_are_refused(value):
    with pytest.raises(TypeError, match="cannot be sent"):
        agreement._pack(value)
