import os
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccafl_jax.data.labels import intra_camera_labels
from ccafl_jax.data.layouts import market
from ccafl_jax.data.layouts.msmt17 import VERSIONS, parse_line, read_msmt17

TRAIN = (
    "0000/0000_045_12_0303morning_0006_2.jpg 0",
    "0000/0000_010_07_0303noon_0008_2.jpg 0",
    "0001/0001_000_01_0302afternoon_0123_1_ex.jpg 1",
)
VAL = ("0000/0000_013_04_0303morning_0020_2.jpg 0", "0001/0001_001_15_0303noon_0099_0_ex.jpg 1")
QUERY = ("0000/0000_030_14_0303morning_0245_0.jpg 0",)
GALLERY = (
    "0000/0000_008_01_0303morning_0019_2.jpg 0",
    "0002/0002_000_10_0303morning_0019_2.jpg 2",
)


def make_tree(
    root: pathlib.Path,
    version="msmt17_v1",
    train=TRAIN,
    val=VAL,
    query=QUERY,
    gallery=GALLERY,
    *,
    linked=False,
) -> pathlib.Path:
    train_folder, test_folder = VERSIONS[version]
    root.mkdir(parents=True, exist_ok=True)
    lists = {"train": train, "val": val, "query": query, "gallery": gallery}
    for part, lines in lists.items():
        (root / f"list_{part}.txt").write_text("".join(f"{line}\n" for line in lines))
        folder = train_folder if part in ("train", "val") else test_folder
        touch(root / folder, [line.split()[0] for line in lines], linked=linked)
    return root


def touch(folder: pathlib.Path, paths: list[str], *, linked: bool = False) -> None:
    for sub in {os.path.dirname(path) for path in paths}:
        (folder / sub).mkdir(parents=True, exist_ok=True)
    first = ""
    for number, path in enumerate(paths):
        # Links spare most of the work on the disk, but a file has 65,000 at most.
        if linked and number % 50_000:
            os.link(first, f"{folder}/{path}")
        else:
            first = f"{folder}/{path}"
            os.close(os.open(first, os.O_CREAT))


def make_market_like(root: pathlib.Path) -> pathlib.Path:
    names = [f"{pid:04d}_c{camera}_{camera:04d}.jpg" for pid in (0, 1) for camera in range(1, 16)]
    for folder in market.FOLDERS.values():
        (root / folder).mkdir(parents=True)
        touch(root / folder, names)
    return root


# Lines.


def test_a_line():
    line = "0042/0042_045_12_0303morning_0006_2_ex.jpg 42"
    assert parse_line(f"{line}\r\n") == (line.split()[0], 42, 12, 6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0000/0000_045_12_0303morning_0006_2.jpg", "expected a path and an id such as"),
        ("0000_045_12_0303morning_0006_2.jpg 0", "expected a path and an id such as"),
        ("train/0000/0000_045_12_0303morning_0006_2.jpg 0", "expected a path and an id such as"),
        ("0000/0000_c12_0045.jpg 0", "expected a path and an id such as"),
        ("0000/0000_045_12_0303morning_0006_2.jpg zero", "expected a path and an id such as"),
        ("0001/0001_045_12_0303morning_0006_2.jpg 0", "give the ids 1, 1 and 0, which must be one"),
        ("0001/0002_045_12_0303morning_0006_2.jpg 1", "give the ids 1, 2 and 1, which must be one"),
        ("0002/0001_045_12_0303morning_0006_2.jpg 1", "give the ids 2, 1 and 1, which must be one"),
    ],
)
def test_damaged_lines(line, message):
    with pytest.raises(ValueError, match=message):
        parse_line(line)


