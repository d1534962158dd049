import pathlib

import numpy as np
import pytest

from ccafl_jax.data.market1501 import FOLDERS, find_root, load_market1501
from ccafl_jax.data.records import Records, dense_cameras, intra_camera_labels
from tests.golden_data import case_group

TRAIN = (
    "0002_c1s1_000451_03.jpg",
    "0002_c10s1_000551_01.jpg",
    "0007_c1s2_000776_01.JPG",
    "0000_c10_0003.png",
)
QUERY = ("0001_c1s1_001051_00.jpg",)
GALLERY = ("-1_c1s1_000401_03.jpg", "0000_c3s1_000051_00.jpg", "0001_c10s1_002301_02.jpg")


def make_tree(root: pathlib.Path, train=TRAIN, query=QUERY, gallery=GALLERY) -> pathlib.Path:
    for folder, names in zip(FOLDERS.values(), (train, query, gallery), strict=True):
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).touch()
    return root


def test_relabelling_case():
    (case,) = case_group("relabel")
    inputs, expected = case["inputs"], case["expected"]
    (camid,), codes = dense_cameras(np.array(inputs["cam"]))
    labels = intra_camera_labels(np.array(inputs["pid"]), camid)
    offset = np.cumsum(expected["ids_per_camera"]) - expected["ids_per_camera"]
    np.testing.assert_array_equal(camid, expected["cam_index"])
    np.testing.assert_array_equal(labels.label, expected["acc"])
    np.testing.assert_array_equal(labels.label - offset[camid], expected["intra"])
    np.testing.assert_array_equal(np.bincount(labels.cam_of), expected["ids_per_camera"])
    np.testing.assert_array_equal(labels.pid_of[labels.label], inputs["pid"])
    assert codes == (1, 3) and labels.num_classes == 5


def test_labels_do_not_depend_on_the_order_of_images():
    rng = np.random.default_rng(0)
    pid, camid = rng.integers(-1, 30, 200), rng.integers(0, 5, 200)
    order = rng.permutation(200)
    labels = intra_camera_labels(pid, camid)
    np.testing.assert_array_equal(
        intra_camera_labels(pid[order], camid[order]).label, labels.label[order]
    )
    assert labels.num_classes == len(set(zip(pid, camid, strict=True)))


def test_reads_identities_cameras_and_order(tmp_path):
    dataset = load_market1501(make_tree(tmp_path))
    assert dataset.camera_codes == (1, 3, 10)
    np.testing.assert_array_equal(dataset.train.pid, [0, 2, 2, 7])
    np.testing.assert_array_equal(dataset.train.camid, [2, 2, 0, 0])
    np.testing.assert_array_equal(dataset.gallery.pid, [-1, 0, 1])
    np.testing.assert_array_equal(dataset.gallery.camid, [0, 1, 2])
    np.testing.assert_array_equal(dataset.query.pid, [1])
    names = [pathlib.Path(path).name for path in dataset.train.path]
    assert names == sorted(TRAIN)
    assert all(pathlib.Path(path).is_file() for path in dataset.train.path)
    assert dataset.report["warnings"] == ()


@pytest.mark.parametrize(
    "nested", [".", "Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15"]
)
def test_finds_a_nested_root(tmp_path, nested):
    make_tree(tmp_path / nested)
    (tmp_path / "notes").mkdir()
    (tmp_path / "gt_query" / "query").mkdir(parents=True)  # one folder alone is no data set
    assert find_root(tmp_path) == tmp_path / nested


def test_several_roots_are_listed(tmp_path):
    make_tree(tmp_path / "a"), make_tree(tmp_path / "b" / "c")
    with pytest.raises(ValueError, match=f"{tmp_path}/a, {tmp_path}/b/c"):
        find_root(tmp_path)


def test_missing_folders_show_the_expected_tree(tmp_path):
    tree = r"ROOT/\{bounding_box_train,query,bounding_box_test\}/0002_c1s1_000451_03.jpg"
    with pytest.raises(FileNotFoundError, match=f"nowhere is not a folder; expected {tree}"):
        load_market1501(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"no data set within 3 levels .*{tree}"):
        load_market1501(tmp_path)
    (tmp_path / "deep" / "bounding_box_train").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=f"deep lacks query and bounding_box_test; .*{tree}"
    ):
        load_market1501(tmp_path)


def test_nothing_is_dropped_silently(tmp_path, caplog):
    stray = ("Thumbs.db", "readme.txt", "portrait.jpg", "x0002_c1s1.jpg", "-1_c1s1_000001_01.jpg")
    dataset = load_market1501(make_tree(tmp_path, train=TRAIN + stray))
    assert dataset.report["train"] == {
        "read": 4,
        "junk dropped": 1,
        "with an unreadable name": 2,
        "not an image": 2,
    }
    assert "2 images with an unreadable name" in caplog.text
    assert "1 images junk dropped" in caplog.text
    summary = dataset.summary()
    assert "1 junk dropped, 2 with an unreadable name, 2 not an image" in summary


def test_summary_counts(tmp_path):
    lines = load_market1501(make_tree(tmp_path)).summary().splitlines()
    cells = [line.split() for line in lines[1:5]]
    assert cells == [
        ["split", "images", "ids", "cameras"],
        ["train", "4", "3", "2"],
        ["query", "1", "1", "1"],
        ["gallery", "3", "2", "3"],
    ]
    assert "4 = 2 (c1) + 0 (c3) + 2 (c10)" in lines[5]
    assert "1 junk images" in lines[6] and "1 images of ids without a query" in lines[6]


def test_a_camera_with_one_identity_is_named(tmp_path):
    root = make_tree(tmp_path, train=(*TRAIN, "0009_c5_1.jpg"))
    with pytest.raises(ValueError, match=r"single identity: c5;.*data.allow_single_identity=True"):
        load_market1501(root)
    (warning,) = load_market1501(root, allow_single_identity=True).report["warnings"]
    assert "single identity: c5;" in warning
    assert load_market1501(root, for_training=False).report["warnings"] == ()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (("Thumbs.db",), "no image found among 1 entries"),
        ((), "no image found among 0 entries"),
        (("a.jpg", "b.jpg"), r"none of 2 image names matches id_cCAMERA... \(e.g. a.jpg\)"),
        (("0001_000.jpg", "0002.jpg"), r"names hold no camera ids \(e.g. 0001_000.jpg\)"),
        (("-1_c1s1_000001_01.jpg",), "no image found"),
        (("0001_c4_1.jpg", "0002_c4_1.jpg"), r"one camera \(c4\)"),
        (("0001_c1_1.jpg", "0001_c2_1.jpg"), "single identity: c1, c2"),
    ],
)
def test_unusable_training_sets(tmp_path, train, message):
    with pytest.raises(ValueError, match=message) as error:
        load_market1501(make_tree(tmp_path, train=train))
    assert "\n" not in str(error.value)


def test_records_must_be_equally_long():
    with pytest.raises(ValueError, match="equally long"):
        Records(np.array(["a"], object), np.zeros(2, np.int32), np.zeros(1, np.int32))
