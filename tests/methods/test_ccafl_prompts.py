"""Stage 1: the published loop on recorded permutations, and the limits of the loss."""

import jax.numpy as jnp
import numpy as np
import pytest

from ccafl_jax.methods.ccafl import prompts
from ccafl_jax.methods.ccafl.config import PromptsConfig
from ccafl_jax.methods.class_texts import make_class_texts
from ccafl_jax.models.clip import weights
from ccafl_jax.models.prompts import template_embeddings, template_from_ids
from ccafl_jax.training.state import split_model
from tests.golden_data import golden
from tests.models.checkpoints import zero_tensors
from tests.models.test_clip_text import SLOT, golden_config

BATCH = 64


def reference_parts(prefix_tokens):
    """Graph, template, context and initial state of the recorded loop."""
    record = golden("15_stage1_loop_s0")
    config = golden_config()
    tensors = zero_tensors(config) | golden("15_stage1_loop_s0_weights")
    text = weights.clip_from_tensors(config, tensors).text
    ids = record["tiny_tokens"][0]
    template = template_from_ids(ids[:12], slot=SLOT, prefix_tokens=prefix_tokens)
    graphdef, params, _ = split_model(text)
    classes = record["cls_ctx_init"].shape[0]
    cam_of = np.zeros(classes, np.int32)
    cam_of[record["labels"]] = record["cams"]
    context = prompts.PromptContext(
        text_params=params,
        sentence=template_embeddings(params["token_embedding"], template),
        image_features=jnp.asarray(record["image_features"]),
        label=jnp.asarray(record["labels"], jnp.int32),
        camid=jnp.asarray(record["cams"], jnp.int32),
        cam_of=jnp.asarray(cam_of),
    )
    return graphdef, template, context


def run_loop(config):
    record = golden("15_stage1_loop_s0")
    graphdef, template, context = reference_parts(config.prefix_tokens)
    traces = []
    step = prompts.make_prompt_step(graphdef, template, config, on_trace=traces.append)
    initial = jnp.asarray(record["cls_ctx_init"])
    state = prompts.PromptState(initial, prompts.prompt_optimizer(config).init(initial))
    losses, tables = [], []
    for epoch, order in enumerate(record["permutations"]):
        for start in range(0, len(order), BATCH):
            rows = np.zeros(BATCH, np.int32)
            part = order[start : start + BATCH]
            rows[: len(part)] = part
            valid = np.arange(BATCH) < len(part)
            state, metrics = step(state, context, rows, valid, record["lr_per_epoch"][epoch])
            losses.append(float(metrics["loss"]))
            tables.append(np.asarray(state.prompts))
    return losses, tables, traces, (graphdef, template, context, state)


@pytest.fixture(scope="module")
def published():
    return run_loop(PromptsConfig(prefix_tokens=5))


def test_published_loop(published):
    record = golden("15_stage1_loop_s0")
    losses, tables, traces, _ = published
    np.testing.assert_allclose(losses, record["losses"], rtol=1e-5)
    for found, expected in zip(tables, record["cls_ctx_after_each_step"], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert traces == ["prompts"]  # the short last batch is padded, not a shape of its own


def test_rows_without_an_image_move_by_decay(published):
    record = golden("15_stage1_loop_s0")
    absent = np.setdiff1d(np.arange(12), record["labels"])
    assert absent.size
    moved = np.abs(published[1][-1] - record["cls_ctx_init"])[absent]
    assert 1e-4 < moved.max() < 1e-3


def test_options_change_the_loop(published):
    for config in (
        PromptsConfig(prefix_tokens=4),
        PromptsConfig(prefix_tokens=5, scope="batch"),
        PromptsConfig(prefix_tokens=5, weight_decay=0.0),
    ):
        tables = run_loop(config)[1]
        assert np.abs(tables[-1] - published[1][-1]).max() > 1e-4, config


def test_class_texts_are_the_features_of_single_prompts(published):
    graphdef, template, context, state = published[3]
    texts = make_class_texts(graphdef, template, batch=5)(
        context.text_params, context.sentence, state.prompts
    )
    whole = prompts.encode_prompts(
        graphdef, template, context.text_params, context.sentence, state.prompts
    )
    np.testing.assert_allclose(texts, whole, atol=1e-5)
    top1 = prompts.top1_inside_camera(context.image_features, texts, context.label, context.cam_of)
    logits = np.asarray(context.image_features) @ np.asarray(texts).T
    same = np.asarray(context.cam_of)[np.asarray(context.label)][:, None] == context.cam_of
    expected = np.mean(np.where(same, logits, -np.inf).argmax(1) == context.label)
    np.testing.assert_allclose(top1, expected)