@given(st.text() | st.from_regex(r"[0-9]+/[0-9]+(_[0-9a-z]*){0,7}\.jpg +[0-9]*", fullmatch=True))
def test_any_text_is_a_line_or_an_error(text):
    try:
        path, *numbers = parse_line(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert text.strip().startswith(path) and max(numbers) < 2**31


@given(
    pid=st.integers(0, 9999),
    running=st.integers(0, 999),
    camera=st.integers(1, 15),
    slot=st.sampled_from(["morning", "noon", "afternoon"]),
    frame=st.integers(0, 99_999),
    box=st.integers(0, 9),
    ending=st.sampled_from(["", "_ex"]),
)
def test_valid_lines_come_back(pid, running, camera, slot, frame, box, ending):
    path = (
        f"{pid:04d}/{pid:04d}_{running:03d}_{camera:02d}_0303{slot}_{frame:04d}_{box}{ending}.jpg"
    )
    assert parse_line(f"{path} {pid}\n") == (path, pid, camera, frame)


# Lists.


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("plain", [False, True])
def test_parts_of_both_versions(tmp_path, version, plain):
    root = make_tree(tmp_path / "msmt17" / version.upper(), version)
    collection = read_msmt17(tmp_path, name="msmt17" if plain else version)
    train, query, gallery = (collection.parts[part] for part in ("train", "query", "gallery"))
    folder, test_folder = VERSIONS[version]
    assert collection.name == version and collection.root == str(root)
    paths = sorted(line.split()[0] for line in TRAIN + VAL)
    assert list(train.path) == [f"{folder}/{path}" for path in paths]
    np.testing.assert_array_equal(train.pid, [0, 0, 0, 1, 1])
    assert [collection.camera_codes[camid] for camid in train.camid] == [7, 4, 12, 1, 15]
    np.testing.assert_array_equal(train.frame, [8, 20, 6, 123, 99])
    np.testing.assert_array_equal(collection.tables["val_rows"], [1, 4])
    assert list(query.path) == [f"{test_folder}/{QUERY[0].split()[0]}"]
    np.testing.assert_array_equal(gallery.pid, [0, 2])
    assert collection.camera_codes == (1, 4, 7, 10, 12, 14, 15)
    assert collection.report == {
        "train": {"read": 5, "in no list": 0, "not an image": 0},
        "query": {"read": 1},
        "gallery": {"read": 2, "in no list": 0, "not an image": 0},
        "warnings": (),
    }


def test_versions_side_by_side(tmp_path):
    roots = {
        version: make_tree(tmp_path / "msmt17" / version.upper(), version) for version in VERSIONS
    }
    for version, root in roots.items():
        collection = read_msmt17(tmp_path, name=version)
        assert (collection.name, collection.root) == (version, str(root))
    with pytest.raises(ValueError, match=r"name one of them: .*MSMT17_V1, .*MSMT17_V2"):
        read_msmt17(tmp_path, name="msmt17")


def test_versions_in_one_folder(tmp_path):
    for version in VERSIONS:
        make_tree(tmp_path, version)
    for version in VERSIONS:
        assert read_msmt17(tmp_path, name=version).name == version
    with pytest.raises(ValueError, match="images of MSMT17 V1 and V2; name the data set msmt17_v1"):
        read_msmt17(tmp_path, name="msmt17")


def test_the_other_version_is_named(tmp_path):
    make_tree(tmp_path / "a", "msmt17_v2")
    with pytest.raises(ValueError, match="a holds MSMT17 V2, not V1; name the data set msmt17_v2"):
        read_msmt17(tmp_path, name="msmt17_v1")
    # A Market-like folder beside it may be any data set: it does not take its place.
    make_market_like(tmp_path / "market1501")
    with pytest.raises(ValueError, match="holds MSMT17 V2, not V1"):
        read_msmt17(tmp_path, name="msmt17_v1")
    with pytest.raises(ValueError, match="name is 'msmt17_v3', must be one of msmt17, msmt17_v1"):
        read_msmt17(tmp_path, name="msmt17_v3")


def test_files_in_no_list_are_counted(tmp_path):
    root = make_tree(tmp_path)
    touch(root / "train", ["0000/0000_099_01_0303noon_0001_0.jpg", "0777/extra.JPG", "0000/a.txt"])
    touch(root / "test", ["0000/Thumbs.db"])
    (root / "train" / "0000" / "0000_098_01_0303noon_0001_0.jpg").mkdir()
    (root / "train" / "list.txt").touch()
    collection = read_msmt17(root)
    assert collection.report["train"] == {"read": 5, "in no list": 2, "not an image": 3}
    assert collection.report["gallery"] == {"read": 2, "in no list": 0, "not an image": 1}
    assert collection.report["warnings"] == ("train: 2 images are in no list, left out",)


def test_listed_images_must_be_there(tmp_path):
    root = make_tree(tmp_path)
    path = root / "train" / VAL[0].split()[0]
    path.unlink()
    message = f"1 of 5 listed images are missing, the first is {VAL[0].split()[0]}"
    with pytest.raises(FileNotFoundError, match=f"train: {message}; unpack"):
        read_msmt17(root)
    path.mkdir()  # a folder is no image
    with pytest.raises(FileNotFoundError, match=message):
        read_msmt17(root)
    path.rmdir()
    path.touch()
    (root / "test" / "0000").rename(root / "test" / "0009")
    with pytest.raises(FileNotFoundError, match="test: 2 of 3 listed images are missing"):
        read_msmt17(root)


def test_links_that_lead_in_circles(tmp_path):
    root = make_tree(tmp_path / "set")
    (root / "train" / "up").symlink_to(tmp_path)
    (root / "train" / "self").symlink_to("self")
    (root / "train" / "again").symlink_to(root / "train" / "0001")
    report = read_msmt17(tmp_path).report
    assert report["train"] == {"read": 5, "in no list": 2, "not an image": 2}


def test_identity_folders_may_be_links(tmp_path):
    root = make_tree(tmp_path / "set")
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").mkdir()
    for folder in ("0000", "0001"):
        (root / "train" / folder).symlink_to(tmp_path / "elsewhere" / folder)
    assert len(read_msmt17(root).parts["train"]) == 5


def test_the_line_at_fault_is_named(tmp_path):
    root = make_tree(tmp_path)
    path = root / "list_query.txt"
    path.write_text(f"\n{QUERY[0]}\n{QUERY[0]} x\n")
    with pytest.raises(ValueError, match=r"list_query.txt, line 3: expected a path .* x'$"):
        read_msmt17(root)
    path.write_text(QUERY[0].replace(" 0", " 1"))
    with pytest.raises(ValueError, match=r"list_query.txt, line 1: .* the ids 0, 0 and 1"):
        read_msmt17(root)
    path.write_text(f"{QUERY[0]}\n{QUERY[0]}\n")
    with pytest.raises(ValueError, match=r"query: test/0000/.* is listed twice"):
        read_msmt17(root)
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"list_query.txt: the list is empty"):
        read_msmt17(root)


