import dataclasses
import json
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from ccafl_jax.data.layouts.market import read_market
from ccafl_jax.data.opening import open_collection, open_dataset
from ccafl_jax.data.records import tracklets
from ccafl_jax.scoring.feature_set import (
    DISTRACTOR,
    GALLERY,
    MULTI_QUERY,
    QUERY,
    TEST,
    FeatureSet,
    feature_set,
    fingerprint,
    load,
    parts_to_embed,
    save,
)
from data_prep import synthetic
from tests.scoring.made import made_set, market, visible_infrared

SIZE = {"seed": 3, "height": 32, "width": 16}
SMALL = {
    "mars": {"train_ids": 2, "test_ids": 3, "frames": 4},
    "ilidsvid": {"ids": 8, "frames": 4},
    "sysumm01": {"train_ids": 2, "val_ids": 1, "test_ids": 4, "images": 2},
    "regdb": {"ids": 6, "images": 2},
    "veri776": {"train_ids": 2, "test_ids": 4},
}


@pytest.fixture(scope="module")
def collections(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    found = {}
    for layout, options in SMALL.items():
        config = synthetic.layout_of(layout).config(**(SIZE | options))
        synthetic.write_layout(root / layout, layout, config)
        found[layout] = open_collection(layout, root / layout)
    return found


def embedded(collection, parts, count=None, **meta):
    count = sum(map(len, parts.values())) if count is None else count
    features = np.random.default_rng(0).standard_normal((count, 5))
    return feature_set(
        parts,
        features,
        dataset=collection.name,
        camera_codes=collection.camera_codes,
        tables=collection.tables,
        meta=meta,
    )


# From data sets.


def test_images_and_tables(collections):
    collection = collections["veri776"]
    parts = parts_to_embed(collection)
    found = embedded(collection, parts, flip=True)
    query, gallery = collection.parts["query"], collection.parts["gallery"]
    np.testing.assert_array_equal(found.pid, np.concatenate([query.pid, gallery.pid]))
    np.testing.assert_array_equal(found.camid, np.concatenate([query.camid, gallery.camid]))
    np.testing.assert_array_equal(found.part, [QUERY] * len(query) + [GALLERY] * len(gallery))
    assert list(found.names) == [*query.path, *gallery.path]
    assert found.features.dtype == np.float32 and found.camera_codes == collection.camera_codes
    assert found.meta == {"flip": True, "unit": "image"}
    assert set(found.tables) == set(collection.tables)


def test_tracklets(collections):
    collection = collections["mars"]
    parts = parts_to_embed(collection)
    tables = {name: tracklets(records) for name, records in parts.items()}
    count = sum(map(len, tables.values()))
    assert count < sum(map(len, parts.values()))
    found = embedded(collection, parts, count)
    np.testing.assert_array_equal(found.pid, np.concatenate([t.pid for t in tables.values()]))
    np.testing.assert_array_equal(found.camid, np.concatenate([t.camid for t in tables.values()]))
    first = [parts[name].path[int(row)] for name, t in tables.items() for row in t.start]
    assert list(found.names) == first
    assert found.meta["unit"] == "tracklet"
    # Frames one by one are images.
    assert embedded(collection, parts).meta["unit"] == "image"
    with pytest.raises(ValueError, match=rf"3 features of \d+ images and {count} tracklets"):
        embedded(collection, parts, 3)


def test_visible_infrared_sets_leave_the_roles_to_the_trial(collections):
    for layout, options in (("sysumm01", {}), ("regdb", {"split": 2})):
        collection = collections[layout]
        found = embedded(collection, parts_to_embed(collection, **options))
        assert np.all(found.part == TEST) and set(found.modality) == {0, 1}
        assert found.meta["unit"] == "image"
    dataset = open_dataset("regdb", collection.root, split=2)
    assert list(found.names) == [*dataset.query.path, *dataset.gallery.path]
    other = embedded(collection, parts_to_embed(collection, split=1))
    assert list(other.names) != list(found.names)


@pytest.mark.parametrize("options", [{"split": 2}, {"split": 2, "orientation": "tfclip"}])
def test_splits_of_ilidsvid(collections, options):
    collection = collections["ilidsvid"]
    parts = parts_to_embed(collection, **options)
    dataset = open_dataset("ilidsvid", collection.root, **options)
    assert list(parts) == ["query", "gallery"]
    np.testing.assert_array_equal(parts["query"].pid, dataset.query.pid)
    np.testing.assert_array_equal(parts["gallery"].pid, dataset.gallery.pid)


def test_further_parts(tmp_path):
    for folder, names in {
        "bounding_box_train": ["0001_c1.jpg"],
        "query": ["0002_c1.jpg"],
        "bounding_box_test": ["0002_c2.jpg", "-1_c2.jpg"],
        "gt_bbox": ["0002_c1_1.jpg", "0002_c1_2.jpg"],
    }.items():
        (tmp_path / "set" / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / "set" / folder / name).touch()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.jpg").touch()
    collection = read_market(tmp_path / "set", distractors=tmp_path / "others")
    assert list(parts_to_embed(collection)) == ["query", "gallery"]
    parts = parts_to_embed(collection, distractors=True, multi_query=True)
    found = embedded(collection, parts)
    expected = [QUERY, GALLERY, GALLERY, MULTI_QUERY, MULTI_QUERY, DISTRACTOR]
    assert found.part.tolist() == expected
    assert found.rows(MULTI_QUERY).tolist() == [3, 4]
    plain = read_market(tmp_path / "set")
    with pytest.raises(ValueError, match="has no part distractors; leave it out"):
        parts_to_embed(plain, distractors=True)
    with pytest.raises(ValueError, match="market1501 takes no split; leave the option out"):
        parts_to_embed(plain, split=1)


def test_errors_of_parts(collections):
    collection = collections["sysumm01"]
    with pytest.raises(ValueError, match="sysumm01 takes no split here"):
        parts_to_embed(collection, split=1)
    parts = {"galery": collection.parts["test"]}
    with pytest.raises(ValueError, match="unknown part 'galery'; did you mean gallery"):
        embedded(collection, parts)
    with pytest.raises(ValueError, match=r"1 features of \d+ images; expected one for each"):
        embedded(collection, parts_to_embed(collection), 1)


# Files.


def same(first, second):
    for field in dataclasses.fields(FeatureSet):
        one, two = getattr(first, field.name), getattr(second, field.name)
        if field.name == "tables":
            assert set(one) == set(two)
            for name in one:
                np.testing.assert_array_equal(one[name], two[name], strict=True)
        elif isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, two, strict=True)
        else:
            assert one == two, field.name


