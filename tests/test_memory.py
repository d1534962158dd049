"""Memory banks against reference values, a plain NumPy loop, and padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax import losses, memory
from ccafl_jax.numerics import l2_normalize
from ccafl_jax.pseudo_labels.matching import match_prototypes
from tests.comparison import VALUE_TOLERANCE, assert_close, typed
from tests.golden_data import case_group, golden

SWAP_CASES = sorted({name.split("/")[0] for name in golden("memory_cm", "cclnet")})

UPDATES = {
    "mean": memory.update_mean,
    "hard": memory.update_hard,
    "each": memory.update_each,
}


@functools.cache
def _jitted(rule):
    return jax.jit(UPDATES[rule])


def _by_hand(rule, mem, f, lab, valid, m):
    """The update in a loop over rows, in float64."""
    old, new = np.asarray(mem, np.float64), np.array(mem, np.float64)
    f = np.asarray(f, np.float64)
    for label in sorted(set(lab[valid & (lab >= 0)].tolist())):
        rows = f[(lab == label) & valid]
        if rule == "each":
            for row in rows:
                new[label] = m * new[label] + (1 - m) * row
                new[label] /= np.linalg.norm(new[label])
            continue
        target = rows.mean(0) if rule == "mean" else rows[np.argmin(rows @ old[label])]
        new[label] = m * old[label] + (1 - m) * target
        new[label] /= np.linalg.norm(new[label])
    return new


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", case_group("memory_update"), ids=lambda case: case["id"])
def test_update_cases(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        inputs, expected = typed(case["inputs"], dtype), case["expected"]
        if "rule" not in inputs:
            pytest.fail(f"case {case['id']} is not covered")
        update = functools.partial(UPDATES[inputs["rule"]], m=inputs["m"])
        new = jax.jit(update)(inputs["cent"], inputs["f"], inputs["y"])
        assert new.dtype == dtype
        if "cent" in expected:
            assert_close(new, expected["cent"], VALUE_TOLERANCE[dtype])
        if "unchanged_rows" in expected:
            rows = expected["unchanged_rows"]
            assert np.array_equal(np.asarray(new)[rows], inputs["cent"][rows])
            assert_close(np.linalg.norm(new, axis=1), np.ones(len(new)), VALUE_TOLERANCE[dtype])


def test_hybrid_memory_published():
    data = golden("06_cm_hybrid_v2_s0")
    classes, m = int(data["num_classes"]), float(data["momentum"])

    def split(flat):
        slots = flat[classes:].reshape(-1, classes, flat.shape[1])
        return flat[:classes], np.swapaxes(slots, 0, 1)

    for x, before, after in (
        ("x", "memory", "memory_after"),
        ("x_step2", "memory_after", "step2_memory_after"),
    ):
        f = l2_normalize(data[x])
        cent, inst = split(data[before])
        expected_cent, expected_inst = split(data[after])
        new_cent = _jitted("mean")(cent, f, data["targets"], m=m)
        new_inst = jax.jit(memory.update_instances)(inst, f, data["targets"])
        assert_close(new_cent, expected_cent, 1e-6)
        assert_close(new_inst, expected_inst, 1e-6)
        untouched = np.all(expected_inst == inst, axis=2)
        assert untouched.any() and np.array_equal(np.asarray(new_inst)[untouched], inst[untouched])


def test_hard_memory_published():
    data = golden("06_cm_hard_s0")
    m = float(data["momentum"])
    new = _jitted("hard")(data["memory"], l2_normalize(data["x"]), data["targets"], m=m)
    assert_close(new, data["memory_after"], 1e-6)
    new = _jitted("hard")(data["memory_after"], l2_normalize(data["x_step2"]), data["targets"], m=m)
    assert_close(new, data["step2_memory_after"], 1e-6)
    for label, row in data["hard_class_and_index"]:
        picked = l2_normalize(m * data["memory"][label] + (1 - m) * l2_normalize(data["x"])[row])
        assert_close(data["memory_after"][label], picked, 1e-6)


def test_initialisation_published():
    data = golden("10_memory_init_s0")
    f = data["features"]
    mean, count = memory.class_means(f, data["labels_with_outliers"], len(data["centers"]))
    assert_close(mean, data["centers"], 1e-5)
    inside = data["labels_with_outliers"][data["labels_with_outliers"] >= 0]
    assert np.array_equal(count, np.bincount(inside))
    classes = len(data["centers_all"])
    assert_close(memory.class_means(f, data["labels"], classes)[0], data["centers_all"], 1e-5)
    # Row i + k * classes of the reference is slot k of class i.
    draws = data["chosen_index"].reshape(-1, classes).T
    inst = memory.init_instances(f, draws)
    raw = data["instance_features"].reshape(-1, classes, f.shape[1]).swapaxes(0, 1)
    assert_close(inst, l2_normalize(raw), 1e-5)
    flat = np.concatenate(
        [
            memory.init_centroids(f, data["labels"], classes),
            np.swapaxes(inst, 0, 1).reshape(-1, f.shape[1]),
        ]
    )
    assert_close(flat, data["intra_memory"], 1e-5)


def test_weighted_means_are_means_over_images():
    rng = np.random.default_rng(0)
    texts, images = np.float32(rng.normal(size=(4, 3))), np.array([1, 5, 2, 3])
    cluster = np.array([0, 0, 1, -1])
    mean, count = memory.class_means(texts, cluster, 3, weight=images)
    by_image = memory.class_means(np.repeat(texts, images, 0), np.repeat(cluster, images), 3)
    assert_close(mean, by_image[0], 1e-6)
    assert np.array_equal(count, [6, 2, 0]) and not np.any(mean[2])


def test_draws():
    label = np.array([2, 0, 2, 1, -1, 2, 0])
    draws = memory.draw_instances(label, 3, 50, seed=(1, 4))
    assert draws.shape == (3, 50) and draws.dtype == np.int32
    assert np.array_equal(label[draws], np.repeat([[0], [1], [2]], 50, axis=1))
    assert set(draws[2]) == {0, 2, 5}  # with replacement, every image is met
    assert np.array_equal(draws, memory.draw_instances(label, 3, 50, seed=(1, 4)))
    assert not np.array_equal(draws, memory.draw_instances(label, 3, 50, seed=(1, 5)))
    with pytest.raises(ValueError, match="class 3 has no image"):
        memory.draw_instances(label, 4, 2, seed=0)
    with pytest.raises(ValueError, match="label 2 found"):
        memory.draw_instances(label, 2, 2, seed=0)


@settings(max_examples=15, deadline=None)
@given(st.data())
@pytest.mark.parametrize("rule", sorted(UPDATES))
def test_updates_are_the_loop(rule, data):
    seed = data.draw(st.integers(0, 2**31 - 1))
    rng = np.random.default_rng(seed)
    lab = np.array(data.draw(st.lists(st.integers(-1, 4), min_size=9, max_size=9)))
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=9, max_size=9)))
    mem = np.float32(l2_normalize(np.float32(rng.normal(size=(5, 4)))))
    f = np.float32(l2_normalize(np.float32(rng.normal(size=(9, 4)))))
    new = np.asarray(_jitted(rule)(mem, f, lab, valid, m=0.1))
    assert_close(new, _by_hand(rule, mem, f, lab, valid, 0.1), 1e-5)
    absent = np.setdiff1d(np.arange(5), lab[valid])
    assert np.array_equal(new[absent], mem[absent])


def test_hard_takes_the_first_of_equals():
    mem = np.float32([[1, 0, 0]])
    f = np.float32([[0.6, 0.8, 0], [0.6, 0, 0.8], [0.6, -0.8, 0]])
    new = memory.update_hard(mem, f, np.array([0, 0, 0]))
    assert new[0, 1] > 0.5 and abs(new[0, 2]) < 1e-6
    new = memory.update_hard(mem, f, np.array([0, 0, 0]), np.array([False, True, True]))
    assert new[0, 2] > 0.5


def test_slots_fill_in_batch_order_and_overflow_is_dropped():
    inst = np.zeros((3, 2, 1), np.float32)
    f = np.arange(1, 7, dtype=np.float32)[:, None]
    y = np.array([1, 0, 1, 1, -1, 0])
    valid = np.array([True, True, True, True, True, False])
    new = jax.jit(memory.update_instances)(inst, f, y, valid)
    assert np.asarray(new)[..., 0].tolist() == [[2, 0], [1, 3], [0, 0]]


def test_nothing_valid_changes_nothing_and_no_gradient_flows():
    rng = np.random.default_rng(1)
    mem, f = np.float32(rng.normal(size=(5, 4))), np.float32(rng.normal(size=(9, 4)))
    lab, none = np.arange(9) % 5, np.zeros(9, bool)
    for rule in UPDATES:
        assert np.array_equal(_jitted(rule)(mem, f, lab, none, m=0.1), mem)
        grad = jax.jit(jax.grad(lambda f, rule=rule: jnp.sum(UPDATES[rule](mem, f, lab))))(f)
        assert not np.any(grad)
    inst = np.float32(rng.normal(size=(5, 3, 4)))
    assert np.array_equal(memory.update_instances(inst, f, lab, none), inst)


def test_eight_devices_are_one():
    rng = np.random.default_rng(2)
    f = np.float32(l2_normalize(np.float32(rng.normal(size=(16, 4)))))
    lab, valid = rng.integers(-1, 5, 16).astype(np.int32), np.arange(16) < 14
    mem, inst = f[:5], np.float32(rng.normal(size=(5, 3, 4)))

    @jax.jit
    def all_updates(mem, inst, *rows):
        new = [update(mem, *rows) for update in UPDATES.values()]
        return [*new, memory.update_instances(inst, *rows)]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    by_row = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    sharded = all_updates(
        *jax.device_put((mem, inst), everywhere), *jax.device_put((f, lab, valid), by_row)
    )
    for actual, expected in zip(sharded, all_updates(mem, inst, f, lab, valid), strict=True):
        assert_close(actual, expected, 1e-6)


def test_half_precision_memory_keeps_its_type():
    mem = jnp.ones((5, 4), jnp.bfloat16)
    f = jnp.ones((9, 4), jnp.bfloat16)
    lab = jnp.arange(9) % 5
    for update in UPDATES.values():
        assert jax.eval_shape(update, mem, f, lab).dtype == jnp.bfloat16
    assert jax.eval_shape(memory.init_instances, f, jnp.zeros((2, 3), int)).dtype == jnp.float32


_swapped = jax.jit(memory.swap_matched, static_argnames="aliased")


@functools.cache
def _two_modalities(case):
    """One case of the published memory: its arrays, by their names without the case's."""
    data = golden("memory_cm", "cclnet")
    return {name.split("/")[1]: data[name] for name in data if name.startswith(f"{case}/")}


