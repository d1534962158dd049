import builtins
import csv
import io
import os
import pathlib
import pickle
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.data.layouts import select_parts
from ccafl_jax.data.layouts.manifest import (
    ManifestError,
    camera_names,
    check_manifest,
    natural_key,
    pid_names,
    read_manifest,
)
from ccafl_jax.data.layouts.manifest.checks import integer_of
from ccafl_jax.data.layouts.manifest.columns import Problem
from ccafl_jax.data.records import INFRARED, VISIBLE, Collection, tracklets

HEADER = "path,pid,camid,split"
ROWS = (
    "c2/b.jpg,7,2,train",
    "c10/a.jpg,7,10,train",
    "c2/a.jpg,3,2,train",
    "q/1.jpg,5,10,query",
    "g/2.jpg,5,2,gallery",
    "g/1.jpg,-1,2,gallery",
)


def write(folder: pathlib.Path, *rows: str, header: str = HEADER, name="manifest.csv"):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


def touch(folder: pathlib.Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()


def make_set(folder: pathlib.Path, *rows: str, header: str = HEADER) -> pathlib.Path:
    touch(folder, *(row.split(",")[0] for row in rows))
    return write(folder, *rows, header=header)


def read(tmp_path, *rows, header=HEADER) -> Collection:
    return read_manifest(write(tmp_path, *rows, header=header), check_files=False)


def problems(tmp_path, *rows, header=HEADER, check_files=False) -> list[Problem]:
    return check_manifest(write(tmp_path, *rows, header=header), check_files=check_files)


def content(collection: Collection) -> dict:
    """Everything but the place, in a form that compares."""
    parts = {
        part: {"path": list(records.path)}
        | {name: column.tolist() for name, column in records.columns().items()}
        for part, records in collection.parts.items()
    }
    tables = {name: table.tolist() for name, table in collection.tables.items()}
    return {"parts": parts, "tables": tables, "codes": collection.camera_codes}


def test_reads_parts_in_the_order_of_paths(tmp_path):
    file = make_set(tmp_path, *ROWS)
    collection = read_manifest(file)
    assert collection.name == "manifest" and collection.root == str(file)
    assert list(collection.parts) == ["train", "query", "gallery"]
    assert collection.camera_codes == (2, 10)
    train, gallery = collection.parts["train"], collection.parts["gallery"]
    assert list(train.path) == ["c10/a.jpg", "c2/a.jpg", "c2/b.jpg"]
    np.testing.assert_array_equal(train.pid, [7, 3, 7])
    np.testing.assert_array_equal(train.camid, [1, 0, 0])
    np.testing.assert_array_equal(gallery.pid, [-1, 5])
    assert train.pid.dtype == np.int32 and train.tracklet is None and train.modality is None
    assert collection.report == {
        "train": {"read": 3},
        "query": {"read": 1},
        "gallery": {"read": 2},
        "warnings": (),
    }
    assert collection.tables == {} and pid_names(collection) is None
    again = read_manifest(collection.root)  # as an evaluation does
    assert content(again) == content(collection)


def test_images_are_read_from_the_folder_of_the_manifest_or_by_absolute_paths(tmp_path):
    elsewhere = tmp_path / "elsewhere" / "x.jpg"
    touch(tmp_path, "elsewhere/x.jpg")
    elsewhere.write_bytes(b"far")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b.jpg").write_bytes(b"near")
    file = write(tmp_path / "set", f"{elsewhere},1,1,train", "b.jpg,2,2,train")
    train = read_manifest(file).parts["train"]
    assert list(train.path) == [str(elsewhere), "b.jpg"]
    assert train.read(np.arange(2)) == [b"far", b"near"]
    assert train.locate(0) == str(elsewhere) and train.locate(1) == str(tmp_path / "set/b.jpg")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("./a/b.jpg", "a/b.jpg"),
        (".\\a\\b.jpg", "a/b.jpg"),
        ("a//./b.jpg", "a/b.jpg"),
        ("a/../b.jpg", "a/../b.jpg"),
        ("  a/b.jpg ", "a/b.jpg"),
        ('"a, b/c ""d"".jpg"', 'a, b/c "d".jpg'),
        ("bild_ä_写真.jpg", "bild_ä_写真.jpg"),
        ("a./b.jpg", "a./b.jpg"),
    ],
)
def test_spellings_of_paths(tmp_path, written, meant):
    assert list(read(tmp_path, f"{written},1,1,train").parts["train"].path) == [meant]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_forms_of_csv(tmp_path, end, delimiter, bom):
    lines = [" Split,PID,note,CamID,Path", "train,1,,4,a.jpg", "", " , ,,,", '"query",2,x,5,b.jpg']
    lines += ["GALLERY, 02 ,x, 5.0 ,c.jpg"]
    text = bom + end.join(lines).replace(",", delimiter) + end
    (tmp_path / "m.txt").write_bytes(text.encode())
    collection = read_manifest(tmp_path / "m.txt", check_files=False)
    assert collection.camera_codes == (4, 5)
    assert [list(part.path) for part in collection.parts.values()] == [
        ["a.jpg"],
        ["b.jpg"],
        ["c.jpg"],
    ]
    np.testing.assert_array_equal(collection.parts["gallery"].pid, [2])
    warnings = collection.report["warnings"]
    assert "columns left out: note" in warnings and "2 empty lines left out" in warnings


