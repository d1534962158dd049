import errno
import fcntl
import os
import threading
import time

import pytest

from ccafl_jax.files import exclusive, replacing


def test_a_file_appears_when_the_block_ends_well(tmp_path):
    path = tmp_path / "a [1].txt"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_remains_of_killed_processes_are_removed_but_not_those_in_use(tmp_path):
    path = tmp_path / "a[b].txt"
    remains = tmp_path / ".a[b].txt.xyz.part"
    remains.write_text("half")
    os.utime(remains, (time.time() - 90_000,) * 2)
    fresh = tmp_path / ".a[b].txt.abc.part"
    fresh.write_text("another process has just made it")
    with replacing(path) as outer:
        assert not remains.exists() and fresh.exists()
        outer.write_text("outer")
        os.utime(outer, (time.time() - 90_000,) * 2)
        with replacing(path) as inner:
            assert outer.exists()
            inner.write_text("inner")
    assert path.read_text() == "outer"


def test_threads_that_write_one_file_do_not_meet(tmp_path):
    start, errors = threading.Barrier(4), []

    def write(number):
        try:
            start.wait()
            with replacing(tmp_path / "a") as partial:
                partial.write_text(str(number) * 1000)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors == [] and len(set((tmp_path / "a").read_text())) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_lock_excludes_and_is_removed(tmp_path):
    path = tmp_path / "lock"
    busy = "somebody is at it"
    with exclusive(path, busy=busy):
        with (
            pytest.raises(OSError, match="somebody is at it"),
            exclusive(path, busy="somebody is at it"),
        ):
            pass
        assert path.exists()
    assert not path.exists()
    with pytest.raises(RuntimeError), exclusive(path, busy=""):
        raise RuntimeError
    with exclusive(path, busy="still"):
        pass


def test_a_lock_never_lets_two_in(tmp_path):
    """The file is removed at the end; whoever waits with the removed one must not get in."""
    inside, most, done = 0, 0, []
    count = threading.Lock()

    def work():
        nonlocal inside, most
        for _ in range(200):
            try:
                with exclusive(tmp_path / "lock", busy=""):
                    with count:
                        inside += 1
                        most = max(most, inside)
                    time.sleep(0)
                    with count:
                        inside -= 1
                    done.append(1)
            except OSError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert most == 1 and len(done) > 10


def test_file_systems_without_locks_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    old = tmp_path / ".a.x.part"
    old.write_text("of another host, perhaps")
    os.utime(old, (time.time() - 90_000,) * 2)
    with replacing(tmp_path / "a") as partial:
        partial.write_text("new")
    assert (tmp_path / "a").read_text() == "new" and old.exists()
    with exclusive(tmp_path / "lock", busy="never"):
        pass
    assert not (tmp_path / "lock").exists()
