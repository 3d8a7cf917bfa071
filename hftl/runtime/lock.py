"""Is another process at work in this run folder? One at a time; the second is refused and told who is there.

The system holds the lock for the process (`fcntl.lockf`) and drops it when that dies, however it dies: none is stale.
Data loader processes do not inherit it, which may outlive a killed run for some seconds. Where the disk knows no locks
(some network file systems, Windows) there is a warning instead.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hftl.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
# Path -> descriptor. Closing any descriptor of the file drops the process's lock, so it is opened once.
_held: dict[Path, int] = {}


def check_free(folder: Path) -> None:
    """Refuse a folder in which another process is at work, before anything is computed.

    Raises:
        UserError: there is one; says which.
    """
    path = folder.resolve() / LOCK_FILE
    if path in _held or fcntl is None or not path.exists():
        return
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return  # gone since, or not ours to write: `take` says so
    try:
        _lock(descriptor, folder)
    except OSError:
        return
    finally:
        os.close(descriptor)  # which drops what was only tried


def find_killed(folder: Path) -> str | None:
    """Who left a folder that is free without giving it back, as a process does that was killed; None where nobody did.

    Ask after `check_free`.
    """
    path = folder.resolve() / LOCK_FILE
    if path in _held:
        return None
    try:
        return _describe_holder(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def take(folder: Path) -> None:
    """Hold the folder until `released` ends.

    Raises:
        UserError: another process, or another run of this one, holds it.
    """
    path = folder.resolve() / LOCK_FILE
    if path in _held:
        raise UserError(f"{folder} is in use by another run of this process. Give another --output_dir.")
    try:
        descriptor = _open_locked(path, folder)
    except OSError as error:
        logger.warning("%s cannot be locked (%s): start no second run in it.", folder, error)
        return
    content = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(content).encode(), 0)
    _held[path] = descriptor


@contextmanager
def released() -> Iterator[None]:
    """Give back, at the end, what was taken inside."""
    before = set(_held)
    try:
        yield
    finally:
        for path in _held.keys() - before:
            path.unlink(missing_ok=True)  # while it is held: who opened it before finds that it is gone
            os.close(_held.pop(path))


def _open_locked(path: Path, folder: Path) -> int:
    """A descriptor of the locked file, which is still the one of that name."""
    if fcntl is None:
        raise OSError("this system has no fcntl")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(descriptor, folder)
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """Lock it without waiting; an OSError other than "taken" means that the disk knows no locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise UserError(
            f"{folder} is in use by {_read_holder(descriptor)}. Wait for it, or give another --output_dir."
        ) from error


def _read_holder(descriptor: int) -> str:
    try:
        return _describe_holder(os.pread(descriptor, 1000, 0))
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _describe_holder(content: bytes) -> str:
    holder = json.loads(content)
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
