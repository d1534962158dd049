"""ICDL against reference values and its limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccafl_jax import losses
from ccafl_jax.numerics import l2_normalize
from tests.comparison import GRADIENT_TOLERANCE, VALUE_TOLERANCE, assert_close, typed
from tests.golden_data import case_group, golden

icdl = jax.jit(losses.icdl, static_argnames="reduce")


@functools.partial(jax.jit, static_argnames="reduce")
def _gradient(f, given, w, reduce):
    def objective(f):
        memory = (given["cent"], given["inst"], given["cam_of"])
        options = {"tau": given["tau"], "w": w, "reduce": reduce}
        return losses.icdl(f, given["y"], *memory, given.get("valid"), **options)

    return jax.value_and_grad(objective, has_aux=True)(f)


def _run(given, *, w, reduce="sum_cam_mean"):
    labels = ("y", "cent", "inst", "cam_of", "valid", "tau")
    return _gradient(given["f"], {k: given[k] for k in labels if k in given}, w, reduce)


def _case(name):
    return next(case for case in case_group("icdl") if case["id"] == name)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "case", [c for c in case_group("icdl") if "f" in c["inputs"]], ids=lambda case: case["id"]
)
def test_icdl_cases(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        given, expected = typed(case["inputs"], dtype), case["expected"]
        tolerance = VALUE_TOLERANCE[dtype]
        (loss, terms), grad = _run(given, w=given.get("w", 0.6))
        assert loss.dtype == dtype
        assert_close(loss, expected.get("loss", expected.get("value")), tolerance)
        if "centroid_term" in expected:
            assert_close(terms["cen"], expected["centroid_term"], tolerance)
            assert_close(terms["ins"], expected["instance_term"], tolerance)
        if "loss_w0" in expected:
            assert_close(_run(given, w=0.0)[0][0], expected["loss_w0"], tolerance)
            assert_close(_run(given, w=1.0)[0][0], expected["loss_w1"], tolerance)
        if "grad_f" in expected:
            assert_close(grad, expected["grad_f"], GRADIENT_TOLERANCE)
        if expected.get("loss") == 0:
            assert loss == 0 and np.all(np.asarray(grad) == 0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_icdl_reductions_case(dtype):
    case = _case("d11_reduction")
    with jax.enable_x64(dtype == "float64"):
        given = typed(_case(case["inputs"]["ref"])["inputs"], dtype)
        for reduce in ("sum_cam_mean", "mean_cam_mean", "batch_mean"):
            terms = _run(given, w=0.6, reduce=reduce)[0][1]
            expected = case["expected"][f"centroid_term_{reduce}"]
            assert_close(terms["cen"], expected, VALUE_TOLERANCE[dtype])


def test_icdl_published():
    data = golden("06_cm_hybrid_v2_s0")
    classes = int(data["num_classes"])
    w = float(data["centroid_weight"])

    @jax.jit
    def objective(x, memory, w):
        inst = jnp.swapaxes(memory[classes:].reshape(-1, classes, x.shape[1]), 0, 1)
        cam_of = jnp.zeros(classes, jnp.int32)
        return icdl(
            l2_normalize(x),
            data["targets"],
            memory[:classes],
            inst,
            cam_of,
            tau=float(data["temp"]),
            w=w,
        )

    run = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (_, terms), grad = run(data["x"], data["memory"], w)
    assert_close(terms["cen"], data["loss_centroid"], 1e-5)
    assert_close(terms["ins"], data["loss_instance"], 1e-5)
    assert_close(grad, data["weighted_grad_x"], 1e-5)
    assert_close(run(data["x"], data["memory"], 1.0)[1], data["centroid_grad_x"], 1e-5)
    assert_close(run(data["x"], data["memory"], 0.0)[1], data["instance_grad_x"], 1e-5)
    (_, terms), grad = run(data["x_step2"], data["memory_after"], w)
    assert_close(terms["cen"], data["step2_loss_centroid"], 1e-5)
    assert_close(terms["ins"], data["step2_loss_instance"], 1e-5)
    assert_close(grad, data["step2_weighted_grad_x"], 1e-5)


def test_unused_slots_and_limits():
    given = typed(_case("d6_random_two_cameras")["inputs"], "float32")
    f, y, cent, inst, cam_of = (given[k] for k in ("f", "y", "cent", "inst", "cam_of"))
    used = np.zeros(inst.shape[:2], bool)
    used[:, :2] = True
    ragged = icdl(f, y, cent, inst, cam_of, instance_valid=used)
    short = icdl(f, y, cent, inst[:, :2], cam_of)
    assert_close(ragged[0], short[0], 1e-6)
    assert abs(ragged[0] - icdl(f, y, cent, inst, cam_of)[0]) > 1e-3
    # One slot that equals the centroid: both terms are the same number.
    terms = icdl(f, y, cent, cent[:, None], cam_of)[1]
    assert_close(terms["cen"], terms["ins"], 1e-6)
    # A class without an instance leaves the instance term, not the centroid term.
    used[y[0]] = False
    without = icdl(f, y, cent, inst, cam_of, instance_valid=used)
    assert_close(without[1]["cen"], ragged[1]["cen"], 1e-6)
    assert 0 <= without[1]["ins"] < 100
    # A padded class, of camera -1, is seen by nobody.
    padded = icdl(
        f,
        y,
        np.concatenate([cent, cent[:1]]),
        np.concatenate([inst, inst[:1]]),
        np.append(cam_of, -1),
    )
    assert_close(padded[0], icdl(f, y, cent, inst, cam_of)[0], 1e-6)


def test_memory_gets_no_gradient():
    given = typed(_case("d6_random_two_cameras")["inputs"], "float32")
    grads = jax.jit(
        jax.grad(lambda c, i: icdl(given["f"], given["y"], c, i, given["cam_of"])[0], (0, 1))
    )(given["cent"], given["inst"])
    assert not np.any(grads[0]) and not np.any(grads[1])
