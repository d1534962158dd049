import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.models.clip import (
    CLIPConfig,
    ModifiedResNet,
    ResNetConfig,
    TextConfig,
    weights,
)
from ccafl_jax.models.clip.naming import OPENAI
from ccafl_jax.models.layers import Compute
from ccafl_jax.models.named_tensors import export
from tests.golden_data import golden
from tests.models.checkpoints import close, to_nchw, to_nhwc, zero_tensors

TEXT = TextConfig(vocab=20, context=13, width=16, heads=2, layers=1)


def tower(config, tensors, *, stored=None, compute=None):
    """The image tower of the golden tensors, beside an empty text tower."""

    def whole(vision):
        return CLIPConfig(embed_dim=16, vision=vision, text=TEXT, activation="quick_gelu")

    others = zero_tensors(whole(config))
    return weights.clip_from_tensors(
        whole(config), {**others, **tensors}, stored=whole(stored or config), compute=compute
    ).visual


@pytest.fixture(scope="module")
def visual():
    config = ResNetConfig(layers=(1, 1, 1, 1), width=8, image_size=(64, 32), last_stride=1)
    return tower(config, golden("03_resnet_s0_weights"))


def evaluate(visual, x):
    """Both maps and the feature, compiled at once."""

    @jax.jit
    def run(x):
        third, fourth = visual.encode(x, train=False)
        return third, fourth, visual.project(fourth), visual(x, train=False)

    return run(x)


def test_evaluation_golden(visual):
    data = golden("03_resnet_s0")
    third, fourth, projected, called = evaluate(visual, to_nhwc(data["x"]))
    close(to_nchw(third), data["eval_x3"])
    close(to_nchw(fourth), data["eval_x4"])
    close(projected, data["eval_xproj"][0])
    close(called, data["eval_xproj"][0])


@pytest.fixture(scope="module")
def training(visual):
    data = golden("03_resnet_s0")
    graphdef, params, stats = nnx.split(visual, nnx.Param, nnx.BatchStat)

    @jax.jit
    def step(params, x):
        def loss(params, x):
            model = nnx.merge(graphdef, params, stats, copy=True)
            third, fourth = model.encode(x, train=True)
            tokens = model.attnpool.all_tokens(fourth).transpose(1, 0, 2)
            value = jnp.sum(third * to_nhwc(data["probe_x3"]))
            value += jnp.sum(fourth * to_nhwc(data["probe_x4"]))
            value += jnp.sum(tokens * data["probe_xproj"])
            aux = third, fourth, tokens, model.project(fourth), nnx.state(model, nnx.BatchStat)
            return value, aux

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    return step(params, to_nhwc(data["x"]))


def test_training_forward_golden(training):
    data = golden("03_resnet_s0")
    (loss, (third, fourth, tokens, projected, _)), _ = training
    close(to_nchw(third), data["train_x3"])
    close(to_nchw(fourth), data["train_x4"])
    close(tokens, data["train_xproj"])
    close(projected, data["train_xproj"][0])
    close(loss, data["train_loss"])


def test_running_statistics_golden(visual, training):
    data = golden("03_resnet_s0")
    (_, (*_, stats)), _ = training
    updated = nnx.merge(*nnx.split(visual, ...), copy=True)
    nnx.update(updated, stats)
    found = named(updated)
    names = [n for n in data if n.startswith("train_after.") and "num_batches" not in n]
    assert len(names) == 2 * 19
    for name in names:
        close(found[name.removeprefix("train_after.")], data[name])


def test_gradients_golden(visual, training):
    data = golden("03_resnet_s0")
    _, (grad_params, grad_x) = training
    close(to_nchw(grad_x), data["train_grad_x"])
    grads = nnx.merge(*nnx.split(visual, ...), copy=True)
    nnx.update(grads, grad_params)
    found = named(grads)
    names = [n for n in data if n.startswith("train_grad.")]
    assert len(names) == 12
    for name in names:
        close(found[name.removeprefix("train_grad.")], data[name])


