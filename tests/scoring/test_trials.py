import dataclasses

import numpy as np
import pytest

from ccafl_jax.data.layouts import select
from ccafl_jax.data.opening import open_collection
from ccafl_jax.evaluation.protocols import protocol_of
from ccafl_jax.scoring.feature_set import (
    DISTRACTOR,
    GALLERY,
    QUERY,
    feature_set,
    parts_to_embed,
)
from ccafl_jax.scoring.trials import same_item, trials
from data_prep import synthetic
from tests.scoring.made import made_set, market, visible_infrared


def collection_of(root, layout, **options):
    config = synthetic.layout_of(layout).config(seed=3, height=32, width=16, **options)
    synthetic.write_layout(root / layout, layout, config)
    return open_collection(layout, root / layout)


def embedded(collection, count=None, **selection):
    parts = parts_to_embed(collection, **selection)
    count = sum(map(len, parts.values())) if count is None else count
    features = np.random.default_rng(0).standard_normal((count, 5))
    codes, tables = collection.camera_codes, collection.tables
    return feature_set(parts, features, dataset=collection.name, camera_codes=codes, tables=tables)


@pytest.fixture(scope="module")
def sysumm01(tmp_path_factory):
    options = {"train_ids": 2, "val_ids": 1, "test_ids": 5, "images": 3}
    return collection_of(tmp_path_factory.mktemp("sets"), "sysumm01", **options)


@pytest.mark.parametrize("draw", ["seeded", "official"])
@pytest.mark.parametrize("mode", ["all", "indoor"])
@pytest.mark.parametrize("shots", [1, 2])
def test_draws_are_those_of_the_data_set(sysumm01, draw, mode, shots):
    options = {"draw": draw, "mode": mode, "shots": shots}
    found = embedded(sysumm01)
    drawn = trials(found, protocol_of("sysumm01").replace(**options))
    assert len(drawn) == 10
    for number, trial in enumerate(drawn):
        expected = select(sysumm01, trial=number, **options)
        assert list(found.names[trial.query]) == list(expected.query.path)
        assert list(found.names[trial.gallery]) == list(expected.gallery.path)
        np.testing.assert_array_equal(found.pid[trial.gallery], expected.gallery.pid)
        assert trial.name == f"draw {number}"


def test_draws_differ(sysumm01):
    found = embedded(sysumm01)
    base = protocol_of("sysumm01")
    seeded = trials(found, base)
    assert any(not np.array_equal(t.gallery, seeded[0].gallery) for t in seeded[1:])
    official = trials(found, base.replace(draw="official"))
    assert any(
        not np.array_equal(a.gallery, b.gallery) for a, b in zip(seeded, official, strict=True)
    )
    indoor = trials(found, base.replace(mode="indoor"))
    assert len(indoor[0].gallery) < len(seeded[0].gallery)
    assert len(trials(found, base.replace(trials=3))) == 3


def test_official_draws_need_their_tables():
    with pytest.raises(FileNotFoundError, match=r"was read without .*rand_perm_cam\.mat"):
        trials(visible_infrared(), protocol_of("sysumm01").replace(draw="official"))


@pytest.mark.parametrize("direction", ["visible_to_thermal", "thermal_to_visible"])
def test_directions_of_regdb(tmp_path, direction):
    collection = collection_of(tmp_path, "regdb", ids=6, images=2)
    found = embedded(collection, split=2)
    (trial,) = trials(found, protocol_of("regdb").replace(direction=direction))
    expected = select(collection, split=2, direction=direction)
    assert list(found.names[trial.query]) == list(expected.query.path)
    assert list(found.names[trial.gallery]) == list(expected.gallery.path)
    assert trial.name == direction


def test_ilidsvid_searches_camera_1_in_camera_2():
    found = made_set([1, 2, 1, 2], [0, 0, 1, 1], [QUERY] * 2 + [GALLERY] * 2, dataset="ilidsvid")
    (trial,) = trials(found, protocol_of("ilidsvid"))
    assert trial.query.tolist() == [0, 1] and trial.gallery.tolist() == [2, 3]


@pytest.mark.parametrize("name", ["mars", "lsvid"])
def test_queries_stand_in_the_gallery_of_video_sets(name):
    pid = [1, 2, -1, 0, 1, 2]
    found = made_set(pid, [0, 1, 0, 0, 1, 0], [QUERY] * 2 + [GALLERY] * 4, dataset=name)
    (trial,) = trials(found, protocol_of(name))
    assert trial.query.tolist() == [0, 1]
    assert trial.gallery.tolist() == [0, 1, 3, 4, 5] and trial.junk == 1
    (without,) = trials(found, protocol_of(name).replace(query_in_gallery=False))
    assert without.gallery.tolist() == [3, 4, 5]


def test_junk_and_unlabelled_rows_are_counted():
    pid = [1, -2, 1, -1, -2, 0]
    found = made_set(pid, [0] * 6, [QUERY] * 2 + [GALLERY] * 4)
    (trial,) = trials(found, protocol_of("market1501"))
    assert trial.query.tolist() == [0] and trial.unlabelled == 1
    assert trial.gallery.tolist() == [2, 5] and trial.junk == 2


def test_distractors_join_on_request():
    found = market()
    (without,) = trials(found, protocol_of("market1501"))
    (joined,) = trials(found, protocol_of("market1501"), distractors=True)
    extra = found.rows(DISTRACTOR)
    assert len(extra) == 12
    np.testing.assert_array_equal(joined.gallery, np.append(without.gallery, extra))
    alone = found.take(found.part != DISTRACTOR)
    with pytest.raises(ValueError, match="there are no features of distractors"):
        trials(alone, protocol_of("market1501"), distractors=True)


