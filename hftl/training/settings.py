"""Do the settings of a run go together, and what does it take where the user left something open?"""

import logging
import math
import os
import shutil
import sys
from typing import Any

import transformers
from torch import nn

from hftl.config import Arguments
from hftl.config.training_flags import OF_STEPS, check_values
from hftl.data.labels import REGRESSION
from hftl.errors import UserError, unknown_name
from hftl.models.adapters import adapter_of
from hftl.models.load import read_config
from hftl.models.modes import BATCH_SIZE, MODES, Mode, describe_schedule, find_mode
from hftl.models.quantization import check_quantization
from hftl.run_record import count_cores
from hftl.tasks import TASKS, scores_of
from hftl.tasks.base import Task
from hftl.training.auto_batch_size import check_auto_batch
from hftl.training.resume_check import check_checkpoint
from hftl.training.run_folder import check_run_folder, resolve_checkpoint
from hftl.training.tools import check_tools

logger = logging.getLogger(__name__)

LOADER_WORKERS = {"image": 8, "text": 2, "language": 2}  # on CUDA: an image is augmented, a text only padded
UNTRAINED = tuple(name for name, mode in MODES.items() if not mode.is_trained)
OF_ADAPTERS = ("adapter", "adapter_config", "lora_r", "lora_alpha", "lora_dropout", "target_modules")
OF_ADAPTERS += ("num_virtual_tokens",)
CPU_EVAL_ROWS = 32  # a pass: cores are busy with fewer rows than a GPU, and fewer of unlike lengths are padded
SHARED_MEMORY_BYTES = 2**31  # 8 workers with two batches each of 128 images of 224 px are 1.2 GB


def check_arguments(args: Arguments) -> None:
    """Refuse what would fail, or silently be ignored, later."""
    check_values(args.given)
    check_tools(args.training, args.given)
    if not args.model.model_name_or_path:
        raise UserError("Give --model_name_or_path: a Hub id, a folder, or bundled:minilm-l6.")
    if args.model.config_overrides and args.model.mode != "scratch":
        raise UserError("--config_overrides changes the network, so it works with --mode scratch only.")
    check_quantization(args.model)
    if args.data.tokenizer_vocab_size and args.model.mode != "scratch":
        raise UserError(
            "--tokenizer_vocab_size makes other tokens than the checkpoint knows; it needs --mode scratch."
        )
    _check_task_flags(args)
    is_weighted = args.data.class_weights != "none" or args.training.label_smoothing_factor
    if is_weighted and args.model.mode in UNTRAINED:
        flags = "--class_weights and --label_smoothing_factor"
        raise UserError(f"{flags} change the loss of training, and --mode {args.model.mode} has none.")
    if args.model.freeze_layers and args.model.mode != "full":
        raise UserError("--freeze_layers is for --mode full: the other modes freeze all of the body, or nothing.")
    if args.model.head_init == "random" and args.model.mode == "probe":
        raise UserError("--mode probe is a head fitted on features; --head_init random does not apply to it.")
    if args.model.dtype != "float32" and args.model.mode in ("full", "scratch"):
        raise UserError(
            f"--dtype {args.model.dtype} is for weights that stay frozen (peft, probe). "
            "For mixed precision with float32 weights give --bf16."
        )
    if args.training.train_sampling_strategy == "batch_rebalance":
        raise UserError("--train_sampling_strategy batch_rebalance is not available; group_by_length is.")
    if args.training.n_gpu > 1:
        raise UserError(
            f"{args.training.n_gpu} GPUs are visible to one process. Start one process each, with `accelerate launch` "
            "or --accelerate_config accelerate_configs/multi_gpu.yaml, or show one with CUDA_VISIBLE_DEVICES=0."
        )
    if args.model.early_stopping_patience and not args.training.load_best_model_at_end:
        raise UserError(
            "--early_stopping_patience keeps the best of several evaluations: add --load_best_model_at_end "
            "--eval_strategy steps --eval_steps 0.1 --save_strategy steps --save_steps 0.1."
        )
    if args.training.auto_find_batch_size:
        raise UserError(
            "--auto_find_batch_size restarts with already trained weights (transformers 5.23). "
            "Give --auto_batch true, or choose --per_device_train_batch_size and --gradient_accumulation_steps."
        )
    check_auto_batch(args)
    if args.training.device.type == "cpu" and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        logger.warning("FSDP splits nothing on a CPU: accelerate makes it plain data parallelism, whole copies each.")
    is_auto = (args.training.resume_from_checkpoint or "").lower() == "auto"
    resolve_checkpoint(args)
    if "output_dir" in args.given:
        check_run_folder(args.training, is_auto=is_auto)
    check_checkpoint(args)


