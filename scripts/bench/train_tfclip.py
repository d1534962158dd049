"""What train.py measures of TF-CLIP: one network and dtype, in a process of its own."""

from typing import Any, NamedTuple

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import train_steps
from flax import nnx
from train_steps import Stepper, Work, copied, image_size, random_clip, repeated

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
from ccafl_jax.methods.tfclip.phases import Context, initial_state, make_step, rate_factors
from ccafl_jax.training.features import clip_extractor
from ccafl_jax.training.inputs import ImageInput, ResidentImages, StreamedImages
from ccafl_jax.training.optimizers import coupled_adam
from ccafl_jax.training.sharding import make_mesh, replicate
from ccafl_jax.training.state import FlatDict, split_model

IDENTITIES, CAMERAS, TRACKLETS = 625, 6, 8298  # of MARS's training set
SHOWN, LENGTH = 4, 16  # tracklets of an identity, and frames of each; MARS has 13 of 61


class Setup(NamedTuple):
    """Everything that the measurements share."""

    work: Work
    config: TFCLIPConfig
    table: Tracklets
    images: ResidentImages
    graphdef: nnx.GraphDef
    params: FlatDict
    batch_stats: FlatDict
    memory: jax.Array  # float32[identities, joint dim]

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """One device."""
        return self.images.mesh


def measure(work: Work) -> dict[str, Any]:
    """All figures of a work."""
    setup = prepare(work)
    options = setup.config.optimizer
    bare = train_steps.bare_step(
        work,
        setup.graphdef,
        setup.params,
        setup.batch_stats,
        setup.images,
        tx=coupled_adam(options.weight_decay),
        factors=rate_factors(setup.params, options),
        outputs=lambda model, frames: clip_outputs(setup, model, frames),
    )
    return train_steps.measure(
        work,
        setup.images,
        bare,
        phase=lambda _, images: phase_figures(setup, bare, images),
        alone={},
        sizes={"classes": setup.memory.shape[0], "embed_dim": setup.memory.shape[1]},
        epoch_parts=lambda: {"dense_features": dense_features(setup)},
    )


def clip_outputs(setup: Setup, model: nnx.Module, frames: jax.Array) -> Any:
    """What the video model gives in training, of frames that make up clips."""
    clips = frames.reshape(-1, setup.work.frames, *frames.shape[1:])
    cameras = jnp.arange(len(clips)) % CAMERAS
    return model(clips, cameras, setup.memory, key=jax.random.key(0), train=True)


def prepare(work: Work) -> Setup:
    """A network with random weights, and random frames."""
    size = image_size(work)
    vit = work.network.startswith("ViT")
    config = TFCLIPConfig(
        data=DataConfig(height=size[0], width=size[1]),
        model=ModelConfig(compute_dtype=work.dtype, attention=work.attention, camera_embedding=vit),
        clips=ClipsConfig(frames=work.frames),
        prompt=PromptConfig(remat=work.remat),
        sampler=SamplerConfig(classes=work.classes, tracklets=work.images),
    )
    clip = random_clip(work)
    people = max(work.classes, round(work.scale * IDENTITIES))
    model, _ = video_model(clip, config, classes=people, cameras=CAMERAS)
    graphdef, params, batch_stats = split_model(model)
    mesh = make_mesh(1)
    count = people * SHOWN
    number = np.arange(count, dtype=np.int32)
    table = Tracklets(
        number=number,
        start=number.astype(np.int64) * LENGTH,
        count=np.full(count, LENGTH, np.int64),
        pid=number // SHOWN,
        camid=number % CAMERAS,
    )
    shape = (count * LENGTH, *size, 3)
    return Setup(
        work=work,
        config=config,
        table=table,
        images=ResidentImages(jax.random.bits(jax.random.key(0), shape, jnp.uint8), mesh),
        graphdef=graphdef,
        params=replicate(params, mesh),
        batch_stats=replicate(batch_stats, mesh),
        memory=encoders.draw((people, clip.config.embed_dim), jnp.float32, 2),
    )


def phase_figures(setup: Setup, bare: Stepper, images: ImageInput) -> dict[str, Any]:
    """Figures of the only phase, with some input."""
    work, config, table = setup.work, setup.config, setup.table
    items = plan_groups(
        table.pid,
        seed=0,
        epoch=0,
        classes_per_batch=work.classes,
        images_per_class=work.images,
    )
    context = Context(
        label=jnp.asarray(np.repeat(table.pid, LENGTH), jnp.int32),
        camid=jnp.asarray(np.repeat(table.camid, LENGTH), jnp.int32),
    )
    state = initial_state(config, *copied((setup.params, setup.batch_stats)))
    state = state.replace(memory={"identities": jnp.copy(setup.memory)})
    context, state = replicate((context, state), setup.mesh)
    return train_steps.phase_figures(
        work,
        make_step(setup.graphdef, config, mesh=setup.mesh, resident=images.resident),
        state,
        context,
        training_clips(table, items, frames=work.frames, seed=0, epoch=0),
        images,
        bare,
        iterations=TRACKLETS // (work.classes * work.images),
    )


def dense_features(setup: Setup) -> dict[str, Any]:
    """Dense features of tracklets, streamed from the host as test sets are."""
    work, config = setup.work, setup.config
    clips = dense_clips(setup.table, frames=work.frames)
    count = len(clips) if work.extracted is None else max(1, work.extracted // work.frames)
    rows = clips.rows[:count]
    extract = clip_extractor(
        setup.graphdef,
        "embed",
        frames=work.frames,
        mean=config.augment.mean,
        std=config.augment.std,
        batch=min(config.evaluation.batch, rows.size),
        mesh=setup.mesh,
        description="features",
    )
    images = StreamedImages(np.asarray(setup.images.images), setup.mesh)
    cameras = np.repeat(setup.table.camid, LENGTH)
    seconds = repeated(
        lambda: extract(setup.params, setup.batch_stats, images, cameras, chosen=rows), 2
    )
    return {"seconds": seconds, "images_per_second": rows.size / seconds["median"]}
