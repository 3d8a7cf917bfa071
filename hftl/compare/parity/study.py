"""What a rule of parity reads and gives: the cells with their plan, evidence, findings; and what readers share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hftl.models.modes import Role

FRAMES = ("own_schedule", "convergence", "steps", "flops", "wall_time")
OWN_LENGTH = ("own_schedule", "convergence")  # the frames in which arms may train for different numbers of steps
SEVERITIES = ("blocks", "warns", "notes")

Cell = Mapping[str, Any]


class Evidence(NamedTuple):
    """One thing that a rule saw, such as ("lora", "dtype", "bfloat16 against float32 at n=128, seed 1")."""

    arm: str
    field: str
    text: str


@dataclass(frozen=True)
class Finding:
    """What one rule found: `severity` only where it is not the rule's own."""

    arms: list[str]
    detail: str
    severity: str | None = None


@dataclass(frozen=True)
class Study:
    """The cells that enter a verdict, and what was planned."""

    cells: list[Cell]  # role final, any status
    arms: Mapping[str, Mapping[str, Any]]
    question: Mapping[str, Any]
    expected: Mapping[str, Any]
    frame: str

    @property
    def completed(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.get("status", "completed") == "completed"]

    @property
    def trained(self) -> list[Cell]:
        return [cell for cell in self.completed if self.is_trained(cell["arm"])]

    def is_trained(self, name: str) -> bool:
        """Whether the arm has a training loop, and so a schedule and optimizer steps."""
        return self.arms[name].get("role", Role.TUNED).is_trained

    def settings(self, name: str) -> Mapping[str, Any]:
        """What the arm declares for itself alone."""
        return self.arms[name].get("settings") or {}


@dataclass(frozen=True)
class Rule:
    """One thing that must be equal.

    Attributes:
        find: the findings; None where what is stated does not suffice to say that it was equal.
        equal: the sentence for the report when there is no finding.
    """

    what: str
    severity: str
    reason: str
    find: Callable[[Study], list[Finding] | None]
    equal: str = ""
