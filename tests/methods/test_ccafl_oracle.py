"""Forty iterations across a border of phases, against a plain restatement of the specification.

The encoder is a linear map with the published neck, so that the loop is tested and not the tower:
everything between the images and the next state is the package's own (`Run._encoder_epoch` and what
it calls). The oracle (tests/oracle) computes in NumPy and float64, with gradients by hand; only the
batches and the draws of instances are handed to it.

In float64 the two agree to eight digits to the end, and in float32 to four. A linear encoder lets
rounding grow little in forty iterations, so no rate had to be lowered: they are the published ones.
"""

import dataclasses
import functools
import types
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.data.augment import AugmentConfig
from ccafl_jax.data.labels import intra_camera_labels
from ccafl_jax.methods.ccafl import memories
from ccafl_jax.methods.ccafl.config import CCAFLConfig, EvaluationConfig, SamplerConfig
from ccafl_jax.methods.ccafl.phases import initial_state, phase_of
from ccafl_jax.methods.ccafl.progress import Progress
from ccafl_jax.methods.ccafl.run import Run
from ccafl_jax.models.layers import BNNeck
from ccafl_jax.models.reid import HeadConfig, set_bn_group
from ccafl_jax.numerics import l2_normalize
from ccafl_jax.training.inputs import ResidentImages
from ccafl_jax.training.layout import with_rows
from ccafl_jax.training.loop import Loop
from ccafl_jax.training.scale import ScaleConfig
from ccafl_jax.training.sharding import make_mesh
from ccafl_jax.training.state import split_model
from tests.methods.test_recipes import recipe as recipe_of
from tests.oracle import losses
from tests.oracle import recipe as oracle_recipes
from tests.oracle.network import Encoder
from tests.oracle.training import Training

HEIGHT, WIDTH, DIM, EMBED = 4, 4, 16, 8
ITERATIONS = 20
PRESETS = {
    "clean": (CCAFLConfig(), oracle_recipes.CLEAN),
    "duke": (recipe_of("ccafl_dukemtmcreid_release"), oracle_recipes.DUKE_RELEASE),
    "msmt17": (recipe_of("ccafl_msmt17_release"), oracle_recipes.MSMT17_RELEASE),
}


