import dataclasses
import json
import os
import pathlib
import random
import shutil

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ccafl_jax.data.decoded import load_images
from ccafl_jax.data.layouts.sysumm01 import (
    GALLERY_CAMERAS,
    draw_gallery,
    parse_ids,
    read_sysumm01,
    select_sysumm01,
    write_arrays,
)
from ccafl_jax.data.records import BROKEN, INFRARED, VISIBLE
from ccafl_jax.data.sources import PixelFormat, decode_image
from data_prep.synthetic import layout_of as synthetic_layout
from data_prep.synthetic import write_layout

LISTS = {"train": "5,1, 2 ,", "val": "7\r\n", "test": "10, 3,6\n"}
# Images by (camera, id): nobody is everywhere, id 9 is in no list, id 6 has no infrared image.
COUNTS = {
    **{(1, 1): 2, (4, 1): 1, (3, 1): 2, (2, 2): 1, (6, 2): 3, (5, 5): 2, (6, 5): 1},
    **{(1, 7): 1, (3, 7): 1, (1, 9): 4, (6, 9): 1},
    **{(1, 3): 7, (2, 3): 12, (3, 3): 2, (4, 3): 11, (5, 3): 5},
    **{(2, 6): 9, (5, 6): 3, (1, 10): 13, (4, 10): 2, (3, 10): 1, (6, 10): 4},
}
TEST_IDS = (3, 6, 10)


def make_tree(root: pathlib.Path, counts=COUNTS, lists=LISTS) -> pathlib.Path:
    for camera in range(1, 7):
        (root / f"cam{camera}").mkdir(parents=True)
    for (camera, pid), count in counts.items():
        folder = root / f"cam{camera}" / f"{pid:04d}"
        folder.mkdir()
        for number in range(1, count + 1):
            (folder / f"{number:04d}.jpg").touch()
    (root / "exp").mkdir()
    for which, text in lists.items():
        (root / "exp" / f"{which}_id.txt").write_bytes(text.encode())
    return root


