"""What train.py measures of CALR: one network and dtype, in a process of its own."""

import contextlib
import dataclasses
from typing import Any

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import train_steps
from flax import nnx
from train_steps import (
    CAMERAS,
    IMAGES,
    RATE,
    Stepper,
    Work,
    copied,
    evaluation,
    evaluation_seconds,
    extraction,
    image_size,
    people_features,
    repeated,
    step_seconds,
)

from ccafl_jax.data.samplers import plan_across_cameras
from ccafl_jax.memory import init_centroids
from ccafl_jax.methods.calr.config import (
    CALRConfig,
    DataConfig,
    LocalConfig,
    ModelConfig,
    SamplerConfig,
)
from ccafl_jax.methods.calr.labels import camera_labels, global_labels, refine_by_pivots
from ccafl_jax.methods.calr.phases import Context, Phase, initial_state, make_step, phase_of
from ccafl_jax.methods.calr.state import CALRState
from ccafl_jax.models.camera_head import CameraHead
from ccafl_jax.models.layers import Compute
from ccafl_jax.models.reid import HeadConfig, ReIDModel
from ccafl_jax.models.resnet import ImageNetResNetConfig, ResNet
from ccafl_jax.training.inputs import ImageInput, ResidentImages
from ccafl_jax.training.optimizers import coupled_adam
from ccafl_jax.training.sharding import make_mesh, replicate
from ccafl_jax.training.state import FlatDict, split_model

IDENTITIES = 751  # of Market-1501's training set
PHASES = {phase.name: phase for phase in (Phase("global", alignment=True), Phase("global"))}
LOCAL = Phase("local")


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that the measurements share."""

    work: Work
    config: CALRConfig
    pid: np.ndarray
    camid: np.ndarray
    images: ResidentImages
    graphdef: nnx.GraphDef
    params: FlatDict
    batch_stats: FlatDict
    features: np.ndarray  # float32[images, dim], made up: people are found again among them

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """One device."""
        return self.images.mesh


def measure(work: Work) -> dict[str, Any]:
    """All figures of a work."""
    setup = prepare(work)
    bare = train_steps.bare_step(
        work,
        setup.graphdef,
        setup.params,
        setup.batch_stats,
        setup.images,
        tx=coupled_adam(setup.config.optimizer.weight_decay),
        factors={},
    )
    return train_steps.measure(
        work,
        setup.images,
        bare,
        phase=lambda name, images: phase_figures(setup, name, bare, images),
        alone={LOCAL.name: lambda: local_step(setup)},
        sizes={
            "classes": int(setup.pid.max()) + 1,
            "features": setup.features.shape[1],
            "embed_dim": 0,
            "bn_group": setup.config.model.bn_group,
        },
        epoch_parts=lambda: epoch_parts(setup),
        projection=lambda found: projection(setup.config, found),
    )


def prepare(work: Work) -> Setup:
    """A network with random weights, and a random set."""
    size = image_size(work)
    config = CALRConfig(
        data=DataConfig(height=size[0], width=size[1]),
        model=ModelConfig(compute_dtype=work.dtype),
        sampler=SamplerConfig(classes=work.classes, images=work.images),
        local=LocalConfig(clusters=max(2, round(600 * work.scale)), epochs=20),
    )
    sizes = ImageNetResNetConfig(
        layers=(1, 1, 1, 1) if work.tiny else (3, 4, 6, 3),
        width=8 if work.tiny else 64,
        image_size=size,
        ibn=work.network.startswith("IBN"),
    )
    compute = Compute(dtype=jnp.dtype(work.dtype))
    tower = encoders.random_module(lambda: ResNet(sizes, compute=compute, rngs=nnx.Rngs(0)))
    heads = HeadConfig(pooling=config.model.pooling)
    graphdef, params, batch_stats = split_model(ReIDModel(tower, heads, rngs=nnx.Rngs(0)))
    mesh = make_mesh(1)
    count, identities = (max(CAMERAS, round(work.scale * n)) for n in (IMAGES, IDENTITIES))
    rng = np.random.default_rng(0)
    pid = np.arange(count) % identities
    shape = (count, *size, 3)
    return Setup(
        work=work,
        config=config,
        pid=pid,
        camid=rng.integers(0, CAMERAS, count),
        images=ResidentImages(jax.random.bits(jax.random.key(0), shape, jnp.uint8), mesh),
        graphdef=graphdef,
        params=replicate(params, mesh),
        batch_stats=replicate(batch_stats, mesh),
        features=people_features(pid, sizes.features, seed=0, noise=0.7),
    )


def phase_figures(setup: Setup, name: str, bare: Stepper, images: ImageInput) -> dict[str, Any]:
    """Figures of a phase of stage 2, with some input."""
    step, state, context = begun(setup, PHASES[name], resident=images.resident)
    sampler = setup.config.sampler
    return train_steps.phase_figures(
        setup.work,
        step,
        state,
        context,
        batch_plan(setup, sampler.classes, sampler.images),
        images,
        bare,
        iterations=setup.config.schedule.iterations,
    )


def local_step(setup: Setup) -> dict[str, Any]:
    """A step of stage 1, with the recipe's batch."""
    work, local = setup.work, setup.config.local
    step, state, context = begun(setup, LOCAL)
    plan = batch_plan(setup, local.classes, local.images)
    plan = np.resize(plan, (2 + work.steps * work.repeats, plan.shape[1]))
    with contextlib.closing(setup.images.batches(plan)) as batches:
        given = ((context, *batch, np.float32(RATE)) for batch in batches)
        return Stepper(step, state, given, plan.shape[1]).alone(work)


