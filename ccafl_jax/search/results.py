"""What a search found, for people: a table, JSON, a sheet of pictures, a page of its own."""

import base64
import dataclasses
import html
import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ccafl_jax.data.sources import open_image
from ccafl_jax.evaluation.open_set import Threshold
from ccafl_jax.files import replacing
from ccafl_jax.neighbors.top_k import Neighbors
from ccafl_jax.search.index import Index

HEIGHT, WIDTH = 128, 64
"""Of a picture on a sheet or page, in pixels; pictures keep their proportions inside."""
SHEETS = (".png", ".jpg", ".jpeg")

_TEXT = 14  # height of a line under a picture
_GAP = 4
_LETTERS = 11  # that fit under a picture
_LARGEST_SHEET = 65_000  # JPEG holds no more pixels along a side


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """Ranked images of each query.

    Attributes:
      queries: names of the queries.
      found: the nearest images, best first.
      accepted: int[Q], how many of them the threshold accepts; all without one.
      index: the gallery.
      threshold: from which scores count; None where all do.
      query_root: folder that the names of the queries are counted from; may be empty.
    """

    queries: Sequence[str]
    found: Neighbors
    accepted: np.ndarray
    index: Index
    threshold: float | None = None
    query_root: str = ""

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def none(self) -> int:
        """Queries without an accepted image."""
        return int(np.sum(self.accepted == 0))

    def hit(self, query: int, place: int) -> dict[str, Any]:
        """The image at a place, as JSON values; identity and camera are None where unknown."""
        row, index = int(self.found.indices[query, place]), self.index
        pid, camid = int(index.pid[row]), int(index.camid[row])
        return {
            "row": row,
            "name": index.names[row],
            "score": float(self.found.scores[query, place]),
            "pid": pid if pid >= 0 else None,
            "camera": index.camera_codes[camid] if camid >= 0 else None,
        }

    def picture(self, query: int, place: int | None) -> str:
        """Path of a query's picture, or of the one at a place."""
        if place is None:
            return os.path.join(self.query_root, self.queries[query])
        name = self.index.names[int(self.found.indices[query, place])]
        return os.path.join(self.index.meta.get("root", ""), name)


def results(
    queries: Sequence[str],
    found: Neighbors,
    index: Index,
    *,
    threshold: Threshold | None = None,
    query_root: str = "",
) -> Results:
    """Puts a search and its names together.

    Args:
      queries: names of the queries.
      found: of `Index.search`.
      index: that was searched.
      threshold: from which score an image counts; all do when None.
      query_root: see `Results`.

    Raises:
      ValueError: a threshold of another model or metric.
    """
    accepted = np.full(len(queries), found.indices.shape[1])
    if threshold is not None:
        threshold.check(str(index.meta.get("fingerprint")), metric=index.metric)
        accepted = threshold.accepts(found.scores).sum(axis=1)
    value = None if threshold is None else threshold.value
    return Results(list(queries), found, accepted, index, value, query_root)


def table(results: Results, *, limit: int) -> str:
    """The results as text, `limit` queries at most."""
    lines = []
    for query in range(min(len(results), limit)):
        lines.append(_printable(results.queries[query]))
        if not results.accepted[query]:
            best = results.hit(query, 0)
            lines.append(
                f"  none (best {best['score']:.4f} {_printable(best['name'])}, below "
                f"{results.threshold:.4f})"
            )
        for place in range(int(results.accepted[query])):
            hit = results.hit(query, place)
            labels = f"  {_labels(hit)}" if _labels(hit) else ""
            lines.append(f"{place + 1:4}  {hit['score']:7.4f}  {_printable(hit['name'])}{labels}")
    if len(results) > limit:
        lines.append(f"... and {len(results) - limit} more queries")
    return "\n".join(lines)


def as_json(results: Results) -> dict[str, Any]:
    """All results as JSON values; `hits` are those that are accepted."""
    return {
        "metric": results.index.metric,
        "form": results.index.gallery.form,
        "threshold": results.threshold,
        "model": results.index.meta.get("fingerprint"),
        "queries": [
            {
                "name": results.queries[query],
                "hits": [results.hit(query, i) for i in range(int(results.accepted[query]))],
            }
            for query in range(len(results))
        ],
    }