def permutations(counts=COUNTS, ids: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    cameras = np.empty((6, 1), object)
    for camera in range(6):
        cell = np.empty((ids, 1), object)
        for pid in range(ids):
            count = counts.get((camera + 1, pid + 1), 0)
            rows = [rng.permutation(count) + 1 for _ in range(10)]
            cell[pid, 0] = np.array(rows, np.uint8) if count else np.zeros((0, 0))
        cameras[camera, 0] = cell
    return cameras


def save_permutations(root: pathlib.Path, cells: np.ndarray) -> None:
    scipy.io.savemat(root / "exp" / "rand_perm_cam.mat", {"rand_perm_cam": cells})


def test_reads_both_parts_in_their_order(tmp_path):
    collection = read_sysumm01(make_tree(tmp_path))
    train, test = collection.parts["train"], collection.parts["test"]
    assert collection.camera_codes == (1, 2, 3, 4, 5, 6)
    assert [(p[:9], v) for p, v in zip(train.path, train.modality.tolist(), strict=True)] == [
        *[("cam1/0001", VISIBLE)] * 2,
        ("cam4/0001", VISIBLE),
        ("cam2/0002", VISIBLE),
        *[("cam5/0005", VISIBLE)] * 2,
        ("cam1/0007", VISIBLE),
        *[("cam3/0001", INFRARED)] * 2,
        *[("cam6/0002", INFRARED)] * 3,
        ("cam6/0005", INFRARED),
        ("cam3/0007", INFRARED),
    ]
    np.testing.assert_array_equal(train.pid, [1, 1, 1, 2, 5, 5, 7, 1, 1, 2, 2, 2, 5, 7])
    assert list(test.path) == sorted(
        f"cam{camera}/{pid:04d}/{number + 1:04d}.jpg"
        for (camera, pid), count in COUNTS.items()
        if pid in TEST_IDS
        for number in range(count)
    )
    assert [int(p[3]) for p in test.path] == (test.camid + 1).tolist()
    assert [int(p[5:9]) for p in test.path] == test.pid.tolist()
    assert collection.report == {
        "train": {
            "read": 14,
            "of ids in no list": 5,
            "not an image": 0,
            "outside the folders of ids": 0,
        },
        "test": {"read": 69, "not an image": 0},
        "warnings": (),
    }


def test_traps_are_counted_and_do_no_harm(tmp_path):
    root = make_tree(tmp_path / "数据 ü" / "SYSU-MM01")
    (root / "cam1/0003/Thumbs.db").touch()
    (root / "cam1/0003/._0001.jpg").touch()
    (root / "cam1/0001/notes.txt").touch()
    (root / "cam6/0009/notes.txt").touch()
    (root / "cam1/0007/0001.jpg").rename(root / "cam1/0007/0001.JPG")
    (root / "cam2/.DS_Store").touch()
    (root / "cam2/extra").mkdir()
    (root / "cam2/0011").symlink_to(root / "cam2/0011")  # a loop
    (root / "exp/train_id.txt").write_bytes(b"\xef\xbb\xbf1,2,5,12,4")
    collection = read_sysumm01(tmp_path, name="other")
    assert collection.name == "other" and collection.root == str(root)
    assert "cam1/0007/0001.JPG" in list(collection.parts["train"].path)
    assert collection.report["train"] == {
        "read": 14,
        "of ids in no list": 5,
        "not an image": 2,
        "outside the folders of ids": 3,
    }
    assert collection.report["test"] == {"read": 69, "not an image": 2}
    assert collection.report["warnings"] == ("2 of 6 training ids have no image (e.g. 0004)",)


def test_lists_of_matlab(tmp_path):
    root = make_tree(tmp_path)
    for which, ids in (("train", [[5.0, 1.0, 2.0]]), ("val", [[7]]), ("test", [[3], [6], [10]])):
        (root / "exp" / f"{which}_id.txt").unlink()
        scipy.io.savemat(root / "exp" / f"{which}_id.mat", {"id": np.array(ids)})
    collection = read_sysumm01(root)
    assert len(collection.parts["train"]) == 14 and len(collection.parts["test"]) == 69


@pytest.mark.parametrize(
    "ids, message",
    [([[1.5, 2]], " id holds float64, expected"), ([[-3]], " '-3' is not an id"), ([[]], " no id")],
)
def test_matlab_list_that_is_none(tmp_path, ids, message):
    root = make_tree(tmp_path)
    (root / "exp/val_id.txt").unlink()
    scipy.io.savemat(root / "exp/val_id.mat", {"id": np.array(ids)})
    with pytest.raises(ValueError, match=rf"val_id.mat:{message}"):
        read_sysumm01(root)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"no MATLAB file", r"val_id.mat is not a readable MATLAB file \("),
        (None, "val_id.mat holds ids, expected the variable id"),
    ],
)
def test_matlab_list_that_cannot_be_read(tmp_path, content, message):
    root = make_tree(tmp_path)
    (root / "exp/val_id.txt").unlink()
    if content is None:
        scipy.io.savemat(root / "exp/val_id.mat", {"ids": np.array([7])})
    else:
        (root / "exp/val_id.mat").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_sysumm01(root)


def test_missing_list(tmp_path):
    root = make_tree(tmp_path)
    (root / "exp/val_id.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks val_id.txt and val_id.mat; expected"):
        read_sysumm01(root)


def test_missing_camera(tmp_path):
    root = make_tree(tmp_path, {key: n for key, n in COUNTS.items() if key[0] != 5})
    (root / "cam5").rmdir()
    with pytest.raises(FileNotFoundError, match=r"lacks cam5; expected ROOT/cam1/0001/0001.jpg"):
        read_sysumm01(root)


