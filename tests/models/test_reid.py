import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.models.clip import ModifiedResNet, ResNetConfig
from ccafl_jax.models.layers import BatchNorm, Compute
from ccafl_jax.models.reid import ReIDModel, set_bn_group
from ccafl_jax.models.reid_weights import load_reid_tensors
from tests.golden_data import golden
from tests.models.checkpoints import close, to_nchw, to_nhwc

CONFIG = ResNetConfig(layers=(1, 1, 1, 1), width=8, image_size=(64, 32), last_stride=1)


def build(*, dtype=jnp.float32, bn_group=0, tensors=None, remat=False):
    """A model with the published weights of the vectors."""

    def make():
        compute = Compute(param_dtype=dtype, remat=remat)
        visual = ModifiedResNet(CONFIG, out_features=16, compute=compute, rngs=nnx.Rngs(0))
        return ReIDModel(visual, bn_group=bn_group)

    model = nnx.eval_shape(make)
    load_reid_tensors(model, tensors or official_tensors())
    return model


def official_tensors():
    """The wrapper's checkpoint under the names it was published with."""
    data = golden("03_wrapper_s0")
    tower = golden("03_resnet_s0_weights")
    tensors = {
        name.replace("visual.", "image_encoder."): value
        for name, value in tower.items()
        if name.startswith("visual.")
    }
    tensors["gap.p"] = data["gap_p"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensors[f"bottleneck.{name}"] = data[f"bottleneck_{name}"]
        tensors[f"bottleneck_proj.{name}"] = np.ones(16, np.float32)
    tensors["bottleneck.num_batches_tracked"] = np.asarray(0)
    return tensors


@pytest.fixture(scope="module")
def model():
    return build()


def test_evaluation_golden(model):
    data = golden("03_wrapper_s0")

    @jax.jit
    def everything(x):
        return {
            "eval_x4": jnp.transpose(model.visual.encode(x, train=False)[1], (0, 3, 1, 2)),
            "eval_gem": model.pooled(x),
            "eval_feature": model.embed(x),
            "eval_get_image": model.image_features(x),
            "both": model(x, train=False),
        }

    found = everything(to_nhwc(data["x"]))
    f, g = found.pop("both")
    for name, value in found.items():
        close(value, data[name])
    close(f, data["eval_feature"])
    close(g, data["eval_get_image"])


@functools.cache
def training_step(dtype, remat=False):
    """A jitted step of gradient descent, its arguments, and the list of its traces."""
    data = golden("03_wrapper_s0")
    graphdef, params, stats = nnx.split(build(dtype=dtype, remat=remat), nnx.Param, nnx.BatchStat)
    traces = []

    @jax.jit
    def step(params, stats, x):
        traces.append(1)

        def loss(params, x):
            model = nnx.merge(graphdef, params, stats, copy=True)
            f, g = model(x, train=True)
            value = jnp.sum(f * data["probe_feature"]) + jnp.sum(g * data["probe_proj"])
            return value, (f, g, nnx.state(model, nnx.BatchStat))

        found, grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads[0]), found, grads

    return step, (params, stats, to_nhwc(data["x"]).astype(dtype)), traces


def check_training(dtype, tolerance, remat=False):
    data = golden("03_wrapper_s0")
    step, arguments, _ = training_step(dtype, remat)
    _, (value, (f, g, stats)), (grads, grad_x) = step(*arguments)
    stats, grads = nnx.to_pure_dict(stats), nnx.to_pure_dict(grads)
    assert f.dtype == grad_x.dtype == dtype
    close(f, data["train_feature"])
    close(g, data["train_proj"])
    close(value, data["train_loss"], 1e-5)
    close(stats["neck"]["mean"], data["train_after_bottleneck_running_mean"])
    close(stats["neck"]["var"], data["train_after_bottleneck_running_var"])
    close(grads["gem"]["p"], data["train_grad_gap_p"][0], tolerance)
    close(grads["neck"]["scale"], data["train_grad_bottleneck_weight"], tolerance)
    close(to_nchw(grad_x), data["train_grad_x"], tolerance)


def test_training_golden():
    check_training(jnp.float32, 1e-5)


def test_training_golden_rematerialised():
    """The same values, statistics and gradients, with blocks computed twice."""
    check_training(jnp.float32, 1e-5, remat=True)
    step, arguments, _ = training_step(jnp.float32, True)
    plain, others, _ = training_step(jnp.float32)
    jaxprs = [str(jax.make_jaxpr(f)(*a)) for f, a in ((step, arguments), (plain, others))]
    assert "remat" in jaxprs[0] and "remat" not in jaxprs[1]
    convolutions = [jaxpr.count("conv_general_dilated[") for jaxpr in jaxprs]
    assert convolutions[0] > convolutions[1]


def test_training_golden_in_float64():
    with jax.enable_x64():
        check_training(jnp.float64, 1e-5)


def test_the_shift_of_the_neck_is_no_parameter(model):
    neck = nnx.to_pure_dict(nnx.state(model, nnx.Param))["neck"]
    assert set(neck) == {"scale"}
    tensors = official_tensors()
    tensors["bottleneck.bias"] = tensors["bottleneck.bias"] + 1
    with pytest.raises(ValueError, match="bias is not 0"):
        build(tensors=tensors)


def test_group_reaches_every_normalisation():
    model = build(bn_group=4)
    groups = [m.group for _, m in nnx.iter_modules(model) if isinstance(m, BatchNorm)]
    assert len(groups) == 20 and set(groups) == {4}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 64, 32, 3)), jnp.float32)
    graphdef, state = nnx.split(model)
    run = jax.jit(
        lambda graphdef, x: nnx.merge(graphdef, state, copy=True)(x, train=True)[0],
        static_argnums=0,
    )
    grouped = run(graphdef, x)
    set_bn_group(model, 0)
    whole = nnx.split(model)[0]
    # Normalising four values of the neck amplifies rounding.
    np.testing.assert_allclose(grouped[:4], run(whole, x[:4]), atol=1e-4)
    assert np.abs(grouped - run(whole, x)).max() > 1e-2


def test_one_trace_and_no_convolution_in_a_loop():
    step, (params, stats, x), traces = training_step(jnp.float32)
    for _ in range(3):
        params, (_, (_, _, stats)), _ = step(params, stats, x)
    assert len(traces) == 1
    jaxpr = str(jax.make_jaxpr(step)(params, stats, x))
    assert "conv_general_dilated[" in jaxpr
    assert not any(loop in jaxpr for loop in ("scan[", "while[", "cond["))


def test_import_is_light():
    """In a process of its own, and from the module that the others build on last."""
    heavy = ("torch", "transformers", "safetensors", "tokenizers")
    code = f"import sys, ccafl_jax.models.reid; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
