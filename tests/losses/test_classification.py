"""Image-to-text and smoothed cross-entropy against reference values."""

import jax
import numpy as np
import pytest

from ccafl_jax import losses
from ccafl_jax.losses import camera_mask, camera_row_weights
from tests.comparison import GRADIENT_TOLERANCE, VALUE_TOLERANCE, assert_close, typed
from tests.golden_data import case_group, golden

i2t_ce = jax.jit(losses.i2t_ce)
smoothed_cross_entropy = jax.jit(losses.smoothed_cross_entropy)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", case_group("i2tce"), ids=lambda case: case["id"])
def test_i2tce_cases(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        given, expected = typed(case["inputs"], dtype), case["expected"]
        options = {"eps": given["eps"], "denom": given.get("ls_denominator")}

        @jax.jit
        @jax.value_and_grad
        def objective(x):
            if "logits" in given:
                return smoothed_cross_entropy(x, given["y"], **options)
            return i2t_ce(x, given["T"], given["y"], **options)

        loss, grad = objective(given["logits"] if "logits" in given else given["f"])
        assert_close(loss, expected["loss"], VALUE_TOLERANCE[dtype])
        if "grad_f" in expected:
            assert_close(grad, expected["grad_f"], GRADIENT_TOLERANCE)


@pytest.mark.parametrize("name, denom", [("ls_k_equals_columns", None), ("ls_k_4821", 4821)])
def test_label_smoothing_published(name, denom):
    data = golden("08_ce_gid_s0")
    loss, grad = jax.jit(
        jax.value_and_grad(lambda x: smoothed_cross_entropy(x, data["labels"], denom=denom))
    )(data["logits"])
    assert_close(loss, data[f"{name}_loss"], 1e-5)
    assert_close(grad, data[f"{name}_grad"], 1e-5)


def test_column_mask_is_the_loss_over_those_columns():
    rng = np.random.default_rng(1)
    g, text = np.float32(rng.normal(size=(8, 4))), np.float32(rng.normal(size=(9, 4)))
    cam_of = np.array([0, 1, 0, 2, 1, 1, 0, 2, 2])
    y = np.array([0, 1, 3, 2, 4, 6, 7, 5])
    camera = cam_of[y]
    loss = i2t_ce(g, text, y, camera_mask(camera, cam_of), camera_row_weights(camera))
    expected = 0.0
    for cam in range(3):
        classes, rows = np.flatnonzero(cam_of == cam), np.flatnonzero(camera == cam)
        local = np.searchsorted(classes, y[rows])
        expected += i2t_ce(g[rows], text[classes], local)
    assert_close(loss, expected, 1e-5)


def test_smoothing_limits():
    logits = np.float32([[2.0, 0.5, -1.0], [0.0, 1.0, 0.3]])
    y = np.array([0, 2])
    plain = -np.mean(np.asarray(jax.nn.log_softmax(logits))[[0, 1], y])
    assert_close(smoothed_cross_entropy(logits, y, eps=0.0), plain, 1e-6)
    per_row = smoothed_cross_entropy(logits, y, denom=np.array([3.0, 3.0]))
    assert_close(per_row, smoothed_cross_entropy(logits, y), 1e-6)
    dropped = smoothed_cross_entropy(logits, np.array([0, -1]))
    assert_close(dropped, smoothed_cross_entropy(logits[:1], y[:1]), 1e-6)
    weighted = smoothed_cross_entropy(logits, np.array([0, -1]), row_weight=np.float32([2, 5]))
    assert_close(weighted, 2 * dropped, 1e-6)
