import pathlib

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st

from ccafl_jax.data.layouts.ilidsvid import _NAME, read_ilidsvid, select_ilidsvid
from ccafl_jax.data.records import tracklets

# Frame numbers of camera 1 and 2 by person: gaps in ids and frames, single frames on purpose.
PEOPLE = {
    1: ((317, 318, 320), (5,)),
    2: ((1,), (9, 10)),
    5: ((3, 4), (1, 2, 3)),
    319: ((99998, 99999), (7, 8)),
}
# Places in the sorted list of the people, counted from 1.
SPLITS = ((4, 1, 2, 3), (2, 3, 1, 4), (1, 2, 3, 4))
SEQUENCES = "i-LIDS-VID/sequences"
MAT = "train-test people splits/train_test_splits_ilidsvid.mat"


def make_tree(root: pathlib.Path, people=PEOPLE, splits=SPLITS) -> pathlib.Path:
    for pid, cameras in people.items():
        for camera, frames in enumerate(cameras, start=1):
            folder = root / SEQUENCES / f"cam{camera}" / f"person{pid:03d}"
            folder.mkdir(parents=True)
            for frame in frames:
                (folder / f"cam{camera}_person{pid:03d}_{frame:05d}.png").touch()
    (root / MAT).parent.mkdir()
    write_splits(root, splits)
    return root


def write_splits(root, splits):
    scipy.io.savemat(root / MAT, {"ls_set": np.array(splits, np.float64)})


def test_reads_people_cameras_frames_and_splits(tmp_path):
    found = read_ilidsvid(make_tree(tmp_path / "Überwachung 人"))
    records = found.parts["all"]
    table = tracklets(records)
    assert found.camera_codes == (1, 2) and list(found.parts) == ["all"]
    assert table.pid.tolist() == [1, 1, 2, 2, 5, 5, 319, 319]
    assert table.camid.tolist() == [0, 1] * 4
    assert table.count.tolist() == [3, 1, 1, 2, 2, 3, 2, 2]
    assert records.tracklet[table.start].tolist() == list(range(8))
    assert records.frame[:5].tolist() == [317, 318, 320, 5, 1]
    assert records.path[3] == f"{SEQUENCES}/cam2/person001/cam2_person001_00005.png"
    assert found.tables["people"].tolist() == [1, 2, 5, 319]
    assert found.tables["split.people"].tolist() == [[3, 0, 1, 2], [1, 2, 0, 3], [0, 1, 2, 3]]
    assert {table.dtype for table in found.tables.values()} == {np.dtype(np.int32)}
    assert found.report["all"]["read"] == 16 and found.report["warnings"] == ()
    assert all(pathlib.Path(records.locate(i)).is_file() for i in range(len(records)))


@pytest.mark.parametrize(
    ("split", "first_half", "second_half"), [(1, [1, 319], [2, 5]), (2, [2, 5], [1, 319])]
)
def test_the_halves_of_a_split(tmp_path, split, first_half, second_half):
    found = read_ilidsvid(make_tree(tmp_path))
    standard = select_ilidsvid(found, split=split)
    released = select_ilidsvid(found, split=split, orientation="tfclip")
    for dataset, train, test in (
        (standard, second_half, first_half),
        (released, first_half, second_half),
    ):
        assert np.unique(dataset.train.pid).tolist() == train
        assert np.unique(dataset.train.camid).tolist() == [0, 1]
        for part, camid in ((dataset.query, 0), (dataset.gallery, 1)):
            assert np.unique(part.pid).tolist() == test
            assert np.unique(part.camid).tolist() == [camid]
        assert len(dataset.train) + len(dataset.query) + len(dataset.gallery) == 16
    assert f"split {split} of 3, the second half" in standard.report["protocol"]
    assert f"split {split} of 3, the first half" in released.report["protocol"]


def test_tracklets_stay_whole(tmp_path):
    dataset = select_ilidsvid(read_ilidsvid(make_tree(tmp_path)), split=1)
    train = tracklets(dataset.train)
    assert train.pid.tolist() == [2, 2, 5, 5] and train.count.tolist() == [1, 2, 2, 3]
    assert dataset.query.frame.tolist() == [317, 318, 320, 99998, 99999]
    assert dataset.gallery.tracklet.tolist() == [1, 7, 7]
    assert dataset.query.path[0].endswith("cam1_person001_00317.png")


def test_selection_refuses_unknown_splits_and_orientations(tmp_path):
    found = read_ilidsvid(make_tree(tmp_path))
    for split in (0, 4):
        with pytest.raises(ValueError, match=f"split is {split}, must be one of 1 to 3"):
            select_ilidsvid(found, split=split)
    with pytest.raises(ValueError, match="orientation is 'x', must be one of standard, tfclip"):
        select_ilidsvid(found, orientation="x")


