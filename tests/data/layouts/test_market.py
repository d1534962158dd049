import os
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from ccafl_jax.data.labels import intra_camera_labels
from ccafl_jax.data.layouts import select_parts
from ccafl_jax.data.layouts.market import FOLDERS, parse_name, read_market

TRAIN = (
    "0002_c1s1_000451_03.jpg",
    "0002_c10s1_000551_01.jpg",
    "0007_c1s2_000776_01.JPG",
    "0000_c10_0003.png",
)
QUERY = ("0001_c1s1_001051_00.jpg",)
GALLERY = ("-1_c1s1_000401_03.jpg", "0000_c3s1_000051_00.jpg", "0001_c10s1_002301_02.jpg")


def make_tree(
    root: pathlib.Path, train=TRAIN, query=QUERY, gallery=GALLERY, *, linked=False
) -> pathlib.Path:
    for folder, names in zip(FOLDERS.values(), (train, query, gallery), strict=True):
        touch(root / folder, names, linked=linked)
    return root


def touch(folder: pathlib.Path, names, *, linked: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    first = ""
    for number, name in enumerate(names):
        # Links spare most of the work on the disk, but a file has 65,000 at most.
        if linked and number % 50_000:
            os.link(first, f"{folder}/{name}")
        else:
            first = f"{folder}/{name}"
            os.close(os.open(first, os.O_CREAT))


def base_names(records) -> list[str]:
    return [path.rsplit("/", 1)[-1] for path in records.path]


def write_lists(folder: pathlib.Path, query: str, good, junk) -> None:
    folder.mkdir(exist_ok=True)
    stem = query.removesuffix(".jpg")
    savemat(folder / f"{stem}_good.mat", {"good_index": np.array([good], float)})
    savemat(folder / f"{stem}_junk.mat", {"junk_index": np.array([junk], float).T})


# Names.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0002_c1s1_000451_03.jpg", (2, 1)),
        ("-1_c6s3_000401_03.jpg", (-1, 6)),
        ("0001_c2_f0046182.jpg", (1, 2)),
        ("0000_c14_0030.jpg", (0, 14)),
        ("0003_c012_1.jpg", (3, 12)),
        ("0002_c1.jpg", (2, 1)),
        ("._0002_c1s1_000451_03.jpg", None),
        ("x0002_c1s1.jpg", None),
        ("0002_cs1.jpg", None),
        ("0002.jpg", None),
        ("-2_c1s1_000001_00.jpg", None),  # -2 stands for an unknown person inside
        ("4294967298_c1s1_000001_00.jpg", None),
        ("0002_c1234567890.jpg", None),
        ("٣_c١.jpg", None),  # digits, but not of this alphabet
    ],
)
def test_names(name, expected):
    assert parse_name(name) == expected


@given(st.text())
def test_any_text_is_a_name_or_is_not(text):
    label = parse_name(text)
    assert label is None or (text.startswith(("-1", *"0123456789")) and "_c" in text)


@given(
    pid=st.integers(-1, 10**9 - 1),
    camera=st.integers(0, 10**9 - 1),
    width=st.integers(1, 6),
    rest=st.from_regex(r"([^0-9\n/][^/\n]*)?", fullmatch=True),
)
def test_valid_names_come_back(pid, camera, width, rest):
    number = str(pid) if pid < 0 else f"{pid:0{width}d}"
    assert parse_name(f"{number}_c{camera}{rest}") == (pid, camera)


# Folders.


def test_identities_cameras_and_order(tmp_path):
    collection = read_market(make_tree(tmp_path))
    train, query, gallery = (collection.parts[part] for part in ("train", "query", "gallery"))
    assert collection.name == "market1501" and collection.root == str(tmp_path)
    assert collection.camera_codes == (1, 3, 10)
    np.testing.assert_array_equal(train.pid, [0, 2, 2, 7])
    np.testing.assert_array_equal(train.camid, [2, 2, 0, 0])
    np.testing.assert_array_equal(gallery.pid, [-1, 0, 1])
    np.testing.assert_array_equal(gallery.camid, [0, 1, 2])
    np.testing.assert_array_equal(query.pid, [1])
    assert list(train.path) == [f"bounding_box_train/{name}" for name in sorted(TRAIN)]
    assert all(pathlib.Path(train.locate(row)).is_file() for row in range(len(train)))
    assert train.tracklet is None and train.frame is None and train.modality is None
    assert collection.report["warnings"] == () and collection.tables == {}


