import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from ccafl_jax.models import layers
from tests.golden_data import case_group, golden


def run_norm(x, *, group, train=True, **options):
    """Output, gradient of a probe and running statistics of a fresh normalisation, jitted."""
    rng = np.random.default_rng(7)
    norm = layers.BatchNorm(x.shape[-1], group=group, param_dtype=x.dtype, **options)
    norm.scale[...] = jnp.asarray(rng.uniform(0.5, 2, x.shape[-1]), x.dtype)
    norm.bias[...] = jnp.asarray(rng.normal(size=x.shape[-1]), x.dtype)
    graphdef, params, stats = nnx.split(norm, nnx.Param, nnx.BatchStat)
    probe = jnp.asarray(rng.normal(size=x.shape), x.dtype)

    def loss(params, x):
        merged = nnx.merge(graphdef, params, stats, copy=True)
        y = merged(x, train=train)
        return jnp.sum(y * probe), (y, merged.mean[...], merged.var[...])

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, (y, mean, var)), (grad_params, grad_x) = step(params, x)
    grads = [leaf for _, leaf in nnx.to_pure_dict(grad_params).items()]
    return {"y": y, "mean": mean, "var": var, "grad_x": grad_x, "grads": grads}


def by_reshape(x, *, group):
    """The same normalisation of each group alone, by numpy in float64."""
    rng = np.random.default_rng(7)
    scale = rng.uniform(0.5, 2, x.shape[-1])
    bias = rng.normal(size=x.shape[-1])
    parts = np.asarray(x, np.float64).reshape(-1, group, *x.shape[1:])
    axes = tuple(range(1, parts.ndim - 1))
    mean = parts.mean(axes, keepdims=True)
    var = parts.var(axes, keepdims=True)
    count = parts[0, ..., 0].size
    y = ((parts - mean) / np.sqrt(var + 1e-5) * scale + bias).reshape(x.shape)
    channels = x.shape[-1]
    return {
        "y": y,
        "mean": 0.1 * mean.reshape(-1, channels).mean(0),
        "var": 0.9 + 0.1 * var.reshape(-1, channels).mean(0) * count / (count - 1),
    }


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=(16, 1, 1, 6)) * 3
    return jnp.asarray(rng.normal(size=(16, 4, 2, 6)) + offsets + 5, jnp.float32)


@pytest.mark.parametrize("group", [2, 4, 16])
def test_groups_are_batches_of_their_own(batch, group):
    ours, naive = run_norm(batch, group=group), by_reshape(batch, group=group)
    for key, value in naive.items():
        np.testing.assert_allclose(ours[key], value, atol=2e-5, err_msg=key)
    apart = [run_norm(part, group=0)["y"] for part in np.split(batch, 16 // group)]
    np.testing.assert_allclose(ours["y"], np.concatenate(apart), atol=1e-5)


def test_whole_batch_is_the_default_and_the_cap(batch):
    whole = run_norm(batch, group=0)
    for group in (16, 64):
        other = run_norm(batch, group=group)
        np.testing.assert_array_equal(whole["y"], other["y"])
        np.testing.assert_array_equal(whole["var"], other["var"])


def test_groups_of_vectors():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(8, 5)), jnp.float32)
    ours, naive = run_norm(x, group=4), by_reshape(x, group=4)
    for key, value in naive.items():
        np.testing.assert_allclose(ours[key], value, atol=1e-5, err_msg=key)


def test_groups_must_divide_the_batch(batch):
    with pytest.raises(ValueError, match="groups of 5 rows got a batch of 16"):
        layers.BatchNorm(6, group=5)(batch, train=True)


def test_running_statistics_in_evaluation(batch):
    ours = run_norm(batch, group=0, train=False)
    rng = np.random.default_rng(7)
    scale, bias = rng.uniform(0.5, 2, 6), rng.normal(size=6)
    np.testing.assert_allclose(
        ours["y"], np.asarray(batch) / np.sqrt(1 + 1e-5) * scale + bias, atol=1e-5
    )
    np.testing.assert_array_equal(ours["mean"], 0)
    np.testing.assert_array_equal(ours["var"], 1)


def test_momentum_and_eps():
    x = jnp.asarray([[0.0], [2.0]])
    norm = layers.BatchNorm(1, momentum=0.5, eps=3.0)
    np.testing.assert_allclose(norm(x, train=True), [[-0.5], [0.5]])  # 1 / sqrt(1 + 3)
    np.testing.assert_allclose(norm.mean[...], 0.5)
    np.testing.assert_allclose(norm.var[...], 0.5 + 0.5 * 2)


