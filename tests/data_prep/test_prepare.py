import dataclasses
import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from ccafl_jax.data.columns import FOLDER, read_meta
from ccafl_jax.data.decoded import load_images
from ccafl_jax.data.known import PUBLISHED, Totals
from ccafl_jax.data.opening import open_collection, open_dataset
from ccafl_jax.data.prepared import find_prepared, open_prepared
from ccafl_jax.data.records import BROKEN, RawPart, Records, collect
from ccafl_jax.data.samplers import plan
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.data.streaming import stream_batches
from ccafl_jax.files import exclusive
from data_prep import prepare as prepare_module
from data_prep.prepare import VERSION, prepare, verify
from tests.data.images import broken_files, encoded, random_pixels, write_images

PIXELS = PixelFormat(16, 8)
ROOT = pathlib.Path(__file__).parents[2]


def small_collection(root, count=12, **changes):
    """Twelve images: training, query and gallery, with tracklets and a table of gallery rows."""
    names = write_images(root, count)
    third = count // 3
    parts = {
        "train": RawPart(names[:third], [5, 5, 7, 7], [3, 9, 3, 9]),
        "query": RawPart(names[third : 2 * third], [1, 2, 3, -2], [3, 3, 9, 9]),
        "gallery": RawPart(
            names[2 * third :],
            [1, -1, 0, 2],
            [9, 3, 9, 3],
            tracklet=[0, 0, 1, 1],
            frame=[1, 3, 1, 2],
        ),
    }
    tables = {
        "gt.good.values": np.array([0, 3, 3]),
        "gallery.track": np.array([40, 41]),
        "draws": np.arange(6.0).reshape(2, 3),
    }
    collection = collect(
        "market_like",
        root,
        parts,
        tables=tables,
        row_tables={"gt.good.values": "gallery"},
        report={"train": {"read": 4, "junk dropped": 1}, "warnings": ("look",)},
    )
    return dataclasses.replace(collection, **changes)


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw é"
    folder.mkdir()
    return small_collection(folder)


def test_everything_comes_back(raw, tmp_path):
    result = prepare(raw, tmp_path / "out", progress=False)
    assert result.folder == tmp_path / "out" / "market_like" / VERSION
    assert result.images == 12 and result.skipped == ()
    for root in (tmp_path / "out", tmp_path / "out" / "market_like", result.folder):
        back = open_prepared(root, "market_like")
        assert (back.name, back.camera_codes) == ("market_like", (3, 9))
    assert back.report == {"train": {"read": 4, "junk dropped": 1}, "warnings": ("look",)}
    assert list(back.parts) == list(raw.parts) and back.row_tables == raw.row_tables
    for part, records in raw.parts.items():
        found = back.parts[part]
        assert list(found.path) == list(records.path)
        assert found.columns().keys() == records.columns().keys()
        for name, column in records.columns().items():
            np.testing.assert_array_equal(found.columns()[name], column)
            assert found.columns()[name].dtype == column.dtype
            assert isinstance(found.columns()[name], np.memmap)
        rows = np.array([3, 0, 3, 1])
        assert found.read(rows) == records.read(rows)
    for name, table in raw.tables.items():
        np.testing.assert_array_equal(back.tables[name], table)
    assert verify(tmp_path / "out", name="market_like", progress=False).name == "market_like"


def test_one_plan_three_ways(raw, tmp_path):
    """Folder, prepared and resident, prepared and streamed: the same batches of uint8."""
    prepare(raw, tmp_path / "out", progress=False)
    folder = raw.parts["gallery"]
    prepared = open_dataset("market_like", tmp_path / "out").gallery
    steps = plan(
        np.array([0, 0, 1, 1]),
        seed=0,
        first_step=2,
        steps=5,
        classes_per_batch=2,
        images_per_class=3,
    )
    first = load_images(folder, PIXELS, progress=False)[steps]
    second = load_images(prepared, PIXELS, cache=tmp_path / "cache", progress=False)[steps]
    third = np.stack(list(stream_batches(prepared, steps, PIXELS)))
    assert first.std() > 10
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)