def test_a_set_of_queries_and_gallery_is_ranked_once():
    found = made_set([1, 1], [2, 0], [QUERY, GALLERY], dataset="sysumm01")
    (trial,) = trials(found, protocol_of("sysumm01"))
    assert (trial.query.tolist(), trial.gallery.tolist()) == ([0], [1])


def test_images_of_one_name_are_one_image():
    parts = [QUERY] * 2 + [GALLERY] * 3
    found = made_set([1, 2, 1, 2, 1], [0] * 5, parts, names=["b", "a", "c", "b", "x"])
    (trial,) = trials(found, protocol_of("market1501"))
    query, gallery = same_item(found, trial)
    assert query[0] != query[1] and np.all(query >= 0)
    assert gallery.tolist() == [-1, query[0], -1]


def test_without_names_a_row_is_an_image():
    found = made_set([1, 2, 1], [0, 1, 1], [QUERY] * 2 + [GALLERY], names=[""] * 3)
    (trial,) = trials(found, protocol_of("mars"))
    query, gallery = same_item(found, trial)
    assert trial.gallery.tolist() == [0, 1, 2]
    assert gallery.tolist() == [query[0], query[1], -1]


@pytest.mark.parametrize(
    ("change", "protocol", "message"),
    [
        ({}, "market1501", "192 rows are neither query nor gallery, which market1501 needs"),
        ({"modality": None}, "sysumm01", "sysumm01 goes by modality"),
        ({"modality": None}, "regdb", "regdb goes by modality"),
        ({"modality": np.zeros(192, np.int8)}, "regdb", "192 queries .* and 0 gallery rows"),
    ],
)
def test_sets_that_do_not_fit(change, protocol, message):
    with pytest.raises(ValueError, match=message):
        trials(visible_infrared(**change), protocol_of(protocol))


def test_empty_sides():
    found = made_set([1, -1], [0, 0], [QUERY, GALLERY])
    with pytest.raises(ValueError, match=r"1 queries .* 1 gallery rows \(of which 0 are not junk"):
        trials(found, protocol_of("market1501"))
    with pytest.raises(ValueError, match="0 queries"):
        trials(found.take([1]), protocol_of("market1501"))


@pytest.mark.parametrize("number", [0, -1, -2, 3, -(2**31), 2**31 - 1])
def test_distractors_are_nobody_whatever_the_set_calls_them(number):
    found = market()
    own = np.where(found.part == DISTRACTOR, number, found.pid)
    protocol = protocol_of("market1501").replace(junk=(-1, -2, -3))
    (trial,) = trials(dataclasses.replace(found, pid=own), protocol, distractors=True)
    joined = found.part[trial.gallery] == DISTRACTOR
    assert joined.sum() == 12
    pid = trial.gallery_pid[joined]
    assert len(set(pid.tolist())) == 12 and trial.gallery_pid.dtype == np.int32
    assert not np.isin(pid, [*own, *protocol.junk]).any()
    np.testing.assert_array_equal(trial.gallery_pid[~joined], found.pid[trial.gallery[~joined]])


def test_part_of_a_gallery_is_kept():
    (trial,) = trials(market(), protocol_of("market1501"), distractors=True)
    kept = np.arange(len(trial.gallery)) % 2 == 0
    part = trial.keep(kept)
    np.testing.assert_array_equal(part.gallery, trial.gallery[kept])
    np.testing.assert_array_equal(part.gallery_pid, trial.gallery_pid[kept])
    np.testing.assert_array_equal(part.query, trial.query)


def test_cameras_that_draws_cannot_go_by():
    found, protocol = visible_infrared(), protocol_of("sysumm01")
    some = np.where(np.arange(len(found)) < 5, -1, found.camid)
    with pytest.raises(ValueError, match="5 of 192 rows have no known camera, but sysumm01 draws"):
        trials(dataclasses.replace(found, camid=some), protocol)
    zero_based = dataclasses.replace(found, camera_codes=(0, 1, 2, 3, 4, 5))
    message = "codes 0, 1, 2, 3, 4, 5, but sysumm01 goes by codes and knows 1, 2, 3, 4, 5, 6: give"
    with pytest.raises(ValueError, match=message):
        trials(zero_based, protocol)
    # An unused code does not count.
    more = dataclasses.replace(found, camera_codes=(1, 2, 3, 4, 5, 6, 9))
    assert len(trials(more, protocol)) == 10
    turned = dataclasses.replace(found, modality=1 - found.modality)
    with pytest.raises(ValueError, match="192 of 192 rows have a modality that is not their cam"):
        trials(turned, protocol)


def test_cameras_that_locations_cannot_go_by():
    found = made_set([1, 1], [0, 1], [QUERY, GALLERY], dataset="sysumm01", camera_codes=(0, 5))
    with pytest.raises(ValueError, match="cameras have the codes 0, 5, but sysumm01 goes by codes"):
        trials(found, protocol_of("sysumm01"))
    assert len(trials(found, protocol_of("sysumm01").of_parts().replace(same_camera="none"))) == 1
    unknown = made_set([1, 1], [-1, 0], [QUERY, GALLERY], camera_codes=(3,))
    assert len(trials(unknown, protocol_of("sysumm01"))) == 1


def test_rows_of_test_and_queries_do_not_mix():
    found = visible_infrared()
    mixed = np.where(np.arange(len(found)) < 4, QUERY, found.part)
    with pytest.raises(ValueError, match="188 rows are of the part test, 4 are queries and 0 gall"):
        trials(dataclasses.replace(found, part=mixed), protocol_of("sysumm01"))
