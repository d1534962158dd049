"""Every option changes a result: a table of options, changed values and what must differ."""

import dataclasses
import functools
import types

import jax.numpy as jnp
import numpy as np
import pytest

from ccafl_jax.methods import prompt_stage
from ccafl_jax.methods.cclnet import phases, prompts
from ccafl_jax.methods.cclnet.config import CCLNetConfig
from ccafl_jax.methods.cclnet.evaluation import score
from ccafl_jax.methods.cclnet.labels import cluster_modalities
from ccafl_jax.methods.cclnet.progress import Progress, summarize
from ccafl_jax.methods.cclnet.run import Run
from ccafl_jax.methods.cclnet.setup import whole_test_set
from ccafl_jax.training.optimizers import apply_scaled
from tests.methods.option_tables import augmentation, leaves, with_options
from tests.methods.small_cclnet import small_pairs, with_one_source

PEOPLE, DIM = 10, 8
INFRARED = np.repeat([False, True], 80)
PID = np.tile(np.repeat(np.arange(PEOPLE), 8), 2)


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def people():
    """Features of ten people, eight images in each modality."""
    rng = np.random.default_rng(0)
    found = unit(rng, PEOPLE, DIM)[PID] + 0.5 * unit(rng, len(PID), DIM)
    found += 0.4 * unit(rng, 2, DIM)[INFRARED.astype(int)]
    return jnp.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), jnp.float32)


def clusters(config):
    return cluster_modalities(people(), INFRARED, PID, config.clustering)["labels"]


@functools.cache
def batch(config):
    """Losses of a batch, the updated memories, and those after the swap."""
    rng = np.random.default_rng(1)
    rows = jnp.concatenate([jnp.arange(0, 80, 9), 80 + jnp.arange(0, 80, 9)])
    context = phases.Context(
        label=jnp.asarray(PID),
        cluster_valid={name: jnp.ones(PEOPLE, bool) for name in ("visible", "infrared")},
        text_label=jnp.asarray(PID),
        class_text={
            name: jnp.asarray(unit(rng, PEOPLE, 4), jnp.float32) for name in ("visible", "infrared")
        },
    )
    memory = {
        name: jnp.asarray(unit(rng, PEOPLE, DIM), jnp.float32) for name in ("visible", "infrared")
    }
    half = len(rows) // 2
    f = phases.split(people()[rows], half)
    g = phases.split(jnp.asarray(unit(rng, len(rows), 4), jnp.float32), half)
    sides = phases.split(rows, half)
    terms = phases.contrast_losses(config, memory, context, f, sides)
    terms |= phases.text_losses(config, context, g, sides)
    after = phases.update_memory(config, memory, context, f, sides)
    run = types.SimpleNamespace(config=config, _similarities=phases.make_similarities())
    partners = Run._match(run, after, context)
    donated = {name: bank.copy() for name, bank in after.items()}
    swapped = phases.make_swap(config)(donated, context.label, rows, partners)
    arrays = [*terms.values(), *after.values(), *swapped.values(), partners]
    return np.concatenate([np.ravel(x) for x in arrays])


def rates(config):
    return [phases.learning_rate(epoch, config.scaled()) for epoch in range(240)]


def prompt_rates(config):
    options = config.scaled().prompts
    return [prompt_stage.learning_rate(epoch, options) for epoch in range(60)]


def prompt_batches(config):
    from ccafl_jax.training.sharding import make_mesh

    found = prompts.batches(PID, INFRARED, config.scaled().prompts, make_mesh(1), seed=config.seed,
                            epoch=0)  # fmt: skip
    rows = next(found)[0]
    return [*rows.shape, *np.asarray(rows[:8])]


def decayed_prompts(config):
    tx = prompts.prompt_optimizer(config.prompts)
    one = {"a": jnp.ones(1)}
    return tx.update({"a": jnp.zeros(1)}, tx.init(one), one)[0]["a"]


