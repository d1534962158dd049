"""Checkpoints that count only whole: manifests, damage, kills, retention, devices, full disks."""

import contextlib
import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ccafl_jax.training.checkpoints import Checkpoints, digest, leaves_by_path, restore_leaves
from ccafl_jax.training.manifest import find_damage
from ccafl_jax.training.optimizers import coupled_adam, grouped
from ccafl_jax.training.sharding import make_mesh, replicate, shard_rows
from ccafl_jax.training.storage import open_path


def tree_of(number):
    """Arrays that tell which checkpoint they are of, one of them with a path as its name."""
    return {
        "params": {"a/b": np.full((3, 2), number, np.float32), "['c']": np.arange(5) + number},
        "step": np.int32(number),
    }


def assert_is(tree, number):
    jax.tree.map(np.testing.assert_array_equal, tree, tree_of(number))


@pytest.fixture
def folder(tmp_path):
    """With the checkpoints 1, 2 and 3."""
    with Checkpoints(tmp_path / "c", keep=3) as checkpoints:
        for number in (1, 2, 3):
            checkpoints.save(number, tree_of(number), {"number": number})
    return tmp_path / "c"


def largest_file(step):
    """Of the arrays."""
    return max(
        (p for p in (step / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_optimizer_state_survives_a_checkpoint(tmp_path):
    params = {"a/b": jnp.arange(3.0), "c": jnp.ones((2, 2))}
    labels = {"a/b": "x", "c": "y"}
    tx = grouped(coupled_adam(0.1), labels, active=frozenset({"x", "y"}))
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(params, state, params)
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.latest() is None
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        checkpoints.restore()
    for number in (1, 2, 3):
        tree = {"params": params, "opt": leaves_by_path(state)}
        checkpoints.save(number, tree, {"number": number})
    checkpoints.close()
    again = Checkpoints(tmp_path / "c", keep=2)
    assert again.latest() == 3 and again.restore_meta()["number"] == 3
    assert again.restore_meta(2)["number"] == 2
    restored = again.restore()
    back = restore_leaves(tx.init(params), restored["opt"])
    for left, right in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(left, right)
    with pytest.raises(ValueError, match="does not fit this run"):
        restore_leaves(optax.adam(1.0).init(params), restored["opt"])
    with pytest.raises(ValueError, match="has shape"):
        restore_leaves(tx.init({"a/b": jnp.ones(4), "c": params["c"]}), restored["opt"])


def test_checkpoints_are_made_on_the_first_save_only(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest() is None and checkpoints.best() is None
        with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
            checkpoints.restore_meta()
        checkpoints.remove_all()
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_there(folder):
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(
            FileNotFoundError, match=r"no checkpoint 4 in .*; there are \[1, 2, 3\]"
        ):
            checkpoints.restore(4)


def test_a_number_is_not_written_twice(folder):
    with Checkpoints(folder, keep=3) as checkpoints:
        with pytest.raises(FileExistsError, match="checkpoint 3 is already in"):
            checkpoints.save(3, tree_of(4), {})
        assert_is(checkpoints.restore(3), 3)


def test_the_manifest_is_one_of_sha256sum(folder):
    command = ["sha256sum", "-c", "--quiet", "--strict", "manifest.sha256"]
    assert subprocess.run(command, cwd=folder / "3").returncode == 0
    names = [line[66:] for line in (folder / "3" / "manifest.sha256").read_text().splitlines()]
    files = [p.relative_to(folder / "3") for p in (folder / "3").rglob("*") if p.is_file()]
    assert sorted([*names, "manifest.sha256"]) == sorted(map(str, files))
    flip_a_bit(largest_file(folder / "3"))
    done = subprocess.run(command, cwd=folder / "3", capture_output=True, text=True)
    assert done.returncode == 1 and "FAILED" in done.stdout


def remove_manifest(step):
    (step / "manifest.sha256").unlink()


def flip_in_manifest(step):
    flip_a_bit(step / "manifest.sha256")


DAMAGES = {
    "flipped bit": (lambda step: flip_a_bit(largest_file(step)), "is not as it was written"),
    "flipped meta": (
        lambda step: flip_a_bit(step / "meta" / "metadata"),
        "meta/metadata is not as",
    ),
    "cut": (lambda step: largest_file(step).write_bytes(b""), "is not as it was written"),
    "missing file": (lambda step: (step / "state/_METADATA").unlink(), "state/_METADATA is miss"),
    "another file": (lambda step: (step / "state/x").touch(), "state/x is not in its manifest"),
    "no manifest": (remove_manifest, "it has no manifest.sha256, which is written last"),
    "manifest": (flip_in_manifest, r"manifest\.sha256|is missing|is not"),
    "empty manifest": (lambda step: (step / "manifest.sha256").write_text(""), "is no list of"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_does_not_exist(folder, caplog, name):
    damage, message = DAMAGES[name]
    damage(folder / "3")
    with Checkpoints(folder, keep=2) as checkpoints:
        with caplog.at_level(logging.WARNING, "ccafl_jax"):
            assert checkpoints.latest() == 2
            assert checkpoints.restore_meta() == {"number": 2}
            assert_is(checkpoints.restore(), 2)
        assert len(caplog.records) == 1  # however often it is asked
        assert caplog.messages[0].startswith(f"checkpoint 3 in {folder} does not count: ")
        with pytest.raises(ValueError, match=message) as error:
            checkpoints.restore(3)
        assert "\n" not in str(error.value) and "checkpoint 3 in" in str(error.value)
        # The resumed run comes to the same number again, and to the next.
        checkpoints.save(3, tree_of(30), {"number": 30})
        assert checkpoints.latest() == 3
        checkpoints.save(4, tree_of(4), {"number": 4})
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 4
        assert_is(checkpoints.restore(3), 30)
        with pytest.raises(FileNotFoundError, match=r"there are \[3, 4\]"):
            checkpoints.restore(2)


def test_where_all_are_damaged_the_newest_is_named(folder):
    for number in (1, 2, 3):
        remove_manifest(folder / str(number))
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() is None
        with pytest.raises(ValueError, match=r"checkpoint 3 in .* is damaged .*copy it again"):
            checkpoints.restore_meta()
        checkpoints.save(1, tree_of(1), {})
        assert sorted(path.name for path in folder.iterdir()) == ["1"]


def test_damaged_ones_push_no_valid_one_out(folder):
    flip_a_bit(largest_file(folder / "2"))
    with Checkpoints(folder, keep=3) as checkpoints:
        assert checkpoints.latest() == 3
        checkpoints.save(4, tree_of(4), {})
    assert sorted(path.name for path in folder.iterdir()) == ["1", "3", "4"]


def test_a_checkpoint_is_hashed_once(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ccafl_jax.training.checkpoints.find_damage",
        lambda path: asked.append(path.name) or find_damage(path),
    )
    with Checkpoints(folder, keep=3) as checkpoints:
        for _ in range(3):
            checkpoints.latest(), checkpoints.restore_meta(), checkpoints.restore()
        assert asked == ["3"]
        for number in (4, 5):
            checkpoints.save(number, tree_of(number), {})
            checkpoints.restore()
    assert sorted(asked) == ["1", "2", "3"]  # those that were just written are known


def test_the_best_is_kept_beside_the_latest(tmp_path, caplog):
    scores = {1: 0.2, 2: 0.5, 3: None, 4: 0.4, 5: 0.5, 6: float("nan")}
    with caplog.at_level(logging.INFO, "ccafl_jax"):
        for number, score in scores.items():  # a process each
            with Checkpoints(tmp_path / "c", keep=2, best_by="mAP of val") as checkpoints:
                checkpoints.save(number, tree_of(number), {"number": number}, best=score)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "5", "6"]
    assert len(caplog.messages) == 2
    assert caplog.messages[1].startswith("checkpoint 2 is the best so far by mAP of val, 0.5")
    with Checkpoints(tmp_path / "c", keep=1, best_by="mAP of val") as checkpoints:
        assert checkpoints.best() == 2 and checkpoints.latest() == 6
        checkpoints.save(7, tree_of(7), {}, best=0.6)
        assert checkpoints.best() == 7
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["7"]


def test_scores_by_another_name_are_not_compared(tmp_path):
    with Checkpoints(tmp_path / "c", keep=1, best_by="mAP of val") as checkpoints:
        checkpoints.save(1, tree_of(1), {}, best=0.9)
    with Checkpoints(tmp_path / "c", keep=1, best_by="mAP of test") as checkpoints:
        assert checkpoints.best() is None
        checkpoints.save(2, tree_of(2), {}, best=0.1)
        assert checkpoints.best() == 2
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2"]


def test_all_can_be_removed_and_numbers_begin_anew(folder):
    with Checkpoints(folder) as checkpoints:
        checkpoints.remove_all()
        assert checkpoints.latest() is None and list(folder.iterdir()) == []
        checkpoints.save(1, tree_of(1), {})
        assert checkpoints.latest() == 1


@pytest.mark.parametrize("devices", [1, 2])
def test_arrays_of_eight_devices_come_back_on_fewer(tmp_path, devices):
    rng = np.random.default_rng(0)
    wide, deep = rng.normal(size=(16, 3)).astype(np.float32), rng.normal(size=5)
    eight = make_mesh(8)
    tree = {"wide": shard_rows(wide, eight), "deep": replicate(jnp.asarray(deep), eight)}
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, tree, {})
        found = checkpoints.restore()
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(found))
        np.testing.assert_array_equal(found["wide"], wide)
        few = make_mesh(devices)
        like = {"wide": shard_rows(np.zeros_like(wide), few), "deep": replicate(deep, few)}
        laid_out = checkpoints.restore(like=like)
    np.testing.assert_array_equal(laid_out["wide"], wide)
    assert len(laid_out["wide"].sharding.device_set) == devices
    np.testing.assert_array_equal(laid_out["deep"], np.asarray(tree["deep"]))


FEWER_DEVICES = """
import sys
import jax, numpy as np
from ccafl_jax.training.checkpoints import Checkpoints
assert jax.device_count() == 1
with Checkpoints(sys.argv[1]) as checkpoints:
    print(checkpoints.restore()["wide"].tolist())
"""


@pytest.mark.ci
def test_a_process_of_one_device_reads_arrays_of_eight(tmp_path):
    wide = np.arange(16.0, dtype=np.float32).reshape(8, 2)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"wide": shard_rows(wide, make_mesh(8))}, {})
    done = run_python(FEWER_DEVICES, tmp_path / "c")
    assert json.loads(done.stdout.read()) == wide.tolist() and done.wait() == 0


def run_python(program, *arguments):
    """Starts a process with one device."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": ":".join(sys.path),
    }
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


TWO_PROCESSES = """
import os, pathlib, sys
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 2)
rank, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)

