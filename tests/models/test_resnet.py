"""ImageNet's ResNets and IBN-a against reference values, and their files."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.models.layers import Compute, GeM
from ccafl_jax.models.named_tensors import export
from ccafl_jax.models.resnet import (
    Bottleneck,
    ImageNetResNetConfig,
    InstanceBatchNorm,
    ResNet,
    max_pool3,
)
from ccafl_jax.models.resnet_weights import load_resnet, resnet_from_tensors, resnet_table
from ccafl_jax.models.tensor_files import write_tensors
from ccafl_jax.training.state import batch_stats_of, merge_model, split_model
from tests.golden_data import golden

SMALL = ImageNetResNetConfig(layers=(1, 2, 1, 1), width=4, image_size=(32, 16), ibn=True)
KINDS = {"resnet50": False, "ibn50a": True}


def nhwc(x):
    return jnp.asarray(np.transpose(x, (0, 2, 3, 1)))


def filled(module, data, prefix):
    """A module with the reference's parameters, as graph and arrays."""
    graph, params, stats = split_model(module)
    for arrays in (params, stats):
        for path in arrays:
            value = data[prefix + published(path)]
            value = np.transpose(value, (2, 3, 1, 0)) if value.ndim == 4 else value
            assert value.shape == arrays[path].shape, path
            arrays[path] = jnp.asarray(value)
    return graph, params, stats


def published(path):
    """Reference name of a parameter of a block."""
    *parts, leaf = path.split("/")
    leaf = {"mean": "running_mean", "var": "running_var", "bias": "bias"}.get(leaf, "weight")
    names = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1", "batch": "BN"}
    return ".".join([*(names.get(part, part) for part in parts), leaf])


def instance_names(path):
    """Of a normalisation of which half is IN, which has no name of its own here."""
    name = published(path)
    return name if "BN." in name else f"IN.{name}"


def test_half_of_the_channels_are_normalised_by_instance():
    data = golden("ibn", "calr")
    graph, params, stats = split_model(InstanceBatchNorm(16))
    for arrays in (params, stats):
        for path in arrays:
            arrays[path] = jnp.asarray(data[f"ibn16_p_{instance_names(path)}"])
    x, gradient = nhwc(data["ibn16_x"]), nhwc(data["ibn16_gy"])

    def run(x, train):
        module = merge_model(graph, params, stats)
        return module(x, train=train), batch_stats_of(module)

    np.testing.assert_allclose(run(x, False)[0], nhwc(data["ibn16_eval"]), atol=2e-5)
    (y, after), vjp = jax.vjp(lambda x: run(x, True), x)
    np.testing.assert_allclose(y, nhwc(data["ibn16_train"]), atol=2e-5)
    zeros = jax.tree.map(jnp.zeros_like, after)
    np.testing.assert_allclose(vjp((gradient, zeros))[0], nhwc(data["ibn16_dx"]), atol=2e-5)
    for path, value in after.items():
        np.testing.assert_allclose(value, data[f"ibn16_after_{published(path)}"], atol=2e-5)


@pytest.mark.parametrize(("name", "ibn", "stride"), [("ibn_s2", True, 2), ("bn_s1", False, 1)])
def test_bottlenecks(name, ibn, stride):
    data = golden("ibn", "calr")
    prefix = f"bneck_{name}_"
    block = Bottleneck(12, 8, stride=stride, ibn=ibn, compute=Compute(), rngs=nnx.Rngs(0))
    stored = {
        key: data[prefix + "p_" + (key if key in names(data, prefix) else in_name(key))]
        for key in map(published, paths_of(block))
    }
    graph, params, stats = filled(block, stored, "")
    x = nhwc(data[prefix + "x"])
    for train in (False, True):
        module = merge_model(graph, params, stats)
        expected = nhwc(data[prefix + ("train" if train else "eval")])
        np.testing.assert_allclose(module(x, train=train), expected, atol=2e-5)
    for path, value in batch_stats_of(module).items():
        np.testing.assert_allclose(value, data[f"{prefix}after_{published(path)}"], atol=2e-5)


def paths_of(module):
    _, params, stats = split_model(module)
    return [*params, *stats]


def names(data, prefix):
    return {key.removeprefix(prefix + "p_") for key in data if key.startswith(prefix + "p_")}


def in_name(key):
    return key.replace("bn1.", "bn1.IN.")


