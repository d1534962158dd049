import builtins
import dataclasses
import io
import json
import pathlib
import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ccafl_jax.evaluation import results
from ccafl_jax.evaluation.ranking import rank, rank_scores
from ccafl_jax.evaluation.results import Retrieval, load, rescore, retrieval, save

FORMATS = ("npz", "parquet")


def labels(rng, size, identities=6, cameras=3):
    return rng.integers(0, identities, size), rng.integers(0, cameras, size)


def ranked(seed=0, queries=17, gallery=60, top=5, **options):
    """A ranking with ties (coarse scores), junk and queries without a match."""
    rng = np.random.default_rng(seed)
    (q_pid, q_cam), (g_pid, g_cam) = labels(rng, queries), labels(rng, gallery)
    g_pid[:4], q_pid[2], q_pid[5] = -1, 99, 98
    scores = np.round(rng.standard_normal((queries, gallery)), 1)
    found = rank_scores(scores, q_pid, g_pid, q_cam, g_cam, top=top, max_rank=10, **options)
    return found, dict(query_pid=q_pid, gallery_pid=g_pid, query_camid=q_cam, gallery_camid=g_cam)


def found(**options) -> Retrieval:
    ranking, sides = ranked(**options)
    return retrieval(
        ranking,
        **sides,
        query_names=[f"query/é_{i}.jpg" for i in range(len(sides["query_pid"]))],
        gallery_names=[f"gallery/{i}.jpg" for i in range(len(sides["gallery_pid"]))],
        rules={"protocol": "market1501", "same_camera": "identity", "rerank": {"k1": 20}},
    )


def by_hand(**changes) -> Retrieval:
    """Query 0 with matches at 1 and 4 (AP 3/4), 1 with none, 2 at 2 (AP 1/2), 3 at 4 (AP 1/4)."""
    fields = dict(
        ranks=[1, 4, 2, 4],
        tied=[2, 4, 2, 5],
        offsets=[0, 2, 2, 3, 4],
        first=[1, 0, 2, 3],
        candidates=[5, 5, 5, 5],
        indices=[[3, 1], [4, -1], [0, 2], [1, 2]],
        scores=np.array([[1, 0.5], [0.25, -np.inf], [1, 1], [0.5, 0.25]], np.float32),
        matches=[[True, False], [False, False], [False, True], [False, False]],
        rules={"metric": "cosine", "ap": "step", "no_match": "skip", "cmc": "image", "max_rank": 3},
        query_pid=[7, 8, 7, 9],
    )
    return Retrieval(**{**fields, **changes})


def same(one: Retrieval, other: Retrieval) -> bool:
    mine, theirs = one.arrays(), other.arrays()
    return (
        one.rules == other.rules
        and mine.keys() == theirs.keys()
        and all(
            mine[name].dtype == theirs[name].dtype
            and mine[name].shape == theirs[name].shape
            and mine[name].tobytes() == theirs[name].tobytes()
            for name in mine
        )
    )


def assert_equal_rankings(one, other):
    for field in dataclasses.fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name != "top":
            np.testing.assert_array_equal(mine, theirs, err_msg=field.name)


@pytest.mark.parametrize("suffix", FORMATS)
def test_comes_back_bit_by_bit(tmp_path, suffix):
    for one in (found(), found(top=0), by_hand(), by_hand(gallery_camid=[0, -1, 2, 2, 1])):
        path = tmp_path / f"one.{suffix}"
        save(path, one)
        assert same(load(path), one)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", FORMATS)
def test_saved_twice_gives_equal_figures_and_a_changed_array_another_file(tmp_path, suffix):
    one, path = found(), tmp_path / f"one.{suffix}"
    save(path, one)
    assert_equal_rankings(rescore(load(path)), rescore(one))
    scores = one.scores.copy()
    scores[0, 0] = np.nextafter(scores[0, 0], 9, dtype=np.float32)
    save(path, dataclasses.replace(one, scores=scores))
    assert not same(load(path), one)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    k=st.integers(0, 3),
    names=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=3),
    seed=st.integers(0, 99),
    suffix=st.sampled_from(FORMATS),
)
def test_any_retrieval_comes_back(tmp_path_factory, counts, k, names, seed, suffix):
    rng, queries = np.random.default_rng(seed), len(counts)
    ranks = np.concatenate([np.cumsum(rng.integers(1, 9, n)) for n in counts])
    one = by_hand(
        ranks=ranks.astype(int),
        tied=ranks.astype(int) + 1,
        offsets=np.cumsum([0, *counts]),
        first=np.zeros(queries, int),
        candidates=np.full(queries, 2**40),
        indices=rng.integers(-1, max(len(names), 1), (queries, k))
        if names
        else -np.ones((queries, k), int),
        scores=rng.standard_normal((queries, k)).astype(np.float32),
        matches=rng.random((queries, k)) < 0.5,
        query_pid=None,
        gallery_names=np.array(names, str),
    )
    path = tmp_path_factory.mktemp("any") / f"one.{suffix}"
    save(path, one)
    assert same(load(path), one)