def test_tfds_itself_reads_the_records(raw, tmp_path):
    import tensorflow_datasets as tfds

    folder = prepare(raw, tmp_path, progress=False).folder
    builder = tfds.builder_from_directory(folder)
    assert builder.info.metadata["fingerprint"] == read_meta(folder)["fingerprint"]
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 4,
        "query": 4,
        "gallery": 4,
    }
    example = builder.as_data_source("gallery")[2]
    assert (example["pid"], example["camid"], example["tracklet"]) == (0, 1, 1)
    assert example["path"].decode() == raw.parts["gallery"].path[2]
    np.testing.assert_array_equal(example["image"], random_pixels(10, 20 + 10 % 7, 10 + 10 % 5))


def test_a_part_named_all_and_empty_parts(tmp_path):
    write_images(tmp_path, 3)
    names = ["000.png", "001.png", "002.png"]
    collection = collect(
        "market_like",
        tmp_path,
        {"all": RawPart(names, [1, 2, 3], [1, 1, 2]), "query": RawPart([], [], [])},
    )
    prepare(collection, tmp_path / "out", progress=False)
    back = open_prepared(tmp_path / "out")
    assert len(back.parts["query"]) == 0 and list(back.parts["all"].path) == names
    assert back.parts["all"].read(np.array([2])) == [(tmp_path / "002.png").read_bytes()]


