"""What train.py measures of TF-CLIP: steps and dense features, by frames and by clips."""

import contextlib
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import encoders
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measuring import machine, peak_bytes
from train_steps import RATE, TEXT, TINY_TEXT, Stepper, attempt, copied, repeated

from ccafl_jax.data.clips import dense_clips, training_clips
from ccafl_jax.data.records import Tracklets
from ccafl_jax.data.samplers import plan_groups
from ccafl_jax.methods.tfclip.config import (
    ClipsConfig,
    DataConfig,
    ModelConfig,
    PromptConfig,
    SamplerConfig,
    TFCLIPConfig,
)
from ccafl_jax.methods.tfclip.model import video_model
from ccafl_jax.methods.tfclip.phases import Context, initial_state, make_step
from ccafl_jax.models.clip import CLIP, CLIPConfig
from ccafl_jax.models.layers import Compute
from ccafl_jax.training.features import clip_extractor
from ccafl_jax.training.inputs import ImageInput, ResidentImages, StreamedImages
from ccafl_jax.training.sharding import make_mesh, replicate
from ccafl_jax.training.state import FlatDict, split_model

IDENTITIES, CAMERAS = 625, 6  # of MARS's training set
TRACKLETS, LENGTH = 4, 16  # of an identity, and frames of each; MARS has 13 of 61


class Work(NamedTuple):
    """A network and how it is measured; see the options of train.py."""

    method: str
    network: str
    dtype: str
    attention: str
    classes: int
    images: int
    frames: int
    inputs: list[str]
    steps: int
    repeats: int
    scale: float
    remat: bool
    tiny: bool


class Setup(NamedTuple):
    """Everything that the measurements share."""

    work: Work
    config: TFCLIPConfig
    table: Tracklets
    pixels: np.ndarray
    mesh: jax.sharding.Mesh
    graphdef: nnx.GraphDef
    params: FlatDict
    batch_stats: FlatDict
    embed_dim: int


def measure(work: Work) -> dict[str, Any]:
    """All figures of a work, with a line on stderr for each as soon as it is there."""
    setup = prepare(work)
    kinds: dict[str, Callable[[], ImageInput]] = {
        "resident": lambda: ResidentImages(setup.pixels, setup.mesh),
        "streaming": lambda: StreamedImages(setup.pixels, setup.mesh),
    }
    steps = {
        kind: attempt(f"clips, {kind}", lambda kind=kind: step_figures(setup, kinds[kind]()))
        for kind in work.inputs
    }
    return {
        "device": machine(),
        "work": work._asdict(),
        "sizes": {
            "image": list(setup.pixels.shape[1:3]),
            "frames": len(setup.pixels),
            "identities": len(np.unique(setup.table.pid)),
            "embed_dim": setup.embed_dim,
        },
        "jax": jax.__version__,
        "steps": steps,
        "features": dense_features(setup),
        "peak_bytes": peak_bytes(),
    }