def test_npz_is_plain_numpy(tmp_path):
    save(tmp_path / "one.npz", found())
    with np.load(tmp_path / "one.npz", allow_pickle=False) as file:
        assert file["query_names"][3] == "query/é_3.jpg"
        assert file["ranks"].dtype == np.int32 and file["scores"].shape == (17, 5)
        assert json.loads(str(file["header"]))["rules"]["rerank"] == {"k1": 20}


def test_parquet_is_a_row_for_each_query(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    one = found()
    save(tmp_path / "one.parquet", one)
    table = parquet.read_table(tmp_path / "one.parquet")
    assert table.num_rows == 17
    row = table.slice(3, 1).to_pylist()[0]
    assert row["name"] == "query/é_3.jpg" and row["pid"] == one.query_pid[3]
    assert row["ranks"] == one.ranks[one.offsets[3] : one.offsets[4]].tolist()
    assert row["top_indices"] == one.indices[3].tolist()
    assert row["top_names"] == [f"gallery/{i}.jpg" for i in one.indices[3]]
    assert row["ap"] == rescore(one).ap[3]
    # pandas reads this key into DataFrame.attrs.
    assert json.loads(table.schema.metadata[b"PANDAS_ATTRS"]) == {"rules": one.rules}


def test_absent_items_have_no_name(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    save(tmp_path / "one.parquet", by_hand(gallery_names=list("abcde")))
    names = parquet.read_table(tmp_path / "one.parquet")["top_names"].to_pylist()
    assert names == [["d", "b"], ["e", ""], ["a", "c"], ["b", "c"]]


def test_another_suffix_names_both(tmp_path):
    for call in (lambda: save(tmp_path / "a.csv", by_hand()), lambda: load(tmp_path / "a.csv")):
        with pytest.raises(ValueError, match=r"a\.csv must end in \.npz or \.parquet$"):
            call()


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_that_hold_no_results(tmp_path, suffix):
    path = tmp_path / f"one.{suffix}"
    with pytest.raises(FileNotFoundError, match="one"):
        load(path)
    save(path, found())
    whole = path.read_bytes()
    for content in (b"", b"PAR1", b"nonsense" * 99, whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"one\.{suffix} is damaged") as error:
            load(path)
        assert "\n" not in str(error.value)


def test_a_foreign_file_is_named(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    np.savez(tmp_path / "a.npz", features=np.ones(3))
    np.savez(tmp_path / "b.npz", header=np.array('{"kind": "other"}'))
    np.savez(tmp_path / "c.npz", header=np.array(json.dumps({"kind": results.KIND, "format": 2})))
    parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "d.parquet")
    for name, reason in (
        ("a.npz", "no header"),
        ("b.npz", "another header"),
        ("c.npz", "format 2, this version reads 1"),
        ("d.parquet", "no such metadata"),
    ):
        with pytest.raises(ValueError, match=f"{name} holds no retrieval results .*{reason}"):
            load(tmp_path / name)
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    (tmp_path / "e.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"e\.npz is damaged or no \.npz file"):
        load(tmp_path / "e.npz")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_changed_byte_is_seen_or_means_nothing(tmp_path, suffix):
    one, path = found(), tmp_path / f"one.{suffix}"
    save(path, one)
    whole = path.read_bytes()
    seen, places = 0, np.linspace(0, len(whole) - 1, 120).astype(int)
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            changed = load(path)
        except ValueError:
            seen += 1
        else:
            assert same(changed, one), place
    assert seen > len(places) // 2


class Loud:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["header", "ranks", "gallery_pid"])
def test_nothing_is_unpickled(tmp_path, name):
    path, trace = tmp_path / "one.npz", tmp_path / "trace"
    save(path, found())
    with np.load(path) as archive:
        arrays = dict(archive) | {name: np.array([Loud(trace)], object)}
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"one.npz is damaged or no .npz file \(") as error:
        load(path)
    assert "\n" not in str(error.value)
    path.write_bytes(pickle.dumps(Loud(trace)))
    with pytest.raises(ValueError, match=r"one.npz is damaged or no .npz file \("):
        load(path)
    assert not trace.exists()


def test_a_failed_save_leaves_the_old_file(tmp_path):
    one, path = by_hand(), tmp_path / "one.parquet"
    save(path, one)
    wrong = dataclasses.replace(one, query_names=["a", "b\udc80", "c", "d"])
    with pytest.raises(ValueError, match=r"not valid Unicode: save the results as \.npz"):
        save(path, wrong)
    assert same(load(path), one) and len(list(tmp_path.iterdir())) == 1
    save(tmp_path / "one.npz", wrong)
    assert same(load(tmp_path / "one.npz"), wrong)


def test_a_gallery_too_large_for_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_GALLERY_BYTES", 20)
    with pytest.raises(ValueError, match=r"gallery of \d+ bytes is too much for \.parquet.*\.npz"):
        save(tmp_path / "one.parquet", by_hand(gallery_names=list("abcde")))
    assert not list(tmp_path.iterdir())


def test_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "one.parquet").write_bytes(b"PAR1")
    original = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (
        lambda: load(tmp_path / "one.parquet"),
        lambda: save(tmp_path / "b.parquet", by_hand()),
    ):
        with pytest.raises(ImportError, match=r"pip install 'ccafl_jax\[parquet\]'"):
            call()
    save(tmp_path / "one.npz", by_hand())


