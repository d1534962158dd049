import pathlib
import re

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st

from ccafl_jax.data.layouts.mars import parse_names, read_mars
from ccafl_jax.data.records import tracklets

# Person, camera, tracklet and the numbers of its frames: gaps and single frames on purpose.
TRAIN = (
    ("0001", 1, 1, (1, 2, 5)),
    ("0001", 3, 2, (7,)),
    ("00-1", 2, 9, (1, 2)),
    ("0010", 2, 1, (1, 2)),
)
TEST = (
    ("00-1", 1, 1, (1, 2, 3)),
    ("0000", 6, 1, (1, 2)),
    ("0002", 1, 1, (3, 1, 2)),  # the name file is not sorted: its order counts
    ("0002", 5, 1, (1,)),
    ("0002", 5, 2, (4, 6)),
    ("00-1", 2, 1, (1,)),
)
QUERIES = (5, 3)


def names_of(tracks):
    return [
        [f"{person}C{camera}T{track:04d}F{frame:03d}.jpg" for frame in frames]
        for person, camera, track, frames in tracks
    ]


def rows_of(tracks):
    rows, line = [], 1
    for person, camera, _, frames in tracks:
        pid = -1 if person == "00-1" else int(person)
        rows.append([line, line + len(frames) - 1, pid, camera])
        line += len(frames)
    return rows


def make_tree(root: pathlib.Path, info="info", *, train=TRAIN, test=TEST) -> pathlib.Path:
    (root / info).mkdir(parents=True)
    for half, tracks in (("train", train), ("test", test)):
        names = [name for frames in names_of(tracks) for name in frames]
        for name in names:
            folder = root / f"bbox_{half}" / name[:4]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        (root / info / f"{half}_name.txt").write_text("\r\n".join(names) + "\r\n\n")
        write_tracks(root / info, half, rows_of(tracks))
    write_queries(root / info, QUERIES)
    return root


def write_tracks(info, half, rows):
    variable = {f"track_{half}_info": np.array(rows, np.float64)}
    scipy.io.savemat(info / f"tracks_{half}_info.mat", variable)


def write_queries(info, queries):
    scipy.io.savemat(info / "query_IDX.mat", {"query_IDX": np.array([queries], np.float64)})


def change_test_row(root, row, column, value):
    rows = rows_of(TEST)
    rows[row][column] = value
    write_tracks(root / "info", "test", rows)


def change_test_line(root, line, name):
    path = root / "info/test_name.txt"
    lines = path.read_text().splitlines()
    lines[line] = name
    path.write_text("\n".join(lines))


def test_reads_tracklets_identities_cameras_and_frames(tmp_path):
    root = make_tree(tmp_path / "Überwachung 人")
    (root / "bbox_test/circle").symlink_to(root / "bbox_test/circle")
    found = read_mars(root)
    train, query, gallery = (found.parts[part] for part in ("train", "query", "gallery"))
    assert found.camera_codes == (1, 2, 3, 5, 6) and found.name == "mars"
    assert train.pid.tolist() == [1, 1, 1, 1, 10, 10]
    assert train.camid.tolist() == [0, 0, 0, 2, 1, 1]
    assert train.tracklet.tolist() == [0, 0, 0, 1, 2, 2]
    assert train.frame.tolist() == [1, 2, 5, 7, 1, 2]
    assert list(train.path)[3:5] == [
        "bbox_train/0001/0001C3T0002F007.jpg",
        "bbox_train/0010/0010C2T0001F001.jpg",
    ]
    # The queries come in the order of query_IDX.
    assert query.frame.tolist() == [4, 6, 3, 1, 2]
    assert query.tracklet.tolist() == [0, 0, 1, 1, 1]
    assert gallery.pid.tolist() == [0, 0, 2]
    assert gallery.path[0] == "bbox_test/0000/0000C6T0001F001.jpg"
    assert found.tables["query.track"].tolist() == [4, 2]
    assert found.tables["gallery.track"].tolist() == [1, 3]
    assert found.tables["query.track"].dtype == np.int32
    table = tracklets(train)
    assert table.count.tolist() == [3, 1, 2] and table.pid.tolist() == [1, 1, 10]
    for records in (train, query, gallery):
        assert all(pathlib.Path(records.locate(i)).is_file() for i in range(len(records)))


