"""How fast was this run, and what held it up? Adds rates, shares and one sentence to the cost of its record."""

import torch

from hftl.cost.devices import find_peak_flops
from hftl.cost.diagnosis import compute_speed, diagnose
from hftl.run_record import RunRecord, count_cores
from hftl.tasks import TASKS
from hftl.training.trainer import FineTuningTrainer


def add_speed(record: RunRecord, trainer: FineTuningTrainer) -> None:
    """Fill `record.cost`, whose seconds and counts are there, with what follows from them."""
    args, cost = trainer.args, record.cost
    cost["num_evaluations"] = sum("eval_runtime" in entry for entry in trainer.state.log_history)
    peak = find_peak_flops(record.environment["device"])
    devices = record.environment["num_devices"]
    peak = None if peak is None else peak * (args.world_size if args.world_size > 1 else devices)
    cost |= compute_speed(cost, peak, recomputes=args.gradient_checkpointing)
    busy = torch.get_num_threads() if args.device.type == "cpu" else 1
    cost["diagnosis"] = diagnose(
        cost,
        {
            "dataloader_num_workers": args.dataloader_num_workers,
            "num_free_cores": max(0, count_cores() - busy),
            "modality": TASKS[record.task].modality,
            "task": record.task,
            "is_packed": bool(record.config.get("packing")),
            "train_sampling_strategy": args.train_sampling_strategy,
        },
    )
