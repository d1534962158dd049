"""The HTML page of a report: one file that needs nothing else.

write(workdir / "report.html", collect_run(workdir))
"""

import base64
import dataclasses
import importlib.resources
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ccafl_jax.report import drawings
from ccafl_jax.report.data import FIGURES, Curves, Report
from ccafl_jax.training.storage import open_path, write_text

LARGEST = 15_000_000
"""Bytes of a page; rank lists are left out until it is that small."""

_SHARES = re.compile(r"(precision|recall|purity|pure_share|outlier_share|b_cubed_f|nmi|expansion)$")
_FIGURES = ("mAP", "rank1", "rank5", "rank10", "mINP", "val_mAP", "same_camera_share")
_RATE = "learning_rate"
_TOTALS = ("total", "loss")
_HIDDEN = ("camera", "camera_epoch", "grad_norm")


class Chart(NamedTuple):
    """A chart with its heading."""

    title: str
    svg: str


def write(path: str | os.PathLike, report: Report) -> int:
    """Writes the page, whole or not at all, in place of an earlier one.

    Args:
      path: of the file, on a disk or in an object store.
      report: what it shows.

    Returns:
      Its size in bytes.

    Raises:
      ImportError: matplotlib or jinja2 is not installed.
      OSError: it cannot be written.
    """
    text = render(report)
    while len(text.encode()) > LARGEST and report.findings and report.findings.lists:
        report = _with_fewer_lists(report)
        text = render(report)
    path = open_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return len(text.encode())


def render(report: Report) -> str:
    """The page as text; the same for the same report."""
    environment = _environment()
    template = environment.get_template("report.html.j2")
    cameras = drawings.camera_numbers(report.embeddings)
    planes = [
        Chart(found.title, drawings.embedding_svg(found, cameras, name=f"plane{number}"))
        for number, found in enumerate(report.embeddings)
    ]
    printed = {}
    if report.embeddings:
        figure = drawings.embedding_figure(report.embeddings, perplexity=report.perplexity)
        printed = {form: drawings.saved(figure, form) for form in ("png", "svg")}
    return template.render(
        report=report,
        figures=FIGURES,
        style=_asset("report.css"),
        script=_asset("report.js"),
        training=charts_of(report.curves),
        cmc=cmc_chart(report),
        probes=probe_chart(report),
        planes=planes,
        printed=printed,
        markers=[(name, drawings.marker_svg(number)) for name, number in cameras.items()],
        people=sorted({int(p) for found in report.embeddings for p in found.pid}),
        list_cameras=list(dict.fromkeys(item.query.camera for item in _lists(report))),
        differing=[option for option in report.options if option.differs],
    )


def charts_of(curves: Sequence[Curves]) -> list[Chart]:
    """Charts of training, by log: losses, rates, quality of labels, accuracies and figures."""
    found = []
    for log in curves:
        groups = grouped(log.columns)
        for number, (title, columns, options) in enumerate(groups):
            name = f"{log.stage}: {title}"
            svg = drawings.line_chart(
                f"{log.stage}{number}",
                log.epochs,
                {_short(key): values for key, values in columns.items()},
                label=f"{name} by epoch: {', '.join(map(_short, columns))}",
                y_title="%" if options.get("percent") else "",
                **options,
            )
            found.append(Chart(name, svg))
    return found


def grouped(
    columns: Mapping[str, Sequence[float | None]],
) -> list[tuple[str, dict[str, Sequence[float | None]], dict[str, Any]]]:
    """The columns of a log, by what belongs into one chart: title, columns, options of the chart.

    What is not known by its name is a part of the loss.
    """
    parts: dict[str, dict[str, Sequence[float | None]]] = {}
    for name, values in columns.items():
        if name in _HIDDEN:
            continue
        parts.setdefault(_part(name), {})[name] = values
    order = (
        ("loss", {}),
        ("parts of the loss", {}),
        ("learning rate", {}),
        ("label quality", {"percent": True}),
        ("clusters and pairs", {}),
        ("accuracy of classifiers", {"percent": True}),
        ("figures on the test set", {"percent": True}),
    )
    return [(title, parts[title], options) for title, options in order if title in parts]


def _part(name: str) -> str:
    if name == _RATE:
        return "learning rate"
    if name in _FIGURES:
        return "figures on the test set"
    if _SHARES.search(name):
        return "label quality"
    if "accuracy" in name:
        return "accuracy of classifiers"
    counted = ("clusters", "pairs", "accepted", "correct", "outliers", "images")
    if name.endswith(counted):
        return "clusters and pairs"
    return "loss" if name in _TOTALS else "parts of the loss"


def _short(name: str) -> str:
    return name.removeprefix("association_").replace("_", " ")


def cmc_chart(report: Report) -> str:
    """The CMC curve; empty where nothing was ranked."""
    if report.findings is None:
        return ""
    shares = report.findings.cmc[:50]
    first = ", ".join(
        f"rank-{k} {100 * shares[k - 1]:.1f} %" for k in (1, 5, 10) if k <= len(shares)
    )
    return drawings.line_chart(
        "cmc",
        range(1, len(shares) + 1),
        {"queries with a match": shares},
        label=f"CMC curve: {first}",
        x_title="among the first k items",
        y_title="queries with a match, %",
        percent=True,
    )


def probe_chart(report: Report) -> str:
    """The camera probes; empty where there are none."""
    if not report.probes:
        return ""
    text = "; ".join(
        f"{p.title}: linear {100 * p.linear:.0f} %, nearest neighbours {100 * p.knn:.0f} %"
        for p in report.probes
    )
    return drawings.probe_chart("probes", report.probes, label=f"camera probes: {text}")


def _lists(report: Report) -> Sequence[Any]:
    return report.findings.lists if report.findings else ()


def _with_fewer_lists(report: Report) -> Report:
    kept = list(report.findings.lists)[::2] if len(report.findings.lists) > 1 else []
    note = "some rank lists were left out, as the page would have been larger than 15 MB"
    findings = dataclasses.replace(report.findings, lists=kept)
    notes = list(dict.fromkeys([*report.notes, note]))
    return dataclasses.replace(report, findings=findings, notes=notes)


def _asset(name: str) -> str:
    return (importlib.resources.files("ccafl_jax.report") / "assets" / name).read_text("utf-8")


def _environment() -> Any:
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise ImportError("the report needs jinja2: pip install jinja2") from error
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f}"
    environment.filters["breakable"] = lambda name: markupsafe.Markup(
        re.sub(r"([._])", r"\1<wbr>", str(markupsafe.escape(name)))
    )
    environment.filters["data"] = lambda content, kind: markupsafe.Markup(
        f"data:{kind};base64,{base64.b64encode(content).decode()}"
    )
    return environment
