"""One training run, from arguments to a folder that anyone can load. This is the page to read."""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from torch import nn

from hftl.adapter_start import initialize_adapter
from hftl.allocator import keep_freed_memory
from hftl.auto_batch import fit_batch
from hftl.class_weights import weigh_classes
from hftl.config import Arguments, write_config
from hftl.cost.ledger import Ledger
from hftl.cost.memory import PeakMemory
from hftl.data.sampling import sort_by_length
from hftl.errors import TrainingDiverged
from hftl.examples import Examples, audit_lengths, describe_source, load_examples, prepare_examples
from hftl.head_start import initialize_head
from hftl.hub.canary import write_canary
from hftl.hub.files import record_files
from hftl.hub.push import publish_run, take_publication
from hftl.models import length
from hftl.models.adapters import adapter_of
from hftl.models.dropout import draw_faster
from hftl.models.embeddings import check_tokens, warn_of_still_rows
from hftl.models.head import head_modules
from hftl.models.load import LoadedModel, correct_momentum, find_commit, load_config
from hftl.models.modes import Mode, count_parameters, find_mode
from hftl.models.quantization import is_quantized
from hftl.models.weights import digest_weights
from hftl.precision import choose_autocast, describe_precision
from hftl.pretraining import check_pretraining, continue_pretraining
from hftl.records import RunRecord, compute_config_hash, describe_environment, write_predictions
from hftl.resuming.identity import (
    check_adapter_of_checkpoint,
    check_identity,
    describe_division,
    describe_identity,
    is_resumable,
    read_head,
)
from hftl.resuming.lock import released
from hftl.resuming.signals import StopOnSignal, handled
from hftl.run_folder import (
    explained_resources,
    find_checkpoint,
    open_run_folder,
    recorded,
    save_artifacts,
)
from hftl.settings import (
    check_arguments,
    check_label_settings,
    check_model,
    check_training,
    choose_head_rate,
    set_defaults,
)
from hftl.tasks import build_task
from hftl.tasks.base import Task
from hftl.tasks.processors import count_tokens
from hftl.trainer import FineTuningTrainer


