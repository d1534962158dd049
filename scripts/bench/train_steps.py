"""Steps of training, timed: what the benchmarks of all methods share."""

import contextlib
import functools
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from measuring import machine, peak_bytes, spread

from ccafl_jax.data.augment import AugmentConfig
from ccafl_jax.evaluation.ranking import rank
from ccafl_jax.models.clip import CLIP, CLIPConfig, TextConfig
from ccafl_jax.models.layers import Compute
from ccafl_jax.training.features import feature_extractor
from ccafl_jax.training.inputs import ImageInput, StreamedImages
from ccafl_jax.training.optimizers import apply_scaled
from ccafl_jax.training.sharding import replicate
from ccafl_jax.training.state import FlatDict, batch_stats_of, merge_model

CAMERAS, IMAGES = 6, 12_936  # of Market-1501's training set
QUERIES, GALLERY, TESTED = 3368, 15_913, 750
TEXT = TextConfig(vocab=49_408, context=77, width=512, heads=8, layers=12)
TINY_TEXT = TextConfig(vocab=64, context=16, width=32, heads=2, layers=2)
RATE = 1e-7  # so small that random weights stay as they are

Batches = Iterator[tuple]


class Work(NamedTuple):
    """A network and how it is measured; see the options of train.py."""

    method: str
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
    frames: int | None = None  # of a clip; images are single without it
    remat: bool = False  # of TF-CLIP's prompts

    @property
    def rows(self) -> int:
        """Images of a batch, or frames."""
        return self.classes * self.images * (self.frames or 1)


def image_size(work: Work) -> tuple[int, int]:
    """Height and width."""
    return (64, 32) if work.tiny else (256, 128)


def random_clip(work: Work) -> CLIP:
    """The CLIP of a work, with random weights."""
    family = encoders.FAMILIES[work.network]
    family = family.tiny() if work.tiny else family
    sizes = CLIPConfig(
        embed_dim=family.embed_dim,
        vision=family.vision(image_size(work)),
        text=TINY_TEXT if work.tiny else TEXT,
        activation="quick_gelu",
    )
    compute = Compute(dtype=jnp.dtype(work.dtype), attention=work.attention)
    return encoders.random_module(lambda: CLIP(sizes, compute=compute, rngs=nnx.Rngs(0)))


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

    def alone(self, work: Work) -> dict[str, Any]:
        """Figures of a step that has no bare step beside it."""
        for _ in range(work.repeats):
            self.window(work.steps)
        return self.figures()

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