def test_an_odd_number_of_people_is_split_in_full(tmp_path):
    people = {pid: PEOPLE[pid] for pid in (1, 2, 5)}
    dataset = select_ilidsvid(read_ilidsvid(make_tree(tmp_path, people, [[3, 1, 2]])))
    assert np.unique(dataset.query.pid).tolist() == [5]
    assert np.unique(dataset.train.pid).tolist() == [1, 2]


def test_counts_what_is_left_out(tmp_path):
    root = make_tree(tmp_path)
    folder = root / SEQUENCES / "cam1/person001"
    for name in ("Thumbs.db", ".DS_Store", "cam1_person001.png", "0001.png"):
        (folder / name).touch()
    (folder.parent / "readme.txt").touch()
    (folder.parent / "person").mkdir()
    report = read_ilidsvid(root).report
    assert report["all"] == {
        "read": 16,
        "with an unreadable name": 2,
        "not an image": 2,
        "not a folder of a person": 2,
    }
    (warning,) = report["warnings"]
    assert "2 images with an unreadable name" in warning


def test_frames_are_in_the_order_of_time(tmp_path):
    root = make_tree(tmp_path)
    folder = root / SEQUENCES / "cam2/person002"
    for name in ("cam2_person002_9999.png", "cam2_person002_100000.png"):
        (folder / name).touch()
    records = read_ilidsvid(root).parts["all"]
    chosen = (records.pid == 2) & (records.camid == 1)
    assert records.frame[chosen].tolist() == [9, 10, 9999, 100000]


def test_finds_a_nested_root(tmp_path):
    root = make_tree(tmp_path / "video" / "ilids-vid")
    assert read_ilidsvid(tmp_path).root == str(root)


@pytest.mark.parametrize("name", [MAT, f"{SEQUENCES}/cam1", f"{SEQUENCES}/cam2"])
def test_what_is_missing_is_named(tmp_path, name):
    root = make_tree(tmp_path / "set")
    (root / name).rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=f"lacks {name}; expected ROOT.*cam1_person001"):
        read_ilidsvid(root)


def test_a_person_without_one_of_the_cameras(tmp_path):
    root = make_tree(tmp_path)
    (root / SEQUENCES / "cam2/person005").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"1 people lack a camera, .* person005 \(no .* in cam2\)"):
        read_ilidsvid(root)
    (tmp_path / "gone").rename(root / SEQUENCES / "cam2/person005")
    for path in (root / SEQUENCES / "cam1/person002").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="cam1/person002: no frame among 0 files"):
        read_ilidsvid(root)


def test_no_people_or_a_person_twice(tmp_path):
    root = make_tree(tmp_path)
    for camera in (1, 2):
        (root / SEQUENCES / f"cam{camera}/person1").mkdir()
    with pytest.raises(ValueError, match="5 folders but 4 ids of people"):
        read_ilidsvid(root)
    for camera in (1, 2):
        (root / SEQUENCES / f"cam{camera}").rename(tmp_path / f"gone{camera}")
        (root / SEQUENCES / f"cam{camera}").mkdir()
    with pytest.raises(ValueError, match="no folder of a person; expected ROOT"):
        read_ilidsvid(root)


@pytest.mark.parametrize("name", ["cam2_person001_00001.png", "cam1_person002_00001.png"])
def test_a_frame_in_the_wrong_folder(tmp_path, name):
    root = make_tree(tmp_path)
    (root / SEQUENCES / "cam1/person001" / name).touch()
    with pytest.raises(ValueError, match=f"{name}: expected a name with camera 1 and person 1"):
        read_ilidsvid(root)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([[1, 2, 3]], r"ls_set is an array \(1, 3\) but there are folders of 4 people"),
        ([[1, 2, 3, 4], [1, 2, 3, 5]], "row 2: 1 of 4 numbers, the first 5, lie outside 1 to 4"),
        ([[0, 1, 2, 3]], "row 1: .*the first 0, lie outside 1 to 4, the number of people"),
        ([[1, 2, 2, 4]], "row 1: 2 stands twice"),
    ],
)
def test_splits_of_other_people(tmp_path, splits, message):
    root = make_tree(tmp_path, splits=splits)
    with pytest.raises(ValueError, match=message):
        read_ilidsvid(root)


@given(st.integers(0, 9), st.integers(0, 999_999_999), st.integers(0, 999_999_999))
def test_names_round_trip(camera, pid, frame):
    match = _NAME.match(f"cam{camera}_person{pid:03d}_{frame:05d}.png")
    assert [int(group) for group in match.groups()] == [camera, pid, frame]


@given(st.one_of(st.text(), st.text("cam12_person0.")))
def test_any_name_is_read_or_refused(name):
    match = _NAME.match(name)
    if match:
        camera, pid, frame = match.groups()
        assert name.startswith(f"cam{camera}_person{pid}_{frame}.")