def test_several_shards_keep_their_order(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_IMAGES_PER_SHARD", 3)
    folder = prepare(raw, tmp_path / "out", progress=False).folder
    assert len(list(folder.glob("*train.array_record*"))) == 2
    back = open_prepared(folder)
    for part, records in raw.parts.items():
        rows = np.array([3, 1, 0, 2])
        assert back.parts[part].read(rows) == records.read(rows)


def test_the_fingerprint_is_that_of_the_content(raw, tmp_path):
    first = prepare(raw, tmp_path / "1", progress=False).fingerprint
    assert prepare(raw, tmp_path / "2", workers=3, progress=False).fingerprint == first
    changed = dataclasses.replace(raw, tables={**raw.tables, "draws": np.zeros((2, 3))})
    assert prepare(changed, tmp_path / "3", progress=False).fingerprint != first
    for change in ({"camera_codes": (3, 8)}, {"row_tables": {}}):
        other = dataclasses.replace(raw, **change)
        folder = tmp_path / "-".join(change)
        assert prepare(other, folder, progress=False).fingerprint != first
    other = encoded(random_pixels(99))
    (pathlib.Path(raw.root) / raw.parts["query"].path[0]).write_bytes(other)
    assert prepare(raw, tmp_path / "4", progress=False).fingerprint != first


@pytest.mark.parametrize("kind", broken_files())
def test_a_broken_image_is_an_error_that_names_it(raw, tmp_path, kind):
    data, reason = broken_files()[kind]
    bad = pathlib.Path(raw.root) / raw.parts["gallery"].path[1]
    bad.write_bytes(data)
    with pytest.raises(ValueError, match=f"{bad}: .*{reason}.*--skip-broken") as error:
        prepare(raw, tmp_path / "out", progress=False)
    assert "\n" not in str(error.value)
    assert_nothing_left(tmp_path / "out")
    result = prepare(raw, tmp_path / "out", skip_broken=1, progress=False)
    (skipped,) = result.skipped
    assert (skipped.part, skipped.path) == ("gallery", raw.parts["gallery"].path[1])
    assert read_meta(result.folder)["skipped"] == [dataclasses.asdict(skipped)]
    gallery = open_prepared(tmp_path / "out").parts["gallery"]
    np.testing.assert_array_equal(gallery.pid, [1, 0, 2])
    np.testing.assert_array_equal(gallery.tracklet, [0, 1, 1])
    back = open_prepared(tmp_path / "out")
    np.testing.assert_array_equal(back.tables["gt.good.values"], [0, 2, 2])  # renumbered
    assert back.report["gallery"] == {"read": 3, BROKEN: 1}
    assert "1 broken images were left out when it was prepared" in back.report["warnings"][-1]
    verify(tmp_path / "out", progress=False)


def test_a_tracklet_without_frames_leaves_the_numbers_of_the_others(raw, tmp_path):
    for row in (0, 1):
        (pathlib.Path(raw.root) / raw.parts["gallery"].path[row]).write_bytes(b"")
    prepare(raw, tmp_path / "out", skip_broken=2, progress=False)
    back = open_prepared(tmp_path / "out")
    number = np.unique(back.parts["gallery"].tracklet)
    np.testing.assert_array_equal(number, [1])
    np.testing.assert_array_equal(back.tables["gallery.track"][number], [41])
    verify(tmp_path / "out", progress=False)
    np.testing.assert_array_equal(back.tables["gt.good.values"], [-1, 1, 1])


def test_what_was_left_out_counts_in_the_differences(raw, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "market_like", {"train": Totals(images=4)})
    assert read_meta(prepare(raw, tmp_path / "1", progress=False).folder)["differences"] == []
    (pathlib.Path(raw.root) / raw.parts["train"].path[0]).write_bytes(b"")
    result = prepare(raw, tmp_path / "2", skip_broken=1, progress=False)
    assert read_meta(result.folder)["differences"] == ["train: 3 images, published 4"]


def test_the_work_grows_with_the_number_of_images(raw, tmp_path, monkeypatch):
    """The paths of a part are looked up once, not once for each image."""
    looks = []
    path = Records.path.fget
    monkeypatch.setattr(Records, "path", property(lambda self: looks.append(1) or path(self)))
    prepare(raw, tmp_path / "out", progress=False)
    assert len(looks) <= 3 * len(raw.parts)


def test_more_broken_images_than_allowed_are_listed(raw, tmp_path):
    for row in (0, 2):
        (pathlib.Path(raw.root) / raw.parts["train"].path[row]).write_bytes(b"")
    with pytest.raises(ValueError, match=r"more than the 1 broken .*000\.png .*002\.png"):
        prepare(raw, tmp_path / "out", skip_broken=1, progress=False)
    assert_nothing_left(tmp_path / "out")


def test_a_file_that_vanished_is_named(raw, tmp_path):
    (pathlib.Path(raw.root) / raw.parts["train"].path[3]).unlink()
    with pytest.raises(ValueError, match=r"003\.png: cannot be read"):
        prepare(raw, tmp_path / "out", progress=False)


def test_it_is_not_done_twice_unless_asked(raw, tmp_path):
    first = prepare(raw, tmp_path / "out", progress=False)
    with pytest.raises(FileExistsError, match=r"already prepared.*--overwrite"):
        prepare(raw, tmp_path / "out", progress=False)
    (pathlib.Path(raw.root) / raw.parts["train"].path[0]).write_bytes(b"")
    with pytest.raises(ValueError, match="not a readable image"):
        prepare(raw, tmp_path / "out", overwrite=True, progress=False)
    assert read_meta(first.folder)["fingerprint"] == first.fingerprint  # the old one stays
    again = prepare(raw, tmp_path / "out", overwrite=True, skip_broken=1, progress=False)
    assert again.folder == first.folder and again.images == 11
    assert [p.name for p in first.folder.parent.iterdir()] == [VERSION]


def test_nothing_that_was_not_made_here_is_replaced(raw, tmp_path):
    folder = tmp_path / "out" / "market_like" / VERSION
    folder.mkdir(parents=True)
    (folder / "precious.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="is no prepared data set; choose another --out"):
            prepare(raw, tmp_path / "out", overwrite=overwrite, progress=False)
    assert (folder / "precious.txt").read_text() == "mine"
    (folder / "precious.txt").unlink(), folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="is a link; choose another --out"):
        prepare(raw, tmp_path / "out", progress=False)
    assert folder.is_symlink()


def test_raw_data_are_never_replaced_by_what_is_made_of_them(raw, tmp_path):
    folder = prepare(raw, tmp_path / "out", progress=False).folder
    (folder / "raw").mkdir()
    again = small_collection(folder / "raw")
    with pytest.raises(FileExistsError, match="the raw data lie in"):
        prepare(again, tmp_path / "out", overwrite=True, progress=False)
    assert len(list((folder / "raw").iterdir())) == 12
    with pytest.raises(FileExistsError, match=f"already prepared, from {raw.root}; use it, choose"):
        prepare(raw, tmp_path / "out", progress=False)


def test_two_at_once_are_refused(raw, tmp_path):
    parent = tmp_path / "out" / "market_like"
    parent.mkdir(parents=True)
    with exclusive(parent / ".lock", busy="test"):
        with pytest.raises(OSError, match="another preparation is writing"):
            prepare(raw, tmp_path / "out", progress=False)
    prepare(raw, tmp_path / "out", progress=False)


def test_a_target_that_cannot_be_written(raw, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        prepare(raw, tmp_path / "file", progress=False)


@pytest.mark.skipif(not pathlib.Path("/sys/kernel").is_dir(), reason="needs Linux")
def test_a_read_only_target(raw):
    """Not even root makes folders in /sys."""
    with pytest.raises(OSError, match="/sys/kernel/prepared") as error:
        prepare(raw, "/sys/kernel/prepared", progress=False)
    assert error.value.errno in (errno.EPERM, errno.EACCES, errno.EROFS)


def test_a_full_disk_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the end of the disk."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 300, 300, 3), np.uint8)
    for row, pixels in enumerate(noise):
        (tmp_path / f"{row}.png").write_bytes(encoded(pixels))
    code = (
        "import resource, signal; from ccafl_jax.data.records import *;"
        "from data_prep.prepare import prepare;"
        f"c = collect('market_like', {str(tmp_path)!r},"
        "{'train': RawPart(['0.png', '1.png'], [0, 1], [1, 2])});"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        f"prepare(c, {str(tmp_path / 'out')!r}, progress=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: cannot write to") and "File too large" in last
    assert "make room and run it again" in last
    assert_nothing_left(tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / FOLDER / "meta.json").write_text("{"), "meta.json is damaged"),
        (lambda f: (f / FOLDER / "train.pid.npy").write_bytes(b"x"), "train.pid.npy is damaged"),
        (lambda f: (f / FOLDER / "names.npy").unlink(), "names.npy is missing"),
        (lambda f: flip(f / FOLDER / "train.pid.npy", 8), "train.pid.npy is damaged"),
        (lambda f: (f / "dataset_info.json").unlink(), "description of its records is damaged"),
        (lambda f: (f / "features.json").unlink(), "lacks features.json"),
        (lambda f: (f / "metadata.json").write_text('{"fingerprint": "x"}'), "different data sets"),
        (lambda f: edit(f / FOLDER / "meta.json", format=99), "is of format 99"),
        (lambda f: cut_split(f), "train has 3 records and 4 rows"),
    ],
)
def test_damage_is_seen_on_opening(raw, tmp_path, damage, message):
    folder = prepare(raw, tmp_path / "out", progress=False).folder
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_prepared(tmp_path / "out", "market_like")
    assert "prepare the data set again" in str(error.value)


