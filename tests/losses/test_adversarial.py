"""GID and ICAL against reference values and their limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccafl_jax import losses
from ccafl_jax.losses import cosine_logits, ical, ical_pos_mask
from ccafl_jax.numerics import l2_normalize
from tests.comparison import GRADIENT_TOLERANCE, VALUE_TOLERANCE, assert_close, typed
from tests.golden_data import case_group, golden

gid = jax.jit(losses.gid)
ical_logits = jax.jit(losses.ical_logits)
ical_from_cosines = jax.jit(losses.ical_from_cosines)
ical_value_and_gradient = jax.jit(jax.value_and_grad(losses.ical_from_cosines))


@functools.partial(jax.jit, static_argnames="hold_classifier")
@functools.partial(jax.value_and_grad, argnums=(0, 1))
def ical_of_raw_features(feat, W, y, pi, cam_of, options, *, hold_classifier):
    x = l2_normalize(feat)
    if hold_classifier:
        return ical(x, y, W, pi, cam_of, **options)
    return losses.ical_from_cosines(cosine_logits(x, W), y, pi, cam_of, **options)


def _resolved(case, group):
    """Inputs of a case, those of the case it refers to first."""
    inputs = dict(case["inputs"])
    if "ref" in inputs:
        name = inputs.pop("ref")
        other = next(c for c in case_group(group) if c["id"] == name)
        inputs = {**other["inputs"], **inputs}
    return inputs


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", case_group("gid"), ids=lambda case: case["id"])
def test_gid_cases(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        given, expected = typed(_resolved(case, "gid"), dtype), case["expected"]

        @jax.jit
        def objective(W, f):
            return gid(f, given["y"], W, s=given.get("s", 16.0))

        loss, (grad, grad_f) = jax.value_and_grad(objective, argnums=(0, 1))(given["W"], given["f"])
        if "loss" in expected:
            assert_close(loss, expected["loss"], VALUE_TOLERANCE[dtype])
        if "grad_W" in expected:
            assert_close(grad, expected["grad_W"], GRADIENT_TOLERANCE)
        tangent = np.abs(np.sum(np.asarray(grad) * given["W"], axis=1)).max()
        assert tangent <= expected.get("bound", 1e-6) * (1 if dtype == "float64" else 10)
        assert not np.any(grad_f)


def test_gid_published():
    data = golden("08_ce_gid_s0")
    x, y, weight = data["x"], data["labels"], data["weight"]
    assert_close(cosine_logits(x, weight), data["classifier_logits"], 1e-5)
    assert_close(cosine_logits(2.5 * x, weight), data["x25_logits"], 1e-5)
    grads = jax.jit(jax.value_and_grad(gid, argnums=(0, 2)))
    loss, (grad_x, grad) = grads(x, y, weight)
    assert_close(loss, data["gid_loss"], 1e-5)
    assert_close(grad, data["gid_grad_weight"], 1e-5)
    assert np.any(data["gid_grad_x"]) and not np.any(grad_x)
    loss, (_, grad) = grads(2.5 * x, y, weight)
    assert_close(loss, data["x25_gid_loss"], 1e-5)
    assert_close(grad, data["x25_grad_weight"], 1e-5, scale=np.abs(data["x25_grad_weight"]).max())
    # With the identity as classifier the features are the cosines.
    loss = gid(data["classifier_logits"], y, np.eye(9, dtype=np.float32), margin=0.2)
    assert_close(loss, data["arc_margin02_loss"], 1e-5)


def test_gid_rows_and_columns_left_out():
    data = golden("08_ce_gid_s0")
    x, y, weight = data["x"], data["labels"], data["weight"]
    rows = y < 5
    part = gid(x, y, weight, rows, class_valid=np.arange(9) < 5)
    assert_close(part, gid(x[rows], y[rows], weight[:5]), 1e-6)
    assert abs(part - gid(x, y, weight)) > 1e-3


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", case_group("ical"), ids=lambda case: case["id"])
def test_ical_cases(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        given, expected = typed(_resolved(case, "ical"), dtype), case["expected"]
        y, cam_of, pi = given["y"], given["cam_of"], given.get("clus_of")
        tolerance = VALUE_TOLERANCE[dtype]
        if "pos_mask" in expected:
            assert np.array_equal(ical_pos_mask(y, pi, cam_of), expected["pos_mask"])
        if "cos" not in given:
            return
        logit_options = {"s": given["s"], "m": given["m"], "t": given["tau"]}
        if "value" in expected:
            logits = ical_logits(given["cos"], y, cam_of, **logit_options)
            assert_close(logits, [expected["value"]], tolerance)
            return

        @jax.jit
        @jax.value_and_grad
        def objective(cos):
            return ical_from_cosines(
                cos, y, pi, cam_of, given.get("valid"), eps=given["eps"], **logit_options
            )

        loss, grad = objective(given["cos"])
        assert loss.dtype == dtype
        assert_close(loss, expected["loss"], tolerance)
        assert np.all(np.isfinite(grad))
        if "grad_cos" in expected:
            assert_close(grad, expected["grad_cos"], GRADIENT_TOLERANCE)
        if expected["loss"] == 0:
            assert loss == 0 and not np.any(grad)
        for row, value in enumerate(expected.get("per_row_first4", ())):
            only = np.arange(len(y)) == row
            alone = ical_from_cosines(
                given["cos"], y, pi, cam_of, only, eps=given["eps"], **logit_options
            )
            assert_close(alone, value, tolerance)


def _world(data):
    """Classes of the published cases: three of each of three cameras."""
    return data["g_labels"], data["pseudo_labels"], np.repeat(np.arange(3), 3)


@pytest.mark.parametrize("dataset", ["market1501", "dukemtmc", "msmt17"])
def test_ical_published(dataset):
    data = golden(f"09_ical_{dataset}_s0")
    y, pi, cam_of = _world(data)
    rows = data["selected_idx"]
    options = {
        "s": float(data["scale"]),
        "eps": float(data["epsilon"]),
        "m": float(data["margin"]),
        "t": float(data["tau"]),
    }
    assert np.array_equal(data["cam2accu"].argmax(0), cam_of)
    assert np.array_equal(data["targets"], y[rows])
    assert np.array_equal(ical_pos_mask(y[rows], pi, cam_of), data["adv_mask"] > 0)
    logit_options = {k: v for k, v in options.items() if k != "eps"}
    logits = ical_logits(data["logits"], y[rows], cam_of, **logit_options)
    assert_close(logits, data["effective_scaled_logits"], 1e-5)

    def run(cos, eps, m, t):
        return ical_value_and_gradient(cos, y[rows], pi, cam_of, s=options["s"], eps=eps, m=m, t=t)

    def check(result, prefix, suffix="_logits", factor=1.0):
        loss, grad = result
        reference = data[f"{prefix}_grad{suffix}"]
        assert_close(factor * loss, data[f"{prefix}_loss"], 1e-5)
        assert_close(factor * grad, reference, 1e-5, scale=max(1, np.abs(reference).max()))

    m, t = options["m"], options["t"]
    check(run(data["logits"], options["eps"], m, t), "arc_adv")
    check(run(data["uniform_logits"], options["eps"], m, t), "uniform_arc_adv", "")
    # Without margin and inflation the weights are the multi-positive ones of CAL ...
    check(run(data["logits"], 0.1, 0.0, 0.0), "mcb")
    check(run(data["logits"], 0.8, 0.0, 0.0), "mcb_eps08")
    # ... and its variant without the identity term is eps times the loss at eps = 1.
    check(run(data["logits"], 1.0, 0.0, 0.0), "cal", factor=0.1)
    check(run(data["logits"], 1.0, 0.0, 0.0), "cal_eps08", factor=0.8)

    for hold_classifier in (True, False):  # all 24 rows: the outliers drop out by themselves
        loss, (grad, grad_w) = ical_of_raw_features(
            data["feat"],
            data["classifier_weight"],
            y,
            pi,
            cam_of,
            options,
            hold_classifier=hold_classifier,
        )
        assert_close(loss, data["arc_adv_loss"], 1e-5)
        assert_close(grad, data["arc_adv_grad_feat"], 1e-5)
        if hold_classifier:
            assert not np.any(grad_w)
        else:
            assert_close(grad_w, data["arc_adv_grad_classifier_weight"], 1e-5)


def test_ical_limits():
    rng = np.random.default_rng(3)
    cos = np.float32(rng.uniform(-0.9, 0.9, size=(4, 6)))
    y = np.array([0, 2, 3, 4])
    cam_of = np.array([0, 0, 1, 1, 2, 2])
    own_clusters = np.arange(6)  # every class its own cluster: the own class is the one positive
    for eps in (0.0, 0.3, 1.0):
        loss = ical_from_cosines(cos, y, own_clusters, cam_of, eps=eps, m=0.0, t=0.0)
        log_p = np.asarray(jax.nn.log_softmax(16 * cos))
        assert_close(loss, -np.mean(log_p[np.arange(4), y]), 1e-5)
    pi = np.array([0, 0, 0, 1, 1, -1])
    grad = ical_value_and_gradient(cos, y, pi, cam_of, m=0.0, t=0.0)[1]
    assert np.abs(np.sum(grad, axis=1)).max() < 1e-5 and np.abs(grad).max() > 0.1
    # Padded classes: columns of camera -1 that are not in use.
    padded_cos = np.concatenate([cos, np.full((4, 2), 0.99, np.float32)], axis=1)
    padded = ical_from_cosines(
        padded_cos,
        y,
        np.append(pi, [-1, -1]),
        np.append(cam_of, [-1, -1]),
        class_valid=np.arange(8) < 6,
    )
    assert_close(padded, ical_from_cosines(cos, y, pi, cam_of), 1e-6)


@pytest.mark.parametrize("value", [1.0, -1.0, 1.5])
def test_ical_gradient_is_finite_at_the_ends(value):
    pi, cam_of = np.array([0, 0, 0]), np.array([0, 1, 2])
    for column in range(3):
        cos = np.full((1, 3), 0.2, np.float32)
        cos[0, column] = value
        grad = ical_value_and_gradient(jnp.asarray(cos), np.array([0]), pi, cam_of)[1]
        assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_the_camera_adversary_is_a_classification_with_its_gradient_reversed(strength):
    rng = np.random.default_rng(0)
    f, head = jnp.asarray(rng.normal(size=(6, 4))), jnp.asarray(rng.normal(size=(3, 4)))
    f, camera = l2_normalize(f), jnp.asarray([0, 1, 2, 0, 1, 1])
    valid = jnp.asarray([True] * 5 + [False])

    def plain(f):
        log_p = jax.nn.log_softmax(16 * f @ l2_normalize(head).T)[jnp.arange(6), camera]
        return -jnp.sum(jnp.where(valid, log_p, 0)) / 5

    def reversed_(f, head):
        return losses.camera_adversary(f, camera, head, valid, strength=strength)

    value, slope = jax.value_and_grad(plain)(f)
    found, (of_f, of_head) = jax.value_and_grad(reversed_, argnums=(0, 1))(f, head)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(of_f, -strength * slope, rtol=1e-4, atol=1e-6)
    assert not np.any(of_head)
