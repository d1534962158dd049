"""Steps of an epoch: order, metrics, stopping, numbers that are not finite, profiles."""

import jax
import jax.numpy as jnp
import pytest

from ccafl_jax.training.loop import (
    LAG,
    Loop,
    NonFiniteError,
    Profile,
    Watchdog,
    is_finite,
    keep_where,
    mean_metrics,
)


@jax.jit
def step(state, batch):
    loss = state + batch
    return loss, {"total": loss, "part": 2 * loss, "grad_norm": jnp.ones(())}


def test_steps_go_in_order_and_all_metrics_are_kept():
    seen, found = [], []
    loop = Loop()
    state, complete = loop.steps(
        step, jnp.zeros(()), range(1, 21), found, where="x", each=lambda: seen.append(1)
    )
    assert complete and float(state) == 210 and len(seen) == loop.dispatched == 20
    assert [m["total"] for m in found] == [sum(range(1, n + 1)) for n in range(1, 21)]


@pytest.mark.parametrize("when", [1, 5, LAG + 3])
def test_a_stop_is_obeyed_before_the_next_step(when):
    found = [{"total": 0.0}]  # of a part that was done before
    loop = Loop(stop=lambda dispatch: dispatch == when)
    state, complete = loop.steps(step, jnp.zeros(()), [1] * 30, found, where="x")
    assert not complete and float(state) == when - 1 and len(found) == when


def test_a_number_that_is_not_finite_ends_the_run_with_step_term_and_checkpoint():
    def bad(state, batch):
        values = {"total": batch, "inter": 1.0, "ical": batch, "grad_norm": batch}
        return state, {key: jnp.asarray(value) for key, value in values.items()}

    loop = Loop(watchdog=Watchdog(last_good=lambda: "the last checkpoint is 7 in W"))
    batches = [1.0] * 4 + [float("nan")] + [1.0] * 20
    with pytest.raises(NonFiniteError) as caught:
        loop.steps(bad, None, batches, [], where="epoch 3, inter+ical")
    message = str(caught.value)
    assert message.startswith("epoch 3, inter+ical, step 5: ical is nan; the last checkpoint is 7")
    assert "\n" not in message and "skip_nonfinite" in message
    assert loop.dispatched <= 5 + LAG + 1


def test_a_gradient_alone_can_be_at_fault():
    metrics = {"total": 1.0, "grad_norm": float("inf")}
    with pytest.raises(NonFiniteError, match="grad_norm is inf"):
        Watchdog().look(metrics, "step 1")


def test_skipped_steps_are_counted_over_the_run_and_left_out_of_the_means():
    watchdog = Watchdog(allowed=2, skipped=1)
    good, bad = {"total": 3.0}, {"total": float("nan")}
    assert watchdog.look(good, "a") and not watchdog.look(bad, "b")
    with pytest.raises(NonFiniteError, match="2 such steps were skipped before"):
        watchdog.look(bad, "c")
    assert mean_metrics([good, bad, {"total": 4.0}]) == {"total": 3.5}
    with pytest.raises(NonFiniteError, match="no step of the epoch"):
        mean_metrics([bad])


def test_where_numbers_are_not_finite_a_step_takes_the_old_state_whole():
    old, new = {"a": jnp.zeros(2), "b": jnp.zeros(())}, {"a": jnp.ones(2), "b": jnp.ones(())}
    good = {"total": jnp.ones(()), "grad_norm": jnp.ones(())}
    assert float(keep_where(is_finite(good), new, old)["a"].sum()) == 2
    bad = is_finite(good | {"grad_norm": jnp.asarray(jnp.inf)})
    assert all(float(leaf.sum()) == 0 for leaf in keep_where(bad, new, old).values())


def test_a_profile_holds_the_steps_that_were_asked_for(tmp_path):
    profile = Profile.parse("3:5", tmp_path / "profile")
    loop = Loop(profile=profile)
    loop.steps(step, jnp.zeros(()), range(8), [], where="x")
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["5", "5:5", "a:b", "6:5", ":", "-1:4"])
def test_a_profile_needs_two_steps(text, tmp_path):
    with pytest.raises(ValueError, match="expected START:STOP"):
        Profile.parse(text, tmp_path)
