"""`kill -9` at random moments, again and again: the run that gets through in the end is the undisturbed one."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hftl.config import parse_args
from hftl.run_record import RunRecord
from hftl.training.checkpoints import find_newest
from hftl.training.run import run
from tests import tiny

NUM_STEPS = 12


def train(words):
    """In a process of its own."""
    os.setpgrp()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    run(parse_args(words))


def start(words):
    """A process that has imported everything already, so that kills hit the run and not its imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hftl.training.run", "tests.faults.test_random_kills"])
    process = context.Process(target=train, args=(words,))
    process.start()
    return process


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("kills"))


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [5, pytest.param(200, marks=pytest.mark.exhaustive)])
def test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one(files, tmp_path, monkeypatch, num_kills):
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    flags = {"--train_file": files / "train.csv", "--model_name_or_path": files / "bert", "--mode": "full",
             "--test_file": files / "test.csv", "--max_steps": NUM_STEPS, "--logging_steps": 1, "--use_cpu": "true",
             "--per_device_train_batch_size": 4, "--save_strategy": "steps", "--save_steps": 1,
             "--save_total_limit": 2, "--resume_from_checkpoint": "auto"}  # fmt: skip
    words = [str(word) for pair in flags.items() for word in pair]
    for folder in ("first", "whole"):  # the first one waits for the imports
        begun = time.monotonic()
        process = start([*words, "--output_dir", str(tmp_path / folder)])
        process.join(120)
        assert process.exitcode == 0
    seconds = time.monotonic() - begun
    draw, kills, rounds, interrupted = random.Random(num_kills), 0, 0, set()
    while kills < num_kills:
        folder, rounds = tmp_path / f"killed-{rounds}", rounds + 1
        while True:
            process = start([*words, "--output_dir", str(folder)])
            process.join(draw.uniform(0.1, seconds) if kills < num_kills else 300)
            if process.exitcode is not None:
                assert process.exitcode == 0, f"round {rounds}, after {kills} kills"
                break
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            newest, reasons = find_newest(folder) if folder.is_dir() else (None, [])
            assert reasons == []  # none of the kills left half a checkpoint under a checkpoint's name
            interrupted.add(newest and newest.name)
        assert_same(tmp_path / "whole", folder)
        shutil.rmtree(folder)
    assert len(interrupted) > min(num_kills, 8) / 3  # kills hit many stages
    if report := os.environ.get("HFTL_TEST_REPORT"):
        content = {"kills": kills, "rounds": rounds, "identical": rounds, "stages": sorted(map(str, interrupted))}
        Path(report).write_text(json.dumps(content | {"seconds_of_a_run": round(seconds, 1)}, indent=1))


def assert_same(whole, folder):
    one, two = (load_file(path / "model.safetensors") for path in (whole, folder))
    assert all(torch.equal(two[name], value) for name, value in one.items())
    logs = [[(e["step"], e["loss"], e["grad_norm"]) for e in RunRecord.read(path).history if "loss" in e]
            for path in (whole, folder)]  # fmt: skip
    assert len(logs[0]) == NUM_STEPS and logs[1] == logs[0]
    assert RunRecord.read(folder).metrics == RunRecord.read(whole).metrics
