"""What does a cell not say, and what is lost by that?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from hftl.compare.parity.study import OWN_LENGTH, Cell, Finding, Rule, Study
from hftl.compare.parity.tools import (
    count_trials,
    read_budget,
    read_fingerprints,
    read_hardware,
    read_precision,
    read_versions,
)


def _read_predictions(cell: Cell) -> Any:
    return cell.get("has_predictions", bool(cell.get("folder"))) or None


@dataclass(frozen=True)
class Fact:
    """Something that every cell must state, and what is lost without it."""

    name: str
    severity: str
    read: Callable[[Cell], Any]
    lost: str
    is_training: bool = False  # only trained arms have it


def _find_unstated(study: Study) -> list[Finding]:
    severity = "warns" if study.frame in OWN_LENGTH else "blocks"
    lost = f"The budget frame ({study.frame}) cannot be checked."
    findings = []
    for fact in [*FACTS, Fact("length of training", severity, partial(read_budget, study.frame), lost, True)]:
        cells = study.trained if fact.is_training else study.completed
        if silent := sorted({cell["arm"] for cell in cells if _is_silent(fact.read(cell))}):
            findings.append(Finding(silent, f"{fact.name} of {', '.join(silent)}. {fact.lost}", fact.severity))
    return findings


def _is_silent(value: Any) -> bool:
    return all(item is None for item in value.values()) if isinstance(value, Mapping) else value is None


FACTS = [
    Fact("seeds", "blocks", lambda c: c.get("seed"), "There are no pairs and no interval over seeds."),
    Fact("predictions", "blocks", _read_predictions, "No paired test can be made."),
    Fact("trials", "blocks", count_trials, "A ranking may only show who was tuned more.", True),
    Fact("data", "warns", read_fingerprints, "That all arms saw the same rows cannot be checked."),
    Fact("precision", "warns", read_precision, "A lower precision can cost an arm its score.", True),
    Fact("hardware", "warns", read_hardware, "Seconds and memory cannot be compared."),
    Fact("versions", "warns", read_versions, "That one code made all scores cannot be checked."),
]
RULES = [Rule("not stated", "blocks", "", _find_unstated)]
