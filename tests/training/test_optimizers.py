"""Optimisers and schedules against the published traces."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ccafl_jax.training.optimizers import (
    apply_scaled,
    bias_factors,
    coupled_adam,
    grouped,
    label_by_path,
    prompt_cosine,
    warmup_multistep,
)
from tests.golden_data import case_group, golden

NAMES = ("fc/weight", "fc/bias", "gap/p")
RULES = ((r"^gap/", "head"), (r"", "trunk"))


def run_trace(trace, *, gradient=lambda t, name, g: g, active=lambda t: {"head", "trunk"}):
    """The twelve recorded steps through our optimiser; path -> float[12, ...]."""
    record = golden("13_optimizer_s0")
    params = {name: jnp.asarray(record["init." + name.replace("/", ".")]) for name in NAMES}
    labels = label_by_path(NAMES, RULES)
    state = grouped(coupled_adam(5e-4), labels, active=frozenset({"head", "trunk"})).init(params)
    values = {name: [] for name in NAMES}
    for t in range(12):
        tx = grouped(coupled_adam(5e-4), labels, active=frozenset(active(t)))
        gradients = {
            name: jnp.asarray(gradient(t, name, record["grad." + name.replace("/", ".")][t]))
            for name in NAMES
        }
        updates, state = tx.update(gradients, state, params)
        rate = record[f"{trace}.lr"][t, 0]
        params = apply_scaled(params, updates, learning_rate=rate, factors=bias_factors(NAMES, 2.0))
        for name in NAMES:
            values[name].append(np.asarray(params[name]))
    return {name: np.stack(v) for name, v in values.items()}


def assert_trace(values, trace):
    for name in NAMES:
        expected = golden("13_optimizer_s0")[f"{trace}.{name.replace('/', '.')}"]
        np.testing.assert_allclose(values[name], expected, atol=1e-6, rtol=0, err_msg=name)


@pytest.mark.parametrize("trace", ["constant_lr", "warmup_schedule"])
def test_adam_with_coupled_decay_and_double_bias_rate(trace):
    assert_trace(run_trace(trace), trace)


def test_a_zero_gradient_is_decayed_by_a_full_step():
    values = run_trace("zero_grad", gradient=lambda t, name, g: g * 0)
    assert_trace(values, "zero_grad")


def test_a_group_without_gradient_stands_still_and_keeps_its_count():
    active = lambda t: {"trunk"} if t % 3 == 1 else {"trunk", "head"}  # noqa: E731
    values = run_trace("none_grad", active=active)
    assert_trace(values, "none_grad")


def test_decoupled_decay_would_be_noticed():
    record = golden("13_optimizer_s0")
    tx = optax.adamw(3.5e-4, weight_decay=5e-4)
    params = jnp.asarray(record["init.gap.p"])
    state = tx.init(params)
    for _ in range(12):
        updates, state = tx.update(jnp.zeros_like(params), state, params)
        params = optax.apply_updates(params, updates)
    assert abs(float(params[0]) - record["zero_grad.gap.p"][-1, 0]) > 1e-4


def test_an_uncovered_parameter_and_an_unknown_group_are_errors():
    with pytest.raises(ValueError, match="no rule covers parameter 'a/b'"):
        label_by_path(["a/b"], [("^c", "x")])
    with pytest.raises(ValueError, match="active groups"):
        grouped(optax.identity(), {"a": "x"}, active=frozenset({"y"}))


def test_schedules_follow_the_published_tables():
    record = golden("13_schedules")
    second = dict(base=3.5e-4, warmup_epochs=10, warmup_factor=0.01, milestones=(40, 50), gamma=0.1)
    rates = [warmup_multistep(e, **second) for e in range(80)]
    np.testing.assert_allclose(rates, record["stage2_warmup_lr_weight"], rtol=1e-6)
    np.testing.assert_allclose(2 * np.array(rates), record["stage2_warmup_lr_bias"], rtol=1e-6)
    first = dict(base=3.5e-4, warmup_from=1e-5, warmup_epochs=5, minimum=1e-6, epochs=60)
    rates = [prompt_cosine(e, **first) for e in range(1, 61)]
    np.testing.assert_allclose(rates, record["stage1_cosine_lr"], rtol=1e-6)


@pytest.mark.parametrize("case", case_group("schedule"), ids=lambda case: case["id"])
def test_schedules_follow_the_case_file(case):
    given = case["inputs"]
    if case["id"].startswith("l1"):
        rates = [
            prompt_cosine(
                e,
                base=given["base"],
                warmup_from=given["warmup_from"],
                warmup_epochs=given["warmup_epochs"],
                minimum=given["lr_min"],
                epochs=given["epochs"],
            )
            for e in range(1, given["epochs"] + 1)
        ]
    else:
        rates = [
            warmup_multistep(
                e,
                base=given["base"],
                warmup_epochs=given["warmup_epochs"],
                warmup_factor=given["warmup_factor"],
                milestones=given["milestones"],
                gamma=given["gamma"],
            )
            for e in range(len(case["expected"]["lr"]))
        ]
    np.testing.assert_allclose(rates, case["expected"]["lr"], rtol=1e-12)
