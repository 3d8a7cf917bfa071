"""How many rows fit into memory at once? Found by real steps, after which the run is as if they had not been.

A step keeps its rows: what does not fit at once is accumulated, and the loss is a sum over the step, so the result is
that of the batch asked for. Dropout is drawn for each micro-batch, as it is for any other division of a step.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather, release_memory
from torch import nn
from transformers import Trainer, TrainingArguments

from hftl.config import Arguments
from hftl.cost.headroom import measure_headroom
from hftl.cost.memory import PeakMemory
from hftl.data.labels import IGNORED
from hftl.data.sampling import SeededRows, sort_by_length
from hftl.errors import OutOfResources, UserError
from hftl.models.modes import find_mode, recompute_activations
from hftl.runtime.resources import is_out_of_memory
from hftl.tasks.base import Task
from hftl.training.checkpoints import read_manifest
from hftl.training.precision import choose_autocast, computing_in
from hftl.training.run_folder import find_checkpoint

logger = logging.getLogger(__name__)

MARGIN = 0.9  # of the memory that is free: fragments, and what other processes take meanwhile
BatchNorm = nn.modules.batchnorm._BatchNorm


class Probe(NamedTuple):
    """One training step that can be tried at any size.

    Attributes:
        step: runs it on so many of the longest rows.
        sizes: micro-batches that divide the rows of a step, ascending.
        device: whose memory counts.
        reserve: bytes that training takes and the probe does not.
    """

    step: Callable[[int], None]
    sizes: list[int]
    device: torch.device
    reserve: int = 0


def check_auto_batch(args: Arguments) -> None:
    """Refuse `--auto_batch` where it would measure something else than what is trained."""
    if not args.model.auto_batch:
        return
    if not find_mode(args.model.mode).is_trained:
        raise UserError(f"--auto_batch is for training, and --mode {args.model.mode} has no training steps.")
    if args.training.fsdp or args.training.deepspeed or _is_split():
        raise UserError(
            "--auto_batch tries the whole network in each process, which FSDP and DeepSpeed split among them. "
            "Choose --per_device_train_batch_size and --gradient_accumulation_steps."
        )


def fit_batch(
    args: Arguments, network: nn.Module, rows: datasets.Dataset, collator: Callable, task: Task, problem_type: str
) -> dict[str, Any]:
    """Set the micro-batch and the accumulation, and say what was found; empty without `--auto_batch`.

    A run that goes on takes the division that was found for its checkpoint. One that was chosen by hand may be why the
    run has ended: it is tried, and divided further if need be.

    Args:
        args: whose `training` is changed.
        network: as it is trained.
        rows: prepared rows of train.
        collator: rows -> a batch.
        task: whose loss is minimised.
        problem_type: of the `LabelInfo`.

    Raises:
        OutOfResources: not even one row fits.
    """
    if not args.model.auto_batch:
        return {}
    training = args.training
    share = training.per_device_train_batch_size * training.gradient_accumulation_steps
    stored, is_found = _read_division(find_checkpoint(training), share)
    if is_found:
        return _divide(training, share, stored) | {"source": "checkpoint"}
    if any(isinstance(module, BatchNorm) and module.track_running_stats for module in network.modules()):
        logger.warning("--auto_batch: the network has BatchNorm, which sees micro-batches: it may train otherwise.")
    started = time.perf_counter()
    if next(network.parameters()).device.type != training.device.type:  # several processes: Trainer would move it
        network.to(training.device)
    sizes = [size for size in range(1, min(stored, len(rows)) + 1) if share % size == 0]
    sum_loss = partial(task.sum_loss, problem_type=problem_type, smoothing=training.label_smoothing_factor)
    with _untouched(network), _as_in_training(network, training):
        step = _build_step(args, network, rows, collator, sum_loss)
        reserve = _count_gradient_bytes(network) if training.world_size > 1 else 0
        found = search(Probe(step, sizes, training.device, reserve))
    release_memory()
    size = int(gather(torch.tensor([found["micro_batch"]], device=training.device)).min())
    if size == 0:
        raise OutOfResources(
            "Out of memory: not even one row of the longest fits. Give --gradient_checkpointing true, shorter "
            "--max_length or smaller --image_size, or fewer trained weights: --mode peft, with --quantization nf4 on "
            "a GPU."
        )
    seconds = time.perf_counter() - started
    found = found | _divide(training, share, size) | {"source": "probe", "probe_seconds": round(seconds, 3)}
    logger.info("--auto_batch: %s rows at once, accumulated %s times.", size, training.gradient_accumulation_steps)
    if find_checkpoint(training) and size < stored:
        logger.warning("The run took %s rows at once before: the same steps from here on within rounding.", stored)
    return found


def search(probe: Probe) -> dict[str, Any]:
    """Try the sizes from small to large until one does not fit.

    On a CPU too large a step would end the process, so a size is tried only if it must fit by what the smaller ones
    took; on an accelerator it is tried, and fits if it left the margin.

    Returns:
        `micro_batch` (0: none fits), `peak_memory_bytes` of its step, and `memory_limit_bytes`.
    """
    before = _measure_peak(lambda: None)
    limit = before + int(MARGIN * measure_headroom(probe.device)) - probe.reserve
    best, peaks = 0, {0: before}
    for size in probe.sizes:
        if probe.device.type == "cpu" and _predict(peaks, size) > limit:
            break
        try:
            peak = _measure_peak(lambda size=size: probe.step(size))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            peak = None  # the error holds what the step had made: freed with it, below
        release_memory()
        if peak is None or peak > limit:
            break
        best, peaks[size] = size, max(peak, *peaks.values())
    return {"micro_batch": best, "peak_memory_bytes": peaks[best], "memory_limit_bytes": limit}


def _predict(peaks: dict[int, int], size: int) -> float:
    """The peak of a larger size on the line through the two largest that were tried; nothing is known of the first."""
    if len(peaks) < 2:
        return 0.0
    (small, low), (large, high) = list(peaks.items())[-2:]
    return high + (high - low) / (large - small) * (size - large)


def _measure_peak(function: Callable[[], None]) -> int:
    with PeakMemory() as memory:
        function()
    return memory.describe()["peak_memory_bytes"]


def _build_step(
    args: Arguments, network: nn.Module, rows: datasets.Dataset, collator: Callable, sum_loss: Callable
) -> Callable[[int], None]:
    """A whole training step on so many of the longest rows, with an optimizer that is thrown away."""
    training = args.training
    longest, _ = sort_by_length(rows)
    longest = SeededRows(longest, training.seed)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(training, network)
    optimizer = kind([parameter for parameter in network.parameters() if parameter.requires_grad], **settings)
    chosen = choose_autocast(args, network)  # on a CPU; on a GPU Trainer's own
    dtype = torch.float16 if training.fp16 else torch.bfloat16
    is_mixed = training.fp16 or training.bf16 or chosen is not None

    def step(size: int) -> None:
        batch = collator(longest.__getitems__([(0, row) for row in range(size)]))
        batch = {name: value.to(training.device) for name, value in batch.items()}
        labels = batch.pop("labels")
        try:
            with computing_in(training.device.type, dtype) if is_mixed else nullcontext():
                loss = sum_loss(network(**batch), labels) / (labels != IGNORED).sum()
            loss.backward()
            optimizer.step()
        finally:
            optimizer.zero_grad(set_to_none=True)

    return step


@contextmanager
def _untouched(network: nn.Module) -> Iterator[None]:
    """Give weights, buffers and every source of chance back as they were."""
    tensors = [p for p in network.parameters() if p.requires_grad] + list(network.buffers())
    before = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _as_in_training(network: nn.Module, training: TrainingArguments) -> Iterator[None]:
    """With dropout, and with the activations that training keeps; Trainer sets both again."""
    modes = {module: module.training for module in network.modules()}
    network.train()
    if training.gradient_checkpointing:
        recompute_activations(network, training.gradient_checkpointing_kwargs)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _count_gradient_bytes(network: nn.Module) -> int:
    """Of the buckets in which processes exchange gradients."""
    return sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)


def _divide(training: TrainingArguments, share: int, size: int) -> dict[str, int]:
    training.per_device_train_batch_size, training.gradient_accumulation_steps = size, share // size
    return {"micro_batch": size, "gradient_accumulation_steps": share // size}


def _read_division(checkpoint: str | None, share: int) -> tuple[int, bool]:
    """The micro-batch of the run that is gone on with, where its steps hold as many rows, and whether it was found."""
    manifest = read_manifest(Path(checkpoint)) if checkpoint else {}
    size = manifest.get("per_device_train_batch_size")
    if not size or size * manifest.get("gradient_accumulation_steps", 0) != share:
        return share, False
    return size, manifest.get("auto_batch", False)


def _is_split() -> bool:
    """Whether `accelerate launch` was told to; Trainer's own flags are in the arguments."""
    return PartialState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