def test_cameras_of_personx_are_dense(tmp_path):
    names = [f"{pid:04d}_c{camera}_{pid}.jpg" for pid in (1, 2) for camera in (3, 4, 8, 10, 11, 12)]
    collection = read_market(make_tree(tmp_path, names, names[:1], names), name="personx")
    assert collection.camera_codes == (3, 4, 8, 10, 11, 12)
    assert set(collection.parts["train"].camid.tolist()) == set(range(6))


def test_parts_become_splits_and_a_summary(tmp_path):
    lines = select_parts(read_market(make_tree(tmp_path))).summary().splitlines()
    cells = [line.split() for line in lines[1:5]]
    assert cells == [
        ["split", "images", "ids", "cameras"],
        ["train", "4", "3", "2"],
        ["query", "1", "1", "1"],
        ["gallery", "3", "2", "3"],
    ]
    assert "4 = 2 (c1) + 0 (c3) + 2 (c10)" in lines[5]
    assert "1 junk images" in lines[6] and "1 images of ids without a query" in lines[6]


@pytest.mark.parametrize(
    "nested", [".", "Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15"]
)
def test_nested_roots_are_found(tmp_path, nested):
    make_tree(tmp_path / nested)
    (tmp_path / "notes").mkdir()
    (tmp_path / "gt_query" / "query").mkdir(parents=True)  # one folder alone is no data set
    assert read_market(tmp_path).root == str(tmp_path / nested)


def test_the_published_folder_is_chosen_among_several(tmp_path):
    market = make_tree(tmp_path / "market1501" / "Market-1501-v15.09.15")
    duke = make_tree(tmp_path / "dukemtmcreid" / "DukeMTMC-reID")
    (tmp_path / "datasets").symlink_to(tmp_path)  # the same folders once more
    assert read_market(tmp_path, name="market1501").root == str(market)
    assert read_market(tmp_path, name="dukemtmcreid").root == str(duke)
    with pytest.raises(ValueError, match=f"name one of them: {duke}, .*{market}"):
        read_market(tmp_path, name="market_like")
    make_tree(tmp_path / "copy" / "Market-1501-v15.09.15")
    with pytest.raises(ValueError, match=r"holds .* data sets, name one of them"):
        read_market(tmp_path, name="market1501")


def test_a_data_set_that_links_show_twice_is_one(tmp_path):
    root = make_tree(tmp_path / "data" / "set")
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "up").symlink_to(tmp_path)
    found = read_market(tmp_path, name="market_like").root
    assert pathlib.Path(found).resolve() == root.resolve()


def test_the_folder_of_another_data_set_is_warned_of(tmp_path):
    root = make_tree(tmp_path / "DukeMTMC-reID")
    (warning,) = read_market(root, name="market1501").report["warnings"]
    assert warning == f"the folder {root} is named like dukemtmcreid, read as market1501"
    for name in ("dukemtmcreid", "market_like"):
        assert read_market(root, name=name).report["warnings"] == ()
    root = make_tree(tmp_path / "msmt17" / "MSMT17_V2")
    (warning,) = read_market(root, name="msmt17_v1").report["warnings"]
    assert "MSMT17_V2 is named like msmt17_v2, read as msmt17_v1" in warning
    assert read_market(root, name="msmt17_v2").report["warnings"] == ()


def test_several_roots_are_listed(tmp_path):
    make_tree(tmp_path / "a"), make_tree(tmp_path / "b" / "c")
    with pytest.raises(ValueError, match=f"{tmp_path}/a, {tmp_path}/b/c"):
        read_market(tmp_path)


def test_an_own_folder_named_otherwise_is_pointed_to_the_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match="listed in a manifest: data"):
        read_market(tmp_path, name="market_like")
    with pytest.raises(FileNotFoundError, match=r"451_03\.jpg$"):
        read_market(tmp_path)


