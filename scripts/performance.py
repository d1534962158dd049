"""Writes the tables of published figures and of speed into README.md and docs/results.md.

What others published is in results/published.json, with its sources; what was measured with this
library is in results/*.json, as the benchmarks left it. Figures on real data sets come from
results/reproduced.json (see `measured`); without them the table says so.
"""

import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ccafl_jax.command_line import Parser, one_line_errors
from ccafl_jax.report.pages import with_table

EXAMPLES = """\
examples:
  python scripts/performance.py            # rewrites the tables of both pages
  python scripts/performance.py --check    # exit status 1 if that would change them
"""
ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
NOT_MEASURED = "not measured: needs licensed data"
LABELS = "python scripts/bench/pseudo_labels.py"
RANKING = "python scripts/bench/evaluation.py"
STEPS = "python scripts/bench/train.py --quick"
PHASE = "inter+text+ical"
"""The longest phase of CCAFL, with all losses on."""


class Row(NamedTuple):
    """A published figure of a system on a data set, and how to measure it here.

    Attributes:
      system: its name.
      variant: of the system.
      backbone, pretraining, size: of the encoder, and height x width of its images.
      dataset: title of the data set.
      figures: by name, in per cent; what is not given is absent.
      headline: whether it is the system's own result, or one of its variants.
      recipe: a file under configs/; empty where this library has no such variant.
      options: of the recipe, "group.name=value".
      stages: for `--stages`; empty for all.
      absent: why there is no recipe.
    """

    system: str
    variant: str
    backbone: str
    pretraining: str
    size: str
    dataset: str
    figures: Mapping[str, float]
    headline: bool
    recipe: str
    options: Sequence[str]
    stages: str
    absent: str

    @property
    def words(self) -> list[str]:
        """The arguments of `scripts/train.py`, without folders."""
        stages = ["--stages", self.stages] if self.stages else []
        return [
            "--config",
            self.recipe,
            *(f"--config.{option}" for option in self.options),
            *stages,
        ]


def main() -> int:
    """Rewrites both pages, or compares them; returns the exit status."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--check", action="store_true", help="change nothing, compare")
    options = parser.parse_args()
    with one_line_errors():
        stale = []
        for path, made in pages(RESULTS).items():
            if made != path.read_text():
                stale.append(str(path.relative_to(ROOT)))
                if not options.check:
                    path.write_text(made)
        if options.check and stale:
            print(f"{' and '.join(stale)} differ from results/: run python scripts/performance.py")
        return int(options.check and bool(stale))


def pages(results: pathlib.Path) -> dict[pathlib.Path, str]:
    """The pages with their tables.

    Args:
      results: folder of the JSON files.
    """
    published = json.loads((results / "published.json").read_text())
    rows, found = [*rows_of(published)], measured(results)
    readme, page = ROOT / "README.md", ROOT / "docs" / "results.md"
    tables = {
        readme: {"published": published_table(rows, found), "speed": speed_table(results)},
        page: {
            "variants": variants_table(rows, found, published),
            "comparison": comparison_table(published["comparison"]),
        },
    }
    made = {}
    for path, named in tables.items():
        made[path] = path.read_text()
        for name, table in named.items():
            made[path] = with_table(made[path], name, table)
    return made


def rows_of(published: Mapping[str, Any]) -> Iterator[Row]:
    """All figures of the four systems.

    Args:
      published: of results/published.json.
    """
    for system in published["systems"]:
        for variant in system["variants"]:
            for dataset, values in variant["figures"].items():
                of_set = system["sets"][dataset]
                named = zip(system["figures"], values, strict=False)
                absent = variant.get("absent", "")
                yield Row(
                    system=system["system"],
                    variant=variant["name"],
                    backbone=variant["backbone"],
                    pretraining=system["pretraining"],
                    size=of_set["size"],
                    dataset=dataset,
                    figures={name: value for name, value in named if value is not None},
                    headline=variant.get("headline", False),
                    recipe="" if absent else of_set["recipe"],
                    options=[
                        *system["options"],
                        *of_set.get("options", ()),
                        *variant.get("options", ()),
                    ],
                    stages=variant.get("stages", ""),
                    absent=absent,
                )


def measured(results: pathlib.Path) -> dict[str, Mapping[str, float]]:
    """Figures of this library on real data sets, by the arguments of `scripts/train.py`.

    Args:
      results: folder whose `reproduced.json` holds them as `evaluate.py --json` writes them, with
        shares in 0..1; there may be no such file.
    """
    file = results / "reproduced.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def published_table(rows: Sequence[Row], found: Mapping[str, Mapping[str, float]]) -> str:
    """The systems' own results in the columns of their pages."""
    head = ("system", "data set", "backbone", "pre-training", "size", "published mAP / R1")
    lines = [(*head, "our recipe", "our mAP / R1")]
    for row in rows:
        if row.headline:
            cells = (row.system, row.dataset, row.backbone, row.pretraining, row.size)
            lines.append((*cells, pair(row.figures), f"`{row.recipe}`", ours(row, found)))
    return markdown(lines)


