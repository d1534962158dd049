"""Two streams over one trunk: CCLNet's pooling and neck, its network, and a ViT's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.models.clip import ModifiedResNet, ResNetConfig, VisionTransformer, ViTConfig
from ccafl_jax.models.dual_stream import DualStream
from ccafl_jax.models.layers import BNNeck, cubic_mean, resize_positions
from ccafl_jax.models.reid import HeadConfig, ReIDConfig, ReIDModel, build_reid
from ccafl_jax.models.reid_weights import load_cclnet_tensors
from ccafl_jax.numerics import l2_normalize
from ccafl_jax.training.state import batch_stats_of, merge_model, split_model
from tests.golden_data import golden
from tests.models.checkpoints import close, to_nchw, to_nhwc

VISION = ResNetConfig(layers=(2, 1, 1, 1), width=4, image_size=(64, 32), last_stride=1)


def official_tensors():
    """The published names and weights of the small network."""
    data = golden("stage2_step_small", "cclnet")
    return {key.removeprefix("w0/"): x for key, x in data.items() if key.startswith("w0/")}


@functools.cache
def small():
    """The small network in published weights."""
    config = ReIDConfig(
        vision=VISION,
        embed_dim=32,
        activation="",
        heads=HeadConfig(pooling="cubic"),
        dual_stream=True,
    )
    model = nnx.eval_shape(lambda: build_reid(config))
    load_cclnet_tensors(model, official_tensors())
    return model


def images(modality):
    return to_nhwc(np.broadcast_to(golden("stage2_step_small", "cclnet")[modality], (8, 3, 64, 32)))


def test_pooling_and_neck_golden():
    data = golden("pool_neck", "cclnet")
    x = to_nhwc(data["x"])
    neck = BNNeck(12)
    neck.scale[...] = jnp.asarray(data["bn_weight"])
    close(cubic_mean(x), data["gem"])
    graphdef, params, stats = split_model(neck)

    def loss(x):
        model = merge_model(graphdef, params, stats)
        y = model(cubic_mean(x), train=True)
        return jnp.sum(y * data["upstream"]), (y, batch_stats_of(model))

    gradient, (y, after) = jax.grad(loss, has_aux=True)(x)
    close(y, data["feat_train"])
    close(to_nchw(gradient), data["grad_x"])
    close(after["mean"], data["running_mean"])
    close(after["var"], data["running_var"])
    again = merge_model(graphdef, params, after)
    close(l2_normalize(again(cubic_mean(x), train=False)), data["feat_eval_l2"])
    assert not np.asarray(gradient)[..., np.asarray(data["gem"]).max(0) < 1e-3].any()


@pytest.mark.parametrize("grid", [(18, 9), (16, 8)])
def test_positions_golden(grid):
    data = golden("pool_neck", "cclnet")
    found = resize_positions(data["posemb"], old_grid=(7, 7), new_grid=grid)
    np.testing.assert_allclose(found, data[f"posemb_{grid[0]}x{grid[1]}"], atol=2e-6)


@pytest.mark.parametrize(("modality", "number"), [("rgb", 0), ("ir", 1)])
def test_each_modality_golden(modality, number):
    data, model = golden("stage2_step_small", "cclnet"), small()
    x, kind = images(f"x_{modality}"), jnp.full(8, number)
    np.testing.assert_allclose(model.embed(x, kind), data[f"eval_feat_{modality}"], atol=2e-5)
    found = model.image_features(x, kind)
    np.testing.assert_allclose(found, data[f"eval_proj_{modality}"], atol=2e-5, rtol=1e-4)


def test_images_in_any_order_take_their_own_stem():
    model = small()
    both = jnp.concatenate([images("x_rgb"), images("x_ir")])
    order = np.random.default_rng(0).permutation(16)
    whole = model.embed(both, jnp.repeat(jnp.arange(2), 8))
    np.testing.assert_allclose(model.embed(both[order], jnp.asarray(order // 8)), whole[order],
                               atol=1e-6)  # fmt: skip
    other = model.embed(both, jnp.repeat(jnp.arange(2), 8)[::-1])
    assert np.abs(other - whole).max() > 1e-3


def test_halves_without_modalities():
    model = small()
    both = jnp.concatenate([images("x_rgb"), images("x_ir")])
    np.testing.assert_allclose(
        model.embed(both), model.embed(both, jnp.repeat(jnp.arange(2), 8)), atol=1e-6
    )
    with pytest.raises(ValueError, match="a batch of 15 images has no halves"):
        model.embed(both[1:])
    with pytest.raises(ValueError, match="statistics of a batch"):
        model(both, jnp.repeat(jnp.arange(2), 8), train=True)


def test_what_else_a_published_file_holds_is_told():
    tensors = official_tensors()
    tensors["prompt_learner.cls_ctx_rgb"] = np.zeros((395, 4, 512), np.float32)
    tensors["text_encoder.ln_final.weight"] = np.zeros(512, np.float32)
    tensors["visible_module.visible.layer1.0.conv1.weight"] = np.zeros((1, 1, 1, 1), np.float32)
    tensors["base_resnet.base.bn1.weight"] = np.zeros(2, np.float32)
    model = nnx.eval_shape(lambda: small())
    assert load_cclnet_tensors(model, tensors).keys() == {
        "shifts of the neck",
        "prompts",
        "text tower",
        "trunks of the stems",
        "stem of the trunk",
    }
    with pytest.raises(ValueError, match=r"1 \['thermal_module.thermal.bn1.bias'\] missing"):
        load_cclnet_tensors(
            model, {k: v for k, v in tensors.items() if k != "thermal_module.thermal.bn1.bias"}
        )
    with pytest.raises(ValueError, match=r"bottleneck\.bias is not 0"):
        load_cclnet_tensors(model, tensors | {"bottleneck.bias": np.ones(128, np.float32)})


def test_a_vit_has_two_patch_embeddings():
    config = ViTConfig(
        layers=2, width=8, heads=2, mlp_width=16, patch_size=8, image_size=(32, 16), stride=8
    )
    tower = VisionTransformer(config, out_features=4, activation="gelu", rngs=nnx.Rngs(0))
    model = ReIDModel(DualStream(tower), HeadConfig(pooling="class_token", joint=True))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 16, 3)), jnp.float32)
    kind = jnp.asarray([0, 1, 1, 0])
    before = model.embed(x, kind)
    np.testing.assert_allclose(before, model.embed(x, 1 - kind), atol=1e-6)  # copies, so far
    model.visual.infrared.kernel[...] *= 2
    after = model.embed(x, kind)
    np.testing.assert_array_equal(before[::3], after[::3])
    assert np.abs(before - after)[1:3].max() > 1e-3
    f, g = model(x, train=True)
    assert f.shape == (4, 12) and g.shape == (4, 4)


def test_the_description_tells_of_two_streams():
    sizes = ReIDConfig(
        vision=VISION,
        embed_dim=32,
        activation="",
        heads=HeadConfig(pooling="cubic"),
        dual_stream=True,
    )
    assert ReIDConfig.from_json(sizes.to_json()) == sizes
    assert sizes.kinds == 2
    tower = ModifiedResNet(VISION, out_features=32, rngs=nnx.Rngs(0))
    assert ReIDModel(tower, HeadConfig(pooling="cubic")).kinds == 0