def test_texts_are_numbered_in_sorted_order_over_the_file(tmp_path):
    collection = read(
        tmp_path,
        "a.jpg,Zoë,yard,train",
        "b.jpg,bob,door,train",
        "c.jpg,bob,door,query",
        "d.jpg,Zoë,gate,gallery",
        "e.jpg,-1,yard,gallery",
        "f.jpg,,door,train",
    )
    assert list(pid_names(collection)) == ["Zoë", "bob"]
    assert list(camera_names(collection)) == ["door", "gate", "yard"]
    assert collection.camera_codes == (1, 2, 3)
    train, gallery = collection.parts["train"], collection.parts["gallery"]
    np.testing.assert_array_equal(train.pid, [0, 1, -2])
    np.testing.assert_array_equal(gallery.pid, [0, -1])
    assert [camera_names(collection)[i] for i in train.camid] == ["yard", "door", "door"]
    for name, table in collection.tables.items():
        assert table.dtype == (np.uint8 if name.endswith("values") else np.int64)


def test_one_text_makes_all_pids_texts_and_says_so(tmp_path):
    rows = ["a.jpg,10,1,train", "b.jpg,9,2,train", "c.jpg,9b,1,train", "d.jpg,99999999999,2,train"]
    collection = read(tmp_path, *rows)
    assert list(pid_names(collection)) == ["10", "9", "99999999999", "9b"]
    np.testing.assert_array_equal(collection.parts["train"].pid, [0, 1, 3, 2])
    (warning,) = collection.report["warnings"]
    assert "pid: all are taken as texts" in warning and "line 4: '9b'" in warning
    assert "3 are integers" in warning