def variants_table(
    rows: Sequence[Row], found: Mapping[str, Mapping[str, float]], published: Mapping[str, Any]
) -> str:
    """All published variants and their recipes, a part for each system."""
    parts = []
    for system in published["systems"]:
        own = [row for row in rows if row.system == system["system"]]
        head = ("variant", "backbone", "data set", "size", *map(title, system["figures"]))
        lines = [(*head, "our recipe", "and its own words", "our mAP / R1")]
        common = len(system["options"])
        for row in own:
            figures = (one(row.figures.get(name)) for name in system["figures"])
            cells = (row.variant, row.backbone, row.dataset, row.size, *figures)
            words = " ".join(row.words[2 + common :])
            recipe = f"`{row.recipe}`" if row.recipe else row.absent
            lines.append((*cells, recipe, f"`{words}`" if words else "", ours(row, found)))
        given = " ".join(f"--config.{option}" for option in system["options"])
        every = f" With every command of it: `{given}`." if given else ""
        parts.append(
            f"**{system['system']}**, {system['pretraining']} pre-training.{every} Source: "
            f"{system['source']}.\n\n{markdown(lines)}"
        )
    return "\n\n".join(parts)


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """The table of methods that CCAFL compares itself with."""
    figures = " / ".join(map(title, comparison["figures"]))
    lines = [("setting", "method", "venue", *comparison["sets"])]
    for setting, method, venue, *by_set in comparison["rows"]:
        cells = ("-" if v is None else " / ".join(map(one, v)) for v in by_set)
        lines.append((setting, method, venue, *cells))
    remarks = "\n".join(f"- {remark}" for remark in comparison["remarks"])
    return f"{figures}. Source: {comparison['source']}.\n\n{markdown(lines)}\n\n{remarks}"


def speed_table(results: pathlib.Path) -> str:
    """What a newcomer asks first: labels, ranking and training, with machine and command.

    Args:
      results: folder of the benchmarks' JSON files.
    """
    lines = [("work", "machine", "time", "peak memory", "command")]
    for name, words in (("market1501", "Market-1501"), ("msmt17", "MSMT17")):
        for file in ("pseudo_labels_cpu", "pseudo_labels_gpu"):
            work = read(results, file)["works"][name]
            what = f"labels of an epoch (Jaccard, DBSCAN), {words}'s size"
            lines.append((what, *timed(work, work["device"]), f"`{LABELS}`"))
    ranking = read(results, "evaluation")
    for name, words in (
        ("market1501", "Market-1501's size"),
        ("msmt17", "MSMT17's size"),
        ("msmt17_reranked", "MSMT17's size, re-ranked"),
    ):
        cells = timed(ranking["works"][name], ranking["device"])
        lines.append((f"exact mAP, CMC and mINP, {words}", *cells, f"`{RANKING}`"))
    for name, work in read(results, "train_gpu")["works"].items():
        step, where = work["phases"][PHASE], machine(work["device"])
        ratio = f"{step['over_bare']:.2f} x a bare step"
        if "over_torch" in step:
            ratio += f", {step['over_torch']:.2f} x the speed of PyTorch's bare step"
        what = f"step of CCAFL with all losses, {name}, 128 images"
        speed = f"{1000 * step['seconds']['median']:.1f} ms ({ratio})"
        memory = f"{work['peak_bytes'] / 1e9:.1f} GB"
        lines.append((what, where, speed, memory, f"`{STEPS}`"))
        minutes = f"{work['projection']['total'] / 60:.1f} min, projected"
        lines.append((f"all of CCAFL on Market-1501, {name}", where, minutes, "", f"`{STEPS}`"))
    return markdown(lines)


def timed(work: Mapping[str, Any], device: Mapping[str, Any]) -> tuple[str, str, str]:
    """Machine, median time and peak memory of a benchmark."""
    seconds = f"{work['seconds']['median']:.2g} s"
    return machine(device), seconds, f"{work['peak_bytes'] / 1e9:.1f} GB"


def machine(device: Mapping[str, Any]) -> str:
    """A device in words."""
    if device["platform"] == "cpu":
        return f"{device['cores']} CPU cores"
    return device["kind"] if device["count"] == 1 else f"{device['count']} x {device['kind']}"


def ours(row: Row, found: Mapping[str, Mapping[str, float]]) -> str:
    """What was measured with the row's command, or why nothing was."""
    if not row.recipe:
        return "-"
    figures = found.get(" ".join(row.words))
    if figures is None:
        return NOT_MEASURED
    return pair({name: 100 * figures[name] for name in ("mAP", "rank1")})


def pair(figures: Mapping[str, float]) -> str:
    """The two figures that are always given."""
    return " / ".join(one(figures.get(name)) for name in ("mAP", "rank1"))


def one(value: float | None) -> str:
    """A figure in per cent; with the digits it was published with where it has two."""
    return "-" if value is None else f"{value:.4g}" if round(value, 1) != value else f"{value:.1f}"


def title(figure: str) -> str:
    """R1 of rank1."""
    return figure.replace("rank", "R")


def read(results: pathlib.Path, name: str) -> dict[str, Any]:
    """A file of results."""
    return json.loads((results / f"{name}.json").read_text())


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its head."""
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])


if __name__ == "__main__":
    sys.exit(main())