def measure(
    work: Work,
    images: ImageInput,
    bare: Stepper,
    *,
    phase: Callable[[str, ImageInput], dict[str, Any]],
    alone: Mapping[str, Callable[[], dict[str, Any]]],
    sizes: dict[str, int],
    epoch_parts: Callable[[], dict[str, Any]],
    projection: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """All figures of a work, with a line on stderr for each as soon as it is there.

    Args:
      work: what is measured.
      images: resident.
      bare: the bare step.
      phase: figures of a phase, by its name, with some input.
      alone: figures of the phases with a batch of their own, which have no bare step beside them.
      sizes: of the method, beside those of the images.
      epoch_parts: figures of what stands between the steps of two epochs.
      projection: seconds of the whole schedule, from all other figures.
    """
    bare.window(work.steps)
    say(f"bare: {brief(bare.figures())}")
    steps = {
        name: attempt(name, alone.get(name, functools.partial(phase, name, images)))
        for name in work.phases
    }
    found: dict[str, Any] = {
        "device": machine(),
        "work": work._asdict(),
        "sizes": {"image": list(images.shape[1:3]), "images": len(images), **sizes},
        "jax": jax.__version__,
        "bare": bare.figures(),
        "phases": steps,
    }
    if "streaming" in work.inputs:
        found["streaming"] = streaming(phase, images, steps)
    found["epoch"] = epoch_parts()
    say(f"between epochs: {found['epoch']}")
    found["peak_bytes"] = peak_bytes()
    if projection:
        found["projection"] = projection(found)
        say(f"schedule, projected: {found['projection']}")
    return found


def image_outputs(model: nnx.Module, images: jax.Array) -> Any:
    """What an image model gives in training."""
    return model(images, train=True)


def bare_step(
    work: Work,
    graphdef: nnx.GraphDef,
    params: FlatDict,
    batch_stats: FlatDict,
    images: ImageInput,
    *,
    tx: optax.GradientTransformation,
    factors: dict[str, float],
    outputs: Callable[[nnx.Module, jax.Array], Any] = image_outputs,
) -> Stepper:
    """Forward, backward and Adam of the model on one ready batch.

    Args:
      work: of which the batch is read.
      graphdef: of the model.
      params: of it; they are copied.
      batch_stats: likewise.
      images: whose size the batch has.
      tx: the method's optimiser.
      factors: of the learning rate, by parameter.
      outputs: (model, float[rows, height, width, 3]) -> what the loss reads of it.
    """

    def step(state, images, weights, learning_rate):
        params, batch_stats, opt_state = state

        def loss_fn(params):
            model = merge_model(graphdef, params, batch_stats)
            found = jax.tree.leaves(outputs(model, images))
            loss = sum(jnp.vdot(x, weight) for x, weight in zip(found, weights, strict=True))
            return loss, batch_stats_of(model)

        (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        params = apply_scaled(params, updates, learning_rate=learning_rate, factors=factors)
        return (params, batch_stats, opt_state), {"total": loss}

    batch = encoders.draw((work.rows, *images.shape[1:]), jnp.float32, 0)
    found = jax.eval_shape(
        lambda *arrays: outputs(merge_model(graphdef, *arrays), batch), params, batch_stats
    )
    weights = [
        encoders.draw(x.shape, jnp.float32, 1 + i) for i, x in enumerate(jax.tree.leaves(found))
    ]
    given = (batch, weights, np.float32(RATE))
    params, batch_stats = copied((params, batch_stats))
    state, *given = replicate(((params, batch_stats, tx.init(params)), *given), images.mesh)
    return Stepper(jax.jit(step, donate_argnums=0), state, itertools.repeat(given), work.rows)


def phase_figures(
    work: Work,
    step: Callable,
    state: Any,
    context: Any,
    plan: np.ndarray,
    images: ImageInput,
    bare: Stepper,
    *,
    iterations: int,
) -> dict[str, Any]:
    """A phase, its windows in turn with those of the bare step.

    Args:
      work: steps and repeats.
      step: of the phase, as the method makes it; consumes the state.
      state: at the start.
      context: tables that the step reads.
      plan: int[steps, batch] of an epoch; it is repeated as often as needed.
      images: the input.
      bare: the bare step.
      iterations: steps of an epoch of the recipe.
    """
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
    once = (started - before) / (iterations * statistics.median(seconds))
    return stepper.figures() | {
        "over_bare": statistics.median(seconds) / statistics.median(beside),
        "input_wait_share": once + (images.wait_seconds - started) / (work.steps * sum(seconds)),
    }


def streaming(
    figures: Callable[[str, ImageInput], dict[str, Any]],
    images: ImageInput,
    resident: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """The first encoder phase that was measured, with decoded images streamed from the host.

    `input_wait_share` is too high here: Python also waits for batches while the device still has
    steps to do. `slower` is the share of the time that streaming adds.

    Args:
      figures: of a phase with some input.
      images: resident.
      resident: figures of the phases with these.
    """
    names = [name for name, step in resident.items() if "over_bare" in step]
    if not names:
        return {"error": "no phase was measured with resident images"}
    name = names[0]
    streamed = StreamedImages(np.asarray(images.images), images.mesh)
    found = attempt(f"{name}, streaming", lambda: figures(name, streamed))
    if "error" not in found:
        found["slower"] = max(0.0, 1 - resident[name]["over_bare"] / found["over_bare"])
    return {"phase": name} | found


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


def people_features(pid: np.ndarray, dim: int, *, seed: int, noise: float = 2.0) -> np.ndarray:
    """L2-normalised features around a centre for each identity, float32[images, dim].

    Images of one identity have a cosine of about 1 / (1 + noise^2), others of 0.
    """
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((pid.max() + 1, dim), np.float32)
    features = noise * rng.standard_normal((len(pid), dim), np.float32) + centre[pid]
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def extraction(
    work: Work,
    graphdef: nnx.GraphDef,
    params: FlatDict,
    batch_stats: FlatDict,
    images: ImageInput,
    *,
    augment: AugmentConfig,
    batch: int,
) -> dict[str, float]:
    """Images a second of an extraction of features, and its seconds for all images.

    Args:
      work: how many are extracted.
      graphdef: of the image model.
      params: of it.
      batch_stats: likewise.
      images: resident.
      augment: mean and deviation of pixels.
      batch: images a call, at most.
    """
    count = work.extracted or len(images)
    chosen = images if work.extracted is None else images.images[:count]
    extract = feature_extractor(
        graphdef,
        "embed",
        mean=augment.mean,
        std=augment.std,
        batch=min(batch, count),
        mesh=images.mesh,
        description="features",
    )
    seconds = repeated(lambda: extract(params, batch_stats, chosen), 2)["median"]
    return {
        "images_per_second": count / seconds,
        "extraction_seconds": len(images) * seconds / count,
    }


def evaluation(work: Work, dim: int) -> dict[str, Any]:
    """Images of a test set and the seconds of its ranking.

    Args:
      work: scale and repeats.
      dim: of the features.
    """
    queries, gallery, identities = (
        max(8, round(work.scale * n)) for n in (QUERIES, GALLERY, TESTED)
    )
    rng = np.random.default_rng(1)
    pid = np.concatenate([np.arange(queries), np.arange(gallery)]) % identities
    camid = rng.integers(0, CAMERAS, len(pid))
    features = jnp.asarray(people_features(pid, dim, seed=1))
    ranking = repeated(
        lambda: rank(
            features[:queries],
            features[queries:],
            pid[:queries],
            pid[queries:],
            camid[:queries],
            camid[queries:],
        ).summary(),
        work.repeats,
    )
    return {"images": queries + gallery, "ranking_seconds": ranking}


def evaluation_seconds(epoch: dict[str, Any]) -> float:
    """Seconds of an evaluation, from the parts of an epoch: features of its images, and ranking."""
    tested = epoch["evaluation"]
    return tested["images"] / epoch["images_per_second"] + tested["ranking_seconds"]["median"]


def step_seconds(found: dict[str, Any]) -> dict[str, float]:
    """Median seconds of the steps that were measured, by phase."""
    return {
        name: step["seconds"]["median"]
        for name, step in found["phases"].items()
        if "error" not in step
    }


def copied(tree: Any) -> Any:
    """Arrays of their own, which a step may consume."""
    return jax.tree.map(jnp.copy, tree)


def repeated(function: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Spread of the seconds of calls after a first one, which compiles."""
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return spread(seconds[1:])
