"""A checkpoint counts when it is whole: whatever was cut short, damaged or swapped is passed over, and says so."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers

from hftl.config import parse_args
from hftl.errors import UserError
from hftl.training.checkpoints import (
    MANIFEST_FILE,
    clean,
    commit,
    find_damage,
    find_newest,
    list_checkpoints,
    read_manifest,
    rotate,
    supersede_later,
)
from hftl.training.run_folder import resolve_checkpoint
from tests.networks import build_network
from tests.training.test_trainer import build_rows, build_trainer

SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "optim": "adamw_torch"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer after two steps, and its folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = build_trainer(folder, "bert", build_network("bert"), build_rows("bert"), **SAVES)
    trainer.train()
    return trainer, folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the run folder, to be damaged."""
    return Path(shutil.copytree(trained[1], tmp_path / "run"))


def write_checkpoint(folder, step):
    """The smallest committed checkpoint."""
    staging = folder / f"_tmp-checkpoint-{step}" / f"checkpoint-{step}"
    staging.mkdir(parents=True)
    (staging / "weights").write_bytes(b"x" * step)
    commit(staging, folder / f"checkpoint-{step}", {"step": step})


def commit_again(checkpoint, **changes):
    """As if the run had written the files as they are now, with these entries of the manifest."""
    written = {"schema", "files", "sha256"}
    content = {name: value for name, value in read_manifest(checkpoint).items() if name not in written}
    staging = checkpoint.parent / f"_tmp-{checkpoint.name}" / checkpoint.name
    staging.parent.mkdir()
    checkpoint.rename(staging)
    (staging / MANIFEST_FILE).unlink()
    commit(staging, checkpoint, content | changes)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_checkpoint_counts_and_lists_its_files(folder):
    manifest = json.loads((folder / "checkpoint-2" / MANIFEST_FILE).read_text())
    assert find_damage(folder / "checkpoint-2") is None and manifest["step"] == 2
    expected = {
        "model.safetensors",
        "config.json",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    }
    assert manifest["files"].keys() == expected | {"training_args.json"}
    assert names(folder) == ["checkpoint-1", "checkpoint-2"]


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json",
         MANIFEST_FILE)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "one bit"])
