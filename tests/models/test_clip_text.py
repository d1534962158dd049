import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccafl_jax.models import prompts
from ccafl_jax.models.clip import CLIPConfig, ResNetConfig, TextConfig, weights
from ccafl_jax.models.clip.transformer import activate
from ccafl_jax.models.layers import Compute
from tests.golden_data import golden
from tests.models.checkpoints import zero_tensors

SLOT = 5  # "X" in the tiny vocabulary of the vectors


def golden_config(activation="quick_gelu"):
    return CLIPConfig(
        embed_dim=24,
        vision=ResNetConfig(layers=(1, 1, 1, 1), width=4, image_size=(32, 32), last_stride=1),
        text=TextConfig(vocab=512, context=77, width=32, heads=4, layers=2),
        activation=activation,
    )


def golden_text(activation="quick_gelu", compute=None):
    config = golden_config(activation)
    others = zero_tensors(config)
    tensors = {**others, **golden("02_text_s0_weights")}
    return weights.clip_from_tensors(config, tensors, compute=compute).text


@pytest.fixture(scope="module")
def text():
    return golden_text()


def template(prefix_tokens):
    ids = golden("02_text_s0")["tiny_tokens"][0]
    return prompts.template_from_ids(ids[:12], slot=SLOT, prefix_tokens=prefix_tokens)


def features(text, cls_ctx, prefix_tokens):
    form = template(prefix_tokens)
    frozen = prompts.template_embeddings(text.token_embedding[...], form)
    return text(prompts.assemble(frozen, form, cls_ctx[golden("02_text_s0")["labels"]]))


@pytest.mark.parametrize("name,prefix", [("reid", 4), ("ics_market", 5), ("ics_duke", 6)])
def test_prompt_features_golden(text, name, prefix):
    data = golden("02_text_s0")
    found = jax.jit(lambda ctx: features(text, ctx, prefix))(data["cls_ctx"])
    np.testing.assert_allclose(found, data[f"{name}_text_features"], atol=1e-5)


def test_prompt_features_in_float64():
    data = golden("02_text_s0")
    with jax.enable_x64():
        text = golden_text(compute=Compute(param_dtype=jnp.float64))
        found = jax.jit(lambda ctx: features(text, ctx, 4))(data["cls_ctx"].astype(np.float64))
        assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, data["reid_text_features"], atol=1e-5)


def test_later_positions_do_not_matter(text):
    data = golden("02_text_s0")
    full = jnp.asarray(data["ics_market_prompts"])  # [6, 77, 32]
    eot = jnp.full(6, 11)
    run = jax.jit(lambda x: text(x, eot[: x.shape[0]]))
    for length in (12, 16, 40):
        expected = data[f"truncated_{length}_text_features"]
        np.testing.assert_allclose(run(full[:, :length]), expected, atol=1e-5)
    np.testing.assert_allclose(text(full[:, :12]), run(full), atol=1e-5)


def supcon(a, b, labels):
    """Image-text contrast as the vectors take it: rows a against columns b, raw dot products."""
    z = a @ b.T
    same = labels[:, None] == labels
    positive = jnp.sum(jnp.where(same, z, 0), 1) / jnp.sum(same, 1)
    return jnp.mean(jax.nn.logsumexp(z, axis=1) - positive)


@pytest.mark.parametrize("name,prefix", [("reid", 4), ("ics_market", 5)])
def test_gradient_to_the_prompts_golden(text, name, prefix):
    data = golden("02_text_s0")
    images = jnp.asarray(data[f"{name}_image_features"])
    labels, cams = data["labels"], data[f"{name}_cams"]

    def loss(cls_ctx):
        t = features(text, cls_ctx, prefix)
        total = 0.0
        for cam in np.unique(cams):
            rows = np.flatnonzero(cams == cam)
            total += supcon(images[rows], t[rows], labels[rows])
            total += supcon(t[rows], images[rows], labels[rows])
        return total

    value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(data["cls_ctx"]))
    expected = data[f"{name}_grad_cls_ctx"]
    np.testing.assert_allclose(value, data[f"{name}_loss"], rtol=1e-5)
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-5 * scale)
    absent = np.setdiff1d(np.arange(len(expected)), labels)
    np.testing.assert_array_equal(grad[absent], 0)


def test_encode_ids_golden(text):
    data = golden("02_text_s0")
    ids = data["encode_text_ids"]
    eot = np.argmax(ids, axis=1)
    assert eot.min() == 2 and eot.max() == 76
    found = jax.jit(text.encode_ids)(jnp.asarray(ids), jnp.asarray(eot))
    np.testing.assert_allclose(found, data["encode_text_out"], atol=1e-5)


def test_activation_changes_the_feature(text):
    data = golden("02_text_s0")
    other = features(golden_text("gelu"), data["cls_ctx"], 4)
    assert np.abs(other - data["reid_text_features"]).max() > 1e-3
    x = jnp.linspace(-4, 4, 9)
    erf = jax.scipy.special.erf(x / np.sqrt(2))
    np.testing.assert_allclose(activate(x, kind="gelu"), x * (1 + erf) / 2, atol=1e-6)
    np.testing.assert_allclose(
        activate(x, kind="quick_gelu"), x / (1 + np.exp(-1.702 * x)), atol=1e-6
    )


def test_too_many_tokens(text):
    with pytest.raises(ValueError, match="78 tokens exceed the 77 positions"):
        text(jnp.zeros((1, 78, 32)))
