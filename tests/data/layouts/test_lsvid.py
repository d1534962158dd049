import pathlib
import re
import sys

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st

from ccafl_jax.data.layouts.lsvid import _parse_list, read_lsvid
from ccafl_jax.data.records import tracklets

# Prefix, id as the list writes it, ends of the frames' names. Gaps, single frames, numbers of
# tracklets that begin alike and ids of different lengths on purpose.
TRAIN = (
    ("tracklet_train/0009/0009_1", "0009", ("4_0003.jpg", "4_0001.jpg", "4_0010.jpg")),
    ("tracklet_train/0009/0009_10", "0009", ("15_0001.jpg",)),
    ("tracklet_train/0100/0100_1", "0100", ("4_0001.jpg", "4_0002.JPG")),
    ("tracklet_train/0020/0020_2", "20", ("1_0007.png",)),
)
TEST = (
    ("tracklet_test/0001/0001_1", "1", ("2_0001.jpg", "2_0002.jpg")),
    ("tracklet_test/-1/junk_1", "-1", ("3_0001.jpg",)),
    ("tracklet_test/0001/0001_2", "1", ("4_0005.jpg",)),
    ("tracklet_test/0001/0001_3", "1", ("9_0001.jpg", "9_0004.jpg", "9_0009.jpg")),
    ("tracklet_test/0003/0003_1", "3", ("2_0001.jpg",)),
    ("tracklet_test/-1/junk_2", "-1", ("3_0001.jpg", "3_0002.jpg")),
)
VAL = (("tracklet_val/0050/0050_1", "50", ("5_0001.jpg", "5_0002.jpg")),)
QUERIES = (4, 1)


def make_tree(root: pathlib.Path, *, info=False, train=TRAIN, test=TEST, val=()) -> pathlib.Path:
    lists = root / ("info/list_sequence" if info else "list_sequence")
    lists.mkdir(parents=True)
    for half, sequences in (("train", train), ("test", test), ("val", val)):
        for prefix, _, ends in sequences:
            (root / prefix).parent.mkdir(parents=True, exist_ok=True)
            for end in ends:
                (root / f"{prefix}_{end}").touch()
        if sequences:
            write_list(root, half, [f"{prefix} {pid}" for prefix, pid, _ in sequences])
    write_queries(root, QUERIES)
    return root


def write_list(root, half, lines):
    (file_of(root, "list_sequence") / f"list_seq_{half}.txt").write_text("\r\n".join(lines) + "\n")


def write_queries(root, queries):
    path = query_file(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"query": np.array([queries], np.float64)})


def query_file(root):
    return root / ("info/data" if (root / "info").is_dir() else "test/data") / "info_test.mat"


def file_of(root, name):
    return root / "info" / name if (root / "info").is_dir() else root / name


@pytest.mark.parametrize("info", [False, True])
def test_reads_tracklets_identities_cameras_and_frames(tmp_path, info):
    found = read_lsvid(make_tree(tmp_path / "Überwachung 人", info=info))
    train, query, gallery = (found.parts[part] for part in ("train", "query", "gallery"))
    assert found.camera_codes == (1, 2, 4, 9, 15) and set(found.parts) == {
        "train",
        "query",
        "gallery",
    }
    # 0009_1 does not take the frames of 0009_10, and names are in order.
    assert [path.rpartition("/")[2] for path in train.path] == [
        "0009_1_4_0001.jpg",
        "0009_1_4_0003.jpg",
        "0009_1_4_0010.jpg",
        "0009_10_15_0001.jpg",
        "0100_1_4_0001.jpg",
        "0100_1_4_0002.JPG",
        "0020_2_1_0007.png",
    ]
    assert train.frame.tolist() == [1, 3, 10, 1, 1, 2, 7]
    table = tracklets(train)
    assert table.pid.tolist() == [9, 9, 100, 20]  # numbers, not texts
    assert table.camid.tolist() == [2, 4, 2, 0]
    assert train.tracklet.tolist() == [0, 0, 0, 1, 2, 2, 3]
    # The queries come in the order of info_test.mat.
    assert (
        tracklets(query).count.tolist() == [3, 2] and query.tracklet.tolist() == [0] * 3 + [1] * 2
    )
    assert gallery.pid.tolist() == [1, 3] and gallery.camid.tolist() == [2, 1]
    assert gallery.path[0] == "tracklet_test/0001/0001_2_4_0005.jpg"
    assert found.tables["query.track"].tolist() == [3, 0]
    assert found.tables["gallery.track"].tolist() == [2, 4]
    assert found.tables["query.track"].dtype == np.int32
    for records in (train, query, gallery):
        assert all(pathlib.Path(records.locate(i)).is_file() for i in range(len(records)))


