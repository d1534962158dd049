import os
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccafl_jax.data.layouts.veri import FOLDERS, parse_name, read_veri

TRAIN = ("0005_c001_00016450_0.jpg", "0005_c020_00000010_1.jpg", "0007_c003_00016455_0.JPG")
QUERY = ("0002_c002_00030600_0.jpg", "0002_c003_00030700_0.jpg", "0009_c003_00000001_0.jpg")
GALLERY = (
    "0002_c002_00030600_0.jpg",
    "0002_c002_00030605_1.jpg",
    "0002_c003_00030700_0.jpg",
    "0002_c003_00030705_0.jpg",
    "0009_c001_00000007_0.jpg",
    "0009_c003_00000001_0.jpg",
)


def make_tree(root: pathlib.Path, train=TRAIN, query=QUERY, gallery=GALLERY) -> pathlib.Path:
    for folder, names in zip(FOLDERS.values(), (train, query, gallery), strict=True):
        (root / folder).mkdir(parents=True)
        for name in names:
            os.close(os.open(root / folder / name, os.O_CREAT))
    return root


def lists_of(collection, table: str) -> list[list[int]]:
    offsets = collection.tables[f"{table}.offsets"]
    rows = np.split(collection.tables[f"{table}.values"], offsets[1:-1])
    assert offsets[0] == 0 and offsets[-1] == len(collection.tables[f"{table}.values"])
    return [row.tolist() for row in rows]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0001_c001_00016450_0.jpg", (1, 1, 16450)),
        ("0776_c020_00000600_12.jpg", (776, 20, 600)),
        ("0001_c001.jpg", None),
        ("0001_c001_x_0.jpg", None),
        ("a0001_c001_00016450_0.jpg", None),
        ("0001_c001_1234567890_0.jpg", None),
        ("-3_c001_00016450_0.jpg", None),
    ],
)
def test_names(name, expected):
    assert parse_name(name) == expected


@given(st.text() | st.from_regex(r"-?[0-9]+_c[0-9]+_?[0-9]*.*", fullmatch=True))
def test_any_text_is_a_name_or_is_not(text):
    label = parse_name(text)
    assert label is None or (len(label) == 3 and max(label) < 2**31 and label[0] >= -1)


@given(st.integers(0, 9999), st.integers(0, 999), st.integers(0, 10**8 - 1), st.integers(0, 99))
def test_valid_names_come_back(vehicle, camera, frame, index):
    name = f"{vehicle:04d}_c{camera:03d}_{frame:08d}_{index}.jpg"
    assert parse_name(name) == (vehicle, camera, frame)


def test_vehicles_cameras_and_frames(tmp_path):
    collection = read_veri(make_tree(tmp_path / "veri" / "VeRi").parents[1])
    train, query, gallery = (collection.parts[part] for part in ("train", "query", "gallery"))
    assert collection.name == "veri776" and collection.root == str(tmp_path / "veri" / "VeRi")
    assert collection.camera_codes == (1, 2, 3, 20)
    assert list(train.path) == [f"image_train/{name}" for name in TRAIN]
    np.testing.assert_array_equal(train.pid, [5, 5, 7])
    np.testing.assert_array_equal(train.camid, [0, 3, 2])
    np.testing.assert_array_equal(train.frame, [16450, 10, 16455])
    assert train.frame.dtype == np.int32
    assert (len(query), len(gallery)) == (3, 6)
    assert collection.tables == {} and collection.report["warnings"] == ()


def test_nothing_is_dropped_silently(tmp_path):
    root = make_tree(tmp_path, train=(*TRAIN, "0005_c001.jpg", "-1_c001_00000001_0.jpg", "a.db"))
    (root / "image_train" / "0005_c001_00016450_9.jpg").mkdir()
    collection = read_veri(root)
    assert collection.report["train"] == {
        "read": 3,
        "junk dropped": 1,
        "with an unreadable name": 1,
        "not an image": 2,
    }
    assert collection.report["warnings"] == (
        "image_train: 1 images with an unreadable name, left out",
        "image_train: 1 images junk dropped, left out",
    )


