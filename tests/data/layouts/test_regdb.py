import dataclasses
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccafl_jax.data.layouts.regdb import (
    parse_list,
    person_of,
    read_regdb,
    regdb_splits,
    select_regdb,
)
from ccafl_jax.data.records import INFRARED, VISIBLE

PERSONS = (1, 2, 7, 30, 101, 412)
LETTERS = {"visible": "v", "thermal": "t"}


def image(modality: str, person: int, number: int) -> str:
    letter = LETTERS[modality]
    return f"{modality.title()}/{person}/male_back_{letter}_{number:05d}_{person}.bmp"


def persons_of(split: int, part: str) -> list[int]:
    """Half of the persons each; another half in every split."""
    order = np.random.default_rng(split).permutation(PERSONS).tolist()
    return order[:3] if part == "train" else order[3:]


def make_tree(root: pathlib.Path, *, splits=range(1, 11), images: int = 2) -> pathlib.Path:
    for modality in LETTERS:
        for person in PERSONS:
            (root / modality.title() / str(person)).mkdir(parents=True)
            for number in range(images):
                (root / image(modality, person, number)).touch()
    (root / "idx").mkdir()
    for split in splits:
        for part in ("train", "test"):
            for modality in LETTERS:
                lines = [
                    f"{image(modality, person, number)} {label}\n"
                    for label, person in enumerate(persons_of(split, part))
                    for number in range(images)
                ]
                list_file(root, part, modality, split).write_text("".join(lines))
    return root


def list_file(root: pathlib.Path, part="train", modality="visible", split=1) -> pathlib.Path:
    return root / "idx" / f"{part}_{modality}_{split}.txt"


def edit(root: pathlib.Path, old: str, new: str, **which) -> None:
    file = list_file(root, **which)
    text = file.read_text()
    assert old in text
    file.write_bytes(text.replace(old, new).encode())


def test_reads_all_images_once(tmp_path):
    collection = read_regdb(make_tree(tmp_path))
    records = collection.parts["all"]
    expected = sorted(image(m, p, n) for m in LETTERS for p in PERSONS for n in range(2))
    assert list(records.path) == expected and len(expected) == 24
    assert records.pid.tolist() == [int(path.split("/")[1]) for path in expected]
    visible = np.array([path.startswith("Visible") for path in expected])
    np.testing.assert_array_equal(records.modality, np.where(visible, VISIBLE, INFRARED))
    np.testing.assert_array_equal(records.camid, np.where(visible, 0, 1))
    assert collection.camera_codes == (1, 2)
    assert collection.report == {
        "all": {"read": 24, "in no list": 0, "not an image": 0},
        "warnings": (),
    }
    assert regdb_splits(collection) == tuple(range(1, 11))
    assert len(collection.tables) == 80
    rows = {name for name in collection.tables if name.endswith(".rows")}
    assert collection.row_tables == dict.fromkeys(rows, "all")


@pytest.mark.parametrize("direction", ["visible_to_thermal", "thermal_to_visible"])
@pytest.mark.parametrize("split", [1, 10])
def test_selects_a_split(tmp_path, split, direction):
    collection = read_regdb(make_tree(tmp_path))
    collection = dataclasses.replace(collection, report=json.loads(json.dumps(collection.report)))
    dataset = select_regdb(collection, split=split, direction=direction)

    def listed(part, modality):
        text = list_file(tmp_path, part, modality, split).read_text()
        return [line.split()[0] for line in text.splitlines()]

    query, gallery = direction.split("_to_")
    assert list(dataset.train.path) == listed("train", "visible") + listed("train", "thermal")
    assert list(dataset.query.path) == listed("test", query)
    assert list(dataset.gallery.path) == listed("test", gallery)
    np.testing.assert_array_equal(np.unique(dataset.train.pid), sorted(persons_of(split, "train")))
    np.testing.assert_array_equal(np.unique(dataset.query.pid), sorted(persons_of(split, "test")))
    np.testing.assert_array_equal(
        collection.tables[f"split.{split}.test_thermal.labels"], [0, 0, 1, 1, 2, 2]
    )
    counts = [dataset.report[part]["read"] for part in ("train", "query", "gallery")]
    assert counts == [12, 6, 6] and dataset.report["warnings"] == ()


