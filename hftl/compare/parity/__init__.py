"""What was held equal between the arms of a comparison, and what was not?

Lists of rules read plain dictionaries, one for each cell, and say which arms differ and what that costs: `blocks` (no
verdict on a pair with that arm), `warns` (say it next to the verdict), `notes` (by design, but visible). What was not
stated is said as well. This package must not know how a cell was run, open a file, or see a score.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hftl.compare.parity import data, machine, seeds, stated, training
from hftl.compare.parity.study import FRAMES, SEVERITIES, Cell, Rule, Study
from hftl.errors import UserError, unknown_name

PLAN = ("seeds", "sizes", "arms", "trials", "frame", "schedules", "overlaps", "minimum_detectable_difference")
RULES: list[Rule] = [*data.RULES, *seeds.RULES, *training.RULES, *machine.RULES, *stated.RULES]


def check_parity(
    cells: Sequence[Cell],
    question: Mapping[str, Any],
    arms: Sequence[Mapping[str, Any]],
    *,
    expected: Mapping[str, Any],
) -> dict[str, Any]:
    """Say what was equal between the arms and flag the rest.

    Args:
        cells: One dictionary for each cell, with what is known of: arm, size (labels), seed, role, status,
            num_train_examples, num_validation_examples, num_steps, num_examples_seen, train_flops, train_seconds,
            train_seconds_include (what else is in them, such as "evaluation"), data_fingerprints and row_ids by
            split, overlaps (rows shared, such as {"train_test": 0}), config (settings, flat; all of them, or as hftl
            records them without those at their defaults), environment, code, validation_history ([{"step", "loss"}]),
            converged, num_test_reads, has_predictions (default: there is a folder), tuning (None: not tuned; or
            trials, best_at_edge, extended, range, and best: the settings which this very cell got from tuning),
            pretrained (steps, num_texts, num_examples_seen, train_flops, train_seconds, perplexity of what was
            trained on texts without labels before, which are in its train_flops and train_seconds).
        question: task, checkpoint, margin, budget, as in results.json.
        arms: name, role, keeps_base, settings (what is declared for this arm alone).
        expected: The plan: seeds, sizes, arms {name: role}, trials, frame (one of `FRAMES`), schedules
            {arm: {setting: value or {size: value}}} with each arm's own defaults, overlaps for all cells, and
            minimum_detectable_difference in units of the metric. All are optional but the frame, which may also be
            in question["budget"]["frame"].

    Returns:
        {"is_blocked", "equal": [sentences], "flags": [{"severity", "what", "arms", "detail"}]}, worst flags first. A
        flag without arms is about all of them.

    Raises:
        UserError: a key of `expected`, a frame or the arm of a cell is unknown, or there is no cell.
    """
    study = _build_study(cells, question, arms, expected)
    equal, flags = [], []
    for rule in RULES:
        findings = rule.find(study)
        if findings == [] and rule.equal:
            equal.append(rule.equal)
        for item in findings or []:
            severity, detail = item.severity or rule.severity, " ".join(filter(None, (item.detail, rule.reason)))
            flags.append({"severity": severity, "what": rule.what, "arms": item.arms, "detail": detail})
    flags.sort(key=lambda flag: SEVERITIES.index(flag["severity"]))
    return {"is_blocked": any(flag["severity"] == "blocks" for flag in flags), "equal": equal, "flags": flags}


def check_table(
    rows: Sequence[Cell],
    *,
    question: Mapping[str, Any] | None = None,
    expected: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`check_parity` for somebody else's table, of which only some fields are known; one call for each task.

    Each row is a cell that also carries its arm's `role`, `keeps_base` and `settings`, where known. A table that
    names no budget frame is read as one of equal training.
    """
    arms: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = {key: row[key] for key in ("role", "keeps_base", "settings") if row.get(key) is not None}
        arms.setdefault(row["arm"], {"name": row["arm"]}).update(known)
    question, plan = question or {}, dict(expected or {})
    plan.setdefault("frame", (question.get("budget") or {}).get("frame") or "steps")
    return check_parity(rows, question, list(arms.values()), expected=plan)


def _build_study(cells: Sequence[Cell], question: Mapping, arms: Sequence[Mapping], expected: Mapping) -> Study:
    for key in expected.keys() - set(PLAN):
        raise unknown_name("key of the expected plan", key, PLAN)
    frame = expected.get("frame") or (question.get("budget") or {}).get("frame") or "none"
    if frame not in FRAMES:
        raise unknown_name("budget frame", frame, FRAMES)
    by_name = {name: {"role": role} for name, role in (expected.get("arms") or {}).items()}
    by_name |= {arm["name"]: {**by_name.get(arm["name"], {}), **arm} for arm in arms}
    finals = [cell for cell in cells if cell.get("role", "final") == "final"]
    if not finals:
        raise UserError("There is no finished cell to compare; expected one for each arm, size and seed. Run some.")
    for name in {cell["arm"] for cell in finals} - by_name.keys():
        raise unknown_name("arm of a cell", name, by_name)
    return Study(finals, by_name, question, expected, frame)
