"""Charts and embeddings as SVG and PNG, drawn by matplotlib, or by hand where a page moves them.

Charts of the page take its colours of text and lines, so that they follow a dark theme.
"""

import colorsys
import html
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ccafl_jax.report.data import Embedding, Probe

TEXT, LINES = "#010203", "#040506"
"""Stand for the page's colours in charts."""
COLOURS = ("#3b7dd8", "#d9772b", "#2c9c74", "#b052a6", "#b8961e", "#d1495b", "#3c9fbd", "#8c6d46")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""By camera; further cameras have them hollow, then again."""
PERCENT = 100.0

_SIZE = (4.4, 3.0)  # inches; text keeps its size on a phone and on a desk
_SHAPES = {
    "o": '<circle r="4"/>',
    "s": '<rect x="-3.6" y="-3.6" width="7.2" height="7.2"/>',
    "^": '<path d="M0-4.8L4.5 3.4H-4.5Z"/>',
    "D": '<path d="M0-4.9L4.9 0L0 4.9L-4.9 0Z"/>',
    "v": '<path d="M0 4.8L4.5-3.4H-4.5Z"/>',
    "P": '<path d="M-1.6-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z"/>',
    "X": '<path d="M-1.6-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z" transform="rotate(45)"/>',
    "*": '<path d="M0-5.6L1.4-2L5.3-1.7L2.2.7L3.3 4.5L0 2.3L-3.3 4.5L-2.2.7L-5.3-1.7L-1.4-2Z"/>',
}
_SHORT = 14  # letters of a name in a legend of three columns
_BOX = 640  # of an embedding, in its own units
_EDGE = 24


def line_chart(
    name: str,
    x: Sequence[float],
    columns: dict[str, Sequence[float | None]],
    *,
    label: str,
    x_title: str = "epoch",
    y_title: str = "",
    percent: bool = False,
    logarithmic: bool = False,
) -> str:
    """Lines over epochs or places.

    Args:
      name: of the chart, unlike that of any other on the page.
      x: n numbers.
      columns: by name, n numbers each; None where there is none.
      label: what a screen reader says.
      x_title: below the axis.
      y_title: beside the axis.
      percent: the numbers are shares, shown in per cent from 0 to 100.
      logarithmic: of the numbers.

    Returns:
      An SVG element.
    """
    figure, axes = _chart()
    for number, (title, values) in enumerate(columns.items()):
        shown = [math.nan if v is None else v * (PERCENT if percent else 1) for v in values]
        points = [(a, b) for a, b in zip(x, shown, strict=True) if not math.isnan(b)]
        axes.plot(
            *zip(*points, strict=True) if points else ([], []),
            label=title.replace("_", " "),
            color=COLOURS[number % len(COLOURS)],
            linestyle=STYLES[number // len(COLOURS) % len(STYLES)],
            marker="o" if len(points) < 30 else None,
            markersize=3,
            linewidth=1.6,
        )
    if logarithmic:
        axes.set_yscale("log")
    if percent:
        axes.set_ylim(0, PERCENT)
    _finish(axes, x_title, y_title, legend=len(columns) > 1)
    return _inline(figure, name, label)


def probe_chart(name: str, probes: Sequence[Probe], *, label: str) -> str:
    """Bars of the camera probes, a group for each stage, with the level of chance."""
    figure, axes = _chart()
    place = np.arange(len(probes))
    kinds = (("linear", [p.linear for p in probes]), ("nearest", [p.knn for p in probes]))
    for number, (title, values) in enumerate(kinds):
        shown = PERCENT * np.asarray(values)
        bars = axes.bar(
            place + (number - 0.5) * 0.36,
            shown,
            0.34,
            label=title,
            color=COLOURS[number],
            hatch=("", "//")[number],
            edgecolor=LINES,
            linewidth=0,
        )
        axes.bar_label(bars, fmt="%.0f", color=TEXT, fontsize=9, padding=2)
    chance = PERCENT * float(np.mean([p.chance for p in probes]))
    axes.axhline(chance, color=TEXT, linestyle=":", linewidth=1.2, label="chance")
    axes.set_xticks(place, [_folded(p.title) for p in probes])
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    _finish(axes, "", "camera recognised, %", legend=True)
    return _inline(figure, name, label)


def identity_colours(pid: np.ndarray) -> dict[int, str]:
    """A colour for each identity: hues apart, in three lightnesses that show on white and black."""
    people = np.unique(pid).tolist()
    found = {}
    for number, person in enumerate(people):
        hue, lightness = number / max(len(people), 1), (0.5, 0.62, 0.56)[number % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.72)
        found[person] = f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
    return found


def camera_numbers(embeddings: Sequence[Embedding]) -> dict[str, int]:
    """A number for each camera, in the order of names as people count."""
    names = {camera for found in embeddings for camera in found.camera}
    return {name: number for number, name in enumerate(sorted(names, key=_as_counted))}


def embedding_figure(embeddings: Sequence[Embedding], *, perplexity: float) -> Any:
    """A matplotlib figure for print: identities by colour, cameras by marker, on white.

    Args:
      embeddings: one or two, side by side.
      perplexity: that is stated below.
    """
    figure = _matplotlib().figure.Figure(figsize=(5.2 * len(embeddings), 5.6), layout="constrained")
    cameras = camera_numbers(embeddings)
    axes = figure.subplots(1, len(embeddings), squeeze=False)[0]
    for part, found in zip(axes, embeddings, strict=True):
        colours = identity_colours(found.pid)
        for camera, number in cameras.items():
            rows = np.flatnonzero(np.asarray(found.camera) == camera)
            paint = [colours[int(person)] for person in found.pid[rows]]
            hollow = number // len(MARKERS) % 2 == 1
            part.scatter(
                *found.points[rows].T,
                s=20,
                marker=MARKERS[number % len(MARKERS)],
                facecolors="none" if hollow else paint,
                edgecolors=paint,
                linewidths=0.8,
            )
        part.set(title=found.title, xticks=[], yticks=[])
        part.set_aspect("equal", adjustable="datalim")
    handles = [_handle(camera, number) for camera, number in cameras.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False)
    people, points = len(np.unique(embeddings[0].pid)), len(embeddings[0].points)
    figure.suptitle(
        f"t-SNE of {points} items of {people} identities (colours), perplexity {perplexity:g}",
        fontsize=10,
    )
    return figure


def saved(figure: Any, form: str) -> bytes:
    """A figure as a `png` or `svg` file, the same for the same figure."""
    stream = io.BytesIO()
    with _matplotlib().rc_context({"svg.hashsalt": "report", "svg.fonttype": "none"}):
        figure.savefig(stream, format=form, dpi=160, metadata=_no_date(form))
    return stream.getvalue()


def embedding_svg(found: Embedding, cameras: dict[str, int], *, name: str) -> str:
    """An embedding for the page: every point knows its identity and camera.

    Args:
      found: the embedding.
      cameras: see `camera_numbers`.
      name: of the element.
    """
    low, high = found.points.min(axis=0), found.points.max(axis=0)
    scale = (_BOX - 2 * _EDGE) / max(float((high - low).max()), 1e-9)
    middle = (low + high) / 2
    places = (found.points - middle) * scale + _BOX / 2
    colours = identity_colours(found.pid)
    shapes = "".join(
        f'<g id="{name}-m{number}">{_SHAPES[MARKERS[number % len(MARKERS)]]}</g>'
        for number in cameras.values()
    )
    points = "".join(
        f'<use href="#{name}-m{cameras[camera]}" x="{x:.1f}" y="{_BOX - y:.1f}" '
        f'{_paint(colours[int(person)], cameras[camera])} data-pid="{person}" '
        f'data-camera="{html.escape(camera)}">'
        f"<title>identity {person}, camera {html.escape(camera)}</title></use>"
        for (x, y), person, camera in zip(places, found.pid, found.camera, strict=True)
    )
    return (
        f'<svg id="{name}" class="plane" viewBox="0 0 {_BOX} {_BOX}" role="img" tabindex="0" '
        f'aria-label="t-SNE {html.escape(found.title)}: {len(found.points)} points; plus, minus '
        f'and the arrow keys zoom and move"><defs>{shapes}</defs>{points}</svg>'
    )


def marker_svg(number: int) -> str:
    """The marker of a camera, for legends."""
    shape = _SHAPES[MARKERS[number % len(MARKERS)]]
    return (
        '<svg class="marker" viewBox="-7 -7 14 14" aria-hidden="true">'
        f"<g {_paint('currentColor', number)}>{shape}</g></svg>"
    )


def _paint(colour: str, number: int) -> str:
    if number // len(MARKERS) % 2:
        return f'fill="none" stroke="{colour}" stroke-width="1.4"'
    return f'fill="{colour}"'


def _handle(camera: str, number: int) -> Any:
    hollow = number // len(MARKERS) % 2 == 1
    return _matplotlib().lines.Line2D(
        [],
        [],
        linestyle="none",
        color="#444444",
        marker=MARKERS[number % len(MARKERS)],
        fillstyle="none" if hollow else "full",
        label=camera,
    )


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.lines
    except ImportError as error:
        raise ImportError("charts need matplotlib: pip install matplotlib") from error
    return matplotlib


def _chart() -> tuple[Any, Any]:
    figure = _matplotlib().figure.Figure(figsize=_SIZE, layout="constrained")
    return figure, figure.subplots()


def _finish(axes: Any, x_title: str, y_title: str, *, legend: bool) -> None:
    axes.set_xlabel(x_title, color=TEXT, fontsize=10)
    axes.set_ylabel(y_title, color=TEXT, fontsize=10)
    axes.tick_params(colors=TEXT, labelsize=9.5, length=3)
    axes.xaxis.get_major_locator().set_params(integer=True) if x_title else None
    axes.grid(axis="y", color=LINES, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINES)
    if legend:
        longest = max(map(len, axes.get_legend_handles_labels()[1]))
        columns = 3 if longest <= _SHORT else 2
        axes.figure.legend(
            loc="outside lower left", ncols=columns, frameon=False, fontsize=9.5, labelcolor=TEXT
        )


def _inline(figure: Any, name: str, label: str) -> str:
    """A figure as an element of the page, in its colours and its font."""
    text = saved_chart(figure)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(
        r"font: (\d+ )?([\d.]+)px [^;\"]*", r"font-size: \2px; font-family: inherit", text
    )
    text = text.replace(TEXT, "currentColor").replace(LINES, "var(--lines)")
    box = re.search(r'viewBox="[^"]+"', text)[0]
    head = f'<svg class="chart" {box} role="img" aria-label="{html.escape(label)}" '
    head += 'xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + text[text.index(">") + 1 :].strip()


def saved_chart(figure: Any) -> str:
    """The SVG file of a chart without a ground of its own."""
    stream = io.BytesIO()
    with _matplotlib().rc_context({"svg.hashsalt": "report", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", transparent=True, metadata=_no_date("svg"))
    return stream.getvalue().decode()


def _no_date(form: str) -> dict[str, Any]:
    return {"Date": None} if form == "svg" else {"Software": None}


def _folded(title: str) -> str:
    """A title over two lines."""
    head, bracket, rest = title.partition(" (")
    return f"{head}\n({rest}" if bracket else title.replace(" stage ", "\nstage ")


def _as_counted(name: str) -> tuple[str, int, str]:
    """c2 before c10."""
    digits = re.search(r"\d+", name)
    return (name[: digits.start()], int(digits[0]), name) if digits else (name, -1, name)