@explained_resources()
@released()
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
        TrainingDiverged, OutOfResources: the loss is not finite, or memory or disk ran out; `run.json` says so.
        Interrupted: a signal ended training; there is a checkpoint to go on from.
        PublishError: the run is complete in its folder, but not pushed.
    """
    ledger = Ledger(started)
    with ledger.bucket("startup"):
        mode, task = find_mode(args.model.mode), build_task(args.data.task)
        check_arguments(args)
        check_pretraining(args)
        publication = take_publication(args)
        keep_freed_memory()
        transformers.set_seed(args.training.seed)
        with args.training.main_process_first():
            check_model(args, task)
            examples = load_examples(args.data, task, args.training.seed)
            check_label_settings(args, examples.labels.problem_type)
            args, pretrained = pretrain(args, examples, ledger)
            processor = load_processor(args, task, examples)
            rows = prepare_examples(examples, task, processor, args.data)
            described = task.describe_rows(rows, processor, args.data)
            audit_lengths(examples, described, args.data)
            described |= weigh_classes(args.data.class_weights, task, rows["train"], examples.labels)
        loaded = mode.load(args.model, task, load_config(args.model, task, processor, examples.labels))
        task.adapt_network(loaded.network)
        check_tokens(loaded.network, count_tokens(processor))
        if args.training.world_size == 1 and not is_quantized(loaded.network):  # quantized ones are there already
            loaded.network.to(args.training.device)
        heads = head_modules(loaded.network, loaded.new_parameters, has_new_head=task.has_new_head)
        set_defaults(args, mode, loaded.network, task, len(rows["train"]))
        check_training(args, loaded.network, task, len(rows["train"]))
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
        network = adapt_for_training(args, mode, task, loaded, heads)
        with ledger.bucket("train"):
            adapter_flops = initialize_adapter(network, args, rows["train"], collator)
        check_adapter_of_checkpoint(args, network)
        collator = task.adapt_collator(collator, network)
        batch = fit_batch(args, network, rows["train"], collator, task, examples.labels.problem_type)
        identity |= describe_division(args.training)
        check_identity(args, identity)
        folder = open_run_folder(args, network)
        trainer = build_trainer(args, task, network, heads, examples, rows, collator, processor, ledger)
        trainer.meter.start_flops = head.get("flops", 0) + adapter_flops + pretrained.get("train_flops", 0)
        trainer.manifest = identity | {"head": head, "auto_batch": bool(batch)}
        stop = stop if is_resumable(args) else None
        for callback in [*([] if stop is None else [stop]), *callbacks]:
            trainer.add_callback(callback)
        record = start_record(args, examples, network, head, write_config(args, folder))
        record.model |= {"coverage": coverage, "pretrained": pretrained or None} | name_origin(args, pretrained)
        precision = describe_precision(args.training, trainer.autocast)
        record.environment |= {"precision": precision, "auto_batch": batch or None}
        record.data |= described
    with handled(stop), recorded(record, folder, ledger, trainer), PeakMemory() as memory:
        if mode.is_trained:
            with ledger.bucket("train"):
                trainer.train(resume_from_checkpoint=checkpoint)
        for split in [name for name in ("validation", "test") if name in rows]:
            kept = trainer.predict_rows(rows[split])
            check_answers(kept, split, args.training)
            record.metrics[split] = task.compute_report(kept, rows[split], examples.labels)
        with ledger.bucket("save"):
            save_artifacts(trainer, processor, folder, record.model["revision"])
            write_canary(trainer, task, processor, examples.splits[split], folder)
            if args.training.should_save:
                write_predictions(folder, task.describe_predictions(kept, rows[split], examples.labels))
                record.files = record_files(folder)
        with ledger.bucket("evaluation"):
            if args.training.world_size == 1 and (texts := task.sample(network, processor, examples.splits[split])):
                record.metrics[split]["samples"] = texts
        record.cost |= memory.describe()
        record.history = [entry for entry in trainer.state.log_history if "eval_loss" in entry or "loss" in entry]
    publish_run(args, publication)
    return record


def check_answers(kept: np.ndarray, split: str, training: transformers.TrainingArguments) -> None:
    """Refuse to save a network without a number to answer with: the loss before its last step looked fine.

    Args:
        kept: what it answered, float32 [N, K].
        split: the rows that were asked.
        training: settings of the run.

    Raises:
        TrainingDiverged: there is no row with finite answers.
    """
    if len(kept) and not np.isfinite(kept).all(axis=1).any():
        raise TrainingDiverged(
            f"After training no answer to the {len(kept):,} {split} rows is a finite number, so the network was not "
            f"saved. Lower --learning_rate ({training.learning_rate:g}), or add warm-up with --warmup_steps 0.1."
        )


def pretrain(args: Arguments, examples: Examples, ledger: Ledger) -> tuple[Arguments, dict[str, Any]]:
    """The checkpoint after `--pretrain_file`, and its cost, charged whenever it was spent, once a run."""
    with ledger.bucket("other"):
        args, pretrained = continue_pretraining(args, examples.splits, run)
    seconds = pretrained.get("train_seconds", 0.0)
    charged = 0.0 if find_checkpoint(args.training) else seconds  # which holds the seconds of the run so far
    spent = charged if pretrained.get("is_new") else pretrained.get("waited_seconds", 0.0)
    ledger.add({"train_seconds": charged, "other_seconds": -spent})
    return args, pretrained


def name_origin(args: Arguments, pretrained: dict[str, Any]) -> dict[str, str]:
    """The checkpoint that the user named, for a model card; an adapter needs what was made of it here."""
    return {"name": pretrained["from"]} if pretrained and adapter_of(args.model) is None else {}


def load_processor(args: Arguments, task: Task, examples: Examples) -> Any:
    """The checkpoint's tokenizer or image processor, or a tokenizer made from the train rows."""
    processor = length.load_processor(args.model, task, args.data)
    return task.fit_processor(processor, examples.splits["train"], args.data)


def sample_inputs(args: Arguments, rows: datasets.Dataset, collator: Callable) -> dict[str, torch.Tensor]:
    """Two rows as the network reads them."""
    batch = collator(rows.__getitems__(list(range(min(2, len(rows))))))
    return {name: tensor.to(args.training.device) for name, tensor in batch.items() if name != "labels"}


def adapt_for_training(args: Arguments, mode: Mode, task: Task, loaded: LoadedModel, heads: list[str]) -> nn.Module:
    """The network with the weights that are trained, and dropout that a CPU draws fast."""
    network = mode.adapt(loaded.network, args.model, heads, task.peft_task_type, loaded.new_tokens)
    correct_momentum(network)
    warn_of_still_rows(network, loaded.new_tokens)
    if args.training.device.type == "cpu" and not args.training.torch_compile:
        draw_faster(network)
    return network


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
    validation, _ = sort_by_length(rows["validation"])

    def evaluate(prediction: transformers.EvalPrediction) -> dict[str, float]:
        return task.compute_metrics(prediction.predictions, validation, examples.labels)

    trainer = FineTuningTrainer(
        task=task,
        problem_type=examples.labels.problem_type,
        head_names=heads,
        head_learning_rate=choose_head_rate(args),
        autocast=choose_autocast(args, network),
        ledger=ledger,
        model=network,
        args=args.training,
        train_dataset=rows["train"],
        eval_dataset=validation,
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
            "weights": digest_weights(args.model.model_name_or_path) if adapter_of(args.model) else None,
            "num_parameters": total,
            "num_trainable_parameters": trainable,
            "head": head,
        },
        data=examples.describe(describe_source(args.data)),
        config=config,
        config_hash=compute_config_hash(config),
        environment=describe_environment(),
    )
