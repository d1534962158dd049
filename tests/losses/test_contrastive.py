"""SupCon and the cluster contrast against reference values and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccafl_jax import losses
from tests.comparison import GRADIENT_TOLERANCE, VALUE_TOLERANCE, assert_close, typed
from tests.golden_data import case_group, golden

supcon = jax.jit(losses.supcon)
supcon_cam = jax.jit(losses.supcon_cam, static_argnames=("scope", "reduce"))
inter_contrast = jax.jit(losses.inter_contrast)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", case_group("supcon"), ids=lambda case: case["id"])
def test_supcon_cases(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        given, expected = typed(case["inputs"], dtype), case["expected"]
        img, txt, y = jnp.asarray(given["img"]), jnp.asarray(given["txt"]), given["y"]
        cam = given.get("cam", np.zeros_like(y))
        tolerance = VALUE_TOLERANCE[dtype]

        @jax.jit
        def both(txt):
            i2t, t2i = supcon(img, txt, y, y), supcon(txt, img, y, y)
            return supcon_cam(img, txt, y, cam), (i2t, t2i)

        (loss, (i2t, t2i)), grad = jax.value_and_grad(both, has_aux=True)(txt)
        assert loss.dtype == dtype
        if "cam" in given:
            assert_close(loss, expected["loss"], tolerance)
        elif "loss_i2t" in expected:
            assert_close(loss, expected["loss"], tolerance)
            assert_close(i2t, expected["loss_i2t"], tolerance)
            assert_close(t2i, expected["loss_t2i"], tolerance)
            assert_close(grad, expected["grad_txt_of_sum"], GRADIENT_TOLERANCE)
        else:  # closed forms of one direction
            assert_close(i2t, expected["loss"], tolerance)


@pytest.mark.parametrize("variant", ["general", "large", "rect"])
def test_supcon_published(variant):
    data = golden("01_supcon_s0")
    scale = data["large_scale"] if variant == "large" else np.float32(1)
    image = data["image_features"] * scale
    text = data["class_text"] if variant == "rect" else data["text_features"] * scale
    y = data["labels"]
    text_y = np.arange(len(text)) if variant == "rect" else y
    gradients = jax.jit(jax.value_and_grad(supcon, argnums=(0, 1)))
    for name, (loss, (one, two)) in {
        "i2t": gradients(image, text, y, text_y),
        "t2i": gradients(text, image, text_y, y),
    }.items():
        grad_image, grad_text = (one, two) if name == "i2t" else (two, one)
        assert_close(loss, data[f"{variant}_{name}_loss"], 1e-5)
        for value, key in ((grad_image, "image"), (grad_text, "text")):
            reference = data[f"{variant}_{name}_grad_{key}"]
            # Logits of several hundred carry rounding of 1e-5 into the probabilities.
            tolerance = 2e-4 if variant == "large" else 1e-5
            assert_close(value, reference, tolerance, scale=np.abs(reference).max())


def test_supcon_per_camera_published():
    data = golden("01_supcon_s0")
    y, cam = data["labels"], data["cams"]

    @jax.jit
    @jax.value_and_grad
    def objective(table):
        return supcon_cam(data["image_features"], table[y], y, cam)

    loss, grad = objective(data["class_text"])
    assert_close(loss, data["percam_loss"], 1e-5)
    assert_close(loss, data["percam_terms"][:, 1:].sum(), 1e-5)
    assert_close(grad, data["percam_grad_class_text"], 1e-5)


def test_scope_batch_is_the_general_form_and_differs():
    data = golden("01_supcon_s0")
    image, text, y = data["image_features"], data["text_features"], data["labels"]
    whole = supcon_cam(image, text, y, data["cams"], scope="batch")
    assert_close(whole, data["general_i2t_loss"] + data["general_t2i_loss"], 1e-5)
    assert abs(whole - supcon_cam(image, text, y, data["cams"])) > 0.1


def test_anchor_without_positive_adds_nothing():
    image = np.float32([[1, 0], [0, 1]])
    alone = supcon(image, image, np.array([0, 7]), np.array([0, 0]))
    assert_close(alone, supcon(image[:1], image, np.array([0]), np.array([0, 0])), 1e-6)


def test_unknown_option():
    with pytest.raises(ValueError, match="scope is 'cam'; expected one of 'camera', 'batch'"):
        supcon_cam(
            np.ones((1, 2)), np.ones((1, 2)), np.zeros(1, int), np.zeros(1, int), scope="cam"
        )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", case_group("inter"), ids=lambda case: case["id"])
def test_inter_cases(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        given, expected = typed(case["inputs"], dtype), case["expected"]

        @jax.jit
        @jax.value_and_grad
        def objective(f):
            return inter_contrast(f, given["lab"], given["cent"], tau=given["tau"])

        loss, grad = objective(given["f"])
        assert_close(loss, expected["loss"], VALUE_TOLERANCE[dtype])
        assert np.all(np.isfinite(grad))
        if "grad_f" in expected:
            assert_close(grad, expected["grad_f"], GRADIENT_TOLERANCE)


def test_padded_clusters_do_not_count():
    rng = np.random.default_rng(0)
    f, mu = rng.normal(size=(6, 5)), rng.normal(size=(7, 5))
    lab = np.array([0, 1, 2, -1, 2, 1])
    used = np.arange(7) < 3
    loss = inter_contrast(np.float32(f), lab, np.float32(mu), used)
    assert_close(loss, inter_contrast(np.float32(f), lab, np.float32(mu[:3])), 1e-6)
    assert abs(loss - inter_contrast(np.float32(f), lab, np.float32(mu))) > 1e-3
