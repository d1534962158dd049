"""Stage 1 of CCLNet: one prompt for each cluster of stage 0, learned in each modality apart."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from ccafl_jax import losses
from ccafl_jax.data.samplers import shuffled_pairs
from ccafl_jax.methods.cclnet.config import PromptsConfig
from ccafl_jax.methods.class_texts import encode_prompts
from ccafl_jax.models.prompts import PromptTemplate, init_prompts
from ccafl_jax.training.layout import REPLICATED, constrain
from ccafl_jax.training.loop import is_finite, keep_where
from ccafl_jax.training.optimizers import coupled_adam
from ccafl_jax.training.sharding import shard_rows
from ccafl_jax.training.state import FlatDict

SENTENCES = {
    "visible": "A visible photo of a X X X X person.",
    "infrared": "An infrared photo of a X X X X person.",
}
"""By modality; learned vectors take the place of the four X."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptState:
    """The learned prompts and their optimiser.

    Attributes:
      prompts: by modality float[clusters, 4, width].
      opt_state: dense Adam; rows absent from a batch still move by momentum and decay.
    """

    prompts: FlatDict
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptContext:
    """What a prompt step reads and never writes.

    Attributes:
      text_params: parameters of the frozen text tower.
      sentences: by modality float[length, width], frozen embeddings of the template.
      image_features: float[images, embed], joint-space features, computed once.
      label: int32[images], cluster of stage 0 in the image's modality.
    """

    text_params: FlatDict
    sentences: FlatDict
    image_features: jax.Array
    label: jax.Array


def prompt_optimizer(config: PromptsConfig) -> optax.GradientTransformation:
    """Adam with coupled L2, without a rate."""
    return coupled_adam(config.weight_decay)


def initial_prompts(
    config: PromptsConfig, clusters: Mapping[str, int], *, width: int, seed: int
) -> PromptState:
    """The state before the first step.

    Args:
      config: options of the stage.
      clusters: number of clusters by modality.
      width: of the text tower.
      seed: of the run.
    """
    keys = jax.random.split(jax.random.key(seed), len(clusters))
    tables = {
        name: init_prompts(key, count, width=width)
        for key, (name, count) in zip(keys, clusters.items(), strict=True)
    }
    return PromptState(prompts=tables, opt_state=prompt_optimizer(config).init(tables))


def make_prompt_step(
    graphdef: nnx.GraphDef,
    templates: Mapping[str, PromptTemplate],
    config: PromptsConfig,
    *,
    mesh: Mesh | None = None,
    skip_nonfinite: bool = False,
    on_trace: Callable[[str], None] = lambda name: None,
) -> Callable:
    """Builds `step(state, context, rows, valid, learning_rate) -> (state, metrics)`, jitted.

    Args:
      graphdef: of the text tower.
      templates: by modality.
      config: options of the stage.
      mesh: the devices, on all of which the new state is whole; None leaves that to the compiler.
      skip_nonfinite: leave the state as it was where loss or gradient are not finite.
      on_trace: called with "prompts" at each trace.

    Source: specification 6.1: both directions of the supervised contrast in each modality,
    temperature 1, nothing normalised; modalities never meet.
    """
    tx = prompt_optimizer(config)

    def step(state, context, rows, valid, learning_rate):
        on_trace("prompts")
        half = rows.shape[0] // 2

        def loss_fn(prompts):
            terms = {}
            for name, part in (("visible", slice(half)), ("infrared", slice(half, None))):
                labels = context.label[rows[part]]
                text = encode_prompts(
                    graphdef,
                    templates[name],
                    context.text_params,
                    context.sentences[name],
                    prompts[name][labels],
                )
                image = context.image_features[rows[part]]
                none = jnp.zeros_like(labels)
                terms[f"loss_{name}"] = losses.supcon_cam(
                    image, text, labels, none, valid[part], scope="batch"
                )
            return sum(terms.values()), terms

        (loss, terms), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.prompts)
        updates, opt_state = tx.update(gradient, state.opt_state, state.prompts)
        tables = {
            name: table - (learning_rate * updates[name]).astype(table.dtype)
            for name, table in state.prompts.items()
        }
        new_state = PromptState(prompts=tables, opt_state=opt_state)
        metrics = {"loss": loss, **terms, "grad_norm": optax.tree.norm(gradient)}
        if skip_nonfinite:
            new_state = keep_where(is_finite(metrics), new_state, state)
        if mesh is not None:
            new_state, metrics = constrain((new_state, metrics), mesh, REPLICATED)
        return new_state, metrics

    return jax.jit(step, donate_argnums=0)


def batches(
    label: np.ndarray,
    infrared: np.ndarray,
    config: PromptsConfig,
    mesh: Mesh,
    *,
    seed: int,
    epoch: int,
    first: int = 0,
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The batches of an epoch, laid over the devices: int32[2 batch] rows and bool[2 batch] valid.

    Args:
      label: int[images], -1 for images that are left out.
      infrared: bool[images].
      config: options of the stage.
      mesh: the devices.
      seed: of the order of the images.
      epoch: counted from 0.
      first: batches that are left out at the start.
    """
    sides = [np.flatnonzero((label >= 0) & (infrared == side)) for side in (False, True)]
    rows, valid = shuffled_pairs(*sides, seed=seed, epoch=epoch, batch=config.batch)
    for batch in zip(rows[first:], valid[first:], strict=True):
        yield tuple(shard_rows(array, mesh) for array in batch)