def test_missing_folders_show_the_expected_tree(tmp_path):
    tree = r"ROOT/\{bounding_box_train,query,bounding_box_test\}/0002_c1s1_000451_03.jpg"
    with pytest.raises(FileNotFoundError, match=f"nowhere is not a folder; expected {tree}"):
        read_market(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"no data set within 3 levels .*{tree}"):
        read_market(tmp_path)
    (tmp_path / "deep" / "bounding_box_train").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=f"deep lacks query and bounding_box_test; .*{tree}"
    ):
        read_market(tmp_path)


def test_nothing_is_dropped_silently(tmp_path):
    stray = ("Thumbs.db", "readme.txt", "portrait.jpg", "x0002_c1s1.jpg", "-1_c1s1_000001_01.jpg")
    root = make_tree(tmp_path, train=TRAIN + stray, query=(*QUERY, "-1_c2s1_000001_00.jpg"))
    collection = read_market(root)
    counts = {"read": 4, "junk dropped": 1, "with an unreadable name": 2, "not an image": 2}
    assert collection.report["train"] == counts
    assert collection.report["query"] | {"read": 1, "junk dropped": 1} == collection.report["query"]
    assert collection.report["gallery"]["read"] == 3
    assert collection.report["warnings"] == (
        "bounding_box_train: 2 images with an unreadable name, left out",
        "bounding_box_train: 1 images junk dropped, left out",
        "query: 1 images junk dropped, left out",
    )
    summary = select_parts(collection).summary()
    assert "train: 1 junk dropped, 2 with an unreadable name, 2 not an image" in summary


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (("Thumbs.db",), "no image found among 1 entries"),
        ((), "no image found among 0 entries"),
        (("a.jpg", "b.jpg"), r"none of 2 image names matches id_cCAMERA... \(e.g. a.jpg\)"),
        (("0001_000.jpg", "0002.jpg"), r"names hold no camera ids \(e.g. 0001_000.jpg\)"),
        (("-1_c1s1_000001_01.jpg",), "no image found"),
    ],
)
def test_unusable_training_sets(tmp_path, train, message):
    with pytest.raises(ValueError, match=message) as error:
        read_market(make_tree(tmp_path, train=train))
    assert "\n" not in str(error.value)


def test_folders_and_links_among_the_images(tmp_path):
    root = make_tree(tmp_path / "set")
    train = root / "bounding_box_train"
    (train / "0008_c1s1_000001_00.jpg").mkdir()
    (train / "0008_c1s1_000002_00.jpg").symlink_to(root)  # leads back up
    (train / "0008_c1s1_000003_00.jpg").symlink_to("0008_c1s1_000003_00.jpg")  # a circle
    (train / "up").symlink_to(tmp_path)
    (train / "0008_c1s1_000004_00.jpg").symlink_to(train / TRAIN[0])  # an image
    (train / "0008_c1s1_000005_00.jpg").symlink_to("gone.jpg")
    collection = read_market(tmp_path)
    assert collection.root == str(root)
    assert collection.report["train"] == {
        "read": 6,
        "junk dropped": 0,
        "with an unreadable name": 0,
        "not an image": 4,
    }
    records = collection.parts["train"]
    row = base_names(records).index("0008_c1s1_000005_00.jpg")
    with pytest.raises(FileNotFoundError, match=r"000005_00.jpg: no such image file"):
        records.read(np.array([row]))


def test_a_link_to_itself_hides_no_data_set(tmp_path):
    root = make_tree(tmp_path / "data" / "set")
    (tmp_path / "data" / "self").symlink_to("self")
    assert read_market(tmp_path).root == str(root)


def test_names_beyond_ascii(tmp_path):
    odd = os.fsdecode(b"0003_c2s1_\xff.jpg")  # no valid UTF-8
    root = make_tree(tmp_path / "Straße 猫", train=("0002_c1s1_é猫.jpg", odd))
    (root / "bounding_box_train" / odd).write_bytes(b"pixels")
    records = read_market(root).parts["train"]
    assert base_names(records) == sorted(["0002_c1s1_é猫.jpg", odd])
    row = base_names(records).index(odd)
    assert records.read(np.array([row])) == [b"pixels"]


# What lies beside the splits.