from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import NamedSharding, PartitionSpec
from ccafl_jax.training import checkpoints as module
from ccafl_jax.training.sharding import make_mesh
from tests.training.test_checkpoints import flip_a_bit, largest_file

def laid_out(array, *axes):
    sharding = NamedSharding(make_mesh(), PartitionSpec(*axes))
    return jax.make_array_from_callback(array.shape, sharding, lambda rows: array[rows])

wide, deep = np.arange(16.0, dtype=np.float32).reshape(8, 2), np.arange(3.0)
tree = {"wide": laid_out(wide, "data"), "deep": laid_out(deep), "step": np.int32(1)}
written, write = [], module.write_manifest
module.write_manifest = lambda path: (written.append(path.name), write(path))
with module.Checkpoints(folder, keep=2, best_by="x") as checkpoints:
    assert checkpoints.latest() is None
    for number in (1, 2, 3, 4):
        checkpoints.save(number, tree, {"number": number}, best=-number)
    assert checkpoints.latest() == 4 and checkpoints.best() == 1
assert written == ["1", "2", "3", "4"][: 0 if rank else 4]
if rank == 0:
    flip_a_bit(largest_file(folder / "4"))
sync_global_devices("damaged")
with module.Checkpoints(folder, keep=2) as checkpoints:
    assert checkpoints.latest() == 3
    found = checkpoints.restore()
    for name, expected in (("wide", wide), ("deep", deep)):
        assert type(found[name]) is np.ndarray
        np.testing.assert_array_equal(found[name], expected)
    checkpoints.save(4, tree, {"number": 40})
    assert checkpoints.latest() == 4 and checkpoints.restore_meta() == {"number": 40}

    def full(path):
        raise OSError(28, "No space left on device")

    module.write_manifest = full  # on the first; the other one hears of it
    try:
        checkpoints.save(5, tree, {})
    except OSError as error:
        assert "No space left on device" in str(error)
        print("told", checkpoints.latest())