@pytest.mark.parametrize(
    "lists, message",
    [
        ({"val": "7,6,3"}, r"exp: 2 ids are in the training and the test lists \(e.g. 3\)"),
        ({"test": " ,\n"}, "test_id.txt: no id in it"),
        ({"train": "1,2;5"}, "train_id.txt: '2;5' is not an id"),
        ({"test": "8,11"}, r"no image of the 2 test ids \(e.g. cam1/0008/0001.jpg\)"),
        ({"train": "8", "val": "4"}, r"no image of the 2 training ids \(e.g. cam1/0004/0001.jpg"),
    ],
)
def test_wrong_lists(tmp_path, lists, message):
    with pytest.raises(ValueError, match=message) as raised:
        read_sysumm01(make_tree(tmp_path, lists=LISTS | lists))
    assert "\n" not in str(raised.value)


# Draws of the gallery.


def published_draw(root: pathlib.Path, cameras, trial: int) -> list[str]:
    """What single-shot galleries of most published code hold, straight from the folders."""
    rng, drawn = random.Random(trial), []
    for pid in ("0003", "0006", "0010"):
        for camera in cameras:
            folder = root / f"cam{camera}" / pid
            if folder.is_dir():
                drawn.append(f"cam{camera}/{pid}/{rng.choice(sorted(os.listdir(folder)))}")
    return drawn


@pytest.mark.parametrize("mode", ["all", "indoor"])
def test_seeded_draw_is_the_published_one(tmp_path, mode):
    collection = read_sysumm01(make_tree(tmp_path))
    state = random.getstate()
    galleries = []
    for trial in range(10):
        dataset = select_sysumm01(collection, mode=mode, trial=trial)
        galleries.append(list(dataset.gallery.path))
        assert galleries[-1] == published_draw(tmp_path, GALLERY_CAMERAS[mode], trial)
    assert random.getstate() == state
    assert len({tuple(gallery) for gallery in galleries}) == 10
    assert set(dataset.query.path) == {p for p in collection.parts["test"].path if p[3] in "36"}
    assert np.all(dataset.query.modality == INFRARED)
    assert np.all(dataset.gallery.modality == VISIBLE)
    assert len(dataset.train) == 14
    undrawn = 69 - 7 - len(dataset.gallery)
    assert dataset.report["gallery"] == {
        "read": {"all": 8, "indoor": 4}[mode],
        "test images not drawn": undrawn,
    }
    assert "301" not in dataset.summary() and f"{undrawn} test images not drawn" in (
        dataset.summary()
    )


def test_several_seeded_shots(tmp_path):
    collection = read_sysumm01(make_tree(tmp_path))
    dataset = select_sysumm01(collection, shots=4, trial=3)
    again = select_sysumm01(collection, shots=4, trial=3)
    assert list(dataset.gallery.path) == list(again.gallery.path)
    assert len(set(dataset.gallery.path)) == len(dataset.gallery)
    pairs, counts = np.unique([p[:9] for p in dataset.gallery.path], return_counts=True)
    expected = {
        f"cam{camera}/{pid:04d}": min(count, 4)
        for (camera, pid), count in COUNTS.items()
        if pid in TEST_IDS and camera not in (3, 6)
    }
    assert dict(zip(pairs.tolist(), counts.tolist(), strict=True)) == expected
    rng = random.Random(3)
    first = [f"cam1/0003/{number:04d}.jpg" for number in rng.sample(range(1, 8), 4)]
    assert list(dataset.gallery.path)[:4] == first


def test_galleries_have_the_published_sizes():
    ids = {1: 56, 2: 56, 3: 93, 4: 94, 5: 95, 6: 96}
    pid = np.concatenate([np.repeat(np.arange(n), 13) for n in ids.values()])
    camera = np.repeat(list(ids), [13 * n for n in ids.values()])
    sizes = {
        (mode, shots): len(draw_gallery(pid, camera, cameras=cameras, shots=shots))
        for mode, cameras in GALLERY_CAMERAS.items()
        for shots in (1, 10)
    }
    assert sizes == {
        ("all", 1): 301,
        ("all", 10): 3010,
        ("indoor", 1): 112,
        ("indoor", 10): 1120,
    }


