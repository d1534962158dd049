import dataclasses
import json

import numpy as np
import pytest

from ccafl_jax.data.layouts import LAYOUTS, ilidsvid, regdb, sysumm01
from ccafl_jax.data.records import JUNK, UNLABELLED
from ccafl_jax.evaluation import bootstrap, ranking, relevance
from ccafl_jax.evaluation.protocols import CHOICES, PROTOCOLS, Protocol, protocol_of
from ccafl_jax.evaluation.ranking import rank_by
from ccafl_jax.evaluation.relevance import Lists
from ccafl_jax.neighbors.similarity import MatrixScores
from tests.golden_data import golden

RAW_CODES = tuple(range(7))  # camid is the code itself


def scored(protocol, scores, *labels, camera_codes=(), **options):
    rules = protocol.relevance(*map(np.asarray, labels), camera_codes=camera_codes, **options)
    return rank_by(MatrixScores(np.asarray(scores)), rules, **protocol.ranking_options())


def kept_by(protocol, query, gallery, *, camera_codes=(), **options):
    """For each query the gallery places it meets: (pid, camid) pairs on both sides."""
    (query_pid, query_camid), (gallery_pid, gallery_camid) = (
        np.array(side).T for side in (query, gallery)
    )
    rules = protocol.relevance(
        query_pid,
        gallery_pid,
        query_camid,
        gallery_camid,
        camera_codes=camera_codes,
        **options,
    )
    found = rank_by(
        MatrixScores(np.tile(-np.arange(len(gallery), dtype=np.float32), (len(query), 1))),
        rules,
        top=int(rules.kept.sum()),
    )
    return [row[row >= 0].tolist() for row in found.top.indices]


# Reference vectors.