def test_counts_what_is_left_out(tmp_path):
    root = make_tree(tmp_path)
    for name in ("0009_3_4_0001.jpg", "Thumbs.db", "0009_1_4_0001.txt"):
        (root / "tracklet_train/0009" / name).touch()
    report = read_lsvid(root).report
    none = {"junk tracklets dropped": 0, "frames of junk tracklets dropped": 0}
    assert report["train"] == {
        "read": 7,
        **none,
        "images in no tracklet": 1,
        "not an image": 2,
    }
    assert report["query"] == {"read": 5, **none}
    assert report["gallery"] == {
        "read": 2,
        "junk tracklets dropped": 2,
        "frames of junk tracklets dropped": 3,
        "images in no tracklet": 0,
        "not an image": 0,
    }
    assert report["warnings"] == ()


def test_val_is_a_part_where_there_is_one(tmp_path):
    found = read_lsvid(make_tree(tmp_path / "a", val=VAL))
    assert found.parts["val"].pid.tolist() == [50, 50]
    assert found.report["val"]["read"] == 2
    root = make_tree(tmp_path / "b", val=VAL)
    (root / "tracklet_val").rename(tmp_path / "elsewhere")
    found = read_lsvid(root)
    assert "val" not in found.parts
    assert "no tracklet_val; the part val is left out" in found.report["warnings"][0]


def test_finds_a_nested_root(tmp_path):
    root = make_tree(tmp_path / "video" / "LS-VID")
    assert read_lsvid(tmp_path).root == str(root)


@pytest.mark.parametrize("userblock", [0, 512])
def test_queries_of_matlab_7_3(tmp_path, userblock):
    h5py = pytest.importorskip("h5py")
    root = make_tree(tmp_path)
    query_file(root).unlink()
    with h5py.File(query_file(root), "w", userblock_size=userblock) as file:
        file["query"] = np.array([[2, 3, 5]], np.float64)
        file["info_test"] = np.zeros((4, 6))
    found = read_lsvid(root)
    assert found.tables["query.track"].tolist() == [2, 4]
    assert found.tables["gallery.track"].tolist() == [0, 3]
    assert found.report["query"]["junk tracklets dropped"] == 1
    with h5py.File(query_file(root), "w", userblock_size=userblock) as file:
        file["other"] = np.zeros(3)
    with pytest.raises(ValueError, match="holds other, expected the variable query"):
        read_lsvid(root)
    query_file(root).write_bytes(query_file(root).read_bytes()[:700])
    with pytest.raises(ValueError, match=r"info_test\.mat is not a readable MATLAB file"):
        read_lsvid(root)


def test_matlab_7_3_needs_h5py(tmp_path, monkeypatch):
    root = make_tree(tmp_path)
    query_file(root).write_bytes(b"MATLAB 7.3".ljust(512) + b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'ccafl_jax\[lsvid\]'"):
        read_lsvid(root)


@pytest.mark.parametrize("info", [False, True])
@pytest.mark.parametrize("file", ["list_seq_train.txt", "list_seq_test.txt", "info_test.mat"])
def test_a_missing_info_file_is_named(tmp_path, file, info):
    root = make_tree(tmp_path, info=info)
    (path,) = root.rglob(file)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks .*{file} or info/.*{file}; expected ROOT"):
        read_lsvid(root)


def test_a_missing_half_is_named(tmp_path):
    make_tree(tmp_path).joinpath("tracklet_test").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="lacks tracklet_test; expected ROOT"):
        read_lsvid(tmp_path)


def test_tracklets_without_frames(tmp_path):
    root = make_tree(tmp_path)
    (root / "tracklet_test/0003/0003_1_2_0001.jpg").unlink()
    (root / "tracklet_test/0003").rmdir()
    (root / "tracklet_test/0001/0001_2_4_0005.jpg").rename(
        root / "tracklet_test/0001/0001_2_4_0005.txt"
    )
    (root / "tracklet_test/-1/junk_1_3_0001.jpg").unlink()  # junk is not missed
    with pytest.raises(
        FileNotFoundError,
        match=r"list_seq_test\.txt: 2 of 6 tracklets have no frame, the first is line 3: no image "
        r"tracklet_test/0001/0001_2_\*",
    ):
        read_lsvid(root)


