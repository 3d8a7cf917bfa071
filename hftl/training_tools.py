"""Does this machine have what the flags of a training ask for: optimizer, schedule, trackers, kernels, a GPU?

Each is built once, small, before data or weights are read, so that what would fail later is one sentence now.
"""

import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from accelerate.utils import DynamoBackend
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from hftl.errors import UserError, unknown_name

NUM_STEPS = 1000  # of the schedule that is tried, where --max_steps does not say
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
# Tracker -> its package, where that has another name.
TRACKER_PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
WITHOUT_SETTINGS = ("constant", "constant_with_warmup")
LOW_RANK = ("galore", "apollo")
# Of torch.utils.checkpoint, and what transformers adds to it.
CHECKPOINTING_SETTINGS = ("use_reentrant", "preserve_rng_state", "determinism_check", "early_stop", "debug")
CHECKPOINTING_SETTINGS += ("every_n_layers", "offload")
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")


def check_tools(training: transformers.TrainingArguments, given: Mapping[str, Any]) -> None:
    """Refuse what is not here, or what would not be read.

    Args:
        training: as parsed.
        given: name -> value of what the user set.

    Raises:
        UserError: names the flag, and the package that is missing.
    """
    if training.fp16 and training.device.type == "cpu":
        raise UserError("--fp16 computes in float16, which needs a GPU. Give --bf16 true on a CPU, or leave it out.")
    _check_intervals(training, given)
    _check_companions(training, given)
    _check_compilation(training)
    _check_kernels(training)
    _check_trackers(training.report_to or [])
    _check_optimizer(training, given)
    _check_schedule(training, given)


def _check_intervals(training: transformers.TrainingArguments, given: Mapping[str, Any]) -> None:
    """A number of steps that nobody would count."""
    for kind, what in (("eval", "evaluations"), ("save", "checkpoints"), ("logging", "logs")):
        strategy = getattr(training, f"{kind}_strategy")
        strategy = getattr(strategy, "value", strategy)
        is_off = strategy == "no" and f"{kind}_strategy" in given  # over a file that has steps
        if given.get(f"{kind}_steps") is not None and strategy != "steps" and not is_off:
            raise UserError(
                f"--{kind}_steps counts with --{kind}_strategy steps only, and that is {strategy}: there would be no "
                f"such {what}. Add --{kind}_strategy steps, or leave --{kind}_steps out."
            )
    if training.save_strategy == "best" and training.eval_strategy == "no":
        raise UserError("--save_strategy best saves after an evaluation: add --eval_strategy epoch, or steps.")
    if training.save_strategy == "best" and training.metric_for_best_model is None:
        raise UserError("--save_strategy best needs --metric_for_best_model, such as loss.")


def _check_companions(training: transformers.TrainingArguments, given: Mapping[str, Any]) -> None:
    """Settings of something that is not switched on."""
    for name in CHECKPOINTING:
        is_on = any(getattr(training, other, False) for other in CHECKPOINTING)
        settings = given.get(f"{name}_kwargs") or {}
        if settings and not is_on:
            raise UserError(f"--{name}_kwargs is read with --{name} true only. Add it, or leave both out.")
        for key in settings.keys() - set(CHECKPOINTING_SETTINGS):
            raise unknown_name(f"setting in --{name}_kwargs:", key, CHECKPOINTING_SETTINGS)
    if given.get("fsdp_config") and not training.fsdp:
        raise UserError("--fsdp_config is read with --fsdp only. Add it, or leave both out.")
    if training.fsdp and training.world_size == 1:
        raise UserError(
            "--fsdp splits a network among several processes, and this is one. Start them with `accelerate launch` or "
            "--accelerate_config accelerate_configs/fsdp.yaml."
        )
    if given.get("liger_kernel_config") and not training.use_liger_kernel:
        raise UserError("--liger_kernel_config is read with --use_liger_kernel true only.")
    if training.optim_target_modules and not str(training.optim.value).startswith(LOW_RANK):
        raise UserError(f"--optim_target_modules is for galore and apollo, and --optim is {training.optim.value}.")


def _check_compilation(training: transformers.TrainingArguments) -> None:
    if not training.torch_compile:
        return
    backends = [backend.value.lower() for backend in DynamoBackend]
    if training.torch_compile_backend not in backends:
        raise unknown_name("backend in --torch_compile_backend:", str(training.torch_compile_backend), backends)
    if training.torch_compile_mode not in (None, *COMPILE_MODES):
        raise unknown_name("mode in --torch_compile_mode:", str(training.torch_compile_mode), COMPILE_MODES)
    is_built_here = training.torch_compile_backend == "inductor" and training.device.type == "cpu"
    if is_built_here and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
        raise UserError("--torch_compile needs a C++ compiler on a CPU, and there is none: install g++.")