@dataclasses.dataclass(frozen=True)
class People:
    """A training set: 18 (camera, identity) classes and 54 images in either case.

    Attributes:
      seen: identities under each camera.
      sampler: batches of 32.
    """

    seen: tuple[tuple[int, ...], ...]
    sampler: SamplerConfig

    @functools.cached_property
    def images(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images, identities and cameras; an identity looks a little different to each camera."""
        rng = np.random.default_rng(7)
        faces = rng.normal(0, 40, (20, HEIGHT, WIDTH, 3))
        tints = rng.normal(0, 22, (len(self.seen), HEIGHT, WIDTH, 3))
        counts = [1, 3, 5, 2, 4, 3] * 3  # single images, and more than a batch takes
        classes = [(pid, camera) for camera, ids in enumerate(self.seen) for pid in ids]
        pid, camera = np.repeat(classes, counts, axis=0).T
        noise = rng.normal(0, 30, (len(pid), HEIGHT, WIDTH, 3))
        pixels = 128 + faces[pid] + tints[camera] + noise
        return np.clip(pixels, 0, 255).astype(np.uint8), pid, camera


PEOPLE = {
    # The last camera has one identity.
    "some": People(
        seen=((0, 1, 2, 3, 4, 5), (0, 1, 2, 6, 7, 8), (0, 3, 6, 9, 10), (1,)),
        sampler=SamplerConfig(classes=8, images=4),
    ),
    # One identity is in every camera, the others in one; 16 of 18 classes reach every camera.
    "everywhere": People(
        seen=((0, 1, 2, 3, 4, 5), (0, 6, 7, 8, 9, 10), (0, 11, 12, 13, 14, 15)),
        sampler=SamplerConfig(classes=16, images=2),
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A run over the epochs `first` and `first` + 1 of a preset's own schedule.

    Attributes:
      phases: that the two epochs are in, so that a case says what it crosses.
      text_start, ical_start: instead of the preset's.
      updates: rules of the centroids and of the clusters.
    """

    preset: str
    first: int
    phases: tuple[str, str]
    people: str = "some"
    bn_group: int = 64
    devices: int = 1
    text_start: int | None = None
    ical_start: int | None = None
    updates: tuple[str, str] = ("mean", "hard")

    @property
    def config(self) -> CCAFLConfig:
        config = PRESETS[self.preset][0]
        borders = {"text_start": self.text_start, "ical_start": self.ical_start}
        changes = {name: border for name, border in borders.items() if border is not None}
        return dataclasses.replace(
            config,
            devices=self.devices,
            scale=ScaleConfig(shard_classes=self.devices > 1),
            augment=AugmentConfig(
                flip=0, pad=0, erase_probability=0, erase_tries=1, mean=(0.5,) * 3, std=(0.25,) * 3
            ),
            model=dataclasses.replace(config.model, bn_group=self.bn_group),
            sampler=PEOPLE[self.people].sampler,
            schedule=dataclasses.replace(config.schedule, iterations=ITERATIONS, **changes),
            icdl=dataclasses.replace(config.icdl, centroid_update=self.updates[0]),
            inter=dataclasses.replace(config.inter, memory_update=self.updates[1]),
            evaluation=EvaluationConfig(batch=64),
        )

    @property
    def recipe(self) -> oracle_recipes.Recipe:
        borders = {"text_from": self.text_start, "ical_from": self.ical_start}
        changes = {name: border for name, border in borders.items() if border is not None}
        return dataclasses.replace(
            PRESETS[self.preset][1],
            bn_group=self.bn_group,
            centroid_update=self.updates[0],
            cluster_update=self.updates[1],
            **changes,
        )

    def __str__(self) -> str:
        parts = [self.preset, self.people, f"{self.phases[0]}>{self.phases[1]}"]
        if self.bn_group < 32:
            parts.append("groups")
        if self.devices > 1:
            parts.append("padded")
        return "-".join(parts)


class Linear(nnx.Module):
    """A linear map, before its weights are given."""

    def __init__(self, inputs, outputs, dtype):
        self.kernel = nnx.Param(np.zeros((inputs, outputs), dtype))
        self.bias = nnx.Param(np.zeros(outputs, dtype))

    def __call__(self, x):
        return x @ self.kernel[...] + self.bias[...]


class StandIn(nnx.Module):
    """f and g of an image by linear maps, with the names and heads of the image model."""

    def __init__(self, bn_group, dtype):
        self.stem = Linear(3 * HEIGHT * WIDTH, DIM, dtype)
        self.attnpool = Linear(DIM, EMBED, dtype)
        self.neck = BNNeck(DIM, param_dtype=dtype)
        self.heads, self.kinds = HeadConfig(), 0
        set_bn_group(self, bn_group)

    def __call__(self, images, cameras, *, train):
        h = self.stem(images.reshape(len(images), -1))
        return l2_normalize(self.neck(h, train=train)), self.attnpool(h)

    def embed(self, images):
        h = self.stem(images.reshape(len(images), -1))
        return l2_normalize(self.neck(h, train=False))


def weights(classes: int) -> dict[str, np.ndarray]:
    """Where both runs begin, float32 values.

    The stem is small: Adam's steps are as long as the rate whatever the gradient, so that forty of
    them turn features far enough for the association to change.
    """
    rng = np.random.default_rng(3)
    drawn = {
        "stem/kernel": rng.normal(0, 0.05, (3 * HEIGHT * WIDTH, DIM)),
        "stem/bias": rng.normal(0, 0.05, DIM),
        "neck/scale": rng.uniform(0.8, 1.2, DIM),
        "attnpool/kernel": rng.normal(0, 0.5, (DIM, EMBED)),
        "attnpool/bias": rng.normal(0, 0.1, EMBED),
        "neck/mean": rng.normal(0, 0.05, DIM),
        "neck/var": rng.uniform(0.06, 0.18, DIM),
        "classifier": rng.normal(0, 0.1, (classes, DIM)),
        "texts": rng.normal(0, 1, (classes, EMBED)),
    }
    return {name: value.astype(np.float32) for name, value in drawn.items()}


class Recorder(Loop):
    """A loop that keeps the metrics of all steps."""

    def __init__(self):
        super().__init__()
        self.found = []

    def steps(self, step, state, batches, found, *, where, each=lambda: None):
        result = super().steps(step, state, batches, found, where=where, each=each)
        self.found += found
        return result


class StandInRun(Run):
    """The package's run of a case, with the stand-in for its models."""

    _steps: ClassVar[dict] = {}

    def __init__(self, case: Case, dtype):
        self.config = case.config
        self.mesh = make_mesh(case.devices)
        images, pid, camera = PEOPLE[case.people].images
        self.labels = intra_camera_labels(pid, camera)
        self.dataset = types.SimpleNamespace(train=types.SimpleNamespace(camid=camera))
        self.images = ResidentImages(images, self.mesh)
        given = {k: jnp.asarray(v, dtype) for k, v in weights(self.num_classes).items()}
        self.class_text = given.pop("texts")
        classifier = given.pop("classifier")
        if case.devices > 1:
            classifier = with_rows(classifier, -(-len(classifier) // case.devices) * case.devices)
        self.graphdef, params, batch_stats = split_model(StandIn(case.bn_group, dtype))
        params = {name: given.pop(name) for name in params}
        batch_stats = {name: given.pop(name) for name in batch_stats}
        assert not given
        self.state = self._laid_out(initial_state(self.config, params, batch_stats, classifier))
        self.progress, self.traces, self.loop = Progress(), [], Recorder()

    def _make_step(self, phase):
        """One step for all runs whose options agree in what a step reads."""
        read = dataclasses.replace(
            self.config,
            sampler=SamplerConfig(),
            schedule=CCAFLConfig().schedule,
            association=CCAFLConfig().association,
        )
        key = phase, read, self.state.classifier.dtype
        if key not in self._steps:
            self._steps[key] = super()._make_step(phase)
        return self._steps[key]


@dataclasses.dataclass
class Found:
    """What a run leaves: of each iteration its terms, of each epoch labels and memories."""

    terms: list[dict[str, float]]
    clusters: list[np.ndarray]
    memories: list[dict[str, np.ndarray]]
    params: dict[str, np.ndarray]


def package_run(case: Case, dtype) -> tuple[Found, list]:
    """The package's run, and the batches and draws of its epochs."""
    run = StandInRun(case, dtype)
    clusters, banks, given = [], [], []
    bar = types.SimpleNamespace(update=lambda *_: None)
    for epoch, name in zip((case.first, case.first + 1), case.phases, strict=True):
        phase = phase_of(epoch, run.config)
        assert phase.name == name
        run._encoder_epoch(epoch, phase, run._make_step(phase), bar)
        clusters.append(run.progress.clusters)
        banks.append(jax.device_get(run.state.memory))
        given.append((run._plan(epoch, phase), run._draw_instances(epoch).index))
    state = jax.device_get(run.state)
    params = state.params | state.batch_stats | {"classifier": state.classifier}
    return Found(run.loop.found, clusters, banks, params), given


def oracle_of(case: Case) -> Training:
    """The oracle before the first epoch, with classes of its own numbering."""
    images, pid, camera = PEOPLE[case.people].images
    classes = sorted(set(zip(camera.tolist(), pid.tolist(), strict=True)))
    label = np.array([classes.index(row) for row in zip(camera, pid, strict=True)])
    start = weights(len(classes))
    texts, classifier = start.pop("texts"), start.pop("classifier")
    mean, var = start.pop("neck/mean"), start.pop("neck/var")
    encoder = Encoder(start, mean, var, case.bn_group)
    camera_of = np.array([c for c, _ in classes])
    return Training(case.recipe, encoder, classifier, images, label, camera_of, texts)


def oracle_run(case: Case, given: list) -> Found:
    training = oracle_of(case)
    terms, clusters, banks = [], [], []
    for epoch, (plan, draws) in enumerate(given, start=case.first):
        terms += training.epoch(epoch, plan, draws)
        clusters.append(training.cluster_of)
        banks.append(training.memories())
    encoder = training.encoder
    params = {
        **encoder.params,
        "neck/mean": encoder.mean,
        "neck/var": encoder.var,
        "classifier": training.classifier,
    }
    return Found(terms, clusters, banks, params)


def assert_terms_agree(found, expected, tolerance):
    """Each term of each iteration; below a hundredth the difference is absolute."""
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.keys() - {"gid_accuracy"} == theirs.keys(), i
        for name, value in theirs.items():
            difference = abs(ours[name] - value) / max(abs(value), 1e-2)
            assert difference <= tolerance, f"{name} of iteration {i}: {ours[name]}, not {value}"


def assert_tables_agree(found, expected, tolerance):
    """Rows of the package's table past the oracle's fill it up, and are 0."""
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        ours = found[name]
        np.testing.assert_allclose(ours[: len(theirs)], theirs, atol=tolerance, err_msg=name)
        np.testing.assert_array_equal(ours[len(theirs) :], 0, err_msg=name)


INTRA = "intra+text"
ALL = "inter+text+ical"
CASES = [
    Case("clean", 4, (INTRA, "inter")),
    Case("clean", 4, (INTRA, "inter+text"), text_start=5),
    Case("clean", 9, ("inter", "inter+text")),
    Case("clean", 39, ("inter+text", ALL)),
    Case("clean", 49, (ALL, "inter+text")),
    Case("clean", 4, (INTRA, "inter"), people="everywhere"),
    Case("clean", 39, ("inter+text", ALL), people="everywhere"),
    Case("duke", 39, ("inter", ALL)),
    Case("msmt17", 4, (INTRA, "inter"), bn_group=8),
    Case("msmt17", 39, ("inter", ALL), bn_group=8),
]
PADDED = Case(
    "clean",
    4,
    (INTRA, ALL),
    text_start=5,
    ical_start=5,
    devices=8,
    updates=("hard", "mean"),
)


QUICK = (1, 3, 9)  # one for each border; each case compiles for itself


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if number in QUICK else pytest.mark.ci)
        for number, case in enumerate(CASES)
    ],
    ids=str,
)
def test_forty_iterations_in_float64_are_those_of_the_specification(case):
    with jax.enable_x64(True):
        found, given = package_run(case, jnp.float64)
    expected = oracle_run(case, given)
    np.testing.assert_array_equal(found.clusters, expected.clusters)
    assert_terms_agree(found.terms, expected.terms, 1e-8)
    for ours, theirs in zip(found.memories, expected.memories, strict=True):
        assert_tables_agree(ours, theirs, 1e-8)
    assert_tables_agree(found.params, expected.params, 1e-8)
    assert np.any(found.clusters[0] != found.clusters[1])  # it is no repetition