@pytest.mark.parametrize("side", ["rgb", "ir"])
@pytest.mark.parametrize("case", SWAP_CASES)
def test_contrast_and_momentum_of_one_modality_published(case, side):
    data = _two_modalities(case)
    x, lab, mem = data[f"x_{side}"], data[f"t_{side}"], data[f"mem_{side}"]

    def contrast(x):
        return losses.inter_contrast(l2_normalize(x), lab, mem, tau=data["temp"])

    loss, grad = jax.jit(jax.value_and_grad(contrast))(x)
    assert_close(loss, data[f"loss_{side}"], 1e-5)
    assert_close(grad, data[f"grad_x_{side}"], 1e-5)
    new = _jitted("each")(mem, l2_normalize(x), lab, m=data["momentum"])
    assert_close(new, data[f"mem_{side}_momentum_only"], 1e-5)


@pytest.mark.parametrize("aliased", [False, True])
@pytest.mark.parametrize("case", SWAP_CASES)
def test_swap_published(case, aliased):
    data = _two_modalities(case)
    old = data["mem_rgb_momentum_only"], data["mem_ir_momentum_only"]
    infrared_of = match_prototypes(*old).infrared_of
    rows = infrared_of, data["t_rgb"], data["t_ir"]
    new = _swapped(*old, *rows, scale=data["scale"], aliased=aliased)
    suffix = "after" if aliased else "after_fixed"
    for side, before, after in zip(("rgb", "ir"), old, new, strict=True):
        assert_close(after, data[f"mem_{side}_{suffix}"], 1e-5)
        kept = np.all(data[f"mem_{side}_{suffix}"] == before, axis=1)
        assert kept.any() and np.array_equal(np.asarray(after)[kept], before[kept])
        assert kept.all() == case.startswith("noswap")


