import numpy as np
import pytest

from ccafl_jax.data.labels import check_cameras, intra_camera_labels
from ccafl_jax.data.names import Names
from ccafl_jax.data.records import Records, dense_cameras
from ccafl_jax.data.sources import FolderSource
from tests.golden_data import case_group


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


def test_extreme_identities_keep_their_order():
    pid = np.array([2**31 - 1, -1, 0, -(2**31)])
    labels = intra_camera_labels(pid, np.array([0, 0, 0, 0]))
    np.testing.assert_array_equal(labels.label, [3, 1, 2, 0])
    np.testing.assert_array_equal(labels.pid_of[labels.label], pid)


@pytest.mark.parametrize("camid", [np.zeros(2, int), np.zeros((3, 1), int)])
def test_identities_and_cameras_must_go_together(camid):
    with pytest.raises(ValueError, match="must be equal, one-dimensional"):
        intra_camera_labels(np.zeros(3, int), camid)


def test_cameras_are_numbered_over_all_splits():
    (first, second), codes = dense_cameras(np.array([10, 3, 10]), np.array([-1, 4]))
    assert codes == (3, 4, 10)
    np.testing.assert_array_equal(first, [2, 0, 2])
    np.testing.assert_array_equal(second, [-1, 1])
    assert first.dtype == second.dtype == np.int32


def test_cameras_of_a_split_without_images():
    (none, some), codes = dense_cameras(np.zeros(0, int), np.array([7]))
    assert codes == (7,) and len(none) == 0 and some.tolist() == [0]


def test_a_camera_with_one_identity_is_named():
    pid, camid = np.array([1, 2, 1, 2, 9]), np.array([0, 0, 1, 1, 2])
    with pytest.raises(ValueError, match=r"single identity: c5;.*data.allow_single_identity=True"):
        check_cameras(pid, camid, (1, 3, 5))
    (warning,) = check_cameras(pid, camid, (1, 3, 5), allow_single_identity=True)
    assert "single identity: c5;" in warning
    assert check_cameras(pid[:4], camid[:4], (1, 3, 5)) == ()


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize(
    ("camid", "message"),
    [([3, 3], r"one camera \(c8\)"), ([0, 1], "single identity: c1, c3")],
)
def test_unusable_cameras(camid, message, allow):
    with pytest.raises(ValueError, match=message):
        check_cameras(np.array([1, 2]), np.array(camid), (1, 3, 5, 8), allow_single_identity=allow)


def test_records_must_be_equally_long(tmp_path):
    source = FolderSource(tmp_path, Names.pack(["a"]))
    with pytest.raises(ValueError, match=r"pid \(2,\) and index \(1,\) .* equally long"):
        Records(source, np.zeros(1, np.int64), np.zeros(2, np.int32), np.zeros(1, np.int32))
