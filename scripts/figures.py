"""Draws the figures of the pages, boxes and arrows, to docs/figures/*.svg.

Every figure has a background of its own, so that it is readable on light and on dark pages. That of
the architecture is drawn from the imports of the package.
"""

import ast
import dataclasses
import html
import pathlib

from ccafl_jax.command_line import Parser

EXAMPLES = """\
examples:
  all figures, after the imports of the package or a drawing have changed
    python scripts/figures.py
"""

ROOT = pathlib.Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"

KINDS = {
    "data": ("#e3ecf7", "#4f739c", "data, features"),
    "learned": ("#fde9d2", "#b06a1e", "learned"),
    "fixed": ("#ecebe4", "#77766c", "constant"),
    "labels": ("#dff0e2", "#3f7a4b", "labels, memory"),
    "loss": ("#f8dfe3", "#a5404f", "loss"),
}
"""By kind of a box: its fill, its border, and what the legend says."""

LETTER = 6.4  # pixels a letter of the text, on average and rounded up
LINE = 16


@dataclasses.dataclass(frozen=True)
class Box:
    """A box at its place, in pixels."""

    x: float
    y: float
    width: float
    height: float

    def side(self, name: str) -> tuple[float, float]:
        """The middle of a side: l, r, t or b."""
        across = {"l": 0.0, "r": self.width}.get(name, self.width / 2)
        down = {"t": 0.0, "b": self.height}.get(name, self.height / 2)
        return self.x + across, self.y + down