def test_boxes_drawn_by_hand(tmp_path):
    names = ("0001_c3s1_001051_00.jpg", "0001_c1s1_000001_00.jpg", "0009_c1s1_000001_00.jpg")
    touch(make_tree(tmp_path) / "gt_bbox", (*names, "odd.jpg", "Thumbs.db"))
    collection = read_market(tmp_path)
    boxes = collection.parts["multi_query"]
    assert list(boxes.path) == [f"gt_bbox/{name}" for name in sorted(names[:2])]
    np.testing.assert_array_equal(boxes.camid, [0, 1])
    assert collection.report["multi_query"] == {
        "read": 2,
        "junk dropped": 0,
        "with an unreadable name": 1,
        "not an image": 1,
        "of identities without a query": 1,
    }
    assert collection.report["warnings"] == ("gt_bbox: 1 images with an unreadable name, left out",)


def test_an_empty_folder_of_boxes_gives_no_part(tmp_path):
    touch(make_tree(tmp_path) / "gt_bbox", ())
    assert set(read_market(tmp_path).parts) == {"train", "query", "gallery"}


QUERIES = ("0001_c1s1_001051_00.jpg", "0001_c2s1_000301_00.jpg", "0004_c1s1_000001_00.jpg")
TEST = (
    "-1_c1s1_000401_03.jpg",  # row 0, place 1
    "0000_c3s1_000051_00.jpg",
    "0001_c1s1_001051_01.jpg",
    "0001_c2s1_000301_01.jpg",
    "0004_c2s1_000001_02.jpg",
)


def test_good_and_junk_lists(tmp_path):
    root = make_tree(tmp_path, query=QUERIES, gallery=(*TEST, "Thumbs.db"))
    write_lists(root / "gt_query", QUERIES[1], [3], [1, 4])  # written in another order
    write_lists(root / "gt_query", QUERIES[0], [4], [1, 3])
    write_lists(root / "gt_query", QUERIES[2], [5], [])
    collection = read_market(root)
    tables = collection.tables
    assert {name: table.tolist() for name, table in tables.items()} == {
        "gt.query": [0, 1, 2],
        "gt.good.values": [3, 2, 4],
        "gt.good.offsets": [0, 1, 2, 3],
        "gt.junk.values": [0, 2, 0, 3],
        "gt.junk.offsets": [0, 2, 4, 4],
    }
    assert {table.dtype for table in tables.values()} == {np.dtype(np.int64)}
    parts = {"gt.query": "query", "gt.good.values": "gallery", "gt.junk.values": "gallery"}
    assert collection.row_tables == parts
    gallery = base_names(collection.parts["gallery"])
    assert gallery[tables["gt.good.values"][0]] == "0001_c2s1_000301_01.jpg"
    assert collection.report["warnings"] == ()


def test_queries_without_lists_are_counted(tmp_path):
    root = make_tree(tmp_path, query=QUERIES, gallery=TEST)
    write_lists(root / "gt_query", QUERIES[2], [5], [1])
    collection = read_market(root)
    assert collection.tables["gt.good.offsets"].tolist() == [0, 0, 0, 1]
    assert collection.report["warnings"] == ("gt_query: 2 of 3 queries lack a list",)
    (root / "gt_query" / "0004_c1s1_000001_00_junk.mat").unlink()
    collection = read_market(root)
    assert collection.tables == {}
    assert collection.report["warnings"] == ("gt_query: holds no lists of the 3 queries, left out",)


@pytest.mark.parametrize(
    ("removed", "reason"),
    [
        (TEST[0], "place 5 of 4 gallery images does not exist"),
        (None, "1 of 1 good images show another identity"),
    ],
)
def test_lists_of_another_gallery_are_left_out(tmp_path, removed, reason):
    root = make_tree(tmp_path, query=QUERIES[2:], gallery=TEST)
    write_lists(root / "gt_query", QUERIES[2], [5] if removed else [4], [1])
    if removed:
        (root / "bounding_box_test" / removed).unlink()
    collection = read_market(root)
    assert collection.tables == {}
    (warning,) = collection.report["warnings"]
    assert warning.startswith(f"gt_query: the lists do not fit the gallery ({reason};")