def test_images_left_out_of_a_prepared_set_are_passed_over(tmp_path):
    collection = read_regdb(make_tree(tmp_path))
    full = select_regdb(collection, split=4)
    gone = {full.train.path[1], full.query.path[0]}
    rows = [row for row, path in enumerate(collection.parts["all"].path) if path in gone]
    dataset = select_regdb(collection.drop("all", np.array(rows), reason="gone"), split=4)
    for part in ("train", "query", "gallery"):
        before, after = getattr(full, part), getattr(dataset, part)
        assert list(after.path) == [path for path in before.path if path not in gone]
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (11, 5, 6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": 2}, "no split 2; there are 1, 3"),
        ({"split": 0}, "no split 0; there are 1, 3"),
        ({"direction": "v2t"}, "direction is 'v2t', must be one of visible_to_thermal, thermal_to"),
    ],
)
def test_options_out_of_range(tmp_path, options, message):
    collection = read_regdb(make_tree(tmp_path, splits=(1, 3)))
    (warning,) = collection.report["warnings"]
    assert "holds the splits 1, 3 of 10" in warning
    with pytest.raises(ValueError, match=message):
        select_regdb(collection, **options)


def test_traps_are_counted_and_do_no_harm(tmp_path):
    root = make_tree(tmp_path / "数据 ü" / "RegDB", splits=(1,))
    (root / "Visible/Thumbs.db").touch()
    (root / "Visible/1/._male_back_v_00000_1.bmp").touch()
    (root / "Thermal/500").mkdir()
    (root / "Thermal/500/male_back_t_00000_500.bmp").touch()
    (root / ".cache").mkdir()
    (root / ".cache/0_1.bmp").touch()
    (root / "Visible/loop").symlink_to(root / "Visible")
    (root / "circle").symlink_to(root / "circle")
    upper = root / image("visible", 7, 1)
    upper.rename(upper.with_suffix(".BMP"))
    person = persons_of(1, "train")[0]
    edit(root, f"Visible/{person}/", f".\\Visible\\{person}\\")
    file = list_file(root, "test", "thermal")
    file.write_bytes(
        b"\xef\xbb\xbf\r\n" + file.read_bytes().replace(b"\n", b"\r\n").replace(b" ", b" \t") + b" "
    )
    mac = list_file(root, "test", "visible")
    mac.write_bytes(mac.read_bytes().replace(b"\n", b"\r"))
    collection = read_regdb(tmp_path)
    assert collection.root == str(root)
    counts = collection.report["all"]
    assert counts == {"read": 24, "in no list": 1, "not an image": 2}
    assert image("visible", 7, 1).replace(".bmp", ".BMP") in list(collection.parts["all"].path)
    dataset = select_regdb(collection)
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (12, 6, 6)


def test_moved_images_are_found_by_their_base_names(tmp_path):
    root = make_tree(tmp_path, splits=(1,))
    for modality in LETTERS:
        (root / modality.title()).rename(root / modality)
    records = read_regdb(root).parts["all"]
    assert records.path[0] == image("thermal", 1, 0).replace("Thermal", "thermal")
    assert len(records) == 24 and set(records.pid.tolist()) == set(PERSONS)


def test_absent_image(tmp_path):
    root = make_tree(tmp_path)
    path = image("thermal", persons_of(3, "test")[1], 1)
    (root / path).unlink()
    # Two others of its base name: which one is meant cannot be told.
    for folder in ("a", "b"):
        (root / folder).mkdir()
        (root / folder / pathlib.Path(path).name).touch()
    with pytest.raises(FileNotFoundError, match=rf"{path} is not below {root}; expected every"):
        read_regdb(root)


@pytest.mark.parametrize(
    "line",
    [
        *("Visible/1/a_1.bmp", "Visible/1/a_1.bmp one", "Visible/1/a_1.bmp -1", "0", ". 0"),
        *("/data/Visible/1/a_1.bmp 0", "../a_1.bmp 0", "Visible/1/a_1.bmp 0 x"),
        "Visible/1/a_1.bmp 1234567890",
    ],
)
def test_bad_lines(tmp_path, line):
    file = list_file(make_tree(tmp_path), "test", "thermal", 2)
    file.write_text("\n" + file.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"test_thermal_2.txt line 8: .* is not a path below ROOT"):
        read_regdb(tmp_path)


def test_empty_list(tmp_path):
    list_file(make_tree(tmp_path)).write_text("\n\n")
    with pytest.raises(ValueError, match=r"train_visible_1.txt: no line in it"):
        read_regdb(tmp_path)


def test_image_listed_twice(tmp_path):
    file = list_file(make_tree(tmp_path))
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[1].replace("/", "//")]))
    with pytest.raises(ValueError, match=r"txt line 7: .* stands in line 2 already; remove one"):
        read_regdb(tmp_path)


def test_image_of_nobody(tmp_path):
    root = make_tree(tmp_path)
    (root / "Visible/portrait.bmp").touch()
    file = list_file(root)
    file.write_text(file.read_text() + "Visible/portrait.bmp 0\n")
    with pytest.raises(ValueError, match=r"line 7: Visible/portrait.bmp names no person; expected"):
        read_regdb(root)


