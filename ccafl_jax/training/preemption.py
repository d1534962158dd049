"""Being asked to stop: a run finishes its step, saves and ends.

One process listens to SIGTERM and SIGINT itself. Several are told by JAX's preemption service,
which listens to SIGTERM and makes all of them stop at the same step; as the service and a handler
of Python exclude each other, there is none then.
"""

import os
import signal
from types import FrameType

from jax.experimental import multihost_utils

from ccafl_jax.training import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(Exception):
    """A run was asked to stop, and has saved what it had done."""


class Preemption:
    """Knows whether the run was asked to stop; a context manager around its work.

        with Preemption() as preemption:
            for step in steps:
                if preemption.requested(step):
                    save(); break

    A second signal ends the process at once, with 128 and the signal's number as its status.
    """

    def __init__(self):
        self._asked = False
        self._before: dict = {}

    def __enter__(self) -> "Preemption":
        if not processes.are_several():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def requested(self, step: int) -> bool:
        """Whether to stop before this step.

        Args:
          step: counts up, by the same steps on every process; all must ask before each.
        """
        if processes.are_several():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _ask(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._asked:
            _say(f"{name} again: ended without saving")
            os._exit(128 + number)
        self._asked = True
        _say(f"{name}: stopping after this step; a second one ends at once")


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())  # a handler may have come in the middle of a print