@pytest.mark.ci
def test_float32_on_eight_devices_with_rows_that_fill_up_the_tables():
    """Here centroids take the hardest row and clusters the mean, the other way round."""
    found, given = package_run(PADDED, jnp.float32)
    expected = oracle_run(PADDED, given)
    assert len(found.memories[0]["centroids"]) == len(found.params["classifier"]) == 24
    assert len(found.memories[1]["clusters"]) == 16
    np.testing.assert_array_equal(found.clusters, expected.clusters)
    assert_terms_agree(found.terms, expected.terms, 1e-4)
    for ours, theirs in zip(found.memories, expected.memories, strict=True):
        assert_tables_agree(ours, theirs, 1e-4)
    assert_tables_agree(found.params, expected.params, 1e-4)


@pytest.mark.parametrize("name", PEOPLE)
def test_batches_have_the_cameras_that_the_sets_are_made_for(name):
    config = Case("clean", 4, (), people=name).config
    labels = intra_camera_labels(*PEOPLE[name].images[1:])
    plan = memories.batch_plan(config, phase_of(4, config), 4, labels.label, None)
    cameras = {frozenset(row) for row in labels.cam_of[labels.label[plan]].tolist()}
    assert labels.num_classes == 18 and len(labels.label) == 54
    if name == "everywhere":
        assert cameras == {frozenset(range(3))}
        assert np.bincount(labels.pid_of)[0] == 3
    else:
        assert len(cameras) > 1 and np.bincount(labels.cam_of).min() == 1


