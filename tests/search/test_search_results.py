import html.parser
import re

import numpy as np
import pytest
from PIL import Image

from ccafl_jax.evaluation.open_set import Threshold
from ccafl_jax.scoring.feature_set import FeatureSet
from ccafl_jax.search import build, results

NAMES = ["<b>&\"x'.png", "line\nbreak.png", "ü/gone.png"]


def threshold(value, model="a" * 64, metric="cosine"):
    return Threshold(
        value=float(np.float32(value)),
        metric=metric,
        rule="fpr",
        target=0.5,
        false_rate=0.5,
        miss_rate=0.0,
        resolution=0.5,
        positives=2,
        negatives=2,
        rank=None,
        model=model,
        data="d",
        dataset="",
        protocol="market1501",
    )


@pytest.fixture
def searched(tmp_path):
    """Two queries and three images, of which two have a picture."""
    for name, colour in zip(NAMES[:2], ("red", "blue"), strict=True):
        Image.new("RGB", (20, 60), colour).save(tmp_path / name)
    Image.new("RGB", (300, 100), "green").save(tmp_path / "q <1>.png")
    angles = np.array([0.0, 0.5, 1.4])
    index = build(
        FeatureSet(
            dataset="",
            features=np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32),
            pid=np.array([7, -1, -2]),
            camid=np.array([0, 1, -1]),
            part=np.ones(3, np.int8),
            names=np.array(NAMES),
            camera_codes=(3, 8),
            meta={"fingerprint": "a" * 64, "root": str(tmp_path)},
        )
    )
    query = np.array([[1.0, 0.0], [-1.0, -0.1]], np.float32)
    found = index.search(query, 3)
    assert found.indices.tolist() == [[0, 1, 2], [2, 1, 0]]

    def put_together(**options):
        names = ["q <1>.png", "q2.png"]
        return results.results(names, found, index, query_root=str(tmp_path), **options)

    return put_together


def test_a_table(searched):
    lines = results.table(searched(), limit=9).splitlines()
    assert lines[0] == "q <1>.png" and lines[4] == "q2.png" and len(lines) == 8
    assert lines[1] == f"   1   1.0000  {NAMES[0]}  identity 7, camera 3"
    assert lines[2] == "   2   0.8776  line\\nbreak.png  camera 8"
    assert lines[3] == "   3   0.1700  ü/gone.png"
    cut = results.table(searched(), limit=1).splitlines()
    assert cut[:4] == lines[:4] and cut[4:] == ["... and 1 more queries"]


def test_a_threshold_answers_none(searched):
    found = searched(threshold=threshold(0.5))
    assert found.accepted.tolist() == [2, 0] and found.none == 1
    lines = results.table(found, limit=9).splitlines()
    assert len(lines) == 5
    assert lines[4] == "  none (best -0.2672 ü/gone.png, below 0.5000)"
    said = results.as_json(found)
    assert [len(query["hits"]) for query in said["queries"]] == [2, 0]
    first = said["queries"][0]["hits"][0]
    assert (first["name"], first["pid"], first["camera"], first["row"]) == (NAMES[0], 7, 3, 0)
    assert said["queries"][0]["hits"][1]["pid"] is None
    assert searched(threshold=threshold(-1)).accepted.tolist() == [3, 3]
    exact = float(found.found.scores[0, 1])
    assert searched(threshold=threshold(exact)).accepted.tolist() == [2, 0]  # at it counts
    for other, message in (
        (threshold(0.5, model="b" * 64), "made for model b"),
        (threshold(0.5, metric="dot"), "one of metric dot"),
    ):
        with pytest.raises(ValueError, match=message):
            searched(threshold=other)


class Reader(html.parser.HTMLParser):
    """Tags, texts and sources of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.sources = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_stands_alone_and_escapes_names(searched):
    text, missing = results.page(searched(threshold=threshold(0.5)), limit=9, title="a <i> b")
    assert missing == 2  # a query and an image, each counted once
    reader = Reader()
    reader.feed(text)
    assert "b" not in reader.tags and "i" not in reader.tags
    assert NAMES[0] in reader.texts and "a <i> b" in reader.texts
    assert any("line\\nbreak.png" in words for words in reader.texts)
    assert reader.sources and all(s.startswith("data:image/jpeg;base64,") for s in reader.sources)
    assert not re.search(r"https?://|<script|url\(", text)
    assert text.count('class="refused"') == 4 and text.count(">none<") == 1
    assert reader.tags.count("section") == 2 and reader.tags.count("figure") == 8
    short, _ = results.page(searched(), limit=1)
    assert short.count("<section>") == 1 and "the first 1 queries" in short


def test_a_sheet(searched, tmp_path):
    for name in ("s.png", "s.jpg"):
        missing = results.contact_sheet(searched(), tmp_path / name, limit=9)
        assert missing == 3  # the query without a picture, and one image in both rows
        with Image.open(tmp_path / name) as sheet:
            plain = np.asarray(sheet.convert("RGB")).astype(int)
    red = (plain[..., 0] > 200) & (plain[..., 1:].max(axis=2) < 80)
    assert red.sum() > 1000
    results.contact_sheet(searched(threshold=threshold(0.5)), tmp_path / "t.png", limit=9)
    dimmed = np.asarray(Image.open(tmp_path / "t.png")).astype(int)
    still_red = (dimmed[..., 0] > 200) & (dimmed[..., 1:].max(axis=2) < 80)
    assert 0 < still_red.sum() < 0.6 * red.sum()  # the second row is not accepted
    results.contact_sheet(searched(), tmp_path / "one.png", limit=1)
    assert Image.open(tmp_path / "one.png").height < 0.6 * plain.shape[0]
    with pytest.raises(ValueError, match=r"must end in \.png"):
        results.contact_sheet(searched(), tmp_path / "s.gif", limit=9)


def test_a_sheet_that_is_too_large(searched, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_LARGEST_SHEET", 200)
    with pytest.raises(ValueError, match=r"show fewer \(--limit, --top\)"):
        results.contact_sheet(searched(), tmp_path / "s.png", limit=9)
    assert list(tmp_path.glob("s.png")) == []
