"""Which runs make up the comparison? Every cell with all its settings, checked against the data before any is run.

It must not know how a cell is run or what it scored.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hftl.baselines import BASELINES, find_baseline
from hftl.compare.experiment import CONVERGENCE_FACTOR, TUNING_SEED, Arm, Experiment
from hftl.config import Arguments, parse_args
from hftl.config.yaml_file import as_flag
from hftl.cost.prices import load_prices
from hftl.data.load import compute_fingerprint
from hftl.data.subsets import split_validation
from hftl.errors import UserError
from hftl.metrics.power import EXPECTED_DISAGREEMENT, minimum_detectable_difference
from hftl.models.modes import BATCH_SIZE, MODES, Schedule
from hftl.tasks import build_task, leading_score, scores_of
from hftl.training.continued_pretraining import check_pretraining
from hftl.training.settings import check_arguments, check_model
from hftl.training_data import load_rows


@dataclass(frozen=True)
class Cell:
    """One run of a campaign: an arm at a size, on a chain.

    Attributes:
        size: labels in all, those of validation included.
        role: `final`, or `tuning` for a trial on the tuning chain.
        trial: number of the trial.
        settings: every flag of the run.
    """

    arm: str
    size: int
    seed: int
    role: str
    settings: dict[str, Any]
    trial: int | None = None

    @property
    def name(self) -> str:
        trial = "" if self.trial is None else f"-trial{self.trial}"
        return f"{self.arm}-n{self.size}-seed{self.seed}{trial}"


@dataclass(frozen=True)
class DataFacts:
    """What the plan needs to know about the data.

    Attributes:
        task: its name.
        modality: text, image or language.
        num_rows: split -> rows that the ladder draws from (train, validation) or that are read (test).
        class_counts: rows of each class in train; empty unless rows have one class each.
        fingerprint: of all rows.
    """

    task: str
    modality: str
    problem_type: str
    label_names: tuple[str, ...]
    num_rows: dict[str, int]
    class_counts: dict[str, int]
    fingerprint: str


def inspect_data(experiment: Experiment) -> tuple[Experiment, DataFacts]:
    """Load the data once and check the ladder against them; sizes a class become sizes in all.

    Raises:
        UserError: no test set, a rung larger than the data, a class with too few rows, a test set that cannot show
            the margin, a metric or an arm that does not fit, a flag that `hftl train` would refuse.
    """
    first = build_cell(experiment, experiment.arms[0], max(experiment.sizes), experiment.seeds[0], {}, modality="text")
    data = parse_cell(dataclasses.replace(first, settings=_without_cuts(first.settings))).data
    task = build_task(data.task)
    splits, labels = load_rows(data)
    if "test" not in splits:
        raise UserError("A comparison needs a test set that no arm trains on: give data.test_file.")
    train, validation = (
        (splits["train"], splits["validation"])
        if "validation" in splits
        else split_validation(splits["train"], experiment.validation_fraction)
    )
    is_single = labels.problem_type == "single_label_classification"
    counts = np.bincount(train["label"][:], minlength=labels.num_labels) if is_single else []
    facts = DataFacts(
        task=task.name,
        modality=task.modality,
        problem_type=labels.problem_type,
        label_names=labels.names,
        num_rows={"train": len(train), "validation": len(validation), "test": _count_test(experiment, splits["test"])},
        class_counts={name: int(count) for name, count in zip(labels.names, counts, strict=False)},
        fingerprint="-".join(compute_fingerprint(splits[split]) for split in sorted(splits)),
    )
    if experiment.is_per_class:
        if not is_single:
            raise UserError("sizes_per_class needs one class a row; give sizes.")
        sizes = [tuple(size * labels.num_labels for size in s) for s in (experiment.sizes, experiment.tuning_sizes)]
        experiment = dataclasses.replace(
            experiment, sizes=sizes[0], tuning_sizes=sizes[1], num_classes=labels.num_labels
        )
    if experiment.metric is None:
        experiment = dataclasses.replace(experiment, metric=_choose_metric(facts.problem_type))
    _check_ladder(experiment, facts)
    _check_fit(experiment, facts)
    return experiment, facts


def list_cells(
    experiment: Experiment, modality: str, chosen: Mapping[tuple[str, int], dict[str, Any]] | None = None
) -> list[Cell]:
    """Every final cell, chain by chain, so that a campaign that is cut short has whole chains.

    Within a chain the large sizes come first: they take longest, and a worker that starts one last keeps all waiting.

    Args:
        experiment: from `inspect_data`.
        modality: text, image or language.
        chosen: (arm, size) -> settings found by tuning or by the budget frame; the arm's own settings come before.
    """
    chosen = chosen or {}
    return [
        build_cell(experiment, arm, size, seed, chosen.get((arm.name, size), {}), modality=modality)
        for seed in experiment.seeds
        for size in reversed(experiment.sizes)
        for arm in reversed(experiment.arms)
    ]


def build_cell(
    experiment: Experiment,
    arm: Arm,
    size: int,
    seed: int,
    chosen: Mapping[str, Any],
    *,
    modality: str,
    trial: int | None = None,
) -> Cell:
    """One cell with all its flags: data, ladder, settings of all, budget frame, what was chosen, the arm's own."""
    rows = split_budget(experiment, size)
    settings = {**experiment.data, **rows, "seed": seed, "validation_seed": seed}
    settings |= {"validation_fraction": experiment.validation_fraction, **experiment.settings}
    if arm.is_trained:
        settings |= _frame_settings(experiment, arm, settings, modality, size)
    settings |= {**chosen, **arm.settings}
    return Cell(arm.name, size, seed, "final" if trial is None else "tuning", settings, trial)