def test_a_damaged_list_is_named(tmp_path):
    root = make_tree(tmp_path, query=QUERIES[2:], gallery=TEST)
    write_lists(root / "gt_query", QUERIES[2], [5], [1])
    path = root / "gt_query" / "0004_c1s1_000001_00_junk.mat"
    for damage in (b"", path.read_bytes()[:150], b"no MATLAB file at all" * 20):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"000001_00_junk.mat is not a readable") as error:
            read_market(root)
        assert "\n" not in str(error.value)
    savemat(path, {"good_index": np.ones((1, 1))})
    with pytest.raises(ValueError, match=r"expected the variable junk_index; .*to go without"):
        read_market(root)


def test_distractors_outside_and_inside_the_root(tmp_path):
    outside = tmp_path / "500k"
    touch(outside / "1" / "deep", ("x.jpg", "b.txt"))
    touch(outside, ("0001_c1.PNG",))
    (outside / "1" / "deep" / "x.jpg").write_bytes(b"pixels")
    (outside / "1" / "again").symlink_to(outside)
    root = make_tree(tmp_path / "set")
    collection = read_market(root, distractors=outside)
    found = collection.parts["distractors"]
    assert list(found.path) == [f"{outside}/0001_c1.PNG", f"{outside}/1/deep/x.jpg"]
    np.testing.assert_array_equal(found.pid, [0, 0])
    np.testing.assert_array_equal(found.camid, [-1, -1])
    assert found.read(np.array([1])) == [b"pixels"]
    assert collection.report["distractors"] == {"read": 2, "not an image": 1}
    assert collection.camera_codes == (1, 3, 10)

    outside.rename(root / "extra")
    found = read_market(root, distractors=root / "extra").parts["distractors"]
    assert list(found.path) == ["extra/0001_c1.PNG", "extra/1/deep/x.jpg"]
    assert found.read(np.array([1])) == [b"pixels"]


def test_unusable_distractors(tmp_path):
    root = make_tree(tmp_path / "set")
    with pytest.raises(FileNotFoundError, match=r"distractors: .*none is not a folder"):
        read_market(root, distractors=root / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"distractors: no image found in .*empty"):
        read_market(root, distractors=tmp_path / "empty")
    for folder in (root, root / "query", tmp_path):
        with pytest.raises(ValueError, match="holds, or lies in, a split"):
            read_market(root, distractors=folder)


# The published size.


def shared_out(images: int, ids: list[int], classes: int, cameras: int) -> list[tuple[int, int]]:
    """Identity and camera of `images` images: every identity, camera and class is used."""
    pairs = [
        (pid, (number + turn) % cameras + 1)
        for number, pid in enumerate(ids)
        for turn in range(classes // len(ids) + (number < classes % len(ids)))
    ]
    return [pairs[image % len(pairs)] for image in range(images)]


def published(labels: list[tuple[int, int]]) -> list[str]:
    return [
        f"{pid:04d}_c{camera}s{image % 3 + 1}_{image:06d}_{image % 8:02d}.jpg"
        for image, (pid, camera) in enumerate(labels)
    ]


def test_published_numbers_of_market1501(tmp_path):
    people = list(range(1, 751))
    junk = [f"-1_c{image % 6 + 1}s1_{image:06d}_00.jpg" for image in range(3_819)]
    gallery = published([(0, 1 + image % 6) for image in range(2_798)])
    gallery += published(shared_out(13_115, people, 3_368, 6))
    root = make_tree(
        tmp_path / "Market-1501-v15.09.15",
        train=published(shared_out(12_936, list(range(751, 1502)), 3_262, 6)),
        query=published(shared_out(3_368, people, 3_368, 6)),
        gallery=junk + gallery,
        linked=True,
    )
    touch(root / "bounding_box_train", ("Thumbs.db",))
    collection = read_market(tmp_path)
    train, query, gallery = (collection.parts[part] for part in ("train", "query", "gallery"))
    assert (len(train), len(query), len(gallery)) == (12_936, 3_368, 19_732)
    assert [len(np.unique(part.pid)) for part in (train, query, gallery)] == [751, 750, 752]
    assert intra_camera_labels(train.pid, train.camid).num_classes == 3_262
    assert int(np.sum(gallery.pid == -1)) == 3_819 and int(np.sum(gallery.pid == 0)) == 2_798
    assert collection.camera_codes == (1, 2, 3, 4, 5, 6)
    assert collection.report["train"]["not an image"] == 1