def test_published_swaps_tell_aliased_from_right():
    for case in SWAP_CASES:
        data = _two_modalities(case)
        apart = np.abs(data["mem_ir_after"] - data["mem_ir_after_fixed"]).max()
        assert (apart > 0.1) == case.startswith("swap")


@functools.cache
def _swap_traced():
    """The swap at one capacity, and the kind of each of its traces."""
    traces = []

    @functools.partial(jax.jit, static_argnames="aliased")
    def swap(*arguments, scale, aliased):
        traces.append(aliased)
        return memory.swap_matched(*arguments, scale=scale, aliased=aliased)

    return swap, traces


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_swap_is_the_loop(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31 - 1)))
    visible, infrared = (
        np.array(l2_normalize(np.float32(rng.normal(size=(rows, 5))))) for rows in (6, 7)
    )
    infrared_of = np.full(6, -1, np.int32)
    pairs = data.draw(st.integers(0, 6))
    infrared_of[rng.permutation(6)[:pairs]] = rng.permutation(7)[:pairs]
    lab = rng.integers(-1, 6, 4).astype(np.int32), rng.integers(-1, 7, 4).astype(np.int32)
    valid = rng.random(4) < 0.7, rng.random(4) < 0.7
    scale = np.float32(data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])))
    aliased = data.draw(st.booleans())
    old, expected = (visible, infrared), [np.float64(visible), np.float64(infrared)]
    for r, c in enumerate(infrared_of):
        snapshot = [np.array(side) for side in expected]
        if c >= 0 and r in lab[0][valid[0]]:
            moved = scale * snapshot[0][r] + (1 - scale) * snapshot[1][c]
            expected[0][r] = moved / np.linalg.norm(moved)
        if c >= 0 and c in lab[1][valid[1]]:
            source = (expected if aliased else snapshot)[0][r]
            moved = scale * snapshot[1][c] + (1 - scale) * source
            expected[1][c] = moved / np.linalg.norm(moved)
    swap, traces = _swap_traced()
    new = swap(visible, infrared, infrared_of, *lab, *valid, scale=scale, aliased=aliased)
    assert len(traces) <= 2 and len(set(traces)) == len(traces)  # one of each kind
    for side in range(2):
        assert_close(new[side], expected[side], 2e-5)
        assert_close(np.linalg.norm(new[side], axis=1), np.ones(len(new[side])), 1e-6)
        matched = infrared_of >= 0 if side == 0 else np.isin(np.arange(7), infrared_of)
        present = np.isin(np.arange(len(old[side])), lab[side][valid[side]])
        still = ~(matched & present) if scale != 1 else np.ones(len(old[side]), bool)
        assert np.array_equal(np.asarray(new[side])[still], old[side][still])


