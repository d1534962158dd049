"""Forty iterations of the published training loop across all phase borders."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.data.augment import AugmentConfig
from ccafl_jax.data.labels import IntraCameraLabels
from ccafl_jax.evaluation.ranking import rank
from ccafl_jax.methods.ccafl import memories
from ccafl_jax.methods.ccafl.config import (
    AssociationConfig,
    CCAFLConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    SamplerConfig,
    ScheduleConfig,
    TextConfig,
)
from ccafl_jax.methods.ccafl.phases import initial_state, phase_of
from ccafl_jax.methods.ccafl.progress import Progress
from ccafl_jax.methods.ccafl.run import Run
from ccafl_jax.models.clip import ModifiedResNet, ResNetConfig
from ccafl_jax.models.layers import Compute
from ccafl_jax.models.reid import ReIDModel
from ccafl_jax.models.reid_weights import load_reid_tensors
from ccafl_jax.training.inputs import ResidentImages
from ccafl_jax.training.loop import Loop
from ccafl_jax.training.sharding import make_mesh, replicate
from ccafl_jax.training.state import merge_model, split_model
from tests.golden_data import golden

RELEASE = CCAFLConfig(
    devices=1,
    augment=AugmentConfig(
        flip=0.0, pad=0, erase_probability=0.0, mean=(128 / 255,) * 3, std=(64 / 255,) * 3
    ),
    model=ModelConfig(bn_group=0, calibrate_neck=False),
    sampler=SamplerConfig(classes=6, images=4),
    optimizer=OptimizerConfig(idle="decay", warmup_epochs=4, milestones=(3,)),
    schedule=ScheduleConfig(
        epochs=4, iterations=10, intra_epochs=1, text_start=2, ical_start=3, ical_end=4
    ),
    text=TextConfig(inter_denominator=4821),
    association=AssociationConfig(rate=1.7),
    evaluation=EvaluationConfig(batch=64, no_match="zero"),
)
TERMS = {
    "gid": "gid",
    "total": "total",
    "inter": "cm_hard",
    "text_inter": "inter_text",
    "ical": "ical",
    "icdl_centroid": "intra_centroid",
    "icdl_instance": "intra_instance",
    "text_intra": "intra_i2tce",
    "triplet_memory": "intra_mem_triplet",
}


class ReferenceRun(Run):
    """The library's run with the recorded batches, draws and rates in place of its own."""

    def __init__(self, config: CCAFLConfig, dtype):
        self.config, self.dtype = config, dtype
        self.mesh = make_mesh(1)
        self.record = golden("loop_s0", "ccafl_loop")
        weights = golden("loop_s0_weights", "ccafl_loop")
        record = self.record
        self.labels = IntraCameraLabels(
            label=record["g_labels"].astype(np.int32),
            cam_of=np.argmax(record["cam2accu"], axis=0).astype(np.int32),
            pid_of=np.zeros(20, np.int32),
        )
        self.dataset = types.SimpleNamespace(
            train=types.SimpleNamespace(camid=self.labels.cam_of[self.labels.label])
        )
        self.images = jnp.asarray(record["images_u8"].transpose(0, 2, 3, 1))
        self.class_text = jnp.asarray(record["class_text"], dtype)
        vision = ResNetConfig(
            layers=tuple(record["hp_layers"].tolist()),
            width=int(record["hp_width"]),
            image_size=(64, 32),
            last_stride=1,
        )
        compute = Compute(dtype=dtype, param_dtype=dtype)
        visual = ModifiedResNet(vision, out_features=16, compute=compute, rngs=nnx.Rngs(0))
        visual.attnpool.heads = int(record["hp_heads"])  # the files' tiny tower has more of them
        model = ReIDModel(visual)
        initial = {k[5:]: v for k, v in weights.items() if k.startswith("init.")}
        classifier = jnp.asarray(initial.pop("classifier.weight"), dtype)
        load_reid_tensors(model, initial)
        self.graphdef, params, batch_stats = split_model(model)
        state = initial_state(config, params, batch_stats, classifier)
        self.state = replicate(state, self.mesh)
        self.images = ResidentImages(self.images, self.mesh)
        self.progress, self.traces, self.loop = Progress(), [], Loop()

    def _plan(self, epoch, phase):
        return self.record["index_plan"][epoch].astype(np.int32)

    def _draw_instances(self, epoch):
        index = self.record["instance_draws"].astype(np.int32)
        return memories.InstanceDraws(index=index, valid=np.ones(index.shape, bool))

    def _learning_rate(self, epoch):
        return (
            self.record["f64_lr"][epoch]
            if self.dtype == jnp.float64
            else super()._learning_rate(epoch)
        )

    def go(self):
        """All epochs; returns the metrics of every iteration and the labels of every epoch."""
        found, labels, starts, self.ends = [], [], [], []
        bar = types.SimpleNamespace(update=lambda *_: None)
        steps = {}
        for epoch in range(4):
            phase = phase_of(epoch, self.config)
            if phase not in steps:
                steps[phase] = self._make_step(phase)

            def step(*arguments, run=steps[phase]):
                state, metrics = run(*arguments)
                found.append(metrics)
                return state, metrics

            features = self.extract_f(self.state.params, self.state.batch_stats, self.images)
            starts.append(np.asarray(features))
            self._encoder_epoch(epoch, phase, step, bar)
            labels.append(self.progress.clusters)
            self.ends.append(jax.device_get(self.state))
        return jax.device_get(found), labels, starts


