import os
import signal
import time

import pytest
from process_jobs import started

from ccafl_jax.training.preemption import SIGNALS, Preemption


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request_until_the_work_is_left(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with Preemption() as preemption:
        assert not preemption.requested(1)
        os.kill(os.getpid(), number)
        assert preemption.requested(2) and preemption.requested(3)
        assert signal.getsignal(number) != before[SIGNALS.index(number)]
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_handlers_come_back_after_an_error():
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(RuntimeError), Preemption():
        raise RuntimeError
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.ci
@pytest.mark.parametrize(("number", "again"), [("TERM", "INT"), ("INT", "TERM")])
def test_one_process_stops_after_its_step_and_at_once_when_asked_again(tmp_path, number, again):
    number, again = signal.Signals[f"SIG{number}"], signal.Signals[f"SIG{again}"]
    with started(tmp_path, 1, "train", "--steps", 9999, "--pace", 0.02) as (one,):
        one.wait_until_ready()
        one.process.send_signal(number)
        assert one.wait() == 0
    assert one.lines[-1].keys() == {"stopped"}
    assert one.errors == [f"{number.name}: stopping after this step; a second one ends at once"]
    with started(tmp_path, 1, "train", "--steps", 9999, "--pace", 30) as (one,):
        one.wait_until_ready()
        one.process.send_signal(number)
        time.sleep(0.5)
        one.process.send_signal(again)
        assert one.wait(20) == 128 + again
    assert one.errors[-1] == f"{again.name} again: ended without saving"


@pytest.mark.ci
@pytest.mark.parametrize("asked", [[0], [1], [0, 1]])
def test_several_processes_stop_before_the_same_step(tmp_path, asked):
    with started(tmp_path, 2, "train", "--steps", 9999, "--pace", 0.02) as job:
        for each in job:
            each.wait_until_ready()
        for index in asked:
            job[index].process.send_signal(signal.SIGTERM)
        assert [each.wait(60) for each in job] == [0, 0], [each.errors for each in job]
    assert job[0].lines == job[1].lines and job[0].lines[-1].keys() == {"stopped"}
    assert not job[0].errors and not job[1].errors