def test_swap_by_hand():
    visible, infrared = np.float32([[1, 0, 0], [0, 1, 0]]), np.float32([[0, 1, 0], [0, 0, 1]])
    both = np.array([1, 0]), np.array([0]), np.array([1])  # visible 0 and infrared 1, in the batch
    new = memory.swap_matched(visible, infrared, *both, scale=0.0)
    assert np.array_equal(new[0], [[0, 0, 1], [0, 1, 0]])
    assert np.array_equal(new[1], [[0, 1, 0], [1, 0, 0]])
    # The published code reads visible 0 when it already is infrared 1.
    new = memory.swap_matched(visible, infrared, *both, scale=0.0, aliased=True)
    assert np.array_equal(new[0], [[0, 0, 1], [0, 1, 0]]) and np.array_equal(new[1], infrared)
    old, other = np.float32([0.1, 0.9]) / np.hypot(0.1, 0.9)
    new = memory.swap_matched(visible, infrared, *both)
    assert_close(new[0][0], [old, 0, other], 1e-6)
    assert_close(new[1][1], [other, 0, old], 1e-6)


def test_swap_of_nothing_and_of_full_scale_changes_no_bit():
    rng = np.random.default_rng(4)
    # Of any length, so that normalising a row would show.
    old = np.float32(rng.normal(size=(5, 3))), np.float32(rng.normal(size=(4, 3)))
    pairs, none = np.array([3, -1, 0, 1, 2]), np.full(5, -1)
    everyone, nobody = (np.arange(5), np.arange(4)), (np.full(5, -1), np.full(4, -1))
    for infrared_of, labels, scale in (
        (pairs, everyone, 1.0),
        (none, everyone, 0.1),
        (pairs, nobody, 0.1),
    ):
        for aliased in (False, True):
            new = _swapped(*old, infrared_of, *labels, scale=scale, aliased=aliased)
            assert all(np.array_equal(a, b) for a, b in zip(new, old, strict=True))
    half = [jnp.asarray(side, jnp.bfloat16) for side in old]
    new = _swapped(*half, pairs, *everyone, scale=0.1)
    assert [side.dtype for side in new] == [jnp.bfloat16, jnp.bfloat16]
