"""From a run folder, or from an evaluation, to the plain data of a report."""

import dataclasses
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.deploy.evaluate import open_test_set, score
from ccafl_jax.deploy.features import as_trained, extract, features_folder
from ccafl_jax.deploy.run_folder import read_run
from ccafl_jax.methods.registry import METHODS, method_of
from ccafl_jax.report import embedding
from ccafl_jax.report.data import FIGURES, Curves, Findings, Option, Probe, Report, Stage
from ccafl_jax.report.examine import LENGTH, LISTS, examine, pairs_of_cameras
from ccafl_jax.report.runs import meta_of, read_summary
from ccafl_jax.scoring.evaluate import Evaluation
from ccafl_jax.training import snapshots
from ccafl_jax.training.features import Extracted
from ccafl_jax.training.storage import open_path
from ccafl_jax.training.summary import summary_rows

TITLES = {
    "ccafl": "CCAFL",
    "calr": "CALR",
    "tfclip": "TF-CLIP",
    "cclnet": "CCLNet",
}
_PLACE = ("dataset", "stage", "epoch", "time")
_PUBLISHED = re.compile(r"(mAP|mINP|rank-?\d+|R-?\d+)\s*[:=]?\s*(\d+(?:\.\d+)?)", re.IGNORECASE)

log = logging.getLogger("ccafl_jax")


def collect_run(
    workdir: str | os.PathLike,
    *,
    meta: Mapping[str, Any] | None = None,
    findings: Findings | None = None,
    ranked: Callable[[], Findings] | None = None,
    perplexity: float = embedding.PERPLEXITY,
) -> Report:
    """The report of a finished run.

    Args:
      workdir: its folder, on a disk or in an object store.
      meta: see `runs.meta_of`, for whom has read it already.
      findings: of an evaluation that was made already, which becomes the last row of the summary.
      ranked: makes what the test set of the run shows, see `rank_test_set`; a failing one is a
        note. None leaves out all that needs the model and the images.
      perplexity: of the t-SNE.

    Raises:
      FileNotFoundError: no finished run there.
    """
    folder = open_path(workdir)
    summary = read_summary(workdir)
    meta = meta_of(workdir) if meta is None else meta
    notes: list[str] = []
    rows = [*_rows(summary), *([] if findings is None else [evaluation_row(findings)])]
    if ranked is not None:
        findings = _attempt(notes, "rankings", ranked)
    kept = _attempt(notes, "snapshots", lambda: snapshots.load(folder, stages_of(folder))) or []
    if not kept:
        notes.append("no snapshots of stages: the run is older than these, or no camera is known")
    names = _camera_labels(meta)
    titles = {s.stage: _stage_title(s.stage, summary) for s in kept}
    drawn = _attempt(
        notes, "t-SNE", lambda: embedding.embed(kept, titles, names, perplexity=perplexity)
    )
    points = len(drawn[0].points) if drawn else 0
    published = published_row(meta, summary["dataset"])
    return Report(
        title=f"{TITLES.get(summary['method'], summary['method'])} on {summary['dataset']}",
        about=METHODS[summary["method"]][1] if summary["method"] in METHODS else "",
        summary=[*([published] if published else []), *rows],
        published=as_config(meta, "published"),
        curves=_attempt(notes, "curves", lambda: read_curves(folder / "metrics.jsonl")) or [],
        probes=[Probe(titles[s.stage], **s.probes) for s in kept if s.probes["linear"] >= 0],
        embeddings=drawn or [],
        perplexity=embedding.perplexity_of(points, perplexity) if points else 0.0,
        findings=findings,
        options=options_of(meta),
        facts=facts_of(meta, summary),
        notes=notes,
    )


def rank_test_set(
    workdir: str | os.PathLike,
    *,
    bundle: ModelBundle | None = None,
    root: str = "",
    lists: int = LISTS,
    tested: Extracted | None = None,
) -> Findings:
    """What the test set of a run shows.

    Args:
      workdir: its folder, where features are found and kept.
      bundle: its model, for whom has read it already.
      root: folder of the data set, where it has moved.
      lists: queries of each kind in the rank lists.
      tested: features that the run made of the test set, see `extract`.

    Raises:
      FileNotFoundError, ValueError: no model, or the data set is not there or does not fit it.
    """
    bundle = read_run(workdir) if bundle is None else bundle
    collection = open_test_set(bundle, root=root)
    features = extract(
        bundle,
        collection,
        compute_dtype=as_trained(bundle, "model", "compute_dtype") or "float32",
        clips=as_trained(bundle, "clips", "final"),
        cache=features_folder(workdir),
        at_hand=tested,
    )
    kept = features.meta.get("no_match")
    options = {"top": LENGTH} | ({"no_match": kept} if kept else {})
    return examine(
        score(features, **options),
        pairs=pairs_of_cameras(features, options),
        bundle=bundle,
        collection=collection,
        lists=lists,
    )


def collect_evaluation(
    evaluation: Evaluation, findings: Findings, *, name: str, bundle: ModelBundle | None = None
) -> Report:
    """The report of an evaluation of what is no run folder: an export, or files of features.

    Args:
      evaluation: the rankings.
      findings: of them.
      name: of the model or the files.
      bundle: the model, where there is one.
    """
    recipe = {} if bundle is None else bundle.recipe
    trained = evaluation.figures.get("trained_on")
    facts = [("scored", name)] + ([("trained on", _words(trained))] if trained else [])
    return Report(
        title=f"Evaluation on {findings.dataset or 'features'}",
        about=name,
        summary=[evaluation_row(findings)],
        findings=findings,
        options=options_of(recipe) if recipe.get("config") else [],
        facts=[*facts, *[("warning", text) for text in evaluation.figures["warnings"]]],
    )


