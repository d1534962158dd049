"""Epochs of an image encoder: their steps, what is logged and evaluated, and their checkpoints.

A method derives its run from `EpochRun` and says what an epoch begins with and what its steps are;
`EpochRun._train_epochs` is the loop.
"""

import abc
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ccafl_jax.methods import holdout
from ccafl_jax.methods.run import EncoderRun
from ccafl_jax.training import snapshots
from ccafl_jax.training.log import format_line
from ccafl_jax.training.loop import mean_metrics
from ccafl_jax.training.preemption import Preempted
from ccafl_jax.training.processes import is_first


class EpochStart(NamedTuple):
    """What an epoch begins with.

    Attributes:
      scalars: figures of its labels, for the log.
      context: tables that its steps read.
      plan: int[steps, batch], rows of the training set.
    """

    scalars: dict[str, float]
    context: Any
    plan: np.ndarray


class EpochRun(EncoderRun):
    """An `EncoderRun` that trains by epochs; what a method has to give is abstract below."""

    @abc.abstractmethod
    def _phase(self, epoch: int) -> Any:
        """The losses of an epoch, and the `name` of that set; each is compiled once."""

    @abc.abstractmethod
    def _make_step(self, phase: Any) -> Callable:
        """A step (state, context, *batch, learning rate) -> (state, metrics)."""

    @abc.abstractmethod
    def _start(self, epoch: int, phase: Any, *, fresh: bool) -> EpochStart:
        """Makes ready for the steps of an epoch; one that is not fresh was left in the middle."""

    @abc.abstractmethod
    def _learning_rate(self, epoch: int) -> float:
        """The rate of an epoch."""

    def _note(self, scalars: dict[str, float]) -> None:
        """Keeps what later epochs need of the figures of one that is over."""

    def _shown(self, scalars: dict[str, float]) -> dict[str, float]:
        """The figures of an epoch that its line shows; those that it has not are left out."""
        return {"loss": scalars["total"]}

    def _train_epochs(self, start: int, stop: int, *, ends: Mapping[int, str]) -> None:
        """Epochs of the encoder, each with its log, its evaluation where due, and a checkpoint.

        Args:
          start: first epoch.
          stop: first one that is not trained.
          ends: by number of epochs, the stage that is over then; its figures are those of the
            summary.
        """
        schedule, every = self.config.schedule, self.config.evaluation.every
        steps: dict[Any, Callable] = {}
        # Where the batches of an epoch say how many steps it has, the bar has no end.
        total = (stop - start) * schedule.iterations or None
        bar = progress_bar(total, "training", unit="step")
        clock = time.monotonic()
        for epoch in range(start, stop):
            phase, done = self._phase(epoch), epoch + 1
            if phase not in steps:
                steps[phase] = self._make_step(phase)
            due = done in ends or bool(every and done % every == 0)
            scalars, result = self._encoder_epoch(epoch, phase, steps[phase], bar, evaluate=due)
            self.progress.encoder_epochs = done
            if result:
                scalars |= headline(result)
                holdout.watch(self.progress.val_history, result)
                if done in ends:
                    measured = {"checkpoint": self.progress.number}
                    measured["seconds"] = time.monotonic() - clock
                    clock = time.monotonic()
                    self.progress.stages.append({"name": ends[done], **result, **measured})
                    snapshots.keep(self.workdir, ends[done], self.seen)
            self._note(scalars)
            self.log.write("encoder", epoch, scalars)
            if is_first():
                line = format_line(self._shown(scalars))
                tqdm.write(f"epoch {done}/{schedule.epochs} {phase.name}: {line}")
            self._save(result)
        bar.close()

    def _encoder_epoch(
        self, epoch: int, phase: Any, step: Callable, bar: tqdm, *, evaluate: bool = False
    ) -> tuple[dict, dict | None]:
        """`_epoch` of the encoder."""
        return self._epoch(
            "encoder",
            step,
            lambda fresh: self._start(epoch, phase, fresh=fresh),
            rate=self._learning_rate(epoch),
            where=f"epoch {epoch + 1}, {phase.name}",
            bar=bar,
            evaluate=evaluate,
        )

    def _epoch(
        self,
        stage: str,
        step: Callable,
        start: Callable[[bool], EpochStart],
        *,
        rate: float,
        where: str,
        bar: tqdm,
        evaluate: bool = False,
    ) -> tuple[dict, dict | None]:
        """One epoch, or what is left of it.

        Args:
          stage: name of its log.
          step: see `_make_step`.
          start: makes ready for the steps, told whether the epoch is fresh; see `_start`.
          rate: learning rate.
          where: names the epoch in messages.
          bar: of the steps.
          evaluate: rank the test set at its end.

        Returns:
          Its scalars, and the figures of the evaluation where one is asked for.
        """
        found, kept = self.progress.take_part(stage)
        scalars, context, plan = start(kept is None)
        if kept is not None:
            scalars = kept
            bar.update(len(found))
        rate = np.asarray(rate, jnp.result_type(*self.state.params.values()))
        with contextlib.closing(self.images.batches(plan[len(found) :])) as batches:
            self.state, complete = self.loop.steps(
                lambda state, batch: step(state, context, *batch, rate),
                self.state,
                batches,
                found,
                where=where,
                each=bar.update,
            )
        if not complete:
            self._leave(stage, found, scalars, memory=True)
        try:
            result = self.evaluate() if evaluate else None
        except Preempted:
            self._leave(stage, found, scalars, memory=True)
        return mean_metrics(found) | scalars | {"learning_rate": float(rate)}, result


def progress_bar(total: int | None, description: str, *, unit: str, initial: int = 0) -> tqdm:
    """A bar where somebody watches; elsewhere the lines of the epochs remain."""
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        leave=False,
        disable=None if is_first() else True,
    )


def headline(metrics: dict) -> dict:
    """The figures of an evaluation that logs show."""
    shown = {key: metrics[key] for key in ("mAP", "rank1", "same_camera_share")}
    return shown | ({"val_mAP": metrics["val"]["mAP"]} if "val" in metrics else {})
