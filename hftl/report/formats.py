"""How is a number written? One rule for each kind of number, so that the page, the Markdown and the drawings agree.

Nothing here knows where a number comes from. What is no finite number is written as a dash.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NO_NUMBER = "–"
# Metrics that are shares of one, written in per cent. The others keep their own unit.
SHARES = {
    "accuracy", "balanced_accuracy", "f1_micro", "f1_macro", "f1_weighted", "f1", "exact_match",
    "mean_average_precision", "expected_calibration_error", "precision", "recall",
}  # fmt: skip
BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _with_sign(digits: str, value: float, is_signed: bool) -> str:
    """A difference that rounds to zero keeps its sign: it says on which side of zero it lies."""
    return ("−" if value < 0 else "+" if is_signed and value > 0 else "") + digits


@dataclass(frozen=True)
class ScoreFormat:
    """Scores of one metric as text: 61.3 % where it is a share of one, else 1.204."""

    is_share: bool

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> "ScoreFormat":
        """For the metric of the question."""
        return cls(results["question"]["metric"] in SHARES)

    @property
    def unit(self) -> str:
        """Unit of a difference."""
        return "points" if self.is_share else "in the unit of the metric"

    def write_bare(self, value: float | None, *, is_signed: bool = False) -> str:
        """61.3 or +3.1, without a unit."""
        if not is_number(value):
            return NO_NUMBER
        digits = f"{abs(100 * value):.1f}" if self.is_share else f"{abs(value):,.3f}"
        return _with_sign(digits, value, is_signed)

    def write(self, value: float | None) -> str:
        """61.3 %"""
        return self.write_bare(value) + (" %" if self.is_share and is_number(value) else "")

    def write_range(self, low: float | None, high: float | None) -> str:
        """59.0 to 63.6 %"""
        if not (is_number(low) and is_number(high)):
            return NO_NUMBER
        return f"{self.write_bare(low)} to {self.write(high)}"

    def write_difference(self, value: float | None) -> str:
        """+3.1: in points, or in the unit of the metric."""
        return self.write_bare(value, is_signed=True)

    def write_differences(self, low: float | None, high: float | None) -> str:
        """+1.2 to +5.0"""
        if not (is_number(low) and is_number(high)):
            return NO_NUMBER
        return f"{self.write_difference(low)} to {self.write_difference(high)}"


def format_level(alpha: float | None) -> str:
    """Level of an interval with a space after it, `95 % `; empty where it is not known."""
    return f"{100 * (1 - alpha):.4g} % " if is_number(alpha) else ""


def format_share(value: float | None) -> str:
    """A number that is a share whatever the metric of the question is: 61.3 %."""
    return ScoreFormat(is_share=True).write(value)


def format_count(value: float | None) -> str:
    """1,024"""
    return f"{value:,.0f}" if is_number(value) else NO_NUMBER


def format_seconds(value: float | None) -> str:
    """0.02, 4.1, 163 and 1,204: in seconds throughout, so that columns compare."""
    if not is_number(value):
        return NO_NUMBER
    return f"{value:,.{0 if value >= 100 or value == 0 else 1 if value >= 1 else 2}f}"


def format_money(value: float | None) -> str:
    """12.40, and 0.0012 below a cent."""
    if not is_number(value):
        return NO_NUMBER
    if value == 0 or abs(value) >= 0.01:
        return f"{value:,.2f}"
    return f"{value:.2g}" if abs(value) >= 0.0001 else "< 0.0001"


def format_p(value: float | None) -> str:
    """0.031, and < 0.001."""
    if not is_number(value):
        return NO_NUMBER
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_bytes(value: float | None) -> str:
    """2.8 MB: thousands, not 1,024."""
    if not is_number(value):
        return NO_NUMBER
    power = min(len(BYTE_UNITS) - 1, int(math.log10(max(value, 1)) // 3))
    return f"{value / 1000**power:,.{0 if power == 0 else 1}f} {BYTE_UNITS[power]}"


def format_flops(value: float | None) -> str:
    """3.2e+14"""
    return f"{value:.1e}" if is_number(value) else NO_NUMBER


def format_any(value: Any) -> str:
    """A setting or a version as text."""
    if value is None:
        return NO_NUMBER
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {format_any(item)}" for key, item in value.items()) or NO_NUMBER
    if isinstance(value, list):
        return ", ".join(map(format_any, value)) or NO_NUMBER
    return str(value)