def test_no_image_to_draw_from():
    rows = draw_gallery(np.array([3]), np.array([6]), cameras=(1, 2))
    assert rows.dtype == np.int64 and rows.shape == (0,)


@pytest.mark.parametrize("shots", [1, 10])
def test_official_draw_follows_the_permutations(tmp_path, shots):
    cells = permutations()
    save_permutations(make_tree(tmp_path), cells)
    collection = read_sysumm01(tmp_path)
    collection = dataclasses.replace(collection, report=json.loads(json.dumps(collection.report)))
    for trial in (0, 9):
        dataset = select_sysumm01(collection, draw="official", shots=shots, trial=trial)
        expected = [
            f"cam{camera}/{pid:04d}/{number:04d}.jpg"
            for pid in TEST_IDS
            for camera in (1, 2, 4, 5)
            if (camera, pid) in COUNTS
            for number in cells[camera - 1, 0][pid - 1, 0][trial, :shots]
        ]
        assert list(dataset.gallery.path) == expected
    seeded = select_sysumm01(collection, shots=shots, trial=9)
    assert list(dataset.gallery.path) != list(seeded.gallery.path)


def test_official_draw_without_its_file(tmp_path):
    collection = read_sysumm01(make_tree(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"was read without exp/rand_perm_cam.mat; put"):
        select_sysumm01(collection, draw="official")


def test_permutations_of_more_images_than_are_there(tmp_path):
    save_permutations(make_tree(tmp_path), permutations())
    (tmp_path / "cam4/0010/0002.jpg").unlink()
    with pytest.raises(ValueError, match=r"camera 4, id 0010: permutations of 2 images, but 1 are"):
        read_sysumm01(tmp_path)


def test_permutations_of_images_that_are_not_there_at_all(tmp_path):
    save_permutations(make_tree(tmp_path), permutations(COUNTS | {(2, 10): 3}))
    with pytest.raises(ValueError, match=r"camera 2, id 0010: permutations of 3 images, but 0 are"):
        read_sysumm01(tmp_path)


def test_permutations_that_are_none(tmp_path):
    cells = permutations()
    cells[0, 0][2, 0][4, 0] = cells[0, 0][2, 0][4, 1]
    save_permutations(make_tree(tmp_path), cells)
    with pytest.raises(ValueError, match=r"camera 1, id 0003: uint8\[10, 7\] that does not hold"):
        read_sysumm01(tmp_path)


def test_permutations_of_too_few_cameras_or_ids(tmp_path):
    save_permutations(make_tree(tmp_path), permutations()[:5])
    with pytest.raises(ValueError, match="expected rand_perm_cam to be 6 cells"):
        read_sysumm01(tmp_path)
    save_permutations(tmp_path, permutations(ids=9))
    with pytest.raises(ValueError, match="camera 1, id 0010: permutations of 0 images, but 13"):
        read_sysumm01(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"no MATLAB file", r"cam.mat: not a readable MATLAB file \("),
        (None, "cam.mat: holds no variable 'rand_perm_cam'"),
    ],
)
def test_permutations_that_cannot_be_read(tmp_path, content, message):
    file = make_tree(tmp_path) / "exp/rand_perm_cam.mat"
    if content is None:
        scipy.io.savemat(file, {"rand_perm": permutations()})
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_sysumm01(tmp_path)


