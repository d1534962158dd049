"""Scalars of a run: JSON lines, TensorBoard events and one printed line per epoch."""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from ccafl_jax.files import replacing


class RunLog:
    """Appends scalars to `metrics.jsonl` and TensorBoard files in a run folder.

    Args:
      workdir: the run folder; created when absent.
      dataset: name of the data set, which stands in every line.
      resume_at: epoch from which the run continues. Lines of that epoch or a later one, left by
        a run that was stopped before its checkpoint was written, are removed first.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        dataset: str = "",
        resume_at: Mapping[str, int] | None = None,
    ):
        from tensorboardX import SummaryWriter

        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / "metrics.jsonl"
        self._dataset = dataset
        if resume_at is None:
            self._path.write_text("")
        else:
            self._drop_from(resume_at)
        self._events = SummaryWriter(logdir=str(workdir / "tensorboard"), flush_secs=5)
        self._start = time.monotonic()

    def write(self, stage: str, epoch: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of one epoch of a stage."""
        values = {key: float(value) for key, value in scalars.items()}
        place = {"stage": stage, "epoch": epoch, "time": round(self.seconds, 3)}
        record = {"dataset": self._dataset, **place, **values}
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for key, value in values.items():
            self._events.add_scalar(f"{stage}/{key}", value, epoch)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since this log was opened."""
        return time.monotonic() - self._start

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._events.close()

    def _drop_from(self, resume_at: Mapping[str, int]) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a killed process
            if record["epoch"] < resume_at.get(record["stage"], 0):
                kept.append(line + "\n")
        with replacing(self._path) as partial:
            partial.write_text("".join(kept))


def mean_metrics(found: Sequence[Mapping[str, jax.Array]]) -> dict[str, float]:
    """Means over the steps of an epoch; waits for the device."""
    values = jax.device_get(list(found))
    return {key: float(np.mean([v[key] for v in values])) for key in values[0]}


def format_line(scalars: Mapping[str, float]) -> str:
    """`key value` pairs on one line; shares and rates keep three digits that matter."""
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in scalars.items()
    )
