"""A run that was cut and goes on is the run that was not, bit for bit, in weights, records and decisions."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hftl.config import parse_args
from hftl.errors import UserError
from hftl.run_record import RunRecord
from hftl.training.run import run
from tests import tiny
from tests.faults.test_damaged_checkpoints import commit_again
from tests.networks import build_network
from tests.training.test_trainer import build_rows, build_trainer, largest_difference, read_weights

COUNTS = ("num_examples_seen", "num_tokens_seen", "padding_fraction", "train_flops", "num_steps")


class Cut(Exception):
    """Stands for a kill, of which nothing is written."""


class CutAfter(TrainerCallback):
    """Ends training after a step, however much of it was not saved."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step >= self.step:
            raise Cut

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > self.step:
            raise Cut


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("exact"))


@pytest.fixture(scope="module")
def train(files, tmp_path_factory):
    """Function: train into a folder, 24 rows of which 20 are for training, five steps of four an epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(tmp_path_factory.mktemp("cache")))

        def start(folder, *words, callbacks=()):
            flags = {"--train_file": files / "train.csv", "--model_name_or_path": files / "bert", "--mode": "full",
                     "--test_file": files / "test.csv", "--validation_fraction": 0.1667, "--logging_steps": 1,
                     "--per_device_train_batch_size": 4, "--max_steps": 8, "--save_strategy": "steps",
                     "--save_steps": 3, "--output_dir": folder, "--use_cpu": "true"}  # fmt: skip
            flags |= dict(zip(words[::2], words[1::2], strict=True))
            for what in ("save", "logging"):  # a number of steps is for the strategy that counts them
                if flags.get(f"--{what}_strategy") == "epoch":
                    del flags[f"--{what}_steps"]
            given = [word for flag, value in flags.items() for word in (flag, *str(value).split())]
            return run(parse_args(given), callbacks=callbacks)

        yield start


def cut_and_resume(train, folder, step, *words):
    with pytest.raises(Cut):
        train(folder, *words, callbacks=[CutAfter(step)])
    return train(folder, *words, "--resume_from_checkpoint", "true")


def read_all(folder):
    (file,) = Path(folder).glob("*.safetensors")
    history = [{k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k} for entry in
               RunRecord.read(folder).history]  # fmt: skip
    return history, load_file(file)


def assert_same_runs(whole, resumed):
    (first_history, first), (second_history, second) = read_all(whole), read_all(resumed)
    assert second_history == first_history
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], value) for name, value in first.items())
    records = [RunRecord.read(folder) for folder in (whole, resumed)]
    assert [records[1].cost[name] for name in COUNTS] == [records[0].cost[name] for name in COUNTS]
    assert records[1].model["head"] == records[0].model["head"]
    for split in ("validation", "test"):
        assert records[1].metrics[split] == records[0].metrics[split]


CASES = {
    "full": (),
    "a head from a probe": ("--head_init", "probe"),
    "an adapter": ("--mode", "peft", "--lora_dropout", "0.1"),
    "an adapter whose base moves": ("--mode", "peft", "--adapter", "pissa", "--head_init", "probe"),
    "from scratch": ("--mode", "scratch"),
    "accumulation": ("--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "2"),
    "a loss that is logged later": ("--logging_steps", "4"),
    "a head with a rate of its own": ("--head_learning_rate", "0.01", "--lr_scheduler_type", "cosine"),
    "evaluation in between": ("--eval_strategy", "steps", "--eval_steps", "2"),
    "the end of an epoch": ("--save_steps", "5", "--eval_strategy", "epoch"),
    "epochs": ("--save_strategy", "epoch", "--eval_strategy", "epoch", "--logging_strategy", "epoch"),
}


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_a_run_that_was_cut_ends_as_the_one_that_was_not(train, tmp_path, words):
    train(tmp_path / "whole", *words)
    cut_and_resume(train, tmp_path / "cut", 5 if "epoch" in words else 3, *words)
    assert_same_runs(tmp_path / "whole", tmp_path / "cut")


BEST = ("--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1", "--load_best_model_at_end", "true",
        "--early_stopping_patience", "3", "--learning_rate", "0.03", "--max_steps", "12", "--save_total_limit", "1",
        "--metric_for_best_model", "loss")  # fmt: skip


@pytest.fixture(scope="module")
def stopped(train, tmp_path_factory):
    """A run that stops early, long before its last step."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train(folder, *BEST)
    assert RunRecord.read(folder).cost["num_steps"] < 12
    return folder


@pytest.mark.parametrize("before_end", [1, 0])
def test_early_stopping_counts_on_and_the_best_weights_are_found_after_a_move(train, stopped, tmp_path, before_end):
    """Cut within the patience, and at the very step at which training had stopped."""
    with pytest.raises(Cut):
        train(tmp_path / "cut", *BEST, callbacks=[CutAfter(RunRecord.read(stopped).cost["num_steps"] - before_end)])
    (tmp_path / "cut").rename(tmp_path / "moved")
    train(tmp_path / "moved", *BEST, "--resume_from_checkpoint", "last")
    assert_same_runs(stopped, tmp_path / "moved")