def test_counts_what_is_left_out(tmp_path):
    root = make_tree(tmp_path)
    (root / "bbox_test/0002/Thumbs.db").touch()
    (root / "bbox_test/00-1/00-1C9T0001F001.jpg").touch()
    (root / "bbox_test/notes.txt").touch()  # beside the folders of people: no frame
    with open(root / "info/train_name.txt", "a") as file:
        file.write("0001C1T0003F001.jpg\n")
    report = read_mars(root).report
    junk = {"junk tracklets dropped": 1, "frames of junk tracklets dropped": 2}
    assert report["train"] == {
        "read": 6,
        **junk,
        "names in no tracklet": 2,  # the empty line before the added one, too
        "files that no list names": 0,
    }
    assert report["query"] == {"read": 5, **dict.fromkeys(junk, 0)}
    assert report["gallery"] == {
        "read": 3,
        "junk tracklets dropped": 2,
        "frames of junk tracklets dropped": 4,
        "names in no tracklet": 0,
        "files that no list names": 2,
    }
    (warning,) = report["warnings"]
    assert re.search("train_name.txt: 2 names stand in no tracklet", warning)


@pytest.mark.parametrize("info", ["info", "MARS-evaluation/info", "MARS-evaluation-master/info"])
@pytest.mark.parametrize("beside", [False, True])
def test_finds_the_info_folder(tmp_path, info, beside):
    root = make_tree(tmp_path / "MARS-v160809", f"../{info}" if beside else info)
    found = read_mars(tmp_path)
    assert found.root == str(root) and len(found.parts["train"]) == 6


def test_queries_that_are_junk_are_dropped(tmp_path):
    root = make_tree(tmp_path)
    write_queries(root / "info", [1, 4])
    found = read_mars(root)
    assert found.tables["query.track"].tolist() == [3]
    assert found.parts["query"].pid.tolist() == [2]
    assert found.report["query"]["frames of junk tracklets dropped"] == 3
    assert found.report["gallery"]["frames of junk tracklets dropped"] == 1


@pytest.mark.parametrize(
    "file",
    [
        "train_name.txt",
        "test_name.txt",
        "tracks_train_info.mat",
        "tracks_test_info.mat",
        "query_IDX.mat",
    ],
)
def test_a_missing_info_file_is_named(tmp_path, file):
    root = make_tree(tmp_path)
    (root / "info" / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"info lacks {file}; expected .*F001\.jpg"):
        read_mars(root)


def test_a_missing_info_folder_or_half_is_named(tmp_path):
    make_tree(tmp_path / "a").joinpath("info").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"a/info lacks train_name.txt and .*; expected"):
        read_mars(tmp_path / "a")
    make_tree(tmp_path / "b").joinpath("bbox_test").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="b lacks bbox_test; expected"):
        read_mars(tmp_path / "b")


def test_listed_files_that_are_absent(tmp_path):
    root = make_tree(tmp_path)
    (root / "bbox_test/0002/0002C1T0001F002.jpg").unlink()
    (root / "bbox_test/0000/0000C6T0001F001.jpg").unlink()
    (root / "bbox_test/0000/0000C6T0001F002.jpg").unlink()
    (root / "bbox_test/0000").rmdir()
    with pytest.raises(
        FileNotFoundError,
        match=r"bbox_test: 3 of 8 listed frames .* the first 0000/0000C6T0001F001\.jpg",
    ):
        read_mars(root)
    assert len(read_mars(root, check_files=False).parts["gallery"]) == 3


def test_absent_junk_does_not_matter(tmp_path):
    root = make_tree(tmp_path)
    for path in (root / "bbox_test/00-1").iterdir():
        path.unlink()
    assert len(read_mars(root).parts["gallery"]) == 3