def test_unlabelled_junk_and_distractors(tmp_path):
    collection = read(
        tmp_path,
        "a.jpg,,1,train",
        "b.jpg,4,2,train",
        "c.jpg,5,1,query",
        "d.jpg,5,2,gallery",
        "e.jpg,-1,,gallery",
        "f.jpg,,,distractors",
        "g.jpg,6,3,distractors",
    )
    np.testing.assert_array_equal(collection.parts["train"].pid, [-2, 4])
    np.testing.assert_array_equal(collection.parts["gallery"].camid, [1, -1])
    np.testing.assert_array_equal(collection.parts["distractors"].pid, [-2, 6])
    np.testing.assert_array_equal(collection.parts["distractors"].camid, [-1, 2])
    assert collection.report["train"] == {"read": 2, "unlabelled": 1}
    assert collection.report["distractors"] == {"read": 2, "unlabelled": 1}
    assert collection.report["warnings"] == ()


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        (",1,1,train", "path", "path is empty"),
        ("./,1,1,train", "path", "path is empty"),
        ("a/,1,1,train", "path", "'a/' does not name a file"),
        ("a/..,1,1,train", "path", "'a/..' does not name a file"),
        ("a\0b.jpg,1,1,train", "path", "does not name a file"),
        ("ok1.jpg,1,1,train", "path", "'ok1.jpg' stands in line 2 already, in the same split"),
        (".\\ok1.jpg,1,1,train", "path", "stands in line 2 already"),
        ("a.jpg,1,1,test", "split", "unknown split 'test'; images to test on are either query or"),
        ("a.jpg,1,1,galery", "split", "did you mean gallery.* allowed are train, query, gallery,"),
        ("a.jpg,1,1,", "split", "split is empty; allowed are"),
        ("a.jpg,-3,1,train", "pid", "pid '-3' is negative"),
        ("a.jpg,2147483648,1,train", "pid", "'2147483648' does not fit into 32 bits"),
        (f"a.jpg,{'9' * 5000},1,train", "pid", "does not fit into 32 bits"),
        ("a.jpg,-1,1,train", "pid", "pid -1 .junk. belongs in the gallery only"),
        ("a.jpg,-1,1,query", "pid", "pid -1 .junk. belongs in the gallery only"),
        ("a.jpg,-1,1,distractors", "pid", "pid -1 .junk. belongs in the gallery only"),
        ("a.jpg,,1,query", "pid", "pid is empty; a query needs"),
        ("a.jpg,,1,gallery", "pid", "pid is empty; in the gallery write -1"),
        ("a.jpg,1,,train", "camid", "camid is empty; intra-camera supervision"),
        ("a.jpg,,,train", "camid", "camid is empty; intra-camera supervision"),
        ("a.jpg,1,,gallery", "camid", "camid is empty"),
        ("a.jpg,1,-1,train", "camid", "camid '-1' is negative"),
        ("a.jpg,1,4294967296,train", "camid", "does not fit into 32 bits"),
        ("a.jpg,1,1", "", "3 fields between ',', the header has 4"),
        ("a,b.jpg,1,1,train", "", "5 fields.*put a field that holds one in quotes"),
        ('"a.jpg,1,1,train', "", "the fields cannot be told apart"),
        ('"a"b.jpg,1,1,train', "", "the fields cannot be told apart"),
        (f"{'a' * 140_000},1,1,train", "", "the fields cannot be told apart .*limit"),
    ],
)
def test_a_bad_line_is_found_and_told(tmp_path, row, column, message):
    rows = ["ok1.jpg,1,1,train", "ok2.jpg,1,2,train", row, "ok3.jpg,2,1,train"]
    (problem,) = problems(tmp_path, *rows)
    assert (problem.line, problem.column) == (4, column)
    with pytest.raises(ManifestError, match=f"line 4: .*{message}") as raised:
        read(tmp_path, *rows)
    assert "\n" not in str(raised.value) and raised.value.problems == [problem]


def test_every_bad_line_is_reported_in_order(tmp_path):
    rows = [
        "a.jpg,1,1,train",
        "b.jpg,1,,test",
        "c.jpg,x,1",
        "",
        '"d.jpg,1,1,train',
        "a.jpg,-7,1,train",
    ]
    found = problems(tmp_path, *rows, *ROWS[:3])
    assert [(p.line, p.column) for p in found] == [
        (3, "split"),
        (4, ""),
        (6, ""),
        (7, "path"),
        (7, "pid"),
    ]
    file = tmp_path / "manifest.csv"
    with pytest.raises(ManifestError) as raised:
        read_manifest(file, check_files=False)
    assert str(raised.value) == (
        f"manifest.csv: 4 bad lines; first: {found[0]}; see all with scripts/prepare_data.py "
        f"--dataset manifest --raw {file} --check"
    )
    assert pickle.loads(pickle.dumps(raised.value)).problems == found


def test_line_numbers_hold_behind_many_lines_and_bad_quotes(tmp_path):
    rows = [f"{i}.jpg,1,{i % 2},train" for i in range(3000)]
    rows[10], rows[1500], rows[2999] = '"10.jpg,1,0,train', "", "2999.jpg,1,,train"
    assert [(p.line, p.column) for p in problems(tmp_path, *rows)] == [(12, ""), (3001, "camid")]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", "columns path, pid, camid, split must be named first; found are: none"),
        ("a.jpg,17,2,train", "must be named first; found are: a.jpg, 17, 2, train"),
        ("path,pid,cam_id,split", "no column camid; is it 'cam_id'. then rename that"),
        ("path,pid,PID,camid,split", "there are 2 columns pid; keep one"),
    ],
)
def test_a_bad_header(tmp_path, header, message):
    file = write(tmp_path, *ROWS, header=header)
    with pytest.raises(ManifestError, match=message) as raised:
        read_manifest(file)
    assert {problem.line for problem in raised.value.problems} == {1}


