"""A run that writes down where its time goes."""

import contextlib
import json
import resource
import time
from collections import Counter
from collections.abc import Iterator

from ccafl_jax.methods.ccafl.run import Run

FILE = "times.jsonl"


class TimedRun(Run):
    """Appends to `FILE` in the run folder, for every epoch, the seconds of its parts.

    An epoch that was begun again has two lines, of which the last counts. What is inside another
    part counts there only, so that parts add up to the time of the epoch.
    """

    def train(self, **options) -> dict:
        """See `Run.train`."""
        self._parts: Counter[str] = Counter()
        self._inside: list[str] = []
        self._since = time.monotonic()
        return super().train(**options)

    def _extract(self, *arguments, **options):
        with self._part("extraction"):
            return super()._extract(*arguments, **options).block_until_ready()

    def _associate(self, *arguments):
        with self._part("association"):
            return super()._associate(*arguments)

    def _begin(self, *arguments):
        with self._part("memory"):
            return super()._begin(*arguments)

    def evaluate(self) -> dict:
        """See `Run.evaluate`."""
        with self._part("evaluation"):
            return super().evaluate()

    def _save(self, *arguments):
        with self._part("checkpoint"):
            super()._save(*arguments)
        progress = self.progress
        stage = "encoder" if progress.encoder_epochs else "prompts"
        epoch = progress.encoder_epochs or progress.prompt_epochs
        now = time.monotonic()
        seconds = dict(self._parts)
        seconds["steps"] = now - self._since - sum(seconds.values())
        self._since, self._parts = now, Counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        line = {"stage": stage, "epoch": epoch, "seconds": seconds, "peak_bytes": peak}
        with (self.workdir / FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")

    @contextlib.contextmanager
    def _part(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        self._inside.append(name)
        try:
            yield
        finally:
            self._inside.pop()
            if not self._inside:
                self._parts[name] += time.monotonic() - start