def test_permutations_of_a_set_that_lost_images_since(tmp_path):
    save_permutations(make_tree(tmp_path), permutations())
    collection = read_sysumm01(tmp_path)
    test = collection.parts["test"]
    lost = test.take(np.array([p != "cam2/0006/0004.jpg" for p in test.path]))
    collection = dataclasses.replace(collection, parts={**collection.parts, "test": lost})
    with pytest.raises(ValueError, match=r"camera 2, id 0006: 8 images, but .* permutations of 9"):
        select_sysumm01(collection, draw="official")
    assert len(select_sysumm01(collection).gallery) == 8


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "outdoor"}, "mode is 'outdoor', must be one of all, indoor"),
        ({"draw": "random"}, "draw is 'random', must be one of seeded, official"),
        ({"shots": 0}, "shots is 0, must be 1 or more"),
        ({"trial": -1}, "trial is -1, must be 0 or more"),
        ({"trial": 10, "draw": "official"}, "trial is 10, must be below 10"),
    ],
)
def test_options_out_of_range(tmp_path, options, message):
    save_permutations(make_tree(tmp_path), permutations())
    with pytest.raises(ValueError, match=message):
        select_sysumm01(read_sysumm01(tmp_path), **options)


@given(st.lists(st.integers(0, 10**9 - 1), min_size=1), st.sampled_from([",", ", ", " ", ",\n"]))
def test_ids_come_back(ids, separator):
    text = separator.join(f"{i:04d}"[-9:] for i in ids)
    assert parse_ids(text + separator, "list") == ids


@given(st.text(st.sampled_from("0123456789,;.-+_ \t\r\n\ufeffe²１")) | st.text())
def test_any_text_gives_ids_or_one_line(text):
    try:
        assert all(0 <= i < 10**9 for i in parse_ids(text, "list"))
    except ValueError as error:
        assert str(error).startswith("list: ") and "\n" not in str(error)


# The training arrays.

VISIBLE_PATHS = ("cam1/0001/0001.jpg", "cam1/0001/0002.jpg", "cam5/0007/0001.jpg")
ARRAY_KINDS = ("img", "label", "path")
INFRARED_PATHS = ("cam3/0001/0001.jpg", "cam6/0007/0003.jpg")


def make_arrays(root: pathlib.Path, **changed: np.ndarray) -> pathlib.Path:
    rng = np.random.default_rng(0)
    arrays = {
        "rgb_resized_img": rng.integers(0, 256, (3, 8, 4, 3), np.uint8),
        "rgb_resized_label": np.array([0, 0, 1]),
        "rgb_resized_path": np.array([f"/home/a/SYSU-MM01/{path}" for path in VISIBLE_PATHS]),
        "ir_resized_img": rng.integers(0, 256, (2, 8, 4), np.uint8),
        "ir_resized_label": np.array([0, 1]),
        "ir_resized_path": np.array(
            ["E:\\SYSU\\" + path.replace("/", "\\") for path in INFRARED_PATHS]
        ),
    }
    root.mkdir(parents=True, exist_ok=True)
    for name, array in (arrays | changed).items():
        np.save(root / f"train_{name}.npy", array)
    return root


def test_reads_the_training_arrays(tmp_path):
    collection = read_sysumm01(make_arrays(tmp_path / "é"))
    train = collection.parts["train"]
    assert tuple(collection.parts) == ("train",)
    assert tuple(train.path) == VISIBLE_PATHS + INFRARED_PATHS
    np.testing.assert_array_equal(train.pid, [1, 1, 7, 1, 7])
    assert [collection.camera_codes[c] for c in train.camid] == [1, 1, 5, 3, 6]
    np.testing.assert_array_equal(train.modality, [VISIBLE] * 3 + [INFRARED] * 2)
    (warning,) = collection.report["warnings"]
    assert "holds the resized training arrays only" in warning
    encoded = train.read(np.arange(5))
    pixels = np.stack([decode_image(image, PixelFormat(8, 4)) for image in encoded])
    visible = np.load(tmp_path / "é/train_rgb_resized_img.npy")
    infrared = np.load(tmp_path / "é/train_ir_resized_img.npy")
    np.testing.assert_array_equal(pixels[:3], visible)
    np.testing.assert_array_equal(pixels[3:], np.stack([infrared] * 3, axis=-1))


