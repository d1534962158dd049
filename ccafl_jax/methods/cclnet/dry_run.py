"""The steps of a run, compiled and not run: what each phase takes."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.methods.cclnet import prompts
from ccafl_jax.methods.cclnet.phases import Phase, phase_of
from ccafl_jax.methods.cclnet.run import Run
from ccafl_jax.training.compilation import costs


def dry_run(run: Run) -> dict[str, dict[str, float]]:
    """Compiles the step of every phase and returns what each takes, see `costs`.

    The swap after a step is left out: its work is small beside that of the step.

    Args:
      run: which cannot be trained afterwards.
    """
    images = len(run.dataset.train)
    run.progress.labels = run.progress.text_labels = np.zeros(images, np.int32)
    found = {}
    if "prompts" in run.config.stages and run.config.text.weight:
        found["prompts"] = costs(lower_prompts(run).compile())
    epochs = range(run.config.schedule.epochs)
    for phase in dict.fromkeys(phase_of(epoch, run.config) for epoch in epochs):
        if phase.stage in run.config.stages:
            found[phase.name] = costs(lower(run, phase).compile())
    return found


def lower_prompts(run: Run) -> jax.stages.Lowered:
    """The step of stage 1, ready to be compiled."""
    config, images = run.config.prompts, len(run.dataset.train)
    features = np.zeros((images, run.model_config.embed_dim), np.float32)
    batch = next(
        prompts.batches(
            run.progress.text_labels, run.infrared, config, run.mesh, seed=run.config.seed, epoch=0
        )
    )
    context = run._prompt_context(features)
    return run._make_prompt_step().lower(run._fresh_prompts(), context, *batch, np.float32(0))


def lower(run: Run, phase: Phase) -> jax.stages.Lowered:
    """The step of a phase, ready to be compiled."""
    run._grow_memory()
    width = run.model_config.features
    memory = {name: jnp.ones((rows, width)) for name, rows in run.progress.rows.items()}
    state = run._laid_out(run.state.replace(memory=memory))
    if phase.text:
        embed = run.model_config.embed_dim
        run.class_text = {name: np.zeros((1, embed), np.float32) for name in memory}
    with contextlib.closing(run.images.batches(run._plan()[:1])) as batches:
        batch = next(batches)
        step = run._contrast_step(phase.text)
        return step.lower(state, run._context(phase), *batch, np.float32(0))