def test_any_damage_to_any_file_is_seen_and_the_checkpoint_before_is_taken(folder, name, damage):
    path = folder / "checkpoint-2" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    changes = {"truncated": content[: len(content) // 2], "empty": b"", "one bit": content}
    path.unlink() if damage == "missing" else path.write_bytes(changes[damage])
    newest, reasons = find_newest(folder)
    assert newest == folder / "checkpoint-1"
    (reason,) = reasons
    assert reason.startswith(f"{folder / 'checkpoint-2'} does not count: ")
    assert name.removesuffix(".json") in reason


def test_what_only_looks_like_a_checkpoint_is_passed_over(folder, tmp_path):
    outside = Path(shutil.copytree(folder / "checkpoint-2", tmp_path / "elsewhere"))
    (folder / "checkpoint-5").symlink_to(outside, target_is_directory=True)
    (folder / "checkpoint-6").write_text("a file")
    (folder / "checkpoint-7").mkdir()
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-8")
    (folder / "checkpoint-9.tmp").mkdir()
    newest, reasons = find_newest(folder)
    assert newest == folder / "checkpoint-2"
    texts = ["it is that of step 2", "it has no manifest", "it is no folder", "it is a link to another place"]
    assert all(text in reason for text, reason in zip(texts, reasons, strict=True))


def test_a_link_or_a_file_that_was_added_does_not_count(folder):
    weights = folder / "checkpoint-2" / "model.safetensors"
    (folder / "checkpoint-2" / "adapter_model.safetensors").write_bytes(b"")
    assert find_damage(folder / "checkpoint-2") == "adapter_model.safetensors is not one of its files"
    (folder / "checkpoint-2" / "adapter_model.safetensors").unlink()
    weights.rename(folder / "weights")
    weights.symlink_to(folder / "weights")
    assert find_damage(folder / "checkpoint-2") == "model.safetensors is a link to another place"


def resolve(folder, named, *more):
    args = parse_args(["--mode", "full", "--dataset", "x", "--use_cpu", "--output_dir", str(folder),
                       "--resume_from_checkpoint", str(named), *more])  # fmt: skip
    resolve_checkpoint(args)
    return args.training.resume_from_checkpoint


@pytest.mark.parametrize("word", ["true", "last", "auto"])
def test_the_newest_that_counts_is_gone_on_with_and_what_is_passed_over_is_named(folder, word, caplog):
    (folder / "checkpoint-2" / "optimizer.pt").unlink()
    assert resolve(folder, word) == str(folder / "checkpoint-1")
    assert f"{folder / 'checkpoint-2'} does not count: optimizer.pt is missing." in caplog.text


def test_without_a_checkpoint_that_counts_every_reason_is_given(folder):
    for step in (1, 2):
        (folder / f"checkpoint-{step}" / "scheduler.pt").unlink()
    for word in ("true", "last"):
        with pytest.raises(
            UserError, match="no checkpoint.*checkpoint-2 does not count: sched.*checkpoint-1 does not"
        ):
            resolve(folder, word)
    assert resolve(folder, "auto") is None


def test_auto_says_that_it_starts_from_the_beginning_and_needs_a_folder(tmp_path, caplog):
    caplog.set_level("INFO", "hftl")
    assert resolve(tmp_path / "new", "auto") is None
    assert f"There is no checkpoint in {tmp_path / 'new'} yet" in caplog.text
    args = parse_args(["--mode", "full", "--dataset", "x", "--use_cpu", "--resume_from_checkpoint", "auto"])
    with pytest.raises(UserError, match="auto needs --output_dir"):
        resolve_checkpoint(args)


def test_a_word_that_is_no_folder_is_told_what_there_is(folder):
    with pytest.raises(UserError, match="--resume_from_checkpoint lsat.*Give the folder of a checkpoint, or true"):
        resolve(folder, "lsat")


def test_a_named_checkpoint_that_does_not_count_is_refused_unless_insisted_on(folder):
    (folder / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(
        UserError, match="does not count as a checkpoint: optimizer.pt is missing. Give another one, or "
    ):
        resolve(folder, folder / "checkpoint-2")
    assert resolve(folder, folder / "checkpoint-2", "--allow_change") == str(folder / "checkpoint-2")


def test_the_stock_trainer_reads_the_folder_and_without_any_pickled_argument(trained, tmp_path):
    _, folder = trained
    network, rows = build_network("bert"), build_rows("bert")
    args = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=8,
        optim="adamw_torch",
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer, state = transformers.Trainer(network, args, trained[0].data_collator, rows), None
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    state = trainer.optimizer.state_dict()["state"]
    assert trainer.state.global_step == 3 and all(int(entry["step"]) == 3 for entry in state.values())
    assert not list(folder.rglob("*.bin"))
    for path in [*folder.rglob("*.pt"), *folder.rglob("*.pth")]:
        with transformers.trainer_pt_utils.safe_globals() if path.suffix == ".pth" else torch.no_grad():
            torch.load(path, weights_only=True)


# --- while it is written -----------------------------------------------------------------------------------------

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def save_and_die(trainer, stage):
    """In a process of its own: save, and end as by SIGKILL before the write of that number; 0 when there is none."""

    def count(event, arguments):
        nonlocal stage
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in WRITES or is_write:
            stage -= 1
            if stage == 0:
                os._exit(9)

    child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(count)
            trainer._save_checkpoint(trainer.model, None)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on: fork beside threads
def test_a_kill_before_any_write_of_a_save_leaves_a_whole_checkpoint_and_no_half_one(trained, tmp_path):
    trainer, _ = trained
    before, number, seen = trainer.args.output_dir, 0, set()
    trainer.args.output_dir = str(tmp_path)
    try:
        write_checkpoint(tmp_path, 1)
        code = 9
        while code == 9:
            number += 1
            code = save_and_die(trainer, number)
            newest, reasons = find_newest(tmp_path)
            assert reasons == [] and newest.name in ("checkpoint-1", "checkpoint-2")
            seen.add(newest.name)
            clean(tmp_path)
            assert not list(tmp_path.glob("_tmp*"))
        assert code == 0 and number > 15 and seen == {"checkpoint-1", "checkpoint-2"}
        assert find_newest(tmp_path)[0].name == "checkpoint-2"
    finally:
        trainer.args.output_dir = before


@pytest.mark.parametrize("function", ["torch.save", "hftl.training.trainer.commit", "hftl.training.checkpoints.sync"])
def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_else(tmp_path, monkeypatch, function):
    trainer = build_trainer(tmp_path, "bert", build_network("bert"), build_rows("bert"), **SAVES)
    trainer.train()
    shutil.rmtree(tmp_path / "checkpoint-2")

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(function, fail)
    with pytest.raises(OSError, match="No space left"):
        trainer._save_checkpoint(trainer.model, None)
    assert names(tmp_path) == ["checkpoint-1"] and find_damage(tmp_path / "checkpoint-1") is None


# --- which are kept ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [(1, 1, [1, 4]), (1, 4, [4]), (1, None, [4]), (2, 1, [1, 4]), (3, 2, [2, 3, 4]), (None, None, [1, 2, 3, 4])],
)
def test_the_newest_and_the_best_are_never_deleted(tmp_path, limit, best, kept):
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step)
        os.utime(tmp_path / f"checkpoint-{step}", (10**9 - step, 10**9 - step))  # the clock was set back
    rotate(tmp_path, limit, best)
    assert [int(path.name[11:]) for path in list_checkpoints(tmp_path)] == kept
    assert names(tmp_path) == [f"checkpoint-{step}" for step in kept]


def test_training_keeps_its_newest_and_its_best_checkpoint(tmp_path):
    settings = SAVES | {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "max_steps": 4}
    settings |= {"save_total_limit": 1, "learning_rate": 0.3, "optim": "sgd"}  # so high that it gets worse
    trainer = build_trainer(tmp_path, "bert", build_network("bert"), build_rows("bert"), **settings)
    trainer.train()
    best = trainer.state.best_global_step
    assert best < 4
    assert names(tmp_path) == [f"checkpoint-{best}", "checkpoint-4"]
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / f"checkpoint-{best}")


def test_later_checkpoints_of_a_branch_that_was_left_do_not_mix_with_new_ones(tmp_path):
    for step in (2, 10, 4):
        write_checkpoint(tmp_path, step)
    assert supersede_later(tmp_path, 2) == ["superseded-checkpoint-4", "superseded-checkpoint-10"]
    assert find_newest(tmp_path)[0].name == "checkpoint-2"
    write_checkpoint(tmp_path, 10)
    assert supersede_later(tmp_path, 2) == ["superseded-checkpoint-10"]
    assert names(tmp_path) == ["checkpoint-2", "superseded-checkpoint-10", "superseded-checkpoint-4"]