def test_a_saved_set_comes_back(tmp_path, collections):
    collection = collections["veri776"]
    sets = [
        embedded(collection, parts_to_embed(collection), feature="f", sizes=[256, 128]),
        visible_infrared(),
        made_set([1, 2], [0, 1], [QUERY, GALLERY], names=["ä\udcff.jpg", ""]),
    ]
    for number, one in enumerate(sets):
        path = tmp_path / f"{number}.npz"
        save(path, one)
        same(load(path), one)
        with zipfile.ZipFile(path) as file:
            assert {entry.compress_type for entry in file.infolist()} == {zipfile.ZIP_STORED}
    assert len(list(tmp_path.iterdir())) == len(sets)


def arrays(**changes):
    rng = np.random.default_rng(0)
    found = {
        "query_f": rng.standard_normal((2, 4)),
        "gallery_f": rng.standard_normal((3, 4)).astype(np.float16),
        "query_pid": np.array([5, 6]),
        "gallery_pid": np.array([5.0, -1.0, 6.0]),
        "query_camid": np.array([3, 9], np.uint8),
        "gallery_camid": np.array([9, -1, 3]),
    } | changes
    return {key: value for key, value in found.items() if value is not None}


def test_arrays_of_others(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, **arrays())
    found = load(path)
    np.testing.assert_array_equal(found.features[:2], np.float32(arrays()["query_f"]))
    np.testing.assert_array_equal(found.features[2:], np.float32(arrays()["gallery_f"]))
    assert found.pid.tolist() == [5, 6, 5, -1, 6]
    assert found.camid.tolist() == [0, 1, 1, -1, 0] and found.camera_codes == (3, 9)
    assert found.part.tolist() == [QUERY, QUERY, GALLERY, GALLERY, GALLERY]
    assert found.dataset == ""
    np.savez(path, **arrays(query_camid=None, gallery_camid=None, dataset=np.array("mars")))
    found = load(path)
    assert found.camid.tolist() == [-1] * 5 and found.camera_codes == ()
    assert found.dataset == "mars"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_f": None}, "no query_f among its arrays .* query_camid, gallery_camid"),
        ({"query_f": np.zeros((2, 3))}, r"query_f \(2, 3\) and gallery_f \(3, 4\); expected one"),
        ({"query_f": np.zeros(2)}, r"query_f: found float64\[2\]; expected numbers \[n, dim\]"),
        ({"query_f": np.zeros((0, 4))}, r"query_f: found float64\[0, 4\]; expected"),
        ({"query_pid": np.array([1])}, r"query_pid has shape \(1,\); expected \(2,\)"),
        ({"query_pid": np.array([1.5, 2])}, r"query_pid holds 1.5 \(row 0\); expected 32-bit"),
        ({"query_pid": np.array([1, np.nan])}, r"query_pid holds nan \(row 1\)"),
        ({"query_pid": np.array([1, 2**31])}, r"query_pid holds 2147483648 \(row 1\)"),
        ({"query_pid": np.array(["a", "b"])}, "query_pid is of type <U1; expected whole numbers"),
        ({"query_camids": np.zeros(2)}, "unknown array query_camids: did you mean query_camid"),
        ({"zzzzzz": np.zeros(2)}, "unknown array zzzzzz: known are query_f, .* gallery_names, d"),
        ({"query_camid": None}, "holds gallery_camid but not that of the other side"),
        ({"query_camid": np.array([-3, 0])}, "query_camid holds -3; expected 0 or more, or -1"),
        (
            {"gallery_f": np.array([[1.0] * 4, [np.nan] * 4, [np.inf] * 4])},
            "2 of 5 features are NaN or infinite .first: gallery row 1",
        ),
        (
            {"query_f": np.array([[1.0] * 4, [1e300] * 4])},
            "1 of 5 features are NaN or in",
        ),
        (
            {"gallery_f": np.array([[1.0] * 4, [0.0] * 4, [0.0] * 4])},
            r"2 of 5 features are zero vectors \(first: gallery row 1\)",
        ),
    ],
)
def test_bad_arrays(tmp_path, changes, message):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none.npz"):
        load(tmp_path / "none.npz")
    path = tmp_path / "text.npz"
    for content in (b"", b"words", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"text.npz is damaged or no .npz file of .*; expected"
        ):
            load(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"no .npz file of numbers"):
        load(tmp_path / "array.npy")
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ValueError, match=r"among its arrays \(other\)"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": np.array("ccafl_jax features 9")}, "format 'ccafl_jax features 9', this"),
        ({"pid": None, "about": None}, "lacks pid, about; the file is damaged"),
        ({"pid": np.zeros(3, np.int32)}, r"pid has shape \(3,\); expected \(107,\)"),
        ({"about": np.array("{")}, "the description is damaged"),
        ({"about": np.array(json.dumps({"dataset": "x"}))}, "the description is damaged"),
        ({"part": np.full(107, 9, np.int8)}, "part holds numbers outside 0 to 4"),
        ({"camid": np.full(107, 3, np.int32)}, "camid reaches from 3 to 3; expected -1 to 2"),
        ({"names.offsets": np.arange(3)}, r"names has shape \(2,\)"),
        ({"pid": np.full(107, 0.5)}, r"pid is of type float64 \(first: 0.5\); expected whole"),
        ({"pid": np.full(107, np.nan)}, r"pid is of type float64 \(first: nan\)"),
        ({"pid": np.full(107, "7")}, r"pid is of type <U1 \(first: 7\)"),
        ({"pid": np.arange(107) + 2**32 - 106}, r"pid: 107 of 107 labels .* \(first: 4294967190"),
        ({"camid": np.zeros(107)}, "camid is of type float64"),
        ({"camid": np.arange(107) % 2 + 2**32}, r"camid: 107 of 107 labels .*first: 4294967296"),
        ({"part": np.full(107, 256)}, "part holds numbers outside 0 to 4"),
        ({"modality": np.full(107, 3)}, r"modality holds 3; expected 0 \(visible\) or 1"),
    ],
)
def test_damaged_sets(tmp_path, changes, message):
    path = tmp_path / "set.npz"
    save(path, market())
    with np.load(path) as file:
        content = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: x for name, x in content.items() if x is not None})
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