def warn_of_unread(args: Arguments) -> None:
    """Name what was given and is not read in this mode; a file of settings may serve several modes."""
    mode, kind = args.model.mode, MODES.get(args.model.mode)
    unread = [] if kind is not None and kind.is_trained else [name for name in OF_STEPS if name in args.given]
    if unread:
        names = ", ".join(f"--{name}" for name in unread)
        logger.warning("Not read: %s. --mode %s makes no steps of training.", names, mode)
    if mode != "peft" and (unread := [name for name in OF_ADAPTERS if name in args.given]):
        logger.warning("Not read: %s. --mode %s has no adapter; peft has.", ", ".join(f"--{n}" for n in unread), mode)


def check_label_settings(args: Arguments, problem_type: str) -> None:
    """What can be refused as soon as it is known what the labels are."""
    check_best_metric(args, problem_type)
    if args.training.label_smoothing_factor and problem_type == REGRESSION:  # there are no other classes to mix in
        raise UserError(
            f"--label_smoothing_factor is for classes, and these labels are numbers ({REGRESSION}). Leave it out."
        )


def check_best_metric(args: Arguments, problem_type: str) -> None:
    """The metric that chooses the best checkpoint must be one of the task's, and has its direction.

    The stock default takes every name that does not end in "loss" for one where more is better, such as `mse`.

    Raises:
        UserError: the task has no such metric.
    """
    metric = (args.training.metric_for_best_model or "loss").removeprefix("eval_")
    scores = {name: score for name, score in scores_of(problem_type).items() if not score.is_written}
    if metric not in {"loss", *scores}:
        raise unknown_name("metric in --metric_for_best_model:", metric, ["loss", *scores])
    is_greater_better = metric != "loss" and scores[metric].greater_is_better
    given = args.given.get("greater_is_better")
    if given not in (None, is_greater_better):
        raise UserError(
            f"--greater_is_better is {str(given).lower()}, but of {metric} {'more' if is_greater_better else 'less'} "
            "is better: the worst checkpoint would be kept. Leave it out."
        )
    if args.training.metric_for_best_model is not None:
        args.training.greater_is_better = is_greater_better


def _check_task_flags(args: Arguments) -> None:
    """A flag that only another task reads would be ignored."""
    known = {flag for task in TASKS.values() for flag in task.flags}
    for flag in sorted(known & set(args.given) - set(TASKS[args.data.task].flags)):
        fitting = [name for name, task in TASKS.items() if flag in task.flags]
        raise UserError(f"--{flag} is for --task {', '.join(fitting)}; this is {args.data.task}.")


def check_model(args: Arguments, task: Task) -> None:
    """Find a wrong name, or an adapter that this network cannot have, before data or weights are read."""
    mode = find_mode(args.model.mode)
    if args.model.mode not in task.modes:
        raise UserError(f"--mode {args.model.mode} does not fit {task.name}; what does: {', '.join(task.modes)}.")
    mode.check(args.model, read_config(args.model, task), task)


def check_training(args: Arguments, network: nn.Module, task: Task, num_rows: int) -> None:
    """Refuse what this network cannot do, and a training without a step.

    Args:
        args: of the run, with its defaults set.
        network: that is to be trained.
        task: that it is trained for.
        num_rows: of train.

    Raises:
        UserError: names the flag.
    """
    if find_mode(args.model.mode).is_trained:
        _check_network(args, network, task)
        _check_steps(args.training, num_rows)


def _check_network(args: Arguments, network: nn.Module, task: Task) -> None:
    training, name = args.training, args.model.model_name_or_path
    if training.gradient_checkpointing and not getattr(network, "supports_gradient_checkpointing", False):
        raise UserError(
            f"--gradient_checkpointing: {name} ({network.config.model_type}) cannot compute activations again. Leave "
            "it out, and give --auto_batch true to save memory."
        )
    if training.neftune_noise_alpha is not None and task.modality == "image":
        raise UserError("--neftune_noise_alpha is noise on the embeddings of words; images have none. Leave it out.")
    if args.given.get("train_sampling_strategy") == "group_by_length" and task.modality == "image":
        raise UserError("--train_sampling_strategy group_by_length is for texts; images have no length. Leave it out.")


