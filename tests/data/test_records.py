import dataclasses

import numpy as np
import pytest

from ccafl_jax.data.layouts import select
from ccafl_jax.data.records import (
    INFRARED,
    VISIBLE,
    RawPart,
    Records,
    Tracklets,
    collect,
    take_tracklets,
    tracklets,
)
from tests.data.images import records_of


def film(**columns):
    part = RawPart(list("abcdef"), [4, 4, 4, 6, 6, 4], [1, 1, 1, 2, 2, 2], **columns)
    other = RawPart(list("uvw"), [1, 2, 3], [2, 2, 1], tracklet=[0, 1, 1])
    return collect(
        "market_like",
        "somewhere",
        {"train": part, "query": other},
        tables={"kept": np.array([5, 0, -1, 3]), "names": np.array([70, 71, 72])},
        row_tables={"kept": "train", "absent": "query"},
        report={"train": {"read": 6, "odd": 1}},
    )


TRACKS = [0, 0, 1, 1, 1, 2]


def test_columns_must_fit():
    records = records_of("somewhere", ["a", "b"])
    with pytest.raises(ValueError, match=r"pid \(3,\) and index \(2,\)"):
        Records(records.source, records.index, np.zeros(3, np.int32), records.camid)


def test_tracklets_stand_side_by_side_with_one_label():
    part = RawPart(list("abcdef"), [4, 4, 6, 6, 6, 4], [1, 1, 2, 2, 2, 2], tracklet=TRACKS)
    records = collect("x", ".", {"train": part}).parts["train"]
    table = tracklets(records)
    assert isinstance(table, Tracklets) and len(table) == 3
    assert table.start.tolist() == [0, 2, 5] and table.count.tolist() == [2, 3, 1]
    assert table.pid.tolist() == [4, 6, 4] and table.camid.tolist() == [0, 1, 1]
    taken = take_tracklets(records, table, np.array([2, 0]))
    assert list(taken.path) == ["f", "a", "b"] and taken.tracklet.tolist() == [2, 0, 0]
    assert tracklets(taken).number.tolist() == [2, 0]
    with pytest.raises(ValueError, match="side by side"):
        tracklets(Records(records.source, records.index, records.pid, records.camid, records.pid))
    with pytest.raises(ValueError, match="its pid differs from that of the first frame"):
        tracklets(film(tracklet=[0] * 6).parts["train"])
    with pytest.raises(ValueError, match="single images, without tracklets"):
        tracklets(film().parts["train"])


def test_dropping_renumbers_rows_and_leaves_the_numbers_of_tracklets():
    left = film(tracklet=TRACKS).drop("train", np.array([0, 1, 3]), reason="gone")
    train = left.parts["train"]
    assert list(train.path) == ["c", "e", "f"] and train.tracklet.tolist() == [1, 1, 2]
    assert left.tables["kept"].tolist() == [2, -1, -1, -1]
    assert left.tables["names"][np.unique(train.tracklet)].tolist() == [71, 72]
    assert left.report["train"] == {"read": 3, "odd": 1, "gone": 3}
    again = left.drop("train", np.array([0]), reason="gone")
    assert again.report["train"] == {"read": 2, "odd": 1, "gone": 4}
    assert again.tables["kept"].tolist() == [1, -1, -1, -1]
    assert list(left.parts["query"].path) == list("uvw")


def test_joining_keeps_the_columns_of_both():
    collection = film(tracklet=TRACKS, frame=range(6))
    train, query = collection.parts["train"], collection.parts["query"]
    both = train.join(query)
    assert list(both.path) == list("abcdefuvw") and both.frame is None
    assert both.tracklet.tolist() == [*TRACKS, 3, 4, 4]
    np.testing.assert_array_equal(both.pid, np.concatenate([train.pid, query.pid]))
    assert both.modality is None
    dark = dataclasses.replace(query, modality=np.full(3, INFRARED, np.int8))
    assert train.join(dark).modality.tolist() == [VISIBLE] * 6 + [INFRARED] * 3
    with pytest.raises(ValueError, match="only records of one data set"):
        train.join(film().parts["query"])


def test_a_path_that_stands_twice_is_named():
    with pytest.raises(ValueError, match="root: train: a is listed twice"):
        collect("x", "root", {"train": RawPart(["a", "b", "a"], [1, 2, 3], [1, 1, 1])})
    with pytest.raises(ValueError, match="root: no image found"):
        collect("x", "root", {"train": RawPart([], [], [])})


def test_distractors_join_the_gallery_on_demand():
    one = RawPart(["a"], [1], [1])
    parts = {"train": one, "query": one, "gallery": RawPart(["g", "h"], [1, 2], [2, 1])}
    plain = collect("market_like", ".", parts)
    with pytest.raises(ValueError, match="has no part with distractors"):
        select(plain, distractors=True)
    more = collect("market_like", ".", parts | {"distractors": RawPart(["d"], [0], [-1])})
    assert list(select(more).gallery.path) == ["g", "h"]
    assert "1 distractors left aside" in select(more).summary()
    joined = select(more, distractors=True).gallery
    assert list(joined.path) == ["g", "h", "d"] and joined.camid.tolist() == [1, 0, -1]
    with pytest.raises(ValueError, match="market_like takes no split"):
        select(plain, split=1)
