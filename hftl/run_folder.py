"""The folder of one run: where it is, that nothing in it is overwritten, and what it holds at the end."""

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from hftl.config import Arguments
from hftl.cost.ledger import Ledger
from hftl.errors import OutOfResources, TrainingDiverged, UserError
from hftl.records import RECORD_FILE, RunRecord, redact
from hftl.resuming import lock
from hftl.resuming.checkpoints import (
    NAME,
    STAGING,
    check_checkpoint_folder,
    clean,
    find_newest,
    supersede_later,
    sync,
)
from hftl.speed import add_speed
from hftl.trainer import FineTuningTrainer, is_out_of_memory

logger = logging.getLogger(__name__)

BYTES_PER_TRAINED_PARAMETER = 12  # a checkpoint: fp32 weight and two AdamW moments

# What torch says of a worker that did not end by itself; an exception in one comes as that exception.
KILLED_WORKER = re.compile(r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (is killed by signal|exited unexpectedly)")

# A process that is killed says nothing itself: the next one does.
KILLED = (
    "%s: the run before was killed. %s, had no time to say why. Most often the system was short of memory (`dmesg` "
    'says "Out of memory", a container OOMKilled or code 137): give --auto_batch true and fewer '
    "--dataloader_num_workers. Else a scheduler or a person ended it."
)

# safetensors and arrow give the text of the system without its number, torch.save neither of them.
FULL_DISK = re.compile(
    "|".join(
        [re.escape(os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
        + [r"inline_container\.cc.*(unexpected pos|PytorchStreamWriter)", "basic_ios::clear: iostream error"]
    )
)


def open_run_folder(args: Arguments, network: torch.nn.Module) -> Path:
    """Create the run's folder; without `--output_dir` a new one under `runs/`, named after data, mode and seed.

    Raises:
        UserError: the disk has no room for the checkpoints asked for.
    """
    training = args.training
    choice = [_choose_folder(args) if training.process_index == 0 else None]
    if training.world_size > 1:
        broadcast_object_list(choice)
    folder = Path(choice[0])
    training.output_dir = str(folder)
    if training.process_index == 0:
        _check_disk(folder, training, network)
        folder.mkdir(parents=True, exist_ok=True)
        lock.take(folder)
        _make_room(folder, find_checkpoint(training))
    return folder


def _make_room(folder: Path, checkpoint: str | None) -> None:
    """Clear away what a killed run left half done, and the names that the resumed one will give again."""
    clean(folder)
    if checkpoint is not None and _is_inside(checkpoint, folder) and (match := NAME.fullmatch(Path(checkpoint).name)):
        for name in supersede_later(folder, int(match[1])):
            logger.warning("%s is kept as %s: the run goes on from step %s.", name[11:], folder / name, match[1])


def _choose_folder(args: Arguments) -> str:
    if "output_dir" in args.given:
        return args.training.output_dir
    source = Path((args.data.dataset or args.data.train_file or "data").replace("bundled:", "")).stem
    name = Path("runs") / f"{source}-{args.model.mode}-seed{args.training.seed}"
    number, folder = 1, name
    while folder.exists():
        number += 1
        folder = name.with_name(f"{name.name}-{number}")
    return str(folder)


def check_run_folder(training: Any, *, is_auto: bool = False) -> None:
    """Look before anything is computed: is `--output_dir` free, or does the run go on in it?

    Args:
        training: whose checkpoint is resolved.
        is_auto: the folder may be that of a run that was killed before it had a checkpoint.

    Raises:
        UserError: the folder is a file, holds files of something else, or another process is at work in it.
    """
    folder, checkpoint = Path(training.output_dir), find_checkpoint(training)
    if folder.is_file():
        raise UserError(f"--output_dir {folder} is a file.")
    if not folder.is_dir():
        return
    lock.check_free(folder)
    killed = lock.find_killed(folder) if training.process_index == 0 else None
    if killed is not None:
        logger.warning(KILLED, folder, killed[0].upper() + killed[1:])
    if not any(path.name != lock.LOCK_FILE for path in folder.iterdir()):
        return  # at most the lock of a run that was killed
    if checkpoint is None and is_auto and (folder / "config.yaml").is_file() and not _is_completed(folder):
        return  # of a run that was killed before its first checkpoint
    if checkpoint is None or not _is_inside(checkpoint, folder):
        raise UserError(
            f"{folder} already holds files. Give a new --output_dir, or --resume_from_checkpoint true to go on "
            "from the newest checkpoint in it."
        )


def _is_completed(folder: Path) -> bool:
    return (folder / RECORD_FILE).is_file() and RunRecord.read(folder).status == "completed"


def _is_inside(checkpoint: str, folder: Path) -> bool:
    return Path(checkpoint).absolute().parent == folder.absolute()


def find_checkpoint(training: Any) -> str | None:
    """The checkpoint folder that this run goes on from, once `resolve_checkpoint` has decided."""
    return training.resume_from_checkpoint


def resolve_checkpoint(args: Arguments) -> None:
    """Turn `--resume_from_checkpoint` into a folder whose files were checked, or None, for all processes alike.

    A path means that checkpoint; `true` or `last` the newest of the run's own that counts; `auto` the same, or a start
    from the beginning where there is none, so that a scheduler may give the same command each time.

    Raises:
        UserError: there is none, or the one named does not count.
    """
    training, answer = args.training, [None, None]
    if training.process_index == 0:
        try:
            answer[0] = _choose_checkpoint(args)
        except UserError as error:
            answer[1] = str(error)
    if training.world_size > 1:
        broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    training.resume_from_checkpoint = answer[0]


def _choose_checkpoint(args: Arguments) -> str | None:
    checkpoint = _find_checkpoint(args)
    if checkpoint is not None and not args.model.allow_change and _holds_weights_alone(Path(checkpoint)):
        raise UserError(
            f"{checkpoint} holds the weights alone (--save_only_model): without the optimizer the run cannot go on as "
            "it would have. Start again without that flag, or insist with --allow_change true."
        )
    return checkpoint


def _holds_weights_alone(checkpoint: Path) -> bool:
    file = checkpoint / "training_args.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("save_only_model", False)


def _find_checkpoint(args: Arguments) -> str | None:
    named, folder = args.training.resume_from_checkpoint, Path(args.training.output_dir)
    if named is None or named.lower() == "false":
        return None
    if named.lower() not in ("true", "last", "auto"):
        if not Path(named).is_dir():
            raise UserError(
                f"There is no checkpoint in {folder} to resume from (--resume_from_checkpoint {named}). "
                "Give the folder of a checkpoint, or true, last or auto."
            )
        if not args.model.allow_change:
            check_checkpoint_folder(Path(named))
        return named
    newest, passed_over = find_newest(folder)
    for sentence in passed_over:
        logger.warning("%s", sentence)
    if newest is not None:
        logger.info("The run goes on from %s.", newest)
        return str(newest)
    reasons = " ".join(["", *passed_over])
    if named.lower() == "auto" and "output_dir" not in args.given:
        raise UserError("--resume_from_checkpoint auto needs --output_dir: where should the checkpoints be?")
    if named.lower() != "auto":
        raise UserError(
            f"There is no checkpoint in {folder} to resume from (--resume_from_checkpoint {named}).{reasons}"
        )
    logger.info("There is no checkpoint in %s yet: the run starts from the beginning.", folder)
    return None


def _check_disk(folder: Path, training: Any, network: torch.nn.Module) -> None:
    """Room for the model at the end, and for the checkpoints kept with one more being written."""
    parameters = list(network.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    needed = sum(p.numel() * p.element_size() for p in parameters)
    if training.save_strategy != "no":
        kept = training.save_total_limit or 3
        needed += (kept + 1) * trained * BYTES_PER_TRAINED_PARAMETER
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"The checkpoints need about {needed / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free. "
            "Free some, lower --save_total_limit, or give --save_strategy no."
        )


@contextmanager
def recorded(record: RunRecord, folder: Path, ledger: Ledger, trainer: Any) -> Iterator[None]:
    """Write `run.json` whatever happens inside, with how it ended and what was spent until then."""
    try:
        yield
        record.status = "completed"
    except BaseException as error:
        record.status = _status(error)
        record.error = redact(f"{type(error).__name__}: {error}")
        raise
    finally:
        record.cost |= trainer.meter.summary(trainer.args.world_size)
        record.cost |= {"num_steps": trainer.state.global_step, "artifact_bytes": measure_weights(folder)}
        record.cost |= ledger.seconds()
        if isinstance(trainer, FineTuningTrainer):  # a baseline trains nothing
            add_speed(record, trainer)
        if trainer.args.should_save:
            record.write(folder)


def measure_weights(folder: Path) -> int:
    """Bytes of the weights in a run folder, those of its checkpoints not counted."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _status(error: BaseException) -> str:
    if isinstance(error, TrainingDiverged):
        return "diverged"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


def save_artifacts(trainer: Any, processor: Any, folder: Path, revision: str | None) -> None:
    """The model or adapter, its configuration with the label names, and the processor: plain library files.

    Args:
        trainer: after training.
        processor: tokenizer or image processor.
        folder: of the run.
        revision: commit of the base; peft loads an adapter's base at it.
    """
    network = trainer.model
    if trainer.use_cache is not None:  # as it was: Trainer switches it off for training, and whoever loads this would
        network.config.use_cache = trainer.use_cache  # generate without it
    for adapter in getattr(network, "peft_config", {}).values():
        adapter.revision = revision
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathers what FSDP or ZeRO-3 have split
    if trainer.args.should_save:
        staging = folder / f"{STAGING}model"
        shutil.rmtree(staging, ignore_errors=True)
        network.save_pretrained(staging, state_dict=weights)
        network.config.save_pretrained(staging)
        processor.save_pretrained(staging)
        publish_files(staging, folder)


def publish_files(staging: Path, folder: Path) -> None:
    """Move whole files to their place: what names the weights comes last, so that half a model never loads.

    Until `run.json` says that the run is complete nothing of it counts.
    """
    files = sorted((path for path in staging.rglob("*") if path.is_file()), key=_weights_last)
    for path in files:
        sync(path)
    for path in files:
        target = folder / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    sync(folder)
    shutil.rmtree(staging)


def _weights_last(path: Path) -> tuple[int, str]:
    """Shards mean nothing without their index, and nothing else means anything without weights."""
    suffixes = "".join(path.suffixes)
    return (2 if suffixes.endswith(".index.json") else 1 if path.suffix == ".safetensors" else 0), path.name


@contextmanager
def explained_resources() -> Iterator[None]:
    """Turn running out of memory or disk into one error that says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise OutOfResources(
                f"Out of memory: {error}. Checkpoints saved before are intact. Give --auto_batch true (smaller "
                "micro-batches, the same result), then --gradient_checkpointing true, shorter --max_length or smaller "
                "--image_size, and at last fewer trained weights: --mode peft, with --quantization nf4 on a GPU."
            ) from error
        if KILLED_WORKER.search(str(error)):
            raise OutOfResources(
                f"A data loader process was ended from outside: {error} Most often that is the system, short of "
                "memory. Checkpoints saved before are intact: go on with --resume_from_checkpoint true, and fewer "
                "--dataloader_num_workers (0: none)."
            ) from error
        if FULL_DISK.search(str(error)):
            raise OutOfResources(
                f"The disk is full: {error}. What was saved before is intact. If there is room, it is a quota "
                "(`quota -s`) or a limit of file sizes (`ulimit -f`)."
            ) from error
        raise