def begun(setup: Setup, phase: Phase, *, resident: bool = True) -> tuple[Any, CALRState, Context]:
    """Step, state and context at the start of an epoch whose clusters are the identities."""
    config, dim = setup.config, setup.features.shape[1]
    head = CameraHead(
        dim,
        CAMERAS,
        hidden=config.alignment.hidden,
        dropout=config.alignment.dropout,
        bn_group=config.model.bn_group,
        rngs=nnx.Rngs(0),
    )
    head_graph, *head_arrays = split_model(head)
    # As many rows as there may be clusters, most of them not in use.
    capacity = max(int(setup.pid.max()) + 1, len(setup.pid) // config.clustering.min_size)
    valid = np.arange(capacity) <= setup.pid.max()
    context = Context(
        label=jnp.asarray(setup.pid, jnp.int32),
        camid=jnp.asarray(setup.camid, jnp.int32),
        cluster_valid=jnp.asarray(valid),
        cluster_weight=jnp.asarray(valid, jnp.float32),
    )
    memory = init_centroids(jnp.asarray(setup.features), jnp.asarray(setup.pid), capacity)
    arrays = copied((setup.params, setup.batch_stats))
    state = initial_state(config, *arrays, *head_arrays).replace(memory={"clusters": memory})
    state, context = replicate((state, context), setup.mesh)
    step = make_step(setup.graphdef, head_graph, phase, config, mesh=setup.mesh, resident=resident)
    return step, state, context


def batch_plan(setup: Setup, classes: int, images: int) -> np.ndarray:
    """The batches of an epoch whose clusters are the identities."""
    return plan_across_cameras(
        setup.pid,
        setup.camid,
        seed=0,
        first_step=0,
        steps=setup.config.schedule.iterations,
        classes_per_batch=classes,
        images_per_class=images,
    )


def epoch_parts(setup: Setup) -> dict[str, Any]:
    """Seconds of what stands between the steps of two epochs."""
    config, work = setup.config, setup.work
    extracted = extraction(
        work,
        setup.graphdef,
        setup.params,
        setup.batch_stats,
        setup.images,
        augment=config.augment,
        batch=config.evaluation.batch,
    )
    features, camera = jnp.asarray(setup.features), setup.camid == 0

    def labelled() -> np.ndarray:
        return global_labels(
            features,
            setup.camid,
            setup.pid,
            setup.pid,
            config,
            epoch=0,
            refiner=refine_by_pivots,
        )["labels"]

    return {
        **extracted,
        "local_seconds": repeated(
            lambda: camera_labels(features[camera], config.local)["labels"], work.repeats
        ),
        "global_seconds": repeated(labelled, work.repeats),
        "evaluation": evaluation(work, setup.features.shape[1]),
    }


def projection(config: CALRConfig, found: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the whole schedule from measured parts, of a set of the measured size.

    Left out are what is done once (reading images, compiling, zero-shot figures), logs and
    checkpoints. A phase that was not measured counts as the slowest measured one of stage 2.
    """
    measured = step_seconds(found)
    slowest = max((value for key, value in measured.items() if key in PHASES), default=0.0)
    schedule, local, epoch = config.schedule, config.local, found["epoch"]
    names = [phase_of(number, config).name for number in range(schedule.epochs)]
    evaluations = max(1, schedule.epochs // config.evaluation.every)
    parts = {
        "local steps": CAMERAS * local.epochs * local.iterations * measured.get("local", 0.0),
        "steps": schedule.iterations * sum(measured.get(name, slowest) for name in names),
        # An epoch of stage 1 sees the images of one camera.
        "extraction": (schedule.epochs + local.epochs) * epoch["extraction_seconds"],
        "local clusters": CAMERAS * local.epochs * epoch["local_seconds"]["median"],
        "clusters": schedule.epochs * epoch["global_seconds"]["median"],
        "evaluation": evaluations * evaluation_seconds(epoch),
    }
    return parts | {
        "total": sum(parts.values()),
        "not_measured": sorted({*names, LOCAL.name} - measured.keys()),
    }