@pytest.mark.parametrize("case", ["all_1shot", "indoor_1shot", "all_10shot", "indoor_10shot"])
def test_published_sysumm01(case):
    data = {key.split("/")[1]: x for key, x in golden("eval_metrics", "cclnet").items()
            if key.startswith(f"{case}/")}  # fmt: skip
    labels = (data[key] for key in ("q_pid", "g_pid", "q_cam", "g_cam"))
    found = scored(protocol_of("sysumm01"), -data["dist"], *labels, camera_codes=RAW_CODES)
    np.testing.assert_allclose(found.cmc, data["cmc"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.mAP, data["mAP"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.mINP, data["mINP"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("case", "name"), [("regdb_v2t", "regdb"), ("regdb_t2v", "regdb_reverse")])
def test_published_regdb(case, name):
    data = golden("eval_metrics", "cclnet")
    pids = [data[f"{case}/{side}_pid"] for side in "qg"]
    camids = [np.zeros_like(pid) for pid in pids]  # of no account
    found = scored(protocol_of(name), -data[f"{case}/dist"], *pids, *camids)
    np.testing.assert_allclose(found.cmc, data[f"{case}/cmc"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.mAP, data[f"{case}/mAP"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.mINP, data[f"{case}/mINP"], rtol=0, atol=1e-6)


def test_published_video():
    data = golden("evaluation", "tfclip")
    count = int(data["in/num_query"])
    pid, camid = data["in/pids"], data["in/camids"]
    labels = (pid[:count], pid, camid[:count], camid)
    found = scored(protocol_of("mars"), -data["out/distmat"], *labels)
    np.testing.assert_allclose(found.cmc, data["out/cmc"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.mAP, data["out/mAP"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", ["rand", "ties", "hard"])
def test_published_calr(case):
    data = {key.removeprefix(f"{case}_"): x for key, x in golden("eval", "calr").items()}
    labels = (data[key] for key in ("qid", "gid", "qcam", "gcam"))
    protocol = protocol_of("market1501").replace(ap="tied", max_rank=100)
    found = scored(protocol, -data["dist"], *labels)
    np.testing.assert_allclose(found.mAP, data["mAP_f64"], rtol=0, atol=1e-9)
    assert found.queries == data["valid"]
    if case != "ties":
        np.testing.assert_array_equal(found.cmc, data["cmc_f64"])


# The rules by hand; camids count from 0.


def test_market_drops_junk_and_its_own_camera_and_keeps_distractors():
    gallery = [(7, 0), (7, 1), (-1, 1), (0, 0), (8, 0), (-2, 1)]
    assert kept_by(protocol_of("market1501"), [(7, 0)], gallery) == [[1, 3, 4]]


def test_unknown_cameras_agree_with_none():
    gallery = [(7, -1), (7, 0), (7, 1)]
    protocol = protocol_of("market1501")
    assert kept_by(protocol, [(7, -1), (7, 0)], gallery) == [[0, 1, 2], [0, 2]]


def test_camera_3_of_sysumm01_does_not_meet_camera_2():
    gallery = [(7, 0), (7, 1), (8, 1), (8, 2), (7, 2)]  # codes 1, 2, 2, 4, 4
    found = kept_by(
        protocol_of("sysumm01"), [(7, 3), (7, 4)], gallery, camera_codes=(1, 2, 4, 3, 6)
    )
    assert found == [[0, 3, 4], [0, 1, 2, 3, 4]]
    # Other codes at the same places change what is left out.
    codes = (2, 1, 4, 3, 6)
    found = kept_by(protocol_of("sysumm01"), [(7, 3), (7, 4)], gallery, camera_codes=codes)
    assert found == [[1, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_sysumm01_needs_the_codes():
    with pytest.raises(ValueError, match="goes by camera codes, and camid reaches 4 with 0"):
        kept_by(protocol_of("sysumm01"), [(7, 4)], [(7, 0)])


def test_cmc_of_sysumm01_counts_identities():
    # Two images of 8, one of 9, then 7: third identity, fourth image.
    labels = ([7], [8, 8, 9, 7], [4], [0, 0, 0, 0])
    scores = [[4.0, 3.0, 2.0, 1.0]]
    codes = (1, 2, 4, 3, 6)
    found = scored(protocol_of("sysumm01"), scores, *labels, camera_codes=codes)
    assert found.cmc[:4].tolist() == [0, 0, 1, 1] and found.mAP == 0.25
    by_image = scored(
        protocol_of("sysumm01").replace(cmc="image"), scores, *labels, camera_codes=codes
    )
    assert by_image.cmc[:4].tolist() == [0, 0, 0, 1]


def test_regdb_has_no_camera_rule():
    assert kept_by(protocol_of("regdb"), [(7, 0)], [(7, 0), (8, 0), (7, 1)]) == [[0, 1, 2]]


def test_without_cameras_only_the_query_itself_is_left_out():
    gallery = [(7, -1), (7, -1), (8, -1)]
    protocol = protocol_of("no_cameras")
    assert kept_by(protocol, [(7, -1)], gallery) == [[0, 1, 2]]
    itself = np.array([5]), np.array([3, 5, -1])
    assert kept_by(protocol, [(7, -1)], gallery, same_item=itself) == [[0, 2]]


def test_lists_take_the_place_of_identities_and_cameras():
    gallery = [(7, 0), (7, 1), (8, 1), (8, 0)]
    good = Lists(np.array([0, 1]), np.array([3]))
    junk = Lists(np.array([0, 1]), np.array([1]))
    protocol = protocol_of("market1501")
    assert kept_by(protocol, [(7, 0)], gallery, good=good, junk_lists=junk) == [[0, 2, 3]]
    # Without lists of junk the camera rule stays.
    assert kept_by(protocol, [(7, 0)], gallery, good=good) == [[1, 2, 3]]
    labels = ([7], [7, 7, 8, 8], [0], [0, 1, 1, 0])
    found = scored(protocol, [[4.0, 3.0, 2.0, 1.0]], *labels, good=good, junk_lists=junk)
    assert found.ranks.tolist() == [3]


# The table.


def test_every_layout_has_a_protocol():
    assert set(LAYOUTS) <= set(PROTOCOLS)
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name and protocol.note
        json.dumps(protocol.as_dict(), allow_nan=False)


def test_choices_are_those_of_the_other_rooms():
    assert CHOICES["same_camera"] is relevance.SAME_CAMERA
    assert CHOICES["ap"] is ranking.AP_RULES
    assert CHOICES["no_match"] is ranking.NO_MATCH is bootstrap.NO_MATCH
    assert CHOICES["cmc"] is ranking.CMC_RULES
    assert protocol_of("sysumm01").cameras == tuple(
        sorted(sysumm01.VISIBLE_CAMERAS + sysumm01.INFRARED_CAMERAS)
    )
    assert CHOICES["mode"] == tuple(sysumm01.GALLERY_CAMERAS)
    assert CHOICES["draw"] == sysumm01.DRAWS
    assert CHOICES["direction"] == regdb.DIRECTIONS
    assert protocol_of("sysumm01").trials == sysumm01.TRIALS
    assert protocol_of("market1501").junk == (JUNK, UNLABELLED)
    assert ilidsvid.ORIENTATIONS[0] == "standard"


def test_figures_of_the_sets():
    assert protocol_of("ilidsvid").figures == ("rank1", "rank5", "rank10", "rank20")
    for name in ("sysumm01", "regdb"):
        protocol = protocol_of(name)
        assert protocol.max_rank == 20
        assert protocol.figures == ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")
    variants = {
        "sysumm01": ("all", 1),
        "sysumm01_indoor": ("indoor", 1),
        "sysumm01_10shot": ("all", 10),
        "sysumm01_indoor_10shot": ("indoor", 10),
    }
    for name, options in variants.items():
        assert (protocol_of(name).mode, protocol_of(name).shots) == options


def test_an_option_changes_figures():
    labels = ([7, 9], [8, 7, 7], [0, 0], [1, 1, 1])
    scores = [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]
    base = protocol_of("market1501")
    step = scored(base, scores, *labels).mAP
    assert step == pytest.approx((1 / 2 + 2 / 3) / 2)
    trapezoid = scored(base.replace(ap="trapezoid"), scores, *labels).mAP
    assert trapezoid == pytest.approx((0 + 1 / 2 + 1 / 2 + 2 / 3) / 4)
    assert scored(base.replace(no_match="zero"), scores, *labels).mAP == pytest.approx(step / 2)
    with_junk = scored(base.replace(junk=(8,)), scores, *labels)
    assert with_junk.mAP == 1.0
    assert len(scored(base.replace(max_rank=3, figures=("mAP",)), scores, *labels).cmc) == 3


def test_replacing_leaves_the_table_alone():
    changed = protocol_of("market1501").replace(ap="trapezoid")
    assert changed.ap == "trapezoid" and protocol_of("market1501").ap == "step"
    assert changed.as_dict()["ap"] == "trapezoid"
    assert changed.replace(junk=()).as_dict()["junk"] == []
    assert "shots" not in changed.as_dict() and protocol_of("sysumm01").as_dict()["shots"] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.ap = "step"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"no_mtch": "zero"}, "unknown option no_mtch of a protocol: did you mean no_match?"),
        ({"zzzz": 1}, "known are name, same_camera"),
        ({"ap": "voc"}, "ap is 'voc', must be one of step, trapezoid, tied"),
        ({"same_camera": "yes"}, "same_camera is 'yes', must be one of identity, location, none"),
        ({"shots": 10}, "market1501 takes no shots"),
        ({"direction": "visible_to_thermal"}, "market1501 takes no direction"),
        ({"trials": 3}, "trials is 3, but market1501 has one"),
        ({"max_rank": 0}, "max_rank is 0, must be 1 or more"),
        ({"max_rank": 50.0}, "max_rank is 50.0, must be a whole number"),
        ({"max_rank": None}, "max_rank is None, must be a whole number"),
        ({"max_rank": True}, "max_rank is True, must be a whole number"),
        ({"trials": 2.5}, "trials is 2.5, must be a whole number"),
        ({"junk": -1}, r"junk is -1, must be a sequence, such as \(-1,\)"),
        ({"junk": (-1, 0.5)}, r"junk is \(-1, 0.5\), must hold whole numbers"),
        ({"junk": "-1"}, "junk is '-1', must be a sequence"),
        ({"figures": "mAP"}, "figures is 'mAP', must be a sequence"),
        ({"figures": (1,)}, "figures hold 1, must be names"),
        ({"query_in_gallery": "no"}, "query_in_gallery is 'no', must be True or False"),
        ({"locations": ((3, 2),)}, "locations are for same_camera location, not identity; leave"),
        ({"locations": (3, 2), "same_camera": "location"}, "must be pairs of camera codes"),
        ({"locations": ((3, 2, 1),), "same_camera": "location"}, "must be pairs of camera codes"),
        ({"max_rank": 5}, "rank10 is reported, but max_rank is 5"),
        ({"figures": ("map",)}, "unknown figure 'map'; expected mAP, mINP, rank1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        protocol_of("market1501").replace(**options)
    with pytest.raises(ValueError, match=r"shots is 1.5, must be a whole number"):
        protocol_of("sysumm01").replace(shots=1.5)
    with pytest.raises(ValueError, match=r"locations are for same_camera location, not none"):
        protocol_of("sysumm01").replace(same_camera="none", locations=((3, 2),))


def test_values_are_kept_as_python_has_them():
    changed = protocol_of("market1501").replace(junk=[np.int64(-1)], max_rank=np.int32(30))
    assert changed.junk == (-1,) and json.loads(json.dumps(changed.as_dict()))["max_rank"] == 30
    assert hash(changed) == hash(protocol_of("market1501").replace(junk=(-1,), max_rank=30))


def test_another_camera_rule_drops_the_locations():
    base = protocol_of("sysumm01")
    assert base.replace(same_camera="none").as_dict()["locations"] == []
    assert base.replace(shots=3).locations == ((3, 2),)
    assert base.replace(same_camera="location").locations == ((3, 2),)


def test_sets_with_queries_and_a_gallery_are_not_drawn():
    for name in ("sysumm01", "regdb_reverse"):
        rules = protocol_of(name).of_parts().as_dict()
        assert not {"mode", "shots", "draw", "direction"} & set(rules)
        assert (rules["trials"], rules["trial"], rules["name"]) == (1, "parts", name)
        assert "mean over" not in rules["note"] and rules["max_rank"] == 20
    assert protocol_of("sysumm01").of_parts().locations == ((3, 2),)
    assert protocol_of("mars").of_parts() == protocol_of("mars")


def test_bad_names():
    with pytest.raises(ValueError, match=r"unknown protocol .market.; did you mean"):
        protocol_of("market")
    with pytest.raises(ValueError, match="mine needs direction"):
        Protocol("mine", trial="directions")
    with pytest.raises(ValueError, match="shots is 0, must be 1 or more"):
        protocol_of("sysumm01").replace(shots=0)
