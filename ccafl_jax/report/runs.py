"""What finished runs left in their folders: figures, the log of their epochs, their options."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ccafl_jax.options import flatten
from ccafl_jax.scoring import feature_set
from ccafl_jax.training.checkpoints import Checkpoints
from ccafl_jax.training.storage import open_path

_SUMMARY = ("method", "dataset", "zero_shot", "stages", "final")  # that of every method has these


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run that wrote its summary.

    Attributes:
      path: of the folder, as it was named.
      summary: see `summary.json`.
      epochs: a record for each epoch of each log, in their order; see `RunLog`.
      description: of its newest checkpoint, see `describe_run`; empty where the folder holds none.
    """

    path: str
    summary: Mapping[str, Any]
    epochs: list[dict[str, Any]]
    description: Mapping[str, Any]

    @property
    def method(self) -> str:
        """That it was trained by."""
        return self.summary["method"]

    @property
    def options(self) -> dict[str, Any]:
        """What it was started with, by dotted name; empty where no checkpoint tells."""
        return flatten(self.description.get("config", {}))

    @property
    def code(self) -> Mapping[str, str]:
        """Hashes of the code that trained it, by file; empty where no checkpoint tells."""
        return self.description.get("code", {})

    def curve(self, *names: str) -> tuple[list[int], list[float]]:
        """A figure of the image encoder's epochs.

        Args:
          names: of the figure; the first that an epoch has is taken.

        Returns:
          The epochs that have it, counted from 1 over all logs that train the encoder, and values.
        """
        found = []
        for record in self.epochs:
            if record["stage"] == "encoder":
                values = [record[name] for name in names if name in record]
                found += [(record["epoch"] + 1, values[0])] if values else []
        return [epoch for epoch, _ in found], [value for _, value in found]


def read_finished_run(path: str | os.PathLike) -> FinishedRun:
    """Reads the folder of a run that is over.

    Raises:
      FileNotFoundError: no such folder, or a run that is not finished.
      ValueError: a damaged file, or the checkpoint of a model that was converted.
    """
    summary = read_summary(path)
    log = open_path(path) / "metrics.jsonl"
    with _mended_by_resuming(path):
        lines = log.read_text().splitlines() if log.exists() else []
        epochs = [json.loads(line) for line in lines]
    return FinishedRun(os.fspath(path), summary, epochs, meta_of(path))


def read_summary(path: str | os.PathLike) -> dict[str, Any]:
    """The figures that a run writes when it is over.

    Raises:
      FileNotFoundError: no such folder, or a run that is not finished.
      ValueError: it is damaged.
    """
    folder = open_path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; name the folder of a run (--workdir)")
    if not (folder / "summary.json").exists():
        there = (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists()
        raise FileNotFoundError(
            f"{path}: the run is not finished; go on with it (--resume), or leave it out"
            if there
            else f"{path}: no run (no summary.json); name the folder of a run (--workdir)"
        )
    with _mended_by_resuming(path):
        summary = json.loads((folder / "summary.json").read_text())
        if missing := [name for name in _SUMMARY if name not in summary]:
            raise ValueError(f"the summary has no {missing[0]}")
    return summary


def meta_of(path: str | os.PathLike) -> dict[str, Any]:
    """As `stored_description`; empty where checkpoints were removed.

    Where a run has several processes, all of them make this call.
    """
    try:
        return stored_description(path)
    except FileNotFoundError:
        return {}


def stored_description(path: str | os.PathLike) -> dict[str, Any]:
    """What the newest checkpoint of a run says of it, finished or not.

    Raises:
      FileNotFoundError: the folder holds no checkpoint.
      ValueError: of a model that was converted, which has no options, or a damaged one.
    """
    folder = open_path(path) / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: no checkpoints, which hold the options of a run")
    with Checkpoints(folder) as checkpoints:
        description = checkpoints.restore_meta()
    if not description["config"]:
        raise ValueError(f"{path}: a model that was converted, not trained: it has no options")
    return description


def stored_options(path: str | os.PathLike) -> dict[str, Any]:
    """The options that a run was started with, by dotted name, from its newest checkpoint.

    Raises:
      FileNotFoundError, ValueError: as `stored_description`.
    """
    return flatten(stored_description(path)["config"])


def kept_features(run: FinishedRun, dataset: str = "") -> feature_set.FeatureSet:
    """The features of a test set that a run keeps, those that were extracted last.

    Args:
      run: the run.
      dataset: name of the set; that of its training when empty.

    Raises:
      FileNotFoundError: it keeps none.
    """
    dataset = dataset or run.summary["dataset"]
    files = [path for path in _feature_files(run) if _dataset_of(path) == dataset]
    if not files:
        raise FileNotFoundError(
            f"{run.path} keeps no features of {dataset}: run python scripts/evaluate.py --workdir "
            f"{run.path} first (with --dataset and --root, if it was trained on another set)"
        )
    return feature_set.load(max(files, key=lambda path: path.stat().mtime))


def common_test_set(runs: Sequence[FinishedRun]) -> str:
    """Name of a data set that all runs keep features of, that of the first run's training if it is.

    Where there is none, it is that of the first run all the same.
    """
    own = runs[0].summary["dataset"]
    common = set.intersection(*({_dataset_of(path) for path in _feature_files(r)} for r in runs))
    return own if own in common or not common else min(common)


def _feature_files(run: FinishedRun) -> list:
    return list((open_path(run.path) / "features").glob("*-*.npz"))


def _dataset_of(path) -> str:
    return path.name.rpartition("-")[0]


@contextlib.contextmanager
def _mended_by_resuming(path: str | os.PathLike) -> Iterator[None]:
    """Says of files that cannot be read how they are written again."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: summary.json or metrics.jsonl is damaged ({error}); run scripts/train.py "
            "--resume there, which writes them again"
        ) from None
