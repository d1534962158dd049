"""What is collected of a run and of an evaluation, and what happens where parts are missing."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ccafl_jax.data.records import RawPart, collect
from ccafl_jax.deploy.evaluate import open_test_set, score
from ccafl_jax.deploy.features import extract
from ccafl_jax.deploy.loading import load_bundle
from ccafl_jax.evaluation import results
from ccafl_jax.report import collect as collecting
from ccafl_jax.report import examine, pictures
from ccafl_jax.scoring.feature_set import feature_set, parts_to_embed
from tests.data.images import encoded
from tests.deploy import tiny
from tests.report.finished import collected, finished_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def report(run):
    return collected(run)


def test_the_summary_holds_every_stage_beside_the_published_figures(report):
    rows = [(row.title, row.kind, row.figures.get("mAP"), row.seconds) for row in report.summary]
    assert rows == [
        ("published", "published", 0.901, None),
        ("zero-shot f", "start", 0.2, None),
        ("after stage 2 (intra)", "trained", 0.4, 60.0),
        ("after stage 3 (inter)", "trained", 0.6, 90.0),
    ]
    assert report.headline is report.summary[-1] and report.notes == []
    assert report.summary[0].note == "not comparable: other data"
    assert report.summary[0].dataset == "market1501"


def test_published_figures_of_the_same_data_are_comparable():
    meta = {"config": {"published": "mAP 58.9, rank-1 82.9, R5=90.7", "published_on": "x"}}
    row = collecting.published_row(meta, "x")
    assert row.note == "" and row.figures == {"mAP": 0.589, "rank1": 0.829, "rank5": 0.907}
    assert collecting.published_row({"config": {}}, "x") is None
    assert collecting.published_row({}, "x") is None


def test_curves_have_a_value_for_each_epoch(report):
    (curves,) = report.curves
    assert curves.stage == "encoder" and list(curves.epochs) == [1, 2, 3]
    assert curves.columns["total"] == [3.0, 2.0, 1.0]
    assert curves.columns["mAP"] == [None, None, 0.6]
    assert not {"epoch", "time", "stage", "dataset"} & set(curves.columns)


def test_probes_and_embeddings_are_those_of_the_snapshots(report):
    assert [p.title for p in report.probes] == [
        "before training (zero-shot)",
        "after stage intra",
        "after stage inter",
    ]
    before, after = report.embeddings
    assert before.points.shape == after.points.shape == (90, 2)
    assert np.array_equal(before.pid, after.pid) and set(after.camera) == {"c1", "c2", "c3"}
    assert report.perplexity == (90 - 1) / 4

    def spread(found):
        """Distances inside identities over those of all points."""
        people = [found.points[found.pid == p] for p in np.unique(found.pid)]
        return np.mean([p.std() for p in people]) / found.points.std()

    assert spread(after) < spread(before)


def test_options_that_differ_come_first(report):
    names = [option.name for option in report.options if option.differs]
    assert sorted(names) == ["data.name", "published", "published_on"]
    assert [option.differs for option in report.options[:4]] == [True, True, True, False]
    shown = {option.name: (option.value, option.default) for option in report.options}
    assert shown["data.name"] == ("market_like", "market1501")
    assert shown["optimizer.milestones"] == ("40, 50", "40, 50")


def test_times_are_told_as_people_do(report):
    assert ("time of the run", "1 h 6 min") in report.facts
    assert [collecting.duration(s) for s in (3.14, 245, 9000)] == [
        "3.1 s",
        "4 min 5 s",
        "2 h 30 min",
    ]


def test_rank_lists_are_those_of_the_evaluation(run, report):
    found = report.findings
    bundle = load_bundle(run)
    features = extract(bundle, open_test_set(bundle))
    evaluation = score(features, top=10)
    assert found.figures["mAP"] == evaluation.figures["mAP"]
    retrieval = evaluation.retrieval()
    best = results.best(retrieval, 1)[0]
    first = found.lists[0]
    assert first.kind == "best" and first.ap == results.rescore(retrieval).ap[best]
    assert first.query.name == retrieval.query_names[best]
    names = [retrieval.gallery_names[item] for item in retrieval.indices[best]]
    assert [item.name for item in first.items] == names
    for one in found.lists:
        assert [item.match for item in one.items] == [
            item.pid == one.query.pid for item in one.items
        ]
    worst = [one.ap for one in found.lists if one.kind == "worst"]
    assert worst == sorted(worst) and len(found.cmc) == 50
    np.testing.assert_allclose(found.cmc[0], evaluation.figures["rank1"])


def test_pictures_are_those_of_the_data_set(run, report):
    query = report.findings.lists[0].query
    with Image.open(io.BytesIO(query.jpeg)) as shown:
        assert shown.size == (64, 128)
        pixels = np.asarray(shown, np.float32)
    with Image.open(run.parent / "market" / query.name) as original:
        expected = np.asarray(original.convert("RGB").resize((64, 128), Image.Resampling.BICUBIC))
    assert np.abs(pixels - expected).mean() < 12  # JPEG
    assert all(item.image and item.overlay for item in report.findings.activations)


def test_no_query_stands_in_two_kinds_of_lists():
    def choose(queries):
        ranks = np.arange(1, queries + 1, dtype=np.int32)
        ends = np.arange(queries + 1)
        empty = np.zeros((queries, 0))
        rules = {"ap": "step", "no_match": "skip", "cmc": "image", "max_rank": 5}
        found = results.Retrieval(
            ranks, ranks, ends, ranks, np.full(queries, 99), empty, empty, empty, rules
        )
        return {kind: rows.tolist() for kind, rows in examine.choose_queries(found, 2).items()}

    assert choose(9) == {"best": [0, 1], "median": [5, 4], "worst": [8, 7]}
    assert choose(2) == {"best": [0], "median": [1], "worst": []}


def test_camera_pairs_have_the_names_of_the_cameras(report):
    pairs = report.findings.camera_pairs
    assert pairs["cameras"] == ["c1", "c2", "c3"] == list(report.findings.cameras)
    assert pairs["worst"]["query"] in pairs["cameras"]
    assert pairs["mAP"][0][0] is None and 0 < pairs["mAP"][0][1] <= 1


def test_what_is_missing_is_said_and_the_rest_is_there(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "snapshots" / "intra.npz").write_bytes(b"PK")
    (other / "metrics.jsonl").unlink()
    report = collected(other, root=str(tmp_path / "gone"))
    text = "\n".join(report.notes)
    assert "no rankings: no folder" in text and "intra.npz is damaged" in text
    assert "no curves: " in text and report.findings is None and report.embeddings == []
    assert len(report.summary) == 4
    with pytest.raises(FileNotFoundError, match=r"no run \(no summary.json\)"):
        collecting.collect_run(tmp_path)


def test_the_findings_of_an_evaluation_become_the_last_row(run, report):
    again = collecting.collect_run(run, findings=report.findings)
    assert again.headline.title == "this evaluation" and again.headline.dataset == "market_like"
    assert again.headline.figures["mAP"] == report.findings.figures["mAP"]
    assert len(again.summary) == 5


def test_features_alone_have_lists_without_images(run):
    bundle = load_bundle(run)
    features = extract(bundle, open_test_set(bundle))
    unknown = dataclasses.replace(features, camid=np.full(len(features), -1))
    assert examine.pairs_of_cameras(unknown, {}) is None
    evaluation = score(features, top=3, rerank=None)
    findings = examine.examine(evaluation)
    assert findings.activations == [] and findings.camera_pairs is None
    assert all(item.jpeg == b"" for item in findings.lists[0].items)
    assert len(findings.lists[0].items) == 3
    report = collecting.collect_evaluation(evaluation, findings, name="f.npz")
    assert report.headline.title == "this evaluation" and ("scored", "f.npz") in report.facts


def test_the_middle_frame_of_a_tracklet_is_shown(tmp_path):
    lengths, rows = (3, 1, 4, 2), []
    for tracklet, length in enumerate(lengths):
        rows += [(tracklet, frame) for frame in range(length)]
    for tracklet, frame in rows:
        shade = np.full((8, 4, 3), 40 * tracklet + 10 * frame, np.uint8)
        (tmp_path / f"{tracklet}_{frame}.png").write_bytes(encoded(shade))

    def part(chosen):
        own = [row for row in rows if row[0] in chosen]
        tracklet, frame = np.array(own).T
        names = [f"{t}_{f}.png" for t, f in own]
        return RawPart(names, tracklet % 2 + 1, tracklet // 2 + 1, tracklet, frame)

    parts = {"train": part((0,)), "query": part((0, 1)), "gallery": part((2, 3))}
    collection = collect("mars", tmp_path, parts)
    embedded = parts_to_embed(collection)
    features = feature_set(
        embedded, np.eye(4), dataset="mars", camera_codes=collection.camera_codes
    )
    images = pictures.TestImages(features, collection)
    shades = images.pixels([0, 1, 2, 3], height=8, width=4)[:, 0, 0, 0]
    assert shades.tolist() == [10, 40, 100, 130]
    with pytest.raises(ValueError, match="extract them again"):
        pictures.TestImages(features.take(np.arange(3)), collection)


@pytest.mark.parametrize(("kind", "shape"), [("resnet", (2, 1)), ("vit", (5, 2))])
def test_activation_maps_are_the_lengths_of_the_last_features(kind, shape):
    bundle, pixels = tiny.bundle(kind), tiny.pixels(3)
    cameras = tiny.cameras_of(bundle, 3)
    found = pictures.activation_maps(bundle, pixels, cameras)
    assert found.shape == (3, *shape) and found.min() > 0
    other = pictures.activation_maps(bundle, 255 - pixels, cameras)
    assert np.abs(other - found).max() > 1e-3
    if cameras is not None:  # which the class token hands on to the patches
        moved = pictures.activation_maps(bundle, pixels, (cameras + 1) % tiny.CAMERAS)
        assert np.abs(moved - found).max() > 1e-6


def test_an_overlay_is_bright_where_the_activation_is_high():
    pixels = np.full((40, 20, 3), 100, np.uint8)
    activation = np.zeros((4, 2))
    activation[0] = 1
    shown = pictures.overlay(pixels, activation).astype(int)
    assert shown.shape == pixels.shape and shown[0].sum() > 2 * shown[-1].sum()
    flat = pictures.overlay(pixels, np.ones((4, 2)))
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1


def test_the_log_may_hold_several_stages(tmp_path):
    lines = [{"stage": s, "epoch": e, "loss": e} for s, e in (("a", 0), ("b", 0), ("a", 1))]
    (tmp_path / "m").write_text("\n".join(map(json.dumps, lines)))
    first, second = collecting.read_curves(tmp_path / "m")
    assert (first.stage, list(first.epochs)) == ("a", [1, 2]) and second.stage == "b"