def evaluation_row(findings: Findings) -> Stage:
    """The row of the summary of an evaluation."""
    shown = {key: findings.figures[key] for key, _ in FIGURES if key in findings.figures}
    note = f"mean over all rankings; lists: {findings.trial}" if findings.trial else ""
    return Stage("this evaluation", findings.dataset, shown, note=note, kind="evaluation")


def published_row(meta: Mapping[str, Any], dataset: str) -> Stage | None:
    """The figures of the paper that the recipe names; None where it names none.

    Figures that were measured on other data stay in the table, and are said not to be comparable.

    Args:
      meta: of a checkpoint.
      dataset: that the run was measured on.
    """
    text = as_config(meta, "published")
    if not text:
        return None
    of = as_config(meta, "published_on")
    comparable = of in ("", dataset)
    note = "" if comparable else "not comparable: other data"
    return Stage("published", of or dataset, read_published(text), note=note, kind="published")


def read_published(text: str) -> dict[str, float]:
    """Shares by name from words such as "mAP 90.1, rank-1 96.1"."""
    found = {}
    for name, value in _PUBLISHED.findall(text):
        number = re.search(r"\d+$", name)
        key = f"rank{number[0]}" if number else {"map": "mAP", "minp": "mINP"}[name.lower()]
        found[key] = round(float(value) / 100, 6)
    return found


def read_curves(path) -> list[Curves]:
    """The scalars of each log of a run, by epochs.

    Args:
      path: of `metrics.jsonl`.

    Raises:
      FileNotFoundError: there is none.
    """
    lines: dict[str, list[dict]] = {}
    for text in path.read_text().splitlines():
        line = json.loads(text)
        lines.setdefault(line["stage"], []).append(line)
    found = []
    for stage, records in lines.items():
        names = dict.fromkeys(k for line in records for k in line if k not in _PLACE)
        columns = {name: [line.get(name) for line in records] for name in names}
        found.append(Curves(stage, [line["epoch"] + 1 for line in records], columns))
    return found


def options_of(meta: Mapping[str, Any]) -> list[Option]:
    """The options of a recipe beside the defaults of its method, those that differ first.

    Args:
      meta: with `method` and `config`.
    """
    config = dict(_flat(meta.get("config", {})))
    defaults = {}
    if meta.get("method") in METHODS:
        options = method_of({"method": meta["method"]}).options()
        defaults = dict(_flat(json.loads(json.dumps(dataclasses.asdict(options)))))
    found = [
        Option(
            name,
            _words(value),
            _words(defaults.get(name, "")),
            name in defaults and defaults[name] != value,
        )
        for name, value in config.items()
    ]
    return sorted(found, key=lambda option: not option.differs)


def facts_of(meta: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions, devices and times of a run."""
    facts = [("time of the run", duration(summary["seconds"]))]
    for stage in summary["stages"]:
        if "seconds" in stage:
            facts.append((f"time of stage {stage['name']}", duration(stage["seconds"])))
    made = meta.get("hardware", {})
    if made:
        facts.append(("devices", f"{made['devices']} × {made['device']}"))
        facts.append(("processes", str(made["processes"])))
        facts.append(("Python", made["python"]))
    if "train_images" in summary:
        facts.append(("training images", str(summary["train_images"])))
    facts += [("ccafl_jax", str(meta.get("code", {}).get("version", "unknown")))]
    return facts + [(name, version) for name, version in meta.get("libraries", {}).items()]


def duration(seconds: float) -> str:
    """A time in words: 3.1 s, 4 min 5 s, 2 h 30 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def as_config(meta: Mapping[str, Any], name: str) -> str:
    """A text among the options of a recipe; empty where there is none."""
    return str(meta.get("config", {}).get(name) or "")


def stages_of(workdir: str | os.PathLike) -> list[str]:
    """Names of the snapshots that a finished run may have, in the order of its stages."""
    summary = read_summary(workdir)
    return [snapshots.ZERO_SHOT, *(stage["name"] for stage in summary["stages"])]


def stage_titles(workdir: str | os.PathLike, kept: Sequence[snapshots.Snapshot]) -> dict[str, str]:
    """What the stages of snapshots are called, by name."""
    summary = read_summary(workdir)
    return {found.stage: _stage_title(found.stage, summary) for found in kept}


def camera_labels(workdir: str | os.PathLike) -> dict[int, str]:
    """What the cameras of a run are called, by camid."""
    return _camera_labels(meta_of(workdir))


def _camera_labels(meta: Mapping[str, Any]) -> dict[int, str]:
    return {camid: f"c{code}" for camid, code in enumerate(meta.get("camera_codes", ()))}


def _rows(summary: Mapping[str, Any]) -> list[Stage]:
    """The rows of the table that a run prints."""
    stages = {id(stage): stage for stage in summary["stages"]}
    rows = []
    for title, metrics in summary_rows(summary):
        shown = {key: metrics[key] for key, _ in FIGURES if key in metrics}
        seconds = stages.get(id(metrics), {}).get("seconds")
        kind = "trained" if id(metrics) in stages else "start"
        rows.append(Stage(title, metrics.get("dataset", "-"), shown, seconds, kind=kind))
    return rows


def _stage_title(stage: str, summary: Mapping[str, Any]) -> str:
    if stage == snapshots.ZERO_SHOT:
        return "as loaded" if summary.get("init_from") else "before training (zero-shot)"
    return f"after stage {stage}"


def _attempt(notes: list[str], what: str, make):
    """What is made, or None with a note of why not."""
    try:
        return make()
    except (ValueError, OSError, ImportError) as error:
        notes.append(f"no {what}: {error}")
        return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _words(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_words, value)) or "none"
    return "none" if value in (None, "") else str(value)
