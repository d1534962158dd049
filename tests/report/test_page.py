"""The page: whole, self-contained, in words for those who do not see it, and never in the way."""

import dataclasses
import html.parser
import re

import numpy as np
import pytest

from ccafl_jax.report import drawings, embedding, make, page
from ccafl_jax.report.data import Embedding, Findings, Picture, Probe, RankList, Report, Stage
from tests.report.finished import collected, finished_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def report(run):
    return collected(run)


@pytest.fixture(scope="module")
def text(report):
    return page.render(report)


class Elements(html.parser.HTMLParser):
    """All elements with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def all(self, *tags):
        return [attributes for tag, attributes in self.found if tag in tags]


def small_report(**changes):
    picture = Picture(b"", 3, "c1", "a.jpg")
    lists = [
        RankList("best", picture, [dataclasses.replace(picture, match=True)], 0.5, 1, 1)
        for _ in range(8)
    ]
    findings = Findings(
        "x", "image", "rules: x", {"mAP": 0.5}, "", 8, [0.5, 1.0], ["c1"], None, lists
    )
    report = Report(title="T", about="", summary=[Stage("s", "x", {"mAP": 0.5})], findings=findings)
    return dataclasses.replace(report, **changes)


def test_nothing_comes_from_elsewhere(text):
    elements = Elements(text)
    for attributes in elements.all("img", "script", "link", "a", "use", "image"):
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:")), value[:60]
    assert set(re.findall(r"https?://[^\"' <)]+", text)) <= {"http://www.w3.org/1999/xlink"}
    assert "@import" not in text and "default-src 'none'" in text


def test_every_part_is_there_and_ids_are_unique(text):
    elements = Elements(text)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    sections = [attributes["id"] for attributes in elements.all("section")]
    assert sections == ["summary", "training", "cameras", "lists", "activations", "setup"]
    links = {attributes["href"] for attributes in elements.all("a")}
    assert {f"#{name}" for name in sections} <= links
    assert "not comparable: other data" in text and "60.0" in text


def test_every_picture_is_described_and_every_control_is_named(text):
    elements = Elements(text)
    assert len(elements.all("img")) > 50
    assert all(attributes.get("alt") for attributes in elements.all("img"))
    charts = [a for a in elements.all("svg") if a.get("aria-hidden") != "true"]
    assert len(charts) > 6 and all(a["role"] == "img" and a["aria-label"] for a in charts)
    assert text.count("<label>") == len(elements.all("select", "input"))
    assert all("tabindex" in a for a in elements.all("div", "ol") if "scroll" in a.get("class", ""))


def test_matches_are_told_apart_without_colour(text, report):
    items = [item for one in report.findings.lists for item in one.items]
    rows = text[text.index('id="rank-lists"') : text.index('id="activations"')]
    assert rows.count("✓") == sum(item.match for item in items) > 0
    assert rows.count("✗") == sum(not item.match for item in items) > 0


def test_the_same_report_makes_the_same_page(report, text):
    assert page.render(report) == text


def test_names_cannot_break_the_page():
    evil = "<script>alert(1)</script>"
    points = np.random.default_rng(0).normal(size=(6, 2))
    report = small_report(
        title=evil,
        notes=[evil],
        facts=[(evil, evil)],
        embeddings=[Embedding(evil, points, np.arange(6), [evil] * 6)],
        probes=[Probe(evil, 0.5, 0.5, 0.2)],
    )
    assert evil not in page.render(report)


def test_a_page_that_is_too_large_loses_rank_lists(tmp_path, monkeypatch):
    whole = page.write(tmp_path / "whole.html", small_report())
    monkeypatch.setattr(page, "LARGEST", whole - 1)
    size = page.write(tmp_path / "new" / "less.html", small_report())
    text = (tmp_path / "new" / "less.html").read_text()
    assert size < whole and 0 < text.count("<article") < 8 and "were left out" in text


def test_columns_are_grouped_by_what_they_mean():
    names = ("total", "gid", "learning_rate", "gid_accuracy", "association_purity", "mAP")
    names += ("association_clusters", "association_outlier_share", "grad_norm")
    columns = {name: [1.0] for name in names}
    groups = {title: list(parts) for title, parts, _ in page.grouped(columns)}
    assert groups == {
        "loss": ["total"],
        "parts of the loss": ["gid"],
        "learning rate": ["learning_rate"],
        "label quality": ["association_purity", "association_outlier_share"],
        "clusters and pairs": ["association_clusters"],
        "accuracy of classifiers": ["gid_accuracy"],
        "figures on the test set": ["mAP"],
    }


def test_charts_take_the_colours_of_the_page():
    chart = drawings.line_chart(
        "one", [1, 2], {"a_b": [0.1, None], "c": [None, None]}, label='say "x"', percent=True
    )
    assert chart.startswith('<svg class="chart"') and "currentColor" in chart
    assert "var(--lines)" in chart and drawings.TEXT not in chart and "&quot;x&quot;" in chart
    assert all(name.startswith("one-") for name in re.findall(r'\bid="([^"]+)"', chart))
    assert ">a b<" in chart and "width=" not in chart[: chart.index(">")]


def test_points_know_their_identity_and_camera():
    found = Embedding("t", np.eye(6)[:, :2] * 9, np.arange(6), ["c10", "c2"] * 3)
    cameras = drawings.camera_numbers([found])
    assert cameras == {"c2": 0, "c10": 1}
    svg = drawings.embedding_svg(found, cameras, name="p")
    assert svg.count("<use ") == 6 and svg.count('data-camera="c10"') == 3
    places = np.array(re.findall(r'<use [^>]* x="([\d.-]+)" y="([\d.-]+)"', svg), float)
    assert places.min() >= 0 and places.max() <= 640
    figure = drawings.embedding_figure([found], perplexity=5)
    png, vector = (drawings.saved(figure, form) for form in ("png", "svg"))
    assert png.startswith(b"\x89PNG") and b"perplexity 5" in vector
    assert drawings.saved(figure, "svg") == vector


def test_more_cameras_than_markers_have_hollow_ones():
    assert 'fill="none"' in drawings.marker_svg(8) and 'fill="none"' not in drawings.marker_svg(7)


def test_tsne_is_the_same_again_and_says_what_it_needs():
    x = np.random.default_rng(0).normal(size=(40, 5))
    points = embedding.tsne(x)
    np.testing.assert_array_equal(embedding.tsne(x), points)
    assert np.abs(embedding.tsne(x, perplexity=3) - points).max() > 1e-3
    np.testing.assert_allclose(embedding.tsne(7 * x), points, atol=1e-3)
    assert embedding.perplexity_of(400) == 30 and embedding.perplexity_of(41) == 10
    with pytest.raises(ValueError, match="t-SNE of 5 points"):
        embedding.tsne(x[:5])


def test_a_run_ends_with_its_report(run, caplog):
    caplog.set_level("INFO", "ccafl_jax")
    make.after_training(run)
    assert (run / "report.html").stat().st_size > 100_000
    assert "report: " in caplog.text and "warning" not in caplog.text


@pytest.mark.parametrize("error", [MemoryError(), ImportError("no jinja2"), KeyError("x")])
def test_a_failing_report_is_a_warning_and_leaves_the_old_one(run, monkeypatch, caplog, error):
    def fail(*_, **__):
        raise error

    (run / "report.html").write_text("old")
    monkeypatch.setattr(page, "render", fail)
    make.after_training(run)
    (line,) = [record.getMessage() for record in caplog.records if "warning" in record.getMessage()]
    assert "\n" not in line and f"scripts/report.py --workdir {run}" in line
    assert (run / "report.html").read_text() == "old"
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