def test_columns_left_out_are_named(tmp_path):
    collection = read(tmp_path, "a.jpg,1,2,train,3,4", header=HEADER + ",tracklets,bbox")
    assert collection.report["warnings"][0] == (
        "columns left out: tracklets (did you mean tracklet?), bbox"
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "no image is listed below the header"),
        (("a.jpg,1,1,query",), "1 queries and no gallery"),
        (("a.jpg,1,1,gallery",), "a gallery of 1 images and no query"),
        (("a.jpg,1,1,train", "b.jpg,1,1,distractors"), "1 distractors and no gallery"),
    ],
)
def test_splits_that_do_not_belong_together(tmp_path, rows, message):
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, *rows)


def test_files_that_are_not_images(tmp_path):
    for start, what in (
        (b"PK\x03\x04..", "Excel"),
        (b"\xff\xfep\0", "UTF-16"),
        (b"\x1f\x8b", "compr"),
    ):
        (tmp_path / "m.csv").write_bytes(start)
        with pytest.raises(ManifestError, match=f"{what}.*save it as CSV"):
            read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"m.csv: line 1: the columns .* found are: none"):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_bytes(b"path,pid,camid,split\na.jpg,Zo\xeb,1,train\n")
    with pytest.raises(ManifestError, match=r"line 2: pid .* is not UTF-8; save"):
        read_manifest(tmp_path / "m.csv", check_files=False)


def test_only_training_or_only_testing(tmp_path):
    train = select_parts(read(tmp_path / "a", *ROWS[:3]))
    assert [len(s) for s in (train.train, train.query, train.gallery)] == [3, 0, 0]
    assert list(train.query.path) == [] and train.query.camid.dtype == np.int32
    assert "train         3" in train.summary()
    test = select_parts(read(tmp_path / "b", *ROWS[3:]))
    assert [len(s) for s in (test.train, test.query, test.gallery)] == [0, 1, 2]
    assert test.train.read(np.arange(0)) == [] and test.camera_codes == (2, 10)
    assert "train         0" in test.summary()


VIDEO = HEADER + ",tracklet,frame"


def test_tracklets_are_numbered_by_label_and_sorted_by_frame(tmp_path):
    collection = read(
        tmp_path,
        "a.jpg,1,1,train,10,7",
        "b.jpg,1,1,train,10,-0",
        "z.jpg,2,2,train,9,30",
        "y.jpg,2,2,train,9,4",
        "x.jpg,2,1,train,x,0",
        "q.jpg,5,1,query,9,1",
        "g.jpg,5,2,gallery,1,1",
        header=VIDEO,
    )
    train = collection.parts["train"]
    assert list(train.path) == ["y.jpg", "z.jpg", "b.jpg", "a.jpg", "x.jpg"]
    np.testing.assert_array_equal(train.tracklet, [0, 0, 1, 1, 2])
    np.testing.assert_array_equal(train.frame, [4, 30, 0, 7, 0])
    assert len(tracklets(train)) == 3
    np.testing.assert_array_equal(collection.parts["query"].tracklet, [0])
    assert train.tracklet.dtype == np.int32 and train.frame.dtype == np.int32


def test_without_frames_the_natural_order_of_paths_is_time(tmp_path):
    rows = [f"t/{i}.jpg,1,1,train,t,".removesuffix(",") for i in (10, 9, 1, 100)]
    train = read(tmp_path, *rows, header=HEADER + ",tracklet").parts["train"]
    assert list(train.path) == ["t/1.jpg", "t/9.jpg", "t/10.jpg", "t/100.jpg"]
    assert train.frame is None


