"""What train.py measures of CCAFL: one network and dtype, in a process of its own."""

import dataclasses
import itertools
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
    random_clip,
    repeated,
    step_seconds,
)

from ccafl_jax.data.labels import IntraCameraLabels, intra_camera_labels
from ccafl_jax.methods.ccafl import memories, prompts
from ccafl_jax.methods.ccafl.config import (
    CCAFLConfig,
    DataConfig,
    ModelConfig,
    PromptsConfig,
    SamplerConfig,
)
from ccafl_jax.methods.ccafl.model import image_model
from ccafl_jax.methods.ccafl.phases import (
    Context,
    Phase,
    encoder_optimizer,
    initial_state,
    make_step,
    phase_of,
)
from ccafl_jax.methods.ccafl.state import CCAFLState
from ccafl_jax.models.clip import CLIP
from ccafl_jax.models.prompts import (
    PromptTemplate,
    init_prompts,
    template_embeddings,
    template_from_ids,
)
from ccafl_jax.training.inputs import ImageInput, ResidentImages
from ccafl_jax.training.optimizers import bias_factors
from ccafl_jax.training.sharding import make_mesh, replicate
from ccafl_jax.training.state import FlatDict, split_model

IDENTITIES, CLASSES = 751, 3262  # of Market-1501's training set
SENTENCE = (1, 2, 3, 4, 5, 0, 0, 0, 0, 6, 7, 8)  # as long as CLIP's; 0 stands for X
PROMPT_EPOCHS = {"RN50": 60, "ViT-B/16": 120}  # of the recipes


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that the measurements share."""

    work: Work
    config: CCAFLConfig
    labels: IntraCameraLabels
    camid: np.ndarray
    images: ResidentImages
    clip: CLIP
    graphdef: nnx.GraphDef
    params: FlatDict
    batch_stats: FlatDict
    features: np.ndarray  # float32[images, dim], made up: people are found again among them

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """One device."""
        return self.images.mesh

    @property
    def embed_dim(self) -> int:
        """Size of the joint space."""
        return self.clip.config.embed_dim


def measure(work: Work) -> dict[str, Any]:
    """All figures of a work."""
    setup = prepare(work)
    names = list(setup.params)
    bare = train_steps.bare_step(
        work,
        setup.graphdef,
        setup.params,
        setup.batch_stats,
        setup.images,
        tx=encoder_optimizer(setup.config, names),
        factors=bias_factors(names, setup.config.optimizer.bias_lr_factor),
    )
    return train_steps.measure(
        work,
        setup.images,
        bare,
        phase=lambda name, images: phase_figures(setup, name, bare, images),
        alone={"prompts": lambda: prompt_step(setup)},
        sizes={
            "classes": setup.labels.num_classes,
            "features": setup.features.shape[1],
            "embed_dim": setup.embed_dim,
            "bn_group": setup.config.model.bn_group,
        },
        epoch_parts=lambda: epoch_parts(setup),
        projection=lambda found: projection(setup.config, found),
    )


def prepare(work: Work) -> Setup:
    """Networks with random weights, and a random set."""
    size = image_size(work)
    config = CCAFLConfig(
        data=DataConfig(height=size[0], width=size[1]),
        model=ModelConfig(compute_dtype=work.dtype, attention=work.attention),
        sampler=SamplerConfig(classes=work.classes, images=work.images),
        prompts=PromptsConfig(epochs=PROMPT_EPOCHS[work.network]),
    )
    clip = random_clip(work)
    model, heads = image_model(clip, config, cameras=CAMERAS)
    graphdef, params, batch_stats = split_model(model)
    mesh = make_mesh(1)
    pid, camid = people(work.scale)
    shape = (len(pid), *size, 3)
    return Setup(
        work=work,
        config=config,
        labels=intra_camera_labels(pid, camid),
        camid=camid,
        images=ResidentImages(jax.random.bits(jax.random.key(0), shape, jnp.uint8), mesh),
        clip=clip,
        graphdef=graphdef,
        params=replicate(params, mesh),
        batch_stats=replicate(batch_stats, mesh),
        features=people_features(pid, heads.features, seed=0),
    )


def people(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Identity and camera of each training image.

    Every identity is seen by two cameras at least, every (camera, identity) class has an image.
    """
    identities, classes, images = (round(scale * n) for n in (IDENTITIES, CLASSES, IMAGES))
    rng = np.random.default_rng(0)
    rank_of_camera = rng.permuted(np.tile(np.arange(CAMERAS), (identities, 1)), axis=1)
    order = np.argsort(np.where(rank_of_camera < 2, -1.0, rng.random(rank_of_camera.shape)), None)
    pair = order[:classes]
    pair = pair[np.concatenate([np.arange(classes), rng.integers(0, classes, images - classes)])]
    return pair // CAMERAS, pair % CAMERAS


def phase_figures(setup: Setup, name: str, bare: Stepper, images: ImageInput) -> dict[str, Any]:
    """Figures of a phase of stages 2 and 3, with some input."""
    config, phase = setup.config, phase_named(name)
    context, state = begun(setup, phase)
    step = make_step(
        setup.graphdef,
        list(setup.params),
        phase,
        config,
        mesh=setup.mesh,
        resident=images.resident,
    )
    plan = memories.batch_plan(config, phase, 0, setup.labels.label, clusters(setup))
    return train_steps.phase_figures(
        setup.work,
        step,
        state,
        context,
        plan,
        images,
        bare,
        iterations=config.schedule.iterations,
    )