class Loud:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path):
    path, trace = tmp_path / "set.npz", tmp_path / "trace"
    objects = np.array([[Loud(trace)]], object)
    for content in (arrays(query_f=objects), {"format": objects}):
        np.savez(path, **content)
        with pytest.raises(ValueError, match=r"set.npz is damaged or no .npz file") as error:
            load(path)
        assert "\n" not in str(error.value)
    path.write_bytes(pickle.dumps(Loud(trace)))
    with pytest.raises(ValueError, match=r"set.npz is damaged or no .npz file"):
        load(path)
    assert not trace.exists()


def test_zero_features_are_named_and_not_saved(tmp_path):
    broken = market()
    broken.features[4] = 0
    with pytest.raises(
        ValueError, match=r"1 of 107 .* zero vectors \(first: query row 4, 0004.jpg\)"
    ):
        save(tmp_path / "set.npz", broken)
    assert not list(tmp_path.iterdir())


# The rest.


def test_taking_rows_renumbers_the_tables(collections):
    collection = collections["veri776"]
    found = embedded(collection, parts_to_embed(collection))
    keep = np.ones(len(found), bool)
    gallery = found.rows(GALLERY)
    keep[[found.rows(QUERY)[1], gallery[0], gallery[5]]] = False
    taken = found.take(keep)
    np.testing.assert_array_equal(taken.features, found.features[keep])
    assert len(taken.names) == len(found) - 3 == len(taken)
    assert taken.tables["gt.query"][:3].tolist() == [0, -1, 1]
    for name in ("gt.good.values", "gt.junk.values", "track.values"):
        before = found.names[gallery][found.tables[name]]
        rows = taken.tables[name]
        after = taken.names[taken.rows(GALLERY)][rows]
        gone = np.isin(before, found.names[gallery[[0, 5]]])
        np.testing.assert_array_equal(rows < 0, gone)
        np.testing.assert_array_equal(after[~gone], before[~gone])