@pytest.mark.parametrize("size", [0, 100, 70_000])
def test_a_cut_record_file_is_named(raw, tmp_path, size):
    folder = prepare(raw, tmp_path / "out", progress=False).folder
    (file,) = folder.glob("*gallery.array_record*")
    os.truncate(file, size)
    with pytest.raises(ValueError, match=f"the records in {folder} are damaged") as error:
        open_prepared(folder).parts["gallery"].read(np.array([0]))
    assert "\n" not in str(error.value)


def test_a_prepared_set_is_no_raw_folder(raw, tmp_path):
    prepare(raw, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match=r"holds a prepared data set: read it with data.source"):
        open_collection("market_like", tmp_path / "out", source="folder")


def test_damaged_records_are_seen_on_reading_or_verifying(raw, tmp_path):
    folder = prepare(raw, tmp_path / "out", progress=False).folder
    (file,) = folder.glob("*gallery.array_record*")
    data = bytearray(file.read_bytes())
    place = data.find(encoded(random_pixels(9, 20 + 9 % 7, 10 + 9 % 5))[:30])
    position = place if place > 0 else len(data) // 2
    data[position + 10] ^= 255
    file.write_bytes(data)
    with pytest.raises(ValueError, match="prepare the data set again"):
        verify(tmp_path / "out", progress=False)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="is missing; prepare"):
        open_prepared(folder).parts["gallery"].read(np.array([0]))


def test_changed_labels_are_seen_on_verifying(raw, tmp_path):
    folder = prepare(raw, tmp_path / "out", progress=False).folder
    for file, array, message in (
        ("table.draws", np.zeros((2, 3)), "names, labels or tables are not those"),
        ("train.pid", np.full(4, 9, np.int32), "labels of the record differ from those of the col"),
    ):
        np.save(folder / FOLDER / f"{file}.npy", array)
        open_prepared(folder)  # quick: nothing is read
        with pytest.raises(ValueError, match=message):
            verify(folder, progress=False)


def test_records_of_other_labels_are_seen_on_verifying(raw, tmp_path):
    train = raw.parts["train"]
    others = dataclasses.replace(train, pid=train.pid + 50)
    other = dataclasses.replace(raw, parts={**raw.parts, "train": others})
    folder = prepare(raw, tmp_path / "a", progress=False).folder
    (theirs,) = prepare(other, tmp_path / "b", progress=False).folder.glob("*train.array*")
    shutil.copy(theirs, folder / theirs.name)
    with pytest.raises(ValueError, match="labels of the record differ from those of the columns"):
        verify(folder, progress=False)