def test_training_arrays_have_no_test_images(tmp_path):
    dataset = select_sysumm01(read_sysumm01(make_arrays(tmp_path)))
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (5, 0, 0)
    assert any("queries and gallery are empty" in text for text in dataset.report["warnings"])


def test_raw_tree_goes_before_the_arrays(tmp_path):
    make_arrays(make_tree(tmp_path))
    assert len(read_sysumm01(tmp_path).parts["train"]) == 14


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"ir_resized_label": np.array([1, 0])}, "label 0 stands for ids 1 and 7; expected one"),
        ({"ir_resized_label": np.array([0, 2])}, "id 7 has labels 1 and 2; expected one label"),
        ({"ir_resized_label": np.array([0])}, r"ir_resized_label.npy: int64\[1\]; expected 2"),
        ({"rgb_resized_label": np.zeros(3)}, r"rgb_resized_label.npy: float64\[3\]; expected 3"),
        ({"rgb_resized_path": np.arange(3)}, r"rgb_resized_path.npy: int64\[3\]; expected text"),
        (
            {"rgb_resized_path": np.array(["x/cam3/0001/1.jpg", *VISIBLE_PATHS[1:]])},
            r"rgb_resized_path.npy row 0: 'x/cam3/0001/1.jpg' does not end in camN/ID/file with",
        ),
        (
            {"ir_resized_path": np.array([INFRARED_PATHS[0], "7/0003.jpg"])},
            r"ir_resized_path.npy row 1: '7/0003.jpg' does not end in camN/ID/file with N of 3, 6",
        ),
        ({"ir_resized_img": np.zeros((3, 8, 4, 3), np.uint8)}, "6 images but 5 names; expected"),
        (
            {"ir_resized_path": np.array(INFRARED_PATHS, object)},
            r"ir_resized_path.npy: an array of Python objects, .* save it anew with",
        ),
    ],
)
def test_wrong_arrays(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message) as raised:
        read_sysumm01(make_arrays(tmp_path, **changed))
    assert "\n" not in str(raised.value)


def test_missing_array(tmp_path):
    (make_arrays(tmp_path) / "train_ir_resized_path.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks train_ir_resized_path.npy; expected ROOT/"):
        read_sysumm01(tmp_path)


