"""Every option changes a result: a table of options, changed values and what must differ."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.data.clips import clips_of
from ccafl_jax.data.records import tracklets
from ccafl_jax.methods import files
from ccafl_jax.methods.options import DataConfig
from ccafl_jax.methods.progress import Progress
from ccafl_jax.methods.tfclip import phases
from ccafl_jax.methods.tfclip.config import OptimizerConfig, TFCLIPConfig
from ccafl_jax.methods.tfclip.model import video_model
from ccafl_jax.methods.tfclip.progress import summarize
from ccafl_jax.methods.tfclip.run import Run, identities, training_items
from ccafl_jax.models.clip.config import ViTConfig
from ccafl_jax.models.video import ClipOutputs, VideoConfig, build_video
from ccafl_jax.training.state import merge_model, split_model
from tests.golden_data import golden
from tests.methods.option_tables import augmentation, leaves, with_options
from tests.methods.small_tfclip import SMALL, small_towers, small_tracklets

DEFAULT = dataclasses.replace(SMALL, devices=0)


@functools.cache
def model_of(config):
    model, _ = video_model(small_towers(config), config, classes=4, cameras=3)
    return split_model(model)


@functools.cache
def outputs(config):
    """Outputs of a batch of clips in training, and its features in testing, as one array."""
    rng = np.random.default_rng(0)
    clips = jnp.asarray(rng.normal(size=(4, 2, 32, 16, 3)), jnp.float32)
    memory = jnp.asarray(rng.normal(size=(4, 8)), jnp.float32) if config.loss.memory else None
    cameras, key = jnp.array([0, 1, 2, 0]), jax.random.key(0)
    graph, params, stats = model_of(config)

    @jax.jit
    def run(params):
        model = merge_model(graph, params, stats)
        feature = model.embed(clips, cameras)
        found = model(clips, cameras, memory, key=key)
        return feature, found

    feature, found = run(params)
    names = sorted(found.logits)
    return np.concatenate([np.ravel(found.logits[name]) for name in names] + [np.ravel(feature)])


def losses_of(config):
    rng = np.random.default_rng(0)
    label = jnp.array([0, 0, 1, 1])
    features = {name: 0.1 * rng.normal(size=(4, 6)) for name in ("image", "joint", "time")}
    logits = {name: rng.normal(size=(4, 5)) for name in (*features, "memory")}
    logits["frame"] = rng.normal(size=(8, 5))
    found = phases.weighted_losses(ClipOutputs(features, logits), label, config)
    return [found.get(name, -1) for name in ("id", "triplet", "memory", "frame")]


def rates(config):
    return [phases.learning_rate(epoch, config.scaled()) for epoch in range(80)]


def factors(config):
    found = phases.rate_factors(model_of(DEFAULT)[1], config.optimizer)
    return [found[path] for path in sorted(found)]


def decayed(config):
    state = phases.initial_state(config, {"a": jnp.ones(1)}, {})
    tx = phases.coupled_adam(config.optimizer.weight_decay)
    return tx.update({"a": jnp.zeros(1)}, state.opt_state, state.params)[0]["a"]


@functools.cache
def long_tracklets():
    return small_tracklets(frames=(9, 23, 40), people=6)


class Planner(Run):
    """A run that only plans."""

    def __init__(self, config):
        self.config = config.scaled()
        self.dataset = long_tracklets()
        self.items = training_items(self.dataset, self.config)
        self.labels = identities(self.items.pid)


def plans(config):
    plan = Planner(config)._plan(0)
    return [*plan.shape, *plan[:2, :8].ravel()]


def items(config):
    return [*training_items(long_tracklets(), config).count]


def kinds(config):
    """Which frames the memory and the evaluations of the epochs look at."""
    table = tracklets(long_tracklets().train)
    run = Planner(config)
    run._context = None
    found = [config.clips.memory]
    for epoch in range(config.schedule.epochs):
        run._start(epoch, phases.Phase(), fresh=True)
        found.append(run._kind)
    return [
        len(clips_of(table, kind, frames=config.clips.frames, split=config.clips.split))
        for kind in found
    ]


def published(config):
    done = Progress(zero_shot={"mAP": 0.5})
    counts = {"tracklets": 1, "seconds": 1.0}
    return summarize(done, config, dataset="mars", **counts)["published"]


def published_elsewhere(config):
    return published(dataclasses.replace(config, published="mAP 1"))


def grid(config):
    return model_of(config)[1]["visual/positional_embedding"].shape


# Options whose effect is a file, a folder or a device: their use is tested where it happens.
ELSEWHERE = {
    "data.name": "lsvid",
    "data.root": "elsewhere",
    "data.source": "folder",
    "data.cache": "somewhere",
    "data.synthetic_seed": 7,
    "data.synthetic_ids": 30,
    "data.train_cameras": ("2",),
    "data.split": 3,
    "data.orientation": "tfclip",
    "devices": 1,
    "keep_checkpoints": 5,
    "keep_best": "test",
    "skip_nonfinite": 3,
    "input.kind": "streaming",
    "input.share": 0.1,
    "stages": ("clips",),
    "model.weights": "elsewhere",
    "model.tower": "vit",
    "model.activation": "gelu",
    "model.last_stride": 2,
    "model.compute_dtype": "bfloat16",
    "model.remat": True,
    "model.attention": "plain",
    "prompt.remat": True,
    "evaluation.every": 3,
    "evaluation.batch": 64,
    "evaluation.no_match": "zero",
    "augment.erase_tries": 3,
}
OPTIONS = {
    "seed": (2, plans),
    "scale.batch": (2, plans),
    "scale.rule": ("linear", rates),
    "data.height": (64, grid),
    "data.width": (32, grid),
    **augmentation(law="log", fill="zero", frames=2),
    "model.patch_stride": (4, grid),
    "model.camera_embedding": (False, outputs),
    "model.camera_scale": (9.0, outputs),
    "model.feature": ("neck_released", outputs),
    "clips.frames": (4, plans),
    "clips.split": ("even", plans),
    "clips.piece": (12, items),
    "clips.step": (6, items),
    "clips.memory": ("spread", kinds),
    "clips.during": ("dense", kinds),
    "clips.final": ("spread", kinds),
    "prompt.enabled": (False, outputs),
    "prompt.layers": (2, outputs),
    "prompt.heads": (4, outputs),
    "prompt.layout": ("paper", outputs),
    "prompt.context": ("sequences", outputs),
    "prompt.dropout": (0.5, outputs),
    "diffusion.enabled": (False, outputs),
    "diffusion.heads": (4, outputs),
    "loss.id": (1.0, losses_of),
    "loss.triplet": (0.5, losses_of),
    "loss.memory": (0.0, losses_of),
    "loss.frame": (0.0, losses_of),
    "loss.smoothing": (0.3, losses_of),
    "loss.margin": (0.5, losses_of),
    "loss.soft_margin": (True, losses_of),
    "sampler.classes": (3, plans),
    "sampler.tracklets": (3, plans),
    "optimizer.base_lr": (1.0, rates),
    "optimizer.weight_decay": (0.5, decayed),
    "optimizer.rates": ("released", factors),
    "optimizer.new_factor": (5.0, factors),
    "optimizer.bias_factor": (3.0, factors),
    "optimizer.warmup_epochs": (5, rates),
    "optimizer.warmup_factor": (0.5, rates),
    "optimizer.milestones": ((3,), rates),
    "optimizer.gamma": (0.5, rates),
    "schedule.epochs": (7, kinds),
    "schedule.iterations": (7, plans),
    "published": ("mAP 1", published),
    "published_on": ("lsvid", published_elsewhere),
}
SPECIAL = {
    "scale.rule": {"scale.batch": 4},
    "clips.step": {"clips.piece": 12},
    "optimizer.warmup_factor": {"optimizer.warmup_epochs": 5},
}


def changed(path, value):
    return with_options(DEFAULT, {path: value} | SPECIAL.get(path, {}))


def unchanged(path):
    return with_options(DEFAULT, SPECIAL.get(path, {}))


def test_every_option_is_in_one_table():
    refused = ["method", "scale.shard_classes"]
    assert sorted([*OPTIONS, *ELSEWHERE, *refused]) == sorted(leaves(TFCLIPConfig))


@pytest.mark.parametrize("path", sorted(OPTIONS))
def test_option_changes_something(path):
    value, probe = OPTIONS[path]
    before, after = probe(unchanged(path)), probe(changed(path, value))
    assert not np.array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize("path", sorted(ELSEWHERE))
def test_option_is_taken(path):
    value = ELSEWHERE[path]
    more = {"data.split": 1} if path == "data.orientation" else {}
    found = with_options(DEFAULT, {path: value} | more)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "calr"}, "method"),
        ({"scale.shard_classes": True}, "identities attend to each other"),
        ({"model.feature": "after"}, "feature"),
        ({"model.camera_embedding": False, "model.camera_scale": 2.0}, "camera_scale needs"),
        ({"clips.final": "rrs"}, "final is 'rrs'"),
        ({"clips.split": "odd"}, "split is 'odd'"),
        ({"clips.step": 4}, "step must be 0"),
        ({"prompt.layout": "figure"}, "layout is 'figure'"),
        ({"prompt.dropout": 1.0}, "dropout is 1.0"),
        ({"loss.memory": -1.0}, "weights must be 0 or more"),
        ({"loss.smoothing": 1.0}, "smoothing"),
        ({"optimizer.rates": "ten"}, "rates is 'ten'"),
        ({"data.orientation": "tfclip"}, "state the split, too"),
        ({"keep_best": "val"}, "keep_best"),
        ({"stages": ("prompts",)}, "stages"),
    ],
)
def test_what_does_not_go_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        with_options(DEFAULT, values)


def test_rates_are_the_published_ones():
    data = golden("lr_schedule", "tfclip")
    found = [phases.learning_rate(epoch, TFCLIPConfig()) for epoch in range(80)]
    np.testing.assert_allclose(found, data["out/lr_epoch_1_to_80"], rtol=1e-6)


def test_groups_of_rates():
    """Published: 130, 106 and 2 tensors; four of them are read by nothing and absent here."""
    sizes = VideoConfig(
        vision=ViTConfig(
            layers=12,
            width=768,
            heads=12,
            mlp_width=3072,
            patch_size=16,
            image_size=(256, 128),
            stride=16,
        ),
        embed_dim=512,
        activation="quick_gelu",
        classes=625,
        cameras=6,
    )
    model = nnx.eval_shape(lambda: build_video(sizes))
    paths = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    released = phases.rate_factors(paths, OptimizerConfig(rates="released"))
    groups = {factor: list(released.values()).count(factor) for factor in (1.0, 2.0, 10.0)}
    assert groups == {1.0: 130 - 2, 2.0: 106 - 1, 10.0: 2 - 1}
    intended = phases.rate_factors(paths, OptimizerConfig())
    for path in paths:
        new = path.startswith(("prompt/", "diffusion/", "classifiers/time/"))
        assert intended[path] == (10.0 if new else released[path])
    counts = [x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))]
    unread = 768 * 625 + 3 * 512  # a classifier, and vectors of the prompts
    shifts = 3 * 768 + 512  # of the four necks, fixed at 0
    assert sum(counts) == 107_148_544 - unread - shifts


def test_single_images_are_refused(monkeypatch):
    single = small_tracklets()
    train = dataclasses.replace(single.train, tracklet=None)
    dataset = dataclasses.replace(
        single, train=train, root="ROOT", report={"warnings": ("a warning",)}
    )
    monkeypatch.setattr(files, "open_dataset", lambda *_, **options: dataset)
    with pytest.raises(ValueError, match=r"ROOT holds single images \(train\); X takes tracklets"):
        files.open_tracklets(DataConfig(), "ROOT", method="X", selection={})
