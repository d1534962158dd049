"""The phases of CCAFL and their training step.

A phase is a stage with its fixed set of active losses; each compiles once. One step is one forward
pass and one gradient: the global classifier (GID) takes its own optimiser step inside the loss
function, on detached features, and ICAL then uses the stepped classifier as a constant.
"""

import dataclasses
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from ccafl_jax import losses
from ccafl_jax.data.augment import augment
from ccafl_jax.memory import update_each, update_hard, update_instances, update_mean
from ccafl_jax.methods.ccafl.config import CCAFLConfig, OptimizerConfig
from ccafl_jax.methods.ccafl.state import CCAFLState
from ccafl_jax.numerics import NEG
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
from ccafl_jax.training.state import FlatDict, batch_stats_of, merge_model

log = logging.getLogger("ccafl_jax")

PARAMETER_GROUPS = ((r"(^|/)attnpool/", "text_head"), (r"", "trunk"))
"""Only the text losses reach a ResNet's attention pool; every loss reaches the trunk. A ViT is all
trunk: its projection is a part of the retrieval feature."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stage and the losses that are active in it."""

    stage: str
    text: bool
    ical: bool = False
    camera_head: bool = False

    @property
    def name(self) -> str:
        """For example "inter+text+ical"."""
        parts = [name for name in ("text", "ical", "camera_head") if getattr(self, name)]
        return "+".join([self.stage, *parts])


def phase_of(epoch: int, config: CCAFLConfig) -> Phase:
    """The phase of an epoch of stages 2 and 3 (counted from 0)."""
    border = config.schedule.border
    if epoch < border("intra_epochs"):
        return Phase("intra", text=config.text.intra)
    text = config.text.inter and epoch >= border("text_start")
    window = border("ical_start") <= epoch < border("ical_end")
    return Phase(
        "inter",
        text=text,
        ical=config.ical.enabled and window,
        camera_head=config.camera_head.weight > 0 and window,
    )


def learning_rate(epoch: int, config: OptimizerConfig) -> float:
    """The encoder's rate in an epoch of stages 2 and 3."""
    return warmup_multistep(
        epoch,
        base=config.base_lr,
        warmup_epochs=config.warmup_epochs,
        warmup_factor=config.warmup_factor,
        milestones=config.milestones,
        gamma=config.gamma,
    )


def report_classifier(accuracy: float, classes: int) -> None:
    """Logs the classifier's batch accuracy where ICAL starts, with a warning near chance."""
    log.info("ICAL starts; the classifier's batch accuracy is %.4f", accuracy)
    if accuracy < 5 / classes:
        log.warning(
            "the global classifier is near chance (%.4f, chance %.4f) where ICAL starts: start "
            "it later (schedule.ical_start) or raise optimizer.classifier_lr",
            accuracy,
            1 / classes,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a step reads and never writes; rebuilt at the start of an epoch.

    Attributes:
      label: int32[images], accumulated class of each training image.
      cam_of: int32[classes], camera of each class; -1 in rows that only fill up the tables of
        classes, see `training.layout`.
      class_text: float[classes, embed], frozen text features.
      cluster_of: int32[classes], pseudo identity of each class, -1 for outliers.
      cluster_valid: bool[capacity], which rows of the cluster tables are in use.
      cluster_text: float[capacity, embed], descriptions of the clusters.
      instance_valid: bool[classes, slots], which instance slots are in use.
    """

    label: jax.Array
    cam_of: jax.Array
    class_text: jax.Array
    cluster_of: jax.Array
    cluster_valid: jax.Array
    cluster_text: jax.Array
    instance_valid: jax.Array


def encoder_optimizer(
    config: CCAFLConfig, paths: list[str], phase: Phase | None = None
) -> optax.GradientTransformation:
    """The encoder's optimiser in a phase; its state has one structure in all phases."""
    labels = label_by_path(paths, PARAMETER_GROUPS)
    groups = set(labels.values())
    idle = phase is not None and not phase.text and config.optimizer.idle == "hold"
    active = groups - {"text_head"} if idle else groups
    tx = coupled_adam(config.optimizer.weight_decay)
    return grouped(tx, labels, active=frozenset(active))


def classifier_optimizer(config: CCAFLConfig) -> optax.GradientTransformation:
    """The optimiser of the global identity classifier (constant rate)."""
    return optax.chain(
        coupled_adam(config.optimizer.classifier_weight_decay),
        optax.scale(-config.optimizer.classifier_lr),
    )


def initial_state(
    config: CCAFLConfig, params: FlatDict, batch_stats: FlatDict, classifier: jax.Array
) -> CCAFLState:
    """The state before the first step, without a memory."""
    return CCAFLState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=encoder_optimizer(config, list(params)).init(params),
        classifier=classifier,
        classifier_opt=classifier_optimizer(config).init(classifier),
        memory={},
    )


