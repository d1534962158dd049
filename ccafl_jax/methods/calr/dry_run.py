"""The steps of a run, compiled and not run: what each phase takes."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.methods.calr.phases import Phase, phase_of
from ccafl_jax.methods.calr.run import Run
from ccafl_jax.training.compilation import costs


def dry_run(run: Run) -> dict[str, dict[str, float]]:
    """Compiles the step of every phase and returns what each takes, see `costs`.

    Args:
      run: which cannot be trained afterwards.
    """
    phases = [Phase("local")] if "local" in run.config.stages else []
    if "global" in run.config.stages:
        phases += [phase_of(epoch, run.config) for epoch in range(run.config.schedule.epochs)]
    return {phase.name: costs(lower(run, phase).compile()) for phase in dict.fromkeys(phases)}


def lower(run: Run, phase: Phase) -> jax.stages.Lowered:
    """The step of a phase, ready to be compiled: with a bank as large as it will be."""
    stage = "local" if phase.stage == "local" else "encoder"
    images = len(run.dataset.train)
    run.progress.labels = np.zeros(images, np.int32)
    run.progress.weights = np.ones(1, np.float32)
    memory = {"clusters": jnp.ones((run._rows(stage), run.model_config.features))}
    state = run._laid_out(run.state.replace(memory=memory))
    context = run._context(stage)
    with contextlib.closing(run.images.batches(run._plan(stage, 1))) as batches:
        return run._make_step(phase).lower(state, context, *next(batches), np.float32(0))
