"""The steps of a run, compiled and not run: what each phase takes."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.methods.ccafl import memories, prompts
from ccafl_jax.methods.ccafl.phases import Phase, phase_of
from ccafl_jax.methods.ccafl.run import Run
from ccafl_jax.training.compilation import costs


def dry_run(run: Run) -> dict[str, dict[str, float]]:
    """Compiles the step of every phase and returns what each takes, see `costs`.

    Args:
      run: which cannot be trained afterwards.
    """
    found = {}
    if "prompts" in run.config.stages:
        found["prompts"] = costs(lower_prompts(run).compile())
    epochs = range(run.config.schedule.epochs)
    for phase in dict.fromkeys(phase_of(epoch, run.config) for epoch in epochs):
        if phase.stage in run.config.stages:
            found[phase.name] = costs(lower(run, phase).compile())
    return found


def lower_prompts(run: Run) -> jax.stages.Lowered:
    """The step of stage 1, ready to be compiled."""
    config, images = run.config.prompts, len(run.dataset.train)
    features = np.zeros((images, run.model_config.embed_dim), run.sentence.dtype)
    context = run._prompt_context(features)
    batch = next(prompts.batches(images, config, run.mesh, seed=run.config.seed, epoch=0))
    rate = np.asarray(0, run.prompt_state.prompts.dtype)
    return run._make_prompt_step().lower(run.prompt_state, context, *batch, rate)


def lower(run: Run, phase: Phase) -> jax.stages.Lowered:
    """The step of a phase, ready to be compiled: with banks as large as they will be."""
    classes, dtype = run.num_classes, run.state.classifier.dtype
    run.progress.clusters = np.full(classes, -1, np.int32)
    run.progress.clusters[: run.config.sampler.classes] = 0
    if run.class_text is None:
        run.class_text = np.zeros((classes, run.model_config.embed_dim), dtype)
    features = jnp.ones((len(run.dataset.train), run.model_config.features), dtype)
    context = run._begin(0, phase, features)
    plan = memories.batch_plan(
        run.config,
        dataclasses.replace(phase, stage="intra"),  # by classes, whatever the sampler
        0,
        run.labels.label,
        run.progress.clusters,
    )
    with contextlib.closing(run.images.batches(plan[:1])) as batches:
        batch = next(batches)
        return run._make_step(phase).lower(run.state, context, *batch, np.asarray(0, dtype))