def uniform(count, seed):
    """Reference numbers in [-1, 1), a function of their place and a seed."""
    z = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed * 1000003)
    with np.errstate(over="ignore"):
        z *= np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z ^= z >> np.uint64(shift)
            z *= np.uint64(factor)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2**53 * 2 - 1


def formula(name, shape):
    """Reference weight of a name."""
    u = uniform(int(np.prod(shape)), zlib.crc32(name.encode()) % 100003).reshape(shape)
    if len(shape) == 4:
        return u * np.sqrt(6 / np.prod(shape[1:]))
    if name.endswith("running_var"):
        return 1 + 0.2 * u
    if name.endswith(("running_mean", "bias")):
        return 0.1 * u
    return (1 + 0.1 * u) * (0.3 if ".bn3." in name else 1)


@pytest.mark.ci
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_whole_networks(kind):
    data = golden("backbone", "calr")
    tensors = {}
    for name, text in zip(data[f"{kind}_names"], data[f"{kind}_shapes"], strict=True):
        shape = tuple(int(size) for size in re.findall(r"\d+", str(text)))
        if "num_batches" not in name:
            tensors[str(name)] = formula(str(name), shape).astype(np.float32)
    config = ImageNetResNetConfig(layers=(3, 4, 6, 3), image_size=(64, 32), ibn=KINDS[kind])
    graph, params, stats = split_model(resnet_from_tensors(config, tensors))
    for case, batch, height, width in (("eval", 2, 64, 32), ("train", 4, 64, 32)):
        seed = zlib.crc32(f"input_{case}".encode()) % 100003
        x = 2 * uniform(batch * 3 * height * width, seed).reshape(batch, 3, height, width)

        def encode(x, train=case == "train"):
            model = merge_model(graph, params, stats)
            return model.encode(x, train=train)

        third, fourth = jax.jit(encode)(nhwc(x.astype(np.float32)))
        prefix, tolerance = f"{kind}_{case}_", {"eval": 1e-3, "train": 5e-3}[case]
        assert tuple(data[f"{prefix}layer4_shape"]) == (batch, 2048, 4, 2)
        for name, value in (
            ("layer3_avg", third.mean((1, 2))),
            ("layer4_avg", fourth.mean((1, 2))),
            ("gem", GeM()(fourth)),
        ):
            expected = data[prefix + name]
            assert np.abs(value - expected).max() <= tolerance * np.abs(expected).max(), name


def test_the_border_is_never_the_maximum():
    x = -jnp.arange(1.0, 26.0).reshape(1, 5, 5, 1)
    assert max_pool3(x)[0, :, :, 0].tolist() == [[-1, -2, -4], [-6, -7, -9], [-16, -17, -19]]


@pytest.mark.parametrize("ibn", [False, True])
def test_files_are_read_in_their_own_names(tmp_path, ibn):
    config = ImageNetResNetConfig(layers=(1, 2, 1, 1), width=4, image_size=(32, 16), ibn=ibn)
    model = ResNet(config, rngs=nnx.Rngs(3))
    tensors = export(model, resnet_table(ibn=ibn))
    assert ("layer1.0.bn1.IN.weight" in tensors) == ibn
    assert "layer2.1.bn2.running_var" in tensors
    assert "layer4.0.downsample.1.weight" in tensors
    tensors["fc.weight"] = np.zeros((10, 128), np.float32)
    tensors["bn1.num_batches_tracked"] = np.zeros((), np.int64)
    write_tensors(tmp_path / "model.safetensors", tensors)
    read = load_resnet(tmp_path, image_size=(32, 16))
    assert read.config == config
    for name, value in export(read, resnet_table(ibn=ibn)).items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)


def test_files_of_other_networks_are_refused(tmp_path):
    write_tensors(tmp_path / "model.safetensors", {"layer1.0.conv2.weight": np.zeros((4, 4, 3, 3))})
    with pytest.raises(ValueError, match="no ResNet with bottlenecks"):
        load_resnet(tmp_path, image_size=(32, 16))
    tensors = export(ResNet(SMALL, rngs=nnx.Rngs(3)), resnet_table(ibn=True))
    del tensors["layer2.0.bn1.BN.bias"]
    write_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=r"1 \['layer2.0.bn1.BN.bias'\] missing"):
        load_resnet(tmp_path, image_size=(32, 16))
