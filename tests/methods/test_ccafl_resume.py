"""A run that is asked to stop at any dispatch ends, once resumed, as one that never was."""

import dataclasses

import jax
import numpy as np
import pytest

from ccafl_jax.training.checkpoints import Checkpoints
from ccafl_jax.training.loop import Loop, NonFiniteError
from ccafl_jax.training.preemption import Preempted
from scripts.stress_kills import figures_of, log_of
from tests.methods.small_run import SMALL, small_run


def assert_same_run(run, workdir, other, other_workdir):
    leaves = jax.tree_util.tree_flatten_with_path((run.state, run.prompt_state))[0]
    others = jax.tree_util.tree_leaves((other.state, other.prompt_state))
    for (path, leaf), value in zip(leaves, others, strict=True):
        np.testing.assert_array_equal(leaf, value, err_msg=jax.tree_util.keystr(path))
    assert log_of(workdir) == log_of(other_workdir)
    assert figures_of(workdir) == figures_of(other_workdir)


class Counter:
    """Stops before one dispatch, and knows how many there were."""

    def __init__(self, at=None):
        self.at, self.count = at, 0

    def __call__(self, dispatch):
        self.count = dispatch
        return dispatch == self.at


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    run, counter = small_run(workdir), Counter()
    run.train(loop=Loop(stop=counter))
    return run, workdir, counter.count


def stopped_and_resumed(workdir, at):
    with pytest.raises(Preempted):
        small_run(workdir).train(loop=Loop(stop=Counter(at)))
    run = small_run(workdir)
    run.train(resume=True)
    return run


@pytest.mark.ci
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.83])
def test_stopped_anywhere_it_ends_the_same(whole, tmp_path, share):
    run = stopped_and_resumed(tmp_path, round(share * whole[2]))
    assert_same_run(run, tmp_path, *whole[:2])
    assert Checkpoints(tmp_path / "preempted").latest() is None  # it was of the past


@pytest.mark.slow
def test_stopped_before_each_dispatch_it_ends_the_same(whole, tmp_path):
    for at in range(1, whole[2] + 1):
        run = stopped_and_resumed(tmp_path / str(at), at)
        assert_same_run(run, tmp_path / str(at), *whole[:2])


@pytest.mark.ci
def test_stopped_again_and_again_it_ends_the_same(whole, tmp_path):
    last = 0
    for _ in range(6):
        counter = Counter(6)
        with pytest.raises(Preempted):
            small_run(tmp_path).train(resume=True, loop=Loop(stop=counter))
        assert counter.count == 6
        last += 5
    run = small_run(tmp_path)
    run.train(resume=True)
    assert_same_run(run, tmp_path, *whole[:2])


@pytest.mark.ci
def test_a_damaged_save_inside_an_epoch_falls_back_to_the_border(whole, tmp_path):
    with pytest.raises(Preempted):
        small_run(tmp_path).train(loop=Loop(stop=Counter(whole[2] - 2)))
    files = [p for p in (tmp_path / "preempted").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 1
    largest.write_bytes(raw)
    run = small_run(tmp_path)
    run.train(resume=True)
    assert_same_run(run, tmp_path, *whole[:2])


@pytest.mark.ci
def test_only_a_save_inside_an_epoch_carries_the_memory(whole, tmp_path):
    at = whole[2] - 2  # the last step: two batches of the test set follow
    with pytest.raises(Preempted):
        small_run(tmp_path).train(loop=Loop(stop=Counter(at)))
    assert "memory" in Checkpoints(tmp_path / "preempted").restore()
    assert "memory" not in Checkpoints(tmp_path / "checkpoints").restore()


@pytest.mark.ci
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_checkpoint(whole, tmp_path):
    run = small_run(tmp_path)
    make = run._make_step

    def broken(phase):
        if not phase.ical:
            return make(phase)
        step = make(phase)

        def fails(state, *rest):
            state, metrics = step(state, *rest)
            return state, metrics | {"ical": metrics["ical"] * np.nan, "total": np.float32(np.nan)}

        return fails

    run._make_step = broken
    with pytest.raises(
        NonFiniteError, match=r"epoch 4, inter\+text\+ical, step 1: ical is nan; the"
    ):
        run.train()
    assert Checkpoints(tmp_path / "checkpoints").latest() == 5


@pytest.mark.ci
def test_steps_with_numbers_that_are_not_finite_can_be_skipped(tmp_path):
    """A batch against a bank with NaN is as if it had never been, but for the count of steps."""
    text = dataclasses.replace(SMALL.text, intra=False, inter=False)
    run = small_run(tmp_path, stages=("intra", "inter"), skip_nonfinite=1, text=text)
    make, seen = run._make_step, []

    def poisoned(phase):
        step = make(phase)

        def once(state, *rest):
            if phase.stage == "intra" or seen:
                return step(state, *rest)
            before = jax.device_get(state)
            bad = jax.tree.map(lambda x: x * np.nan, before.memory)
            after, metrics = step(state.replace(memory=jax.device_put(bad)), *rest)
            seen.extend([before, jax.device_get(after)])
            return after.replace(memory=jax.device_put(before.memory)), metrics

        return once

    run._make_step = poisoned
    summary = run.train()
    before, after = seen
    assert after.step == before.step + 1
    same = dataclasses.replace(after, step=before.step, memory=before.memory)
    jax.tree.map(np.testing.assert_array_equal, same, before)
    assert run.progress.skipped == 1 and np.isfinite(summary["final"]["mAP"])


@pytest.mark.ci
def test_the_best_checkpoint_is_kept_where_the_user_names_the_set(tmp_path, caplog):
    evaluation = dataclasses.replace(SMALL.evaluation, every=1)
    options = {"evaluation": evaluation, "keep_best": "test", "keep_checkpoints": 1}
    run = small_run(tmp_path, **options)
    with caplog.at_level("INFO", logger="ccafl_jax"):
        run.train()
    scores = [line["mAP"] for line in log_of(tmp_path) if line["stage"] == "encoder"]
    best = 3 + scores.index(max(scores))  # two epochs of prompts come first
    assert run.saves.borders.best() == best and run.saves.borders.latest() == 6
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {best, 6}
    assert "mAP of the test set" in caplog.text