@pytest.mark.parametrize("epoch", [4, 40])
def test_gradients_of_the_oracle_are_those_of_differences(epoch):
    """In random directions, of all parameters at once and of the classifier."""
    case = Case("clean", epoch, (), bn_group=8)
    training, rng = oracle_of(case), np.random.default_rng(0)
    phase, label = phase_of(epoch, case.config), training.label
    rows = memories.batch_plan(case.config, phase, epoch, label, None)[0]
    training.begin(epoch, memories.instance_draws(case.config, label, 18, epoch).index)
    y, encoder = label[rows], training.encoder
    f, g, kept = encoder.forward(training.images[rows])
    gradients = training.gradients(kept, f, g, training.losses(epoch, f, g, y))
    start, classifier = encoder.params, training.classifier
    _, slope = losses.gid(classifier, f, y, 16.0)

    def total(params):
        encoder.params = params
        f, g, _ = encoder.forward(training.images[rows])
        return sum(value for value, _, _ in training.losses(epoch, f, g, y).values())

    for _ in range(5):
        way = {name: 1e-7 * rng.normal(size=value.shape) for name, value in start.items()}
        ahead, behind = (
            total({name: value + sign * way[name] for name, value in start.items()})
            for sign in (1, -1)
        )
        along = sum(np.sum(gradients[name] * way[name]) for name in start)
        np.testing.assert_allclose((ahead - behind) / 2, along, rtol=1e-5, atol=1e-11)
        turn = 1e-6 * rng.normal(size=classifier.shape)
        ahead, behind = (losses.gid(classifier + sign * turn, f, y, 16.0)[0] for sign in (1, -1))
        np.testing.assert_allclose((ahead - behind) / 2, np.sum(slope * turn), rtol=1e-6)