def test_a_split_without_tracklets_beside_one_with(tmp_path):
    rows = [
        "a.jpg,1,1,train,t,1",
        "b.jpg,2,2,train,s,1",
        "q.jpg,5,1,query,,",
        "g.jpg,5,2,gallery,,",
    ]
    parts = read(tmp_path, *rows, header=VIDEO).parts
    np.testing.assert_array_equal(parts["train"].tracklet, [0, 1])  # s before t: b.jpg comes first
    assert list(parts["train"].path) == ["b.jpg", "a.jpg"]
    assert parts["query"].tracklet is None and parts["query"].frame is None
    unused = read(tmp_path, *(row + ",," for row in ROWS), header=VIDEO).parts
    assert all(part.tracklet is None and part.frame is None for part in unused.values())


def test_empty_parts_of_a_set_with_tracklets_have_the_columns(tmp_path):
    parts = read(tmp_path, "a.jpg,1,1,train,t,1", "b.jpg,2,2,train,s,1", header=VIDEO).parts
    assert len(tracklets(parts["query"])) == 0 and parts["query"].frame.shape == (0,)


@pytest.mark.parametrize(
    ("rows", "lines", "message"),
    [
        ((",t,1", ",t,2", ",,3"), [4], "tracklet is empty, while other rows of train have one"),
        ((",t,1", ",,2", ",,3"), [2], "tracklet 't' stands here, while most rows of train have no"),
        ((",t,1", ",t,", ",t,3"), [3], "frame is empty, while other rows of train have one"),
        ((",t,1", ",t,x", ",t,3"), [3], "frame 'x' is not an integer from 0"),
        ((",t,1", ",t,-1", ",t,2147483648"), [3, 4], "frame '-1' is not an integer from 0"),
    ],
)
def test_bad_tracklets_and_frames(tmp_path, rows, lines, message):
    rows = [f"{number}.jpg,1,1,train{row}" for number, row in enumerate(rows)]
    found = problems(tmp_path, *rows, header=VIDEO)
    assert [problem.line for problem in found] == lines
    assert message in found[0].message


def test_a_tracklet_of_two_identities_or_cameras(tmp_path):
    rows = ["a.jpg,1,1,train,t,1", "b.jpg,1,2,train,t,2", "c.jpg,3,1,train,t,3"]
    rows += ["d.jpg,1,1,query,t,1", "e.jpg,1,2,gallery,t,1"]  # labels are of their split
    found = problems(tmp_path, *rows, header=VIDEO)
    assert [(problem.line, problem.column) for problem in found] == [(3, "camid"), (4, "pid")]
    assert found[1].message == (
        "tracklet 't' has pid '3' here and '1' in line 2; a tracklet shows one identity in one "
        "camera"
    )


def test_doubled_frames_are_told(tmp_path):
    rows = ["b.jpg,1,1,train,t,1", "a.jpg,1,1,train,t,1", "c.jpg,2,2,train,s,1"]
    collection = read(tmp_path, *rows, header=VIDEO)
    assert list(collection.parts["train"].path) == ["c.jpg", "a.jpg", "b.jpg"]
    assert collection.report["warnings"] == (
        "train: 1 frames have the number of another frame of their tracklet (e.g. b.jpg); they are "
        "ordered by path",
    )


def test_modalities(tmp_path):
    words = ["visible", "V", "rgb", "0", "infrared", "i", "IR", "1"]
    rows = [f"{n}.jpg,{n},{n},train,{word}" for n, word in enumerate(words)]
    train = read(tmp_path, *rows, header=HEADER + ",modality").parts["train"]
    np.testing.assert_array_equal(train.modality, [VISIBLE] * 4 + [INFRARED] * 4)
    assert train.modality.dtype == np.int8
    rows[2], rows[3] = "2.jpg,2,2,train,thermal", "3.jpg,3,3,train,"
    found = problems(tmp_path, *rows, header=HEADER + ",modality")
    assert [(p.line, p.column) for p in found] == [(4, "modality"), (5, "modality")]
    assert "unknown modality 'thermal'; write visible" in found[0].message


