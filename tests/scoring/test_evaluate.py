import dataclasses
import itertools
import json
import statistics

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from ccafl_jax.data.opening import open_collection
from ccafl_jax.data.records import Collection
from ccafl_jax.evaluation.protocols import Protocol, protocol_of
from ccafl_jax.evaluation.ranking import rank, rank_scores
from ccafl_jax.evaluation.results import rescore
from ccafl_jax.scoring import evaluate as module
from ccafl_jax.scoring.evaluate import evaluate
from ccafl_jax.scoring.feature_set import (
    DISTRACTOR,
    GALLERY,
    MULTI_QUERY,
    QUERY,
    feature_set,
    load,
    parts_to_embed,
)
from ccafl_jax.scoring.scores import Expand, Rerank
from ccafl_jax.scoring.settings import Settings, check_options
from data_prep import synthetic
from tests.golden_data import golden
from tests.scoring.made import DIM, made_set, market, visible_infrared


def sides(found):
    query, gallery = found.rows(QUERY), found.rows(GALLERY)
    return [
        column[rows]
        for column in (found.features, found.pid, found.camid)
        for rows in (query, gallery)
    ]


def oracle(query, gallery, query_pid, gallery_pid, query_camid, gallery_camid):
    """mAP, rank-1 and mINP by sorting each list."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)]
    ap, first, inp = [], [], []
    for q, row in enumerate(unit[0]):
        order = np.argsort(-(unit[1] @ row), kind="stable")
        own = (gallery_pid == query_pid[q]) & (gallery_camid == query_camid[q])
        order = [g for g in order if gallery_pid[g] != -1 and not own[g]]
        hits = np.flatnonzero(gallery_pid[order] == query_pid[q]) + 1
        if hits.size:
            ap.append(np.mean(np.arange(1, len(hits) + 1) / hits))
            first.append(hits[0] == 1)
            inp.append(len(hits) / hits[-1])
    return np.mean(ap), np.mean(first), np.mean(inp)


# One set.


def test_market_by_sorting():
    found = market()
    figures = evaluate(found).figures
    expected = oracle(*sides(found))
    actual = [figures[name] for name in ("mAP", "rank1", "mINP")]
    np.testing.assert_allclose(actual, expected, atol=1e-12)
    summary = rank(*sides(found)).summary()
    assert {key: figures[key] for key in summary} == summary
    assert not any(key.endswith("_std") for key in figures)


def test_figures_name_every_rule():
    found = market(meta={"feature": "f", "flip": False, "trained_on": "msmt17"})
    figures = evaluate(found, rerank=Rerank(k1=5, k2=2)).figures
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["dataset"] == figures["protocol"] == "market1501"
    assert figures["trained_on"] == "msmt17"
    expected = {
        "protocol": "market1501",
        "same_camera": "identity",
        "metric": "cosine",
        "ap": "step",
        "no_match": "skip",
        "cmc": "image",
        "junk": [-1, -2],
        "query_in_gallery": False,
        "feature": "f",
        "flip": False,
        "rerank": {"k1": 5, "k2": 2, "lambda_": 0.3, "distance": "squared"},
        "expand": None,
        "multi_query": None,
        "tracks": False,
        "distractors": False,
        "published_lists": "ignore",
        "trials": 1,
        "sets": 1,
        "splits": None,
        "orientation": None,
    }
    assert expected.items() <= figures["rules"].items()
    assert figures["warnings"] == []


def test_counts():
    found = market()
    counts = evaluate(found, distractors=True).figures["counts"]
    gallery = found.pid[found.part == GALLERY]
    assert counts["queries"] == 20 and counts["distractors_joined"] == 12
    assert counts["junk_dropped"] == np.sum(gallery == -1) > 0
    assert counts["gallery"] == np.sum(gallery != -1) + 12
    strangers = np.sum(~np.isin(gallery[gallery != -1], found.pid[found.part == QUERY]))
    assert counts["gallery_of_ids_without_query"] == strangers + 12


OPTIONS = {
    "metric": {"metric": "dot"},
    "euclidean": {"metric": "euclidean"},
    "ap": {"ap": "trapezoid"},
    "same_camera": {"same_camera": "none"},
    "location": {"same_camera": "location"},
    "junk": {"junk": ()},
    "query_in_gallery": {"query_in_gallery": True},
    "rerank": {"rerank": Rerank(k1=6, k2=3)},
    "k1": {"rerank": Rerank(k1=12, k2=3)},
    "k2": {"rerank": Rerank(k1=6, k2=1)},
    "lambda": {"rerank": Rerank(k1=6, k2=3, lambda_=0.9)},
    "distance": {"rerank": Rerank(k1=6, k2=3, lambda_=0.9, distance="squared_twice")},
    "expand": {"expand": Expand(k=4)},
    "k": {"expand": Expand(k=9)},
    "alpha": {"expand": Expand(k=4, alpha=3.0)},
    "expand gallery": {"expand": Expand(k=4, gallery=True)},
    "expand and rerank": {"expand": Expand(k=4), "rerank": Rerank(k1=6, k2=3)},
    "mean": {"multi_query": "mean"},
    "max": {"multi_query": "max"},
    "distractors": {"distractors": True},
    "no_match": {"no_match": "zero"},
}


def test_every_option_changes_the_figures():
    found = market()
    # One more identity, without a match.
    alone = found.rows(QUERY)[0]
    found = dataclasses.replace(found, pid=np.where(np.arange(len(found)) == alone, 50, found.pid))
    # Distractors that are near the queries.
    features = found.features.copy()
    features[found.part == DISTRACTOR] = 1.02 * features[:12]
    found = dataclasses.replace(found, features=features)
    by_option = {"": evaluate(found).figures["mAP"]}
    for name, options in OPTIONS.items():
        by_option[name] = evaluate(found, **options).figures["mAP"]
    assert len(set(by_option.values())) == len(by_option), by_option


ELSEWHERE = {
    "tracks": "test_tracks_by_hand",
    "published_lists": "test_published_lists_that_differ",
    "bootstrap": "test_intervals",
    "camera_pairs": "test_camera_pairs",
    "top": "test_options_that_keep_the_map",
    "engine": "test_engine_and_mesh_reach_the_ranking",
    "mesh": "test_engine_and_mesh_reach_the_ranking",
    "progress": "test_bars_are_shown_if_asked_for",
    "name": "test_protocols_by_name_and_by_hand",
    "note": "test_protocols_by_name_and_by_hand",
    "locations": "test_camera_pairs_go_by_the_rules_of_the_protocol",
    "cameras": "test_cameras_of_own_sides_have_the_codes_of_the_set",
    "cmc": "test_options_that_keep_the_map",
    "max_rank": "test_options_that_keep_the_map",
    "figures": "test_options_that_keep_the_map",
    "trial": "test_means_over_draws",
    "trials": "test_options_of_draws_change_figures",
    "mode": "test_options_of_draws_change_figures",
    "shots": "test_options_of_draws_change_figures",
    "draw": "test_options_of_draws_change_figures",
    "direction": "test_directions_change_figures",
}
"""The tests of options that do not change the mAP of an image set."""


def test_no_option_is_forgotten():
    changed = {key for options in OPTIONS.values() for key in options}
    fields = {field.name for kind in (Settings, Protocol) for field in dataclasses.fields(kind)}
    assert fields == changed | set(ELSEWHERE)
    for kind, option in ((Rerank, "rerank"), (Expand, "expand")):
        values = [options[option] for options in OPTIONS.values() if option in options]
        for field in dataclasses.fields(kind):
            assert len({getattr(value, field.name) for value in values}) > 1, field.name
    assert [name for name in ELSEWHERE.values() if name not in globals()] == []


def test_bars_are_shown_if_asked_for(capsys):
    for progress in (False, True):
        evaluate(market(), progress=progress, rerank=Rerank(k1=6, k2=3))
        assert ("ranking" in capsys.readouterr().err) == progress


def test_directions_change_figures():
    found = visible_infrared(dataset="regdb")
    ways = [{"direction": way} for way in ("visible_to_thermal", "thermal_to_visible")]
    assert len({evaluate(found, **way).figures["mAP"] for way in ways}) == 2


def test_options_that_keep_the_map():
    found = market()
    plain = evaluate(found)
    top = evaluate(found, top=3)
    assert plain.scored[0].ranking.top is None
    assert top.scored[0].ranking.top.indices.shape == (20, 3)
    assert top.figures == plain.figures
    collapsed = evaluate(found, cmc="identity").figures
    assert collapsed["mAP"] == plain.figures["mAP"]
    assert collapsed["rank5"] != plain.figures["rank5"]
    short = evaluate(found, figures=("mAP", "rank3"), max_rank=3).figures
    assert "rank1" not in short and short["rank3"] >= plain.figures["rank1"]
    mesh = Mesh(np.array(jax.local_devices()[:1]), ("data",))
    for options in ({"engine": "device"}, {"mesh": mesh}):
        assert evaluate(found, **options).figures == plain.figures


def test_engine_and_mesh_reach_the_ranking(monkeypatch):
    given = {}

    def watch(name):
        original = getattr(module, name)

        def watched(*arguments, **options):
            given[name] = (options["engine"], options["mesh"])
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, watched)

    watch("rank_by")
    watch("map_by_camera_pair")
    mesh = Mesh(np.array(jax.local_devices()[:1]), ("data",))
    for engine, devices in (("host", None), ("device", mesh), ("auto", mesh)):
        evaluate(market(), engine=engine, mesh=devices, camera_pairs=True)
        assert set(given.values()) == {(engine, devices)} and len(given) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "gpu"}, "engine is 'gpu', must be one of auto, host, device"),
        ({"engine": "host", "mesh": "data"}, "with engine 'host' all is ranked on the host: leave"),
        (
            {"mesh": "data", "rerank": Rerank()},
            "but re-ranked scores are ranked on the host: leave",
        ),
        ({"mesh": "data", "tracks": True}, "but tracks are ranked on the host: leave mesh out"),
        (
            {"engine": "device", "rerank": Rerank()},
            "re-ranked scores are ranked on the host: leave",
        ),
        ({"engine": "device", "tracks": True}, "tracks are ranked on the host: leave engine out"),
        ({"mesh": "batch"}, "the mesh has the axes 'batch'; expected 'data'"),
        ({"tracks": True, "distractors": True}, "distractors are in no track: use one of the two"),
    ],
)
def test_options_without_an_effect_are_refused(options, message):
    if "mesh" in options:
        options = options | {"mesh": Mesh(np.array(jax.local_devices()[:1]), (options["mesh"],))}
    with pytest.raises(ValueError, match=message) as error:
        evaluate(market(), **options)
    assert "\n" not in str(error.value)
    for engine in ("auto", "host"):
        assert evaluate(market(), engine=engine, rerank=Rerank(k1=5, k2=2)).figures["mAP"] > 0


def test_protocols_by_name_and_by_hand():
    found = market()
    plain = evaluate(found).figures
    assert evaluate(found, protocol="personx").figures["mAP"] == plain["mAP"]
    without = evaluate(found, protocol="no_cameras").figures
    assert without["mAP"] != plain["mAP"] and without["protocol"] == "no_cameras"
    mine = Protocol("mine", same_camera="none", ap="trapezoid", figures=("mAP",))
    figures = evaluate(found, protocol=mine).figures
    assert figures["protocol"] == "mine" and figures["mAP"] != without["mAP"]
    assert figures["mAP"] == evaluate(found, protocol="no_cameras", ap="trapezoid").figures["mAP"]


def test_intervals():
    found = market()
    evaluation = evaluate(found, bootstrap=200)
    intervals = evaluation.figures["intervals"]
    assert set(intervals) == set(protocol_of("market1501").figures)
    for name, interval in intervals.items():
        assert interval["value"] == pytest.approx(evaluation.figures[name], abs=1e-12)
        assert interval["low"] <= interval["value"] <= interval["high"]
        assert interval["samples"] == 200
    assert intervals["mAP"]["low"] < intervals["mAP"]["high"]
    assert "intervals" not in evaluate(found).figures


def test_camera_pairs():
    found = market(camera_codes=(4, 7, 9))
    pairs = evaluate(found, camera_pairs=True).figures["camera_pairs"]
    assert pairs["cameras"] == [4, 7, 9]
    query, gallery, query_pid, gallery_pid, query_camid, gallery_camid = sides(found)
    rows, columns = query_camid == 0, (gallery_camid == 1) & (gallery_pid != -1)
    expected = oracle(
        query[rows],
        gallery[columns],
        query_pid[rows],
        gallery_pid[columns],
        query_camid[rows],
        gallery_camid[columns],
    )
    assert pairs["mAP"][0][1] == pytest.approx(expected[0], abs=1e-12)
    assert pairs["mAP"][0][0] is None
    assert "camera_pairs" not in evaluate(found).figures


def test_camera_pairs_go_by_the_rules_of_the_protocol():
    pairs = {}
    for name, options in {
        "": {},
        "same_camera": {"same_camera": "location"},
        "locations": {"same_camera": "location", "locations": ((2, 1),)},
        "junk": {"junk": (-1, -2, 3)},
        "no junk": {"junk": ()},
        "ap": {"ap": "trapezoid"},
    }.items():
        pairs[name] = evaluate(market(), camera_pairs=True, **options).figures["camera_pairs"][
            "mAP"
        ]
    different = [pairs[name] for name in ("", "junk", "no junk", "ap")]
    assert all(one != other for one, other in itertools.combinations(different, 2))
    across = [(row, column) for row in range(3) for column in range(3) if row != column]
    assert all(pairs["same_camera"][row][column] is not None for row, column in across)
    one_place = {(0, 1), (1, 0)}
    assert {p for p in across if pairs["locations"][p[0]][p[1]] is None} == one_place


def test_intervals_count_queries_without_a_match_as_the_figures_do():
    found = market()
    alone = found.rows(QUERY)[0]
    found = dataclasses.replace(found, pid=np.where(np.arange(len(found)) == alone, 50, found.pid))
    interval = {}
    for no_match in ("skip", "zero"):
        figures = evaluate(found, bootstrap=100, no_match=no_match).figures
        interval[no_match] = figures["intervals"]["mAP"]
        assert interval[no_match]["value"] == pytest.approx(figures["mAP"], abs=1e-12)
        assert interval[no_match]["queries"] == figures["queries"]
    assert interval["zero"]["queries"] == interval["skip"]["queries"] + 1


# Distractors that are joined.


def people_and_distractors(number, *, seed=0):
    """People 0 and 1, seen by two cameras, and 30 images of nobody that are named `number`."""
    rng = np.random.default_rng(seed)
    part = np.repeat([QUERY, GALLERY, DISTRACTOR], [10, 24, 30])
    pid = np.where(part == QUERY, np.arange(64) // 5, rng.integers(0, 2, 64)) % 2
    features = rng.standard_normal((2, DIM))[pid] + rng.standard_normal((64, DIM))
    return made_set(
        np.where(part == DISTRACTOR, number, pid),
        np.select([part == QUERY, part == GALLERY], [0, 1], -1),
        part,
        dataset="market_like",
        features=features.astype(np.float32),
    )


@pytest.mark.parametrize("cmc", ["image", "identity"])
@pytest.mark.parametrize("published", ["ignore", "check"])
def test_joined_distractors_match_nobody_and_are_no_junk(cmc, published):
    tables = {"gt.query": np.arange(10), "gt.good.offsets": np.arange(11)}
    tables |= {"gt.good.values": np.arange(10)}
    figures = {}
    for number in (900, 0, 1, -1, -2):
        found = dataclasses.replace(people_and_distractors(number), tables=tables)
        evaluation = evaluate(
            found, distractors=True, cmc=cmc, camera_pairs=True, published_lists=published, top=54
        )
        figures[number] = evaluation.figures
        ranking = evaluation.scored[0].ranking
        assert np.all(ranking.candidates == 54) and figures[number]["warnings"] == []
        kept = evaluation.retrieval()
        shown = kept.query_pid[:, None] == kept.gallery_pid[kept.indices]
        np.testing.assert_array_equal(kept.matches, shown)
    assert all(other == figures[900] for other in figures.values())
    counts = figures[0]["counts"]
    assert counts["distractors_joined"] == 30 == counts["gallery_of_ids_without_query"]
    assert counts["junk_dropped"] == 0 and counts["gallery"] == 54
    assert figures[0]["mAP"] < evaluate(people_and_distractors(0), cmc=cmc).figures["mAP"]


def test_joined_distractors_by_hand():
    found = people_and_distractors(0)
    query, _, query_pid, _, query_camid, _ = sides(found)
    rest = found.part != QUERY
    gallery_pid = np.where(found.part == DISTRACTOR, 900, found.pid)[rest]
    labels = (query_pid, gallery_pid, query_camid, found.camid[rest])
    expected = oracle(query, found.features[rest], *labels)
    figures = evaluate(found, distractors=True).figures
    assert figures["mAP"] == pytest.approx(expected[0], abs=1e-12)


# Saved results.


def test_retrieval_is_the_ranking_with_names():
    found = market()
    evaluation = evaluate(found, top=5, rerank=Rerank(k1=6, k2=3))
    kept = evaluation.retrieval()
    again = rescore(kept)
    assert again.mAP == evaluation.figures["mAP"]
    assert kept.query_names.tolist() == found.names[found.rows(QUERY)].tolist()
    trial = evaluation.scored[0]
    np.testing.assert_array_equal(kept.gallery_pid, found.pid[trial.gallery])
    best = kept.gallery_names[kept.indices[0, 0]]
    assert found.pid[found.names == best][0] != -1
    for rule in ("protocol", "same_camera", "rerank", "dataset", "trial_name", "feature_metric"):
        assert rule in kept.rules


# Cameras that are not known.


def test_sets_without_cameras(tmp_path):
    found = market()
    query, gallery, query_pid, gallery_pid, query_camid, gallery_camid = sides(found)
    arrays = {"query_f": query, "gallery_f": gallery}
    arrays |= {"query_pid": query_pid, "gallery_pid": gallery_pid}
    np.savez(tmp_path / "plain.npz", **arrays)
    plain = evaluate(load(tmp_path / "plain.npz")).figures
    assert plain["protocol"] == "no_cameras" and plain["rules"]["same_camera"] == "none"
    assert "nothing is left out but the query image itself" in plain["warnings"][0]
    expected = oracle(
        query, gallery, query_pid, gallery_pid, np.full(20, -1), np.full(len(gallery), -2)
    )
    assert plain["mAP"] == pytest.approx(expected[0], abs=1e-12)
    # A data set keeps its other rules.
    unknown = np.full(len(found), -1, np.int32)
    video = evaluate(dataclasses.replace(found, camid=unknown, dataset="mars")).figures
    assert video["protocol"] == "no_cameras" and video["rules"]["query_in_gallery"]
    np.savez(
        tmp_path / "cameras.npz", **arrays, query_camid=query_camid, gallery_camid=gallery_camid
    )
    full = evaluate(load(tmp_path / "cameras.npz")).figures
    assert full["protocol"] == "manifest" and full["warnings"] == []
    assert full["mAP"] == evaluate(found).figures["mAP"] != plain["mAP"]
    asked = evaluate(load(tmp_path / "plain.npz"), protocol="market1501").figures
    assert asked["warnings"] == ["no camera is known: the camera rule of market1501 has no effect"]


def test_a_query_does_not_find_itself_without_cameras():
    # The copy in the gallery would be the first match.
    found = made_set(
        [1, 1, 2, 1],
        [-1] * 4,
        [QUERY, GALLERY, GALLERY, GALLERY],
        names=["a", "a", "b", "c"],
        features=np.float32([[1, 0], [1, 0], [0.9, 0.1], [0, 1]]),
        camera_codes=(),
    )
    assert evaluate(found).figures["mAP"] == 0.5
    renamed = dataclasses.replace(found, names=np.array(["x", "a", "b", "c"]))
    assert evaluate(renamed).figures["mAP"] == pytest.approx((1 + 2 / 3) / 2)


def test_some_unknown_cameras_are_said():
    found = market()
    camid = found.camid.copy()
    camid[:3] = -1
    warnings = evaluate(dataclasses.replace(found, camid=camid)).figures["warnings"]
    assert warnings == [
        "3 queries and 0 gallery images of their identities have no known camera: for these the "
        "camera rule has no effect"
    ]


# Several trials and sets.


def test_means_over_draws():
    found = visible_infrared()
    evaluation = evaluate(found)
    maps = [one["mAP"] for one in evaluation.per_trial]
    assert len(maps) == 10 and len(set(maps)) > 1
    figures = evaluation.figures
    assert figures["mAP"] == statistics.fmean(maps)
    assert figures["mAP_std"] == statistics.stdev(maps) and figures["std_over"] == "trials"
    assert figures["rank20"] == statistics.fmean(one["rank20"] for one in evaluation.per_trial)
    assert figures["queries"] == 64 and figures["rules"]["trials"] == 10
    expected = {"mode": "all", "shots": 1, "draw": "seeded", "cmc": "identity"}
    assert expected.items() <= figures["rules"].items()
    assert evaluation.per_trial[3]["trial"] == "draw 3"


def test_one_draw_by_hand():
    found = visible_infrared()
    evaluation = evaluate(found, trials=1)
    assert "mAP_std" not in evaluation.figures
    one = evaluation.scored[0]
    q, g = one.query, one.gallery
    unit = found.features / np.linalg.norm(found.features, axis=1, keepdims=True)
    codes = np.array(found.camera_codes)[found.camid]
    places, ap = [], []
    for row in q:
        kept = g[(codes[row] != 3) | (codes[g] != 2)]
        order = kept[np.argsort(-(unit[kept] @ unit[row]), kind="stable")]
        hits = np.flatnonzero(found.pid[order] == found.pid[row]) + 1
        ap.append(np.mean(np.arange(1, len(hits) + 1) / hits))
        first_of = list(dict.fromkeys(found.pid[order].tolist()))
        places.append(1 + first_of.index(found.pid[row]))
    assert evaluation.figures["mAP"] == pytest.approx(np.mean(ap), abs=1e-12)
    for k in (1, 5, 10, 20):
        assert evaluation.figures[f"rank{k}"] == np.mean(np.array(places) <= k)


def test_options_of_draws_change_figures():
    found = visible_infrared()
    changes = [{}, {"mode": "indoor"}, {"shots": 3}, {"same_camera": "none"}, {"trials": 4}]
    maps = [evaluate(found, **options).figures["mAP"] for options in changes]
    assert len(set(maps)) == len(maps)
    assert evaluate(found, protocol="sysumm01_indoor").figures["mAP"] == maps[1]


def test_intervals_over_draws():
    evaluation = evaluate(visible_infrared(), bootstrap=100, trials=3)
    interval = evaluation.figures["intervals"]["mAP"]
    assert interval["value"] == pytest.approx(evaluation.figures["mAP"], abs=1e-12)
    assert interval["identities"] == 8


def test_means_over_models():
    sets = [visible_infrared(seed=s, dataset="regdb", meta={"split": s}) for s in range(1, 4)]
    evaluation = evaluate(sets)
    maps = [evaluate(one).figures["mAP"] for one in sets]
    figures = evaluation.figures
    assert figures["mAP"] == pytest.approx(statistics.fmean(maps), abs=1e-15)
    assert figures["mAP_std"] == pytest.approx(statistics.stdev(maps), abs=1e-15)
    assert figures["std_over"] == "sets" and figures["rules"]["splits"] == [1, 2, 3]
    assert figures["queries"] == 3 * 128
    assert [one["trial"] for one in evaluation.per_trial][1] == "split 2, visible_to_thermal"
    other = evaluate(sets, direction="thermal_to_visible").figures
    assert other["mAP"] != figures["mAP"] and other["queries"] == 3 * 64
    assert other["rules"]["direction"] == "thermal_to_visible"


def test_means_over_draws_of_several_models():
    sets = [visible_infrared(seed=s) for s in range(2)]
    figures = evaluate(sets, trials=3).figures
    own = [evaluate(one, trials=3).figures["mAP"] for one in sets]
    assert figures["mAP"] == pytest.approx(statistics.fmean(own), abs=1e-15)
    assert figures["mAP_std"] == pytest.approx(statistics.stdev(own), abs=1e-15)
    assert figures["queries"] == 2 * 64


def test_ilidsvid_reports_the_cmc_alone():
    meta = {"split": 1, "orientation": "standard"}
    parts = [QUERY] * 6 + [GALLERY] * 6
    found = made_set([*range(6)] * 2, [0] * 6 + [1] * 6, parts, dataset="ilidsvid", meta=meta)
    figures = evaluate(found).figures
    assert {"rank1", "rank5", "rank10", "rank20"} <= set(figures) and "mAP" not in figures
    assert figures["rules"]["orientation"] == "standard" and figures["rules"]["splits"] == [1]
    turned = dataclasses.replace(found, meta={"split": 2, "orientation": "tfclip"})
    with pytest.raises(ValueError, match="orientation is 'standard' in one set and 'tfclip' in"):
        evaluate([found, turned])


def test_published_video_figures():
    data = golden("evaluation", "tfclip")
    count, total = int(data["in/num_query"]), len(data["in/pids"])
    found = made_set(
        data["in/pids"],
        data["in/camids"],
        np.where(np.arange(total) < count, QUERY, GALLERY),
        dataset="mars",
        features=data["in/feats"],
    )
    evaluation = evaluate(found)
    np.testing.assert_allclose(evaluation.figures["mAP"], data["out/mAP"], atol=1e-9)
    np.testing.assert_allclose(evaluation.scored[0].ranking.cmc, data["out/cmc"], atol=1e-6)
    reranked = evaluate(found, rerank=Rerank(k1=20, k2=6, lambda_=0.3)).figures
    np.testing.assert_allclose(reranked["mAP"], data["out/rerank_mAP"], atol=1.5e-2)
    without = evaluate(found, query_in_gallery=False).figures
    assert without["mAP"] != evaluation.figures["mAP"]


# Pooled queries, tracks and lists.


def test_pooled_queries_by_hand():
    found = market()
    query, gallery, query_pid, gallery_pid, query_camid, gallery_camid = sides(found)
    extra = found.rows(MULTI_QUERY)
    for pool, metric in (("mean", "cosine"), ("max", "cosine"), ("mean", "dot")):
        pooled, without = [], 0
        for row in range(len(query)):
            own = extra[
                (found.pid[extra] == query_pid[row]) & (found.camid[extra] == query_camid[row])
            ]
            images = found.features[own] if len(own) else query[row : row + 1]
            if metric == "cosine":
                images = images / np.linalg.norm(images, axis=1, keepdims=True)
            without += not len(own)
            pooled.append(getattr(images, pool)(axis=0))
        labels = (query_pid, gallery_pid, query_camid, gallery_camid)
        expected = rank(np.array(pooled), gallery, *labels, metric=metric).mAP
        figures = evaluate(found, multi_query=pool, metric=metric).figures
        assert figures["mAP"] == pytest.approx(expected, abs=1e-12)
        assert 0 < without < 20
        assert figures["counts"]["queries_without_multi_query"] == without


def test_queries_of_an_unknown_camera_are_not_pooled():
    found = market()
    unknown = np.where(np.isin(found.part, (QUERY, MULTI_QUERY)), -1, found.camid)
    found = dataclasses.replace(found, camid=unknown)
    plain, pooled = (evaluate(found, multi_query=pool).figures for pool in (None, "mean"))
    assert pooled["counts"]["queries_without_multi_query"] == 20
    assert pooled["counts"]["multi_query_images"] == 0
    assert pooled["mAP"] == pytest.approx(plain["mAP"], abs=1e-12)
    half = np.where(np.arange(len(found)) % 2 == 0, -1, market().camid)
    some = evaluate(dataclasses.replace(found, camid=half), multi_query="mean").figures
    assert 10 <= some["counts"]["queries_without_multi_query"] < 20


@pytest.fixture(scope="module")
def veri(tmp_path_factory):
    root = tmp_path_factory.mktemp("veri")
    config = synthetic.layout_of("veri776").config(
        seed=3, height=32, width=16, train_ids=2, test_ids=6
    )
    synthetic.write_layout(root / "set", "veri776", config)
    collection = open_collection("veri776", root / "set")
    parts = parts_to_embed(collection)
    features = np.random.default_rng(0).standard_normal((sum(map(len, parts.values())), DIM))
    return feature_set(
        parts,
        features,
        dataset="veri776",
        camera_codes=collection.camera_codes,
        tables=collection.tables,
    )


def test_tracks_by_hand(veri):
    query, gallery, query_pid, gallery_pid, query_camid, gallery_camid = sides(veri)
    offsets, values = veri.tables["track.offsets"], veri.tables["track.values"]
    tracks = [values[a:b] for a, b in itertools.pairwise(offsets)]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)]
    best = np.stack([(unit[0] @ unit[1][track].T).max(axis=1) for track in tracks], axis=1)
    first = [track[0] for track in tracks]
    labels = (query_pid, gallery_pid[first], query_camid, gallery_camid[first])
    expected = rank_scores(best, *labels)
    figures = evaluate(veri, tracks=True).figures
    assert figures["mAP"] == pytest.approx(expected.mAP, abs=1e-12)
    assert figures["mAP"] != evaluate(veri).figures["mAP"]
    assert figures["counts"]["tracks"] == figures["counts"]["gallery"] == len(tracks)
    assert figures["counts"]["images_in_no_track"] == 0
    reranked = evaluate(veri, tracks=True, rerank=Rerank(k1=6, k2=3)).figures
    assert reranked["mAP"] != figures["mAP"]
    kept = evaluate(veri, tracks=True, top=2).retrieval()
    assert kept.gallery_names.tolist() == veri.names[veri.rows(GALLERY)[first]].tolist()


def test_tracks_that_lack_images(veri):
    values, offsets = veri.tables["track.values"], veri.tables["track.offsets"]
    gone = veri.rows(GALLERY)[[*values[: offsets[1]], values[offsets[1]]]]
    keep = np.ones(len(veri), bool)
    keep[gone] = False
    counts = evaluate(veri.take(keep), tracks=True).figures["counts"]
    assert counts["tracks"] == len(offsets) - 2 and counts["tracks_without_image"] == 1
    tables = {**veri.tables, "track.offsets": offsets[:-1], "track.values": values[: offsets[-2]]}
    counts = evaluate(dataclasses.replace(veri, tables=tables), tracks=True).figures["counts"]
    assert counts["images_in_no_track"] == offsets[-1] - offsets[-2]


def test_mixed_tracks_are_an_error(veri):
    tables = {**veri.tables, "track.offsets": veri.tables["track.offsets"][[0, -1]]}
    with pytest.raises(ValueError, match=r"of tracks .* differ in pid from the first one of their"):
        evaluate(dataclasses.replace(veri, tables=tables), tracks=True)


def test_published_lists_agree_with_identities(veri):
    plain = evaluate(veri).figures
    checked = evaluate(veri, published_lists="check").figures
    found = checked.pop("published_lists")
    assert found["agree"] and found["queries_without"] == 0
    assert found["good_in_both"] == len(veri.tables["gt.good.values"])
    assert found["junk_in_both"] == len(veri.tables["gt.junk.values"])
    assert checked["mAP"] == plain["mAP"]
    used = evaluate(veri, published_lists="use").figures
    assert used["mAP"] == plain["mAP"] and used["rules"]["published_lists"] == "use"


def test_published_lists_that_differ(veri):
    good = {kind: veri.tables[f"gt.good.{kind}"] for kind in ("offsets", "values")}
    offsets = good["offsets"] - np.minimum(np.arange(len(good["offsets"])), 1)
    tables = {**veri.tables, "gt.good.offsets": offsets, "gt.good.values": good["values"][1:]}
    fewer = dataclasses.replace(veri, tables=tables)
    found = evaluate(fewer, published_lists="check").figures
    assert found["mAP"] == evaluate(veri).figures["mAP"]
    assert not found["published_lists"]["agree"]
    assert found["published_lists"]["good_only_by_identity"] == 1
    assert found["published_lists"]["good_only_in_lists"] == 0
    assert evaluate(fewer, published_lists="use").figures["mAP"] != found["mAP"]
    # A list less junk lets an image of the query's camera in.
    values = veri.tables["gt.junk.values"]
    tables = {**veri.tables, "gt.junk.values": np.where(np.arange(len(values)) < 4, -1, values)}
    found = evaluate(dataclasses.replace(veri, tables=tables), published_lists="check").figures
    assert found["published_lists"]["junk_only_by_identity"] == 4
    # Queries without a list have no match.
    rows = np.where(np.arange(len(veri.tables["gt.query"])) < 2, -1, veri.tables["gt.query"])
    some = dataclasses.replace(veri, tables={**veri.tables, "gt.query": rows})
    found = evaluate(some, published_lists="use").figures
    assert found["skipped"] == 2 == found["published_lists"]["queries_without"]


def with_lists(**tables):
    base = {"gt.query": np.arange(20), "gt.good.offsets": np.arange(21)}
    base |= {"gt.good.values": np.arange(20)}
    return market(tables=base | tables)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"gt.good.values": np.full(20, 500)}, "holds row 500 of the part gallery, which has 60"),
        ({"gt.good.values": np.full(20, -2)}, "holds row -2 of the part gallery"),
        ({"gt.good.values": np.full(20, 0.5)}, "is float64.20.; expected whole numbers"),
        ({"gt.query": np.arange(30)}, "gt.query holds row 20 of the part query, which has 20"),
        ({"gt.query": np.arange(20) // 2}, "gt.query names a query twice"),
        ({"gt.query": np.arange(19)}, "gt.good.offsets is of 20 lists, but gt.query of 19"),
        (
            {"gt.good.offsets": np.arange(11), "gt.good.values": np.arange(10)},
            "gt.good.offsets is of 10 lists, but gt.query of 20",
        ),
        ({"gt.good.offsets": np.arange(21) + 1}, "must rise from 0 to the 20 entries of gt.good.v"),
        ({"gt.good.offsets": np.arange(21) * 2}, "must rise from 0 to the 20 entries"),
        ({"gt.good.offsets": np.roll(np.arange(21), 1)}, "must rise from 0 to the 20 entries"),
        (
            {"gt.good.offsets": np.where(np.arange(21) == 5, 9, np.arange(21))},
            "must rise from 0 to the 20 entries",
        ),
        ({"gt.good.offsets": np.zeros(0, int)}, "must rise from 0 to the 20 entries"),
        ({"gt.junk.values": np.arange(3)}, "there is no table gt.junk.offsets"),
        ({"gt.query": np.full(20, -1)}, "none of the 20 queries has a list in the table gt.query"),
    ],
)
def test_lists_of_another_set(tables, message):
    assert evaluate(with_lists(), published_lists="use").figures["queries"] > 0
    for use in ("use", "check"):
        with pytest.raises(ValueError, match=message) as error:
            evaluate(with_lists(**tables), published_lists=use)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        ([0, 60], [0, 1, 2], "track.values holds row 60 of the part gallery, which has 60 here"),
        ([0, 1], [1, 2], "track.offsets must rise from 0 to the 2 entries of track.values"),
        ([0, 1], [0, 1], "track.offsets must rise from 0 to the 2 entries of track.values"),
        ([0, 1, 2], [0, 2, 1, 3], "track.offsets must rise from 0 to the 3 entries"),
    ],
)
def test_tracks_of_another_set(values, offsets, message):
    tables = {"track.values": np.array(values), "track.offsets": np.array(offsets)}
    with pytest.raises(ValueError, match=message):
        evaluate(market(tables=tables), tracks=True)


# Errors.


def own_sides(dataset, **more):
    return market(dataset=dataset, camera_codes=(3, 1, 2), **more)


@pytest.mark.parametrize(
    ("dataset", "options", "found"),
    [
        ("sysumm01", {"mode": "indoor"}, "mode"),
        ("sysumm01", {"mode": "all"}, "mode"),
        ("sysumm01", {"shots": 1}, "shots"),
        ("sysumm01", {"trials": 3, "draw": "official"}, "draw, trials"),
        ("sysumm01", {"protocol": "sysumm01_indoor"}, "mode"),
        ("sysumm01", {"protocol": "sysumm01", "shots": 10}, "shots"),
        ("regdb", {"direction": "visible_to_thermal"}, "direction"),
        ("regdb", {"protocol": "regdb_reverse"}, "direction"),
        ("market1501", {"trials": 1}, "trials"),
    ],
)
def test_queries_and_a_gallery_take_no_options_of_draws(dataset, options, found):
    message = f"have queries and a gallery of their own, ranked once: leave out {found}, or extract"
    with pytest.raises(ValueError, match=message):
        evaluate(own_sides(dataset), **options)


@pytest.mark.parametrize("dataset", ["sysumm01", "regdb"])
def test_rules_of_draws_are_not_those_of_queries_and_a_gallery(dataset):
    figures = evaluate(own_sides(dataset)).figures
    assert not {"mode", "shots", "draw", "direction"} & set(figures["rules"])
    assert figures["protocol"] == dataset and "mAP_std" not in figures
    named = evaluate(own_sides(dataset), protocol=dataset).figures
    assert named == figures and "mean over" not in figures["rules"]["note"]


def test_cameras_of_own_sides_have_the_codes_of_the_set():
    with pytest.raises(ValueError, match="cameras have the codes 0, 1, 2, but sysumm01 goes by"):
        evaluate(market(dataset="sysumm01", camera_codes=(0, 1, 2)))


def test_unknown_cameras_draw_nothing():
    found = visible_infrared()
    with pytest.raises(ValueError, match="192 of 192 rows have no known camera"):
        evaluate(dataclasses.replace(found, camid=np.full(len(found), -1)))


def test_what_the_sets_were_trained_on():
    def trained_on(*names):
        sets = [
            market(seed=s, meta={"split": s} | ({"trained_on": name} if name else {}))
            for s, name in enumerate(names)
        ]
        return evaluate(sets).figures.get("trained_on")

    assert trained_on("a", "a") == "a" and trained_on("", "") is None
    assert trained_on("a", "b", "a") == ["a", "b"] and trained_on("", "a") == ["unknown", "a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "manhattan"}, "metric is 'manhattan', must be one of cosine, euclidean, dot"),
        ({"no_mach": "zero"}, "unknown option no_mach: did you mean no_match"),
        ({"ap": "voc"}, "ap is 'voc', must be one of"),
        ({"protocol": "mraket1501"}, "unknown protocol 'mraket1501'; did you mean market1501"),
        ({"multi_query": "sum"}, "multi_query is 'sum', must be one of mean, max"),
        ({"published_lists": "yes"}, "published_lists is 'yes', must be one of ignore, use, check"),
        ({"published_lists": "use"}, "market1501 come without published lists"),
        ({"tracks": True}, "market1501 come without tracks"),
        ({"tracks": True, "published_lists": "use"}, "published lists are of images, not of"),
        ({"bootstrap": -1}, "bootstrap is -1, must be 0 or 40 samples or more"),
        ({"shots": 10}, "market1501 takes no shots"),
        ({"top": -1}, "top is -1, must be 0 or more"),
        ({"expand": Expand(), "metric": "dot"}, "unit vectors: choose the metric cosine, not dot"),
        ({"rerank": Rerank(k1=5000)}, "k1 is 5000; expected an integer in"),
        ({"rerank": Rerank(), "metric": "dot"}, "choose the metric cosine or euclidean, not dot"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message) as error:
        evaluate(market(), **options)
    assert "\n" not in str(error.value)


def other_model(features):
    """The same images as another model sees them."""
    noise = np.random.default_rng(0).normal(size=features.features.shape)
    return dataclasses.replace(features, features=(features.features + noise).astype(np.float32))


def test_models_of_one_test_set_are_averaged():
    one = market()
    two = other_model(one)
    found, alone = evaluate([one, two]).figures, [evaluate(x).figures for x in (one, two)]
    assert found["mAP"] == pytest.approx(np.mean([x["mAP"] for x in alone]))
    assert found["mAP_std"] == pytest.approx(np.std([x["mAP"] for x in alone], ddof=1))


def test_nothing_to_measure_is_an_error():
    features = market()
    alone = dataclasses.replace(features, camid=np.zeros_like(features.camid))
    with pytest.raises(ValueError, match=r"none of the .* queries has a match in the gallery once"):
        evaluate(alone)
    some = evaluate(features, no_match="zero").figures
    assert some["skipped"] == 0
    lonely = dataclasses.replace(features, pid=features.pid.copy())
    lonely.pid[np.flatnonzero(lonely.part == 0)[:2]] = 9999
    zero = evaluate(lonely, no_match="zero").figures
    assert zero["counts"]["queries_without_match"] == 2 and zero["skipped"] == 0


def test_warnings_of_the_data_set_stay_with_its_features():
    features = market(meta={"warnings": ["3 broken images"]})
    assert "3 broken images" in evaluate(features).figures["warnings"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rerank": True}, "rerank is True, must be None or a Rerank"),
        ({"expand": 5}, "expand is 5, must be None or a Expand"),
        ({"metrc": "cosine"}, "unknown option metrc: did you mean metric"),
        ({"bootstrap": 3}, "bootstrap is 3, must be 0 or 40 samples or more"),
    ],
)
def test_options_of_another_kind(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(market(), **options)


@pytest.mark.parametrize(
    "options",
    [{"k1": 0}, {"k2": 0}, {"k2": 22}, {"lambda_": 2.0}, {"distance": "cubed"}, {"k1": 1.5}],
)
def test_re_ranking_out_of_range(options):
    with pytest.raises(ValueError, match="re-ranking"):
        Rerank(**options)


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 1.5}, {"alpha": -1.0}, {"alpha": np.inf}])
def test_expansion_out_of_range(options):
    with pytest.raises(ValueError, match="expansion with"):
        Expand(**options)


def test_files_in_place_of_features():
    with pytest.raises(ValueError, match="found str in place of features; load files"):
        evaluate(["mine.npz"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("market1501", {"metric": "dot", "rerank": Rerank()}, "not dot"),
        ("market1501", {"top": -1}, "top is -1"),
        ("market1501", {"shots": 3}, "market1501 takes no shots"),
        ("market1501", {"metrc": "dot"}, "did you mean metric"),
        ("market1501", {"tracks": True}, "comes without tracks"),
        ("market1501", {"published_lists": "check"}, "comes without published lists"),
        ("market1501", {"protocol": "sysumm01", "mode": "indoor"}, "leave out mode"),
        ("market1501", {"protocol": "regdb", "direction": "thermal_to_visible"}, "leave out"),
        ("sysumm01", {"protocol": "market1501"}, "has no fixed queries and gallery"),
    ],
)
def test_options_are_checked_before_the_features(name, options, message):
    collection = Collection(name, "there", {}, {}, (), {})
    with pytest.raises(ValueError, match=message):
        check_options(collection, **options)


def test_options_that_features_will_take():
    tables = {"track.values": 0, "gt.query": 0}
    market1501 = Collection("market1501", "there", {}, tables, (), {})
    check_options(market1501, metric="euclidean", ap="tied", published_lists="use")
    check_options(market1501, tracks=True, protocol="veri776")
    sysu = Collection("sysumm01", "there", {}, {}, (), {})
    check_options(sysu, mode="indoor", shots=10, protocol="sysumm01")


def test_bad_sets():
    with pytest.raises(ValueError, match="there is no set of features to score"):
        evaluate([])
    with pytest.raises(ValueError, match="the sets are of 'market1501' and 'msmt17'; expected one"):
        evaluate([market(), market(dataset="msmt17")])
    twice = [market(seed=s, meta={"split": 1}) for s in range(2)]
    with pytest.raises(ValueError, match="there are 2 sets of split 1; expected one of each"):
        evaluate(twice)
    with pytest.raises(ValueError, match="1 of 2 sets name no split; expected all of them to, or"):
        evaluate([market(meta={"split": 1}), market(seed=1)])
    with pytest.raises(ValueError, match="sets 1 and 3 hold the same features; expected those of"):
        evaluate([market(), other_model(market()), market()])
    with pytest.raises(ValueError, match="sets 1 and 2 are of different images; expected features"):
        evaluate([market(), market(seed=1)])
    with pytest.raises(ValueError, match="1 of 2 sets have queries and a gallery of their own"):
        evaluate([visible_infrared(), own_sides("sysumm01")])
    flips = [market(meta={"flip": flip}) for flip in (True, False)]
    with pytest.raises(ValueError, match="flip is True in one set and False in another"):
        evaluate(flips)
    with pytest.raises(ValueError, match="bootstrap goes over the queries of one set"):
        evaluate([market(), other_model(market())], bootstrap=100)
    without = market()
    without = without.take(without.part != MULTI_QUERY)
    with pytest.raises(ValueError, match="no features of the part multi_query"):
        evaluate(without, multi_query="mean")
