"""Reports at the end of a command, which a failing one must never lose."""

import logging
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ccafl_jax.data.records import Collection
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.run_folder import read_run
from ccafl_jax.report import page
from ccafl_jax.report.collect import collect_evaluation, collect_run, rank_test_set
from ccafl_jax.report.data import Findings, Report
from ccafl_jax.report.examine import examine, pairs_of_cameras
from ccafl_jax.report.runs import meta_of
from ccafl_jax.scoring.evaluate import Evaluation
from ccafl_jax.scoring.feature_set import FeatureSet
from ccafl_jax.training.agreement import from_first
from ccafl_jax.training.features import Extracted
from ccafl_jax.training.storage import open_path

NAME = "report.html"

log = logging.getLogger("ccafl_jax")


def after_training(workdir: str | os.PathLike, *, tested: Extracted | None = None) -> None:
    """Writes the report of a run that has just ended; a failure is a warning of one line.

    All processes of a run make this call, and the first one writes while the others wait.

    Args:
      workdir: of the run.
      tested: features of the test set that its last evaluation made, see `extract`; None for none.
    """
    again = f"python scripts/report.py --workdir {workdir}"

    # Reading checkpoints is agreed on by all processes; what follows is the first one's alone.
    meta, bundle, failure = {}, None, None
    try:
        meta = meta_of(workdir)
        bundle = read_run(workdir)
    except (ValueError, OSError) as error:
        failure = error

    def ranked() -> Findings:
        if failure:
            raise failure
        return rank_test_set(workdir, bundle=bundle, tested=tested)

    def collect() -> Report:
        return collect_run(workdir, meta=meta, ranked=ranked)

    path = open_path(workdir) / NAME
    from_first(lambda: _attempt(path, collect, again))


def after_evaluation(
    path: pathlib.Path,
    evaluation: Evaluation,
    sets: Sequence[FeatureSet],
    options: Mapping[str, Any],
    *,
    name: str,
    workdir: pathlib.Path | None = None,
    bundle: ModelBundle | None = None,
    collection: Collection | None = None,
) -> None:
    """Writes the report of an evaluation; a failure is a warning of one line.

    Args:
      path: of the page.
      evaluation: with `top` items of each query.
      sets: the features that were scored.
      options: that they were scored with.
      name: of the model or the files.
      workdir: of the run that was scored; None for an export or files.
      bundle: the model, if there is one.
      collection: the data set, if it is at hand.
    """

    def collect() -> Report:
        pairs = pairs_of_cameras(sets[0], options)
        findings = examine(evaluation, pairs=pairs, bundle=bundle, collection=collection)
        if workdir is not None and (workdir / "summary.json").exists():
            return collect_run(workdir, findings=findings)
        return collect_evaluation(evaluation, findings, name=name, bundle=bundle)

    _attempt(path, collect, "evaluate again, or with --no-report to do without")


def _attempt(path: pathlib.PurePath, collect: Callable[[], Report], cure: str) -> None:
    start = time.monotonic()
    try:
        size = page.write(path, collect())
    except Exception as error:  # whatever it is, what was computed before stays
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        log.warning("warning: no %s (%s); the figures are complete: %s", path.name, reason, cure)
        return
    seconds = time.monotonic() - start
    log.info("report: %s (%.1f MB, made in %.0f s)", path, size / 1e6, seconds)