def test_a_description_that_tfds_cannot_read_is_seen_on_verifying(raw, tmp_path):
    folder = prepare(raw, tmp_path / "out", progress=False).folder
    (folder / "features.json").write_text("{}")
    with pytest.raises(ValueError, match=r"features.json is damaged"):
        verify(folder, progress=False)


def test_a_move_that_fails_puts_the_old_set_back(raw, tmp_path, monkeypatch):
    first = prepare(raw, tmp_path / "out", progress=False)
    rename = pathlib.Path.rename

    def fail(self, target):
        if self.name.endswith(".incomplete"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output error"):
        prepare(raw, tmp_path / "out", overwrite=True, progress=False)
    assert read_meta(first.folder)["fingerprint"] == first.fingerprint


def test_a_damaged_set_may_be_made_again(raw, tmp_path):
    folder = prepare(raw, tmp_path / "out", progress=False).folder
    for text in ("{", '{"format": 1}'):
        (folder / FOLDER / "meta.json").write_text(text)
        with pytest.raises(ValueError, match=r"meta.json is damaged"):
            open_prepared(folder)
    with pytest.raises(FileExistsError, match="--overwrite to make it again"):
        prepare(raw, tmp_path / "out", progress=False)
    prepare(raw, tmp_path / "out", overwrite=True, progress=False)
    verify(folder, progress=False)


def test_a_link_in_a_circle_hides_no_prepared_set(raw, tmp_path):
    folder = prepare(raw, tmp_path / "out", progress=False).folder
    for place in (tmp_path / "out", folder.parent):
        (place / "0.circle").symlink_to(place / "0.circle")
    assert find_prepared(tmp_path / "out") == folder
    assert find_prepared(tmp_path / "out", "market_like") == folder


def test_several_sets_of_msmt17_are_named(raw, tmp_path):
    for version in ("msmt17_v1", "msmt17_v2"):
        prepare(dataclasses.replace(raw, name=version), tmp_path, progress=False)
    for name in ("", "msmt17"):
        with pytest.raises(ValueError, match=r"several prepared .*: msmt17_v1, msmt17_v2"):
            find_prepared(tmp_path, name)
    assert find_prepared(tmp_path, "msmt17_v2").parent.name == "msmt17_v2"
    with pytest.raises(ValueError, match="several prepared"):
        open_collection("msmt17", tmp_path)
    with pytest.raises(ValueError, match="holds a prepared data set: read it with"):
        open_collection("msmt17", tmp_path, source="folder")


def test_the_wrong_set_or_none_is_named(raw, tmp_path):
    prepare(raw, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="holds market_like, not market1501; name the right one"):
        open_prepared(tmp_path / "out" / "market_like", "market1501")
    with pytest.raises(FileNotFoundError, match="holds no prepared data set; make one with"):
        open_collection("market1501", tmp_path / "raw é", source="prepared")
    assert find_prepared(tmp_path / "nowhere") is None
    (tmp_path / "out" / "market_like" / VERSION).rename(tmp_path / "out" / "market_like" / "1.9.0")
    prepare(raw, tmp_path / "out", progress=False)
    found = find_prepared(tmp_path / "out", "market_like")
    assert found is not None and found.name == "1.9.0"  # the newest


IMPORTS = """
import pathlib, sys
from tests.data_prep.test_prepare import small_collection
from data_prep.prepare import prepare, verify
root = pathlib.Path(sys.argv[1])
prepare(small_collection(root), root / "out", progress=False)
print(len(verify(root / "out", progress=False).parts["train"]))
print(sorted({"tensorflow", "torch"} & sys.modules.keys()))
"""


def test_neither_tensorflow_nor_torch_is_used(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.split("\n")[:2] == ["4", "[]"], done.stderr


KILLED = """
import os, sys, pathlib, signal
from data_prep import prepare as module
from tests.data_prep.test_prepare import small_collection
root = pathlib.Path(sys.argv[1])
moment = sys.argv[2]
original = getattr(module, moment)
def die(*arguments, **options):
    result = original(*arguments, **options) if moment == "save_columns" else None
    os.kill(os.getpid(), signal.SIGKILL)
setattr(module, moment, die)
module.prepare(small_collection(root), root / "out", progress=False)
"""


OVERWRITE = """
import os, pathlib, signal, sys
from data_prep import prepare as module
from tests.data_prep.test_prepare import small_collection
root = pathlib.Path(sys.argv[1])
collection = small_collection(root)
module.prepare(collection, root / "out", progress=False)
rename = pathlib.Path.rename
def die(self, target):
    result = rename(self, target)
    if pathlib.Path(target).name.endswith(".old"):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
pathlib.Path.rename = die
module.prepare(collection, root / "out", overwrite=True, progress=False)
"""


@pytest.mark.ci
def test_a_killed_overwrite_leaves_the_old_set_or_the_new_one(tmp_path):
    command = [sys.executable, "-c", OVERWRITE, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, cwd=ROOT).returncode == -signal.SIGKILL
    raw = small_collection(tmp_path)
    with pytest.raises(FileExistsError, match="already prepared"):  # it was put back
        prepare(raw, tmp_path / "out", progress=False)
    assert verify(tmp_path / "out", progress=False).name == "market_like"
    prepare(raw, tmp_path / "out", overwrite=True, progress=False)
    assert [p.name for p in (tmp_path / "out/market_like").iterdir()] == [VERSION]


@pytest.mark.ci
@pytest.mark.parametrize("moment", ["_read_checked", "_label", "save_columns", "_move"])
def test_a_killed_preparation_leaves_nothing_that_looks_finished(tmp_path, moment):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), moment], capture_output=True, cwd=ROOT
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert find_prepared(tmp_path / "out", "market_like") is None
    left = [p.name for p in (tmp_path / "out" / "market_like").iterdir()]
    assert f".{VERSION}.incomplete" in left
    result = prepare(small_collection(tmp_path), tmp_path / "out", progress=False)
    assert verify(result.folder, progress=False).parts["train"].pid.tolist() == [5, 5, 7, 7]
    assert [p.name for p in result.folder.parent.iterdir()] == [VERSION]