@pytest.mark.parametrize(
    ("line", "name", "message"),
    [
        (7, "0003C1T0001F002.jpg", r"row 3: line 8 .*id 3, camera 1\), expected id 2, camera 1"),
        (7, "0002C4T0001F002.jpg", r"row 3: line 8 .*id 2, camera 4\), expected id 2, camera 1"),
        (0, "0002C1T0001F002.jpg", r"row 1: line 1 .*id 2, camera 1\), expected id -1, camera 1"),
        (7, "0002C1T0001F002", r"row 3: line 8 .* is '0002C1T0001F002', expected"),
        (7, "", r"row 3: line 8 .* is '', expected"),
        (7, "x" * 300, r"test_name.txt: found a line of 300 bytes, expected"),
        (10, "0002C5T0002F004.jpg", r"query: .*0002C5T0002F004.jpg is listed twice"),
    ],
)
def test_names_that_disagree_with_their_row(tmp_path, line, name, message):
    root = make_tree(tmp_path)
    change_test_line(root, line, name)
    with pytest.raises(ValueError, match=message):
        read_mars(root, check_files=False)


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (3, 2, 7, "row 4: line 9 .* expected id 7, camera 5"),
        (3, 3, 6, "row 4: line 9 .* expected id 2, camera 6"),
        (5, 1, 13, "row 6: lines 12 to 13 lie outside the name file of 12 lines"),
        (0, 0, 0, "row 1: lines 0 to 3 lie outside"),
        (2, 0, 9, "row 3: lines 9 to 8 lie outside"),
        (1, 1, 6, "rows 2 and 3 share line 6"),
        (1, 1, 5.5, "track_test_info holds float64, expected integers"),
    ],
)
def test_rows_that_disagree_with_the_names(tmp_path, row, column, value, message):
    root = make_tree(tmp_path)
    change_test_row(root, row, column, value)
    with pytest.raises(ValueError, match=message):
        read_mars(root)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([1, 7], "1 of 2 numbers, the first 7, lie outside 1 to 6, the number of test tracklets"),
        ([0], "1 of 1 numbers, the first 0, lie outside 1 to 6"),
        ([3, 5, 3], "3 stands twice"),
    ],
)
def test_bad_query_rows(tmp_path, queries, message):
    root = make_tree(tmp_path)
    write_queries(root / "info", queries)
    with pytest.raises(ValueError, match=f"query_IDX.mat: {message}"):
        read_mars(root)


def test_damaged_info_files(tmp_path):
    root = make_tree(tmp_path)
    write_tracks(root / "info", "test", [[1, 2, 3]])
    with pytest.raises(ValueError, match=r"tracks_test_info.mat: found an array \(1, 3\)"):
        read_mars(root)
    scipy.io.savemat(root / "info/tracks_test_info.mat", {"other": 1})
    with pytest.raises(ValueError, match="holds other, expected the variable track_test_info"):
        read_mars(root)
    (root / "info/tracks_test_info.mat").write_bytes(b"not a MATLAB file" * 20)
    with pytest.raises(ValueError, match=r"tracks_test_info\.mat is not a readable MATLAB file"):
        read_mars(root)
    (root / "info/test_name.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"test_name\.txt: found no line"):
        read_mars(root)


ORACLE = re.compile(rb"(\d{4}|00-1)C(\d)T(\d{1,9})F(\d{1,9})\.")


@given(
    person=st.one_of(st.just("00-1"), st.integers(0, 9999).map("{:04d}".format)),
    camera=st.integers(0, 9),
    track=st.integers(0, 999_999_999),
    frame=st.integers(0, 999_999_999),
    digits=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    suffix=st.sampled_from(["jpg", "JPG", "png", ""]),
)
def test_valid_names_round_trip(person, camera, track, frame, digits, suffix):
    name = f"{person}C{camera}T{track:0{digits[0]}d}F{frame:0{digits[1]}d}.{suffix}"
    parsed = parse_names(np.array([b"x", name.encode()]))
    assert parsed.readable.tolist() == [False, True]
    assert parsed.pid[1] == (-1 if person == "00-1" else int(person))
    assert (parsed.camera[1], parsed.track[1], parsed.frame[1]) == (camera, track, frame)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.text("0123456789-CTF.jpg", max_size=24).map(str.encode),
            st.from_regex(
                rb"[0-9]{3}[0-9-]C[0-9]T[0-9]{0,11}F?[0-9TF]{0,11}\.?jpg", fullmatch=True
            ),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_names_are_read_as_the_rule_says(names):
    names = [name.rstrip(b"\0") for name in names]
    parsed = parse_names(np.array(names, dtype=f"S{max(1, *map(len, names))}"))
    for i, name in enumerate(names):
        match = ORACLE.match(name)
        assert parsed.readable[i] == bool(match)
        if match:
            person, *numbers = match.groups()
            assert parsed.pid[i] == (-1 if person == b"00-1" else int(person))
            found = [int(column[i]) for column in (parsed.camera, parsed.track, parsed.frame)]
            assert found == [int(number) for number in numbers]
