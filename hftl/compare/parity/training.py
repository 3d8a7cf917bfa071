"""Were all arms tuned and trained alike, or as they declare?"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from hftl.compare.parity.study import OWN_LENGTH, Cell, Evidence, Finding, Rule, Study
from hftl.compare.parity.tools import (
    BATCH,
    CHECKPOINT,
    DURATION,
    INPUTS,
    compare_cells,
    count_trials,
    find_planned,
    gather,
    read_budget,
    read_length,
    see,
    show,
    take_settings,
)

RATES = ("learning_rate", "head_learning_rate", "weight_decay", "warmup_steps", "lr_scheduler_type")
TUNABLE = (*RATES, *DURATION, *BATCH)
CHECKED = (*TUNABLE, *CHECKPOINT, *INPUTS)  # declared settings that a cell must have run with
STILL_FALLING = 0.02  # share of the validation loss, over the last fifth of the steps


def _find_unequal_trials(study: Study) -> list[Finding] | None:
    planned = study.expected.get("trials")
    if planned is None:
        return compare_cells(study.trained, lambda cell: {"trials": count_trials(cell)})
    counts = [(cell, count_trials(cell)) for cell in study.trained]
    evidence = [
        see(c, "trials", f"{count}, planned {planned},") for c, count in counts if count not in (None, planned)
    ]
    return gather(evidence) or (None if any(count is None for _, count in counts) else [])


def _find_edges(study: Study) -> list[Finding] | None:
    found: dict[bool, list[Evidence]] = {False: [], True: []}
    tuned = [(cell, cell["tuning"]) for cell in study.trained if cell.get("tuning")]
    for cell, tuning in tuned:
        if tuning.get("best_at_edge"):
            item = see(cell, "best value", f"at the edge of {tuning.get('range') or 'its range'}")
            found[bool(tuning.get("extended"))].append(item)
    is_known = bool(tuned) and all(tuning.get("best_at_edge") is not None for _, tuning in tuned)
    return gather(found[False]) + gather(found[True], "warns") or ([] if is_known else None)


def _find_undeclared_settings(study: Study) -> list[Finding] | None:
    schedules = study.expected.get("schedules") or {}
    skipped = () if study.frame in OWN_LENGTH else DURATION  # there the frame sets the length
    evidence = []
    for cell in study.trained:
        tuned = (cell.get("tuning") or {}).get("best") or {}
        own = (name for name in CHECKED if name in study.settings(cell["arm"]))
        for name in dict.fromkeys([*(schedules.get(cell["arm"]) or {}), *tuned, *own]):
            found, planned = take_settings(cell, name)[name], find_planned(study, cell, name)
            if name in skipped or None in (found, planned) or (name == "max_steps" and found <= 0):
                continue  # a length given in epochs is judged by the steps taken, below
            if _differs(found, planned):
                evidence.append(see(cell, name, f"{show(found)}, declared {show(planned)},"))
        evidence += _compare_steps(study, cell)
    return gather(evidence) or ([] if schedules else None)


def _compare_steps(study: Study, cell: Cell) -> list[Evidence]:
    """Steps taken against those that the schedule asks for; fewer are fine where stopping early is declared."""
    planned = find_planned(study, cell, "max_steps") or take_settings(cell, "max_steps")["max_steps"] or -1
    planned = int(planned)  # as text, if an experiment file declares it
    steps = cell.get("num_steps")
    if steps is None or planned <= 0 or study.frame not in OWN_LENGTH:
        return []
    may_stop = study.frame == "convergence" or find_planned(study, cell, "early_stopping_patience")
    if steps == planned or (may_stop and steps < planned):
        return []
    return [see(cell, "num_steps", f"{steps}, its schedule has {planned},")]


def _differs(found: Any, planned: Any) -> bool:
    """By more than 0.1 % if it is a number: a rate may have been written with four digits."""
    found, planned = (v[0] if isinstance(v, list | tuple) and len(v) == 1 else v for v in (found, planned))
    try:
        return abs(float(found) - float(planned)) > 1e-3 * abs(float(planned))
    except (TypeError, ValueError):  # not numbers; settings of a YAML file may be text ("true") where a run has a bool
        return str(found).casefold() != str(planned).casefold()


def _find_hand_set(study: Study) -> list[Finding]:
    untuned = dict.fromkeys(cell["arm"] for cell in study.trained if not count_trials(cell))
    evidence = []
    for name in TUNABLE:
        values = {arm: study.settings(arm)[name] for arm in untuned if name in study.settings(arm)}
        if len(values) < len(untuned):
            evidence += [
                Evidence(arm, name, f"{show(value)} by hand, without trials") for arm, value in values.items()
            ]
    return gather(evidence)


def _find_unequal_budget(frame: str, tolerance: float, study: Study) -> list[Finding] | None:
    if study.frame != frame:
        return None
    return compare_cells(study.trained, partial(read_budget, frame), by=("size", "seed"), tolerance=tolerance)


def _find_own_lengths(study: Study) -> list[Finding] | None:
    return compare_cells(study.trained, read_length, by=("size", "seed")) if study.frame in OWN_LENGTH else None


def _find_unconverged(study: Study) -> list[Finding] | None:
    evidence, is_known = [], bool(study.trained)
    for cell in study.trained:
        fall, converged = _compute_late_fall(cell.get("validation_history") or []), cell.get("converged")
        if fall is not None and fall > STILL_FALLING:
            evidence.append(see(cell, "validation loss", f"fell {fall:.1%} over the last fifth"))
        elif converged is False:
            evidence.append(see(cell, "training", "stopped before it converged"))
        is_known = is_known and (fall is not None or converged is not None)
    return gather(evidence, "blocks" if study.frame == "convergence" else None) or ([] if is_known else None)


def _compute_late_fall(history: Sequence[Mapping[str, float]]) -> float | None:
    """Share by which the loss fell from the last point within four fifths of the steps to the end."""
    points = sorted((point["step"], point["loss"]) for point in history if point.get("loss") is not None)
    early = [loss for step, loss in points if step <= 0.8 * points[-1][0]]
    if not early or early[-1] == 0:
        return None
    return (early[-1] - points[-1][1]) / abs(early[-1])


RULES = [
    Rule(
        "unequal tuning",
        "blocks",
        "The arm with more trials wins more often.",
        _find_unequal_trials,
        "The same number of tuning trials for every trained arm.",
    ),
    Rule(
        "LR-edge",
        "blocks",
        "The optimum may be outside: no claim that this arm is worse, until its range is extended.",
        _find_edges,
        "The best value of every tuned arm lies inside its range.",
    ),
    Rule(
        "undeclared settings",
        "blocks",
        "The arm did not run as declared; a crippled opponent is easily beaten.",
        _find_undeclared_settings,
        "Every trained arm ran with the settings that were declared for it.",
    ),
    Rule("set by hand", "warns", "The other arms kept their defaults: uneven care.", _find_hand_set),
    Rule(
        "unequal training",
        "blocks",
        "The budget is said to be equal steps.",
        partial(_find_unequal_budget, "steps", 0.0),
        "The same optimizer steps, examples seen and batch size for every trained arm.",
    ),
    Rule(
        "unequal FLOPs",
        "blocks",
        "The budget is said to be equal FLOPs (within 5 %).",
        partial(_find_unequal_budget, "flops", 0.05),
        "The same training FLOPs for every trained arm, within 5 %.",
    ),
    Rule(
        "unequal training time",
        "blocks",
        "The budget is said to be equal training time (within 10 %).",
        partial(_find_unequal_budget, "wall_time", 0.10),
        "The same training time for every trained arm, within 10 %.",
    ),
    Rule(
        "different number of steps",
        "notes",
        "By design: each arm follows its own schedule.",
        _find_own_lengths,
        "The same optimizer steps, examples seen and batch size for every trained arm.",
    ),
    Rule(
        "not converged",
        "warns",
        "With a longer schedule this arm may score higher.",
        _find_unconverged,
        "No trained arm was still improving on validation when it stopped.",
    ),
]
