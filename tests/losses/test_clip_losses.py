"""The losses of clips against reference values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccafl_jax import losses
from tests.golden_data import golden


def test_classification():
    data = golden("ce_label_smooth", "tfclip")
    target = jnp.asarray(data["in/target"])
    loss, gradient = jax.value_and_grad(losses.smoothed_cross_entropy)(
        jnp.asarray(data["in/logits"]), target
    )
    np.testing.assert_allclose(loss, data["out/loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, data["grad/logits"], atol=1e-6)


@pytest.mark.parametrize("margin, name", [(0.3, "m03"), (None, "soft")])
def test_triplets(margin, name):
    data = golden("triplet", "tfclip")
    target = jnp.asarray(data["in/target"])
    loss, gradient = jax.value_and_grad(losses.batch_triplet)(
        jnp.asarray(data["in/feat"]), target, margin=margin
    )
    np.testing.assert_allclose(loss, data[f"out/loss_{name}"], rtol=1e-5)
    np.testing.assert_allclose(gradient, data[f"grad/feat_{name}"], atol=1e-5)


def test_losses_of_clips_add_up():
    rng = np.random.default_rng(0)
    target = jnp.array([0, 0, 1, 1])
    features = {"a": rng.normal(size=(4, 6)), "b": rng.normal(size=(4, 3))}
    logits = {name: rng.normal(size=(4, 5)) for name in ("a", "b", "memory")}
    logits["frame"] = rng.normal(size=(12, 5))
    found = losses.clip_losses(features, logits, target, eps=0.2, margin=0.5)
    expected = {
        "id": sum(losses.smoothed_cross_entropy(logits[name], target, eps=0.2) for name in "ab"),
        "triplet": sum(losses.batch_triplet(features[name], target, margin=0.5) for name in "ab"),
        "memory": losses.smoothed_cross_entropy(logits["memory"], target, eps=0.2),
        "frame": np.mean(
            [
                losses.smoothed_cross_entropy(logits["frame"][f::3], target, eps=0.2)
                for f in range(3)
            ]
        )
        / 3,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def test_parts_that_are_left_out_have_no_loss():
    x = np.eye(4)
    found = losses.clip_losses({"a": x}, {"a": x}, jnp.arange(4) // 2)
    assert found.keys() == {"id", "triplet"}
