"""The phases of CCLNet, their training step, and the swap of prototypes after it.

Stages 0 and 2 contrast the images of each modality with a memory of its own clusters; stage 2 adds
the descriptions of the clusters that stage 0 ended with.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from ccafl_jax import losses
from ccafl_jax.data.augment import augment
from ccafl_jax.memory import swap_matched, update_each, update_hard
from ccafl_jax.methods.cclnet.config import CCLNetConfig
from ccafl_jax.models.dual_stream import MODALITIES
from ccafl_jax.numerics import einsum
from ccafl_jax.training.layout import REPLICATED, constrain, rules_of
from ccafl_jax.training.loop import is_finite, keep_where
from ccafl_jax.training.optimizers import (
    apply_scaled,
    bias_factors,
    coupled_adam,
    grouped,
    label_by_path,
    warmup_multistep,
)
from ccafl_jax.training.state import FlatDict, TrainState, batch_stats_of, merge_model

UPDATES = {"each": update_each, "hard": update_hard}
PARAMETER_GROUPS = ((r"(^|/)attnpool/", "text_head"), (r"", "trunk"))
"""Only the text losses reach a ResNet's attention pool; every loss reaches the trunk. A ViT is all
trunk: its projection is a part of the retrieval feature."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stage, and what is active in it.

    Attributes:
      stage: `prepare` or `train`.
      text: with the image-to-text losses.
      swap: with the swap of prototypes.
    """

    stage: str
    text: bool = False
    swap: bool = False

    @property
    def name(self) -> str:
        """For example "train+text+swap"."""
        return "+".join([self.stage, *(part for part in ("text", "swap") if getattr(self, part))])


def phase_of(epoch: int, config: CCLNetConfig) -> Phase:
    """The phase of an epoch, counted from 0 through both stages."""
    stage = "train" if epoch >= config.schedule.prepare_epochs else "prepare"
    start = config.swap.start
    return Phase(
        stage,
        text=stage == "train" and config.text.weight > 0,
        swap=0 <= start <= _epoch_of_stage(epoch, config),
    )


def learning_rate(epoch: int, config: CCLNetConfig) -> float:
    """The rate of an epoch, counted from 0 through both stages."""
    options = config.optimizer
    if options.swap_lr and phase_of(epoch, config).swap:
        return options.swap_lr
    return warmup_multistep(
        _epoch_of_stage(epoch, config) + 1,  # published schedules count from 1
        base=options.base_lr,
        warmup_epochs=options.warmup_epochs,
        warmup_factor=options.warmup_factor,
        milestones=options.milestones,
        gamma=options.gamma,
    )


def _epoch_of_stage(epoch: int, config: CCLNetConfig) -> int:
    first = config.schedule.prepare_epochs
    return epoch - first if epoch >= first else epoch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a step reads and never writes; rebuilt at the start of an epoch.

    Attributes:
      label: int32[images], cluster of each training image in its modality, -1 for none.
      cluster_valid: by modality bool[capacity], which rows of the memory are in use.
      text_label: int32[images], the cluster whose description an image is compared with, -1 for
        none.
      class_text: by modality float[clusters, embed], the descriptions; empty without text losses.
    """

    label: jax.Array
    cluster_valid: FlatDict
    text_label: jax.Array
    class_text: FlatDict


def encoder_optimizer(
    config: CCLNetConfig, paths: list[str], *, text: bool = True
) -> optax.GradientTransformation:
    """The encoder's optimiser, with or without text losses; its state has one structure."""
    labels = label_by_path(paths, PARAMETER_GROUPS)
    groups = set(labels.values())
    idle = not text and config.optimizer.idle == "hold"
    active = groups - {"text_head"} if idle else groups
    tx = coupled_adam(config.optimizer.weight_decay)
    return grouped(tx, labels, active=frozenset(active))


