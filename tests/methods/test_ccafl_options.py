"""Every option changes a result: a table of options, changed values and what must differ."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccafl_jax.methods import files, prompt_stage, towers
from ccafl_jax.methods.cameras import keep_cameras
from ccafl_jax.methods.ccafl import memories, phases
from ccafl_jax.methods.ccafl.config import STAGES, CCAFLConfig, ModelConfig
from ccafl_jax.methods.ccafl.model import image_model
from ccafl_jax.methods.ccafl.progress import Progress, summarize
from ccafl_jax.methods.ccafl.run import Run
from ccafl_jax.methods.holdout import split_held_out
from ccafl_jax.options import from_mapping
from ccafl_jax.training.features import score
from ccafl_jax.training.optimizers import bias_factors
from tests.methods.option_tables import augmentation, leaves
from tests.methods.small_run import SMALL, WordTokenizer, small_clip, small_dataset

CLASSES, DIM, EMBED = 12, 6, 5
LABEL = np.repeat(np.arange(CLASSES), [3, 2, 3, 4, 1, 3, 2, 3, 3, 4, 2, 3]).astype(np.int32)
CAM_OF = np.repeat(np.arange(3), 4).astype(np.int32)
CLUSTERS = np.array([0, 1, 2, -1, 0, 1, -1, 3, 0, 2, 3, -1], np.int32)


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def drawn(config):
    """Instance slots as a run draws them."""
    run = types.SimpleNamespace(
        config=config,
        labels=types.SimpleNamespace(label=LABEL),
        num_classes=CLASSES,
    )
    return Run._draw_instances(run, 0)


@functools.cache
def world(config, stage):
    """Losses and the updated memory of one batch, without an encoder."""
    rng = np.random.default_rng(0)
    features, text = unit(rng, len(LABEL), DIM), 3 * unit(rng, CLASSES, EMBED)
    draws = drawn(config)
    context = memories.make_context(
        config, label=LABEL, cam_of=CAM_OF, class_text=text, clusters=CLUSTERS, draws=draws
    )
    head = stage == "inter" and config.camera_head.weight > 0
    phase = phases.Phase(stage, text=True, ical=stage == "inter", camera_head=head)
    memory = memories.make_memory(phase, features, context, draws, cameras=3)
    rows = np.arange(0, len(LABEL), 2)
    f, g, labels = unit(rng, len(rows), DIM), 2 * unit(rng, len(rows), EMBED), LABEL[rows]
    classifier = unit(rng, CLASSES, DIM)
    state = types.SimpleNamespace(memory=memory)
    terms = phases._losses(phase, config, state, context, f, g, labels, classifier)
    updated = phases._update_memory(phase, config, memory, context, f, labels, True)
    gid = phases._classifier_step(
        types.SimpleNamespace(
            classifier=classifier,
            classifier_opt=phases.classifier_optimizer(config).init(classifier),
        ),
        context,
        f,
        labels,
        phases.classifier_optimizer(config),
        config,
    )
    return np.concatenate([np.ravel(x) for x in (*terms.values(), *updated.values(), *gid[:2])])


def intra(config):
    return world(config, "intra")


def inter(config):
    return world(config, "inter")


def phase_names(config):
    return [phases.phase_of(epoch, config).name for epoch in range(config.schedule.epochs)]


def rates(config):
    run = types.SimpleNamespace(config=config)
    return [Run._learning_rate(run, epoch) for epoch in range(60)]


def scaled_rates(config):
    return rates(config.scaled())


def prompt_rates(config):
    options = config.prompts
    return [prompt_stage.learning_rate(epoch, options) for epoch in range(options.epochs)]


def optimizer(config):
    """Two steps of a phase without text, then the bias factors."""
    params = {"visual/attnpool/bias": jnp.ones(2), "visual/conv1/kernel": jnp.ones(2)}
    tx = phases.encoder_optimizer(config, list(params), phases.Phase("inter", text=False))
    updates, _ = tx.update({k: v * 0 for k, v in params.items()}, tx.init(params), params)
    factors = bias_factors(list(params), config.optimizer.bias_lr_factor)
    return np.concatenate([*map(np.ravel, updates.values()), list(factors.values())])


def plan(config):
    run = types.SimpleNamespace(
        config=config,
        labels=types.SimpleNamespace(label=LABEL),
        progress=types.SimpleNamespace(clusters=CLUSTERS),
    )
    return Run._plan(run, 1, phases.Phase("inter", text=False))


def association(config):
    rng = np.random.default_rng(3)
    features = unit(rng, len(LABEL), DIM) + 0.3 * unit(rng, 3, DIM)[CAM_OF[LABEL]]
    found = memories.associate_features(features, LABEL, CAM_OF, config.association)
    return found.labels


def association_of_people(config):
    """Four identities under each of three cameras, told apart by most of their images."""
    rng = np.random.default_rng(3)
    label = np.repeat(np.arange(CLASSES), 6)
    features = unit(rng, 4, DIM)[label % 4] + 0.9 * unit(rng, len(label), DIM)
    return memories.associate_features(features, label, CAM_OF, config.association).labels


def renewals(config):
    """Epochs of stage 3 in which the association is renewed."""
    renewed = []
    for epoch in range(5, 15):
        run = types.SimpleNamespace(
            config=config,
            labels=types.SimpleNamespace(label=LABEL, cam_of=CAM_OF, pid_of=CAM_OF * 0),
            progress=types.SimpleNamespace(clusters=None),
        )
        features = unit(np.random.default_rng(0), len(LABEL), DIM)
        Run._associate(run, epoch, phases.Phase("inter", text=False), features)
        renewed.append(run.progress.clusters is not None)
    return renewed


def evaluation(config):
    dataset = small_dataset()
    query = dataclasses.replace(dataset.query, pid=dataset.query.pid.copy())
    query.pid[0] = 999
    dataset = dataclasses.replace(dataset, query=query)
    features = unit(np.random.default_rng(0), len(query) + len(dataset.gallery), DIM)
    return score(features, dataset, no_match=config.evaluation.no_match)["mAP"]


def held_out(config):
    dataset, records = split_held_out(small_dataset(), config.data.val_fraction, config.seed)
    return [len(dataset.train), 0 if records is None else len(records)]


def trained_cameras(config):
    return np.unique(keep_cameras(small_dataset(), config.data.train_cameras).train.camid)


def published(config):
    done = Progress(zero_shot={"mAP": 0.5})
    counts = {"classes": 1, "train_images": 1, "seconds": 1.0}
    return summarize(done, config, dataset="market1501", **counts)["published"]


def published_elsewhere(config):
    return published(dataclasses.replace(config, published="mAP 1"))


def tower(config):
    """The image model's shapes and settings as the set-up makes it."""
    model, _ = image_model(small_clip(config), config, cameras=3)
    return [*model.visual.config.grid, model.neck.group]


