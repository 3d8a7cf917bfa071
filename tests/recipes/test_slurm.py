"""The script for partitions that take a machine back: a warning requeues the job, an error does not."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "slurm" / "preemptible.sbatch"
FAKES = {
    "hftl": 'echo "$@" > words; trap "{then}" TERM; touch begun; for i in $(seq 100); do sleep 0.05; done; exit {end}',
    "scontrol": 'echo "$@" > requeued',
}


def write_commands(folder, **changes):
    for name, code in FAKES.items():
        text = code.format(**{"then": "exit 75", "end": 0} | changes) if name == "hftl" else code
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)


def start(folder, is_warned):
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "RUN_FOLDER": "runs/a b",
    }
    process = subprocess.Popen(["bash", SCRIPT, "my.yaml", "--seed", "1"], cwd=folder, env=environment)
    if is_warned:
        while not (folder / "begun").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    return process.wait(timeout=20)


def test_the_script_is_one_of_bash_and_asks_for_what_it_needs():
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    lines = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --signal=B:TERM@120"} <= set(lines)


def test_a_warning_stops_the_run_and_queues_the_job_again(tmp_path):
    write_commands(tmp_path)
    assert start(tmp_path, is_warned=True) == 75
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    words = (tmp_path / "words").read_text()
    assert words == "train my.yaml --seed 1 --output_dir runs/a b --resume_from_checkpoint auto\n"


@pytest.mark.parametrize(("status", "is_queued"), [("interrupted", True), ("failed", False)])
def test_under_a_launcher_the_record_says_whether_to_go_on(tmp_path, status, is_queued):
    write_commands(tmp_path, then="exit 1")
    (tmp_path / "runs" / "a b").mkdir(parents=True)
    (tmp_path / "runs" / "a b" / "run.json").write_text(f'{{"status": "{status}"}}')
    assert start(tmp_path, is_warned=True) == 1
    assert (tmp_path / "requeued").exists() == is_queued


@pytest.mark.parametrize("code", [0, 2, 3, 4])
def test_a_run_that_ends_by_itself_is_not_queued_again(tmp_path, code):
    write_commands(tmp_path)
    (tmp_path / "hftl").write_text(f"#!/bin/bash\nexit {code}\n")
    assert start(tmp_path, is_warned=False) == code
    assert not (tmp_path / "requeued").exists()