Step = Callable[
    [CCAFLState, Context, jax.Array, jax.Array, jax.Array], tuple[CCAFLState, dict[str, jax.Array]]
]


def make_step(
    graphdef: nnx.GraphDef,
    paths: list[str],
    phase: Phase,
    config: CCAFLConfig,
    *,
    mesh: Mesh | None = None,
    resident: bool = True,
    on_trace: Callable[[str], None] = lambda name: None,
) -> Step:
    """Builds the jitted step of a phase.

    Args:
      graphdef: of the image model.
      paths: names of its parameters.
      phase: what is active.
      config: options.
      mesh: the devices, over which the new state is laid out by `rules_of`; None leaves that to
        the compiler.
      resident: whether `images` are the training set or only those of the batch.
      on_trace: called with the phase's name whenever the step is traced (once, unless something
        is wrong).

    Returns:
      `step(state, context, images, rows, learning_rate) -> (state, metrics)`, with
      images: uint8[n, H, W, 3], the training set (uint8[batch, H, W, 3] where it is not
      resident); rows: int32[batch], places in the training set. The state is donated. Loss and
      gradient see the memory from before the update, and the memory takes the features of this
      same forward pass.
    """
    tx = encoder_optimizer(config, paths, phase)
    classifier_tx = classifier_optimizer(config)
    factors = bias_factors(paths, config.optimizer.bias_lr_factor)

    def step(state, context, images, rows, learning_rate):
        on_trace(phase.name)
        labels = context.label[rows]
        cameras = context.cam_of[labels]
        batch = augment(
            images[rows] if resident else images,
            seed=config.seed,
            step=state.step,
            config=config.augment,
            dtype=state.classifier.dtype,
        )

        def loss_fn(params):
            model = merge_model(graphdef, params, state.batch_stats)
            f, g = model(batch, cameras, train=True)
            gid_loss, classifier, classifier_opt, accuracy = _classifier_step(
                state, context, f, labels, classifier_tx, config
            )
            terms = _losses(phase, config, state, context, f, g, labels, classifier)
            total = sum(terms.values())
            aux = {
                "f": f,
                "batch_stats": batch_stats_of(model),
                "classifier": classifier,
                "classifier_opt": classifier_opt,
                "metrics": {"total": total, "gid": gid_loss, "gid_accuracy": accuracy, **terms},
            }
            return total, aux

        gradients, aux = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        metrics = aux["metrics"] | {"grad_norm": optax.tree.norm(gradients)}
        finite = is_finite(metrics)
        new_state = CCAFLState(
            step=state.step + 1,
            params=apply_scaled(
                state.params, updates, learning_rate=learning_rate, factors=factors
            ),
            batch_stats=aux["batch_stats"],
            opt_state=opt_state,
            classifier=aux["classifier"],
            classifier_opt=aux["classifier_opt"],
            # That it waits for the gradient also spares two copies of the bank, which would be
            # read and written at once.
            memory=_update_memory(phase, config, state.memory, context, aux["f"], labels, finite),
        )
        if config.skip_nonfinite:
            old_state = state.replace(step=new_state.step, memory=new_state.memory)
            new_state = keep_where(finite, new_state, old_state)
        if mesh is not None:
            new_state = constrain(new_state, mesh, rules_of(config.scale))
            metrics = constrain(metrics, mesh, REPLICATED)
        return new_state, metrics

    return jax.jit(step, donate_argnums=0)


def _classifier_step(state, context, f, labels, tx, config):
    """One step of the classifier on detached features (specification 2.7)."""
    used = context.cam_of >= 0
    f = jax.lax.stop_gradient(f)
    classifier = jax.lax.stop_gradient(state.classifier)

    def loss_fn(weight):
        return losses.gid(f, labels, weight, s=config.ical.scale, class_valid=used)

    loss, gradient = jax.value_and_grad(loss_fn)(classifier)
    updates, opt_state = tx.update(gradient, state.classifier_opt, classifier)
    cosines = losses.cosine_logits(f, classifier)
    predicted = jnp.argmax(jnp.where(used, cosines, NEG), axis=1)
    accuracy = jnp.mean((predicted == labels).astype(f.dtype))
    return loss, optax.apply_updates(classifier, updates), opt_state, accuracy


