"""CCLNet's losses, schedules, prompts and whole training steps against reference values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax import losses
from ccafl_jax.memory import update_each, update_hard
from ccafl_jax.methods import prompt_stage
from ccafl_jax.methods.cclnet import phases, prompts
from ccafl_jax.methods.cclnet.config import CCLNetConfig, OptimizerConfig, SwapConfig
from ccafl_jax.models.clip import CLIPConfig, ResNetConfig, TextConfig, weights
from ccafl_jax.models.named_tensors import names_of
from ccafl_jax.models.prompts import assemble, template_from_ids
from ccafl_jax.models.reid import HeadConfig, ReIDConfig, build_reid
from ccafl_jax.models.reid_weights import CCLNET, load_cclnet_tensors
from ccafl_jax.numerics import l2_normalize
from ccafl_jax.pseudo_labels.matching import match_similarity
from ccafl_jax.training.optimizers import apply_scaled, bias_factors, coupled_adam
from ccafl_jax.training.state import merge_model, split_model
from tests.golden_data import golden
from tests.models.checkpoints import close, to_nhwc, zero_tensors

MODALITIES = {"visible": "rgb", "infrared": "ir"}
SLOT = 343  # "x" followed by a blank, in CLIP's vocabulary


@pytest.mark.parametrize("momentum", ["m01", "m09"])
@pytest.mark.parametrize(("kind", "update"), [("plain", update_each), ("hard", update_hard)])
def test_memory_of_cluster_contrast(kind, update, momentum):
    data = golden("memory_hard_upstream", "cclnet")
    case = {key: jnp.asarray(data[f"{kind}_{momentum}/{key}"]) for key in
            ("x", "t", "mem", "momentum", "temp", "loss", "grad_x", "mem_after")}  # fmt: skip

    def loss_fn(x):
        tau = float(case["temp"])
        return losses.inter_contrast(l2_normalize(x), case["t"], case["mem"], tau=tau)

    loss, gradient = jax.value_and_grad(loss_fn)(case["x"])
    np.testing.assert_allclose(loss, case["loss"], rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(gradient, case["grad_x"], atol=2e-5)
    m = float(case["momentum"])
    after = update(case["mem"], l2_normalize(case["x"]), case["t"], m=m)
    np.testing.assert_allclose(after, case["mem_after"], atol=1e-5)


def test_contrast_of_images_and_descriptions():
    data = golden("text_losses", "cclnet")
    image, label = (jnp.asarray(data[f"supcon/{key}"]) for key in ("img", "label"))

    def both(table):
        text = table[label]
        return (
            losses.supcon(image, text, label, label),
            losses.supcon(text, image, label, label),
        )

    table = jnp.asarray(data["supcon/txt_table"])
    for found, direction in zip(both(table), ("i2t", "t2i"), strict=True):
        np.testing.assert_allclose(found, data[f"supcon/{direction}"], rtol=1e-5)
    gradient = jax.grad(lambda table: sum(both(table)))(table)
    np.testing.assert_allclose(gradient, data["supcon/grad_txt_table"], atol=1e-5)


def test_smoothed_cross_entropy_leaves_images_without_a_description_out():
    data = golden("text_losses", "cclnet")
    logits, label = jnp.asarray(data["i2tce/logits"]), jnp.asarray(data["i2tce/label"])
    eps = float(data["i2tce/eps"])
    loss, gradient = jax.value_and_grad(losses.smoothed_cross_entropy)(logits, label, eps=eps)
    np.testing.assert_allclose(loss, data["i2tce/loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, data["i2tce/grad_logits"], atol=1e-5)
    none = losses.smoothed_cross_entropy(logits, jnp.full_like(label, -1), eps=eps)
    assert none == data["i2tce/loss_all_ignored"][0] == 0


def test_rates():
    data, config = golden("schedules_optim", "cclnet"), CCLNetConfig()
    found = [prompt_stage.learning_rate(epoch, config.prompts) for epoch in range(60)]
    np.testing.assert_allclose(found, data["stage1_lr"], rtol=1e-5)
    for first in (0, 120):  # both stages have one schedule
        found = [phases.learning_rate(first + epoch, config) for epoch in range(120)]
        np.testing.assert_allclose(found, data["stage2_lr"], rtol=1e-5)
    factors = bias_factors(["a/bias", "a/kernel"], config.optimizer.bias_lr_factor)
    np.testing.assert_allclose(np.multiply(found, factors["a/bias"]), data["stage2_lr_bias"], 1e-5)
    assert factors["a/kernel"] == 1


def test_adam_with_coupled_decay():
    data = golden("schedules_optim", "cclnet")
    tx = coupled_adam(float(data["adam_wd"]))
    params = {"p": jnp.asarray(data["adam_p0"])}
    state = tx.init(params)
    for gradient, expected in zip(data["adam_grads"], data["adam_trace"], strict=True):
        updates, state = tx.update({"p": jnp.asarray(gradient)}, state, params)
        params = apply_scaled(params, updates, learning_rate=float(data["adam_lr"]), factors={})
        np.testing.assert_allclose(params["p"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "short"), MODALITIES.items())
def test_prompts(name, short):
    data = golden("prompt_learner", "cclnet")
    ids = data[f"tokens_{short}"][:13]
    template = template_from_ids(ids, slot=SLOT, text=prompts.SENTENCES[name])
    assert template.learned == (6, 7, 8, 9) and template.eot == 12
    table = dict(zip(data["used_ids"].tolist(), data["used_embeddings"], strict=True))
    sentence = jnp.asarray(np.stack([table[i] for i in template.ids]))
    label = jnp.asarray(data["label"])

    def assembled(context):
        return assemble(sentence, template, context[label])

    found, pullback = jax.vjp(assembled, jnp.asarray(data[f"ctx_{short}"]))
    np.testing.assert_array_equal(found, data[f"prompts_{short}_first14"][:, :13])
    (gradient,) = pullback(jnp.asarray(data["upstream_first14"][:, :13]))
    np.testing.assert_allclose(gradient, data[f"grad_ctx_{short}"], atol=1e-5)


def test_text_tower():
    data = golden("text_encoder_small", "cclnet")
    config = CLIPConfig(
        embed_dim=48,
        vision=ResNetConfig(layers=(1, 1, 1, 1), width=4, image_size=(32, 32), last_stride=1),
        text=TextConfig(vocab=4, context=77, width=64, heads=int(data["heads"]), layers=2),
        activation="quick_gelu",
    )
    tensors = {key.removeprefix("w/"): x for key, x in data.items() if key.startswith("w/")}
    text = weights.clip_from_tensors(config, {**zero_tensors(config), **tensors}).text
    eot = int(np.argmax(data["tokens"]))
    found, pullback = jax.vjp(text, jnp.asarray(data["prompts"][:, : eot + 1]))
    close(found, data["out"])
    # What follows the end of a text has no gradient, and is not computed here.
    assert data["grad_prompts_after_eot_absmax"] == 0
    (gradient,) = pullback(jnp.linspace(-1, 1, found.size).reshape(found.shape))
    close(gradient, data["grad_prompts_first16"][:, : eot + 1])


# Whole steps of the small network.


@functools.cache
def network():
    """Graph, parameters and statistics in the published weights."""
    data = golden("stage2_step_small", "cclnet")
    sizes = ReIDConfig(
        vision=ResNetConfig(layers=(2, 1, 1, 1), width=4, image_size=(64, 32), last_stride=1),
        embed_dim=32,
        activation="",
        heads=HeadConfig(pooling="cubic"),
        dual_stream=True,
    )
    model = nnx.eval_shape(lambda: build_reid(sizes))
    tensors = {key.removeprefix("w0/"): x for key, x in data.items() if key.startswith("w0/")}
    load_cclnet_tensors(model, tensors)
    return split_model(model)


def published(flat):
    """Arrays under their published names and axes."""
    found = {}
    for path, value in flat.items():
        names, layout = names_of(path, CCLNET)
        found.update(zip(names, layout.split(np.asarray(value)), strict=True))
    return found


@functools.cache
def step(text):
    """Context, gradients, and what one step and the swap after it make of the small network."""
    data = golden("stage2_step_small", "cclnet")
    config = CCLNetConfig(
        optimizer=OptimizerConfig(weight_decay=float(data["wd"])),
        swap=SwapConfig(scale=float(data["scale"]), aliased=True),
    )
    graphdef, params, batch_stats = network()
    x = np.concatenate([data["x_rgb"], np.broadcast_to(data["x_ir"], data["x_rgb"].shape)])
    batch, rows = to_nhwc(x), jnp.arange(16)
    memory = {name: jnp.asarray(data[f"mem_{short}"]) for name, short in MODALITIES.items()}
    context = phases.Context(
        label=jnp.concatenate([jnp.asarray(data[f"t_{s}"]) for s in MODALITIES.values()]),
        cluster_valid={name: jnp.ones(len(bank), bool) for name, bank in memory.items()},
        text_label=jnp.concatenate([jnp.asarray(data[f"v_{s}"]) for s in MODALITIES.values()]),
        class_text={name: jnp.asarray(data[f"text_{s}"]) for name, s in MODALITIES.items()},
    )
    state = phases.initial_state(config, params, batch_stats).replace(memory=memory)
    update = phases.make_update(graphdef, list(params), config, text=text)

    def loss_fn(params):
        model = merge_model(graphdef, params, batch_stats)
        f, g = model(batch, train=True)
        sides = phases.split(rows, 8)
        terms = phases.contrast_losses(config, memory, context, phases.split(f, 8), sides)
        if text:
            terms |= phases.text_losses(config, context, phases.split(g, 8), sides)
        return sum(terms.values()), (f, g)

    @jax.jit
    def run(state):
        gradients, (f, g) = jax.grad(loss_fn, has_aux=True)(state.params)
        return update(state, context, batch, rows, data["lr"]), gradients, f, g

    (after, metrics), gradients, f, g = run(state)
    similarity = np.asarray(phases.make_similarities()(after.memory))
    valid = [np.asarray(context.cluster_valid[name]) for name in MODALITIES]
    partners = match_similarity(similarity, *valid).infrared_of
    updated = jax.tree.map(jnp.copy, after.memory)
    swapped = phases.make_swap(config)(updated, context.label, rows, partners)
    return {
        "f": f,
        "g": g,
        "metrics": metrics,
        "gradients": gradients,
        "state": after,
        "updated": after.memory,
        "swapped": swapped,
    }


def test_features_and_losses_of_a_step():
    data, found = golden("stage2_step_small", "cclnet"), step(True)
    np.testing.assert_allclose(found["f"], l2_normalize(data["train_feat"]), atol=2e-4)
    np.testing.assert_allclose(found["g"], data["train_proj"], atol=2e-4)
    metrics = found["metrics"]
    np.testing.assert_allclose(metrics["total"], data["loss"], rtol=1e-5)
    for name, short in MODALITIES.items():
        np.testing.assert_allclose(metrics[f"contrast_{name}"], data[f"loss_{short}"], rtol=1e-5)
        np.testing.assert_allclose(metrics[f"text_{name}"], data[f"loss_i2t_{short}"], rtol=1e-5)


def test_gradients_of_a_step():
    data, found = golden("stage2_step_small", "cclnet"), published(step(True)["gradients"])
    names = [key.removeprefix("grad/") for key in data if key.startswith("grad/")]
    assert len(names) >= 8
    for name in names:
        expected = data[f"grad/{name}"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            found[name], expected, rtol=5e-3, atol=2e-4 * scale, err_msg=name
        )


def test_memories_after_a_step_and_after_its_swap():
    """The vector of stage 0 is of an epoch without swap."""
    for file, text, key in (
        ("stage0_step_small", False, "updated"),
        ("stage2_step_small", True, "swapped"),
    ):
        data, found = golden(file, "cclnet"), step(text)
        for name, short in MODALITIES.items():
            np.testing.assert_allclose(found[key][name], data[f"mem_{short}_after"], atol=1e-5)
            loss = found["metrics"][f"contrast_{name}"]
            np.testing.assert_allclose(loss, data[f"loss_{short}"], rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "file"), [(True, "stage2_step_small"), (False, "stage0_step_small")]
)
def test_weights_and_statistics_after_a_step(text, file):
    data, found = golden(file, "cclnet"), step(text)
    before = published(network()[1])
    after = published({**found["state"].params, **found["state"].batch_stats})
    gradients = published(found["gradients"])
    names = [key.removeprefix("w1/") for key in data if key.startswith("w1/")]
    assert len(names) == (4 if not text else sum(key.startswith("w0/") for key in golden(
        "stage2_step_small", "cclnet")))  # fmt: skip
    for name in names:
        expected = data[f"w1/{name}"]
        if name == "bottleneck.bias":
            assert not expected.any()
        elif name not in gradients:  # running statistics
            np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            # The first step of Adam has the size of the rate, whatever that of the gradient is.
            clear = np.abs(gradients[name] + data_wd() * before[name]) > 1e-4
            np.testing.assert_allclose(
                after[name][clear], expected[clear], rtol=1e-5, atol=2e-6, err_msg=name
            )


def data_wd():
    return float(golden("stage2_step_small", "cclnet")["wd"])


def test_stage_0_leaves_the_attention_pool_alone():
    before, after = network()[1], step(False)["state"].params
    pool = [path for path in before if "attnpool" in path]
    assert len(pool) == golden("stage0_step_small", "cclnet")["n_attnpool_unchanged"]
    for path in pool:
        np.testing.assert_array_equal(before[path], after[path])
    moved = step(True)["state"].params
    assert any((np.asarray(before[path]) != np.asarray(moved[path])).any() for path in pool)