def phase_named(name: str) -> Phase:
    """Inverse of `Phase.name`."""
    stage, *parts = name.split("+")
    return Phase(stage, text="text" in parts, ical="ical" in parts)


def clusters(setup: Setup) -> np.ndarray:
    """Pseudo identities as they would be right, int[classes]; every person is seen twice."""
    return np.unique(setup.labels.pid_of, return_inverse=True)[1]


def begun(setup: Setup, phase: Phase) -> tuple[Context, CCAFLState]:
    """Context and state at the start of an epoch of a phase."""
    classes, config = setup.labels.num_classes, setup.config
    draws = memories.instance_draws(config, setup.labels.label, classes, 0)
    context = memories.make_context(
        config,
        label=setup.labels.label,
        cam_of=setup.labels.cam_of,
        class_text=encoders.draw((classes, setup.embed_dim), jnp.float32, 2),
        clusters=clusters(setup),
        draws=draws,
        mesh=setup.mesh,
    )
    memory = memories.make_memory(
        phase, jnp.asarray(setup.features), context, draws, cameras=CAMERAS
    )
    classifier = encoders.draw((classes, setup.features.shape[1]), jnp.float32, 3)
    params, batch_stats = copied((setup.params, setup.batch_stats))
    state = initial_state(config, params, batch_stats, classifier).replace(memory=memory)
    return replicate((context, state), setup.mesh)


def prompt_step(setup: Setup) -> dict[str, Any]:
    """A step of prompt learning, with the recipe's batch."""
    text_graph, text_params, _ = split_model(setup.clip.text)
    template: PromptTemplate = template_from_ids(SENTENCE, slot=0)
    classes, count = setup.labels.num_classes, len(setup.images)
    learned = init_prompts(jax.random.key(0), classes, width=setup.clip.config.text.width)
    config = dataclasses.replace(setup.config.prompts, batch=min(setup.config.prompts.batch, count))
    context = prompts.PromptContext(
        text_params=text_params,
        sentence=template_embeddings(text_params["token_embedding"], template),
        image_features=encoders.draw((count, setup.embed_dim), jnp.float32, 4),
        label=jnp.asarray(setup.labels.label),
        camid=jnp.asarray(setup.camid, jnp.int32),
        cam_of=jnp.asarray(setup.labels.cam_of),
    )
    state = prompts.PromptState(
        prompts=learned, opt_state=prompts.prompt_optimizer(config).init(learned)
    )
    state, context = replicate((state, context), setup.mesh)
    step = prompts.make_prompt_step(text_graph, template, config, mesh=setup.mesh)
    given = (
        (context, *batch, np.float32(RATE))
        for epoch in itertools.count()
        for batch in prompts.batches(count, config, setup.mesh, seed=1, epoch=epoch)
    )
    return Stepper(step, state, given, config.batch).alone(setup.work)


def epoch_parts(setup: Setup) -> dict[str, Any]:
    """Seconds of what stands between the steps of two epochs."""
    config, labels = setup.config, setup.labels
    extracted = extraction(
        setup.work,
        setup.graphdef,
        setup.params,
        setup.batch_stats,
        setup.images,
        augment=config.augment,
        batch=config.evaluation.batch,
    )
    features = jnp.asarray(setup.features)
    association = repeated(
        lambda: memories.associate_features(
            features, labels.label, labels.cam_of, config.association
        ),
        setup.work.repeats,
    )
    phase = Phase("intra", text=True)  # its memory is the largest

    def rebuilt():
        memories.batch_plan(config, phase, 0, labels.label, clusters(setup))
        return begun(setup, phase)

    return {
        **extracted,
        "association_seconds": association,
        "memory_seconds": repeated(rebuilt, setup.work.repeats),
        "evaluation": evaluation(setup.work, setup.features.shape[1]),
    }


def projection(config: CCAFLConfig, found: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the whole schedule from measured parts, of a set of the measured size.

    Left out are what is done once (reading images, compiling, zero-shot figures), logs and
    checkpoints. A phase that was not measured counts as the slowest measured one of its stage.
    """
    measured = step_seconds(found)

    def of_phase(name: str) -> float:
        encoder = {key: value for key, value in measured.items() if key != "prompts"}
        stage = name.split("+")[0]
        same = [value for key, value in encoder.items() if key.split("+")[0] == stage]
        return measured.get(name, max(same or encoder.values(), default=0.0))

    schedule, epoch = config.schedule, found["epoch"]
    every = range(schedule.epochs)
    names = [phase_of(number, config).name for number in every]
    border = schedule.border("intra_epochs")
    evaluated = {n for n in every if (n + 1) % config.evaluation.every == 0}
    evaluated |= {border - 1, schedule.epochs - 1}
    prompt_steps = config.prompts.epochs * -(-found["sizes"]["images"] // config.prompts.batch)
    parts = {
        "prompts": prompt_steps * measured.get("prompts", 0.0),
        "steps": schedule.iterations * sum(map(of_phase, names)),
        "extraction": schedule.epochs * epoch["extraction_seconds"],
        "association": schedule.epochs * epoch["association_seconds"]["median"],
        "memory": schedule.epochs * epoch["memory_seconds"]["median"],
        "evaluation": len(evaluated) * evaluation_seconds(epoch),
    }
    return parts | {
        "total": sum(parts.values()),
        "not_measured": sorted({*names, "prompts"} - measured.keys()),
    }