def moved(config):
    """Weights after a step without text losses, at a gradient of 0 but for biases."""
    paths = ["visual/trunk/attnpool/kernel", "visual/trunk/kernel", "visual/trunk/bias"]
    params = {path: jnp.ones(1) for path in paths}
    gradients = {path: jnp.full(1, float(path.endswith("bias"))) for path in paths}
    tx = phases.encoder_optimizer(config, paths, text=False)
    updates, _ = tx.update(gradients, tx.init(params), params)
    factors = phases.bias_factors(paths, config.optimizer.bias_lr_factor)
    found = apply_scaled(params, updates, learning_rate=1.0, factors=factors)
    return np.concatenate(list(found.values()))


def phase_names(config):
    return [phases.phase_of(epoch, config).name for epoch in range(config.schedule.epochs)]


def plans(config):
    """Shape and rows of the batches of an epoch."""
    run = types.SimpleNamespace(
        config=config.scaled(), infrared=INFRARED, progress=Progress(labels=PID.astype(np.int32))
    )
    found = Run._plan(run)
    return [*found.shape, *found[0, :8]]


def pixels(config):
    found = Run._pixels(types.SimpleNamespace(config=config))
    return [found.height, found.width, found.filter == "lanczos"]


@functools.cache
def of_a_test():
    """A test set of eight people under four cameras, and features of it."""
    dataset = with_one_source(small_pairs())
    # The second visible camera becomes an outdoor one.
    dataset = dataclasses.replace(dataset, camera_codes=(1, 4, 3, 6))
    test = dataset.query.join(dataset.gallery)
    rng = np.random.default_rng(2)
    found = unit(rng, 200, DIM)[test.pid] + 0.9 * unit(rng, len(test), DIM)
    return dataset, np.asarray(found, np.float32)


def figures(config, *, regdb=False):
    dataset, features = of_a_test()
    if regdb:
        dataset = dataclasses.replace(dataset, name="regdb")
    found = score(features, dataset, config.evaluation, tables={})
    return [found["mAP"], found["rank1"], found.get("rank1_std", 0.0)]


def figures_of_regdb(config):
    return figures(config, regdb=True)


def unmatched(config):
    """Figures where a person of the queries is not in the gallery."""
    dataset, features = of_a_test()
    keep = np.flatnonzero(dataset.gallery.pid != 101)
    features = np.concatenate([features[: len(dataset.query)], features[len(dataset.query) + keep]])
    dataset = dataclasses.replace(dataset, gallery=dataset.gallery.take(keep))
    return [score(features, dataset, config.evaluation, tables={})["mAP"]]


def published(config):
    done = Progress(zero_shot={"mAP": 0.5})
    counts = {"train_images": 1, "seconds": 1.0}
    return summarize(done, config, dataset="sysumm01", **counts)["published"]


def published_elsewhere(config):
    return published(dataclasses.replace(config, published="mAP 1"))