def test_junk_needs_neither_frames_nor_cameras(tmp_path):
    root = make_tree(tmp_path)
    (root / "tracklet_test/-1/junk_1_3_0001.jpg").unlink()
    (root / "tracklet_test/-1/junk_2_x.jpg").touch()
    report = read_lsvid(root).report["gallery"]
    assert report["read"] == 2 and report["junk tracklets dropped"] == 2
    assert report["frames of junk tracklets dropped"] == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tracklet_train/0009/0009_1", "line 2: found 'tracklet_train/0009/0009_1', expected"),
        ("tracklet_train/0009/0009_1 x9", "line 2: found .* x9', expected a prefix and an id"),
        ("", "line 2: found '', expected"),
        ("tracklet_train/0009/0009_1 9", "lines 1 and 2 share frames"),
        ("tracklet_train/0009/0009_1_4 9", "lines 1 and 2 share frames"),
        ("tracklet_train/0009/0009 9", "lines 1 and 2 share frames"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    root = make_tree(tmp_path)
    lines = [f"{prefix} {pid}" for prefix, pid, _ in TRAIN]
    write_list(root, "train", [lines[0], line, *lines[2:]])
    with pytest.raises(ValueError, match=rf"list_seq_train\.txt[,:] {message}"):
        read_lsvid(root)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0020_2_1_0008.png", None),
        ("0020_2_3_0008.png", "0020_2_1_0007.png to 0020_2_3_0008.png has frames of cameras 1, 3"),
        ("0020_2_16_0008.png", "the third part of the name is '16', expected a camera of 1 to 15"),
        ("0020_2_0_0008.png", "0020_2_0_0008.png: the third part of the name is '0'"),
        ("0020_2_c1_0008.png", "the third part of the name is 'c1'"),
        ("0020_2_x.png", "the third part of the name is 'x.png'"),
    ],
)
def test_cameras_of_names(tmp_path, name, message):
    root = make_tree(tmp_path)
    (root / "tracklet_train/0020" / name).touch()
    if message is None:
        assert len(read_lsvid(root).parts["train"]) == 8
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        read_lsvid(root)


@pytest.mark.parametrize("ends", [("1_1.jpg", "1_10.jpg", "1_9.jpg"), ("1_a.jpg", "1_b.jpg")])
def test_frames_whose_numbers_do_not_rise_are_counted_by_position(tmp_path, ends):
    odd = ("tracklet_train/0030/0030_1", "30", ends)
    found = read_lsvid(make_tree(tmp_path, train=(*TRAIN, odd)))
    train = found.parts["train"]
    assert train.frame[train.pid == 30].tolist() == list(range(len(ends)))
    assert train.frame[train.pid == 20].tolist() == [7]
    (warning,) = found.report["warnings"]
    assert "1 tracklets, the first tracklet_train/0030/0030_1, do not end in rising" in warning


@pytest.mark.parametrize(
    ("queries", "message"),
    [([7], "the first 7, lie outside 1 to 6"), ([0, 1], "the first 0"), ([2, 2], "2 stands twice")],
)
def test_bad_queries(tmp_path, queries, message):
    root = make_tree(tmp_path)
    write_queries(root, queries)
    with pytest.raises(ValueError, match=rf"info_test\.mat: .*{message}"):
        read_lsvid(root)


def test_prefixes_in_other_spellings(tmp_path):
    root = make_tree(tmp_path)
    lines = [f".\\{prefix}_\t{pid} ".replace("/", "\\") for prefix, pid, _ in TRAIN]
    write_list(root, "train", ["\ufeff" + lines[0], *lines[1:]])
    assert len(read_lsvid(root).parts["train"]) == 7


@given(st.text(max_size=40))
def test_any_list_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "list.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        prefixes, pids = _parse_list(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}, line ")
    else:
        assert len(prefixes) == len(pids) == len(text.rstrip().split("\n"))


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z0-9]{1,5}(/[a-z0-9_]{0,6}[a-z0-9]){1,2}", fullmatch=True),
            st.integers(-1, 9999),
            st.integers(1, 8),
        ),
        min_size=1,
    )
)
def test_lists_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "list.txt"
    path.write_text("\n".join(f"{prefix} {pid:0{width}d}" for prefix, pid, width in rows))
    prefixes, pids = _parse_list(path)
    assert prefixes == [prefix for prefix, _, _ in rows]
    assert pids == [pid for _, pid, _ in rows]
