"""What all losses share: padding, empty input, vmap, dtypes, and equality over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from tests.comparison import assert_close
from tests.losses.all_losses import NAMES, all_losses, inputs, unit, values_and_gradients, world

ROWS, CAPACITY = 12, 16
_run = jax.jit(values_and_gradients)
PER_ROW = ("f", "g", "t")


def _padded(x, labels, garbage: float):
    """The same rows in a larger array whose other rows are invalid."""
    extra = CAPACITY - len(labels["y"])
    x = {
        name: np.concatenate([a, np.full((extra, a.shape[1]), garbage, a.dtype)])
        if name in PER_ROW
        else a
        for name, a in x.items()
    }
    y = np.concatenate([labels["y"], np.full(extra, 4, np.int32)])
    valid = np.concatenate([labels["valid"], np.zeros(extra, bool)])
    return x, {"y": y, "valid": valid}


@pytest.fixture(scope="module")
def unpadded():
    return _run(*inputs(ROWS), world())


@pytest.fixture(scope="module")
def padded():
    return _run(*_padded(*inputs(ROWS), 3.0), world())


@pytest.fixture(scope="module")
def nothing_valid():
    x, labels = inputs(CAPACITY)
    return _run(x, labels | {"valid": np.zeros(CAPACITY, bool)}, world())


@pytest.fixture(scope="module")
def sharded():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    by_row = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    x, labels = inputs(CAPACITY)
    x = {k: jax.device_put(v, by_row if k in PER_ROW else everywhere) for k, v in x.items()}
    labels = jax.device_put(labels, by_row)
    assert len(x["f"].sharding.device_set) == 8
    return _run(x, labels, jax.device_put(world(), everywhere))


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name, unpadded, padded):
    assert_close(padded[0][name], unpadded[0][name], 1e-5)
    assert unpadded[0][name] > 1e-3, "a loss of 0 proves nothing"
    for key, expected in unpadded[1][name].items():
        actual = padded[1][name][key]
        if key in PER_ROW:
            assert not np.any(actual[ROWS:])
            actual = actual[:ROWS]
        assert_close(actual, expected, 1e-5, scale=max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_valid_is_zero(name, nothing_valid):
    assert nothing_valid[0][name] == 0
    for grad in nothing_valid[1][name].values():
        assert np.all(np.asarray(grad) == 0)


@pytest.mark.parametrize("name", NAMES)
def test_eight_devices_are_one(name, sharded):
    values, grads = _run(*inputs(CAPACITY), world())
    assert_close(sharded[0][name], values[name], 1e-5)
    for key, expected in grads[name].items():
        assert_close(sharded[1][name][key], expected, 1e-5, scale=max(1, np.abs(expected).max()))


def test_only_the_meant_input_learns(unpadded):
    """ICAL leaves the classifier alone, GID the features; each other loss moves its own input."""
    for name in NAMES:
        touched = {key for key, grad in unpadded[1][name].items() if np.any(grad)}
        if name.startswith("supcon"):
            assert touched == {"g", "t"}
        elif name.startswith("i2t"):
            assert touched == {"g"}
        else:
            assert touched == ({"W"} if name == "gid" else {"f"}), name


def test_vmap():
    const = world()
    batches = [inputs(ROWS, seed) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *a: np.stack(a), *batches)
    together = jax.jit(jax.vmap(lambda b: all_losses(*b, const)))(stacked)
    for i, batch in enumerate(batches):
        values = _run(*batch, const)[0]
        for name in NAMES:
            assert_close(together[name][i], values[name], 1e-5)


def test_no_rows_at_all():
    values, grads = _run(*inputs(0), world())
    for name in NAMES:
        assert values[name] == 0
        assert not np.any(grads[name]["W"])


@pytest.mark.parametrize("given_dtype, expected", [("float32", "float32"), ("bfloat16", "float32")])
def test_dtype(given_dtype, expected):
    values = jax.eval_shape(
        all_losses, *inputs(ROWS, dtype=jnp.dtype(given_dtype)), world(dtype=jnp.dtype(given_dtype))
    )
    assert {v.dtype for v in values.values()} == {jnp.dtype(expected)}


def test_float64_stays_float64():
    with jax.enable_x64(True):
        values, grads = jax.eval_shape(
            values_and_gradients, *inputs(ROWS, dtype=np.float64), world(dtype=np.float64)
        )
        assert {v.dtype for v in jax.tree.leaves((values, grads))} == {np.dtype("float64")}
        # float32 arrays under x64 stay float32.
        values = jax.eval_shape(all_losses, *inputs(ROWS), world())
        assert {v.dtype for v in values.values()} == {np.dtype("float32")}


_values = jax.jit(all_losses)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31 - 1), st.lists(st.booleans(), min_size=CAPACITY, max_size=CAPACITY))
def test_values_ignore_invalid_rows_and_row_order(seed, valid):
    rng = np.random.default_rng(seed)
    x, labels = inputs(CAPACITY, seed)
    labels["valid"] = np.array(valid)
    const = world(seed)
    values = _values(x, labels, const)
    assert all(np.isfinite(v) and v >= 0 for v in values.values())

    other = {k: np.array(a) for k, a in x.items()}
    for key in PER_ROW:
        other[key][~labels["valid"]] = 5 * unit(rng, CAPACITY, x[key].shape[1])[~labels["valid"]]
    y = np.where(valid, labels["y"], rng.integers(0, 9, CAPACITY)).astype(np.int32)
    changed = _values(other, {"y": y, "valid": labels["valid"]}, const)

    order = rng.permutation(CAPACITY)
    shuffled = {k: a[order] if k in PER_ROW else a for k, a in x.items()}
    permuted = _values(shuffled, {k: a[order] for k, a in labels.items()}, const)
    for name in NAMES:
        assert_close(changed[name], values[name], 1e-5)
        assert_close(permuted[name], values[name], 1e-5)
