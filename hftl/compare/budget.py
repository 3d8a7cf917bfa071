"""What will a cell take, and how many steps does a budget buy? Measured on a few real steps of each arm.

A pilot runs two short trainings of an arm at the smallest size; the difference between them is the cost of a step.
It must not know what an arm scores.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftl.compare.campaign import Campaign, is_finished
from hftl.compare.experiment import Arm, Experiment
from hftl.compare.plan import Cell, build_cell, default_steps, effective_batch_size, parse_cell, split_budget
from hftl.errors import UserError
from hftl.run_record import RunRecord
from hftl.training.continued_pretraining import find_folder, list_settings, read_texts

SHORT, LONG = 2, 8  # optimizer steps of the two trainings
NUM_TEST_ROWS = 64  # at most
NUM_TEXTS = 320  # of a pretraining: its batches, and some to be held out


@dataclass(frozen=True)
class Pilot:
    """What one arm takes on this machine.

    Attributes:
        seconds_per_step: of training, None for what is not trained.
        flops_per_step: the same.
        seconds_per_row: of evaluation.
        fixed_seconds: start, fit of the head and saving; for what is not trained, all of it.
    """

    seconds_per_step: float | None
    flops_per_step: float | None
    seconds_per_row: float
    fixed_seconds: float


def run_pilots(campaign: Campaign, modality: str) -> dict[str, Pilot]:
    """Measure every arm once a campaign folder.

    Raises:
        UserError: an arm cannot be trained; the message is that of its run.
    """
    experiment = campaign.experiment
    num_test_rows = min(NUM_TEST_ROWS, campaign.facts.num_rows["test"])
    cells = {arm.name: _pilot_cells(experiment, arm, modality, num_test_rows) for arm in experiment.arms}
    campaign.run([cell for pair in cells.values() for cell in pair], "Pilots")
    return {name: _measure(campaign, pair) for name, pair in cells.items()}


def choose_steps(
    experiment: Experiment, pilots: Mapping[str, Pilot], modality: str
) -> dict[tuple[str, int], dict[str, Any]]:
    """`max_steps` of each trained arm and size under the frames `flops` and `wall_time`; nothing under the others.

    Raises:
        UserError: the reference arm is not trained, so that it has no budget to give.
    """
    if experiment.frame not in ("flops", "wall_time"):
        return {}
    reference = experiment.arm(experiment.reference)
    if not reference.is_trained:
        raise UserError(f"budget: {experiment.frame} takes the budget of a trained arm; set `reference`.")
    per_step = {arm.name: _spending(pilots[arm.name], experiment.frame) for arm in experiment.arms if arm.is_trained}
    chosen = {}
    for size in experiment.sizes:
        budget = plan_steps(experiment, reference, size, modality, {}) * per_step[reference.name]
        for name, spent in per_step.items():
            chosen[name, size] = {"max_steps": max(1, round(budget / spent))}
    return chosen


def predict_seconds(experiment: Experiment, cell: Cell, pilot: Pilot, modality: str, num_test_rows: int) -> float:
    """Seconds that a cell will take in one worker."""
    arm = experiment.arm(cell.arm)
    rows = (
        split_budget(experiment, cell.size)["num_validation_examples"] * (6 if arm.is_trained else 1) + num_test_rows
    )
    steps = plan_steps(experiment, arm, cell.size, modality, cell.settings) or 0
    return pilot.fixed_seconds + steps * (pilot.seconds_per_step or 0.0) + rows * pilot.seconds_per_row


def plan_steps(experiment: Experiment, arm: Arm, size: int, modality: str, settings: Mapping[str, Any]) -> int | None:
    """Optimizer steps that a cell makes, at most; None where nothing is trained."""
    if not arm.is_trained:
        return None
    settings = {**experiment.settings, **settings, **arm.settings}
    if settings.get("max_steps") is not None:
        return int(settings["max_steps"])
    num_train = size - split_budget(experiment, size)["num_validation_examples"]
    batch_size = effective_batch_size(settings)
    if settings.get("num_train_epochs") is not None:
        return math.ceil(float(settings["num_train_epochs"]) * -(-num_train // batch_size))  # as Trainer does
    return default_steps(arm, modality, num_train, batch_size)


def predict_pretrainings(campaign: Campaign, modality: str) -> list[tuple[Cell, float, bool]]:
    """Each pretraining on own texts with its seconds, once however many cells start from it, and whether it is made.

    The start on a few texts is timed: looking through all of them and cutting them into tokens comes on top.
    """
    experiment, found = campaign.experiment, {}
    for arm in experiment.arms:
        cell = build_cell(experiment, arm, experiment.sizes[0], experiment.seeds[0], {}, modality=modality)
        args = parse_cell(cell)
        if args.model.pretrain_file is not None:
            found.setdefault(find_folder(args), (arm.name, args))
    rows = []
    for folder, (name, args) in found.items():
        num_texts = len(read_texts(args))
        planned = Cell(f"{name}-pretraining", num_texts, 0, "pretraining", list_settings(args, num_texts))
        cuts = {"num_train_examples": NUM_TEXTS - NUM_TEST_ROWS, "num_validation_examples": NUM_TEST_ROWS}
        cuts = {"validation_fraction": 0.2} | (cuts if num_texts > 2 * NUM_TEXTS else {})
        cells = [
            dataclasses.replace(planned, settings=planned.settings | cuts | {"max_steps": steps}, trial=steps)
            for steps in (SHORT, LONG)
        ]
        if not folder.is_dir():
            campaign.run(cells, "Pilots of the pretraining")
        rows.append((planned, 0.0 if folder.is_dir() else _extrapolate(campaign, cells, planned), folder.is_dir()))
    return rows


def _extrapolate(campaign: Campaign, cells: list[Cell], planned: Cell) -> float:
    """Seconds of a pretraining, from those of two short ones."""
    pilot = _measure(campaign, cells)
    num_rows = round(planned.size * planned.settings["validation_fraction"])
    steps = int(planned.settings["max_steps"])
    return pilot.fixed_seconds + steps * pilot.seconds_per_step + num_rows * pilot.seconds_per_row


def _pilot_cells(experiment: Experiment, arm: Arm, modality: str, num_test_rows: int) -> list[Cell]:
    cells = []
    for steps in (SHORT, LONG) if arm.is_trained else (0,):
        cell = build_cell(experiment, arm, experiment.sizes[0], experiment.seeds[0], {}, modality=modality)
        settings = cell.settings | {"num_test_examples": num_test_rows, "pretrain_file": None}  # timed by itself
        if steps:
            settings |= {"max_steps": steps, "eval_strategy": "no", "save_strategy": "no"}
            settings |= {"load_best_model_at_end": "false", "early_stopping_patience": None, "num_train_epochs": None}
        cells.append(dataclasses.replace(cell, settings=settings, role="pilot", trial=steps))
    return cells


def _measure(campaign: Campaign, cells: list[Cell]) -> Pilot:
    jobs = [campaign.job(cell) for cell in cells]
    records = [RunRecord.read(Path(job.folder)) for job in jobs if is_finished(job)]
    for record in records:
        if record.status != "completed":
            raise UserError(f"The arm {cells[0].arm!r} cannot be run: {record.error}")
    first, cost = records[0].cost, records[-1].cost
    rows = sum(records[-1].data.get(f"num_{split}_examples") or 0 for split in ("validation", "test"))
    per_row = cost["evaluation_seconds"] / rows
    if len(records) == 1:
        return Pilot(None, None, per_row, cost["wall_seconds"] - cost["evaluation_seconds"])
    per_step = max(1e-9, (cost["train_seconds"] - first["train_seconds"]) / (LONG - SHORT))
    flops = (cost["train_flops"] - first["train_flops"]) / (LONG - SHORT) if cost["train_flops"] else None
    fixed = cost["wall_seconds"] - cost["evaluation_seconds"] - LONG * per_step
    return Pilot(per_step, flops, per_row, max(0.0, fixed))


def _spending(pilot: Pilot, frame: str) -> float:
    spent = pilot.flops_per_step if frame == "flops" else pilot.seconds_per_step
    if not spent:
        raise UserError("budget: flops needs operations that can be counted; torch_compile hides them.")
    return spent
