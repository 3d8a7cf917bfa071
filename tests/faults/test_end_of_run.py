"""What comes at the end, or from outside: the final model, the best checkpoint, a loader process, a repeated run."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.utils.data
import transformers
import yaml

from hftl import cli
from hftl.config import parse_args
from hftl.errors import UserError
from hftl.run_record import RunRecord
from hftl.tasks import build_task
from hftl.tasks.text_classification import TextCollator
from hftl.training import run_folder
from hftl.training.checkpoints import find_newest
from hftl.training.run_folder import publish_files
from hftl.training.settings import choose_head_rate, set_defaults
from tests import tiny
from tests.networks import build_network
from tests.training.test_trainer import build_rows, build_trainer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("end"))


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_kill_while_the_final_model_is_put_in_its_place_leaves_nothing_that_loads(tmp_path, monkeypatch, is_sharded):
    """Stopped after any number of files; a half model has no weights, or shards that nothing names."""
    real, number = os.replace, 0
    while True:
        number += 1
        left, staging, folder = number, tmp_path / f"staging-{number}", tmp_path / f"run-{number}"
        build_network("bert").save_pretrained(staging, max_shard_size="20KB" if is_sharded else "5GB")
        (staging / "tokenizer.json").write_text("{}")
        folder.mkdir()

        def die(source, target):
            nonlocal left
            left -= 1
            if left == 0:
                raise SystemExit(9)
            real(source, target)

        monkeypatch.setattr(run_folder.os, "replace", die)
        try:
            publish_files(staging, folder)
            break
        except SystemExit:
            with pytest.raises((OSError, ValueError)):  # no weights, or no configuration
                transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert number > 3 and not staging.exists()
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    expected = build_network("bert").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_a_best_checkpoint_that_was_damaged_is_an_error_and_not_silent(tmp_path):
    class Damage(transformers.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 4:
                weights = Path(state.best_model_checkpoint) / "model.safetensors"
                content = bytearray(weights.read_bytes())
                content[-1] ^= 1
                weights.write_bytes(content)

    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 4}
    settings |= {"load_best_model_at_end": True, "learning_rate": 0.3}
    trainer = build_trainer(tmp_path, "bert", build_network("bert"), build_rows("bert"), **settings)
    trainer.add_callback(Damage())
    with pytest.raises(UserError, match=r"best checkpoint, does not count any more: model.safetensors has changed"):
        trainer.train()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_loader_process_that_is_killed_ends_with_code_4_and_the_run_goes_on(files, tmp_path, monkeypatch, capsys):
    real, run, calls = TextCollator.__call__, tmp_path / "run", tmp_path / "calls"
    calls.touch()

    def die_after_the_first_checkpoint(self, rows):
        """Two batches come, the second of them ahead of the first step; the third one never."""
        if torch.utils.data.get_worker_info() is not None and len(rows) == 4:
            if calls.stat().st_size == 2:
                deadline = time.monotonic() + 60
                while not (run / "checkpoint-1").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            with calls.open("a") as file:
                file.write("x")
        return real(self, rows)

    words = [f"--train_file={files}/train.csv", f"--model_name_or_path={files}/bert", "--mode=full", "--use_cpu"]
    words += ["--head_init=random", "--per_device_train_batch_size=4", "--max_steps=4", "--save_strategy=steps"]
    words += ["--save_steps=1", f"--output_dir={run}", "--per_device_eval_batch_size=3"]
    with monkeypatch.context() as patch:
        patch.setattr(TextCollator, "__call__", die_after_the_first_checkpoint)
        assert cli.main(["train", *words, "--dataloader_num_workers=1"]) == 4
    message = capsys.readouterr().err
    assert "A data loader process was ended from outside" in message and "--dataloader_num_workers" in message
    assert RunRecord.read(run).status == "failed" and find_newest(run)[1] == []
    assert cli.main(["train", *words, "--resume_from_checkpoint=true"]) == 0
    assert RunRecord.read(run).cost["num_steps"] == 4


def test_a_run_repeated_from_its_own_configuration_has_the_same_rate_of_the_head(files, tmp_path):
    from hftl.models.adapters import ADAPTERS
    from hftl.models.modes import MODES

    name = next(name for name, adapter in ADAPTERS.items() if adapter.head_learning_rate is not None)
    words = ["--train_file", f"{files}/train.csv", "--model_name_or_path", f"{files}/bert", "--adapter", name]
    network, task = build_network("bert"), build_task("text-classification")
    first = parse_args(words, mode="peft")
    set_defaults(first, MODES["peft"], network, task, 24)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(first.resolved()))

    second = parse_args([str(tmp_path / "config.yaml")])
    set_defaults(second, MODES["peft"], network, task, 24)

    assert choose_head_rate(second) == choose_head_rate(first) == ADAPTERS[name].head_learning_rate
    assert second.training.learning_rate == first.training.learning_rate
    given = parse_args([*words, "--learning_rate", "1e-3"], mode="peft")
    set_defaults(given, MODES["peft"], network, task, 24)
    assert choose_head_rate(given) is None