STREAM = """
import json, os, pathlib, signal, sys
import numpy as np
from ccafl_jax.data.prepared import open_prepared
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.data.streaming import stream_batches
root = pathlib.Path(sys.argv[1])
train = open_prepared(root / "out").parts["train"]
batches = stream_batches(train, np.arange(40).reshape(20, 2) % 4, PixelFormat(16, 8))
state = root / "state.json"
if state.exists():
    batches.set_state(json.loads(state.read_text()))
for batch in batches:
    with open(root / "seen", "ab") as seen:
        seen.write(batch.tobytes())
    state.write_text(json.dumps(batches.get_state()))
    if batches.get_state()["next_index"] == 7 and len(sys.argv) > 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.ci
def test_a_killed_stream_goes_on_at_the_same_example(tmp_path):
    prepare(small_collection(tmp_path), tmp_path / "out", progress=False)

    def run(*arguments):
        command = [sys.executable, "-c", STREAM, str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, cwd=ROOT)

    assert run("die").returncode == -signal.SIGKILL
    assert run().returncode == 0
    killed = (tmp_path / "seen").read_bytes()
    (tmp_path / "seen").unlink(), (tmp_path / "state.json").unlink()
    assert run().returncode == 0
    assert killed == (tmp_path / "seen").read_bytes() and len(killed) == 40 * 16 * 8 * 3


READ_IN_THREADS = """
import pathlib, sys, threading
import numpy as np
from ccafl_jax.data.prepared import open_prepared
train = open_prepared(pathlib.Path(sys.argv[1]) / "out").parts["train"]
start = threading.Barrier(8)
def read():
    start.wait()
    train.read(np.arange(4))
threads = [threading.Thread(target=read, daemon=True) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join(60) for thread in threads]
print(sum(thread.is_alive() for thread in threads))
"""


def test_first_reads_from_many_threads_do_not_wait_for_each_other(tmp_path):
    prepare(small_collection(tmp_path), tmp_path / "out", progress=False)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", READ_IN_THREADS, str(tmp_path)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
        )
        assert done.stdout.strip() == "0", done.stderr


def assert_nothing_left(out):
    """No set, nor a part of one."""
    assert [p for p in out.rglob("*") if p.is_file()] == []
    assert find_prepared(out, "market_like") is None


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 255
    path.write_bytes(data)


def cut_split(folder):
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    next(s for s in info["splits"] if s["name"] == "train")["shardLengths"] = ["3"]
    path.write_text(json.dumps(info))