@pytest.mark.parametrize("modality", ["visible", "thermal"])
def test_labels_that_contradict_the_persons(tmp_path, modality):
    root = make_tree(tmp_path)
    first, second, _ = persons_of(5, "train")
    edit(root, f"_{second}.bmp 1", f"_{second}.bmp 0", modality=modality, split=5)
    message = (
        rf"train_visible_5.txt and train_thermal_5.txt: label 0 stands for ids "
        rf"{min(first, second)} and {max(first, second)}; expected one label per id"
    )
    with pytest.raises(ValueError, match=message):
        read_regdb(root)


def test_person_with_two_labels(tmp_path):
    root = make_tree(tmp_path)
    person = persons_of(5, "train")[2]
    edit(root, f"_{person}.bmp 2", f"_{person}.bmp 3", modality="thermal", split=5)
    with pytest.raises(ValueError, match=rf"id {person} has labels 2 and 3; expected one label"):
        read_regdb(root)


def test_person_in_training_and_test(tmp_path):
    root = make_tree(tmp_path)
    person = persons_of(6, "train")[0]
    for modality in LETTERS:
        file = list_file(root, "test", modality, 6)
        file.write_text(file.read_text() + f"{image(modality, person, 0)} 3\n")
    with pytest.raises(ValueError, match=rf"1 persons \(e.g. {person}\) are in both .* split 6"):
        read_regdb(root)


def test_image_of_both_modalities(tmp_path):
    root = make_tree(tmp_path)
    person = persons_of(1, "train")[0]
    edit(
        root,
        image("thermal", person, 0),
        image("visible", person, 0),
        modality="thermal",
    )
    with pytest.raises(ValueError, match="is also in a list of the other modality; expected"):
        read_regdb(root)


def test_image_of_two_persons(tmp_path):
    root = make_tree(tmp_path, splits=(1,))
    person = persons_of(1, "train")[0]
    for part in ("train", "test"):
        for modality in LETTERS:
            text = list_file(root, part, modality).read_text()
            list_file(root, part, modality, 2).write_text(text.replace(f"/{person}/", "/999/"))
    message = rf"shows person 999 here and {person} in another list; expected the same number"
    with pytest.raises(ValueError, match=message):
        read_regdb(root)


def test_lists_of_a_split_that_are_missing(tmp_path):
    root = make_tree(tmp_path)
    list_file(root, "train", "thermal", 4).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"idx lacks train_thermal_4.txt; expected the four"
    ):
        read_regdb(root)


def test_no_lists_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"idx holds no list; expected ROOT/idx/"):
        read_regdb(make_tree(tmp_path, splits=()))
    (tmp_path / "idx").rmdir()
    with pytest.raises(FileNotFoundError, match=r"no data set within .* expected ROOT/idx/"):
        read_regdb(tmp_path)


@pytest.mark.parametrize(
    "path, person",
    [
        ("Visible/101/female_front_v_04226_7.bmp", 101),
        ("Visible/female_front_v_04226_101.BMP", 101),
        ("0012.bmp", 12),
        ("007/a.bmp", 7),
        ("Visible/7a/b_8.bmp", 8),
        ("Visible/a/b8c.bmp", None),
        ("Visible/a/b1234567890.bmp", None),
        ("Visible/²/b³.bmp", None),
    ],
)
def test_person_of_a_path(path, person):
    assert person_of(path) == person


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\\"), min_size=1).filter(
    lambda name: name not in (".", "..") and name.strip() == name and name.splitlines() == [name]
)


@given(
    st.lists(st.tuples(st.lists(_NAMES, min_size=1), st.integers(0, 10**9 - 1)), min_size=1),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
)
def test_lines_come_back(entries, end):
    text = "".join(f"{'/'.join(names)} {label}{end}" for names, label in entries)
    lines = parse_list("\ufeff" + text, "list")
    assert [(line.path, line.label) for line in lines] == [
        ("/".join(names), label) for names, label in entries
    ]


@given(st.text(st.sampled_from("ab/\\.~0129²\t \r\n\ufeff\x0b\u2028")) | st.text())
def test_any_text_gives_lines_or_one_line(text):
    try:
        lines = parse_list(text, "list")
    except ValueError as error:
        assert str(error).startswith("list") and len(str(error).splitlines()) == 1
        return
    for line in lines:
        folders = line.path.split("/")
        assert folders[0] and ".." not in folders and 0 <= line.label < 10**9
        assert person_of(line.path) is None or person_of(line.path) >= 0
