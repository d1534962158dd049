import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from ccafl_jax.data.decoded import ImageSequence, decode_rows, load_images
from ccafl_jax.data.sources import PixelFormat, load_image
from tests.data.images import broken_files, records_of, write_images

PIXELS = PixelFormat(16, 8)
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_images(root, 70)
    return root


@pytest.fixture
def records(folder):
    return records_of(folder, sorted(os.listdir(folder), reverse=True))


@pytest.mark.parametrize("cached", [False, True])
def test_rows_follow_the_records_whatever_the_threads(folder, records, tmp_path, cached):
    cache = tmp_path / "cache" if cached else ""
    images = load_images(records, PIXELS, cache=cache, progress=False, workers=3)
    assert images.shape == (70, 16, 8, 3) and images.dtype == np.uint8
    for row in range(70):
        np.testing.assert_array_equal(images[row], load_image(folder / records.path[row], PIXELS))
    rows = np.array([5, 2, 5])
    np.testing.assert_array_equal(decode_rows(records, rows, PIXELS), images[rows])
    sequence = ImageSequence(records, PIXELS)
    assert len(sequence) == 70
    np.testing.assert_array_equal(sequence[7], images[7])


def test_the_cache_spares_decoding_and_tells_sizes_filters_and_images_apart(
    folder, records, tmp_path, monkeypatch
):
    load_images(records, PIXELS, cache=tmp_path, progress=False)
    (file,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("ccafl_jax.data.decoded.decode_rows", lambda *_, **__: pytest.fail())
        again = load_images(records, PIXELS, cache=tmp_path, progress=False)
    assert isinstance(again, np.memmap) and not again.flags.writeable
    for changed in (PixelFormat(16, 9), PixelFormat(16, 8, "lanczos")):
        load_images(records, changed, cache=tmp_path, progress=False)
    load_images(records.take(np.arange(69)), PIXELS, cache=tmp_path, progress=False)
    load_images(records.take(np.arange(70)[::-1]), PIXELS, cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 5 and file.exists()
    os.utime(folder / records.path[0], ns=(0, 0))  # a changed file
    load_images(records, PIXELS, cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("size", [0, 50, 1000])
def test_a_damaged_cache_is_made_again(records, tmp_path, size):
    whole = np.array(load_images(records, PIXELS, cache=tmp_path, progress=False))
    (file,) = tmp_path.iterdir()
    os.truncate(file, size)
    again = load_images(records, PIXELS, cache=tmp_path, progress=False)
    np.testing.assert_array_equal(again, whole)


def test_other_images_of_the_folder_do_not_matter_to_the_cache(folder, records, tmp_path):
    some = records.take(np.arange(5))
    load_images(some, PIXELS, cache=tmp_path, progress=False)
    os.utime(folder / records.path[9], ns=(0, 1))
    load_images(some, PIXELS, cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cache_that_is_a_file(records, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot make the folder .*file.* name another one"):
        load_images(records, PIXELS, cache=tmp_path / "file", progress=False)


def test_a_broken_image_leaves_no_cache(folder, tmp_path):
    bad = folder / "bad.png"
    bad.write_bytes(broken_files()["truncated"][0])
    try:
        with pytest.raises(ValueError, match=f"{bad}: not a readable image"):
            load_images(
                records_of(folder, ["001.png", "bad.png"]), PIXELS, cache=tmp_path, progress=False
            )
        assert list(tmp_path.iterdir()) == []
    finally:
        bad.unlink()


def test_no_images(folder, tmp_path):
    assert load_images(records_of(folder, []), PIXELS, cache=tmp_path).shape == (0, 16, 8, 3)


def test_progress_bar_counts_images(records, capsys):
    load_images(records, PIXELS, progress=True)
    assert "loading images" in capsys.readouterr().err


def test_a_full_disk_under_the_cache_is_an_error(folder, tmp_path):
    """A limit on the size of files stands for the end of the disk."""
    code = (
        "import os, resource, signal\n"
        "from ccafl_jax.data.decoded import load_images\n"
        "from ccafl_jax.data.sources import PixelFormat\n"
        "from tests.data.images import records_of\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"records = records_of({str(folder)!r}, sorted(os.listdir({str(folder)!r})))\n"
        f"load_images(records, PixelFormat(64, 32), cache={str(tmp_path)!r}, progress=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("OSError: cannot write 0.0 GB of decoded")
    assert "make room, or name another folder (data.cache)" in last
    assert list(tmp_path.iterdir()) == []


def test_two_that_fill_one_cache_at_once(records, tmp_path):
    found = []
    start = threading.Barrier(2)

    def load():
        start.wait()
        found.append(load_images(records, PIXELS, cache=tmp_path, progress=False))

    threads = [threading.Thread(target=load) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    np.testing.assert_array_equal(*found)
    assert len(list(tmp_path.iterdir())) == 1
