import os
import pickle

import numpy as np
import pytest

from ccafl_jax.data.pixel_arrays import PixelArrays, map_array
from ccafl_jax.data.sources import PixelFormat, decode_image

NAMES = ("cam1/0001/0001.jpg", "cam1/0001/0002.jpg", "cam2/0007/ü.jpg", "cam3/0001/0001.jpg")


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    files = [tmp_path / "visible.npy", tmp_path / "infrared.npy"]
    np.save(files[0], rng.integers(0, 256, (3, 7, 5, 3), np.uint8))
    np.save(files[1], rng.integers(0, 256, (1, 6, 3), np.uint8))
    return files


def test_images_come_back_as_they_are(files):
    source = PixelArrays(files, NAMES)
    encoded = source.read(np.array([2, 0, 3]))
    visible, infrared = np.load(files[0]), np.load(files[1])
    np.testing.assert_array_equal(decode_image(encoded[0], PixelFormat(7, 5)), visible[2])
    np.testing.assert_array_equal(decode_image(encoded[1], PixelFormat(7, 5)), visible[0])
    gray = np.stack([infrared[0]] * 3, axis=-1)
    np.testing.assert_array_equal(decode_image(encoded[2], PixelFormat(6, 3)), gray)
    assert tuple(source.names) == NAMES


def test_locates_file_and_row(files):
    source = PixelArrays(files, NAMES)
    assert source.locate(2) == f"{files[0]} row 2 ({NAMES[2]})"
    assert source.locate(np.int64(3)) == f"{files[1]} row 0 ({NAMES[3]})"
    for row in (-1, 4):
        with pytest.raises(IndexError, match=f"row {row} of 4 images"):
            source.locate(row)


def test_fingerprint_follows_names_sizes_and_times(files):
    before = PixelArrays(files, NAMES).fingerprint(np.arange(4))
    assert PixelArrays(files, list(NAMES)).fingerprint(np.arange(4)) == before
    assert (
        PixelArrays(files, (*NAMES[:3], "cam3/0001/0002.jpg")).fingerprint(np.arange(4)) != before
    )
    status = os.stat(files[1])
    os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    touched = PixelArrays(files, NAMES).fingerprint(np.arange(4))
    np.save(files[1], np.zeros((1, 6, 4), np.uint8))
    os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    assert len({before, touched, PixelArrays(files, NAMES).fingerprint(np.arange(4))}) == 3


def test_pickles_without_its_pixels(tmp_path):
    file = tmp_path / "large.npy"
    np.save(file, np.full((2, 300, 300, 3), 7, np.uint8))
    source = PixelArrays([file], NAMES[:2])
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000
    assert pickle.loads(pickled).read([1]) == source.read([1])


@pytest.mark.parametrize(
    "array", [np.zeros((4, 2, 2, 3)), np.zeros((4, 2, 2, 4), np.uint8), np.zeros((4, 2), np.uint8)]
)
def test_arrays_that_hold_no_images(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=r"a.npy: (float64|uint8)\[4, 2.*\]; expected uint8\[n, h"):
        PixelArrays([tmp_path / "a.npy"], NAMES)


def test_names_must_be_as_many(files):
    with pytest.raises(ValueError, match="4 images but 3 names; expected one name per image"):
        PixelArrays(files, NAMES[:3])


@pytest.mark.parametrize("damage", [b"", b"\x80\x04K\x01.", b"PK\x03\x04", None])
def test_files_that_cannot_be_read(files, damage):
    if damage is None:
        os.truncate(files[0], os.path.getsize(files[0]) - 1)
    else:
        files[0].write_bytes(damage)
    with pytest.raises(ValueError, match=r"visible.npy: not a readable .npy file \(") as raised:
        map_array(files[0])
    assert "\n" not in str(raised.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.npy: no such file"):
        map_array(tmp_path / "absent.npy")


class Trap:
    """Marks that it was unpickled."""

    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Trap()]), allow_pickle=True)
    with pytest.raises(ValueError, match="an array of Python objects") as raised:
        map_array(tmp_path / "a.npy")
    assert not Trap.sprung and "\n" not in str(raised.value)
