"""One training run, from arguments to a folder that anyone can load. This is the page to read."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import torch
import transformers
from torch import nn

from hftl.adapter_start import initialize_adapter
from hftl.allocator import keep_freed_memory
from hftl.config import Arguments, write_config
from hftl.cost.ledger import Ledger
from hftl.cost.memory import PeakMemory
from hftl.errors import UserError
from hftl.examples import Examples, audit_lengths, describe_source, load_examples, prepare_examples
from hftl.head_start import initialize_head
from hftl.hub.canary import write_canary
from hftl.hub.files import record_files
from hftl.hub.push import publish_run, take_publication
from hftl.metrics import greater_is_better
from hftl.models.adapters import adapter_of
from hftl.models.embeddings import check_tokens, warn_of_still_rows
from hftl.models.head import head_modules
from hftl.models.load import find_commit, load_config, read_config
from hftl.models.modes import BATCH_SIZE, Mode, count_parameters, describe_schedule, find_mode
from hftl.models.quantization import check_quantization, is_quantized
from hftl.records import RunRecord, compute_config_hash, count_cores, describe_environment, write_predictions
from hftl.resuming.identity import (
    check_adapter_of_checkpoint,
    check_checkpoint,
    check_identity,
    describe_identity,
    is_resumable,
    read_head,
)
from hftl.resuming.signals import StopOnSignal, handled
from hftl.run_folder import (
    check_run_folder,
    explained_resources,
    find_checkpoint,
    open_run_folder,
    recorded,
    resolve_checkpoint,
    save_artifacts,
)
from hftl.tasks import TASKS, build_task
from hftl.tasks.base import Task, count_tokens
from hftl.trainer import FineTuningTrainer

LOADER_WORKERS = {"image": 8, "text": 2, "language": 2}  # on CUDA: an image is augmented, a text only padded
MIN_ROOM = 8  # tokens of a text, below which there is nothing to read
SHARED_MEMORY_BYTES = 2**31  # 8 workers with two batches each of 128 images of 224 px are 1.2 GB


@explained_resources()
def run(
    args: Arguments,
    *,
    started: float | None = None,
    stop: StopOnSignal | None = None,
    callbacks: Sequence[transformers.TrainerCallback] = (),
) -> RunRecord:
    """Train one model, evaluate it (on the test set once) and leave it in `args.training.output_dir`.

    Args:
        args: from `hftl.config.parse_args`.
        started: when the process started (`time.time()`), so that imports count as start-up.
        stop: ends training with a checkpoint when the process gets a signal; None leaves signals alone.
        callbacks: that training calls besides ours.

    Returns:
        The record that was also written to `run.json`.

    Raises:
        UserError: the arguments or the data are wrong; nothing was trained or written.
        TrainingDiverged: the loss stopped being finite; `run.json` says so.
        OutOfResources: memory or disk ran out; `run.json` says so.
        Interrupted: a signal ended training; there is a checkpoint to go on from.
        PublishError: the run is complete in its folder, but not pushed.
    """
    ledger = Ledger(started)
    with ledger.bucket("startup"):
        mode, task = find_mode(args.model.mode), build_task(args.data.task)
        check_arguments(args)
        publication = take_publication(args)
        keep_freed_memory()
        transformers.set_seed(args.training.seed)
        with args.training.main_process_first():
            check_model(args, task)
            examples = load_examples(args.data, task, args.training.seed)
            processor = load_processor(args, task, examples)
            rows = prepare_examples(examples, task, processor, args.data)
            described = task.describe_rows(rows, processor, args.data)
            audit_lengths(examples, described, args.data)
        loaded = mode.load(args.model, task, load_config(args.model, task, processor, examples.labels))
        check_tokens(loaded.network, count_tokens(processor))
        if args.training.world_size == 1 and not is_quantized(loaded.network):  # quantized ones are there already
            loaded.network.to(args.training.device)
        heads = head_modules(loaded.network, loaded.new_parameters, has_new_head=task.has_new_head)
        set_defaults(args, mode, loaded.network, task, len(rows["train"]))
        augmentation = mode.augmentation if args.data.augmentation == "auto" else args.data.augmentation
        collator = task.build_collator(processor, args.data, augmentation)
        checkpoint, identity = find_checkpoint(args.training), describe_identity(args, examples, loaded)
    with ledger.bucket("train"), args.training.main_process_first():
        head = read_head(checkpoint)
        if checkpoint is None:
            wanted = mode.choose_head_init(task, args.model.head_init)
            head = initialize_head(loaded.network, args, wanted, rows, collator, is_final=not mode.is_trained)
    with ledger.bucket("startup"):
        coverage = mode.cover(loaded.network, args.model, heads, sample_inputs(args, rows["train"], collator))
        network = mode.adapt(loaded.network, args.model, heads, task.peft_task_type, loaded.new_tokens)
        warn_of_still_rows(network, loaded.new_tokens)
        with ledger.bucket("train"):
            adapter_flops = initialize_adapter(network, args, rows["train"], collator)
        check_adapter_of_checkpoint(args, network)
        check_identity(args, identity)
        folder = open_run_folder(args, network)
        collator = task.adapt_collator(collator, network)
        trainer = build_trainer(args, task, network, heads, examples, rows, collator, processor, ledger)
        trainer.meter.start_flops = head.get("flops", 0) + adapter_flops
        trainer.manifest = identity | {"head": head}
        stop = stop if is_resumable(args) else None
        for callback in [*([] if stop is None else [stop]), *callbacks]:
            trainer.add_callback(callback)
        record = start_record(args, examples, network, head, write_config(args, folder))
        record.model["coverage"] = coverage
        record.data |= described
    with handled(stop), recorded(record, folder, ledger, trainer), PeakMemory() as memory:
        if mode.is_trained:
            with ledger.bucket("train"):
                trainer.train(resume_from_checkpoint=checkpoint)
        for split in [name for name in ("validation", "test") if name in rows]:
            kept = trainer.predict_rows(rows[split])
            record.metrics[split] = task.compute_report(kept, rows[split], examples.labels)
        with ledger.bucket("save"):
            save_artifacts(trainer, processor, folder, record.model["revision"])
            if args.training.should_save:
                write_predictions(folder, task.describe_predictions(kept, rows[split], examples.labels))
            write_canary(trainer, task, processor, examples.splits[split], folder)
            if args.training.should_save:
                record.files = record_files(folder)
        with ledger.bucket("evaluation"):
            if args.training.world_size == 1 and (texts := task.sample(network, processor, examples.splits[split])):
                record.metrics[split]["samples"] = texts
        record.cost |= memory.describe()
        record.history = [entry for entry in trainer.state.log_history if "eval_loss" in entry or "loss" in entry]
    publish_run(args, publication)
    return record


def check_model(args: Arguments, task: Task) -> None:
    """Find a wrong name, or an adapter that this network cannot have, before data or weights are read."""
    mode = find_mode(args.model.mode)
    if args.model.mode not in task.modes:
        raise UserError(f"--mode {args.model.mode} does not fit {task.name}; what does: {', '.join(task.modes)}.")
    mode.check(args.model, read_config(args.model, task), task)


def load_processor(args: Arguments, task: Task, examples: Examples) -> Any:
    """The checkpoint's tokenizer or image processor, or a tokenizer made from the train rows."""
    processor = task.load_processor(args.model.model_name_or_path, args.model.model_revision, args.data)
    processor = task.fit_processor(processor, examples.splits["train"], args.data)
    adapter = adapter_of(args.model)
    if adapter is not None and adapter.is_prompt:
        leave_room(processor, read_config(args.model, task), args)
    return processor