def test_what_is_missing_or_misnamed(tmp_path):
    (tmp_path / "VeRi" / "image_train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"VeRi lacks image_query and image_test; .*ROOT/"):
        read_veri(tmp_path)
    root = make_tree(tmp_path / "other", train=("0001_000.jpg",))
    with pytest.raises(ValueError, match=r"no camera ids \(e.g. 0001_000.jpg\).*ID_cCAMERA_FRAME"):
        read_veri(root)


def test_the_published_folder_is_chosen_among_several(tmp_path):
    make_tree(tmp_path / "synthetic")
    root = make_tree(tmp_path / "veri" / "VeRi")
    assert read_veri(tmp_path).root == str(root)


# Lists for the queries.


def test_lists_in_the_order_of_names(tmp_path):
    root = make_tree(tmp_path)
    (root / "gt_index.txt").write_text("3 4 \n1 2 \n5 \n")
    (root / "jk_index.txt").write_text("1 2 \n3 4 \n6 \n")
    collection = read_veri(root)
    assert lists_of(collection, "gt.good") == [[2, 3], [0, 1], [4]]
    assert lists_of(collection, "gt.junk") == [[0, 1], [2, 3], [5]]
    assert {table.dtype for table in collection.tables.values()} == {np.dtype(np.int64)}
    assert collection.report["warnings"] == ()


def test_lists_in_an_order_of_their_own(tmp_path):
    root = make_tree(tmp_path)
    (root / "name_query.txt").write_text("\r\n".join((QUERY[2], QUERY[0], QUERY[1])) + "\r\n")
    (root / "name_test.txt").write_text("\n".join(reversed(GALLERY)) + "\n")
    (root / "gt_index.txt").write_text("2\n3 4\n6\n")
    collection = read_veri(root)
    assert lists_of(collection, "gt.good") == [[3, 2], [0], [4]]
    assert "gt.junk.values" not in collection.tables
    assert collection.report["warnings"] == ()


def test_absent_images_of_the_lists_are_counted(tmp_path):
    root = make_tree(tmp_path, query=QUERY[1:], gallery=GALLERY[1:])
    (root / "name_query.txt").write_text("\n".join(QUERY[:2]))
    (root / "name_test.txt").write_text("\n".join(GALLERY))
    (root / "gt_index.txt").write_text("3 4\n1 2\n")
    collection = read_veri(root)
    assert lists_of(collection, "gt.good") == [[0], []]
    assert collection.report["warnings"] == (
        "gt_index.txt: 1 lines are of queries that are not on disk, and 1 queries have no line",
        "gt_index.txt: 1 good images are absent, left out",
    )


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("3 4\n1 2\n", "gt_index.txt: 2 lines for 3 queries; it is left out"),
        ("", "gt_index.txt: 0 lines for 3 queries; it is left out"),
        ("3 7\n1 2\n5\n", "place 7 of 6 gallery images does not exist"),
        ("3 0\n1 2\n5\n", "place 0 of 6 gallery images does not exist"),
        ("3 5\n1 2\n5\n", "1 of 5 good images show another identity"),
    ],
)
def test_lists_of_another_gallery_are_left_out(tmp_path, text, warning):
    root = make_tree(tmp_path)
    (root / "gt_index.txt").write_text(text)
    collection = read_veri(root)
    assert collection.tables == {}
    (found,) = collection.report["warnings"]
    assert warning in found


def test_words_among_the_places_are_an_error(tmp_path):
    root = make_tree(tmp_path)
    (root / "gt_index.txt").write_text("3 4\n1 zwei\n5\n")
    with pytest.raises(ValueError, match=r"gt_index.txt, line 2: expected numbers .* '1 zwei'"):
        read_veri(root)


# Tracks.


@pytest.mark.parametrize("file", ["test_track.txt", "test_track_VeRi.txt"])
def test_tracks(tmp_path, file):
    root = make_tree(tmp_path)
    (root / file).write_text(
        f"0002_c002_t00 {GALLERY[0]} {GALLERY[1]} \n"  # a name of its own
        f"{GALLERY[2]} {GALLERY[2]} {GALLERY[3]}\n"  # named by its first image
        f"{GALLERY[5]}\n\n"  # images alone
    )
    collection = read_veri(root)
    assert lists_of(collection, "track") == [[0, 1], [2, 3], [5]]
    assert collection.report["warnings"] == ()


def test_absent_images_of_tracks_are_counted(tmp_path):
    root = make_tree(tmp_path)
    (root / "test_track.txt").write_text(
        f"t1 {GALLERY[0]} no.jpg {GALLERY[1]} neither.jpg\nt2 no.jpg\nt3 {GALLERY[2]}\n"
    )
    collection = read_veri(root)
    assert lists_of(collection, "track") == [[0, 1], [2]]
    (warning,) = collection.report["warnings"]
    assert warning == "test_track.txt: 3 images of 2 tracks are not on disk, left out"
