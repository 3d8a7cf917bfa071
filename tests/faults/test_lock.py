"""One process at a time in a run folder; a dead one holds nothing."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hftl.errors import UserError
from hftl.resuming import lock

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from hftl.resuming import lock
with lock.released():
    lock.take(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def take(folder):
    with lock.released():
        lock.take(folder)


@pytest.mark.parametrize("look", [lock.check_free, take])
def test_a_second_process_is_refused_and_told_who_is_there(holder, tmp_path, look):
    with pytest.raises(UserError, match=rf"{tmp_path} is in use by process {holder.pid} on .+, since 20"):
        look(tmp_path)
    assert (tmp_path / lock.LOCK_FILE).exists()


def test_a_process_that_was_killed_holds_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / lock.LOCK_FILE).exists()
    lock.check_free(tmp_path)
    take(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_of_the_same_process_is_refused(tmp_path):
    with lock.released():
        lock.take(tmp_path)
        lock.check_free(tmp_path)  # its own
        with pytest.raises(UserError, match="another run of this process"):
            lock.take(tmp_path)
    take(tmp_path)


def test_a_file_that_was_removed_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    real, times = lock.fcntl.lockf, []

    def remove_first(descriptor, operation):
        if not times:
            (tmp_path / lock.LOCK_FILE).unlink()
        times.append(operation)
        real(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "lockf", remove_first)
    with lock.released():
        lock.take(tmp_path)
        assert len(times) == 2 and (tmp_path / lock.LOCK_FILE).exists()


def test_a_disk_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def fail(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "lockf", fail)
    take(tmp_path)
    assert f"{tmp_path} cannot be locked ([Errno 37] No locks available)" in caplog.text