def split_budget(experiment: Experiment, size: int) -> dict[str, int]:
    """How the labels of a rung are divided: validation labels are part of what was paid for."""
    num_validation = _num_validation(experiment, size)
    if experiment.num_classes:
        per_class = (size - num_validation) // experiment.num_classes
        return {"num_train_examples_per_class": per_class, "num_validation_examples": num_validation}
    return {"num_train_examples": size - num_validation, "num_validation_examples": num_validation}


def _num_validation(experiment: Experiment, size: int) -> int:
    classes = experiment.num_classes or 1
    return classes * max(1, round(experiment.validation_fraction * size / classes))


def parse_cell(cell: Cell, folder: Path | None = None) -> Arguments:
    """The typed arguments of a cell, by the one path that every flag takes.

    Raises:
        UserError: a flag or a value that `hftl train` would not take.
    """
    settings = dict(cell.settings) | {"disable_tqdm": "true"}
    mode = settings.pop("mode")
    words = [word for name, value in settings.items() if value is not None for word in as_flag(name, value)]
    words += ["--output_dir", str(folder)] if folder else []
    return parse_args(words, mode=mode)


def default_steps(arm: Arm, modality: str, num_train_examples: int, batch_size: int = BATCH_SIZE) -> int | None:
    """Optimizer steps of the arm's own schedule; None where nothing is trained."""
    if not arm.is_trained:
        return None
    schedule = Schedule(modality, num_train_examples, hidden_size=768, is_convolutional=False, batch_size=batch_size)
    return MODES[arm.mode].defaults(schedule)["max_steps"]  # depends neither on the width nor on the kind of network