def _check_steps(training: transformers.TrainingArguments, num_rows: int) -> None:
    """No step has as many rows as it would need, or none is ever evaluated."""
    size = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    if training.dataloader_drop_last and num_rows < size:
        raise UserError(
            f"--dataloader_drop_last leaves out a step with less than {size:,} rows (batch x accumulation x "
            f"processes), and train has {num_rows:,}: nothing would be trained. Leave it out, or give a smaller "
            "--per_device_train_batch_size."
        )
    per_epoch = num_rows // size if training.dataloader_drop_last else -(-num_rows // size)
    num_epochs = training.max_steps / per_epoch if training.max_steps > 0 else training.num_train_epochs
    num_steps = training.max_steps if training.max_steps > 0 else math.ceil(num_epochs * per_epoch)
    if (warm_up := training.get_warmup_steps(num_steps)) >= num_steps:
        logger.warning(
            "--warmup_steps: %d steps of warm-up do not end before training, which has %d: the learning rate never "
            "gets to --learning_rate.", warm_up, num_steps,
        )  # fmt: skip
    length = num_epochs if training.eval_strategy == "epoch" else num_steps
    if training.load_best_model_at_end and training.eval_delay > length:
        raise UserError(
            f"--eval_delay is {training.eval_delay:g}, and training ends after {length:g}: --load_best_model_at_end "
            "would have nothing to choose from. Give a smaller one."
        )


def set_defaults(args: Arguments, mode: Mode, network: nn.Module, task: Task, num_train_examples: int) -> None:
    """Fill what the user left open: batch sizes, then the schedule of the mode for this network and data size."""
    training = args.training
    args.set_defaults(
        {
            "per_device_train_batch_size": max(
                1, BATCH_SIZE // (training.world_size * training.gradient_accumulation_steps)
            ),
            "per_device_eval_batch_size": min(task.eval_batch_size, CPU_EVAL_ROWS)
            if training.device.type == "cpu"
            else task.eval_batch_size,
            "train_sampling_strategy": "random" if task.modality == "image" else "group_by_length",
            "logging_steps": 50.0,
            "logging_nan_inf_filter": False,  # the stock default logs a NaN loss as 0 and trains on
            "ddp_find_unused_parameters": False,
            "save_strategy": _choose_saving(args),
            "disable_tqdm": not sys.stderr.isatty(),
            **loader_defaults(training, task.modality),
        }
    )
    batch_size = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    schedule = mode.defaults(
        describe_schedule(network, task.modality, num_train_examples, batch_size, adapter=args.model.adapter)
    )
    if "num_train_epochs" in args.given:
        schedule.pop("max_steps", None)
    args.set_defaults(schedule)
    _set_head_rate(args)


def _choose_saving(args: Arguments) -> str:
    """No checkpoints, unless something asks for them: then at numbers of steps, as transformers has it."""
    needs_some = args.training.load_best_model_at_end or args.given.get("save_steps") is not None
    return "steps" if needs_some else "no"


def _set_head_rate(args: Arguments) -> None:
    """The adapter's own rate for the head, where the run has the adapter's own rate for the rest.

    It is a part of `config.yaml`: a run that is repeated from there has a rate for the rest that counts as given.
    """
    adapter = adapter_of(args.model)
    if adapter is None or args.model.head_learning_rate or "learning_rate" in args.given:
        return
    if adapter.head_learning_rate is not None:
        args.filled["head_learning_rate"] = adapter.head_learning_rate


def choose_head_rate(args: Arguments) -> float | None:
    """That of the flag, or the one that `set_defaults` has filled in; None: the rate of the rest."""
    return args.model.head_learning_rate or args.filled.get("head_learning_rate")


def loader_defaults(training: transformers.TrainingArguments, modality: str) -> dict[str, Any]:
    """Processes that make the next batches while a GPU computes; none on a CPU, whose cores they would take.

    They hand batches over in shared memory, of which a container may have next to none.
    """
    if training.device.type != "cuda":
        return {}
    share = count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    has_room = not os.path.isdir("/dev/shm") or shutil.disk_usage("/dev/shm").free >= SHARED_MEMORY_BYTES
    workers = max(0, min(LOADER_WORKERS[modality], share - 1)) if has_room else 0
    return {"dataloader_num_workers": workers, "dataloader_persistent_workers": workers > 0}
