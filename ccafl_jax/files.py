"""Files that are complete or not there, and work that only one process does."""

import contextlib
import glob
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

_MODE = 0o644  # temporary files are readable by their owner alone
_SECONDS_TO_KEEP = 24 * 3600  # remains of others, whose locks may not be seen from here


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A file beside `path` that takes its place when the block ends without an error.

    What processes that were killed left of earlier attempts is removed after a day.

    Args:
      path: of the file; its folder exists.
    """
    path = pathlib.Path(path)
    _remove_remains(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    partial = pathlib.Path(name)
    try:
        _try_lock(handle)  # tells other processes that it is being written
        yield partial
        os.chmod(partial, _MODE)
        os.fsync(handle)  # else the name may outlive the content in a power failure
        os.replace(partial, path)
    finally:
        os.close(handle)
        partial.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def exclusive(path: str | os.PathLike, *, busy: str) -> Iterator[None]:
    """Holds a lock file; the system lets go of it if the process dies.

    Args:
      path: of the lock file, which is removed at the end; its folder exists.
      busy: message of the error.

    Raises:
      OSError: another process holds it. Where the file system has no locks, none is seen.
    """
    path = pathlib.Path(path)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, _MODE)
        try:
            if _try_lock(handle) is False:
                raise OSError(busy)
            if _is_at(handle, path):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
            # The process that held it has just removed the file: take a new one.
        finally:
            os.close(handle)


def _is_at(handle: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _remove_remains(path: pathlib.Path) -> None:
    for remains in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        try:
            if time.time() - remains.stat().st_mtime < _SECONDS_TO_KEEP:
                continue
            handle = os.open(remains, os.O_RDWR)
        except OSError:  # removed by another process, or not ours
            continue
        try:
            if _try_lock(handle):
                remains.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _try_lock(handle: int) -> bool | None:
    """Locks an open file; False if another process has, None where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # file systems over a network may know none
        return None
    return True
