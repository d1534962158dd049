"""What train.py measures of one network and dtype, in a process of its own."""

import contextlib
import dataclasses
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import encoders
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measuring import machine, peak_bytes, spread

from ccafl_jax.data.labels import IntraCameraLabels, intra_camera_labels
from ccafl_jax.evaluation.ranking import rank
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
from ccafl_jax.models.clip import CLIP, CLIPConfig, TextConfig
from ccafl_jax.models.layers import Compute
from ccafl_jax.models.prompts import (
    PromptTemplate,
    init_prompts,
    template_embeddings,
    template_from_ids,
)
from ccafl_jax.training.features import feature_extractor
from ccafl_jax.training.inputs import ImageInput, ResidentImages, StreamedImages
from ccafl_jax.training.optimizers import apply_scaled, bias_factors
from ccafl_jax.training.sharding import make_mesh, replicate
from ccafl_jax.training.state import FlatDict, batch_stats_of, merge_model, split_model

IDENTITIES, CAMERAS, CLASSES, IMAGES = 751, 6, 3262, 12_936  # of Market-1501's training set
QUERIES, GALLERY, TESTED = 3368, 15_913, 750
TEXT = TextConfig(vocab=49_408, context=77, width=512, heads=8, layers=12)
TINY_TEXT = TextConfig(vocab=64, context=16, width=32, heads=2, layers=2)
SENTENCE = (1, 2, 3, 4, 5, 0, 0, 0, 0, 6, 7, 8)  # as long as CLIP's; 0 stands for X
PROMPT_EPOCHS = {"RN50": 60, "ViT-B/16": 120}  # of the recipes
RATE = 1e-7  # so small that random weights stay as they are

Batches = Iterator[tuple]


class Work(NamedTuple):
    """A network and how it is measured; see the options of train.py."""

    network: str
    dtype: str
    attention: str
    classes: int
    images: int
    phases: list[str]
    inputs: list[str]
    steps: int
    repeats: int
    scale: float
    extracted: int | None
    tiny: bool


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


class Stepper:
    """A compiled step that goes on and on, timed in windows.

    Attributes:
      about: what is known of the step without running it.
    """

    def __init__(self, step: Callable, state: Any, batches: Batches, rows: int):
        """Compiles and warms up.

        Args:
          step: jitted, (state, *batch) -> (state, metrics); consumes the state.
          state: at the start.
          batches: what else the step takes, time after time.
          rows: images of a batch.
        """
        self._batches, self._rows = batches, rows
        first = next(batches)
        start = time.perf_counter()
        lowered = step.lower(state, *first)
        self._compiled = lowered.compile()
        self.about = {
            "compile_seconds": time.perf_counter() - start,
            "flops": encoders.compiler_flops(lowered),
            "flops_of_executable": encoders.compiler_flops(self._compiled),
            "planned_bytes": encoders.planned_bytes(self._compiled),
        }
        self._state, self._metrics = self._compiled(state, *first)
        self._seconds, self._sent = [], 0.0
        self.window(1)
        self._seconds, self._sent = [], 0.0

    def window(self, steps: int) -> float:
        """Seconds of a step, of so many that are dispatched before the last is waited for."""
        jax.block_until_ready(self._state)
        start = time.perf_counter()
        for batch in itertools.islice(self._batches, steps):
            self._state, self._metrics = self._compiled(self._state, *batch)
        self._sent += (time.perf_counter() - start) / steps
        jax.block_until_ready((self._state, self._metrics))
        self._seconds.append((time.perf_counter() - start) / steps)
        return self._seconds[-1]

    def figures(self) -> dict[str, Any]:
        """Of all windows so far."""
        metrics = {name: float(value) for name, value in self._metrics.items()}
        if not all(map(math.isfinite, metrics.values())):
            raise FloatingPointError(f"not finite, so their speed means nothing: {metrics}")
        flops = self.about["flops"] or self.about["flops_of_executable"]
        seconds = spread(self._seconds)
        return self.about | {
            "seconds": seconds,
            "steps_per_second": 1 / seconds["median"],
            "images_per_second": self._rows / seconds["median"],
            "flop_rate": flops and flops / seconds["median"],
            # Near 1, the device waits for Python.
            "dispatch_share": self._sent / sum(self._seconds),
            "device_peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
            "metrics": metrics,
        }


def measure(work: Work) -> dict[str, Any]:
    """All figures of a work, with a line on stderr for each as soon as it is there."""
    setup = prepare(work)
    bare = bare_step(setup)
    bare.window(work.steps)
    say(f"bare: {brief(bare.figures())}")
    steps: dict[str, dict[str, Any]] = {}
    for name in work.phases:
        if name == "prompts":
            steps[name] = attempt(name, lambda: prompt_step(setup))
        else:
            steps[name] = attempt(name, lambda name=name: phase_figures(setup, name, bare))
    found: dict[str, Any] = {
        "device": machine(),
        "work": work._asdict(),
        "sizes": {
            "image": list(setup.images.shape[1:3]),
            "images": len(setup.images),
            "classes": setup.labels.num_classes,
            "features": setup.features.shape[1],
            "embed_dim": setup.embed_dim,
            "bn_group": setup.config.model.bn_group,
        },
        "jax": jax.__version__,
        "bare": bare.figures(),
        "phases": steps,
    }
    if "streaming" in work.inputs:
        found["streaming"] = streaming(setup, bare, steps)
    found["epoch"] = epoch_parts(setup)
    found["peak_bytes"] = peak_bytes()
    found["projection"] = projection(setup.config, found)
    say(f"schedule, projected: {found['projection']}")
    return found


