"""Inside a bfloat16 encoder, what must stay float32 does."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import Jaxpr

from ccafl_jax.models.clip import CLIP
from ccafl_jax.models.clip.transformer import Block
from ccafl_jax.models.layers import Compute, LayerNorm
from ccafl_jax.models.reid import ReIDModel
from tests.models.checkpoints import small_config, small_vit_config

WIDE = ("exp", "log", "rsqrt", "sqrt", "div", "reduce_sum", "reduce_max", "argmax", "pow")
"""Softmax, norms, means and powers are made of these."""


def equations(jaxpr: Jaxpr) -> Iterator:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def towers(config):
    return CLIP(config, compute=Compute(dtype=jnp.bfloat16), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("config", [small_config(), small_vit_config()], ids=["resnet", "vit"])
def test_reductions_and_softmax_are_float32(config):
    clip = towers(config)
    model = ReIDModel(clip.visual)
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    images = jnp.zeros((2, *config.vision.image_size, 3))
    ids = jnp.zeros((2, 5), int)

    def image(params, x):
        return nnx.merge(graphdef, params, stats, copy=True)(x, train=True)

    found = [
        *equations(jax.make_jaxpr(image)(params, images).jaxpr),
        *equations(jax.make_jaxpr(lambda i: clip.text.encode_ids(i, i[:, 0]))(ids).jaxpr),
    ]
    names = {e.primitive.name for e in found}
    assert {"exp", "rsqrt", "reduce_sum"} <= names
    narrow = [
        e
        for e in found
        if e.primitive.name in WIDE
        if any(v.aval.dtype == jnp.bfloat16 for v in e.invars)
    ]
    assert not narrow, narrow
    products = [e for e in found if e.primitive.name in ("dot_general", "conv_general_dilated")]
    halves = [e for e in products if all(v.aval.dtype == jnp.bfloat16 for v in e.invars)]
    assert len(halves) >= 12
    f, g = jax.eval_shape(image, params, images)
    assert f.dtype == g.dtype == jnp.float32


def test_layer_norm_survives_a_large_mean():
    """A one-pass variance would lose it: 1000 squared leaves no digits for a variance of 1."""
    x = 1000 + np.random.default_rng(0).normal(size=(4, 512))
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    norm = LayerNorm(512)
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected, atol=2e-3)


def blocks(causal: bool) -> tuple[Block, Block]:
    """The same block with plain and with fused attention."""
    made = [
        Block(
            64,
            heads=2,
            mlp_width=128,
            depth=1,
            activation="gelu",
            causal=causal,
            compute=Compute(dtype=jnp.bfloat16, attention=attention),
            rngs=nnx.Rngs(0),
        )
        for attention in ("plain", "cudnn")
    ]
    return made[0], made[1]


def attended(block: Block, x: jax.Array) -> list[np.ndarray]:
    """What the block's attention returns, and the gradient of its input."""
    graphdef, params = nnx.split(block)
    weight = jax.random.normal(jax.random.key(1), x.shape)

    def loss(x):
        y = nnx.merge(graphdef, params, copy=True).attend(x.astype(jnp.bfloat16))
        return jnp.sum(y.astype(jnp.float32) * weight), y

    gradient, y = jax.grad(loss, has_aux=True)(x)
    return [np.asarray(y, np.float32), np.asarray(gradient, np.float32)]


def check_fused_attention(causal: bool) -> None:
    x = jax.random.normal(jax.random.key(0), (3, 65, 64))  # an odd length, as of a class token
    plain, fused = (attended(block, x) for block in blocks(causal))
    for expected, found in zip(plain, fused, strict=True):
        np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.ci
@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_is_asked_for_the_same(causal, monkeypatch):
    """The kernel needs a GPU; what it is asked for is computed by its twin."""
    asked, twin = [], jax.nn.dot_product_attention

    def attention(*arrays, implementation, **options):
        asked.append(implementation)
        return twin(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    check_fused_attention(causal)
    assert asked == ["cudnn"]


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="a kernel of NVIDIA's GPUs")
@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_equals_the_plain_one(causal):
    check_fused_attention(causal)


def test_fused_attention_is_for_half_precision():
    with pytest.raises(ValueError, match="attention 'cudnn' is for half precision, not float32"):
        Compute(attention="cudnn")
    with pytest.raises(ValueError, match="choose one of"):
        Compute(attention="flash")