def camera_heads(config):
    """The heads of a ViT."""
    return image_model(small_clip(config, vit=True), config, cameras=3)[1].heads


def compute(config):
    taken = {}

    def load_clip(directory, **options):
        taken.update(options, directory=str(directory))
        return small_clip()

    originals = towers.load_clip, files.local_directory
    towers.load_clip, files.local_directory = load_clip, str
    try:
        towers.load_towers(config, files.weights_directory(config.model.weights, "weights"))
    finally:
        towers.load_clip, files.local_directory = originals
    return str(taken)


def value_of(path):
    def probe(config):
        for name in path.split("."):
            config = getattr(config, name)
        return config

    return probe


# Options whose effect is a file, a folder or a device: their use is tested where it happens.
ELSEWHERE = {
    "data.name": "synthetic",
    "data.root": "elsewhere",
    "data.source": "folder",
    "data.cache": "somewhere",
    "data.synthetic_seed": 7,
    "data.synthetic_ids": 30,
    "data.allow_single_identity": True,
    "data.unlabelled": "cluster",
    "data.unlabelled_cameras": ("2",),
    "data.local_clusters": 7,
    "devices": 1,
    "keep_checkpoints": 5,
    "keep_best": "test",
    "skip_nonfinite": 3,
    "init_from": "runs/earlier",
    "input.kind": "streaming",
    "input.share": 0.1,
    "scale.shard_classes": True,
    "stages": ("prompts",),
    "model.attention": "cudnn",
    "model.calibrate_neck": False,
    "model.camera_embedding": True,
    "model.tower": "vit",
    "evaluation.every": 3,
    "evaluation.batch": 64,
    "prompts.batch": 8,
    "prompts.prefix_tokens": 5,
    "prompts.scope": "batch",
    "prompts.weight_decay": 1.0,
    "augment.erase_tries": 3,
}
OPTIONS = {
    "seed": (2, plan),
    "scale.batch": (2, scaled_rates),
    "scale.rule": ("linear", scaled_rates),
    "prompts.epochs": (3, prompt_rates),
    "prompts.base_lr": (1.0, prompt_rates),
    "prompts.warmup_from": (1.0, prompt_rates),
    "prompts.warmup_epochs": (1, prompt_rates),
    "prompts.min_lr": (1.0, prompt_rates),
    "schedule.iterations": (3, plan),
    **augmentation(law="log", fill="zero"),
    "reduce": ("mean_cam_mean", intra),
    "data.val_fraction": (0.25, held_out),
    "data.train_cameras": (("1", "c3"), trained_cameras),
    "published": ("mAP 1", published),
    "published_on": ("msmt17_v1", published_elsewhere),
    "data.height": (64, tower),
    "data.width": (32, tower),
    "model.weights": ("somewhere", compute),
    "model.activation": ("gelu", compute),
    "model.last_stride": (2, compute),
    "model.camera_scale": (3.0, camera_heads),
    "model.patch_stride": (12, compute),
    "model.remat": (True, compute),
    "model.compute_dtype": ("bfloat16", compute),
    "model.bn_group": (8, tower),
    "sampler.classes": (3, plan),
    "sampler.images": (2, plan),
    "sampler.kind": ("cluster_pk", plan),
    "optimizer.base_lr": (1.0, rates),
    "optimizer.bias_lr_factor": (1.0, optimizer),
    "optimizer.weight_decay": (0.0, optimizer),
    "optimizer.warmup_epochs": (3, rates),
    "optimizer.warmup_factor": (0.5, rates),
    "optimizer.milestones": ((7,), rates),
    "optimizer.gamma": (0.5, rates),
    "optimizer.classifier_lr": (0.1, intra),
    "optimizer.classifier_weight_decay": (10.0, intra),
    "optimizer.idle": ("decay", optimizer),
    "schedule.epochs": (50, phase_names),
    "schedule.intra_epochs": (6.0, phase_names),
    "schedule.text_start": (12.0, phase_names),
    "schedule.ical_start": (30.0, phase_names),
    "schedule.ical_end": (60.0, phase_names),
    "schedule.unit": ("fraction", phase_names),
    "icdl.w": (0.2, intra),
    "icdl.temperature": (0.1, intra),
    "icdl.instances": (0, intra),
    "icdl.centroid_update": ("hard", intra),
    "icdl.memory_momentum": (0.5, intra),
    "inter.temperature": (0.1, inter),
    "inter.memory_update": ("mean", inter),
    "inter.memory_momentum": (0.5, inter),
    "text.intra": (False, phase_names),
    "text.inter": (False, phase_names),
    "text.smoothing": (0.3, inter),
    "text.inter_denominator": (4821, inter),
    "text.cluster_text": ("class_mean", inter),
    "triplet.enabled": (False, inter),
    "triplet.margin": (0.1, intra),
    "ical.enabled": (False, phase_names),
    "ical.epsilon": (0.1, inter),
    "ical.margin": (0.1, inter),
    "ical.inflation": (0.0, inter),
    "ical.scale": (8.0, inter),
    "camera_head.weight": (0.5, phase_names),
    "camera_head.scale": (8.0, inter),
    "camera_head.lr": (0.3, inter),
    "association.method": ("greedy_cc_cam", association),
    "association.rate": (0.4, association),
    "association.mutual": (1, association),
    "association.max_distance": (0.5, association),
    "association.nearest": (2, association),
    "association.k1": (12, association_of_people),
    "association.k2": (2, association_of_people),
    "association.group_distance": (0.2, association_of_people),
    "association.eps": (0.3, association_of_people),
    "association.min_samples": (20, association_of_people),
    "association.every": (3, renewals),
    "association.center_cameras": (True, association),
    "evaluation.no_match": ("zero", evaluation),
}
SPECIAL = {
    "model.attention": {"compute_dtype": "bfloat16"},
    "model.camera_scale": {"camera_embedding": True},
    "camera_head.scale": {"weight": 1.0},
    "camera_head.lr": {"weight": 1.0},
    "scale.rule": {"batch": 4},
    # A border of 5 epochs is no fraction, so the borders change with the unit.
    "schedule.unit": {"intra_epochs": 0.1, "text_start": 0.2, "ical_start": 0.5, "ical_end": 1.0},
}
# Options of methods that are not the default.
METHOD_OF = {
    "association.nearest": "mnn",
    "association.k1": "greedy_groups",
    "association.k2": "greedy_groups",
    "association.group_distance": "greedy_groups",
    "association.eps": "dbscan",
    "association.min_samples": "dbscan",
}
DEFAULT = dataclasses.replace(
    CCAFLConfig(),
    sampler=SMALL.sampler,
    icdl=dataclasses.replace(CCAFLConfig().icdl, instances=3),
    data=SMALL.data,
    model=dataclasses.replace(CCAFLConfig().model, weights=files.TINY_CLIP),
)


