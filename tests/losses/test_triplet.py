"""Triplets against reference values."""

import jax
import numpy as np
import pytest

from ccafl_jax import losses
from ccafl_jax.losses.triplet import squared_distances
from tests.comparison import VALUE_TOLERANCE, assert_close, typed
from tests.golden_data import case_group, golden

triplet = jax.jit(losses.triplet)
batch_triplet = jax.jit(losses.batch_triplet, static_argnames="reduce")
memory_triplet = jax.jit(losses.memory_triplet, static_argnames="reduce")

_gradients = jax.jit(jax.value_and_grad(triplet, argnums=(0, 2)))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", case_group("triplet"), ids=lambda case: case["id"])
def test_triplet_cases(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        given = typed(case["inputs"], dtype)
        args = (given["a"], given["la"], given["k"], given["lk"])
        loss, grads = _gradients(*args)
        assert_close(loss, case["expected"]["loss"], VALUE_TOLERANCE[dtype])
        assert all(np.all(np.isfinite(grad)) for grad in grads)
        if case["id"] == "t2_no_negative":
            assert not any(np.any(grad) for grad in grads)


def test_memory_triplet_published():
    data = golden("07_triplet_s0")
    x, y, memory = data["x"], data["labels"], data["memory"]
    classes = np.arange(len(memory))
    loss, (grad, grad_memory) = _gradients(x, y, memory, classes)
    assert_close(loss, data["memory_loss"], 1e-5)
    assert_close(grad, data["memory_grad_x"], 1e-5)
    one = _gradients(x[:1], y[:1], memory, classes)
    # The reference accumulated the gradients of both calls in one array.
    both = grad_memory + one[1][1]
    assert_close(both, data["memory_grad_memory_if_not_detached"], 1e-5)
    cam_of = np.zeros(len(memory), np.int32)
    held, (grad, grad_memory) = jax.value_and_grad(
        lambda x, memory: memory_triplet(x, y, memory, cam_of), argnums=(0, 1)
    )(x, memory)
    assert_close(held, data["memory_loss"], 1e-5)
    assert_close(grad, data["memory_grad_x"], 1e-5)
    assert not np.any(grad_memory)
    assert_close(one[0], data["one_sample_memory_loss"], 1e-5)
    assert_close(one[1][0], data["one_sample_memory_grad_x"], 1e-5)


@pytest.mark.parametrize("prefix, key", [("", "x"), ("raw_", "raw_x")])
def test_batch_triplet_published(prefix, key):
    data = golden("07_triplet_s0")
    loss, grad = jax.jit(jax.value_and_grad(batch_triplet))(data[key], data["labels"])
    # A lone identity is measured against itself: rounding in the reference, 1e-6 here.
    alone = np.sum(np.bincount(data["labels"]) == 1)
    assert_close(loss, data[f"{prefix}batch_hard_loss"], 1e-5 + 5e-4 * alone / len(grad))
    assert_close(grad, data[f"{prefix}batch_hard_grad_x"], 1e-5)


def test_distances_published():
    data = golden("07_triplet_s0")
    distance = np.sqrt(np.maximum(squared_distances(data["x"], data["x"]), 1e-12))
    off_diagonal = ~np.eye(len(distance), dtype=bool)
    assert_close(distance[off_diagonal], data["batch_dist"][off_diagonal], 1e-5)


def test_one_class_is_zero_published():
    data = golden("07_triplet_s0")
    loss, grad = jax.jit(jax.value_and_grad(batch_triplet))(
        data["x"], np.zeros(len(data["x"]), int)
    )
    assert loss == data["single_class_loss"] == 0
    assert not np.any(grad)


def test_inside_cameras_is_the_loop_over_cameras():
    rng = np.random.default_rng(2)
    f, memory = np.float32(rng.normal(size=(12, 4))), np.float32(rng.normal(size=(6, 4)))
    cam_of = np.array([0, 0, 1, 1, 1, 2])
    y = np.array([0, 1, 2, 3, 4, 0, 1, 2, 5, 5, 3, 0])
    camera = cam_of[y]
    batch = memory_sum = 0.0
    for cam in range(3):
        rows, classes = camera == cam, np.flatnonzero(cam_of == cam)
        batch += batch_triplet(f[rows], y[rows])
        memory_sum += triplet(f[rows], y[rows], memory[classes], classes)
    assert_close(batch_triplet(f, y, None, camera), batch, 1e-6)
    assert_close(memory_triplet(f, y, memory, cam_of), memory_sum, 1e-6)
    mean = batch_triplet(f, y, None, camera, reduce="mean_cam_mean")
    assert_close(mean, batch / 3, 1e-6)
    assert batch > 0.1 and memory_sum > 0.1
    dropped = np.where(y == 3, -1, y)
    assert_close(batch_triplet(f, dropped), batch_triplet(f[y != 3], y[y != 3]), 1e-6)