def prepare(work: Work) -> Setup:
    """A network with random weights, and random frames."""
    family = encoders.FAMILIES[work.network]
    family = family.tiny() if work.tiny else family
    size = (64, 32) if work.tiny else (256, 128)
    vit = work.network.startswith("ViT")
    config = TFCLIPConfig(
        data=DataConfig(height=size[0], width=size[1]),
        model=ModelConfig(compute_dtype=work.dtype, attention=work.attention, camera_embedding=vit),
        clips=ClipsConfig(frames=work.frames),
        prompt=PromptConfig(remat=work.remat),
        sampler=SamplerConfig(classes=work.classes, tracklets=work.images),
    )
    sizes = CLIPConfig(
        embed_dim=family.embed_dim,
        vision=family.vision(size),
        text=TINY_TEXT if work.tiny else TEXT,
        activation="quick_gelu",
    )
    compute = Compute(dtype=jnp.dtype(work.dtype), attention=work.attention)
    clip = encoders.random_module(lambda: CLIP(sizes, compute=compute, rngs=nnx.Rngs(0)))
    people = max(work.classes, round(work.scale * IDENTITIES))
    model, _ = video_model(clip, config, classes=people, cameras=CAMERAS)
    graphdef, params, batch_stats = split_model(model)
    count = people * TRACKLETS
    number = np.arange(count, dtype=np.int32)
    table = Tracklets(
        number=number,
        start=number.astype(np.int64) * LENGTH,
        count=np.full(count, LENGTH, np.int64),
        pid=number // TRACKLETS,
        camid=number % CAMERAS,
    )
    shape = (count * LENGTH, *size, 3)
    return Setup(
        work=work,
        config=config,
        table=table,
        pixels=np.random.default_rng(0).integers(0, 256, shape, np.uint8),
        mesh=make_mesh(1),
        graphdef=graphdef,
        params=params,
        batch_stats=batch_stats,
        embed_dim=family.embed_dim,
    )


def step_figures(setup: Setup, images: ImageInput) -> dict[str, Any]:
    """Training steps; `input_wait_share` counts the wait while the device still works, too."""
    work, config, table = setup.work, setup.config, setup.table
    steps = 2 + work.steps * work.repeats
    passes = (
        plan_groups(
            table.pid,
            seed=0,
            epoch=epoch,
            classes_per_batch=work.classes,
            images_per_class=work.images,
        )
        for epoch in itertools.count()
    )
    batches = itertools.chain.from_iterable(passes)
    items = np.stack(list(itertools.islice(batches, steps)))
    plan = training_clips(table, items, frames=work.frames, seed=0, epoch=0)
    context = Context(
        label=jnp.asarray(np.repeat(table.pid, LENGTH), jnp.int32),
        camid=jnp.asarray(np.repeat(table.camid, LENGTH), jnp.int32),
    )
    state = initial_state(config, *copied((setup.params, setup.batch_stats)))
    people = len(np.unique(table.pid))
    memory = {"identities": encoders.draw((people, setup.embed_dim), jnp.float32, 2)}
    context, state = replicate((context, state.replace(memory=memory)), setup.mesh)
    step = make_step(setup.graphdef, config, mesh=setup.mesh, resident=images.resident)
    with contextlib.closing(images.batches(plan)) as given:
        stepper = Stepper(
            step, state, ((context, *batch, np.float32(RATE)) for batch in given), plan.shape[1]
        )
        started = images.wait_seconds
        seconds = [stepper.window(work.steps) for _ in range(work.repeats)]
    found = stepper.figures()
    return found | {
        "frames_per_second": found["images_per_second"],
        "clips_per_second": found["images_per_second"] / work.frames,
        "input_wait_share": (images.wait_seconds - started) / (work.steps * sum(seconds)),
    }


def dense_features(setup: Setup) -> dict[str, Any]:
    """Dense features of some tracklets, streamed from the host as test sets are."""
    work, config = setup.work, setup.config
    clips = dense_clips(setup.table, frames=work.frames)
    batch = config.evaluation.batch if not work.tiny else 4 * work.frames
    rows = clips.rows[: max(1, work.steps) * max(1, batch // work.frames)]
    extract = clip_extractor(
        setup.graphdef,
        "embed",
        frames=work.frames,
        mean=config.augment.mean,
        std=config.augment.std,
        batch=batch,
        mesh=setup.mesh,
        description="features",
    )
    images = StreamedImages(setup.pixels, setup.mesh)
    cameras = np.repeat(setup.table.camid, LENGTH)
    seconds = repeated(
        lambda: extract(setup.params, setup.batch_stats, images, cameras, chosen=rows),
        work.repeats,
    )
    frames = rows.size / seconds["median"]
    return {
        "seconds": seconds,
        "frames_per_second": frames,
        "clips_per_second": frames / work.frames,
    }