def _check_kernels(training: transformers.TrainingArguments) -> None:
    if not training.use_liger_kernel:
        return
    if importlib.util.find_spec("liger_kernel") is None:
        raise UserError(
            "--use_liger_kernel needs the Python package liger-kernel, which is not here: pip install liger-kernel"
        )
    if training.device.type == "cpu":
        raise UserError("--use_liger_kernel is for GPUs. Leave it out.")


def _check_trackers(names: list[str]) -> None:
    available = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise unknown_name("tracker in --report_to:", name, ["all", "none", *INTEGRATION_TO_CALLBACK])
        if name == "kubeflow" and name not in available:
            raise UserError("--report_to kubeflow works inside of a Kubeflow TrainJob only.")
        package = TRACKER_PACKAGES.get(name, name)
        if name not in available and not (name == "flyte" and importlib.util.find_spec(package)):
            raise UserError(
                f"--report_to {name} needs the Python package {package}, which is not installed: pip install {package}"
            )


def _check_optimizer(training: transformers.TrainingArguments, given: Mapping[str, Any]) -> None:
    name = str(training.optim.value)
    if name in ("lomo", "adalomo") or name.endswith("layerwise"):
        raise UserError(
            f"--optim {name} steps inside of the backward pass, before the loss of the whole step and whether it is "
            "finite are known. Choose another one, such as adamw_torch_fused or adafactor."
        )
    with _explained(f"--optim {name}"):
        build = transformers.Trainer.get_optimizer_cls_and_kwargs
        if name.startswith(LOW_RANK):
            _check_low_rank(training, build)
            return
        pairs = _split_optimizer_settings(training.optim_args)
        kind, settings = build(training)
        kind([{"params": [_parameter()], "weight_decay": training.weight_decay}], **settings)
    for flag, key in (("adam_beta1", "betas"), ("adam_beta2", "betas"), ("adam_epsilon", "eps")):
        if flag in given and key not in settings:
            raise UserError(f"--{flag} is not read by --optim {name}. Leave it out.")
    for pair in pairs:
        if _build_with(training, pair) == _build_with(training, None):
            raise UserError(
                f"--optim_args {pair} changes nothing of --optim {name}: it has no such setting, or has that value "
                "by default. Leave it out."
            )


def _check_low_rank(training: transformers.TrainingArguments, build: Callable) -> None:
    """GaLore and APOLLO choose from the network, which is not there yet; their package shows before that."""
    if training.optim_target_modules is None:
        raise UserError(f"--optim {training.optim.value} needs --optim_target_modules, such as all-linear.")
    try:
        build(training)
    except ValueError as error:
        if "pass a model" not in str(error):
            raise


def _split_optimizer_settings(text: str | None) -> list[str]:
    pairs = [pair for pair in (text or "").replace(" ", "").split(",") if text]
    if any(pair.count("=") != 1 or not all(pair.split("=")) for pair in pairs):
        raise UserError(f"--optim_args is {text!r}; give NAME=VALUE, several with commas, such as momentum=0.9.")
    return pairs


def _build_with(training: transformers.TrainingArguments, pair: str | None) -> tuple[Any, dict[str, Any]]:
    kept, training.optim_args = training.optim_args, pair
    try:
        return transformers.Trainer.get_optimizer_cls_and_kwargs(training)
    finally:
        training.optim_args = kept


def _check_schedule(training: transformers.TrainingArguments, given: Mapping[str, Any]) -> None:
    name, settings = training.lr_scheduler_type.value, training.lr_scheduler_kwargs
    if settings and name in WITHOUT_SETTINGS:
        raise UserError(f"--lr_scheduler_kwargs: the schedule {name} has no settings. Leave it out.")
    if given.get("warmup_steps") and name in WITHOUT_WARMUP:
        other = " Give --lr_scheduler_type constant_with_warmup." if name == "constant" else " Leave it out."
        raise UserError(f"--warmup_steps: the schedule {name} has no warm-up.{other}")
    num_steps = max(training.max_steps, 1) if training.max_steps > 0 else NUM_STEPS
    rate = training.learning_rate if given.get("learning_rate") else 1e-3
    with _explained(f"--lr_scheduler_type {name} with --lr_scheduler_kwargs {settings or 'left out'}"):
        schedule = transformers.get_scheduler(
            name,
            optimizer=torch.optim.SGD([_parameter()], lr=rate),
            num_warmup_steps=training.get_warmup_steps(num_steps),
            num_training_steps=num_steps,
            scheduler_specific_kwargs=settings,
        )
        for factor in getattr(schedule, "lr_lambdas", ()):
            for step in sorted({0, min(1, num_steps - 1), num_steps // 2, num_steps - 1}):
                if not (math.isfinite(value := float(factor(step))) and value >= 0):
                    raise ValueError(f"the learning rate would be multiplied by {value:g} in step {step}")


def _parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(1))


@contextmanager
def _explained(flags: str) -> Iterator[None]:
    """What transformers, torch or another package says of wrong settings, in one sentence with the flag."""
    try:
        yield
    except UserError:
        raise
    except (ImportError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{flags} cannot be used: {words[:300]}") from error