def leave_room(tokenizer: Any, config: Any, args: Arguments) -> None:
    """Let a text end earlier where virtual tokens take some of the positions that the network knows.

    Raises:
        UserError: with them `--max_length` is too long, or hardly anything is left.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not positions or positions < 0:  # relative positions: any number
        return
    positions = min(positions, tokenizer.init_kwargs.get("model_max_length", positions))
    virtual = args.model.num_virtual_tokens
    room = positions - virtual
    if room < MIN_ROOM:
        raise UserError(
            f"{args.model.model_name_or_path} has {positions} positions, of which {virtual} virtual tokens "
            f"(--num_virtual_tokens) leave {max(0, room)} for a text. Give fewer."
        )
    if args.data.max_length and args.data.max_length > room:
        raise UserError(
            f"--max_length is {args.data.max_length}, but of the {positions} positions of "
            f"{args.model.model_name_or_path} {virtual} go to virtual tokens. Give --max_length {room} or less."
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, room)


def check_arguments(args: Arguments) -> None:
    """Refuse what would fail, or silently be ignored, later."""
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
            "Choose --per_device_train_batch_size and --gradient_accumulation_steps."
        )
    is_auto = (args.training.resume_from_checkpoint or "").lower() == "auto"
    resolve_checkpoint(args)
    if "output_dir" in args.given:
        check_run_folder(args.training, is_auto=is_auto)
    check_checkpoint(args)
    metric = args.training.metric_for_best_model
    if metric and args.training.greater_is_better is None and metric.removeprefix("eval_") != "loss":
        args.training.greater_is_better = greater_is_better(metric.removeprefix("eval_"))


def _check_task_flags(args: Arguments) -> None:
    """A flag that only another task reads would be ignored."""
    for task in TASKS.values():
        for flag in task.flags:
            if flag in args.given and flag not in TASKS[args.data.task].flags:
                raise UserError(f"--{flag} is for --task {task.name}; this is {args.data.task}.")


def set_defaults(args: Arguments, mode: Mode, network: nn.Module, task: Task, num_train_examples: int) -> None:
    """Fill what the user left open: batch sizes, then the schedule of the mode for this network and data size."""
    training = args.training
    args.set_defaults(
        {
            "per_device_train_batch_size": max(
                1, BATCH_SIZE // (training.world_size * training.gradient_accumulation_steps)
            ),
            "per_device_eval_batch_size": task.eval_batch_size,
            "train_sampling_strategy": "random" if task.modality == "image" else "group_by_length",
            "logging_steps": 50.0,
            "logging_nan_inf_filter": False,  # the stock default logs a NaN loss as 0 and trains on
            "ddp_find_unused_parameters": False,
            "save_strategy": "no",
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


def describe_precision(training: transformers.TrainingArguments) -> str:
    """What products are computed in while training; the trained weights are float32."""
    return {"bf16": "bfloat16 autocast", "fp16": "float16 autocast"}.get(training.mixed_precision, "float32")


def choose_head_rate(args: Arguments) -> float | None:
    """That of the flag, or the adapter's own where the run has the adapter's own rate; None: the rate of the rest."""
    adapter = adapter_of(args.model)
    if args.model.head_learning_rate or adapter is None or "learning_rate" in args.given:
        return args.model.head_learning_rate
    return adapter.head_learning_rate


def sample_inputs(args: Arguments, rows: datasets.Dataset, collator: Callable) -> dict[str, torch.Tensor]:
    """Two rows as the network reads them."""
    batch = collator(rows.__getitems__(list(range(min(2, len(rows))))))
    return {name: tensor.to(args.training.device) for name, tensor in batch.items() if name != "labels"}


def build_trainer(
    args: Arguments,
    task: Task,
    network: nn.Module,
    heads: list[str],
    examples: Examples,
    rows: dict[str, datasets.Dataset],
    collator: Callable,
    processor: Any,
    ledger: Ledger,
) -> FineTuningTrainer:
    """Wire the pieces together."""

    def evaluate(prediction: transformers.EvalPrediction) -> dict[str, float]:
        return task.compute_metrics(prediction.predictions, rows["validation"], examples.labels)

    trainer = FineTuningTrainer(
        task=task,
        problem_type=examples.labels.problem_type,
        head_names=heads,
        head_learning_rate=choose_head_rate(args),
        ledger=ledger,
        model=network,
        args=args.training,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=collator,
        processing_class=processor,
        compute_metrics=evaluate,
    )
    adapter = adapter_of(args.model)
    if adapter is not None and adapter.callback is not None:
        trainer.add_callback(adapter.callback(network))
    if args.model.early_stopping_patience:
        trainer.add_callback(transformers.EarlyStoppingCallback(args.model.early_stopping_patience))
    return trainer


def start_record(
    args: Arguments, examples: Examples, network: nn.Module, head: dict[str, Any], config: dict[str, Any]
) -> RunRecord:
    """The record with everything that is known before training."""
    total, trainable = count_parameters(network)
    return RunRecord(
        status="failed",  # until the end says otherwise
        task=args.data.task,
        mode=args.model.mode,
        adapter=args.model.adapter if adapter_of(args.model) else None,
        seed=args.training.seed,
        model={
            "name": args.model.model_name_or_path,
            "revision": find_commit(args.model),
            "num_parameters": total,
            "num_trainable_parameters": trainable,
            "head": head,
        },
        data=examples.describe(describe_source(args.data)),
        config=config,
        config_hash=compute_config_hash(config),
        environment=describe_environment() | {"precision": describe_precision(args.training)},
    )
