"""One process at a time in a run folder; a dead one holds nothing."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hftl.config import parse_args
from hftl.errors import UserError
from hftl.run_record import RunRecord
from hftl.runtime import lock
from hftl.training.run_folder import check_run_folder
from tests import tiny

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from hftl.runtime import lock
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
    assert lock.find_killed(tmp_path).startswith(f"process {holder.pid} on ")
    take(tmp_path)
    assert list(tmp_path.iterdir()) == [] and lock.find_killed(tmp_path) is None


def test_the_next_run_is_told_that_the_one_before_was_killed(holder, tmp_path, caplog):
    """By the system, when memory is short: such a process has no time for a message of its own."""
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    args = parse_args(["--mode", "full", "--dataset", "x", "--use_cpu", "--output_dir", str(tmp_path)])
    check_run_folder(args.training)
    assert f"{tmp_path}: the run before was killed. Process {holder.pid} on " in caplog.text
    assert "--auto_batch true" in caplog.text
    caplog.clear()
    take(tmp_path)
    check_run_folder(args.training)
    assert "was killed" not in caplog.text


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


@pytest.mark.slow
def test_of_two_trainings_in_one_folder_the_second_is_refused_and_takes_over_when_the_first_was_killed(tmp_path):
    files, folder = tiny.write_text_task(tmp_path), tmp_path / "run"
    words = ["train", "--mode", "full", "--train_file", f"{files}/train.csv", "--model_name_or_path", f"{files}/bert"]
    words += ["--max_steps", "12", "--save_strategy", "steps", "--save_steps", "2", "--resume_from_checkpoint", "auto"]
    command = [sys.executable, "-m", "hftl", *words, "--use_cpu", "--output_dir", str(folder)]

    def train():
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while not (folder / "checkpoint-2").exists():
            assert first.poll() is None
            time.sleep(0.002)
        first.send_signal(signal.SIGSTOP)
        try:
            before = sorted(path.name for path in folder.iterdir())
            second = train()
            assert sorted(path.name for path in folder.iterdir()) == before
        finally:
            first.kill()
    assert first.returncode == -signal.SIGKILL  # it was still at work
    assert second.returncode == 2 and f"{folder} is in use by process {first.pid}" in second.stderr
    third = train()
    assert third.returncode == 0, third.stderr
    assert f"{folder}: the run before was killed. Process {first.pid} on " in third.stderr
    assert RunRecord.read(folder).status == "completed" and not (folder / lock.LOCK_FILE).exists()