def test_missing_files_are_found_listing_each_folder_once(tmp_path, monkeypatch):
    file = make_set(tmp_path, *ROWS)
    assert check_manifest(file) == []
    (tmp_path / "c2" / "b.jpg").unlink()
    (tmp_path / "g" / "1.jpg").rename(tmp_path / "g" / "1.JPG")
    (tmp_path / "g" / "3.jpg").mkdir()
    (tmp_path / "g" / "4.jpg").symlink_to("4.jpg")
    (tmp_path / "g" / "5.jpg").symlink_to("2.jpg")
    rows = ["g/3.jpg,5,2,gallery", "g/4.jpg,5,2,gallery", "g/5.jpg,5,2,gallery", "h/1.jpg,,2,query"]
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    found = check_manifest(write(tmp_path, *ROWS, *rows))
    assert [(p.line, p.column) for p in found] == [
        (2, "path"),
        (7, "path"),
        (8, "path"),
        (9, "path"),
        (11, "path"),
        (11, "pid"),
    ]
    assert found[0].message == f"no such file: {tmp_path}/c2/b.jpg"
    assert found[1].message == f"no such file: {tmp_path}/g/1.jpg (there is 1.JPG)"
    assert found[4].message.endswith("h/1.jpg (its folder: no such file or directory)")
    assert len(listed) == len(set(listed)) == 5


def test_file_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / name).write_bytes(b"pixels")
    (tmp_path / "manifest.csv").write_bytes(b"path,pid,camid,split\ncaf\xe9.jpg,1,1,train\n")
    train = read_manifest(tmp_path).parts["train"]
    assert list(train.path) == [name] and train.read(np.arange(1)) == [b"pixels"]


def test_messages_are_printable_whatever_the_file_holds(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"path,pid,camid,split\n\xe9\x07.jpg,1,1,train\n")
    (problem,) = check_manifest(tmp_path / "m.csv")
    assert problem.message == rf"no such file: {tmp_path}/\udce9\x07.jpg"
    (tmp_path / "m.csv").write_bytes(b"path,pid,\xe9,camid\n")
    (problem,) = check_manifest(tmp_path / "m.csv")
    assert problem.message == (
        r"there is no column split; the columns found are: path, pid, \udce9, camid"
    )


def test_finds_the_manifest_in_a_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"{tmp_path}/nowhere does not exist; expected a CSV"
    ):
        read_manifest(tmp_path / "nowhere")
    write(tmp_path, *ROWS, name="people.csv")
    with pytest.raises(
        FileNotFoundError, match=r"no manifest.csv or .*it has people.csv: name the"
    ):
        read_manifest(tmp_path)
    make_set(tmp_path, *ROWS)
    assert len(read_manifest(tmp_path).parts["train"]) == 3
    (tmp_path / "manifest.parquet").touch()
    with pytest.raises(ValueError, match=r"holds manifest.csv and manifest.parquet; name the one"):
        read_manifest(tmp_path)


def test_warnings_about_what_is_legal_but_odd(tmp_path):
    rows = ["a.jpg,1,1,train", "b.jpg,2,1,train", "c.jpg,1,1,query", "d.jpg,8,1,query"]
    rows += ["d.jpg,8,1,gallery", "a.jpg,1,1,gallery", "e.jpg,1,2,gallery"]
    assert read(tmp_path, *rows).report["warnings"] == (
        "2 images stand in more than one split (e.g. d.jpg: query and gallery)",
        "1 of 2 queries have no match: no image of their identity in the gallery is from another "
        "camera",
        "1 identities are in the training set and among those to test on; if equal pids mean the "
        "same people, figures are better than on people never seen",
        "the training images come from one camera; learning across cameras needs two",
    )


def test_the_largest_numbers(tmp_path):
    largest = 2**31 - 1
    rows = [f"a.jpg,{largest},{largest},query", f"b.jpg,{largest},0,gallery"]
    collection = read(tmp_path, *rows)
    assert collection.report["warnings"] == () and collection.camera_codes == (0, largest)
    np.testing.assert_array_equal(collection.parts["query"].pid, [largest])
    alone = read(tmp_path, rows[0], f"b.jpg,{largest},{largest},gallery")
    assert "1 of 1 queries have no match" in alone.report["warnings"][0]


def as_parquet(file: pathlib.Path, columns: dict) -> pathlib.Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), file)
    return file


