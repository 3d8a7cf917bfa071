"""Going on from a checkpoint: with the same adapter to the same result, with another one not at all."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hftl.config import parse_args
from hftl.errors import UserError
from hftl.training import resume_check as identity
from hftl.training.run import run
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ADVICE = "Give the settings of the checkpoint, or leave --resume_from_checkpoint out to start again"
CHECKPOINTS = ("--save_strategy", "steps", "--save_steps", "2")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def train(files):
    """Function: train four steps into a folder."""

    def start(folder, mode, *more):
        words = ["--train_file", f"{files}/train.csv", "--model_name_or_path", f"{files}/bert", "--use_cpu"]
        words += ["--max_steps", "4", "--output_dir", str(folder), "--head_init", "random"]
        words += [] if mode != "peft" or "--lora_r" in more else ["--lora_r", "4"]
        run(parse_args([*words, *map(str, more)], mode=mode))
        return Path(folder)

    return start


@pytest.fixture(scope="module")
def checkpoints(train, tmp_path_factory):
    """Function: mode and flags -> a checkpoint after two of four steps, each made once."""
    made = {}

    def make(mode, *more):
        if (mode, more) not in made:
            made[mode, more] = train(tmp_path_factory.mktemp("runs") / "run", mode, *CHECKPOINTS, *more)
        return made[mode, more] / "checkpoint-2"

    return make


@pytest.fixture
def refused(train, tmp_path):
    """Function: the message with which going on is refused; nothing is written."""

    def start(checkpoint, mode, *more):
        with pytest.raises(UserError) as caught:
            train(tmp_path / "out", mode, "--resume_from_checkpoint", checkpoint, *more)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    return start


@pytest.mark.parametrize("adapter", ["lora", "dora", "pissa", "eva", "ia3", "prompt", "bitfit"])
def test_going_on_with_the_same_adapter_ends_where_the_whole_run_does(train, checkpoints, tmp_path, adapter):
    checkpoint = checkpoints("peft", "--adapter", adapter)
    folder = train(tmp_path / "out", "peft", "--adapter", adapter, "--resume_from_checkpoint", checkpoint)
    (name,) = (path.name for path in checkpoint.parent.glob("*.safetensors"))
    expected, found = load_file(checkpoint.parent / name), load_file(folder / name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lora_r", "8"), r"r \(--lora_r\): 4 in the checkpoint, 8 here"),
        (("--lora_alpha", "64"), "lora_alpha: 16 in the checkpoint, 64 here"),
        (("--lora_dropout", "0.5"), "lora_dropout: 0.0 in the checkpoint, 0.5 here"),
        (("--target_modules", "query", "key"), r"target_modules: only in the checkpoint .*and 6 more, only here none"),
        (("--adapter_config", '{"use_rslora": true}'), "use_rslora: False in the checkpoint, True here"),
        (("--adapter_config", '{"init_lora_weights": "pissa"}'), "init_lora_weights: True in the .*, 'pissa' here"),
        (("--lora_r", "8", "--lora_alpha", "8"), "lora_alpha: 16 in the checkpoint, 8 here; r "),
    ],
)  # fmt: skip
def test_other_settings_of_the_adapter_are_refused_with_both_values(refused, checkpoints, words, message):
    found = refused(checkpoints("peft"), "peft", *words)
    assert re.search(f"^The adapter in .*checkpoint-2 is another one than this run has. {message}", found), found
    assert ADVICE in found


def test_the_ranks_of_eva_are_not_told_where_a_flag_is(refused, checkpoints):
    found = refused(checkpoints("peft", "--adapter", "eva"), "peft", "--adapter", "eva", "--lora_r", "8")
    assert f"than this run has. r (--lora_r): 4 in the checkpoint, 8 here. {ADVICE}" in found


def test_another_base_is_refused_and_a_moved_one_is_not(refused, checkpoints, train, files, tmp_path):
    checkpoint = Path(shutil.copytree(checkpoints("peft"), tmp_path / "checkpoint-2"))
    file = checkpoint / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": "/elsewhere/roberta"}))
    assert "base_model_name_or_path: 'roberta' in the checkpoint, 'bert' here" in refused(
        checkpoint, "peft", "--allow_change"
    )
    file.write_text(json.dumps(config | {"base_model_name_or_path": "/elsewhere/bert"}))
    train(tmp_path / "out", "peft", "--resume_from_checkpoint", checkpoint, "--allow_change")


@pytest.mark.parametrize(
    ("was", "mode", "words", "message"),
    [
        (("peft",), "peft", ("--adapter", "dora"), "--adapter lora, but this one has dora"),
        (("peft",), "peft", ("--adapter", "bitfit"), "--adapter lora, but this one has bitfit"),
        (("peft",), "full", (), "--mode peft, but this one has full"),
        (("peft",), "scratch", (), "--mode peft, but this one has scratch"),
        (("full",), "peft", (), "--mode full, but this one has peft"),
        (("full",), "scratch", (), "--mode full, but this one has scratch"),
        (("full",), "full", ("--freeze_layers", "1"), "--freeze_layers 0, but this one has 1"),
        (("peft", "--adapter", "bitfit"), "full", (), "--mode peft, but this one has full"),
    ],
)
def test_a_run_of_another_kind_is_refused(refused, checkpoints, was, mode, words, message):
    found = refused(checkpoints(*was), mode, *words)
    assert re.search(f"checkpoint-2 is of a run with {message}. {ADVICE}", found), found


@pytest.mark.parametrize(
    ("was", "mode", "words", "message"),
    [
        (("peft",), "peft", ("--adapter", "ia3"), "peft_type: 'LORA' in the checkpoint, 'IA3' here. Give"),
        (
            ("peft",),
            "peft",
            ("--adapter", "bitfit"),
            "holds an adapter, but this run is BitFit, which is saved as a who",
        ),
        (("peft",), "full", (), "holds an adapter, but this run is mode full, a whole network"),
        (("full",), "peft", (), "holds a whole network, but this run trains LoRA alone"),
    ],
)
def test_a_checkpoint_without_its_run_is_told_by_its_files(refused, checkpoints, tmp_path, was, mode, words, message):
    checkpoint = shutil.copytree(checkpoints(*was), tmp_path / "alone" / "checkpoint-2")
    found = refused(checkpoint, mode, *words)
    assert re.search(message, found), found


def test_a_probe_has_nothing_to_resume(refused, checkpoints):
    assert "there is nothing to resume" in refused(checkpoints("peft"), "probe", "--head_init", "probe")


def test_adalora_cannot_go_back_to_a_checkpoint(refused, train, checkpoints, tmp_path):
    """peft 0.21 saves fewer ranks than it trains: loading them back is a size mismatch, even at the very end."""
    message = "AdaLoRA cannot be loaded back from a checkpoint, which holds only the ranks that are left"
    checkpoint = checkpoints("peft", "--adapter", "adalora")
    assert f"--resume_from_checkpoint: {message}" in refused(checkpoint, "peft", "--adapter", "adalora")
    best = ("--load_best_model_at_end", "--eval_strategy", "steps", "--eval_steps", "2")
    with pytest.raises(UserError, match=f"--load_best_model_at_end: {message}"):
        train(tmp_path / "best", "peft", "--adapter", "adalora", *best, *CHECKPOINTS)


def test_a_kind_is_refused_before_data_or_weights_are_read(checkpoints, tmp_path):
    words = ["--train_file", "absent.csv", "--model_name_or_path", "absent", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="is of a run with --mode peft, but this one has full"):
        run(parse_args([*words, "--resume_from_checkpoint", str(checkpoints("peft"))], mode="full"))


def test_a_setting_that_was_renamed_is_the_same():
    """transformers 5.23 renames gradient_checkpointing: a run of before goes on with the same words."""
    same = {"world_size": 1, "label_names": [], "data": {}, "model": {}, **dict.fromkeys(identity.DIVISION, 1)}
    old, new = ({"settings": {f"{kind}_checkpointing": True}} | same for kind in ("gradient", "activation"))
    assert not identity._list_differences(old, new) and not identity._list_differences(new, old)
    (line,) = identity._list_differences({"settings": {}} | same, new)
    assert line.startswith("gradient_checkpointing")