@pytest.mark.parametrize("ap", ["step", "trapezoid", "tied"])
@pytest.mark.parametrize("no_match", ["skip", "zero"])
def test_rescoring_is_scoring(ap, no_match):
    saved = found()
    expected, _ = ranked(ap=ap, no_match=no_match)
    assert expected.skipped == (np.sum(~expected.valid) if no_match == "skip" else 0)
    again = rescore(saved, ap=ap, no_match=no_match)
    assert_equal_rankings(dataclasses.replace(again, rules=expected.rules), expected)
    assert again.rules == saved.rules | {"ap": ap, "no_match": no_match}
    np.testing.assert_array_equal(again.top.indices, expected.top.indices)


def test_every_rule_changes_the_figures():
    saved = found()
    figures = {ap: rescore(saved, ap=ap).mAP for ap in ("step", "trapezoid", "tied")}
    assert len(set(figures.values())) == 3
    assert rescore(saved, no_match="zero").mAP < rescore(saved, no_match="skip").mAP
    short, long = rescore(saved, max_rank=2).cmc, rescore(saved, max_rank=30).cmc
    assert len(short) == 2 and len(long) == 30 and long[-1] > long[9]
    np.testing.assert_array_equal(short, long[:2])
    np.testing.assert_array_equal(rescore(saved).cmc, long[:10])


def test_by_hand():
    one = by_hand()
    scored = rescore(one)
    np.testing.assert_allclose(scored.ap, [0.75, 0, 0.5, 0.25])
    np.testing.assert_allclose(scored.inp, [0.5, 0, 0.5, 0.25])
    assert (scored.mAP, scored.queries, scored.skipped) == (0.5, 3, 1)
    assert rescore(one, no_match="zero").mAP == 0.375
    np.testing.assert_allclose(scored.cmc, [1 / 3, 2 / 3, 1])  # places 1, 2, 3
    assert scored.top.scores[1, 1] == -np.inf


def test_image_places_follow_from_any_results_but_identities_do_not():
    identities = by_hand(rules={**by_hand().rules, "cmc": "identity"})
    np.testing.assert_array_equal(rescore(identities).first, [1, 0, 2, 3])
    images = rescore(identities, cmc="image", max_rank=4)
    np.testing.assert_array_equal(images.first, [1, 0, 2, 4])  # of ranks 4, identity 3
    np.testing.assert_allclose(images.cmc, [1 / 3, 2 / 3, 2 / 3, 1])
    with pytest.raises(ValueError, match=r"does not follow .*: score the saved features again"):
        rescore(by_hand(), cmc="identity")


def test_what_needs_features_is_refused():
    saved = found()
    scored = rescore(saved, same_camera="identity", rerank={"k1": 20})
    assert scored.mAP == rescore(saved).mAP
    for rule, value, was in (
        ("metric", "euclidean", "'given scores'"),
        ("same_camera", "none", "'identity'"),
        ("rerank", {"k1": 30}, r"\{'k1': 20\}"),
    ):
        with pytest.raises(ValueError, match=f"^{rule} of these results is ({was}), .*again$"):
            rescore(saved, **{rule: value})
    with pytest.raises(ValueError, match=r"same_camera .* not recorded"):
        rescore(by_hand(), same_camera="none")
    for length in (0, 2.5, "9"):
        with pytest.raises(ValueError, match=f"max_rank is {length!r}, must be a whole number, 1"):
            rescore(saved, max_rank=length)
    with pytest.raises(ValueError, match="ap"):
        rescore(saved, ap="exact")
    with pytest.raises(ValueError, match="do not say their no_match, cmc: give them"):
        rescore(by_hand(rules={"ap": "step", "max_rank": 3}))