def test_large_offset_keeps_the_variance():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(64, 3)) + 3000, jnp.float32)
    y = run_norm(x, group=0)["y"]
    np.testing.assert_allclose(y, by_reshape(x, group=64)["y"], atol=2e-3)


def test_half_precision_statistics_are_float32(batch):
    norm = layers.BatchNorm(6)
    x = batch.astype(jnp.bfloat16)
    y = norm(x, train=True)
    assert y.dtype == jnp.bfloat16
    assert norm.var[...].dtype == jnp.float32
    exact = by_reshape(x.astype(jnp.float32), group=16)
    np.testing.assert_allclose(norm.mean[...], exact["mean"], atol=1e-6)
    np.testing.assert_allclose(norm.var[...], exact["var"], atol=1e-5)


@pytest.mark.parametrize("group", [0, 4])
def test_eight_devices_equal_one(batch, group):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    one, eight = run_norm(batch, group=group), run_norm(sharded, group=group)
    assert len(sharded.sharding.device_set) == 8
    for key in ("y", "mean", "var", "grad_x"):
        np.testing.assert_allclose(one[key], eight[key], atol=1e-5, err_msg=key)
    for a, b in zip(one["grads"], eight["grads"], strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_neck_has_no_shift():
    neck = layers.BNNeck(4)
    assert set(nnx.to_pure_dict(nnx.state(neck, nnx.Param))) == {"scale"}
    np.testing.assert_allclose(neck(jnp.ones((3, 4)), train=True), 0, atol=1e-6)


def test_initial_arrays_are_strongly_typed():
    compute = layers.Compute()
    pool = layers.AttentionPool(
        (2, 2), features=8, heads=2, out_features=4, compute=compute, rngs=nnx.Rngs(0)
    )
    for module in (layers.GeM(), layers.BNNeck(4), layers.BatchNorm(3), pool):
        for leaf in jax.tree.leaves(nnx.state(module)):
            assert not leaf.weak_type


def gem_of(x, p):
    """Value of the pool with the exponent given."""
    pool = layers.GeM(param_dtype=x.dtype)
    pool.p[...] = p
    return pool(x)


def test_gem_golden():
    data = golden("03_gem")
    x = jnp.asarray(data["x"].transpose(0, 2, 3, 1))

    def loss(x, p):
        y = gem_of(x, p)
        return jnp.sum(y * data["probe"]), y

    (_, y), (grad_x, grad_p) = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, data["p"])
    np.testing.assert_allclose(y, data["y"], atol=1e-5)
    np.testing.assert_allclose(grad_x, data["grad_x"].transpose(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(grad_p, data["grad_p"][0], atol=1e-5)


@pytest.mark.parametrize("case", [c for c in case_group("misc") if "gem" in c["id"]])
def test_gem_cases(case):
    x = jnp.asarray(case["inputs"]["x"], jnp.float32)
    y = gem_of(x[None], case["inputs"]["p"])
    np.testing.assert_allclose(y[0], case["expected"]["value"], atol=1e-5)


def test_gem_gradient_is_finite_on_an_empty_map():
    grad = jax.grad(lambda x: jnp.sum(gem_of(x, 3.0)))(jnp.zeros((1, 4, 2, 3)))
    np.testing.assert_array_equal(grad, 0)


GRIDS = {
    "vitb16_14x14_to_16x8": ((14, 14), (16, 8)),
    "rn50_7x7_to_16x8": ((7, 7), (16, 8)),
    "vitb16_14x14_to_21x10": ((14, 14), (21, 10)),
    "vitb32_7x7_to_8x4": ((7, 7), (8, 4)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_resize_positions_golden(name):
    data = golden("04_resize_pos_embed")
    old, new = GRIDS[name]
    table = layers.resize_positions(data[f"{name}_in"], old_grid=old, new_grid=new)
    np.testing.assert_allclose(table, data[f"{name}_out"], atol=1e-5)


def test_attention_pool_names_a_wrong_grid():
    pool = layers.AttentionPool(
        (4, 2), features=8, heads=2, out_features=4, compute=layers.Compute(), rngs=nnx.Rngs(0)
    )
    with pytest.raises(ValueError, match="8x4 map, its positions are for 4x2"):
        pool(jnp.zeros((1, 8, 4, 8)))


def test_average_pool_leaves_out_the_odd_row():
    x = jnp.arange(3 * 4.0).reshape(1, 3, 4, 1)
    np.testing.assert_allclose(layers.average_pool2(x)[0, :, :, 0], [[2.5, 4.5]])


def plain_batch_norm(x, scale, bias, group):
    """Batch normalisation by groups, as one would write it for automatic gradients."""
    parts = x.reshape(-1, group, *x.shape[1:])
    axes = tuple(range(1, parts.ndim - 1))
    mean = parts.mean(axes, keepdims=True)
    var = jnp.square(parts - mean).mean(axes, keepdims=True)
    unit = ((parts - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape)
    return unit * scale + (0.0 if bias is None else bias)


@pytest.mark.parametrize("group", [0, 2])
@pytest.mark.parametrize("use_bias", [True, False])
def test_batch_norm_gradient_is_the_automatic_one(group, use_bias):
    with jax.enable_x64():
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(6, 3, 2, 5)))
        probe = jnp.asarray(rng.normal(size=x.shape))
        scale, bias = jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.normal(size=5))
        norm = layers.BatchNorm(5, use_bias=use_bias, group=group, param_dtype=jnp.float64)
        graphdef, params, stats = nnx.split(norm, nnx.Param, nnx.BatchStat)

        def ours(x, scale, bias):
            merged = nnx.merge(graphdef, params, stats, copy=True)
            merged.scale[...] = scale
            if use_bias:
                merged.bias[...] = bias
            return jnp.sum(probe * merged(x, train=True) ** 2)

        def plain(x, scale, bias):
            y = plain_batch_norm(x, scale, bias if use_bias else None, group or len(x))
            return jnp.sum(probe * y**2)

        found = jax.value_and_grad(ours, (0, 1, 2))(x, scale, bias)
        expected = jax.value_and_grad(plain, (0, 1, 2))(x, scale, bias)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_layer_norm_and_its_gradient_are_those_of_flax():
    with jax.enable_x64():
        rng = np.random.default_rng(0)
        x, probe = (jnp.asarray(rng.normal(size=(3, 4, 7))) for _ in range(2))
        scale, bias = (jnp.asarray(rng.normal(size=7)) for _ in range(2))
        theirs = nnx.LayerNorm(
            7, epsilon=1e-5, use_fast_variance=False, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
        )

        def objective(norm):
            graphdef, params = nnx.split(norm)

            def run(x, scale, bias):
                merged = nnx.merge(graphdef, params, copy=True)
                merged.scale[...], merged.bias[...] = scale, bias
                return jnp.sum(probe * merged(x) ** 2)

            return jax.value_and_grad(run, (0, 1, 2))(x, scale, bias)

        found = objective(layers.LayerNorm(7, param_dtype=jnp.float64))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(objective(theirs)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_norms_keep_half_precision_for_their_gradient():
    x = jnp.ones((4, 3, 2, 5), jnp.bfloat16)
    kept = jax.eval_shape(lambda x: jax.vjp(layers.LayerNorm(5), x)[1], x)
    assert [leaf.dtype for leaf in jax.tree.leaves(kept) if leaf.size >= x.size] == [jnp.bfloat16]

    norm = layers.BatchNorm(5)
    graphdef, params, stats = nnx.split(norm, nnx.Param, nnx.BatchStat)

    def run(x):
        return nnx.merge(graphdef, params, stats, copy=True)(x, train=True)

    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(run, x)[1], x))
    large = [leaf.dtype for leaf in kept if leaf.size >= x.size]
    assert large == [jnp.bfloat16]


def test_products_of_half_precision_ask_for_nothing():
    assert layers.Compute().products == "highest"
    assert layers.Compute(dtype=jnp.bfloat16).products == "default"
    assert layers.Compute(dtype=jnp.bfloat16, param_dtype=jnp.float32).precision == "highest"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height,width", [(4, 2), (2, 1), (1, 1), (3, 3)])
def test_convolution_of_small_images_and_its_gradient(height, width, stride):
    rng = np.random.default_rng(3)

    def direct(kernel, x):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    with jax.enable_x64():
        compute = layers.Compute(param_dtype=jnp.float64)
        conv = layers.Conv(5, 6, size=3, stride=stride, compute=compute, rngs=nnx.Rngs(0))
        x = jnp.asarray(rng.normal(size=(3, height, width, 5)))

        def ours(kernel, x):
            other = nnx.clone(conv)
            other.kernel[...] = kernel
            return other(x)

        expected, expected_gradients = jax.vjp(direct, conv.kernel[...], x)
        found, gradients = jax.vjp(ours, conv.kernel[...], x)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        probe = jnp.asarray(rng.normal(size=expected.shape))
        for a, b in zip(gradients(probe), expected_gradients(probe), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
