"""Runs that share their beginnings.

A node is a run that starts from the state in which another one ended, so that two nodes with one
parent differ in nothing but what they are told to differ in: random draws are functions of seed and
epoch. Every node has a folder and survives being killed; what is done is not done again.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import operator
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict
from proving.jobs import RESULTS
from proving.measures import measures

from ccafl_jax.files import write_json
from ccafl_jax.methods.registry import method_of
from ccafl_jax.methods.run import EncoderRun
from ccafl_jax.training.compilation import keep_compiled
from data_prep.synthetic import SyntheticConfig, write_folder, write_layout
from data_prep.synthetic.layouts.mars import MarsConfig

RESULT = "result.json"
"""Written last: a node that has it is done."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A run from the end of another one.

    Attributes:
      name: of its folder.
      parent: name of the node it goes on from; empty for one that starts from CLIP.
      options: by dotted name, what differs from the recipe; nothing is inherited.
      kind: what to make of the recipe, in place of the method's own run.
      until: epochs of the stages after the first one (CCAFL's prompts, CALR's cameras) after which
        it ends, 0: after the first; None for all.
    """

    name: str
    parent: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: type[EncoderRun] | None = None
    until: int | None = None

    def config(self, recipe: ConfigDict) -> Any:
        """The recipe with the options of the node."""
        method = method_of(recipe)
        raw, changes = recipe.to_dict(), dict(self.options)
        if self.until == 0:
            changes["stages"] = method.stages[:1]
        elif self.until is not None:
            changes["schedule.epochs"] = self.until
        for path, value in changes.items():
            *groups, name = path.split(".")
            functools.reduce(operator.getitem, groups, raw)[name] = value
        return method.config(raw)


def run_job(
    nodes: Sequence[Node],
    folder: pathlib.Path,
    recipe: ConfigDict,
    people: SyntheticConfig | MarsConfig,
    measure: Callable[[EncoderRun], dict[str, Any]],
) -> None:
    """Draws people, runs all nodes on them and writes their figures: a job of `jobs.run_jobs`.

    Args:
      nodes: see `run_tree`.
      folder: of the job.
      recipe: see `run_tree`.
      people: single images, or walks.
      measure: see `run_tree`.
    """
    logging.basicConfig(level=logging.ERROR)
    keep_compiled()
    root = folder / "data"
    if isinstance(people, MarsConfig):
        write_layout(root, "mars", people)
    else:
        write_folder(root, people)
    results = run_tree(nodes, folder, recipe, root=str(root), measure=measure)
    write_json(folder / RESULTS, results)


def run_seed(
    job: str,
    workdir: pathlib.Path,
    recipe: ConfigDict,
    nodes: Sequence[Node],
    *,
    measure: Callable[[EncoderRun], dict[str, Any]] | None = None,
    **people: Any,
) -> None:
    """`run_job` of a job that is a seed: of its people, and of the recipe.

    Args:
      job: "seed" and its number.
      workdir: folder of the study.
      recipe: options, whose seed is set.
      nodes: see `run_tree`.
      measure: see `run_tree`; `measure_test` when None.
      people: of `SyntheticConfig`, beside seed and number of training identities.
    """
    recipe.seed = int(job.removeprefix("seed"))
    settings = SyntheticConfig(seed=recipe.seed, train_ids=recipe.data.synthetic_ids, **people)
    run_job(nodes, workdir / job, recipe, settings, measure or measure_test)


def measure_test(run: EncoderRun) -> dict[str, Any]:
    """`measures` of the test features that a run has now."""
    return measures(run._extract(run.extract_f, "test"), run.dataset)


def run_tree(
    nodes: Sequence[Node],
    folder: pathlib.Path,
    recipe: ConfigDict,
    *,
    root: str,
    measure: Callable[[EncoderRun], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Runs what is not done yet, parents first.

    Args:
      nodes: in an order in which parents come before their children.
      folder: of the folders of the nodes; `log.txt` there takes what the runs print.
      recipe: shared by all.
      root: folder of the data set.
      measure: figures of a run at its end.

    Returns:
      By node: what `measure` gave, `association` of the last epoch, and `seconds`.
    """
    results = {}
    for node in nodes:
        done = folder / node.name / RESULT
        if not done.exists():
            begin = time.monotonic()
            with printed_to(folder / "log.txt"):
                result = _run(node, folder, recipe, root, measure)
            write_json(done, result | {"seconds": time.monotonic() - begin})
            jax.clear_caches()  # programs of a run are never used again
        results[node.name] = json.loads(done.read_text())
        shown = {key: results[node.name].get(key) for key in ("mAP", "seconds")}
        print(f"{folder.name} {node.name}: {shown}", flush=True)
    return results


def _run(node, folder, recipe, root, measure) -> dict[str, Any]:
    workdir = folder / node.name
    if node.parent and not (workdir / "checkpoints").exists():
        copy_state(folder / node.parent, workdir)
    kind = {} if node.kind is None else {"kind": node.kind}
    run = method_of(recipe).prepare_run(node.config(recipe), workdir=workdir, root=root, **kind)
    run.train(resume=True, allow_changes=True)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = {
        key.removeprefix("association_"): value
        for key, value in lines[-1].items()
        if key.startswith("association_")
    }
    return {**measure(run), "association": last}


def copy_state(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies checkpoints and log of a finished run, all or nothing."""
    partial = target.with_name(f".{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copytree(source / "checkpoints", partial / "checkpoints")
    shutil.copy(source / "metrics.jsonl", partial)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)


@contextlib.contextmanager
def printed_to(path: pathlib.Path) -> Iterator[None]:
    """Sends what the body prints to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield
