"""Independent jobs of a study, several at a time, each in a process with cores of its own."""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from command import Parser, one_line_errors, read_config, user_path

from ccafl_jax.command_line import DEBUG
from ccafl_jax.files import write_json

RESULTS = "results.json"
"""What a job leaves in its folder when all of it is done."""


def add_flags(
    parser: argparse.ArgumentParser,
    *,
    seeds: Sequence[int],
    config: str = "configs/ccafl_demo.py:ablation",
) -> None:
    """Adds the options that studies share."""
    add = parser.add_argument
    add("--workdir", type=user_path, required=True, help="folder of all runs")
    add("--config", default=config, help="the recipe")
    add("--seeds", type=int, nargs="+", default=list(seeds), help="of people and cameras")
    add("--processes", type=int, default=0, help="jobs at a time (0: one a core)")
    add("--json", type=user_path, help="where to write the figures; jobs in it are not run again")
    add("--alone", help=argparse.SUPPRESS)


def seed_study(
    script: str,
    description: str,
    examples: str,
    *,
    seeds: Sequence[int],
    config: str = "configs/ccafl_demo.py:ablation",
    one_seed: Callable[[str, pathlib.Path, Any], None],
    summarize: Callable[[dict[str, Any]], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """The command of a study whose jobs are seeds: runs them all, or the one it is told to.

    Args:
      script: path of the study.
      description: of `--help`.
      examples: likewise.
      seeds: of people and cameras, unless told otherwise.
      config: the recipe, unless told otherwise.
      one_seed: (job, folder of the study, recipe) -> None; runs a job, whose name is "seed" and its
        number.
      summarize: see `run_study`.
      table: of the summary, in Markdown.
    """
    parser = Parser(description=description, epilog=examples)
    add_flags(parser, seeds=seeds, config=config)
    options, overrides = parser.parse_known_args()
    with one_line_errors():
        if options.alone is not None:
            one_seed(options.alone, options.workdir, read_config(options.config, overrides))
            return
        jobs = [f"seed{seed}" for seed in options.seeds]
        print(table(run_study(script, jobs, options, overrides, summarize)))


def run_study(
    script: str,
    jobs: Sequence[str],
    options: argparse.Namespace,
    overrides: Sequence[str],
    summarize: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """Runs all jobs, and writes their figures and what `summarize` makes of them to `--json`.

    Jobs whose figures that file already holds, from the same command, are not run again.

    Returns:
      The summary.
    """
    words = ["--config", options.config, *overrides]
    command = ["python", f"scripts/{pathlib.Path(script).name}", *words]
    results = known_results(options.json, command)
    missing = [job for job in jobs if job not in results]
    results |= run_jobs(script, missing, options.workdir, words, processes=options.processes)
    summary = summarize({job: results[job] for job in jobs})
    if options.json:
        about = {"command": command, "jobs": list(jobs)}
        write_json(options.json, {**about, **summary, "results": results})
    return summary


def known_results(path: pathlib.Path | None, command: Sequence[str]) -> dict[str, Any]:
    """Figures by job that a file holds of the same command; none where there is no such file."""
    if path is None or not path.is_file():
        return {}
    found = json.loads(path.read_text())
    return found["results"] if found["command"] == list(command) else {}


def run_jobs(
    script: str,
    jobs: Sequence[str],
    workdir: pathlib.Path,
    words: Sequence[str],
    *,
    processes: int = 0,
) -> dict[str, Any]:
    """Runs `script --alone JOB` for every job.

    Args:
      script: path of the study.
      jobs: names; the folder of a job is WORKDIR/JOB.
      workdir: folder of the study.
      words: further arguments, the same for all.
      processes: jobs at a time; 0 means one a core.

    Returns:
      By job: what it wrote to `RESULTS`.

    Raises:
      ValueError: some failed; the others were finished.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    count = min(processes or len(cores), len(jobs))
    free = [cores[index::count] or cores for index in range(count)]
    waiting, running, failed = list(jobs), {}, []
    while waiting or running:
        while waiting and free:
            job, mine = waiting.pop(0), free.pop()
            command = [sys.executable, script, "--workdir", str(workdir), "--alone", job, *words]
            command += [DEBUG] * (DEBUG in sys.argv)
            with contextlib.ExitStack() as pinned:
                if len(cores) > 1:
                    os.sched_setaffinity(0, mine)  # which the child inherits
                    pinned.callback(os.sched_setaffinity, 0, cores)
                process = subprocess.Popen(command)
            running[process.pid] = process, job, mine
        pid, status = os.wait()
        process, job, mine = running.pop(pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        free.append(mine)
        if process.returncode:
            failed.append(job)
    if failed:
        raise ValueError(
            f"{', '.join(failed)} failed: see what they printed, and log.txt in their folders in "
            f"{workdir}; the same command goes on with what is missing"
        )
    return {job: json.loads((workdir / job / RESULTS).read_text()) for job in jobs}