def contact_sheet(results: Results, path: str | os.PathLike, *, limit: int) -> int:
    """Draws a row for each query: itself, then what was found; what is not accepted is dimmed.

    Args:
      results: of a search.
      path: of the PNG or JPEG file.
      limit: queries at most.

    Returns:
      How many pictures could not be read; they are grey.

    Raises:
      ValueError: another suffix, or a sheet too large for a picture.
    """
    from PIL import Image, ImageDraw

    path = pathlib.Path(path)
    check_sheet(path)
    count, k = min(len(results), limit), results.found.indices.shape[1]
    wide, high = WIDTH + _GAP, HEIGHT + _TEXT + _GAP
    size = (wide * (k + 1) + 3 * _GAP, high * count + _GAP)
    if max(size) > _LARGEST_SHEET:
        raise ValueError(
            f"a sheet of {count} queries with {k} images is {size[0]} x {size[1]} pixels; show "
            "fewer (--limit, --top)"
        )
    sheet = Image.new("RGB", size, "white")
    draw, missing = ImageDraw.Draw(sheet), 0
    for query in range(count):
        for place in (None, *range(k)):
            picture = _thumbnail(results.picture(query, place))
            missing += picture is None
            picture = Image.new("RGB", (WIDTH, HEIGHT), "lightgrey") if not picture else picture
            good = place is None or place < results.accepted[query]
            if not good:
                picture = Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.65)
            column = 0 if place is None else place + 1
            left, top = _GAP + column * wide + 2 * _GAP * bool(column), _GAP + query * high
            sheet.paste(
                picture,
                (left + (WIDTH - picture.width) // 2, top + (HEIGHT - picture.height) // 2),
            )
            text = _under(results, query, place)
            draw.text((left, top + HEIGHT), text, fill="black" if good else "grey")
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    with replacing(path) as partial:
        sheet.save(partial, kind)
    return missing


def check_sheet(path: pathlib.Path) -> None:
    """Raises ValueError unless a sheet may be called like this."""
    if path.suffix.lower() not in SHEETS:
        raise ValueError(f"{path}: the name of a sheet must end in {', '.join(SHEETS)}")


def page(results: Results, *, limit: int, title: str = "Search") -> tuple[str, int]:
    """One HTML page that needs no other file.

    Args:
      results: of a search.
      limit: queries at most.
      title: of the page.

    Returns:
      The page, and how many pictures could not be read.
    """
    inline = _Inline()
    count = min(len(results), limit)
    rows = [_row(results, query, inline) for query in range(count)]
    noun = "query" if len(results) == 1 else "queries"
    notes = [f"{len(results)} {noun} in {len(results.index)} images"]
    notes.append(f"{results.index.metric}, {results.index.gallery.form}")
    if results.threshold is not None:
        notes.append(f"accepted from {results.threshold:.4f}; {results.none} queries find none")
    if count < len(results):
        notes.append(f"the first {count} queries")
    text = _PAGE.format(
        title=html.escape(title), notes=html.escape("; ".join(notes)), rows="\n".join(rows)
    )
    return text, inline.missing


def _row(results: Results, query: int, inline: Callable[[str], str]) -> str:
    cells = []
    for place in (None, *range(results.found.indices.shape[1])):
        kind = "query" if place is None else "hit"
        if place is not None and place >= results.accepted[query]:
            kind = "refused"
        name = results.queries[query]
        lines = [name]
        if place is not None:
            hit = results.hit(query, place)
            name, labels = hit["name"], _labels(hit)
            lines = [f"{place + 1}: {hit['score']:.4f}", *([labels] if labels else []), name]
        caption = "<br>".join(html.escape(_printable(line)) for line in lines)
        cells.append(
            f'<figure class="{kind}">{inline(results.picture(query, place))}'
            f'<figcaption title="{html.escape(_printable(name), quote=True)}">{caption}'
            "</figcaption></figure>"
        )
    if not results.accepted[query]:
        cells.insert(1, '<p class="none">none</p>')
    return f"<section>{''.join(cells)}</section>"


class _Inline:
    """Pictures as elements of a page, each read once; counts those that cannot be."""

    def __init__(self):
        self.missing = 0
        self._known: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        if path not in self._known:
            self._known[path] = self._read(path)
        return self._known[path]

    def _read(self, path: str) -> str:
        picture = _thumbnail(path)
        if picture is None:
            self.missing += 1
            return '<div class="missing">no picture</div>'
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=85)
        text = base64.b64encode(data.getvalue()).decode()
        return f'<img alt="" src="data:image/jpeg;base64,{text}">'


def _thumbnail(path: str) -> Any:
    """A picture that fits WIDTH x HEIGHT; None where it cannot be read."""
    from PIL import ImageOps

    try:
        with open(path, "rb") as file:
            image = open_image(file.read())
    except (OSError, ValueError):
        return None
    image = ImageOps.exif_transpose(image).convert("RGB")
    return ImageOps.contain(image, (WIDTH, HEIGHT))


def _under(results: Results, query: int, place: int | None) -> str:
    """What stands under a picture of the sheet, in letters that its font has."""
    if place is None:
        name = os.path.basename(results.queries[query])
        return name.encode("ascii", "replace").decode()[-_LETTERS:]
    if not place and not results.accepted[query]:
        return "none"
    return f"{results.found.scores[query, place]:.4f}"


def _labels(hit: dict[str, Any]) -> str:
    names = {"pid": "identity", "camera": "camera"}
    return ", ".join(f"{word} {hit[key]}" for key, word in names.items() if hit[key] is not None)


def _printable(text: str) -> str:
    """A file name in one line that can be written as UTF-8."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 13px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }}
section {{ display: flex; gap: .6rem; overflow-x: auto; padding: .8rem 0;
  border-top: 1px solid #ddd; }}
figure {{ margin: 0; flex: 0 0 96px; }}
figure.query {{ padding-right: .6rem; border-right: 3px solid #3465a4; }}
figure.refused {{ opacity: .35; }}
img, .missing {{ height: 128px; max-width: 96px; }}
.missing {{ width: 64px; background: #ddd; color: #666; display: grid; place-items: center; }}
figcaption {{ max-width: 96px; overflow: hidden; text-overflow: ellipsis; font-size: 11px; }}
p.none {{ align-self: center; font-weight: bold; color: #a40000; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{notes}</p>
{rows}
</body>
</html>
"""