def changed(path, value):
    group, _, name = path.rpartition(".")
    values = {name: value} | SPECIAL.get(path, {})
    if path in METHOD_OF:
        values["method"] = METHOD_OF[path]
    nested = dataclasses.asdict(DEFAULT)
    (nested[group] if group else nested).update(values)
    return from_mapping(CCAFLConfig, nested)


def test_the_table_is_complete():
    assert sorted([*OPTIONS, *ELSEWHERE, "method"]) == sorted(leaves(CCAFLConfig))


@pytest.mark.parametrize("path", sorted(OPTIONS))
def test_option_changes_a_result(path):
    value, probe = OPTIONS[path]
    default = changed("association.method", METHOD_OF[path]) if path in METHOD_OF else DEFAULT
    if path in ("camera_head.scale", "camera_head.lr"):
        default = changed("camera_head.weight", 1.0)
    before, after = probe(default), probe(changed(path, value))
    if isinstance(before, np.ndarray) and before.shape == after.shape:
        assert np.abs(before.astype(float) - after).max() > 1e-6
    elif isinstance(before, np.ndarray):
        assert before.shape != after.shape
    else:
        assert before != after


@pytest.mark.parametrize("path", sorted(ELSEWHERE))
def test_option_is_accepted(path):
    assert value_of(path)(changed(path, ELSEWHERE[path])) == ELSEWHERE[path]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stages", ("inter", "prompts"), "stages must follow"),
        ("stages", ("stage4",), "must be one of"),
        ("schedule.intra_epochs", 2.5, "must be a whole epoch"),
        ("icdl.w", 1.5, "must lie between 0 and 1"),
        ("model.compute_dtype", "float16", "must be one of float32, bfloat16"),
        ("association.rate", 0.0, r"rate is 0.0, must be a number above 0 .* or auto"),
        ("association.rate", "fast", r"rate is 'fast', must be a number above 0 .* or auto"),
        ("association.rate", float("nan"), "rate is nan, must be a number above 0"),
        ("association.rate", True, "rate is True, must be a number above 0"),
        ("association.mutual", -1, "mutual must be 0"),
        ("association.max_distance", 4.5, "max_distance is 4.5, must lie above 0 and up to 4"),
        ("association.nearest", 0, "nearest must be at least 1"),
        ("association.k1", 5, "k2 must be at least 1 and at most k1"),
        ("association.k2", 0, "k2 must be at least 1 and at most k1"),
        ("association.group_distance", 0.0, "group_distance is 0.0, must lie between 0 and 1"),
        ("association.eps", 1.0, "eps is 1.0, must lie between 0 and 1"),
        ("association.min_samples", 0, "min_samples and every must be positive"),
        ("association.every", 0, "min_samples and every must be positive"),
        ("association.method", "gredy_cc", "did you mean greedy_cc"),
        ("association.method", "kmeans", "known are dbscan, greedy_cc, greedy_cc_cam, greedy_gr"),
        ("prompts.prefix_tokens", 7, "prefix_tokens must be 4, 5 or 6"),
        ("model.tower", "mixer", "must be one of"),
        ("data.val_fraction", 1.0, "must be at least 0 and below 1"),
        ("data.val_fraction", -0.1, "must be at least 0 and below 1"),
    ],
)
def test_impossible_values_are_refused(path, value, message):
    with pytest.raises(ValueError, match=message):
        changed(path, value)