"""


@pytest.mark.ci
def test_two_processes_write_one_checkpoint_and_agree_which_count(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [run_python(TWO_PROCESSES, rank, port, tmp_path / "c") for rank in (0, 1)]
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and out.splitlines()[-1] == "told 4"
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["3", "4", "5"]


WRITER = """
import sys
import numpy as np
from ccafl_jax.training.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=1)
first = (checkpoints.latest() or 0) + 1
for number in range(first, first + 1000):
    arrays = {str(i): np.full((200, 1000), number, np.float32) for i in range(8)}
    checkpoints.save(number, arrays, {"number": number})
    print(number, flush=True)
"""


@pytest.mark.ci
def test_a_kill_at_any_moment_leaves_a_checkpoint(tmp_path):
    """Of which the writer had said that it was complete, or a newer one."""
    said = 0
    for attempt in range(8):
        process = run_python(WRITER, tmp_path / "c")
        process.stdout.readline()
        time.sleep(0.3 + 0.037 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        said = int(["0", *process.stdout.read().split()][-1]) or said + 1
        with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
            found = checkpoints.latest()
            assert found is not None and found >= said
            assert checkpoints.restore_meta() == {"number": found}
            for value in checkpoints.restore().values():
                np.testing.assert_array_equal(value, np.full((200, 1000), found, np.float32))
        said = found


def test_what_killed_writes_left_is_removed_by_the_next_save(folder):
    remains = folder / "4.orbax-checkpoint-tmp"
    shutil.copytree(folder / "3", remains)  # killed before Orbax renamed it
    shutil.copytree(folder / "3", folder / "5")
    remove_manifest(folder / "5")  # killed before the manifest
    with Checkpoints(folder, keep=3) as checkpoints:
        assert checkpoints.latest() == 3
        assert remains.is_dir()  # a reader removes nothing: it may be being written
        checkpoints.save(4, tree_of(4), {})
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", "4"]


@contextlib.contextmanager
def small_disk(path, size):
    """A file system of its own; skips the test where none can be mounted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_takes_one_line_and_no_checkpoint(tmp_path, caplog):
    with small_disk(tmp_path / "disk", "2m") as disk:
        checkpoints = Checkpoints(disk / "c", keep=2)
        checkpoints.save(1, tree_of(1), {"number": 1})
        large = {"a": np.random.default_rng(0).normal(size=400_000)}
        with pytest.raises(OSError, match=r"cannot write checkpoint 2 .*No space left") as error:
            checkpoints.save(2, large, {})
        assert "\n" not in str(error.value) and str(disk) in str(error.value)
        assert "--resume" in str(error.value) and not caplog.records
        assert checkpoints.latest() == 1
        assert_is(checkpoints.restore(), 1)
        checkpoints.save(2, tree_of(2), {"number": 2})  # there is room again
        assert sorted(path.name for path in (disk / "c").iterdir()) == ["1", "2"]
        checkpoints.close()