def expected_terms(record, prefix):
    """Name of our metric -> float[4, 10], NaN where the term is not active."""
    expected = {}
    for ours, theirs in TERMS.items():
        values = record[f"{prefix}loss_{theirs}"]
        if theirs.startswith("intra_"):
            weight = {"intra_centroid": 0.6, "intra_instance": 0.4}.get(theirs, 1.0)
            per_step = weight * np.nansum(values, axis=1)
            values = np.full((4, 10), np.nan)
            values[0] = per_step
        expected[ours] = values
    triplet = np.array(record[f"{prefix}loss_inter_triplet"], np.float64)
    triplet[0] = np.nansum(record[f"{prefix}loss_intra_batch_triplet"], axis=1)
    expected["triplet_batch"] = triplet
    return expected


def worst_difference(found, expected):
    """Largest difference of any term, float[4, 10]; a term must be active in both or neither."""
    worst = np.zeros((4, 10))
    for name, values in expected.items():
        for i, metrics in enumerate(found):
            value = values[i // 10, i % 10]
            assert (name in metrics) == bool(np.isfinite(value)), (name, i)
            if name in metrics:
                where = i // 10, i % 10
                worst[where] = max(worst[where], abs(float(metrics[name]) - value))
    return worst


@pytest.fixture(scope="module")
def double_run():
    with jax.enable_x64(True):
        run = ReferenceRun(RELEASE, jnp.float64)
        return run, *run.go()


@pytest.fixture(scope="module")
def single_run():
    run = ReferenceRun(RELEASE, jnp.float32)
    return run, *run.go()


@pytest.mark.ci
def test_every_loss_term_of_forty_iterations_in_float64(double_run):
    run, found, labels, starts = double_run
    worst = worst_difference(found, expected_terms(run.record, "f64_"))
    assert worst.max() < 1e-9, worst.max(axis=1)
    norms = np.array([m["grad_norm"] for m in found]).reshape(4, 10)
    np.testing.assert_allclose(norms, run.record["f64_grad_norm"], rtol=1e-8)
    np.testing.assert_allclose(starts[3], run.record["f64_e3_features"], atol=1e-9)
    for epoch in range(4):
        np.testing.assert_array_equal(labels[epoch], run.record[f"e{epoch}_pseudo_labels"])


@pytest.mark.ci
def test_each_phase_is_traced_once(double_run):
    run = double_run[0]
    assert run.traces == ["intra+text", "inter", "inter+text", "inter+text+ical"]


def test_losses_and_features_in_float32(single_run):
    run, found, labels, starts = single_run
    worst = worst_difference(found, expected_terms(run.record, ""))
    assert np.all(worst <= run.record["tol_loss_suggested"])
    for epoch, tolerance in enumerate((2e-5, 1e-4, 5e-3, 1e-2)):
        np.testing.assert_allclose(starts[epoch], run.record[f"e{epoch}_features"], atol=tolerance)
        np.testing.assert_array_equal(labels[epoch], run.record[f"e{epoch}_pseudo_labels"])


def test_final_weights_and_evaluation_in_float32(single_run):
    run = single_run[0]
    weights = golden("loop_s0_weights", "ccafl_loop")
    final = {k[6:]: v for k, v in weights.items() if k.startswith("final.")}
    classifier = final.pop("classifier.weight")
    model = merge_model(run.graphdef, run.state.params, run.state.batch_stats)
    load_reid_tensors(model, final)
    _, params, batch_stats = split_model(model)
    for name, value in params.items():
        np.testing.assert_allclose(run.state.params[name], value, atol=3e-4, err_msg=name)
    for name, value in batch_stats.items():
        np.testing.assert_allclose(run.state.batch_stats[name], value, atol=2e-3, err_msg=name)
    np.testing.assert_allclose(run.state.classifier, classifier, atol=1e-4)
    record = run.record
    pixels = np.concatenate([record["query_u8"], record["gallery_u8"]]).transpose(0, 2, 3, 1)
    features = run.extract_f(run.state.params, run.state.batch_stats, pixels)
    result = rank(
        features[:12],
        features[12:],
        record["query_ids"],
        record["gallery_ids"],
        record["query_cams1"],
        record["gallery_cams1"],
        no_match="zero",
    )
    np.testing.assert_allclose(result.mAP, record["mAP"][3], atol=1e-3)
    np.testing.assert_allclose(features[12:], record["gallery_features_last"], atol=1e-2)