def initial_state(config: CCLNetConfig, params: FlatDict, batch_stats: FlatDict) -> TrainState:
    """The state before the first step of a stage, without a memory."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=encoder_optimizer(config, list(params)).init(params),
        memory={},
    )


Step = Callable[
    [TrainState, Context, jax.Array, jax.Array, jax.Array], tuple[TrainState, dict[str, jax.Array]]
]


def make_step(
    graphdef: nnx.GraphDef,
    paths: list[str],
    config: CCLNetConfig,
    *,
    text: bool,
    mesh: Mesh | None = None,
    resident: bool = True,
    on_trace: Callable[[str], None] = lambda name: None,
) -> Step:
    """Builds the jitted step.

    Args:
      graphdef: of the image model, of two streams.
      paths: names of its parameters.
      config: options.
      text: with the image-to-text losses.
      mesh: the devices, over which the new state is laid out; None leaves that to the compiler.
      resident: whether `images` are the training set or only those of the batch.
      on_trace: called with "contrast" or "contrast+text" whenever the step is traced.

    Returns:
      `step(state, context, images, rows, learning_rate) -> (state, metrics)`, see the step of
      CCAFL. The first half of `rows` is visible and the second infrared. The state is donated.
    """
    update = make_update(graphdef, paths, config, text=text)

    def step(state, context, images, rows, learning_rate):
        on_trace("contrast+text" if text else "contrast")
        batch = augment(
            images[rows] if resident else images,
            None,
            jnp.arange(rows.shape[0]) < rows.shape[0] // 2,
            seed=config.seed,
            step=state.step,
            config=config.augment,
            dtype=state.params["neck/scale"].dtype,
        )
        new_state, metrics = update(state, context, batch, rows, learning_rate)
        if mesh is not None:
            new_state = constrain(new_state, mesh, rules_of(config.scale))
            metrics = constrain(metrics, mesh, REPLICATED)
        return new_state, metrics

    return jax.jit(step, donate_argnums=0)


def make_update(
    graphdef: nnx.GraphDef, paths: list[str], config: CCLNetConfig, *, text: bool
) -> Step:
    """The step on images that are augmented and normalised, not jitted; see `make_step`.

    Loss and gradient see the memories from before the update, and the memories take the features
    of this same forward pass.
    """
    tx = encoder_optimizer(config, paths, text=text)
    factors = bias_factors(paths, config.optimizer.bias_lr_factor)

    def update(state, context, batch, rows, learning_rate):
        half = rows.shape[0] // 2
        sides = split(rows, half)

        def loss_fn(params):
            model = merge_model(graphdef, params, state.batch_stats)
            f, g = (split(x, half) for x in model(batch, train=True))
            terms = contrast_losses(config, state.memory, context, f, sides)
            if text:
                terms |= text_losses(config, context, g, sides)
            total = sum(terms.values())
            metrics = {"total": total, **terms}
            return total, {"f": f, "batch_stats": batch_stats_of(model), "metrics": metrics}

        gradients, aux = jax.grad(loss_fn, has_aux=True)(state.params)
        metrics = aux["metrics"] | {"grad_norm": optax.tree.norm(gradients)}
        finite = is_finite(metrics)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=apply_scaled(
                state.params, updates, learning_rate=learning_rate, factors=factors
            ),
            batch_stats=aux["batch_stats"],
            opt_state=opt_state,
            memory=update_memory(config, state.memory, context, aux["f"], sides, finite),
        )
        if config.skip_nonfinite:
            old_state = state.replace(step=new_state.step, memory=new_state.memory)
            new_state = keep_where(finite, new_state, old_state)
        return new_state, metrics

    return update


def split(x: jax.Array, half: int) -> FlatDict:
    """The rows of a batch by modality."""
    return dict(zip(MODALITIES, (x[:half], x[half:]), strict=True))


def contrast_losses(
    config: CCLNetConfig, memory: FlatDict, context: Context, f: FlatDict, sides: FlatDict
) -> FlatDict:
    """Contrast of each modality with its own prototypes.

    Args:
      config: options.
      memory: by modality float[capacity, dim].
      context: labels, and rows of the memories in use.
      f: by modality float[batch, dim], L2-normalised.
      sides: by modality int[batch], rows of the training set.
    """
    return {
        f"contrast_{name}": losses.inter_contrast(
            f[name],
            context.label[rows],
            memory[name],
            context.cluster_valid[name],
            tau=config.contrast.temperature,
        )
        for name, rows in sides.items()
    }


def text_losses(config: CCLNetConfig, context: Context, g: FlatDict, sides: FlatDict) -> FlatDict:
    """Cross-entropy over the descriptions of a modality's clusters, of images that have one.

    Args:
      config: options.
      context: descriptions, and which one belongs to an image.
      g: by modality float[batch, embed], not normalised.
      sides: by modality int[batch], rows of the training set.
    """
    return {
        f"text_{name}": config.text.weight
        * losses.i2t_ce(
            g[name],
            context.class_text[name],
            context.text_label[rows],
            eps=config.text.smoothing,
        )
        for name, rows in sides.items()
    }


def update_memory(
    config: CCLNetConfig,
    memory: FlatDict,
    context: Context,
    f: FlatDict,
    sides: FlatDict,
    finite: jax.Array | bool = True,
) -> FlatDict:
    """The memories after a batch; as they were where its numbers are not finite."""
    update, momentum = UPDATES[config.contrast.memory_update], config.contrast.memory_momentum
    return {
        name: update(
            memory[name],
            f[name],
            context.label[rows],
            jnp.broadcast_to(finite, rows.shape) & (context.label[rows] >= 0),
            m=momentum,
        )
        for name, rows in sides.items()
    }


def make_similarities(mesh: Mesh | None = None) -> Callable[[FlatDict], jax.Array]:
    """Builds `similarities(memory) -> float32[visible rows, infrared rows]`, jitted.

    Args:
      mesh: the devices, on all of which the result is whole.
    """

    def similarities(memory):
        found = einsum("rd,td->rt", memory["visible"], memory["infrared"])
        return found if mesh is None else constrain(found, mesh, REPLICATED)

    return jax.jit(similarities)


def make_swap(
    config: CCLNetConfig,
    *,
    mesh: Mesh | None = None,
    on_trace: Callable[[str], None] = lambda name: None,
) -> Callable[[FlatDict, jax.Array, jax.Array, jax.Array], FlatDict]:
    """Builds `swap(memory, label, rows, infrared_of) -> memory`, jitted.

    Args:
      config: options.
      mesh: the devices, over which the memories are laid out.
      on_trace: called with "swap" at each trace.

    Returns:
      A function of the memories, the cluster of each training image (see `Context`), the rows of
      the batch and the infrared partner of each visible prototype (int32[visible rows], -1 for
      none). The memories are donated.
    """

    def swap(memory, label, rows, infrared_of):
        on_trace("swap")
        half = rows.shape[0] // 2
        swapped = swap_matched(
            memory["visible"],
            memory["infrared"],
            infrared_of,
            label[rows[:half]],
            label[rows[half:]],
            scale=config.swap.scale,
            aliased=config.swap.aliased,
        )
        found = {"memory": dict(zip(MODALITIES, swapped, strict=True))}
        if mesh is not None:
            found = constrain(found, mesh, rules_of(config.scale))
        return found["memory"]

    return jax.jit(swap, donate_argnums=0)