def test_a_disk_that_fills_up_before_the_manifest(folder, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device", str(path))

    with Checkpoints(folder, keep=3) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr("ccafl_jax.training.checkpoints.write_manifest", full)
            with pytest.raises(OSError, match=r"cannot write checkpoint 4 .*No space left on dev"):
                checkpoints.save(4, tree_of(4), {})
        assert checkpoints.latest() == 3
        checkpoints.save(4, tree_of(4), {})
        assert checkpoints.latest() == 4


def test_a_disk_that_cannot_be_written_to(tmp_path):
    with small_disk(tmp_path / "disk", "2m") as disk:
        with Checkpoints(disk / "c") as checkpoints:
            checkpoints.save(1, tree_of(1), {})
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with Checkpoints(disk / "c") as checkpoints:
            assert_is(checkpoints.restore(), 1)
            with pytest.raises(OSError, match=r"cannot write checkpoint 2 .*Read-only file system"):
                checkpoints.save(2, tree_of(2), {})
            assert_is(checkpoints.restore(), 1)


def test_what_is_no_fault_of_the_disk_keeps_its_error(folder):
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(ValueError, match="Unsupported type"):
            checkpoints.save(4, {"a": object()}, {})
        assert checkpoints.latest() == 3


def test_paths_may_be_given_as_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("c") as checkpoints:
        checkpoints.save(1, tree_of(1), {})
    assert find_damage(open_path("c") / "1") == ""


def test_digest_sees_every_name_type_shape_and_bit():
    arrays = {"a": np.arange(6.0, dtype=np.float32), "b": np.zeros(2, np.int32)}
    same = {"b": jnp.zeros(2, jnp.int32), "a": jnp.arange(6.0)}
    assert digest(arrays) == digest(same)
    nudged = np.nextafter(arrays["a"], 9, dtype=np.float32)
    others = [
        {"c": arrays["a"], "b": arrays["b"]},
        arrays | {"a": arrays["a"].reshape(2, 3)},
        arrays | {"b": np.zeros(2, np.float32)},
        arrays | {"a": nudged},
        arrays | {"c": np.zeros(0)},
    ]
    assert len({digest(x) for x in [arrays, *others]}) == 6


def test_an_address_in_a_store_is_no_folder_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(open_path(open_path("gs://bucket/run") / "c")) == "gs://bucket/run/c"
    assert str(open_path("run")) == str(tmp_path / "run")
