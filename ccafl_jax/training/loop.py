"""Steps of an epoch: dispatch, watch for numbers that are not finite, stop where asked to.

A method gives the jitted step and the batches; what it does at the borders of epochs is its own.
Python dispatches one step after the other and looks at the metrics of a step only when `LAG` later
ones are on their way, so that the device never waits for the host.
"""

import collections
import dataclasses
import logging
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

S = TypeVar("S")
B = TypeVar("B")

LAG = 8
"""Steps that may be on their way to the device before the metrics of the first are looked at."""

log = logging.getLogger("ccafl_jax")


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is NaN or infinite, and no more steps may be skipped."""


@dataclasses.dataclass
class Profile:
    """A trace of some training steps, counted from 0 over all stages since the process started.

    Attributes:
      start: first step that is traced.
      stop: first step that no longer is.
      folder: where `jax.profiler` writes.
    """

    start: int
    stop: int
    folder: pathlib.Path
    _running: bool = dataclasses.field(default=False, init=False)

    @classmethod
    def parse(cls, text: str, folder: pathlib.Path) -> "Profile":
        """From "START:STOP".

        Raises:
          ValueError: anything else.
        """
        start, colon, stop = text.partition(":")
        if not (colon and start.isdigit() and stop.isdigit() and int(start) < int(stop)):
            raise ValueError(f"--profile {text}: expected START:STOP, two steps such as 10:20")
        return cls(int(start), int(stop), folder)

    def before(self, step: int) -> None:
        """Starts or ends the trace where it is time."""
        if not self._running and self.start <= step < self.stop:
            jax.profiler.start_trace(str(self.folder))
            self._running = True
        elif self._running and step >= self.stop:
            self.close()

    def close(self) -> None:
        """Ends the trace if it runs."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            log.info("profile of steps %d to %d: %s", self.start, self.stop - 1, self.folder)


@dataclasses.dataclass
class Watchdog:
    """Stops a run whose numbers are no longer finite.

    Attributes:
      allowed: such steps that are passed over; the step itself must leave its state as it was
        there, see `keep_where`.
      last_good: words that name the last checkpoint.
      skipped: such steps so far.
    """

    allowed: int = 0
    last_good: Callable[[], str] = lambda: "there is no checkpoint yet"
    skipped: int = 0

    def look(self, metrics: Mapping[str, float], where: str) -> bool:
        """Whether the step may count.

        Args:
          metrics: of a step, all of which have to be finite.
          where: names the step in messages.

        Raises:
          NonFiniteError: one more than may be skipped.
        """
        if all(math.isfinite(value) for value in metrics.values()):
            return True
        terms = [name for name in metrics if name not in ("total", "grad_norm")]
        names = [name for name in terms if not math.isfinite(metrics[name])] or [
            name for name in metrics if not math.isfinite(metrics[name])
        ]
        found = ", ".join(f"{name} is {metrics[name]}" for name in names)
        self.skipped += 1
        if self.skipped > self.allowed:
            raise NonFiniteError(
                f"{where}: {found}; {self.last_good()}. Lower the learning rate or look at the "
                "data, and resume"
                + (f" ({self.allowed} such steps were skipped before)" if self.allowed else "")
                + "; skip_nonfinite=N passes over N such steps"
            )
        log.warning("%s: %s; step skipped (%d of %d)", where, found, self.skipped, self.allowed)
        return False


@dataclasses.dataclass
class Loop:
    """What the epochs of a run share.

    Attributes:
      stop: called with the number of the dispatch before each; True ends the epoch there.
      watchdog: looks at the metrics.
      profile: traces some steps.
      dispatched: dispatches so far, batches of features included; the clock of `stop`.
      trained: training steps so far, of all stages; the clock of `profile`.
    """

    stop: Callable[[int], bool] = lambda dispatch: False
    watchdog: Watchdog = dataclasses.field(default_factory=Watchdog)
    profile: Profile | None = None
    dispatched: int = 0
    trained: int = 0

    def should_stop(self) -> bool:
        """Counts a dispatch, and tells whether it is to be left out."""
        self.dispatched += 1
        return self.stop(self.dispatched)

    def steps(
        self,
        step: Callable[[S, B], tuple[S, Mapping[str, jax.Array]]],
        state: S,
        batches: Iterable[B],
        found: list[dict[str, float]],
        *,
        where: str,
        each: Callable[[], Any] = lambda: None,
    ) -> tuple[S, bool]:
        """Steps through batches.

        Args:
          step: (state, batch) -> (state, metrics); may consume the state.
          state: at the start.
          batches: of the steps that are still to be done.
          found: metrics of the steps of this epoch so far, which is extended.
          where: names the epoch in messages.
          each: called at each step, for a progress bar.

        Returns:
          The state, and whether all batches were used; if not, `stop` said so.

        Raises:
          NonFiniteError: see `Watchdog`.
        """
        waiting: collections.deque = collections.deque()

        def look() -> None:
            values = {key: float(x) for key, x in jax.device_get(waiting.popleft()).items()}
            self.watchdog.look(values, f"{where}, step {len(found) + 1}")
            found.append(values)

        complete = True
        for batch in batches:
            if self.should_stop():
                complete = False
                break
            if self.profile:
                self.profile.before(self.trained)
            self.trained += 1
            state, metrics = step(state, batch)
            waiting.append(metrics)
            if len(waiting) > LAG:
                look()
            each()
        while waiting:
            look()
        return state, complete


def is_finite(metrics: Mapping[str, jax.Array]) -> jax.Array:
    """Whether all metrics of a step are finite, bool[]; used inside the step."""
    return jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))


def keep_where(finite: jax.Array, new: S, old: S) -> S:
    """`new` where the step's numbers are finite, else `old`; used inside the step.

    Args:
      finite: from `is_finite`.
      new: state after the step.
      old: state before it, of the same structure.
    """
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


def mean_metrics(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Means over the steps of an epoch; those that were skipped are left out."""
    kept = [step for step in found if all(math.isfinite(value) for value in step.values())]
    if not kept:
        raise NonFiniteError("no step of the epoch has finite losses: lower the learning rate")
    return {key: math.fsum(step[key] for step in kept) / len(kept) for key in kept[0]}