def named(visual):
    """Parameters and statistics of a tower by their names in a file."""
    return export(nnx.Dict(visual=visual), OPENAI)


def test_mean_token_alone_gives_the_same_gradient(visual):
    feature_map = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2, 256)), jnp.float32)
    probe = jnp.asarray(np.random.default_rng(1).normal(size=(3, 16)), jnp.float32)
    graphdef, params = nnx.split(visual.attnpool)

    def ours(params, x):
        return jnp.sum(nnx.merge(graphdef, params)(x) * probe)

    def published(params, x):
        return jnp.sum(nnx.merge(graphdef, params).all_tokens(x)[:, 0] * probe)

    for a, b in zip(
        jax.tree.leaves(jax.jit(jax.grad(ours, (0, 1)))(params, feature_map)),
        jax.tree.leaves(jax.jit(jax.grad(published, (0, 1)))(params, feature_map)),
        strict=True,
    ):
        close(a, b)


def test_positions_are_resized_for_person_images():
    data = golden("03_build_model_256x128")
    config = ResNetConfig(layers=(1, 1, 1, 1), width=4, image_size=(256, 128), last_stride=1)
    stored = ResNetConfig(layers=(1, 1, 1, 1), width=4, image_size=(224, 224))
    visual = tower(config, golden("03_build_model_256x128_weights"), stored=stored)
    close(visual.attnpool.positional_embedding[...], data["posemb_new_16x8"])
    third, fourth, projected, _ = evaluate(visual, to_nhwc(data["x"]))
    close(to_nchw(third), data["eval_x3"])
    close(to_nchw(fourth), data["eval_x4"])
    close(projected, data["eval_xproj"][0])


def test_last_stride_halves_the_map():
    config = ResNetConfig(layers=(1, 1, 1, 1), width=4, image_size=(64, 32))

    def shapes(images):
        visual = ModifiedResNet(config, out_features=8, rngs=nnx.Rngs(0))
        third, fourth = visual.encode(images, train=False)
        return third, fourth, visual.project(fourth)

    third, fourth, feature = jax.eval_shape(shapes, jnp.zeros((2, 64, 32, 3)))
    assert third.shape == (2, 4, 2, 64)
    assert fourth.shape == (2, 2, 1, 128)
    assert feature.shape == (2, 8)


def test_bfloat16_inside_float32_outside():
    data = golden("03_resnet_s0")
    config = ResNetConfig(layers=(1, 1, 1, 1), width=8, image_size=(64, 32), last_stride=1)
    half = tower(config, golden("03_resnet_s0_weights"), compute=Compute(dtype=jnp.bfloat16))

    @jax.jit
    def both(x):
        feature_map = half.encode(x, train=False)[1]
        return feature_map, half.project(feature_map)

    feature_map, feature = both(to_nhwc(data["x"]))
    assert feature_map.dtype == jnp.bfloat16
    assert feature.dtype == jnp.float32
    difference = np.abs(feature - data["eval_xproj"][0]).max()
    assert 1e-5 < difference < 0.05 * np.abs(data["eval_xproj"][0]).max()


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_precision_reaches_every_product(precision):
    config = ResNetConfig(layers=(1, 1, 1, 1), width=4, image_size=(32, 32), last_stride=1)

    def run(x):
        compute = Compute(precision=precision)
        visual = ModifiedResNet(config, out_features=8, compute=compute, rngs=nnx.Rngs(0))
        return visual(x, train=False)

    jaxpr = str(jax.make_jaxpr(run)(jnp.zeros((1, 32, 32, 3))))
    products = jaxpr.count("dot_general[") + jaxpr.count("conv_general_dilated[")
    assert products > 20
    assert (jaxpr.count("HIGHEST") >= products) == (precision == "highest")
    assert ("HIGHEST" in jaxpr) == (precision == "highest")


def test_unknown_precision():
    with pytest.raises(ValueError, match="choose 'highest'"):
        Compute(precision="double")