def test_columns_must_fit():
    with pytest.raises(ValueError, match=r"names has shape \(1,\); expected \(2,\)"):
        made_set([1, 2], [0, 0], [0, 1], names=["a"])
    with pytest.raises(ValueError, match=r"modality has shape \(3,\)"):
        made_set([1, 2], [0, 0], [0, 1], modality=np.zeros(3))
    found = market()
    with pytest.raises(ValueError, match=r"pid: 1 of 107 .* \(first: 4294967297\)"):
        wide = found.pid.astype(np.int64)
        dataclasses.replace(found, pid=np.where(np.arange(107) == 3, 2**32 + 1, wide))
    wide = dataclasses.replace(found, pid=found.pid.astype(np.int64), part=found.part.tolist())
    assert wide.pid.dtype == np.int32 and wide.part.dtype == np.int8
    np.testing.assert_array_equal(wide.pid, found.pid)


def test_tables_of_another_set():
    tables = {"gt.query": np.arange(20), "gt.good.values": np.array([0, 60])}
    with pytest.raises(ValueError, match=r"gt.good.values holds row 60 .* gallery, which has 60"):
        market(tables=tables).take(np.arange(107) > 3)
    with pytest.raises(ValueError, match=r"there is no table track.values; extract the features"):
        market().lists("track")
    tables = {"track.values": np.zeros(3), "track.offsets": np.array([0, 3])}
    with pytest.raises(ValueError, match=r"track.values is float64\[3\]; expected whole numbers"):
        market(tables=tables).lists("track")


