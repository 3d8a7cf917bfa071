"""What becomes of each flag of transformers' `TrainingArguments`: it does what it says, or is refused by name.

One table knows them all; a test fails when transformers adds one that it does not know. Whether this machine has what
flags ask for (an optimizer, a tracker) is the question of `hftl.training.tools`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hftl.errors import UserError


@dataclass(frozen=True)
class Rule:
    """What hftl makes of the values of one flag.

    Attributes:
        holds: whether it does what such a value says.
        advice: for any other value: why not, and what to give.
    """

    holds: Callable[[Any], bool]
    advice: str


KEPT = Rule(lambda value: True, "")  # as transformers documents it


def _number(
    low: float, advice: str, *, high: float = math.inf, is_above: bool = False, is_below: bool = False
) -> Rule:
    """Finite, from `low` to `high`; `is_above` and `is_below` leave the limits out."""

    def holds(value: float) -> bool:
        is_inside = (value > low if is_above else value >= low) and (value < high if is_below else value <= high)
        return math.isfinite(value) and is_inside

    return Rule(holds, advice)


def _only(*values: Any, because: str) -> Rule:
    return Rule(lambda value: value in values, because)


def _steps(what: str) -> Rule:
    """A number of steps, or a share of all steps."""
    advice = f"give a whole number of steps between two {what}, or a share of all steps below 1, such as 0.1"
    return Rule(lambda value: 0 < value < 1 or (math.isfinite(value) and value >= 1 and value == int(value)), advice)


ONE = _number(1, "give 1 or more")
SEED = _number(0, "give a whole number from 0 to 4294967295", high=2**32 - 1)
NOT_NEGATIVE = _number(0, "give a number that is 0 or more")
BETA = _number(0, "give a number from 0 to below 1", high=1, is_below=True)
SCORED = "every answer is scored as `hftl evaluate` does it, in float32 and at once; leave it out"
ORDER = (
    "hftl divides the rows of a step among processes itself, so that the result does not depend on it; leave it out"
)
LOADED = "hftl passes to the network what its task reads; leave it out"

FLAGS: dict[str, Rule] = {
    "output_dir": KEPT,
    "do_train": _only(True, because="`hftl train` always trains; `hftl evaluate MODEL DATA` scores a trained model"),
    "do_eval": _only(True, because="validation is always scored, which early stopping and reports need; leave it out"),
    "do_predict": _only(True, because="the test rows are scored where there are some; give --evaluate_test false"),
    "resume_from_checkpoint": KEPT,
    "seed": SEED,
    "data_seed": SEED,
    "full_determinism": KEPT,
    "use_cpu": KEPT,
    "local_rank": KEPT,  # of the launcher
    "debug": _only(  # that of transformers 5.23 fails at masks of true and false
        [], because="a run stops by itself at the first loss or gradient that is not finite; leave it out"
    ),
    # --- how long, and in what steps
    "num_train_epochs": _number(0, "give a number above 0: with 0 nothing would be trained", is_above=True),
    "max_steps": Rule(lambda value: value == -1 or value >= 1, "give 1 or more, or -1 to count in epochs"),
    "per_device_train_batch_size": ONE,
    "per_device_eval_batch_size": ONE,
    "gradient_accumulation_steps": ONE,
    "auto_find_batch_size": KEPT,  # refused in hftl.training.settings, with what to give instead
    # --- the optimizer and its schedule; hftl.training.tools builds them once before anything is read
    "optim": KEPT,
    "optim_args": KEPT,
    "optim_target_modules": KEPT,
    "learning_rate": NOT_NEGATIVE,
    "lr_scheduler_type": KEPT,
    "lr_scheduler_kwargs": KEPT,
    "warmup_steps": Rule(
        lambda value: 0 <= value < 1 or (math.isfinite(value) and value >= 1 and value == int(value)),
        "give a whole number of steps, or a share of all steps below 1",
    ),
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": BETA,
    "adam_beta2": BETA,
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": _number(0, "give a number that is 0 or more; 0 clips nothing"),
    "label_smoothing_factor": _number(0, "give a number from 0 to below 1", high=1, is_below=True),
    "neftune_noise_alpha": NOT_NEGATIVE,
    "average_tokens_across_devices": _only(
        True, because="the loss of a step is the mean over all of its labels, whichever process has them; leave it out"
    ),
    # --- precision and speed
    "bf16": KEPT,
    "fp16": KEPT,
    "bf16_full_eval": _only(False, because=SCORED),
    "fp16_full_eval": _only(False, because=SCORED),
    "tf32": KEPT,
    "activation_checkpointing": KEPT,
    "activation_checkpointing_kwargs": KEPT,
    "gradient_checkpointing": KEPT,
    "gradient_checkpointing_kwargs": KEPT,
    "torch_compile": KEPT,
    "torch_compile_backend": KEPT,
    "torch_compile_mode": KEPT,
    "use_liger_kernel": KEPT,
    "liger_kernel_config": KEPT,
    "use_cache": _only(False, because="what is kept for writing would let packed rows see each other; leave it out"),
    "torch_empty_cache_steps": ONE,
    # --- what is logged
    "logging_strategy": KEPT,
    "logging_steps": _steps("logs"),
    "logging_first_step": KEPT,
    "logging_nan_inf_filter": KEPT,  # a loss that is not finite ends the run in any case
    "log_on_each_node": KEPT,
    "log_level": KEPT,
    "log_level_replica": KEPT,
    "disable_tqdm": KEPT,
    "skip_memory_metrics": KEPT,
    "include_num_input_tokens_seen": _only(
        False, "no", because="tokens are counted in any case: `num_tokens_seen` in run.json; leave it out"
    ),
    "report_to": KEPT,
    "run_name": KEPT,
    "project": KEPT,
    "trackio_space_id": KEPT,
    "trackio_bucket_id": KEPT,
    "trackio_static_space_id": KEPT,
    # --- evaluation on the way
    "eval_strategy": KEPT,
    "eval_steps": _steps("evaluations"),
    "eval_delay": NOT_NEGATIVE,
    "eval_on_start": KEPT,
    "eval_accumulation_steps": ONE,
    "prediction_loss_only": _only(False, because=SCORED),
    "eval_do_concat_batches": _only(True, because=SCORED),
    "eval_use_gather_object": _only(False, because=SCORED),
    "batch_eval_metrics": _only(False, because=SCORED),
    "include_for_metrics": _only([], because="the metrics of hftl read answers and labels alone; leave it out"),
    "metric_for_best_model": KEPT,
    "greater_is_better": KEPT,
    "load_best_model_at_end": KEPT,
    # --- checkpoints
    "save_strategy": KEPT,
    "save_steps": _steps("checkpoints"),
    "save_total_limit": _number(1, "give 1 or more, or leave it out to keep all checkpoints"),
    "save_only_model": KEPT,
    "save_on_each_node": _only(False, because="a run is written once, by its first process; leave it out"),
    "enable_jit_checkpoint": _only(
        False, because="hftl saves a checkpoint at SIGTERM in any case where one can be gone on from; leave it out"
    ),
    "ignore_data_skip": _only(
        False, because="a resumed run goes on with the rows that come next, not with those it has seen; leave it out"
    ),
    "restore_callback_states_from_checkpoint": KEPT,  # by hftl.training.progress, in any case
    # --- publishing: hftl.hub.push checks these
    "push_to_hub": KEPT,
    "hub_token": KEPT,
    "hub_private_repo": KEPT,
    "hub_model_id": KEPT,
    "hub_strategy": KEPT,
    "hub_always_push": KEPT,
    "hub_revision": KEPT,
    # --- rows
    "dataloader_drop_last": KEPT,
    "dataloader_num_workers": _number(0, "give 0 or more"),
    "dataloader_pin_memory": KEPT,
    "dataloader_persistent_workers": KEPT,
    "dataloader_prefetch_factor": ONE,
    "dataloader_multiprocessing_context": KEPT,
    "dataloader_in_order": _only(True, because="the order of rows is a part of the run; leave it out"),
    "train_sampling_strategy": KEPT,
    "remove_unused_columns": _only(True, because=LOADED),
    "label_names": _only([], because=LOADED),
    "length_column_name": _only("length", because="the length of a text is counted in tokens; leave it out"),
    # --- several processes
    "accelerator_config": Rule(lambda value: not value, ORDER),
    "parallelism_config": Rule(lambda value: not value, "tensor and context parallelism are not available"),
    "ddp_find_unused_parameters": KEPT,
    "ddp_bucket_cap_mb": ONE,
    "ddp_broadcast_buffers": KEPT,
    "ddp_static_graph": KEPT,
    "ddp_backend": KEPT,
    "ddp_timeout": ONE,
    "fsdp": KEPT,
    "fsdp_config": KEPT,
    "deepspeed": KEPT,
}

# Read by steps of training alone, of which a probe and a baseline have none.
OF_STEPS = (
    *("num_train_epochs", "max_steps", "gradient_accumulation_steps", "dataloader_drop_last"),
    *("optim", "optim_args", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "metric_for_best_model", "load_best_model_at_end"),
    *("save_steps", "save_total_limit", "head_learning_rate", "early_stopping_patience"),
)

# Flags of transformers 4 -> what to type instead.
GONE = {
    "evaluation_strategy": "It is --eval_strategy now.",
    "warmup_ratio": "Give --warmup_steps with a share below 1, such as 0.1.",
    "group_by_length": "Give --train_sampling_strategy group_by_length, which is the default for texts.",
    "no_cuda": "It is --use_cpu true now.",
    "overwrite_output_dir": "A run overwrites nothing: give a new --output_dir.",
    "per_gpu_train_batch_size": "It is --per_device_train_batch_size now.",
    "logging_dir": "Trackers choose their folder; --output_dir is that of the run.",
}

# What other tools call it -> what to type; the nearest spelling would be another flag, such as --lora_r for --lr.
SHORT = {
    **dict.fromkeys(("lr", "rate"), "learning_rate"),
    **dict.fromkeys(("model", "model_name", "checkpoint", "base_model"), "model_name_or_path"),
    **dict.fromkeys(("train", "train_data", "data_file", "file"), "train_file"),
    **dict.fromkeys(("test", "test_data"), "test_file"),
    **dict.fromkeys(("data", "data_dir", "dataset_name", "folder"), "dataset"),
    **dict.fromkeys(("batch_size", "train_batch_size", "bs"), "per_device_train_batch_size"),
    **dict.fromkeys(("epochs", "num_epochs"), "num_train_epochs"),
    **dict.fromkeys(("steps", "num_steps"), "max_steps"),
    **dict.fromkeys(("label", "labels", "target"), "label_column"),
    **dict.fromkeys(("text", "text_field"), "text_columns"),
    **dict.fromkeys(("output", "out"), "output_dir"),
    **dict.fromkeys(("lora", "peft"), "mode peft"),
    **dict.fromkeys(("rank", "lora_rank", "r"), "lora_r"),
    **{mode: f"mode {mode}" for mode in ("full", "probe", "scratch")},
}


def check_values(given: Mapping[str, Any]) -> None:
    """Refuse a value that would not do what it says.

    Args:
        given: name -> value of what the user set.

    Raises:
        UserError: the first such flag, its value and what to give.
    """
    for name, value in given.items():
        rule = FLAGS.get(name, KEPT)
        if value is not None and not rule.holds(value):
            shown = str(value).lower() if isinstance(value, bool) else value
            raise UserError(f"--{name} is {shown}; {rule.advice}.")