def attempt(name: str, figures: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Figures of a step, or why there are none; the other steps still run."""
    try:
        found = figures()
    except Exception as error:  # memory, mostly
        found = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    say(f"{name}: {brief(found)}")
    return found


def brief(step: dict[str, Any]) -> str:
    """The main figures of a step in a line."""
    if "error" in step:
        return f"failed: {step['error']}"
    keys = ("images_per_second", "flop_rate", "over_bare", "input_wait_share", "dispatch_share")
    keys += ("planned_bytes", "device_peak_bytes", "compile_seconds")
    seconds = ", ".join(f"{key} {1e3 * value:.4g}" for key, value in step["seconds"].items())
    return f"ms {seconds}; " + ", ".join(
        f"{key} {step[key]:.4g}" for key in keys if step.get(key) is not None
    )


def say(text: str) -> None:
    """A line for whoever watches; the figures themselves are the last line of stdout."""
    print(f"  {text}", file=sys.stderr, flush=True)


def prepare(work: Work) -> Setup:
    """Networks with random weights, and a random set."""
    family = encoders.FAMILIES[work.network]
    family = family.tiny() if work.tiny else family
    size = (64, 32) if work.tiny else (256, 128)
    config = CCAFLConfig(
        data=DataConfig(height=size[0], width=size[1]),
        model=ModelConfig(compute_dtype=work.dtype, attention=work.attention),
        sampler=SamplerConfig(classes=work.classes, images=work.images),
        prompts=PromptsConfig(epochs=PROMPT_EPOCHS[work.network]),
    )
    sizes = CLIPConfig(
        embed_dim=family.embed_dim,
        vision=family.vision(size),
        text=TINY_TEXT if work.tiny else TEXT,
        activation="quick_gelu",
    )
    compute = Compute(dtype=jnp.dtype(work.dtype), attention=work.attention)
    clip = encoders.random_module(lambda: CLIP(sizes, compute=compute, rngs=nnx.Rngs(0)))
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


def people_features(pid: np.ndarray, dim: int, *, seed: int) -> np.ndarray:
    """L2-normalised features around a centre for each identity, float32[images, dim]."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((pid.max() + 1, dim), np.float32)
    features = 2 * rng.standard_normal((len(pid), dim), np.float32) + centre[pid]
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def bare_step(setup: Setup) -> Stepper:
    """Forward, backward and Adam of the image model on one ready batch."""
    config, paths = setup.config, list(setup.params)
    tx = encoder_optimizer(config, paths)
    factors = bias_factors(paths, config.optimizer.bias_lr_factor)

    def step(state, images, weights, learning_rate):
        params, batch_stats, opt_state = state

        def loss_fn(params):
            model = merge_model(setup.graphdef, params, batch_stats)
            both = model(images, train=True)
            loss = sum(jnp.vdot(x, weight) for x, weight in zip(both, weights, strict=True))
            return loss, batch_stats_of(model)

        (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        params = apply_scaled(params, updates, learning_rate=learning_rate, factors=factors)
        return (params, batch_stats, opt_state), {"total": loss}

    rows = setup.work.classes * setup.work.images
    dims = (setup.features.shape[1], setup.embed_dim)
    given = (
        encoders.draw((rows, *setup.images.shape[1:]), jnp.float32, 0),
        [encoders.draw((rows, dim), jnp.float32, 1 + i) for i, dim in enumerate(dims)],
        np.float32(RATE),
    )
    params, batch_stats = copied((setup.params, setup.batch_stats))
    state = (params, batch_stats, tx.init(params))
    state, *given = replicate((state, *given), setup.mesh)
    return Stepper(jax.jit(step, donate_argnums=0), state, itertools.repeat(given), rows)


def phase_figures(
    setup: Setup, name: str, bare: Stepper, images: ImageInput | None = None
) -> dict[str, Any]:
    """A phase of stages 2 and 3, its windows in turn with those of the bare step.

    Args:
      setup: what is measured.
      name: of the phase.
      bare: the bare step.
      images: the input; that of the setup when None.
    """
    work, phase, images = setup.work, phase_named(name), images or setup.images
    context, state = begun(setup, phase)
    step = make_step(
        setup.graphdef,
        list(setup.params),
        phase,
        setup.config,
        mesh=setup.mesh,
        resident=images.resident,
    )
    plan = memories.batch_plan(setup.config, phase, 0, setup.labels.label, clusters(setup))
    plan = np.resize(plan, (2 + work.steps * work.repeats, plan.shape[1]))
    before = images.wait_seconds
    with contextlib.closing(images.batches(plan)) as batches:
        given = ((context, *batch, np.float32(RATE)) for batch in batches)
        stepper = Stepper(step, state, given, plan.shape[1])
        started = images.wait_seconds
        seconds, beside = [], []
        for _ in range(work.repeats):
            beside.append(bare.window(work.steps))
            seconds.append(stepper.window(work.steps))
    # The first batches of an epoch are waited for once.
    epoch = setup.config.schedule.iterations * statistics.median(seconds)
    once = (started - before) / epoch
    return stepper.figures() | {
        "over_bare": statistics.median(seconds) / statistics.median(beside),
        "input_wait_share": once + (images.wait_seconds - started) / (work.steps * sum(seconds)),
    }


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
    stepper = Stepper(step, state, given, config.batch)
    for _ in range(setup.work.repeats):
        stepper.window(setup.work.steps)
    return stepper.figures()


def copied(tree: Any) -> Any:
    """Arrays of their own, which a step may consume."""
    return jax.tree.map(jnp.copy, tree)


def streaming(setup: Setup, bare: Stepper, resident: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The first encoder phase that was measured, with decoded images streamed from the host.

    `input_wait_share` is too high here: Python also waits for batches while the device still has
    steps to do. `slower` is the share of the time that streaming adds.
    """
    names = [name for name, step in resident.items() if "over_bare" in step]
    if not names:
        return {"error": "no phase was measured with resident images"}
    name = names[0]
    images = StreamedImages(np.asarray(setup.images.images), setup.mesh)
    found = attempt(f"{name}, streaming", lambda: phase_figures(setup, name, bare, images))
    if "error" not in found:
        found["slower"] = max(0.0, 1 - resident[name]["over_bare"] / found["over_bare"])
    return {"phase": name} | found


def epoch_parts(setup: Setup) -> dict[str, Any]:
    """Seconds of what stands between the steps of two epochs."""
    config, labels = setup.config, setup.labels
    count = setup.work.extracted or len(setup.images)
    images = setup.images if setup.work.extracted is None else setup.images.images[:count]
    extract = feature_extractor(
        setup.graphdef,
        "embed",
        mean=config.augment.mean,
        std=config.augment.std,
        batch=min(config.evaluation.batch, count),
        mesh=setup.mesh,
        description="features",
    )
    extraction = repeated(lambda: extract(setup.params, setup.batch_stats, images), 2)
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

    found = {
        "images_per_second": count / extraction["median"],
        "extraction_seconds": len(setup.images) * extraction["median"] / count,
        "association_seconds": association,
        "memory_seconds": repeated(rebuilt, setup.work.repeats),
        "evaluation": evaluation(setup),
    }
    say(f"between epochs: {found}")
    return found


def evaluation(setup: Setup) -> dict[str, Any]:
    """Images of a test set and the seconds of its ranking."""
    queries, gallery, identities = (
        max(8, round(setup.work.scale * n)) for n in (QUERIES, GALLERY, TESTED)
    )
    rng = np.random.default_rng(1)
    pid = np.concatenate([np.arange(queries), np.arange(gallery)]) % identities
    camid = rng.integers(0, CAMERAS, len(pid))
    features = jnp.asarray(people_features(pid, setup.features.shape[1], seed=1))
    ranking = repeated(
        lambda: rank(
            features[:queries],
            features[queries:],
            pid[:queries],
            pid[queries:],
            camid[:queries],
            camid[queries:],
        ).summary(),
        setup.work.repeats,
    )
    return {"images": queries + gallery, "ranking_seconds": ranking}


def repeated(function: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Spread of the seconds of calls after a first one, which compiles."""
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return spread(seconds[1:])


def projection(config: CCAFLConfig, found: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the whole schedule from measured parts, of a set of the measured size.

    Left out are what is done once (reading images, compiling, zero-shot figures), logs and
    checkpoints. A phase that was not measured counts as the slowest measured one of its stage.
    """
    measured = {
        name: step["seconds"]["median"]
        for name, step in found["phases"].items()
        if "error" not in step
    }

    def step_seconds(name: str) -> float:
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
    tested = epoch["evaluation"]
    extraction = tested["images"] / epoch["images_per_second"]
    parts = {
        "prompts": prompt_steps * measured.get("prompts", 0.0),
        "steps": schedule.iterations * sum(map(step_seconds, names)),
        "extraction": schedule.epochs * epoch["extraction_seconds"],
        "association": schedule.epochs * epoch["association_seconds"]["median"],
        "memory": schedule.epochs * epoch["memory_seconds"]["median"],
        "evaluation": len(evaluated) * (extraction + tested["ranking_seconds"]["median"]),
    }
    return parts | {
        "total": sum(parts.values()),
        "not_measured": sorted({*names, "prompts"} - measured.keys()),
    }
