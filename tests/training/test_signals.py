"""SIGTERM and SIGINT end a run with one more checkpoint and exit code 75; a second one ends it at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState

from hftl import cli
from hftl.compare.cells import Job, run_job
from hftl.errors import Interrupted
from hftl.run_record import RunRecord
from hftl.training import trainer as trainer_module
from hftl.training.checkpoints import find_damage, list_checkpoints
from hftl.training.signals import SIGNALS, StopOnSignal, handled
from tests import tiny
from tests.networks import build_network
from tests.training.test_trainer import build_rows, build_trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def handlers():
    """An interrupted run leaves signals ignored, for its process is to end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("signals"))


def words_for(files, folder, *more):
    words = ["--train_file", f"{files}/train.csv", "--model_name_or_path", f"{files}/bert", "--mode", "full"]
    words += ["--max_steps", "8", "--per_device_train_batch_size", "4", "--logging_steps", "1"]
    return [*words, "--use_cpu", "--disable_tqdm", "true", "--output_dir", str(folder), *more]


class Send(TrainerCallback):
    """Sends this process a signal at an event of a step."""

    def __init__(self, event, step, number=signal.SIGTERM, times=1):
        self.event, self.step, self.number, self.times = event, step, number, times
        setattr(self, event, self.send)

    def send(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def stop_a_run(folder, send, **changes):
    """Train eight steps of three an epoch until the signal ends it."""
    stop, settings = StopOnSignal(), {"max_steps": 8, "optim": "adamw_torch"}
    trainer = build_trainer(folder, "bert", build_network("bert"), build_rows("bert"), **settings | changes)
    trainer.add_callback(stop)
    trainer.add_callback(send)
    with pytest.raises(Interrupted) as caught, handled(stop):
        trainer.train()
    return trainer, str(caught.value)


EVENTS = {
    "before a step": ("on_step_begin", 1, 2),
    "in a step": ("on_pre_optimizer_step", 1, 2),
    "at the end of one": ("on_step_end", 1, 2),
    "before the last step of an epoch": ("on_step_begin", 2, 3),
    "in evaluation": ("on_prediction_step", 2, 3),
    "in a save": ("on_save", 4, 5),
}


@pytest.mark.parametrize(("event", "step", "stops_after"), EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_finishes_the_step_and_saves_once_where_going_on_is_exact(tmp_path, event, step, stops_after, number):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 2}
    settings |= {"save_strategy": "steps", "save_steps": 4} if event == "on_save" else {}
    whole = build_trainer(tmp_path / "whole", "bert", build_network("bert"), build_rows("bert"), max_steps=8,
                          optim="adamw_torch", **settings)  # fmt: skip
    whole.train()
    trainer, message = stop_a_run(tmp_path / "run", Send(event, step, number), **settings)
    checkpoints = [path.name for path in list_checkpoints(tmp_path / "run")]
    assert checkpoints[-1] == f"checkpoint-{stops_after}"
    assert message == f"Stopped after step {stops_after} of 8; a checkpoint is saved."
    newest = tmp_path / "run" / checkpoints[-1]
    assert find_damage(newest) is None
    resumed = build_trainer(tmp_path / "on", "bert", build_network("bert"), build_rows("bert"), max_steps=8,
                            optim="adamw_torch", **settings)  # fmt: skip
    resumed.train(resume_from_checkpoint=str(newest))
    logs = [
        [
            {k: v for k, v in e.items() if "runtime" not in k and "per_second" not in k}
            for e in t.state.log_history[:-1]
        ]
        for t in (whole, resumed)
    ]
    assert logs[1] == logs[0]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_signal_while_a_checkpoint_is_written_does_not_cut_it_short(tmp_path, monkeypatch):
    real = trainer_module.commit

    def told(staging, target, content):
        if content["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        real(staging, target, content)

    monkeypatch.setattr(trainer_module, "commit", told)
    _, message = stop_a_run(tmp_path, TrainerCallback(), save_strategy="steps", save_steps=4)
    assert message == "Stopped after step 5 of 8; a checkpoint is saved."
    found = {path.name: find_damage(path) for path in list_checkpoints(tmp_path)}
    assert found == {"checkpoint-4": None, "checkpoint-5": None} and not list(tmp_path.glob("_tmp*"))


@pytest.mark.parametrize("step", [2, 1])
def test_what_an_epoch_ends_with_is_done_before_the_run_stops(tmp_path, step):
    """Or the resumed run, which begins with the next epoch, would lack that evaluation."""
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch"}
    trainer, _ = stop_a_run(tmp_path, Send("on_step_begin", step), **settings)
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert (trainer.state.global_step, evaluated) == ((3, [3]) if step == 2 else (2, []))


def test_the_same_order_twice_at_once_counts_once_and_a_later_one_ends_the_process(monkeypatch):
    now, killed = [100.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append(number))
    stop = StopOnSignal()
    for seconds in (0.0, 0.2):
        now[0] = 100.0 + seconds
        stop.note(signal.SIGTERM, None)
    assert stop.received == signal.SIGTERM and not killed
    now[0] = 102.0
    stop.note(signal.SIGINT, None)
    assert killed == [signal.SIGINT] and signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_a_launcher_may_pass_the_same_order_on_for_longer(monkeypatch):
    now, killed = [100.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append(number))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    stop = StopOnSignal()
    for seconds, expected in ((0, []), (5, []), (11, [signal.SIGTERM])):
        now[0] = 100.0 + seconds
        stop.note(signal.SIGTERM, None)
        assert killed == expected


def test_processes_stop_after_the_same_step_whichever_of_them_heard(monkeypatch):
    """With the answers of a step taken at the end of the next one: nobody waits."""
    answers = iter([0, 1, 1])

    class Work:
        def __init__(self, tensor):
            tensor.fill_(next(answers))

        def wait(self):
            return True

    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor, *args, **kwargs: Work(tensor))
    stop, state = StopOnSignal(), TrainerState(epoch=0.5, max_steps=8)
    stop._group = object()
    saves = []
    for _ in range(3):
        control = TrainerControl()
        stop.on_step_end(None, state, control)
        saves.append(control.should_save)
    assert saves == [False, False, True]


def test_without_a_stop_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    with handled(None):
        assert signal.getsignal(signal.SIGTERM) is before
    with handled(StopOnSignal()):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_is_told_to_stop_says_how_to_go_on_and_does(files, tmp_path, monkeypatch, capsys):
    """With the default of no checkpoints: one is written all the same."""
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    folder, train = tmp_path / "run with a blank", StopOnSignal.on_step_end

    def hear(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_step_end", hear)
        assert cli.main(["train", *words_for(files, folder)]) == 75
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(
        "hftl: Stopped after step 3 of 8; a checkpoint is saved. Go on with: hftl train --train_file"
    )
    assert message.endswith(f"--output_dir '{folder}' --resume_from_checkpoint true")
    record = RunRecord.read(folder)
    assert record.status == "interrupted" and record.cost["num_steps"] == 3 and record.error.startswith("Interrupted")
    assert cli.main(["train", *words_for(files, folder, "--resume_from_checkpoint", "true")]) == 0
    assert RunRecord.read(folder).status == "completed"
    assert cli.main(["train", *words_for(files, tmp_path / "whole")]) == 0
    whole, resumed = (load_file(path / "model.safetensors") for path in (tmp_path / "whole", folder))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_cell_of_a_campaign_is_not_a_run_that_a_signal_may_save(tmp_path, monkeypatch):
    """An interrupt leaves no cell, as before: the campaign runs it again."""

    def stop(job, staging, started):
        staging.mkdir(parents=True)
        raise Interrupted("Stopped after step 3 of 8; a checkpoint is saved.")

    monkeypatch.setattr("hftl.compare.cells._run", stop)
    job = Job(cell=None, folder=str(tmp_path / "cells" / "full"), key="key")
    with pytest.raises(KeyboardInterrupt):
        run_job(job)
    assert not list((tmp_path / "cells").iterdir())


@pytest.mark.slow
def test_a_process_that_is_told_twice_leaves_at_once_and_what_was_committed_stays(files, tmp_path):
    """Really: a process of its own, whose steps never end after the second checkpoint."""
    code = (
        "import time, sys; from hftl import cli; from hftl.training.trainer import FineTuningTrainer as T\n"
        "step = T.training_step\n"
        "def slow(self, *a, **k):\n"
        "    while self.state.global_step == 2: print('stuck', flush=True) or time.sleep(0.1)\n"
        "    return step(self, *a, **k)\n"
        "T.training_step = slow; sys.exit(cli.main(sys.argv[1:]))"
    )
    words = words_for(files, tmp_path / "run", "--save_strategy", "steps", "--save_steps", "1")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HFTL_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen([sys.executable, "-c", code, "train", *words], env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    while process.stdout.readline() != "stuck\n":
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert process.poll() is None  # it would finish its step
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM
    process.stdout.close()
    assert [find_damage(path) for path in list_checkpoints(tmp_path / "run")] == [None, None]
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