class Drawing:
    """A figure that grows box by box."""

    def __init__(self, title: str, description: str, height: int, *, legend: bool = True):
        """Args:
        title: name of the figure.
        description: what it shows, for those who do not see it.
        height: in pixels, without the legend.
        legend: say below what the colours mean.
        """
        self.size = 960, height
        self.head = (title, description)
        self.legend = legend
        self.boxes: dict[str, Box] = {}
        self.used: list[str] = []
        self.parts: list[str] = []

    def box(self, name: str, at: tuple[int, int], width: int, kind: str, *lines: str) -> None:
        """A box with lines of text, the first of them bold; its height follows from them.

        Raises:
          ValueError: a line that does not fit, or a box outside the figure.
        """
        x, y = at
        height = LINE * len(lines) + 12
        for line in lines:
            if len(line) * LETTER > width - 8:
                raise ValueError(f"{name}: {line!r} needs {len(line) * LETTER + 8:.0f} pixels")
        if x + width > self.size[0] or y + height > self.size[1]:
            raise ValueError(f"{name} leaves the figure of {self.size}")
        self.boxes[name] = Box(x, y, width, height)
        self.used += [kind] if kind not in self.used else []
        fill, border, _ = KINDS[kind]
        dash = ' stroke-dasharray="5 3"' if kind == "fixed" else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" '
            f'stroke="{border}" stroke-width="1.3"{dash}/>'
        )
        for row, line in enumerate(lines):
            weight = ' font-weight="bold"' if row == 0 else ""
            self.text(
                x + width / 2, y + LINE * (row + 1) + 1, line, f'text-anchor="middle"{weight}'
            )

    def text(self, x: float, y: float, words: str, style: str = "") -> None:
        """A line of text."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" {style}>{html.escape(words)}</text>')

    def band(self, y: int, height: int, words: str) -> None:
        """A strip across the figure with a heading."""
        self.parts.append(
            f'<rect x="8" y="{y}" width="{self.size[0] - 16}" height="{height}" rx="8" '
            'fill="#f3f1ea" stroke="#d8d5ca"/>'
        )
        self.text(20, y + 20, words, 'font-weight="bold" fill="#5a574c"')

    def arrow(
        self, start: str, end: str, sides: str = "rl", *, out: int = 0, into: int = 0
    ) -> None:
        """An arrow between two boxes.

        Args:
          start: a box.
          end: another one.
          sides: where it leaves and where it arrives, such as "rl" for right and left.
          out: pixels below the middle where it leaves, with "rl".
          into: pixels below the middle where it arrives, with "rl".
        """
        (x, y), (u, v) = self.boxes[start].side(sides[0]), self.boxes[end].side(sides[1])
        if sides == "rl":
            y, v = y + out, v + into
            v = y if abs(v - y) < LINE / 2 else v
            self.line(f"M{x:g} {y:g} H{(x + u) / 2:g} V{v:g} H{u:g}")
        elif sides == "bt":
            self.line(f"M{x:g} {y:g} V{(y + v) / 2:g} H{u:g} V{v:g}")
        else:
            self.line(f"M{x:g} {y:g} H{u:g} V{v:g}")

    def note(self, x: int, y: int, words: str) -> None:
        """Small words beside an arrow."""
        self.text(x, y, words, 'font-size="11" fill="#5a574c"')

    def line(self, path: str, color: str = "#4a4a44") -> None:
        """An arrow along a path."""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.3" '
            'marker-end="url(#tip)"/>'
        )

    def svg(self) -> str:
        """The file."""
        width, height = self.size
        whole = height + 30 * self.legend
        legend, x = [], 20
        for kind in [kind for kind in KINDS if kind in self.used and self.legend]:
            fill, border, words = KINDS[kind]
            legend.append(
                f'<rect x="{x}" y="{height + 6}" width="14" height="14" rx="3" fill="{fill}" '
                f'stroke="{border}"/><text x="{x + 20}" y="{height + 18}">{words}</text>'
            )
            x += 44 + int(len(words) * LETTER)
        title, description = map(html.escape, self.head)
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}" '
                f'width="{width}" height="{whole}" role="img" '
                'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#1f2328">',
                f"<title>{title}</title>",
                f"<desc>{description}</desc>",
                '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
                'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#4a4a44"/>'
                "</marker></defs>",
                f'<rect width="{width}" height="{whole}" rx="10" fill="#fcfbf8"/>',
                *self.parts,
                *legend,
                "</svg>\n",
            ]
        )


def ccafl() -> Drawing:
    """The three stages of CCAFL."""
    d = Drawing(
        "CCAFL",
        "Stage 1 learns prompts inside cameras. Stage 2 trains the image tower with memories and "
        "texts of each camera. Stage 3 trains it on clusters of associated classes, against a "
        "classifier that makes the features camera-agnostic.",
        560,
    )
    d.band(10, 130, "1  prompts: image and text contrasted inside each camera")
    d.box("i1", (30, 44), 130, "data", "images")
    d.box("v1", (205, 44), 150, "fixed", "image tower of CLIP")
    d.box("g1", (400, 44), 120, "data", "g")
    d.box("p1", (30, 92), 130, "learned", "4 vectors a class")
    d.box("x1", (205, 92), 150, "fixed", "text tower of CLIP")
    d.box("t1", (400, 92), 120, "labels", "T, a text a class")
    d.box("l1", (600, 60), 220, "loss", "L1", "contrast, in the rows of a camera")
    d.arrow("i1", "v1")
    d.arrow("v1", "g1")
    d.arrow("p1", "x1")
    d.arrow("x1", "t1")
    d.arrow("g1", "l1")
    d.arrow("t1", "l1")
    d.band(150, 180, "2  intra: camera by camera")
    d.box("i2", (30, 206), 130, "data", "batch, P x K", "of (camera, id)")
    d.box("v2", (205, 206), 150, "learned", "image tower", "GeM, BN neck")
    d.box("f2", (400, 186), 120, "data", "f")
    d.box("g2", (400, 240), 120, "data", "g")
    d.box("m2", (580, 164), 175, "labels", "memory of each class", "mean and instances")
    d.box("t2", (580, 288), 175, "fixed", "T, from stage 1")
    d.box("l2", (800, 168), 142, "loss", "ICDL, triplets")
    d.box("l3", (800, 240), 142, "loss", "image to text")
    d.arrow("i2", "v2")
    d.arrow("v2", "f2")
    d.arrow("v2", "g2")
    d.arrow("f2", "m2")
    d.arrow("m2", "l2")
    d.arrow("g2", "l3")
    d.arrow("t2", "l3", "rb")
    d.band(340, 212, "3  inter: classes that the association links across cameras")
    d.box("a3", (30, 376), 150, "labels", "association", "before each epoch")
    d.box("v3", (30, 456), 150, "learned", "image tower", "GeM, BN neck")
    d.box("k3", (230, 376), 150, "labels", "memory of clusters", "texts of clusters")
    d.box("f3", (230, 462), 150, "data", "f, g")
    d.box("l4", (450, 376), 230, "loss", "cluster contrast, triplets", "image to cluster text")
    d.box("w3", (450, 456), 230, "learned", "classifier of all classes (GID)", "on detached f")
    d.box("l5", (740, 456), 200, "loss", "ICAL", "own class and other cameras'")
    d.arrow("a3", "k3")
    d.arrow("v3", "f3")
    d.arrow("k3", "l4")
    d.arrow("f3", "l4", "rl")
    d.arrow("f3", "w3")
    d.arrow("w3", "l5")
    d.line("M305 490 V528 H840 V500")
    d.note(520, 522, "f, with its gradient")
    d.note(690, 470, "constant")
    return d


def calr() -> Drawing:
    """The two stages of CALR."""
    d = Drawing(
        "CALR",
        "Stage 1 trains a network for each camera and keeps its local clusters. Stage 2 trains one "
        "network on the modules of the neighbour graph, refined by the local clusters.",
        362,
    )
    d.band(10, 110, "1  local: each camera alone")
    d.box("i1", (30, 50), 140, "data", "images", "of a camera")
    d.box("v1", (205, 50), 140, "learned", "network", "of the camera")
    d.box("c1", (380, 50), 185, "labels", "Jaccard distance", "average linkage")
    d.box("l1", (600, 50), 140, "loss", "contrast with", "cluster means")
    d.box("k1", (775, 50), 165, "labels", "local clusters", "best silhouette")
    d.arrow("i1", "v1")
    d.arrow("v1", "c1")
    d.arrow("c1", "l1")
    d.line("M472 94 V108 H840 V94")
    d.band(130, 224, "2  global: all cameras")
    d.box("i2", (30, 180), 140, "data", "all images")
    d.box("v2", (205, 172), 140, "learned", "network", "GeM, BN neck")
    d.box("c2", (380, 172), 185, "labels", "neighbour graph", "Infomap: clusters")
    d.box("r2", (600, 172), 140, "labels", "refinement", "around pivots")
    d.box("m2", (775, 172), 165, "labels", "memory", "entropy weights")
    d.box("l2", (775, 252), 165, "loss", "weighted contrast")
    d.box("g2", (205, 272), 140, "fixed", "gradient reversal")
    d.box("h2", (380, 264), 185, "learned", "classifier of cameras", "2048, 100, 100, cameras")
    d.box("l3", (600, 264), 140, "loss", "alignment", "first epochs")
    d.arrow("i2", "v2")
    d.arrow("v2", "c2")
    d.arrow("c2", "r2")
    d.arrow("r2", "m2")
    d.arrow("m2", "l2", "bt")
    d.arrow("v2", "g2", "bt")
    d.arrow("g2", "h2")
    d.arrow("h2", "l3")
    d.line("M880 94 V146 H670 V172")
    d.line("M345 206 H362 V340 H857 V280")
    d.note(560, 334, "f of the batch")
    return d


def tfclip() -> Drawing:
    """Memory, prompts and diffusion of TF-CLIP."""
    d = Drawing(
        "TF-CLIP",
        "A memory of the untuned tower is made once. In training, prompts move it towards each "
        "clip, and a diffusion block joins the frames. At test three features stand side by side.",
        430,
    )
    d.band(10, 80, "before training")
    d.box("i0", (30, 44), 150, "data", "all tracklets")
    d.box("v0", (225, 44), 170, "fixed", "untuned CLIP")
    d.box("m0", (440, 38), 190, "fixed", "memory M", "mean of each identity")
    d.arrow("i0", "v0")
    d.arrow("v0", "m0")
    d.band(100, 322, "training")
    d.box("i1", (30, 216), 150, "data", "clip of T frames", "camera embedding")
    d.box("v1", (225, 216), 170, "learned", "image tower", "tokens z, projected f")
    d.box("p1", (440, 132), 190, "learned", "prompts (SSP)", "M' = M + P(M, f)")
    d.box("j1", (440, 216), 190, "data", "class token: image, joint", "mean over frames")
    d.box("s1", (440, 300), 190, "fixed", "stop the gradient")
    d.box("t1", (440, 358), 190, "learned", "diffusion (TMD)", "frame memories, one block")
    d.box("l1", (730, 132), 205, "loss", "memory", "joint feature against M'")
    d.box("l2", (730, 216), 205, "loss", "identity, triplet", "of three clip features")
    d.box("l3", (730, 358), 205, "loss", "frame", "each frame after diffusion")
    d.arrow("i1", "v1")
    d.arrow("v1", "p1")
    d.arrow("v1", "j1")
    d.arrow("v1", "s1")
    d.arrow("m0", "p1", "bt")
    d.arrow("s1", "t1", "bt")
    d.arrow("p1", "l1")
    d.arrow("j1", "l2", out=10, into=10)
    d.line("M630 228 H660 V166 H730")
    d.arrow("t1", "l3", out=10, into=10)
    d.line("M630 370 H700 V248 H730")
    return d


def cclnet() -> Drawing:
    """Streams, memories and swaps of CCLNet."""
    d = Drawing(
        "CCLNet",
        "Two stems lead into one tower. Each modality is clustered alone and contrasted with a "
        "memory of its own; matched prototypes of the memories are swapped. Stage 2 adds texts.",
        352,
    )
    d.box("iv", (20, 50), 130, "data", "visible images")
    d.box("ir", (20, 200), 130, "data", "infrared images")
    d.box("sv", (185, 50), 120, "learned", "visible stem")
    d.box("sr", (185, 200), 120, "learned", "infrared stem")
    d.box("v", (345, 110), 130, "learned", "shared stages", "of the tower")
    d.box("f", (525, 66), 140, "data", "f", "cubic mean, neck")
    d.box("g", (525, 200), 140, "data", "g", "attention pool")
    d.box("mv", (720, 20), 220, "labels", "memory of visible clusters")
    d.box("mr", (720, 110), 220, "labels", "memory of infrared clusters")
    d.box("l1", (720, 160), 220, "loss", "contrast, in each modality")
    d.box("t", (525, 280), 140, "fixed", "texts of clusters", "from stage 1")
    d.box("l2", (720, 206), 220, "loss", "image to text (stage 2)")
    d.box(
        "c",
        (185, 280),
        290,
        "labels",
        "clusters of each modality",
        "Jaccard, DBSCAN; fill the memories",
    )
    d.arrow("iv", "sv")
    d.arrow("ir", "sr")
    d.arrow("sv", "v")
    d.arrow("sr", "v")
    d.arrow("v", "f")
    d.arrow("v", "g")
    d.arrow("f", "mv")
    d.arrow("f", "mr")
    d.arrow("mr", "l1", "bt")
    d.arrow("g", "l2")
    d.arrow("t", "l2", "rb")
    d.line("M810 48 V110")
    d.line("M850 110 V48")
    d.note(860, 84, "swap matches")
    d.line("M595 110 V170 H485 V256 H330 V280")
    d.note(340, 250, "before each epoch")
    return d


BASE = ("command_line", "files", "numerics", "options", "progress", "ragged")
"""Modules beside the rooms, which know no room; any room may use them."""

PLACES = {
    "report": (550, 0, "data"),
    "methods": (400, 1, "learned"),
    "deploy": (660, 1, "data"),
    "search": (860, 1, "data"),
    "training": (130, 2, "learned"),
    "scoring": (720, 2, "data"),
    "data": (100, 3, "data"),
    "models": (290, 3, "learned"),
    "losses": (480, 3, "loss"),
    "pseudo_labels": (665, 3, "labels"),
    "evaluation": (865, 3, "data"),
    "memory": (385, 4, "labels"),
    "neighbors": (765, 4, "labels"),
}
"""By room: middle, level from the top, colour. A room imports rooms of lower levels alone."""


def imports(package: pathlib.Path = ROOT / "ccafl_jax") -> dict[str, set[str]]:
    """By room, the rooms and base modules that its files import, inside functions too."""
    found: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            found.setdefault(room, set()).update(_rooms(node, package.name))
    return {room: others - {room} for room, others in found.items()}


def _rooms(node: ast.AST, package: str) -> set[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module == package:
        names = [f"{package}.{alias.name}" for alias in node.names if alias.name != "__version__"]
    else:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == package and len(part) > 1}


def architecture() -> Drawing:
    """The rooms of the package, and which of them imports which."""
    d = Drawing(
        "Rooms of ccafl_jax",
        "An arrow leads from a room to a room that it imports. All arrows lead downwards.",
        540,
        legend=False,
    )
    rooms, width = imports(), 130
    for room, (x, level, kind) in PLACES.items():
        d.box(room, (x - width // 2, 20 + 110 * level), width, kind, room)
    d.box("base", (180, 506), 600, "fixed", "any room may use: " + ", ".join(BASE))
    boxes, d.parts = d.parts, []  # arrows first, so that boxes lie over them
    edges = [(start, end) for start in PLACES for end in PLACES if end in rooms.get(start, ())]
    for start, end in edges:
        ends = sorted((b for a, b in edges if a == start), key=lambda room: PLACES[room][0])
        starts = sorted((a for a, b in edges if b == end), key=lambda room: PLACES[room][0])
        x = d.boxes[start].x + width * (ends.index(end) + 1) / (len(ends) + 1)
        u = d.boxes[end].x + width * (starts.index(start) + 1) / (len(starts) + 1)
        y = d.boxes[start].y + d.boxes[start].height
        d.line(f"M{x:.0f} {y:g} L{u:.0f} {d.boxes[end].y:g}", "#8b8a80")
    d.parts += boxes
    return d


DRAWINGS = {
    "architecture": architecture,
    "calr": calr,
    "ccafl": ccafl,
    "cclnet": cclnet,
    "tfclip": tfclip,
}


def main() -> None:
    """Writes all figures."""
    Parser(description=__doc__, epilog=EXAMPLES).parse_args()
    FIGURES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FIGURES / f"{name}.svg").write_text(draw().svg())
        print(f"docs/figures/{name}.svg")


if __name__ == "__main__":
    main()
