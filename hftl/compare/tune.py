"""Which settings does each arm get? The same number of trials for every trained arm, on a chain that is not evaluated.

Trials are spread evenly over the logarithms of declared ranges and judged on validation rows; the test set is never
scored for them. The study of each arm and size is kept by Optuna in the campaign folder.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import qmc

from hftl.compare.campaign import Campaign
from hftl.compare.experiment import TUNING_SEED, Arm
from hftl.compare.plan import Cell, build_cell
from hftl.errors import UserError
from hftl.records import RunRecord

logger = logging.getLogger(__name__)

STUDIES_FILE = "tuning.log"
EDGE = 0.05  # a best value within this share of the range (on a logarithmic scale) from an end is at its edge


def tune(campaign: Campaign, modality: str) -> tuple[dict[tuple[str, int], dict[str, Any]], dict[str, Any]]:
    """Run the trials that are missing.

    Returns:
        (arm, size) -> settings for every size of the ladder, and what was tried, for the report: arm -> size ->
        trials, ranges, best values, whether one lies at the edge of its range, scores of all trials.
    """
    experiment = campaign.experiment
    if not experiment.trials:
        return {}, {}
    arms = [arm for arm in experiment.arms if arm.is_trained]
    cells = {(arm.name, size): _ask(campaign, arm, size, modality) for arm in arms for size in experiment.tuning_sizes}
    campaign.run([cell for trials in cells.values() for cell in trials], "Tuning")
    found: dict[str, Any] = {arm.name: {} for arm in arms}
    for (name, size), trials in cells.items():
        found[name][size] = _judge(campaign, experiment.arm(name), size, trials)
    return {(arm.name, size): interpolate(found[arm.name], size) for arm in arms for size in experiment.sizes}, found


def interpolate(found: dict[int, dict[str, Any]], size: int) -> dict[str, float]:
    """Settings at a size between those that were tuned: logarithm against logarithm, constant outside."""
    sizes = sorted(found)
    return {
        flag: float(
            np.exp(np.interp(np.log(size), np.log(sizes), [math.log(found[other]["best"][flag]) for other in sizes]))
        )
        for flag in found[sizes[0]]["best"]
    }


def _study(campaign: Campaign, arm: Arm, size: int) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name=f"{arm.name}-n{size}",
        storage=JournalStorage(JournalFileBackend(str(campaign.folder / STUDIES_FILE))),
        direction="maximize" if campaign.score.greater_is_better else "minimize",
        load_if_exists=True,
    )


def _ask(campaign: Campaign, arm: Arm, size: int, modality: str) -> list[Cell]:
    """The trials of one study as cells; a study that was begun before keeps its draws."""
    import optuna

    experiment, study = campaign.experiment, _study(campaign, arm, size)
    space = {flag: optuna.distributions.FloatDistribution(*limits, log=True) for flag, limits in arm.ranges.items()}
    for values in spread_trials(arm.ranges, experiment.trials - len(study.trials), seed=size + len(study.trials)):
        study.enqueue_trial(values)
        study.ask(space)
    cells = []
    for trial in study.trials[: experiment.trials]:
        free = dataclasses.replace(arm, settings={k: v for k, v in arm.settings.items() if k not in trial.params})
        cell = build_cell(experiment, free, size, TUNING_SEED, trial.params, modality=modality, trial=trial.number)
        # No row of the test set is scored for a trial: it could be chosen by it.
        cells.append(dataclasses.replace(cell, settings=cell.settings | {"evaluate_test": "false"}))
    return cells


def spread_trials(ranges: Mapping[str, tuple[float, float]], num_trials: int, seed: int) -> list[dict[str, float]]:
    """Settings that fill their ranges: cut each into as many equal parts, take the middle of every part once.

    A Latin hypercube (McKay et al. 1979). Of three numbers drawn at random, all may lie in the lowest fifth. The same
    ratios for every arm of the same number of ranges.
    """
    if num_trials < 1:
        return []
    points = qmc.LatinHypercube(len(ranges), scramble=False, rng=seed).random(num_trials)  # [T, D] in (0, 1)
    return [
        {
            flag: float(np.exp(math.log(low) + share * (math.log(high) - math.log(low))))
            for share, (flag, (low, high)) in zip(point, ranges.items(), strict=True)
        }
        for point in points
    ]


def _judge(campaign: Campaign, arm: Arm, size: int, cells: list[Cell]) -> dict[str, Any]:
    """Tell Optuna the scores and take the best; a trial that diverged counts as the worst."""
    from optuna.trial import TrialState

    experiment, study = campaign.experiment, _study(campaign, arm, size)
    scores: list[float | None] = []
    for cell in cells:
        record = RunRecord.read(Path(campaign.job(cell).folder))
        score = record.metrics["validation"][experiment.metric] if record.status == "completed" else None
        scores.append(score)
        if study.trials[cell.trial].state == TrialState.RUNNING:
            state = TrialState.FAIL if score is None else TrialState.COMPLETE
            study.tell(cell.trial, score, state=state)
    if all(score is None for score in scores):
        raise UserError(f"Every trial of {arm.name} at {size} labels failed. Lower its ranges; see {campaign.folder}.")
    best = study.best_trial
    at_edge = [flag for flag, limits in arm.ranges.items() if _is_at_edge(best.params[flag], *limits)]
    if at_edge:
        logger.warning("%s at %d labels: the best %s lies at the edge of its range.", arm.name, size, at_edge[0])
    return {
        "trials": len(cells),
        "range": {flag: list(limits) for flag, limits in arm.ranges.items()},
        "best": dict(best.params),
        "best_score": best.value,
        "best_at_edge": bool(at_edge),
        "at_edge": at_edge,
        "scores": scores,
        "values": [study.trials[cell.trial].params for cell in cells],
    }


def _is_at_edge(value: float, low: float, high: float) -> bool:
    position = (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return not EDGE < position < 1 - EDGE
