"""State, sharding and extraction."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.models.layers import BatchNorm
from ccafl_jax.training.extract import make_extractor
from ccafl_jax.training.sharding import check_batch, make_mesh, replicate, shard_rows
from ccafl_jax.training.state import batch_stats_of, merge_model, split_model


class Small(nnx.Module):
    def __init__(self):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=nnx.Rngs(0)), BatchNorm(4)])

    def __call__(self, x, *, train=False):
        return self.layers[1](self.layers[0](x), train=train)


def test_model_splits_into_paths_and_back():
    model = Small()
    graphdef, params, stats = split_model(model)
    assert set(params) == {
        "layers/0/kernel",
        "layers/0/bias",
        "layers/1/scale",
        "layers/1/bias",
    }
    assert set(stats) == {"layers/1/mean", "layers/1/var"}
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(merge_model(graphdef, params, stats)(x), model(x))
    merged = merge_model(graphdef, params, stats)
    merged(x, train=True)
    assert np.abs(batch_stats_of(merged)["layers/1/mean"] - stats["layers/1/mean"]).max() > 0


def test_extraction_pads_the_last_batch_and_compiles_once():
    graphdef, params, stats = split_model(Small())
    traces = []

    def forward(model, images, cameras):
        traces.append(images.shape)
        return model(images.reshape(images.shape[0], -1)[:, :3] / 255)

    mesh = make_mesh(4)
    extract = make_extractor(graphdef, forward, batch=6, mesh=mesh)
    images = np.random.default_rng(0).integers(0, 255, (19, 1, 1, 3)).astype(np.uint8)
    found = extract(params, stats, images)
    expected = merge_model(graphdef, params, stats)(images.reshape(19, 3) / 255)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(found, extract(params, stats, replicate(images, mesh)))
    assert traces[0] == (8, 1, 1, 3)  # 6, rounded up to the four devices
    with pytest.raises(ValueError, match="no images"):
        extract(params, stats, images[:0])


def test_mesh_and_batches():
    mesh = make_mesh(3)
    assert mesh.shape == {"data": 3}
    with pytest.raises(ValueError, match=r"64 rows does not divide over 3 devices.* 2 or 4"):
        check_batch(64, mesh)
    check_batch(63, mesh)
    with pytest.raises(ValueError, match="9 devices asked for, 8 found"):
        make_mesh(9)
    rows = shard_rows(np.arange(6), mesh)
    assert [s.data.tolist() for s in rows.addressable_shards] == [[0, 1], [2, 3], [4, 5]]
