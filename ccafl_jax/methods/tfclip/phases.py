"""The training step of TF-CLIP, which has one phase: all losses from the first epoch on."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from ccafl_jax import losses
from ccafl_jax.data.augment import augment
from ccafl_jax.methods.tfclip.config import OptimizerConfig, TFCLIPConfig
from ccafl_jax.models.video import ClipOutputs
from ccafl_jax.training.layout import REPLICATED, constrain
from ccafl_jax.training.loop import is_finite, keep_where
from ccafl_jax.training.optimizers import (
    apply_scaled,
    bias_factors,
    coupled_adam,
    warmup_multistep,
)
from ccafl_jax.training.state import FlatDict, TrainState, batch_stats_of, merge_model

NEW_CLASSIFIER = "classifiers/time/"
NEW_MODULES = ("prompt/", "diffusion/")


@dataclasses.dataclass(frozen=True)
class Phase:
    """The only one."""

    name: str = "clips"


def learning_rate(epoch: int, config: TFCLIPConfig) -> float:
    """The rate in an epoch, counted from 0."""
    options = config.optimizer
    return warmup_multistep(
        epoch,
        base=options.base_lr,
        warmup_epochs=options.warmup_epochs,
        warmup_factor=options.warmup_factor,
        milestones=options.milestones,
        gamma=options.gamma,
    )


def rate_factors(paths: Iterable[str], options: OptimizerConfig) -> dict[str, float]:
    """Factor of the learning rate of each parameter."""
    paths = list(paths)
    new = NEW_MODULES if options.rates == "intended" else ()
    found = bias_factors(paths, options.bias_factor)
    return found | {
        path: options.new_factor for path in paths if path.startswith((NEW_CLASSIFIER, *new))
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a step reads and never writes.

    Attributes:
      label: int32[images], identity of each training frame, from 0.
      camid: int32[images].
    """

    label: jax.Array
    camid: jax.Array


def initial_state(config: TFCLIPConfig, params: FlatDict, batch_stats: FlatDict) -> TrainState:
    """The state before the first step, without the memory."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=coupled_adam(config.optimizer.weight_decay).init(params),
        memory={},
    )


Step = Callable[
    [TrainState, Context, jax.Array, jax.Array, jax.Array],
    tuple[TrainState, dict[str, jax.Array]],
]


def make_step(
    graphdef: nnx.GraphDef,
    config: TFCLIPConfig,
    *,
    mesh: Mesh | None = None,
    resident: bool = True,
    on_trace: Callable[[str], None] = lambda name: None,
) -> Step:
    """Builds the jitted step.

    Args:
      graphdef: of the video model.
      config: options.
      mesh: the devices, on which the new state is kept whole; None leaves that to the compiler.
      resident: whether `images` are the training set or only those of the batch.
      on_trace: called with the phase's name whenever the step is traced.

    Returns:
      `step(state, context, images, rows, learning_rate) -> (state, metrics)`: images uint8[n, H,
      W, 3], rows int32[clips * frames], the frames of a clip side by side. The state is donated.
    """
    tx = coupled_adam(config.optimizer.weight_decay)
    frames = config.clips.frames

    def step(state, context, images, rows, learning_rate):
        on_trace(Phase().name)
        batch = augment(
            images[rows] if resident else images,
            seed=config.seed,
            step=state.step,
            config=config.augment,
            frames=frames,
            dtype=state.params["necks/image/scale"].dtype,
        )
        clips = batch.reshape(-1, frames, *batch.shape[1:])
        first = rows[::frames]
        label, cameras = context.label[first], context.camid[first]
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss_fn(params):
            model = merge_model(graphdef, params, state.batch_stats)
            memory = state.memory.get("identities")
            outputs = model(clips, cameras, memory, key=key, train=True)
            terms = weighted_losses(outputs, label, config)
            total = sum(terms.values())
            metrics = {"total": total, **terms, **accuracies(outputs, label)}
            return total, (metrics, batch_stats_of(model))

        gradients, (metrics, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
        metrics |= {"grad_norm": optax.tree.norm(gradients)}
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = apply_scaled(
            state.params,
            updates,
            learning_rate=learning_rate,
            factors=rate_factors(state.params, config.optimizer),
        )
        new_state = state.replace(
            step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
        )
        if config.skip_nonfinite:
            old_state = state.replace(step=new_state.step)
            new_state = keep_where(is_finite(metrics), new_state, old_state)
        if mesh is not None:
            new_state = constrain(new_state, mesh, REPLICATED)
            metrics = constrain(metrics, mesh, REPLICATED)
        return new_state, metrics

    return jax.jit(step, donate_argnums=0)


def weighted_losses(
    outputs: ClipOutputs, label: jax.Array, config: TFCLIPConfig
) -> dict[str, jax.Array]:
    """The losses of a batch of clips, times their weights; those of weight 0 are left out."""
    options = config.loss
    terms = losses.clip_losses(
        outputs.features,
        outputs.logits,
        label,
        eps=options.smoothing,
        margin=None if options.soft_margin else options.margin,
    )
    weights = {name: getattr(options, name) for name in terms}
    return {name: weights[name] * term for name, term in terms.items() if weights[name]}


def accuracies(outputs: ClipOutputs, label: jax.Array) -> dict[str, jax.Array]:
    """Shares of clips, and of frames, that are classified right, by the name of their logits."""
    found = {}
    for name in ("image", "frame", "memory"):
        if name in outputs.logits:
            logits = outputs.logits[name]
            right = jnp.repeat(label, logits.shape[0] // label.shape[0])
            found[f"accuracy_{name}"] = jnp.mean(jnp.argmax(logits, axis=1) == right)
    return found