# Options whose effect is a file, a folder or a device: their use is tested where it happens.
ELSEWHERE = {
    "devices": 1,
    "keep_checkpoints": 5,
    "keep_best": "test",
    "skip_nonfinite": 3,
    "data.name": "regdb",
    "data.root": "elsewhere",
    "data.source": "folder",
    "data.cache": "elsewhere",
    "data.synthetic_seed": 3,
    "data.synthetic_ids": 3,
    "data.train_cameras": ("1", "3"),
    "data.split": 3,
    "input.kind": "streaming",
    "input.share": 0.1,
    "scale.shard_classes": True,
    "stages": ("prepare",),
    "text.labels": "elsewhere",
    "model.weights": "elsewhere",
    "model.tower": "vit",
    "model.activation": "gelu",
    "model.last_stride": 2,
    "model.patch_stride": 12,
    "model.compute_dtype": "bfloat16",
    "model.calibrate_neck": False,
    "model.remat": True,
    "model.attention": "plain",
    "prompts.epochs": 3,
    "evaluation.every": 3,
    "evaluation.batch": 64,
    "evaluation.draw": "official",
    "augment.erase_tries": 3,
}
OPTIONS = {
    "seed": (2, plans),
    "scale.batch": (2, plans),
    "scale.rule": ("linear", rates),
    "data.height": (64, pixels),
    "data.width": (32, pixels),
    **augmentation(law="uniform", fill="release"),
    "clustering.k1": (4, clusters),
    "clustering.k2": (1, clusters),
    "clustering.eps": (0.2, clusters),
    "clustering.min_samples": (9, clusters),
    "contrast.temperature": (0.1, batch),
    "contrast.memory_update": ("hard", batch),
    "contrast.memory_momentum": (0.5, batch),
    "swap.start": (-1, phase_names),
    "swap.scale": (0.5, batch),
    "swap.min_similarity": (0.9, batch),
    "swap.aliased": (True, batch),
    "text.weight": (0.5, batch),
    "text.smoothing": (0.3, batch),
    "prompts.batch": (16, prompt_batches),
    "prompts.base_lr": (1.0, prompt_rates),
    "prompts.warmup_from": (1e-3, prompt_rates),
    "prompts.warmup_epochs": (2, prompt_rates),
    "prompts.min_lr": (1e-4, prompt_rates),
    "prompts.weight_decay": (0.5, decayed_prompts),
    "sampler.classes": (3, plans),
    "sampler.images": (3, plans),
    "sampler.draws": ("released", plans),
    "optimizer.base_lr": (1.0, rates),
    "optimizer.bias_lr_factor": (1.0, moved),
    "optimizer.weight_decay": (0.5, moved),
    "optimizer.warmup_epochs": (3, rates),
    "optimizer.warmup_factor": (0.5, rates),
    "optimizer.milestones": ((3,), rates),
    "optimizer.gamma": (0.5, rates),
    "optimizer.swap_lr": (1e-5, rates),
    "optimizer.idle": ("decay", moved),
    "schedule.prepare_epochs": (7, phase_names),
    "schedule.train_epochs": (7, phase_names),
    "schedule.iterations": (7, plans),
    "evaluation.no_match": ("zero", unmatched),
    "evaluation.mode": ("indoor", figures),
    "evaluation.shots": (2, figures),
    "evaluation.trials": (3, figures),
    "evaluation.direction": ("thermal_to_visible", figures_of_regdb),
    "published": ("mAP 1", published),
    "published_on": ("regdb", published_elsewhere),
}
SPECIAL = {
    "scale.rule": {"scale.batch": 4},
    "clustering.eps": {"clustering.k1": 10},
    "clustering.k1": {"clustering.k1": 10, "clustering.k2": 2},
    "clustering.k2": {"clustering.k1": 10, "clustering.k2": 4},
    "clustering.min_samples": {"clustering.k1": 10},
    "augment.grey": {"augment.grey": 0.0},
}
DEFAULT = CCLNetConfig()


def changed(path, value):
    return with_options(DEFAULT, SPECIAL.get(path, {}) | {path: value})


def unchanged(path):
    return with_options(DEFAULT, SPECIAL.get(path, {}))


def test_every_option_is_in_one_table():
    assert sorted([*OPTIONS, *ELSEWHERE, "method"]) == sorted(leaves(CCLNetConfig))


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
        ("method", "calr"),
        ("model.tower", "swin"),
        ("contrast.memory_update", "mean"),
        ("sampler.draws", "none"),
        ("swap.scale", 1.5),
        ("optimizer.idle", "drop"),
        ("evaluation.mode", "outdoor"),
        ("data.split", 11),
        ("stages", ("train", "prepare")),
    ):
        with pytest.raises(ValueError, match=path.rpartition(".")[2]):
            changed(path, value)


def test_a_split_is_for_regdb():
    options = with_options(DEFAULT, {"data.split": 2}).data
    collection = types.SimpleNamespace(root="")
    with pytest.raises(ValueError, match="sysumm01 has one split"):
        whole_test_set(collection, options)