def _losses(phase, config, state, context, f, g, labels, classifier):
    if phase.stage == "intra":
        return _intra_losses(phase, config, state.memory, context, f, g, labels)
    return _inter_losses(phase, config, state.memory, context, f, g, labels, classifier)


def _intra_losses(phase, config, memory, context, f, g, labels):
    """Stage 2: per-camera means, summed over cameras (specification 2.5)."""
    cams = context.cam_of[labels]
    _, parts = losses.icdl(
        f,
        labels,
        memory["centroids"],
        memory["instances"],
        context.cam_of,
        tau=config.icdl.temperature,
        w=config.icdl.w,
        instance_valid=context.instance_valid,
        reduce=config.reduce,
    )
    terms = {
        "icdl_centroid": config.icdl.w * parts["cen"],
        "icdl_instance": (1 - config.icdl.w) * parts["ins"],
    }
    if phase.text:
        terms["text_intra"] = losses.i2t_ce(
            g,
            context.class_text,
            labels,
            losses.camera_mask(cams, context.cam_of),
            losses.camera_row_weights(cams, reduce=config.reduce),
            eps=config.text.smoothing,
        )
    if config.triplet.enabled:
        options = {"margin": config.triplet.margin, "reduce": config.reduce}
        terms["triplet_memory"] = losses.memory_triplet(
            f, labels, memory["centroids"], context.cam_of, **options
        )
        terms["triplet_batch"] = losses.batch_triplet(f, labels, camera=cams, **options)
    return terms


def _inter_losses(phase, config, memory, context, f, g, labels, classifier):
    """Stage 3: means over the rows whose class was associated (specification 2.6)."""
    clusters = context.cluster_of[labels]
    valid = clusters >= 0
    terms = {
        "inter": losses.inter_contrast(
            f,
            clusters,
            memory["clusters"],
            context.cluster_valid,
            tau=config.inter.temperature,
        )
    }
    if config.triplet.enabled:
        terms["triplet_batch"] = losses.batch_triplet(f, clusters, margin=config.triplet.margin)
    if phase.text:
        denominator = config.text.inter_denominator
        terms["text_inter"] = losses.i2t_ce(
            g,
            context.cluster_text,
            clusters,
            jnp.broadcast_to(context.cluster_valid, (len(labels), len(context.cluster_valid))),
            eps=config.text.smoothing,
            denom=float(denominator) if denominator else None,
        )
    if phase.ical:
        terms["ical"] = losses.ical(
            f,
            labels,
            classifier,
            context.cluster_of,
            context.cam_of,
            valid,
            s=config.ical.scale,
            eps=config.ical.epsilon,
            m=config.ical.margin,
            t=config.ical.inflation,
            class_valid=context.cam_of >= 0,
        )
    if phase.camera_head:
        terms["camera_head"] = losses.camera_adversary(
            f,
            context.cam_of[labels],
            memory["camera_head"],
            s=config.camera_head.scale,
            strength=config.camera_head.weight,
            class_valid=_trained_cameras(memory["camera_head"]),
        )
    return terms


def _trained_cameras(head: jax.Array) -> jax.Array:
    """bool[cameras]: rows of cameras with training images; those of others begin, and stay, 0."""
    return jnp.any(head != 0, axis=1)


def _update_memory(phase, config, memory, context, f, labels, finite):
    """The banks after the batch; as they were where its numbers are not finite."""
    f = jax.lax.stop_gradient(f)
    valid = jnp.broadcast_to(finite, labels.shape)
    if phase.stage == "intra":
        update = {"mean": update_mean, "hard": update_hard}[config.icdl.centroid_update]
        momentum = config.icdl.memory_momentum
        return {
            "centroids": update(memory["centroids"], f, labels, valid, m=momentum),
            "instances": update_instances(memory["instances"], f, labels, valid),
        }
    update = {"hard": update_hard, "mean": update_mean, "each": update_each}[
        config.inter.memory_update
    ]
    clusters = context.cluster_of[labels]
    momentum = config.inter.memory_momentum
    banks = {
        "clusters": update(memory["clusters"], f, clusters, valid & (clusters >= 0), m=momentum)
    }
    if phase.camera_head:
        head, options = memory["camera_head"], config.camera_head
        slope = jax.grad(losses.gid, argnums=2)(
            f,
            context.cam_of[labels],
            head,
            valid,
            s=options.scale,
            class_valid=_trained_cameras(head),
        )
        banks["camera_head"] = head - options.lr * slope
    return banks
