"""The stage that learns prompts, beside frozen towers, before the image encoder is trained."""

import abc
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ccafl_jax.methods.epochs import EpochRun, progress_bar
from ccafl_jax.training.extract import Extractor
from ccafl_jax.training.log import format_line
from ccafl_jax.training.loop import mean_metrics
from ccafl_jax.training.optimizers import prompt_cosine

log = logging.getLogger("ccafl_jax")


class PromptRun(EpochRun):
    """An `EpochRun` with a stage of prompts, which `config.prompts` describes.

    What a method has to give is abstract below, beside `progress.prompt_epochs`.

    Attributes, beside those of all methods:
      prompt_state: the learned prompts and their optimiser; a leaf of it tells the dtype of the
        learning rate.
    """

    prompt_state: Any

    def _start_prompts(self) -> None:
        """Makes ready for the first epoch."""

    @abc.abstractmethod
    def _prompt_context(self, g: jax.Array | np.ndarray) -> Any:
        """What the steps read, given features of the joint space, float[images, embed]."""

    @abc.abstractmethod
    def _make_prompt_step(self) -> Callable:
        """A step (state, context, *batch, learning rate) -> (state, metrics)."""

    @abc.abstractmethod
    def _prompt_batches(self, epoch: int, first: int) -> Iterator[tuple]:
        """The batches of an epoch, of which the first few are left out."""

    @abc.abstractmethod
    def _finish_prompts(self, context: Any) -> dict[str, float]:
        """Encodes the prompts as the text losses want them; returns figures for the summary."""

    @functools.cached_property
    def extract_g(self) -> Extractor:
        """Extracts features of the joint space."""
        return self._extractor("image_features", "joint features")

    def _train_prompts(self) -> None:
        """The epochs that are still to come, each with its log and a checkpoint."""
        epochs, progress = self.config.prompts.epochs, self.progress
        start = progress.prompt_epochs
        if start >= epochs:
            return
        clock = time.monotonic()
        if start == 0 and progress.part is None:
            self._start_prompts()
        context = self._prompt_context(self._extract(self.extract_g))
        step = self._make_prompt_step()
        bar = progress_bar(epochs, "prompts", unit="epoch", initial=start)
        for epoch in range(start, epochs):
            means = self._prompt_epoch(epoch, step, context)
            bar.set_postfix(loss=f"{means['loss']:.3f}")
            bar.update()
            self.log.write("prompts", epoch, means)
            progress.prompt_epochs = epoch + 1
            if epoch + 1 < epochs:  # the last one is saved with the texts
                self._save()
        bar.close()
        learned = {"loss": means["loss"], **self._finish_prompts(context)}
        seconds = {"seconds": time.monotonic() - clock}
        log.info("prompts: %s", format_line(learned | seconds))
        # The image encoder is untouched, so the figures are still those it came with.
        figures = {key: value for key, value in progress.zero_shot.items() if key != "g"}
        progress.stages.append({"name": "prompts", **learned, **figures, **seconds})
        self._save()

    def _prompt_epoch(self, epoch: int, step: Callable, context: Any) -> dict[str, float]:
        """One epoch, or what is left of it; returns its scalars."""
        found, _ = self.progress.take_part("prompts")
        rate = learning_rate(epoch, self.config.prompts)
        rate = np.asarray(rate, jnp.result_type(jax.tree.leaves(self.prompt_state.prompts)[0]))
        self.prompt_state, complete = self.loop.steps(
            lambda state, batch: step(state, context, *batch, rate),
            self.prompt_state,
            self._prompt_batches(epoch, len(found)),
            found,
            where=f"epoch {epoch + 1} of prompts",
        )
        if not complete:
            self._leave("prompts", found, {}, memory=False)
        return mean_metrics(found) | {"learning_rate": float(rate)}


def learning_rate(epoch: int, config: Any) -> float:
    """The rate of an epoch of prompts, counted from 0.

    Args:
      epoch: which.
      config: options of the stage.
    """
    return prompt_cosine(
        epoch + 1,
        base=config.base_lr,
        warmup_from=config.warmup_from,
        warmup_epochs=config.warmup_epochs,
        minimum=config.min_lr,
        epochs=config.epochs,
    )
