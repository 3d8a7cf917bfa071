"""The trainer and the record of a run, wired from what was prepared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from hftl.config import write_config
from hftl.cost.ledger import Ledger
from hftl.data.sampling import sort_by_length
from hftl.models.adapters import adapter_of
from hftl.models.load import find_commit
from hftl.models.modes import count_parameters
from hftl.models.weights import digest_weights
from hftl.run_record import RunRecord, compute_config_hash, describe_environment
from hftl.tasks.base import Task
from hftl.training.auto_batch_size import fit_batch
from hftl.training.precision import choose_autocast, describe_precision
from hftl.training.prepare import LoadedNetwork, PreparedData, RunPlan, TrainableNetwork, name_origin
from hftl.training.resume_check import check_identity, describe_division
from hftl.training.run_folder import open_run_folder
from hftl.training.settings import choose_head_rate
from hftl.training.trainer import FineTuningTrainer
from hftl.training_data import describe_source


def set_up(
    plan: RunPlan,
    data: PreparedData,
    found: LoadedNetwork,
    ready: TrainableNetwork,
    ledger: Ledger,
    callbacks: Sequence[transformers.TrainerCallback],
) -> tuple[FineTuningTrainer, RunRecord, Path]:
    """Fit the batch into memory, open the run folder, and build the trainer and the record.

    Raises:
        UserError: the folder cannot be used, or the run that is gone on with was another one.
    """
    args, labels = data.args, data.examples.labels
    with ledger.bucket("startup"):
        batch = fit_batch(args, ready.network, data.rows["train"], ready.collator, plan.task, labels.problem_type)
        identity = found.identity | describe_division(args.training)
        check_identity(args, identity)
        folder = open_run_folder(args, ready.network)
        trainer = build_trainer(data, found.heads, ready, plan.task, ledger)
        trainer.meter.start_flops = ready.start_flops
        trainer.manifest = identity | {"head": ready.head, "auto_batch": bool(batch)}
        for callback in callbacks:
            trainer.add_callback(callback)
        record = start_record(data, ready, write_config(args, folder))
        precision = describe_precision(args.training, trainer.autocast)
        record.environment |= {"precision": precision, "auto_batch": batch or None}
    return trainer, record, folder


def build_trainer(
    data: PreparedData, heads: list[str], ready: TrainableNetwork, task: Task, ledger: Ledger
) -> FineTuningTrainer:
    """The trainer with its callbacks; validation goes from long to short rows."""
    args, labels = data.args, data.examples.labels
    validation, _ = sort_by_length(data.rows["validation"])

    def evaluate(prediction: transformers.EvalPrediction) -> dict[str, float]:
        return task.compute_metrics(prediction.predictions, validation, labels)

    trainer = FineTuningTrainer(
        task=task,
        problem_type=labels.problem_type,
        head_names=heads,
        head_learning_rate=choose_head_rate(args),
        autocast=choose_autocast(args, ready.network),
        ledger=ledger,
        model=ready.network,
        args=args.training,
        train_dataset=data.rows["train"],
        eval_dataset=validation,
        data_collator=ready.collator,
        processing_class=data.processor,
        compute_metrics=evaluate,
    )
    adapter = adapter_of(args.model)
    if adapter is not None and adapter.callback is not None:
        trainer.add_callback(adapter.callback(ready.network))
    if args.model.early_stopping_patience:
        trainer.add_callback(transformers.EarlyStoppingCallback(args.model.early_stopping_patience))
    return trainer


def start_record(data: PreparedData, ready: TrainableNetwork, config: dict[str, Any]) -> RunRecord:
    """The record with everything that is known before training."""
    args = data.args
    total, trainable = count_parameters(ready.network)
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
            "head": ready.head,
            "coverage": ready.coverage,
            "pretrained": data.pretrained or None,
        }
        | name_origin(args, data.pretrained),
        data=data.examples.describe(describe_source(args.data)) | data.described,
        config=config,
        config_hash=compute_config_hash(config),
        environment=describe_environment(),
    )
