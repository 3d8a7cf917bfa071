"""`hftl verify-resume` says that a killed run is resumed exactly, and where it is not."""

import pytest
import torch
from safetensors.torch import save_file

from hftl import cli
from hftl.errors import ResumeDiffers
from hftl.preview.verify_resume import find_differences
from hftl.run_record import RunRecord
from tests import tiny


def write_run(folder, losses, **weights):
    history = [{"step": step, "loss": loss, "grad_norm": 1.0, "learning_rate": 0.1} for step, loss in losses.items()]
    record = RunRecord(
        "completed", "text-classification", "full", 0, history=[*history, {"step": 2, "eval_loss": 9.0}]
    )
    record.write(folder)
    save_file({name: torch.tensor([value]) for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def test_equal_runs_have_no_difference(tmp_path):
    folders = [write_run(tmp_path / name, {1: 0.5, 2: 0.25}, a=1.0, b=2.0) for name in ("whole", "resumed")]
    assert list(find_differences(*folders)) == []


def test_every_difference_is_named_the_earliest_first(tmp_path):
    whole = write_run(tmp_path / "whole", {1: 0.5, 2: 0.25}, a=1.0, b=2.0)
    resumed = write_run(tmp_path / "resumed", {1: 0.5, 2: 0.2500001}, a=1.0, b=2.0000002)
    assert list(find_differences(whole, resumed)) == [
        "loss of step 2 is 0.25 in the uninterrupted run and 0.2500001 in the resumed one",
        "the weight b differs",
    ]
    missing = write_run(tmp_path / "missing", {1: 0.5}, a=1.0)
    assert next(find_differences(whole, missing)).startswith(
        "loss of step 2 is 0.25 in the uninterrupted run and None"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "probe"], "There is nothing to resume"),
        (["--mode", "peft", "--adapter", "adalora"], "There is nothing to resume"),
        (["--mode", "full", "--output_dir", "x"], "--output_dir is not for verify-resume"),
        (["--mode", "full", "--resume_from_checkpoint=true"], "--resume_from_checkpoint is not for verify-resume"),
        (["--mod", "full"], "Unknown flag '--mod'. Did you mean '--mode'?"),
    ],
)
def test_what_cannot_be_verified_is_refused(words, message, capsys):
    assert cli.main(["verify-resume", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_difference_is_exit_code_1(monkeypatch, capsys):
    def fail(*args):
        raise ResumeDiffers("The resumed run is not the uninterrupted one: loss of step 4 is 1.0 and 2.0.")

    monkeypatch.setattr("hftl.preview.verify_resume.verify_resume", fail)
    assert cli.main(["verify-resume", "--mode", "full"]) == 1
    assert (
        capsys.readouterr().err
        == "hftl: The resumed run is not the uninterrupted one: loss of step 4 is 1.0 and 2.0.\n"
    )


@pytest.mark.slow
def test_a_killed_run_is_resumed_exactly(tmp_path, monkeypatch, capsys):
    """Three processes, one of which really kills itself."""
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    files = tiny.write_text_task(tmp_path)
    words = ["--train_file", f"{files}/train.csv", "--model_name_or_path", f"{files}/bert", "--use_cpu"]
    assert cli.main(["verify-resume", *words, "--mode", "peft", "--per_device_train_batch_size", "4"]) == 0
    assert "Killed after step 4 and resumed from the checkpoint of step 3: losses, gra" in capsys.readouterr().out