def test_missing_lists_and_folders(tmp_path):
    root = make_tree(tmp_path / "set")
    (root / "list_val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks list_val.txt: .* 4,821 classes") as error:
        read_msmt17(tmp_path)
    assert "\n" not in str(error.value)
    (root / "list_gallery.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"set lacks list_gallery.txt; expected ROOT/"):
        read_msmt17(tmp_path)
    make_tree(root)
    (root / "train").rename(root / "images")
    with pytest.raises(FileNotFoundError, match=r"neither train and test .V1. nor mask_train_v2"):
        read_msmt17(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no data set within 3 levels below .*empty"):
        read_msmt17(tmp_path / "empty")


# The Market-like renaming.


@pytest.mark.parametrize("version", VERSIONS)
def test_market_like_cameras_of_two_digits(tmp_path, version):
    make_market_like(tmp_path / "msmt17" / "MSMT17")
    make_market_like(tmp_path / "market1501")
    collection = read_msmt17(tmp_path, name=version)
    assert collection.name == version
    assert collection.root == str(tmp_path / "msmt17" / "MSMT17")
    assert collection.camera_codes == tuple(range(1, 16))
    assert sorted(collection.parts["train"].camid.tolist()) == sorted([*range(15)] * 2)
    assert collection.report["warnings"] == () and collection.tables == {}


def test_lists_left_beside_renamed_images_do_not_count(tmp_path):
    root = make_market_like(tmp_path)
    for part in ("train", "val", "query", "gallery"):
        (root / f"list_{part}.txt").write_text("0000/0000_045_12_0303morning_0006_2.jpg 0\n")
    assert len(read_msmt17(root, name="msmt17_v1").parts["train"]) == 30


def test_the_market_like_form_does_not_tell_its_version(tmp_path):
    make_market_like(tmp_path)
    with pytest.raises(ValueError, match="which does not tell its version; name the data set msmt"):
        read_msmt17(tmp_path)


# The published size.


def fabricated(images: int, ids: int, classes: int, first: int) -> list[str]:
    """Lines that use every identity, all 15 cameras and `classes` pairs of both."""
    pairs = [
        (pid, (pid + turn) % 15 + 1)
        for pid in range(ids)
        for turn in range(classes // ids + (pid < classes % ids))
    ]
    lines = []
    for number in range(images):
        pid, camera = pairs[number % len(pairs)]
        running = first + number // len(pairs)
        name = f"{pid:04d}_{running:03d}_{camera:02d}_0303noon_{number % 10_000:04d}_0.jpg"
        lines.append(f"{pid:04d}/{name} {pid}")
    return lines


@pytest.mark.ci
def test_published_numbers(tmp_path):
    train = fabricated(32_621, 1_041, 4_821, first=0)
    root = make_tree(
        tmp_path / "MSMT17_V1",
        train=train[:-2_373],
        val=train[-2_373:],
        query=fabricated(11_659, 3_060, 5_755, first=0),
        gallery=fabricated(82_161, 3_060, 13_994, first=500),
        linked=True,
    )
    collection = read_msmt17(tmp_path)
    assert collection.root == str(root)
    sizes, ids, classes = {}, {}, {}
    for part, records in collection.parts.items():
        sizes[part], ids[part] = len(records), len(np.unique(records.pid))
        classes[part] = intra_camera_labels(records.pid, records.camid).num_classes
    assert sizes == {"train": 32_621, "query": 11_659, "gallery": 82_161}
    assert ids == {"train": 1_041, "query": 3_060, "gallery": 3_060}
    assert classes == {"train": 4_821, "query": 5_755, "gallery": 13_994}
    assert collection.camera_codes == tuple(range(1, 16))
    assert len(collection.tables["val_rows"]) == 2_373
