"""State, sharding, checkpoints, extraction and logs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ccafl_jax.models.layers import BatchNorm
from ccafl_jax.training.checkpoints import Checkpoints, digest, leaves_by_path, restore_leaves
from ccafl_jax.training.extract import make_extractor
from ccafl_jax.training.log import RunLog
from ccafl_jax.training.optimizers import coupled_adam, grouped
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


def test_optimizer_state_survives_a_checkpoint(tmp_path):
    params = {"a/b": jnp.arange(3.0), "c": jnp.ones((2, 2))}
    labels = {"a/b": "x", "c": "y"}
    tx = grouped(coupled_adam(0.1), labels, active=frozenset({"x", "y"}))
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(params, state, params)
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.latest() is None
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        checkpoints.restore()
    for number in (1, 2, 3):
        tree = {"params": params, "opt": leaves_by_path(state)}
        checkpoints.save(number, tree, {"number": number})
    checkpoints.close()
    again = Checkpoints(tmp_path / "c", keep=2)
    assert again.latest() == 3 and again.restore_meta()["number"] == 3
    assert again.restore_meta(2)["number"] == 2
    restored = again.restore()
    back = restore_leaves(tx.init(params), restored["opt"])
    for left, right in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(left, right)
    with pytest.raises(ValueError, match="does not fit this run"):
        restore_leaves(optax.adam(1.0).init(params), restored["opt"])
    with pytest.raises(ValueError, match="has shape"):
        restore_leaves(tx.init({"a/b": jnp.ones(4), "c": params["c"]}), restored["opt"])


def test_log_drops_what_a_resumed_run_will_write_again(tmp_path):
    log = RunLog(tmp_path, dataset="msmt17_v1")
    for epoch in range(3):
        log.write("encoder", epoch, {"loss": 1.0 / (epoch + 1)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "enc')  # a process killed while it wrote
    log = RunLog(tmp_path, dataset="msmt17_v1", resume_at={"encoder": 2})
    log.write("encoder", 2, {"loss": 7.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["loss"]) for line in lines] == [(0, 1.0), (1, 0.5), (2, 7.0)]
    assert {line["dataset"] for line in lines} == {"msmt17_v1"}
    assert list((tmp_path / "tensorboard").iterdir())


def test_checkpoints_are_made_on_the_first_save_only(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest() is None
        with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
            checkpoints.restore_meta()
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_there(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(3, {"a": jnp.ones(2)}, {})
        with pytest.raises(FileNotFoundError, match=r"no checkpoint 4 in .*; there are \[3\]"):
            checkpoints.restore(4)


def test_digest_sees_every_name_type_shape_and_bit():
    arrays = {"a": np.arange(6.0, dtype=np.float32), "b": np.zeros(2, np.int32)}
    same = {"b": jnp.zeros(2, jnp.int32), "a": jnp.arange(6.0)}
    assert digest(arrays) == digest(same)
    nudged = np.nextafter(arrays["a"], 9, dtype=np.float32)
    others = [
        {"c": arrays["a"], "b": arrays["b"]},
        arrays | {"a": arrays["a"].reshape(2, 3)},
        arrays | {"b": np.zeros(2, np.float32)},
        arrays | {"a": nudged},
        arrays | {"c": np.zeros(0)},
    ]
    assert len({digest(x) for x in [arrays, *others]}) == 6