def test_a_run_cut_after_its_last_step_trains_no_other(train, tmp_path):
    """The stock loop would train one more: no step is left, but the epoch is not over."""
    words = ("--lr_scheduler_type", "constant", "--max_steps", "3")
    train(tmp_path / "whole", *words)
    cut_and_resume(train, tmp_path / "cut", 3, *words)
    assert_same_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_run_cut_twice_has_the_seconds_of_all_and_the_work_of_one(train, tmp_path):
    whole = train(tmp_path / "whole").cost
    words = ("--resume_from_checkpoint", "auto")
    for step in (3, 6):
        with pytest.raises(Cut):
            train(tmp_path / "cut", *words, callbacks=[CutAfter(step)])
    earlier = json.loads((tmp_path / "cut" / "checkpoint-6" / "trainer_state.json").read_text())
    seconds = earlier["stateful_callbacks"]["Progress"]["attributes"]["seconds"]
    found = train(tmp_path / "cut", *words).cost
    assert_same_runs(tmp_path / "whole", tmp_path / "cut")
    for name in ("wall_seconds", "startup_seconds", "train_seconds"):
        assert found[name] > seconds[name] > 0, name
    parts = [found[f"{name}_seconds"] for name in ("startup", "train", "evaluation", "save", "other")]
    assert found["wall_seconds"] == pytest.approx(sum(parts))
    assert found["startup_seconds"] > 1.5 * whole["startup_seconds"]  # three starts


@pytest.fixture(scope="module")
def cut(train, tmp_path_factory):
    """A run that was cut after three of eight steps."""
    folder = tmp_path_factory.mktemp("cut") / "run"
    with pytest.raises(Cut):
        train(folder, callbacks=[CutAfter(3)])
    return folder


@pytest.mark.parametrize(
    ("flag", "value", "difference"),
    [
        ("--seed", 3, "seed: 42 in the checkpoint, 3 here"),
        ("--learning_rate", 0.5, "learning_rate: .* in the checkpoint, 0.5 here"),
        ("--max_steps", 9, "max_steps: 8 in the checkpoint, 9 here"),
        ("--per_device_train_batch_size", 2, "per_device_train_batch_size: 4 in the checkpoint, 2 here"),
        ("--gradient_accumulation_steps", 2, "gradient_accumulation_steps: 1 in the checkpoint, 2 here"),
        ("--only_labels", "animal motion", "label_names: only in the checkpoint weather, only here none"),
        ("--model_name_or_path", "other", "model name: 'bert' in the checkpoint, 'other' here; model weights: "),
        ("--train_file", "other.csv", "data train: '.*' in the checkpoint, '.*' here"),
    ],
)
def test_another_run_is_refused_with_what_differs(train, cut, tmp_path, flag, value, difference, monkeypatch):
    tiny.write_tiny_bert(tmp_path / "other", seed=1)
    tiny.write_text_csv(tmp_path / "other.csv", 24, seed=9)
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in cut.iterdir())
    with pytest.raises(
        UserError, match=f"checkpoint-3 is not of this run. .*{difference}.*insist with --allow_change"
    ):
        train(cut, flag, value, "--resume_from_checkpoint", "true")
    assert sorted(path.name for path in cut.iterdir()) == before


def test_another_number_of_processes_is_refused(train, cut, tmp_path):
    checkpoint = Path(shutil.copytree(cut / "checkpoint-3", tmp_path / "checkpoint-3"))
    commit_again(checkpoint, world_size=2)
    with pytest.raises(UserError, match="world_size: 2 in the checkpoint, 1 here"):
        train(tmp_path / "on", "--resume_from_checkpoint", checkpoint)


def test_what_changes_no_number_may_change(train, cut, tmp_path):
    words = ("--save_steps", 2, "--logging_steps", 4, "--per_device_eval_batch_size", 3, "--dataloader_num_workers", 1)
    train(tmp_path / "on", *words, "--resume_from_checkpoint", cut / "checkpoint-3")
    assert RunRecord.read(tmp_path / "on").status == "completed"


def test_who_insists_goes_on_and_is_told_what_differs(train, cut, tmp_path, caplog):
    words = ("--max_steps", 9, "--allow_change", "true", "--resume_from_checkpoint", cut / "checkpoint-3")
    train(tmp_path / "on", *words)
    assert "in spite of: max_steps: 8 in the checkpoint, 9 here" in caplog.text
    assert RunRecord.read(tmp_path / "on").cost["num_steps"] == 9


def test_a_checkpoint_of_another_run_is_not_gone_on_with_in_a_folder_with_files(train, cut, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds files"):
        train(tmp_path / "out", "--resume_from_checkpoint", cut / "checkpoint-3")


def test_auto_does_not_write_over_a_finished_run(train, tmp_path):
    train(tmp_path / "run", "--save_strategy", "no", "--max_steps", 1)
    with pytest.raises(UserError, match="already holds files"):
        train(tmp_path / "run", "--save_strategy", "no", "--max_steps", 1, "--resume_from_checkpoint", "auto")


@pytest.mark.parametrize("step", random.Random(0).sample(range(1, 7), 2))
def test_workers_and_a_cut_at_any_step_change_nothing(tmp_path, step):
    """The trainer alone, with dropout, gradient norms compared."""
    settings = {"max_steps": 7, "save_strategy": "steps", "save_steps": step, "optim": "adamw_torch",
                "dataloader_num_workers": 1, "max_grad_norm": 1.0}  # fmt: skip
    trainers = []
    for name in ("whole", "resumed"):
        network = build_network("bert", hidden_dropout_prob=0.1)
        trainers.append(build_trainer(tmp_path / name, "bert", network, build_rows("bert"), **settings))
    whole, resumed = trainers
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    logs = [[(e["loss"], e["grad_norm"]) for e in t.state.log_history if "loss" in e] for t in trainers]
    assert len(logs[0]) == 7 and logs[1] == logs[0]
    assert largest_difference(read_weights(resumed.model), read_weights(whole.model)) == 0.0
