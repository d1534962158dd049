"""The phases of CALR and their training step.

Both stages contrast images with a memory of clusters: those of one camera in stage 1, those of all
in stage 2, whose first epochs are also trained against a classifier of cameras.
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
from ccafl_jax.memory import update_each, update_hard
from ccafl_jax.methods.calr.config import CALRConfig
from ccafl_jax.methods.calr.state import CALRState
from ccafl_jax.training.layout import REPLICATED, constrain, rules_of
from ccafl_jax.training.loop import is_finite, keep_where
from ccafl_jax.training.optimizers import apply_scaled, coupled_adam, warmup_multistep
from ccafl_jax.training.state import FlatDict, batch_stats_of, merge_model

UPDATES = {"each": update_each, "hard": update_hard}


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stage, and whether it is trained against the classifier of cameras."""

    stage: str
    alignment: bool = False

    @property
    def name(self) -> str:
        """For example "global+alignment"."""
        return self.stage + ("+alignment" if self.alignment else "")


def phase_of(epoch: int, config: CALRConfig) -> Phase:
    """The phase of an epoch of stage 2 (counted from 0)."""
    epochs = config.alignment.epochs
    return Phase("global", alignment=epochs < 0 or epoch < epochs)


def learning_rate(epoch: int, config: CALRConfig) -> float:
    """The rate in an epoch of a stage."""
    options = config.optimizer
    return warmup_multistep(
        epoch,
        base=options.base_lr,
        warmup_epochs=0,
        warmup_factor=1.0,
        milestones=options.milestones,
        gamma=options.gamma,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a step reads and never writes; rebuilt at the start of an epoch.

    Attributes:
      label: int32[images], cluster of each training image, -1 for none.
      camid: int32[images].
      cluster_valid: bool[capacity], which rows of the memory are in use.
      cluster_weight: float[capacity], how much the images of each cluster count.
    """

    label: jax.Array
    camid: jax.Array
    cluster_valid: jax.Array
    cluster_weight: jax.Array


def initial_state(
    config: CALRConfig,
    params: FlatDict,
    batch_stats: FlatDict,
    head: FlatDict,
    head_stats: FlatDict,
) -> CALRState:
    """The state before the first step of a stage, without a memory."""
    tx = coupled_adam(config.optimizer.weight_decay)
    return CALRState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        memory={},
        head=head,
        head_stats=head_stats,
        head_opt=tx.init(head),
    )


Step = Callable[
    [CALRState, Context, jax.Array, jax.Array, jax.Array], tuple[CALRState, dict[str, jax.Array]]
]


def make_step(
    graphdef: nnx.GraphDef,
    head_graph: nnx.GraphDef,
    phase: Phase,
    config: CALRConfig,
    *,
    mesh: Mesh | None = None,
    resident: bool = True,
    on_trace: Callable[[str], None] = lambda name: None,
) -> Step:
    """Builds the jitted step of a phase.

    Args:
      graphdef: of the image model.
      head_graph: of the classifier of cameras.
      phase: what is active.
      config: options.
      mesh: the devices, over which the new state is laid out by `rules_of`; None leaves that to
        the compiler.
      resident: whether `images` are the training set or only those of the batch.
      on_trace: called with the phase's name whenever the step is traced.

    Returns:
      `step(state, context, images, rows, learning_rate) -> (state, metrics)`, see the step of
      CCAFL. The state is donated. Loss and gradient see the memory from before the update.
    """
    tx = coupled_adam(config.optimizer.weight_decay)

    def step(state, context, images, rows, learning_rate):
        on_trace(phase.name)
        cameras = context.camid[rows]
        batch = augment(
            images[rows] if resident else images,
            seed=config.seed,
            step=state.step,
            config=config.augment,
            dtype=state.params["neck/scale"].dtype,
        )

        def loss_fn(params, head):
            model = merge_model(graphdef, params, state.batch_stats)
            f, _ = model(batch, cameras, train=True)
            classifier = merge_model(head_graph, head, state.head_stats)
            key = jax.random.fold_in(jax.random.key(config.seed), state.step)
            terms = _losses(phase, config, state.memory, context, f, rows, classifier, key)
            total = sum(terms.values())
            aux = {
                "f": f,
                "batch_stats": batch_stats_of(model),
                "head_stats": batch_stats_of(classifier),
                "metrics": {"total": total, **terms},
            }
            return total, aux

        gradients, aux = jax.grad(loss_fn, argnums=(0, 1), has_aux=True)(state.params, state.head)
        metrics = aux["metrics"] | {"grad_norm": optax.tree.norm(gradients[0])}
        finite = is_finite(metrics)
        params, opt_state = _stepped(tx, state.params, gradients[0], state.opt_state, learning_rate)
        head, head_opt = state.head, state.head_opt
        if phase.alignment:
            head, head_opt = _stepped(tx, head, gradients[1], head_opt, learning_rate)
        new_state = CALRState(
            step=state.step + 1,
            params=params,
            batch_stats=aux["batch_stats"],
            opt_state=opt_state,
            memory=_update_memory(config, state.memory, context, aux["f"], rows, finite),
            head=head,
            head_stats=aux["head_stats"],
            head_opt=head_opt,
        )
        if config.skip_nonfinite:
            old_state = state.replace(step=new_state.step, memory=new_state.memory)
            new_state = keep_where(finite, new_state, old_state)
        if mesh is not None:
            new_state = constrain(new_state, mesh, rules_of(config.scale))
            metrics = constrain(metrics, mesh, REPLICATED)
        return new_state, metrics

    return jax.jit(step, donate_argnums=0)


def _losses(phase, config, memory, context, f, rows, classifier, key):
    terms = {
        "contrast": losses.inter_contrast(
            f,
            context.label[rows],
            memory["clusters"],
            context.cluster_valid,
            tau=config.contrast.temperature,
            weight=context.cluster_weight,
        )
    }
    if phase.alignment:
        options = config.alignment
        logits = classifier(losses.reverse_gradient(f, options.reversal), key)
        loss = losses.camera_classification(logits, context.camid[rows], kind=options.loss)
        terms["alignment"] = options.weight * loss
    return terms


def _update_memory(config, memory, context, f, rows, finite):
    """The bank after the batch; as it was where its numbers are not finite."""
    labels, options = context.label[rows], config.contrast
    valid = jnp.broadcast_to(finite, labels.shape) & (labels >= 0)
    update = UPDATES[options.memory_update]
    return {"clusters": update(memory["clusters"], f, labels, valid, m=options.memory_momentum)}


def _stepped(tx, params, gradients, opt_state, learning_rate):
    updates, opt_state = tx.update(gradients, opt_state, params)
    params = apply_scaled(params, updates, learning_rate=learning_rate, factors={})
    return params, opt_state
