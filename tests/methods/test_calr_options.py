"""Every option changes a result: a table of options, changed values and what must differ."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.methods.calr import phases
from ccafl_jax.methods.calr.config import CALRConfig
from ccafl_jax.methods.calr.labels import camera_labels, global_labels, refine_by_pivots
from ccafl_jax.methods.calr.progress import Progress, summarize
from ccafl_jax.methods.calr.run import Run
from ccafl_jax.models.camera_head import CameraHead
from ccafl_jax.training.state import merge_model, split_model
from tests.methods.option_tables import augmentation, leaves, with_options
from tests.methods.small_calr import small_model

IMAGES, CAMERAS, DIM = 120, 3, 8
CAMID = np.arange(IMAGES) % CAMERAS


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def people():
    """Features of ten people under three cameras."""
    rng = np.random.default_rng(0)
    pid = np.repeat(np.arange(10), IMAGES // 10)
    found = unit(rng, 10, DIM)[pid] + 0.35 * unit(rng, IMAGES, DIM)
    found += 0.3 * unit(rng, CAMERAS, DIM)[CAMID]
    return jnp.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), jnp.float32), pid


def labels(config):
    features, pid = people()
    local = np.random.default_rng(1).integers(0, 4, IMAGES)
    found = global_labels(features, CAMID, local, pid, config, epoch=20, refiner=refine_by_pivots)
    return np.concatenate([found["labels"], found["weights"]])


def of_a_camera(config):
    return camera_labels(people()[0], config.local)["labels"]


@functools.cache
def batch(config):
    """Loss and gradient of a batch, the updated bank, and how large the classifier is."""
    features, pid = people()
    context = phases.Context(
        label=jnp.asarray(pid),
        camid=jnp.asarray(CAMID),
        cluster_valid=jnp.ones(10, bool),
        cluster_weight=jnp.ones(10),
    )
    options = config.alignment
    rngs = nnx.Rngs(0)
    head = split_model(
        CameraHead(DIM, CAMERAS, hidden=options.hidden, dropout=options.dropout, rngs=rngs)
    )
    memory = {"clusters": jnp.asarray(unit(np.random.default_rng(2), 10, DIM), jnp.float32)}
    rows = jnp.arange(0, IMAGES, 5)
    phase, key = phases.Phase("global", alignment=True), jax.random.key(0)

    def loss_fn(f):
        terms = phases._losses(phase, config, memory, context, f, rows, merge_model(*head), key)
        return sum(terms.values())

    loss, gradient = jax.value_and_grad(loss_fn)(features[rows])
    updated = phases._update_memory(config, memory, context, features[rows], rows, True)
    return np.concatenate([np.ravel(x) for x in (loss, gradient, updated["clusters"])])


def rates(config):
    return [phases.learning_rate(epoch, config.scaled()) for epoch in range(50)]


def decayed(config):
    state = phases.initial_state(config, {"a": jnp.ones(1)}, {}, {"b": jnp.ones(1)}, {})
    zero = {"a": jnp.zeros(1)}
    tx = phases.coupled_adam(config.optimizer.weight_decay)
    return phases._stepped(tx, state.params, zero, state.opt_state, 1.0)[0]["a"]


def phase_names(config):
    return [phases.phase_of(epoch, config).name for epoch in range(config.schedule.epochs)]


def plans(config):
    """Shapes and rows of the batches of both stages."""
    _, pid = people()
    run = types.SimpleNamespace(
        config=config.scaled(), camid=CAMID, progress=Progress(labels=pid.astype(np.int32))
    )
    found = []
    for stage, options in (("local", config.local), ("encoder", config.schedule)):
        plan = Run._plan(run, stage, options.iterations)
        found += [*plan.shape, *plan[:2, :8].ravel()]
    return found


def local_epochs(config):
    run = types.SimpleNamespace(config=config, cameras=np.arange(CAMERAS))
    return [Run._local_epochs.fget(run)]


def tower(config):
    model, sizes = small_model(config)
    return [*sizes.vision.image_size, sizes.vision.last_stride, sizes.heads.pooling,
            model.neck.group]  # fmt: skip


def published(config):
    done = Progress(zero_shot={"mAP": 0.5})
    counts = {"train_images": 1, "seconds": 1.0}
    return summarize(done, config, dataset="market1501", **counts)["published"]


def published_elsewhere(config):
    return published(dataclasses.replace(config, published="mAP 1"))


# Options whose effect is a file, a folder or a device: their use is tested where it happens.
ELSEWHERE = {
    "data.name": "synthetic",
    "data.root": "elsewhere",
    "data.source": "folder",
    "data.cache": "somewhere",
    "data.synthetic_seed": 7,
    "data.synthetic_ids": 30,
    "data.train_cameras": ("2",),
    "devices": 1,
    "keep_checkpoints": 5,
    "keep_best": "test",
    "skip_nonfinite": 3,
    "input.kind": "streaming",
    "input.share": 0.1,
    "scale.shard_classes": True,
    "stages": ("local",),
    "local.labels": "elsewhere",
    "model.weights": "elsewhere",
    "model.compute_dtype": "bfloat16",
    "model.remat": True,
    "evaluation.every": 3,
    "evaluation.batch": 64,
    "evaluation.no_match": "zero",
    "augment.erase_tries": 3,
    "model.calibrate_neck": False,
}
OPTIONS = {
    "seed": (2, plans),
    "scale.batch": (2, plans),
    "scale.rule": ("linear", rates),
    "data.height": (64, tower),
    "data.width": (32, tower),
    **augmentation(law="log", fill="zero"),
    "model.pooling": ("mean", tower),
    "model.last_stride": (2, tower),
    "model.bn_group": (8, tower),
    "local.clusters": (7, of_a_camera),
    "local.k1": (5, of_a_camera),
    "local.k2": (1, of_a_camera),
    "local.epochs": (3, local_epochs),
    "local.iterations": (7, plans),
    "local.classes": (3, plans),
    "local.images": (3, plans),
    "clustering.k": (5, labels),
    "clustering.min_similarity": (0.9, labels),
    "clustering.min_size": (13, labels),
    "refinement.enabled": (False, labels),
    "refinement.pivot": ("last", labels),
    "refinement.probability": ("cosine", labels),
    "contrast.temperature": (0.1, batch),
    "contrast.memory_update": ("hard", batch),
    "contrast.memory_momentum": (0.5, batch),
    "contrast.weights_from": (-1, labels),
    "alignment.epochs": (5, phase_names),
    "alignment.weight": (1.0, batch),
    "alignment.loss": ("released", batch),
    "alignment.reversal": (0.5, batch),
    "alignment.hidden": (7, batch),
    "alignment.dropout": (0.0, batch),
    "sampler.classes": (3, plans),
    "sampler.images": (3, plans),
    "sampler.across_cameras": (False, plans),
    "optimizer.base_lr": (1.0, rates),
    "optimizer.weight_decay": (0.5, decayed),
    "optimizer.milestones": ((3,), rates),
    "optimizer.gamma": (0.5, rates),
    "schedule.epochs": (7, phase_names),
    "schedule.iterations": (7, plans),
    "published": ("mAP 1", published),
    "published_on": ("msmt17", published_elsewhere),
}
SPECIAL = {
    "scale.rule": {"scale.batch": 4},
    "sampler.across_cameras": {"sampler.classes": 4},
}
DEFAULT = CALRConfig()


def changed(path, value):
    return with_options(DEFAULT, {path: value} | SPECIAL.get(path, {}))


def unchanged(path):
    return with_options(DEFAULT, SPECIAL.get(path, {}))


def test_every_option_is_in_one_table():
    assert sorted([*OPTIONS, *ELSEWHERE, "method"]) == sorted(leaves(CALRConfig))


@pytest.mark.parametrize("path", sorted(OPTIONS))
def test_option_changes_something(path):
    value, probe = OPTIONS[path]
    before, after = probe(unchanged(path)), probe(changed(path, value))
    assert not np.array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize("path", sorted(ELSEWHERE))
def test_option_is_taken(path):
    found = changed(path, ELSEWHERE[path])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == ELSEWHERE[path]


def test_unknown_values_are_refused():
    for path, value in (
        ("method", "ccafl"),
        ("model.pooling", "max"),
        ("refinement.pivot", "first"),
        ("alignment.loss", "nll"),
        ("contrast.memory_update", "mean"),
        ("keep_best", "val"),
        ("stages", ("global", "local")),
    ):
        with pytest.raises(ValueError, match=path.rpartition(".")[2]):
            changed(path, value)
