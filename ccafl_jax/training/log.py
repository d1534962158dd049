"""Scalars of a run: JSON lines, TensorBoard events and one printed line per epoch."""

import json
import os
import time
from collections.abc import Mapping

from ccafl_jax.training.processes import is_first
from ccafl_jax.training.storage import is_local, open_path, write_text


class RunLog:
    """Appends scalars to `metrics.jsonl` and TensorBoard files in a run folder.

    `metrics.jsonl` is the record; the events are drawn from it anew when a run is resumed, so that
    no step stands in them twice. Only the first process of a run writes; on the others nothing
    happens.

    Args:
      workdir: the run folder, on a disk or in an object store; created when absent.
      dataset: name of the data set, which stands in every line.
      resume_at: by stage, the epoch from which the run continues. Lines of that epoch or a later
        one, left by a run that was stopped before its checkpoint was written, are removed first.
        Without it all lines are.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        dataset: str = "",
        resume_at: Mapping[str, int] | None = None,
    ):
        self._dataset = dataset
        self._start = time.monotonic()
        self._events = None
        if not is_first():
            return
        workdir = open_path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / "metrics.jsonl"
        kept = [] if resume_at is None else self._before(resume_at)
        write_text(self._path, "".join(line + "\n" for line in kept))
        self._draw_events(workdir / "tensorboard", kept)

    def write(self, stage: str, epoch: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of one epoch of a stage.

        Raises:
          OSError: the disk is full, or cannot be written to.
        """
        if self._events is None:
            return
        values = {key: float(value) for key, value in scalars.items()}
        place = {"stage": stage, "epoch": epoch, "time": round(self.seconds, 3)}
        record = {"dataset": self._dataset, **place, **values}
        try:
            self._append(json.dumps(record) + "\n")
        except OSError as error:
            raise OSError(
                f"cannot write to {self._path}: {error.strerror or error}; make room or mend the "
                "disk, then go on with --resume"
            ) from error
        self._add_event(record)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since this log was opened."""
        return time.monotonic() - self._start

    def close(self) -> None:
        """Flushes and closes the event file."""
        if self._events is not None:
            self._events.close()

    def _append(self, line: str) -> None:
        if not is_local(self._path):  # objects in a store are written whole
            self._path.write_text(self._path.read_text() + line)
            return
        with self._path.open("a") as file:
            file.write(line)

    def _before(self, resume_at: Mapping[str, int]) -> list[str]:
        """The lines of earlier epochs, as they were written."""
        kept = []
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a killed process
            if record["epoch"] < resume_at.get(record["stage"], 0):
                kept.append(line)
        return kept

    def _draw_events(self, folder, lines: list[str]) -> None:
        """TensorBoard's own purging goes by steps, which each stage counts from 0."""
        from tensorboardX import SummaryWriter

        for stale in folder.glob("events.out.tfevents.*"):
            stale.unlink()
        self._events = SummaryWriter(logdir=str(folder), flush_secs=5)
        for line in lines:
            self._add_event(json.loads(line))

    def _add_event(self, record: Mapping) -> None:
        for key, value in record.items():
            if key not in ("dataset", "stage", "epoch", "time"):
                self._events.add_scalar(f"{record['stage']}/{key}", value, record["epoch"])


def format_line(scalars: Mapping[str, float]) -> str:
    """`key value` pairs on one line; shares and rates keep three digits that matter."""
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in scalars.items()
    )