def test_parquet_gives_what_csv_gives(tmp_path):
    columns = {
        "Path": ["b.jpg", ".\\a.jpg", "q.jpg", "g.jpg", "n.jpg"],
        "pid": [3.0, float("nan"), 5.0, 5.0, -1.0],
        "CAMID": np.array([1, 2, 1, 2, 2], np.uint8),
        "split": ["train", "train", "query", "gallery", "gallery"],
        "tracklet": ["t", "s", "u", "v", "w"],
        "frame": np.arange(5),
        "modality": [None] * 5,
        "extra": [[1, 2]] * 5,
    }
    parquet = read_manifest(as_parquet(tmp_path / "manifest.parquet", columns), check_files=False)
    texts = [",".join(columns)] + [
        ",".join(str(values[row]) for values in columns.values()) for row in range(5)
    ]
    text = "\n".join(texts).replace("nan", "").replace("None", "").replace("[1, 2]", "")
    (tmp_path / "manifest.csv").write_text(text)
    from_csv = read_manifest(tmp_path / "manifest.csv", check_files=False)
    assert content(parquet) == content(from_csv)
    np.testing.assert_array_equal(parquet.parts["train"].pid, [-2, 3])  # tracklet s, then t
    assert parquet.report == from_csv.report
    assert parquet.report["warnings"] == ("columns left out: extra",)


def test_parquet_of_dictionaries_and_texts(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    columns = {
        "path": pyarrow.array(["a.jpg", "b.jpg"], pyarrow.large_string()),
        "pid": pyarrow.array(["bob", "al"]).dictionary_encode(),
        "camid": pyarrow.array([2, 1], pyarrow.int8()).dictionary_encode(),
        "split": pyarrow.array(["train", "train"]).dictionary_encode(),
    }
    collection = read_manifest(as_parquet(tmp_path / "people.pq", columns), check_files=False)
    assert list(pid_names(collection)) == ["al", "bob"] and collection.camera_codes == (1, 2)
    np.testing.assert_array_equal(collection.parts["train"].pid, [1, 0])


def test_problems_of_parquet_name_rows(tmp_path):
    columns = {
        "path": ["a.jpg", None],
        "pid": [1, 2**40],
        "camid": [None, 1],
        "split": ["train"] * 2,
    }
    file = as_parquet(tmp_path / "manifest.parquet", columns)
    found = check_manifest(file, check_files=False)
    assert [(p.line, p.column, p.unit) for p in found] == [
        (1, "camid", "row"),
        (2, "path", "row"),
        (2, "pid", "row"),
    ]
    with pytest.raises(
        ManifestError, match=r"manifest.parquet: 2 bad rows; first: row 1: camid is"
    ):
        read_manifest(file, check_files=False)
    as_parquet(
        file, {"path": [1, 2], "pid": [True, False], "camid": [1, 1], "split": ["train"] * 2}
    )
    with pytest.raises(ManifestError) as raised:
        read_manifest(file)
    assert [str(problem) for problem in raised.value.problems] == [
        "column path is of type int64, expected text",
        "column pid is of type bool, expected integers or text",
    ]
    as_parquet(file, {"path": ["a.jpg"], "person": [1]})
    assert [p.column for p in check_manifest(file)] == ["pid", "camid", "split"]


def test_damaged_parquet(tmp_path):
    for text in (b"", b"PAR1", b"PAR1garbagePAR1"):
        (tmp_path / "manifest.parquet").write_bytes(text)
        with pytest.raises(ManifestError, match="cannot be read as Parquet"):
            read_manifest(tmp_path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1")
    original = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'ccafl_jax\[parquet\]'"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7), ("-1", -1), ("+07", 7), ("12.0", 12), ("12.", 12), ("000", 0), ("-0", 0),
        ("9" * 19, 10**18), ("", None), ("1.5", None), ("1e3", None), ("٣", None), ("a", None),
        ("0x1", None), ("-", None), ("1 2", None),
    ],
)  # fmt: skip
def test_integers(text, number):
    assert integer_of(text) == number