def test_features_scored_directly():
    rng = np.random.default_rng(3)
    (q_pid, q_cam), (g_pid, g_cam) = labels(rng, 9), labels(rng, 40)
    query, gallery = rng.standard_normal((9, 8)), rng.standard_normal((40, 8))
    ranking = rank(query, gallery, q_pid, g_pid, q_cam, g_cam, top=40)
    one = retrieval(ranking, query_pid=q_pid, gallery_pid=g_pid)
    assert one.rules["metric"] == "cosine"
    present = one.indices >= 0
    np.testing.assert_array_equal(one.matches, present & (g_pid[one.indices] == q_pid[:, None]))
    assert np.all(np.isneginf(one.scores) == ~present) and not present.all()


def test_a_rule_cannot_contradict_the_ranking():
    ranking, _ = ranked()
    with pytest.raises(ValueError, match="rule ap is 'tied', but the ranking was made with 'step'"):
        retrieval(ranking, rules={"ap": "tied"})


def test_per_query_table():
    table = results.per_query(found())
    scored, _ = ranked()
    assert {len(column) for column in table.values()} == {17}
    np.testing.assert_array_equal(table["ap"], scored.ap)
    np.testing.assert_array_equal(table["matches"] > 0, table["valid"])
    assert table["name"][16] == "query/é_16.jpg" and set(table) >= {"pid", "camid", "candidates"}
    assert not {"name", "camid"} & set(results.per_query(by_hand()))


def test_per_identity_table_by_hand():
    table = results.per_identity(by_hand())
    np.testing.assert_array_equal(table["pid"], [7, 9])
    np.testing.assert_array_equal(table["queries"], [2, 1])
    np.testing.assert_allclose(table["mAP"], [0.625, 0.25])
    np.testing.assert_allclose(table["rank1"], [0.5, 0])
    np.testing.assert_allclose(table["mINP"], [0.5, 0.25])
    zero = results.per_identity(by_hand(rules={**by_hand().rules, "no_match": "zero"}))
    np.testing.assert_array_equal(zero["pid"], [7, 8, 9])
    np.testing.assert_allclose(zero["mAP"], [0.625, 0, 0.25])


@pytest.mark.parametrize("no_match", ["skip", "zero"])
def test_identities_average_to_the_whole(no_match):
    one = found(no_match=no_match)
    scored, table = rescore(one), results.per_identity(one)
    for name, whole in (("mAP", scored.mAP), ("rank1", scored.cmc[0]), ("mINP", scored.mINP)):
        assert np.average(table[name], weights=table["queries"]) == pytest.approx(whole)
    assert table["queries"].sum() == scored.queries


def test_rows_for_pictures():
    one = by_hand()  # AP 0.75, none, 0.5, 0.25
    assert results.worst(one, 2).tolist() == [3, 2]
    assert results.best(one, 3).tolist() == [0, 2, 3]
    assert results.median(one, 1).tolist() == [2]
    assert results.median(one, 3).tolist() == [3, 2, 0]
    equal = by_hand(ranks=[1, 4, 2, 2], tied=[2, 4, 2, 5])
    assert results.worst(equal, 3).tolist() == [2, 3, 0]
    assert results.best(equal, 3).tolist() == [0, 2, 3]
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"n is {n}, must be 1 to 3"):
            results.median(one, n)


def test_identities_must_be_known():
    with pytest.raises(ValueError, match="hold no query_pid"):
        results.per_identity(by_hand(query_pid=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": [0, 2, 2, 3, 5]}, "offsets must rise from 0 to the 4 matches"),
        ({"offsets": [0, 2, 1, 3, 4]}, "offsets must rise"),
        ({"ranks": [4, 1, 2, 4]}, "ranks must count from 1 and rise"),
        ({"ranks": [0, 4, 2, 4]}, "ranks must count from 1"),
        ({"tied": [2, 3, 2, 5]}, "none above its tied"),
        ({"first": [1, 0]}, r"offsets has shape \(5,\), expected \[queries \+ 1\] = \(3,\)"),
        ({"scores": np.zeros((4, 3), np.float32)}, r"scores has shape \(4, 3\), expected"),
        ({"scores": [1, 2, 3, 4]}, "scores has shape"),
        ({"query_pid": [1, 2]}, "query_pid has shape"),
        ({"gallery_pid": [1, 2, 3, 4, 5], "gallery_camid": [1]}, "gallery_camid has shape"),
        ({"gallery_pid": [1, 2]}, r"indices must be rows of the gallery \(2 items\)"),
        ({"candidates": [0.5, 1, 1, 1]}, "candidates must be int64, found float64"),
        ({"query_pid": [2**40, 1, 1, 1]}, "query_pid must be int32, found int64 or larger"),
        ({"query_names": [1, 2, 3, 4]}, "query_names must be str"),
        ({"rules": {"a": np.ones(2)}}, "rules must be plain values"),
        ({"rules": {"a": float("nan")}}, "rules must be plain values"),
        ({"rules": "step"}, "rules must be a dict"),
    ],
)
def test_arrays_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        by_hand(**changes)
    assert "\n" not in str(error.value)