def test_medoid_is_the_text_of_a_member():
    texts = jnp.asarray(np.eye(3) + 0.1, jnp.float32)
    clusters, counts = jnp.asarray([0, 0, -1]), jnp.asarray([5, 1, 1])
    found = memories.cluster_texts(texts, clusters, counts, capacity=2, kind="medoid")
    np.testing.assert_array_equal(found, np.stack([texts[0], np.zeros(3)]))


def test_all_instances_cover_every_image():
    draws = memories.all_instances(LABEL, CLASSES)
    assert draws.index.shape == (CLASSES, 4)
    assert sorted(draws.index[draws.valid].tolist()) == list(range(len(LABEL)))
    assert np.all(LABEL[draws.index] == np.arange(CLASSES)[:, None])


def test_word_tokenizer_makes_the_template():
    ids, eot = WordTokenizer().encode(["A photo of a X X X X person."])
    assert eot[0] == 10 and STAGES == ("prompts", "intra", "inter") and ids[0, 0] == 10


def test_a_recipe_for_one_tower_refuses_the_other(monkeypatch):
    monkeypatch.setattr(towers, "load_clip", lambda *_, **options: small_clip())
    config = changed("model.tower", "vit")
    with pytest.raises(ValueError, match="for a vit tower and DIR holds a resnet"):
        towers.load_towers(config, "DIR")
    assert towers.load_towers(changed("model.tower", "resnet"), "DIR") is not None