def _frame_settings(
    experiment: Experiment, arm: Arm, settings: Mapping[str, Any], modality: str, size: int
) -> dict[str, Any]:
    """What the budget frame says about a trained arm; validation losses on the way show whether it converged."""
    if experiment.frame == "steps":
        return {"max_steps": experiment.steps_at(size), "eval_strategy": "steps", "eval_steps": 0.2}
    if experiment.frame != "convergence":
        return {"eval_strategy": "steps", "eval_steps": 0.2}
    num_train = size - _num_validation(experiment, size)
    steps = default_steps(arm, modality, num_train, effective_batch_size({**settings, **arm.settings}))
    every = max(1, steps // 5)
    return {
        "max_steps": CONVERGENCE_FACTOR * steps,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 1,
        "save_only_model": "true",
        "load_best_model_at_end": "true",
        "metric_for_best_model": "loss",
        "early_stopping_patience": 5,
    }


def effective_batch_size(settings: Mapping[str, Any]) -> int:
    """Examples of an optimizer step that the settings ask for."""
    size = int(settings.get("per_device_train_batch_size", BATCH_SIZE))
    return size * int(settings.get("gradient_accumulation_steps", 1))


def _without_cuts(settings: Mapping[str, Any]) -> dict[str, Any]:
    cuts = ("num_train_examples", "num_train_examples_per_class", "num_validation_examples", "num_test_examples")
    return {name: value for name, value in settings.items() if name not in cuts}


def _count_test(experiment: Experiment, rows: Any) -> int:
    wanted = experiment.data.get("num_test_examples")
    if wanted is not None and int(wanted) > len(rows):
        raise UserError(f"data.num_test_examples is {wanted}, but test has {len(rows)} rows; ask for fewer.")
    return len(rows) if wanted is None else int(wanted)


def _check_ladder(experiment: Experiment, facts: DataFacts) -> None:
    """Does every rung fit into the data?"""
    num_classes = sum(count > 0 for count in facts.class_counts.values()) or 1
    for size in experiment.sizes:
        num_validation = _num_validation(experiment, size)
        num_train = size - num_validation
        for split, wanted in (("train", num_train), ("validation", num_validation)):
            if wanted > facts.num_rows[split]:
                raise UserError(
                    f"A rung of {size} labels takes {wanted} from {split}, which has {facts.num_rows[split]}. "
                    f"The largest rung can be {_largest_rung(experiment, facts)}."
                )
        if num_train < num_classes:
            raise UserError(
                f"A rung of {size} labels leaves {num_train} for training, fewer than the {num_classes} classes."
            )
        if experiment.num_classes:
            per_class = num_train // experiment.num_classes
            small = {name: count for name, count in facts.class_counts.items() if count < per_class}
            if small:
                named = ", ".join(f"{name} has {count}" for name, count in sorted(small.items()))
                raise UserError(f"A rung asks for {per_class} training rows of each class, but {named}.")


def _largest_rung(experiment: Experiment, facts: DataFacts) -> int:
    fraction = experiment.validation_fraction
    return int(min(facts.num_rows["train"] / (1 - fraction), facts.num_rows["validation"] / fraction))


def _choose_metric(problem_type: str) -> str:
    """Accuracy, else the leading score, or the first that has an interval where that one has none."""
    scores = scores_of(problem_type)
    if "accuracy" in scores:
        return "accuracy"
    return next((name for name, score in scores.items() if score.by_row is not None), leading_score(problem_type))


def _check_fit(experiment: Experiment, facts: DataFacts) -> None:
    """Metric, test set and arms against the data, and each arm's flags by the parser of `hftl train`."""
    if experiment.metric not in (scores := scores_of(facts.problem_type)):
        valid = ", ".join(scores)
        raise UserError(f"metric is {experiment.metric!r}; for {facts.problem_type} give one of {valid}.")
    if scores[experiment.metric].by_row is None:
        fitting = ", ".join(name for name, score in scores.items() if score.by_row is not None)
        raise UserError(
            f"metric is {experiment.metric!r}, which has no interval over new rows; give one of {fitting}."
        )
    load_prices(None, experiment.prices)
    _check_test_set(experiment, facts.num_rows["test"])
    for arm in experiment.arms:
        if arm.mode in BASELINES:
            baseline = find_baseline(arm.mode, build_task(facts.task))
            needs_network = baseline.has_network
        else:
            needs_network = True
        if needs_network and "model_name_or_path" not in arm.settings:
            raise UserError(f"The arm {arm.name!r} needs a checkpoint: give model_name_or_path.")
        cell = build_cell(experiment, arm, experiment.sizes[0], TUNING_SEED, {}, modality=facts.modality)
        args = parse_cell(cell)
        try:
            check_pretraining(args)
            if arm.mode in MODES:
                check_arguments(args)
                check_model(args, build_task(args.data.task))
        except UserError as error:
            raise UserError(f"The arm {arm.name!r} cannot be run: {error}") from error
        for flag in arm.ranges:
            if not arm.is_trained:
                raise UserError(f"ranges: the arm {arm.name!r} is not trained, so {flag} cannot be tuned.")


def _check_test_set(experiment: Experiment, num_rows: int) -> None:
    """A test set that cannot show the margin leaves every verdict open: that is said before it is paid for."""
    if experiment.metric != "accuracy" or experiment.allow_small_test:
        return
    smallest = minimum_detectable_difference(num_rows, EXPECTED_DISAGREEMENT)
    if smallest is not None and smallest <= experiment.margin:
        return
    shows = "no difference" if smallest is None else f"differences of {100 * smallest:.1f} points or more"
    wider = "" if smallest is None else f"`margin: {np.ceil(1000 * smallest) / 1000:g}`, or "
    raise UserError(
        f"The test set has {num_rows} rows. If two arms differ on one answer in ten, it shows {shows} (80 % power); "
        f"margin is {100 * experiment.margin:.1f} points. Give more test rows, {wider}`allow_small_test: true` to "
        "compare all the same."
    )
