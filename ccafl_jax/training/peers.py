"""What a process of a run does when another one is gone: one line, and exit status 75.

JAX on its own would hang in a collective, or abort with a C++ stack after minutes.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

GONE = 75
"""Exit status of a process that lost another one (EX_TEMPFAIL): start all of them again."""

ENDED = "ccafl_jax/ended/"
"""Keys of the coordinator's store under which processes say that they end, and why."""

GRACE = 5.0
"""Seconds a process has for an error of its own, after another one ended with one."""

_COLLECTIVE_ERRORS = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "socket closed",
    "broken pipe",
    "coordination service",
)


@dataclasses.dataclass
class Peers:
    """Watches the other processes from threads of its own.

    The coordinator's service tells who is alive from the heartbeats of JAX's clients. They are
    native threads: a process whose Python is busy for minutes is still alive.

    Attributes:
      client: of JAX's coordination service.
      index: of this process.
      count: of processes.
      heartbeat_seconds: after which a silent process counts as gone.
      shutdown_seconds: that processes which end wait for each other.
      relay: the program between this process and the coordinator, see `relay`; None for the
        first process, which is the coordinator.
      last_checkpoint: words that name it, for the message.
      resume: the command that goes on after it.
    """

    client: Any
    index: int
    count: int
    heartbeat_seconds: float
    shutdown_seconds: float
    relay: subprocess.Popen | None
    last_checkpoint: Callable[[], str] = lambda: "no checkpoint was written by this command yet"
    resume: str = "the same command and --resume"
    ended: dict[int, dict] = dataclasses.field(default_factory=dict, init=False)
    _alive: dict[int, int] | None = dataclasses.field(default=None, init=False)
    _said: bool = dataclasses.field(default=False, init=False)
    _ending: bool = dataclasses.field(default=False, init=False)
    _leaving: threading.Lock = dataclasses.field(default_factory=threading.Lock, init=False)
    _over: threading.Event = dataclasses.field(default_factory=threading.Event, init=False)
    _asking: list[threading.Thread] = dataclasses.field(default_factory=list, init=False)

    def start(self) -> None:
        """Begins to watch."""
        self._asking = [_thread_of(self._follow_alive), _thread_of(self._follow_ended)]
        for thread in (*self._asking, _thread_of(self._follow_relay)):
            thread.start()

    def say_done(self) -> None:
        """Tells the others that this process did all its work, and will end."""
        self._say({"reason": "", "done": True})

    def say_failed(self, reason: str) -> None:
        """Tells the others the error this process ends with."""
        self._ending = True
        self._say({"reason": reason, "done": False})
        if self.index == 0:
            time.sleep(GRACE / 2)  # the store ends with this process: let them read it

    def finish(self) -> None:
        """Ends; the first process waits for the others, as its end would be their loss.

        No thread may be inside JAX's client when the interpreter ends: Python 3.11 unwinds such
        threads, and C++ answers that with an abort.
        """
        failed, self._ending = self._ending, True
        self._say({"reason": "", "done": False})
        limit = time.monotonic() + self.shutdown_seconds
        while self.index == 0 and not failed and (self._alive is None or len(self._alive) > 1):
            if time.monotonic() > limit:
                break
            time.sleep(0.1)
        self._over.set()
        limit = time.monotonic() + GRACE
        for thread in self._asking:
            thread.join(max(0.0, limit - time.monotonic()))

    def blame(self, error: BaseException) -> None:
        """Leaves if an error comes of the end of another process, else returns."""
        text = str(error).lower()
        if not isinstance(error, ValueError | jax.errors.JaxRuntimeError):
            return
        if any(sign in text for sign in _COLLECTIVE_ERRORS):
            # What was killed is missed after the seconds of the heartbeat, which ends this process.
            time.sleep(self.heartbeat_seconds + 2 * GRACE)

    def leave(self, process: int, reason: str) -> None:
        """Prints the line and ends this process at once, without waiting for anything."""
        with self._leaving:  # never released: others that come here wait for the end
            ended = self.ended.get(process)
            if ended:
                reason = ended["reason"] or "it ended before this one"
            line = (
                f"error: process {process} of {self.count} is gone: {reason}; "
                f"{_within(GRACE, self.last_checkpoint)}; start all processes again with: "
                f"{self.resume}"
            )
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                print(line, file=sys.stderr, flush=True)
            if self.index == 0:
                time.sleep(1)  # the others hear the same from the store that ends with this process
            os._exit(GONE)

    def _follow_alive(self) -> None:
        """Asks who is alive; the answer comes when all that are alive have asked."""
        everyone = list(range(self.count))
        while not self._over.wait(0.5):
            try:
                alive = self.client.get_live_nodes(everyone)
            except Exception:  # of many kinds; without a coordinator the relay has the word
                continue
            first, self._alive = self._alive or alive, alive
            gone = [p for p in everyone if p not in alive or alive[p] != first.get(p, alive[p])]
            if gone:
                self._read_ended()  # what they said last goes before their silence
            for process in gone:
                if not self._ending and process not in self.ended:
                    self.leave(process, f"no sign of life for {self.heartbeat_seconds:.0f} s")

    def _follow_ended(self) -> None:
        """Reads what processes say at their end."""
        since: dict[int, float] = {}
        while not self._over.wait(0.5):
            self._read_ended()
            for process, message in list(self.ended.items()):
                waited = time.monotonic() - since.setdefault(process, time.monotonic())
                grace = GRACE if message["reason"] else self.shutdown_seconds
                if not (message["done"] or self._ending) and waited > grace:
                    self.leave(process, message["reason"])

    def _read_ended(self) -> None:
        with contextlib.suppress(Exception):  # without a coordinator the relay has the word
            for key, value in self.client.key_value_dir_get(ENDED):
                self.ended[int(key.rsplit("/", 1)[1])] = json.loads(value)

    def _follow_relay(self) -> None:
        if self.relay and (reason := self.relay.stdout.readline().strip()) and not self._ending:
            self.leave(0, reason)

    def _say(self, message: dict) -> None:
        """Writes how this process ends; what was said first counts."""
        if not self._said:
            self._said = True
            with contextlib.suppress(Exception):  # nobody may be there to be told
                self.client.key_value_set(f"{ENDED}{self.index}", json.dumps(message))


def _thread_of(work: Callable[[], None]) -> threading.Thread:
    return threading.Thread(target=work, name=work.__name__, daemon=True)


_thread = threading.local()


def is_alone() -> bool:
    """Whether this thread must not wait for other processes, as some are gone."""
    return getattr(_thread, "alone", False)


def _within(seconds: float, words: Callable[[], str]) -> str:
    """The words, or a stand-in where they do not come."""
    found = ["see the folder of the run for the last checkpoint"]

    def ask() -> None:
        _thread.alone = True
        with contextlib.suppress(Exception):
            found.append(words())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[-1]