def test_natural_order():
    texts = ["a10", "a2", "a02", "a", "b1", "", "7", "a2b10", "a2b9"]
    assert sorted(texts, key=natural_key) == [
        "", "7", "a", "a02", "a2", "a2b9", "a2b10", "a10", "b1",
    ]  # fmt: skip


@given(st.lists(st.text(max_size=12), max_size=5))
def test_natural_order_is_total(texts):
    keys = sorted(map(natural_key, texts))
    assert len(set(keys)) == len(set(texts))


NAMES = st.sampled_from([*HEADER.split(","), "tracklet", "frame", "modality", "", "PID", "x"])
WORDS = st.sampled_from(
    ["train", "query", "gallery", "distractors", "-1", "", "1", "2", "a.jpg", "b/c.jpg", "v", '"']
)


def outcome(text: bytes) -> None:
    """Anything but a collection or a ValueError of one line fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "manifest.csv"
        file.write_bytes(text)
        found = check_manifest(file, check_files=False)
        try:
            collection = read_manifest(file, check_files=False)
        except ManifestError as error:
            assert error.problems == found != [] and "\n" not in str(error)
            return
        assert found == []
        read_rows = sum(len(part) for part in collection.parts.values())
        assert 0 < read_rows <= text.count(b"\n") + text.count(b"\r")
        for records in collection.parts.values():
            if records.tracklet is not None:
                tracklets(records)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(NAMES, min_size=1, max_size=8, unique=True).map(
        lambda n: sorted(n, key="path".__ne__)
    ),
    st.lists(st.lists(st.one_of(WORDS, st.text(max_size=4)), max_size=8), max_size=6),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
)
def test_any_table_is_read_or_refused(header, rows, delimiter, end):
    lines = [header, *rows]
    outcome(end.join(delimiter.join(row) for row in lines).encode())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["1", "2", "b", "-1", ""]),
            st.sampled_from(["1", "2", "yard", ""]),
            st.sampled_from(["train", "train", "query", "gallery", "distractors"]),
            st.sampled_from(["", "s", "t"]),
        ),
        max_size=6,
    ),
    st.integers(0, 6),
)
def test_nearly_valid_tables_are_read_or_refused(rows, different):
    names = [f"{min(number, different)}.jpg" for number in range(len(rows))]
    lines = [",".join((name, *row)) for name, row in zip(names, rows, strict=True)]
    outcome("\n".join([HEADER + ",tracklet", *lines]).encode() + b"\n")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    outcome(data)
    outcome(HEADER.encode() + b"\n" + data)


TEXT = st.text(
    st.characters(
        codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp"), exclude_characters="\\/"
    ),
    min_size=1,
    max_size=8,
)
LABELS = st.one_of(
    st.lists(st.integers(0, 2**31 - 1).map(str), min_size=1, max_size=4),
    st.lists(TEXT.filter(lambda text: integer_of(text) is None), min_size=1, max_size=4),
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(TEXT.filter(lambda text: text.strip(".")), min_size=4, max_size=12, unique=True),
    LABELS,
    LABELS,
    st.randoms(use_true_random=False),
    st.sampled_from(",;\t"),
)
def test_valid_manifests_come_back(names, pids, cameras, random, delimiter):
    splits = ["train", "query", "gallery"]
    rows = [
        (f"d/{name}", random.choice(pids), random.choice(cameras), splits[place % 3])
        for place, name in enumerate(names)
    ]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([HEADER.split(","), *rows])
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "manifest.csv"
        file.write_text(text.getvalue(), encoding="utf-8", newline="")
        collection = read_manifest(file, check_files=False)
        columns = dict(zip(HEADER.split(","), map(list, zip(*rows, strict=True)), strict=True))
        parquet = read_manifest(
            as_parquet(pathlib.Path(folder) / "m.parquet", columns), check_files=False
        )
    assert content(collection) == content(parquet)
    back = []
    for split, records in collection.parts.items():
        for path, pid, camid in zip(records.path, records.pid, records.camid, strict=True):
            names_of, cameras_of = pid_names(collection), camera_names(collection)
            camera = cameras_of[camid] if cameras_of else str(collection.camera_codes[camid])
            back.append((path, names_of[pid] if names_of else str(pid), camera, split))
    assert sorted(back) == sorted(rows)
