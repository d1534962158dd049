"""Stage 1 of CCAFL: one prompt per class, learned by image-text contrast inside cameras."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from ccafl_jax import losses
from ccafl_jax.data.samplers import shuffled_batches
from ccafl_jax.methods.ccafl.config import PromptsConfig
from ccafl_jax.methods.class_texts import encode_prompts
from ccafl_jax.models.prompts import PromptTemplate
from ccafl_jax.numerics import einsum
from ccafl_jax.training.layout import REPLICATED, constrain
from ccafl_jax.training.loop import is_finite, keep_where
from ccafl_jax.training.optimizers import coupled_adam
from ccafl_jax.training.sharding import shard_rows
from ccafl_jax.training.state import FlatDict


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptState:
    """The learned prompts and their optimiser.

    Attributes:
      prompts: float[classes, 4, width].
      opt_state: dense Adam; rows absent from a batch still move by momentum and decay.
    """

    prompts: jax.Array
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptContext:
    """What a prompt step reads and never writes.

    Attributes:
      text_params: parameters of the frozen text tower.
      sentence: float[length, width], frozen embeddings of the template.
      image_features: float[images, embed], joint-space features, computed once.
      label: int32[images], accumulated class.
      camid: int32[images].
      cam_of: int32[classes].
    """

    text_params: FlatDict
    sentence: jax.Array
    image_features: jax.Array
    label: jax.Array
    camid: jax.Array
    cam_of: jax.Array


def prompt_optimizer(config: PromptsConfig) -> optax.GradientTransformation:
    """Adam with coupled L2, without a rate."""
    return coupled_adam(config.weight_decay)


def make_prompt_step(
    graphdef: nnx.GraphDef,
    template: PromptTemplate,
    config: PromptsConfig,
    *,
    mesh: Mesh | None = None,
    skip_nonfinite: bool = False,
    on_trace: Callable[[str], None] = lambda name: None,
) -> Callable:
    """Builds `step(state, context, rows, valid, learning_rate) -> (state, metrics)`, jitted.

    Args:
      graphdef: of the text tower.
      template: the sentence and the positions of the learned vectors.
      config: options of the stage.
      mesh: the devices, on all of which the new state is whole; None leaves that to the compiler.
      skip_nonfinite: leave the state as it was where loss or gradient are not finite.
      on_trace: called with "prompts" at each trace.

    Source: specification 2.3; the loss is a sum over the cameras of the batch of both directions
    of the supervised contrast, temperature 1, nothing normalised.
    """
    tx = prompt_optimizer(config)

    def step(state, context, rows, valid, learning_rate):
        on_trace("prompts")
        labels = context.label[rows]
        g = context.image_features[rows]

        def loss_fn(prompts):
            text = encode_prompts(
                graphdef, template, context.text_params, context.sentence, prompts[labels]
            )
            loss = losses.supcon_cam(
                g, text, labels, context.camid[rows], valid, scope=config.scope
            )
            return loss

        loss, gradient = jax.value_and_grad(loss_fn)(state.prompts)
        updates, opt_state = tx.update(gradient, state.opt_state, state.prompts)
        prompts = state.prompts - (learning_rate * updates).astype(state.prompts.dtype)
        new_state = PromptState(prompts=prompts, opt_state=opt_state)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradient)}
        if skip_nonfinite:
            new_state = keep_where(is_finite(metrics), new_state, state)
        if mesh is not None:
            new_state, metrics = constrain((new_state, metrics), mesh, REPLICATED)
        return new_state, metrics

    return jax.jit(step, donate_argnums=0)


def batches(
    images: int, config: PromptsConfig, mesh: Mesh, *, seed: int, epoch: int, first: int = 0
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The batches of an epoch, laid over the devices: int32[batch] rows and bool[batch] valid.

    Args:
      images: how many there are.
      config: options of the stage.
      mesh: the devices.
      seed: of the order of the images.
      epoch: counted from 0.
      first: batches that are left out at the start.
    """
    rows, valid = shuffled_batches(images, seed=seed, epoch=epoch, batch=config.batch)
    for batch in zip(rows[first:], valid[first:], strict=True):
        yield tuple(shard_rows(array, mesh) for array in batch)


@jax.jit
def top1_inside_camera(
    image_features: jax.Array, class_text: jax.Array, label: jax.Array, cam_of: jax.Array
) -> jax.Array:
    """Share of images whose own class text has the largest product among their camera's.

    Args:
      image_features: float[images, embed].
      class_text: float[classes, embed].
      label: int32[images].
      cam_of: int32[classes].
    """
    logits = einsum("be,ne->bn", image_features, class_text)
    same = cam_of[label][:, None] == cam_of[None, :]
    predicted = jnp.argmax(jnp.where(same, logits, -jnp.inf), axis=1)
    return jnp.mean(predicted == label)