ARRAYS = [f"train_{short}_resized_{kind}.npy" for short in ("rgb", "ir") for kind in ARRAY_KINDS]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Synthetic people in this layout, as JPEG files; one of them has no infrared image."""
    root = tmp_path_factory.mktemp("people")
    sizes = {"train_ids": 5, "val_ids": 2, "test_ids": 3, "images": 2, "height": 48, "width": 24}
    write_layout(root, "sysumm01", synthetic_layout("sysumm01").config(**sizes))
    pid = next(folder.name for folder in sorted((root / "cam1").iterdir()))
    train = read_sysumm01(root).parts["train"]
    assert int(pid) in train.pid[train.modality == VISIBLE]
    for camera in (3, 6):
        shutil.rmtree(root / f"cam{camera}" / pid, ignore_errors=True)
    return root


def test_written_arrays_are_the_folder(people, tmp_path):
    collection = read_sysumm01(people)
    files = write_arrays(collection, tmp_path / "new" / "arrays", progress=False)
    folder = tmp_path / "new" / "arrays"
    assert sorted(file.name for file in folder.iterdir()) == sorted(ARRAYS)
    assert files == [folder / name for name in ARRAYS]
    expected, found = collection.parts["train"], read_sysumm01(folder).parts["train"]
    assert list(found.path) == list(expected.path)
    for column in ("pid", "camid", "modality"):
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))
    pixels = PixelFormat(288, 144, "lanczos")
    images = load_images(expected, pixels, progress=False)
    np.testing.assert_array_equal(load_images(found, pixels, progress=False), images)
    # As the published code fills them, file by file.
    ids = sorted(set(expected.pid.tolist()))
    for modality, short in ((VISIBLE, "rgb"), (INFRARED, "ir")):
        rows = np.flatnonzero(expected.modality == modality)
        image, label, path = (
            np.load(folder / f"train_{short}_resized_{kind}.npy") for kind in ARRAY_KINDS
        )
        assert image.dtype == np.uint8 and image.shape == (len(rows), 288, 144, 3)
        assert label.dtype == np.int64 and path.dtype.kind == "U"
        assert label.tolist() == [ids.index(pid) for pid in expected.pid[rows]]
        assert path.tolist() == [f"{people}/{expected.path[row]}" for row in rows]
        for row in (0, len(rows) - 1):
            with Image.open(path[row]) as picture:
                resized = picture.convert("RGB").resize((144, 288), Image.Resampling.LANCZOS)
            np.testing.assert_array_equal(image[row], np.asarray(resized))


def test_arrays_are_replaced_only_where_that_is_asked_for(people, tmp_path):
    collection = read_sysumm01(people)
    small = {"pixels": PixelFormat(8, 4), "progress": False}
    write_arrays(collection, tmp_path, **small)
    with pytest.raises(FileExistsError, match=r"train_rgb_resized_img.npy is already there; name"):
        write_arrays(collection, tmp_path, pixels=PixelFormat(9, 5), progress=False)
    assert np.load(tmp_path / ARRAYS[0]).shape[1:] == (8, 4, 3)
    write_arrays(collection, tmp_path, overwrite=True, pixels=PixelFormat(9, 5), progress=False)
    assert np.load(tmp_path / ARRAYS[0]).shape[1:] == (9, 5, 3)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(ARRAYS)


@pytest.mark.parametrize("before", [False, True])
def test_a_broken_image_leaves_what_was_there(people, tmp_path, before):
    raw = shutil.copytree(people, tmp_path / "raw")
    small = {"pixels": PixelFormat(8, 4), "progress": False, "overwrite": True}
    if before:
        write_arrays(read_sysumm01(raw), tmp_path / "arrays", **small)
    broken = raw / read_sysumm01(raw).parts["train"].path[-1]
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{broken.name}: not a readable image") as raised:
        write_arrays(read_sysumm01(raw), tmp_path / "arrays", **small)
    assert "\n" not in str(raised.value)
    left = sorted(file.name for file in (tmp_path / "arrays").iterdir())
    assert left == (sorted(ARRAYS) if before else [])


def test_a_set_of_two_makes_is_never_complete(people, tmp_path, monkeypatch):
    small = {"progress": False, "overwrite": True}
    write_arrays(read_sysumm01(people), tmp_path, pixels=PixelFormat(8, 4), **small)
    replace, taken = os.replace, []

    def killed(source, target):
        """The process ends before the third file takes its name."""
        if len(taken) == 2:
            raise OSError("killed")
        taken.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(OSError, match="killed"):
        write_arrays(read_sysumm01(people), tmp_path, pixels=PixelFormat(9, 5), **small)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r"lacks train_rgb_resized_path.npy"):
        read_sysumm01(tmp_path)


def test_arrays_of_one_modality_alone(people, tmp_path):
    collection = read_sysumm01(people)
    train = collection.parts["train"]
    parts = {"train": train.take(train.modality == VISIBLE)}
    collection = dataclasses.replace(collection, parts=parts)
    with pytest.raises(ValueError, match="has no infrared training images"):
        write_arrays(collection, tmp_path / "arrays")
    assert not (tmp_path / "arrays").exists()


def test_a_seeded_draw_without_all_test_images_says_so(tmp_path):
    collection = read_sysumm01(make_tree(tmp_path))
    assert select_sysumm01(collection).report["warnings"] == collection.report["warnings"]
    less = collection.drop("test", np.array([0]), reason=BROKEN)
    warnings = select_sysumm01(less).report["warnings"]
    assert "1 broken test images were left out" in warnings[-1]
    assert "differ from the published draws" in warnings[-1]
