"""The step of a run, compiled and not run: what it takes."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.methods.tfclip.phases import Phase
from ccafl_jax.methods.tfclip.run import Run
from ccafl_jax.training.compilation import costs


def dry_run(run: Run) -> dict[str, dict[str, float]]:
    """Compiles the step and returns what it takes, see `costs`.

    Args:
      run: which cannot be trained afterwards.
    """
    return {Phase().name: costs(lower(run).compile())}


def lower(run: Run) -> jax.stages.Lowered:
    """The step, ready to be compiled: with a memory as large as it will be."""
    state, sizes = run.state, run.model_config
    if run.config.loss.memory:
        memory = {"identities": jnp.zeros((sizes.classes, sizes.embed_dim))}
        state = run._laid_out(state.replace(memory=memory))
    with contextlib.closing(run.images.batches(run._plan(0)[:1])) as batches:
        return run._make_step(Phase()).lower(state, run._context, *next(batches), np.float32(0))