def test_fingerprints():
    base = {"weights": np.arange(4.0), "data": "abc", "sizes": (256, 128)}
    first = fingerprint(**base)
    assert len(first) == 64 and first == fingerprint(**dict(reversed(base.items())))
    different = [
        {"weights": np.arange(4.0)[::-1]},
        {"weights": np.arange(4.0, dtype=np.float32)},
        {"weights": np.arange(4.0).reshape(2, 2)},
        {"data": "abd"},
        {"sizes": (128, 256)},
        {"flip": True},
    ]
    found = {fingerprint(**(base | change)) for change in different}
    assert len(found) == len(different) and first not in found
    assert fingerprint(nested={"a": np.float32(1)}) == fingerprint(nested={"a": 1.0})
    with pytest.raises(ValueError, match="cannot hash object; pass numbers, texts or arrays"):
        fingerprint(x=object())


def test_names_of_ones_own_features(tmp_path):
    arrays = {
        "query_f": np.eye(2), "gallery_f": np.eye(2), "query_pid": [1, 2], "gallery_pid": [1, 2],
        "query_names": ["a.jpg", "b.jpg"], "gallery_names": ["c.jpg", "d.jpg"],
    }  # fmt: skip
    np.savez(tmp_path / "mine.npz", **arrays)
    assert load(tmp_path / "mine.npz").names.tolist() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    np.savez(tmp_path / "mine.npz", **(arrays | {"query_names": ["a.jpg"]}))
    with pytest.raises(ValueError, match=r"query_names is <U5\[1\]; expected 2 texts"):
        load(tmp_path / "mine.npz")
    np.savez(tmp_path / "mine.npz", **(arrays | {"gallery_pid": ["x", "y"]}))
    with pytest.raises(ValueError, match=r"gallery_pid is of type <U1; .*np.unique"):
        load(tmp_path / "mine.npz")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_set_without_tables_comes_back_in_either_form(tmp_path, suffix):
    np.savez(tmp_path / "mine.npz", **arrays())
    made = load(tmp_path / "mine.npz")
    made = dataclasses.replace(
        made,
        names=np.array([f"ü/{row}\n" for row in range(len(made))]),
        modality=np.arange(len(made)) % 2,
        meta={"fingerprint": "a", "unreadable": ["b"]},
    )
    save(tmp_path / f"f{suffix}", made)
    again = load(tmp_path / f"f{suffix}")
    for column in ("features", "pid", "camid", "part", "names", "modality"):
        found, expected = getattr(again, column), getattr(made, column)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    assert (again.dataset, again.camera_codes, again.meta) == (
        made.dataset,
        made.camera_codes,
        made.meta,
    )


def test_tables_of_others_are_told_from_features(tmp_path):
    from pyarrow import parquet, table

    np.savez(tmp_path / "mine.npz", **arrays())
    made = load(tmp_path / "mine.npz")
    path = tmp_path / "f.parquet"
    with pytest.raises(ValueError, match=r"holds no lists of the data set \(gt.query\)"):
        save(path, dataclasses.replace(made, tables={"gt.query": np.zeros(1, np.int64)}))
    assert not path.exists()
    save(path, made)
    saved = parquet.read_table(path)
    parquet.write_table(saved.drop_columns(["pid"]), path)
    with pytest.raises(ValueError, match="has no column pid"):
        load(path)
    parquet.write_table(saved.replace_schema_metadata({}), path)
    with pytest.raises(ValueError, match="no file of features of format 1"):
        load(path)
    parquet.write_table(table({"path": ["a"], "pid": [1]}), path)
    with pytest.raises(ValueError, match="damaged or holds no features"):
        load(path)
    path.write_bytes(b"PAR1 but cut")
    with pytest.raises(ValueError, match="damaged or holds no features"):
        load(path)