def test_a_camera_scale_without_cameras_is_refused():
    with pytest.raises(ValueError, match="camera_scale needs camera_embedding"):
        from_mapping(CCAFLConfig, {"model": {"camera_scale": 3.0}})


def test_fused_attention_is_refused_where_it_cannot_run(monkeypatch):
    with pytest.raises(ValueError, match="needs compute_dtype='bfloat16'"):
        from_mapping(CCAFLConfig, {"model": {"attention": "cudnn"}})
    config = ModelConfig(attention="cudnn", compute_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"Ampere or later.*the devices are cpu: set"):
        towers.attention(config)


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "expected"),
    [
        ("cpu", None, "bfloat16", "plain"),
        ("gpu", "9.0", "bfloat16", "cudnn"),
        ("gpu", "9.0", "float32", "plain"),
        ("gpu", "7.5", "bfloat16", "plain"),
        ("gpu", "12.0", "bfloat16", "cudnn"),
        ("gpu", "gfx90a", "bfloat16", "plain"),
    ],
)
def test_attention_follows_the_devices(platform, capability, dtype, expected, monkeypatch):
    device = types.SimpleNamespace(platform=platform, device_kind="fake")
    if capability:
        device.compute_capability = capability
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert towers.attention(ModelConfig(compute_dtype=dtype)) == expected


def test_weights_must_be_named():
    with pytest.raises(ValueError, match=r"set --config\.model\.weights to the folder or the Hub"):
        files.weights_directory("", "a CLIP checkpoint")
    assert (files.weights_directory(files.TINY_CLIP, "") / "open_clip_config.json").is_file()


def test_a_vit_has_no_last_stride(monkeypatch):
    monkeypatch.setattr(towers, "load_clip", lambda *_, **options: small_clip(vit=True))
    with pytest.raises(ValueError, match=r"last_stride is for ResNets"):
        towers.load_towers(changed("model.last_stride", 2), "DIR")
