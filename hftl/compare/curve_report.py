"""What do the learning curves of a whole experiment say: fits, crossovers and label multipliers, in numbers and words?

Assembles the entries `curves`, `crossovers` and `multipliers` of results.json and leaves out what a partial experiment
does not determine. This module must not know files, cells or costs; all statistics are in `curves`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hftl.compare.curve_draws import Sampling
from hftl.compare.curve_fits import fit_curve
from hftl.compare.curves import DEFAULT, HORIZON, Backtest, Bounds, backtest, band, crossover, label_multiplier
from hftl.errors import UserError
from hftl.models.modes import Role

BAND_POINTS = 25


@dataclass(frozen=True)
class _Arms:
    """All arms of one experiment: sizes [L], errors [S, L] and row errors [S, L, N] or None by name, roles, titles."""

    sizes: np.ndarray
    errors: Mapping[str, np.ndarray]
    rows: Mapping[str, np.ndarray | None]
    roles: Mapping[str, Role]
    titles: Mapping[str, str]
    sampling: Sampling

    def of(self, *roles: Role) -> list[str]:
        return [arm for arm in self.errors if self.roles[arm] in roles]

    def rows_of(self, a: str, b: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Row errors of both arms, or None where one has none: noise of the rows is shared or not drawn at all."""
        rows = self.rows[a], self.rows[b]
        return None if rows[0] is None or rows[1] is None or rows[0].shape[2] != rows[1].shape[2] else rows

    def title(self, arm: str) -> str:
        """The title inside a sentence: "Full fine-tuning" loses its capital, "LoRA" and "TF-IDF" do not."""
        title = self.titles.get(arm) or arm
        first = title.split()[0] if title.split() else ""
        return title[0].lower() + title[1:] if first[1:].replace("-", "").islower() else title

    def score_at(self, arm: str, column: int) -> float:
        scores = self.errors[arm][:, column]
        return float(np.mean(scores[np.isfinite(scores)]))

    def common(self, a: str, b: str) -> list[int]:
        """Columns at which both arms have a score."""
        has_both = np.logical_and(*(np.isfinite(self.errors[arm]).any(axis=0) for arm in (a, b)))
        return [int(column) for column in np.flatnonzero(has_both)]


def draw_curves(
    sizes: Sequence[int],
    errors: Mapping[str, np.ndarray],
    roles: Mapping[str, Role],
    rows: Mapping[str, np.ndarray | None] | None = None,
    *,
    titles: Mapping[str, str] | None = None,
    is_score: bool = True,
    sampling: Sampling = DEFAULT,
) -> dict[str, list[dict[str, Any]]]:
    """The entries `curves`, `crossovers` and `multipliers` of results.json.

    Curves: points, band and back-test are in the metric (1 - error if `is_score`, else the error); the fit is of the
    error. Crossovers: (a, b) with a the arm that has to catch up; every scratch arm with every transfer arm, and where
    the two change places, two tuned ones, or an arm that trains no network and a tuned one. Multipliers: how many
    times more labels b needs to score what a scores; for each tuned arm a at a middle and at the largest size that
    says anything.

    Args:
        sizes: total labels [L], rising.
        errors: by arm [S, L], a row for each chain (the same chains for all arms), NaN where a cell is missing.
        roles: by arm; chance has no curve.
        rows: by arm [S, L, N], error of each test row, whose mean over rows is the error; None for an arm without.
        titles: by arm, for sentences.
    """
    tables = {arm: _clean(table) for arm, table in errors.items()}
    tables = {arm: table for arm, table in tables.items() if np.isfinite(table).any()}
    known = {arm: _pick_rows((rows or {}).get(arm), table) for arm, table in tables.items()}
    arms = _Arms(np.asarray(sizes, float), tables, known, roles, titles or {}, sampling)
    return {
        "curves": [_describe_curve(arms, arm, is_score) for arm in tables],
        "crossovers": list(_list_crossovers(arms)),
        "multipliers": list(_list_multipliers(arms)),
    }


def _clean(errors: np.ndarray) -> np.ndarray:
    """Errors [S, L] with NaN for what is no error."""
    table = np.atleast_2d(np.array(errors, float))
    return np.where(np.isfinite(table) & (table >= 0), table, np.nan)


def _pick_rows(rows: np.ndarray | None, errors: np.ndarray) -> np.ndarray | None:
    """Row errors that are there for every error of the arm, else None."""
    if rows is None:
        return None
    rows = np.asarray(rows, float)
    is_whole = rows.ndim == 3 and rows.shape[:2] == errors.shape and rows.shape[2] > 1
    return rows if is_whole and np.isfinite(rows[np.isfinite(errors)]).all() else None


def _describe_curve(arms: _Arms, arm: str, is_score: bool) -> dict[str, Any]:
    """One entry of `curves`; the band ends at the largest measured size where extrapolation is refused."""
    errors, rows = arms.errors[arm], arms.rows[arm]
    seen = np.flatnonzero(np.isfinite(errors).any(axis=0))
    points = [{"n": int(arms.sizes[j]), "mean": _to_metric(arms.score_at(arm, j), is_score)} for j in seen]
    entry = {"arm": arm, "points": points, "fit": None, "flag": None, "band": [], "backtest": None}
    if len(seen) < 3:
        return entry | {"refused": f"no curve is fitted: {len(seen)} of at least 3 sizes have a score"}
    options = {"row_errors": rows, "sampling": arms.sampling}
    try:
        test, fit = backtest(arms.sizes, errors, **options), fit_curve(arms.sizes, errors)
        reach = arms.sizes[seen[-1]] * (1 if test.refused else HORIZON)
        at = np.union1d(np.round(np.geomspace(arms.sizes[seen[0]], reach, BAND_POINTS)), arms.sizes[seen])
        curve = band(arms.sizes, errors, at, **options)
    except (UserError, np.linalg.LinAlgError) as error:
        return entry | {"refused": f"no curve is fitted: {error}"}
    low, high = (curve.high, curve.low) if is_score else (curve.low, curve.high)
    return entry | {
        "fit": {"floor": float(fit.floor), "scale": float(fit.scale), "exponent": float(fit.exponent)},
        "flag": fit.flag,
        "band": [
            {
                "n": int(n),
                "low": None if low is None else _to_metric(low[j], is_score),
                "mid": _to_metric(curve.mid[j], is_score),
                "high": None if high is None else _to_metric(high[j], is_score),
            }
            for j, n in enumerate(at)
        ],
        "backtest": _describe_backtest(test, is_score),
        "refused": test.refused,
    }


def _describe_backtest(test: Backtest, is_score: bool) -> dict[str, Any] | None:
    """The back-test in the metric; None where there was none."""
    if test.hidden_size is None:
        return None
    low, high = sorted(_to_metric(end, is_score) for end in (test.predicted_low, test.predicted_high))
    return {
        "hidden_size": int(test.hidden_size),
        "predicted_low": low,
        "predicted_high": high,
        "observed": _to_metric(test.observed, is_score),
        "is_inside": bool(test.is_inside),
    }


def _list_crossovers(arms: _Arms) -> Iterator[dict[str, Any]]:
    """Entries of `crossovers`."""
    scratch, tuned, frozen = arms.of(Role.SCRATCH), arms.of(Role.TUNED), arms.of(Role.FROZEN)
    pairs = [(a, b) for a in scratch for b in arms.of(Role.TUNED, Role.FROZEN) if len(arms.common(a, b)) > 1]
    others = [*itertools.combinations(tuned, 2), *itertools.product([*frozen, *arms.of(Role.CHEAP)], tuned)]
    pairs += [pair for one, other in others for pair in _order(arms, one, other)]
    for a, b in pairs:
        rows = arms.rows_of(a, b)
        try:
            found = crossover(arms.sizes, arms.errors[a], arms.errors[b], row_errors=rows, sampling=arms.sampling)
        except (UserError, np.linalg.LinAlgError):
            continue
        sentence = _say_crossover(found, arms.title(a), arms.title(b), rows is not None)
        yield _describe_bounds(found, a, b, rows) | {"sentence": _begin(sentence)}


def _order(arms: _Arms, a: str, b: str) -> list[tuple[str, str]]:
    """The pair with the arm first that is behind at the smallest size and not at the largest; empty if none is."""
    common = arms.common(a, b)
    if len(common) < 2:
        return []
    first, last = (np.sign(arms.score_at(a, column) - arms.score_at(b, column)) for column in (common[0], common[-1]))
    if first * last >= 0:
        return []
    return [(a, b) if first > 0 else (b, a)]


def _list_multipliers(arms: _Arms) -> Iterator[dict[str, Any]]:
    """Entries of `multipliers`: of what each pair says anything about, a middle and the largest size."""
    is_only_scratch = len(arms.of(Role.SCRATCH)) == 1
    for a in arms.of(Role.TUNED):
        for b in arms.of(Role.SCRATCH, Role.CHEAP):
            found, rows = dict(_multiply(arms, a, b)), arms.rows_of(a, b)
            exact = [size for size, bounds in found.items() if bounds.mid is not None] or list(found)
            chosen = {exact[(len(exact) - 1) // 2], max(found)} if found else ()
            what = "pretraining" if arms.roles[b] is Role.SCRATCH and is_only_scratch else arms.title(a)
            for size in sorted(chosen):
                names = what, arms.title(a), arms.title(b)
                sentence = _say_multiplier(found[size], *names, size, rows is not None)
                yield _describe_bounds(found[size], a, b, rows) | {"size": size, "sentence": _begin(sentence)}


def _multiply(arms: _Arms, a: str, b: str) -> Iterator[tuple[int, Bounds]]:
    """Each size of a at which something is known: an estimate, or an interval that is not open on both sides."""
    for column in np.flatnonzero(np.isfinite(arms.errors[a]).any(axis=0)):
        size = int(arms.sizes[column])
        options = {"row_errors": arms.rows_of(a, b), "sampling": arms.sampling}
        try:
            found = label_multiplier(arms.sizes, arms.errors[a], arms.errors[b], size, **options)
        except (UserError, np.linalg.LinAlgError):
            continue
        if found.mid is not None or found.low is not None or found.high is not None:
            yield size, found


def _describe_bounds(found: Bounds, a: str, b: str, rows: object) -> dict[str, Any]:
    """The numbers of a crossover or a multiplier. `low` or `high` None: open on that side."""
    return {
        "a": a,
        "b": b,
        "low": found.low,
        "mid": found.mid,
        "high": found.high,
        "is_censored": found.mid is None,
        "smallest": found.smallest,
        "limit": found.limit,
        "has_interval": found.has_interval,
        "holds_for_new_rows": rows is not None,
        "refused": found.refused,
    }


def _say_crossover(found: Bounds, a: str, b: str, is_for_new_rows: bool) -> str:
    """From how many labels on a has caught up with b, in one sentence."""
    interval = _say_interval(found, _count, is_for_new_rows)
    if found.mid is not None:
        place = f"{_count(found.mid)}{interval}{_say_origin(found, found.mid)}"
        return f"{a} catches up with {b} at about n = {place}."
    if not found.is_beyond:
        interval = "" if found.high is not None and found.high <= found.smallest else interval
        return f"{a} is already ahead of {b} at the smallest size, n = {found.smallest:,.0f}{interval}."
    interval = "" if found.low is not None and found.low >= found.limit else interval
    reach = f"no extrapolation: {found.refused}" if found.refused else "by the fits, not followed further"
    size = "largest size" if found.refused else f"{HORIZON} times the largest size"
    return f"{a} has not caught up with {b} by n = {found.limit:,.0f}{interval} ({size}; {reach})."


def _say_multiplier(found: Bounds, what: str, a: str, b: str, size: int, is_for_new_rows: bool) -> str:
    """How many times more labels b needs to score what a scores at `size` labels, in one sentence."""
    interval, place = _say_interval(found, _ratio, is_for_new_rows), f"the labels at n = {size:,}"
    if found.mid is not None:
        labels = f"about {_count(found.mid * size)}{_say_origin(found, found.mid)}"
        return f"{what} was worth {_ratio(found.mid)}x{interval} {place}: {b} needs {labels} to score what {a} does."
    if found.is_beyond:
        interval = "" if found.low is not None and found.low >= found.limit else interval
        reason = f" (no extrapolation: {found.refused})" if found.refused else ""
        silence = f"{b} does not score what {a} does by n = {found.limit * size:,.0f}{reason}"
        return f"{what} was worth more than {_ratio(found.limit)}x{interval} {place}: {silence}."
    interval = "" if found.high is not None and found.high <= found.smallest else interval
    early = f"{b} scores more than {a} does with {found.smallest * size:,.0f} already"
    return f"{what} was worth less than {_ratio(found.smallest)}x{interval} {place}: {early}."


def _say_interval(found: Bounds, number: Callable[[float], str], is_for_new_rows: bool) -> str:
    """The interval in brackets; an open end is named by what is known of it."""
    if not found.has_interval:
        return " (one seed: no interval)"
    if found.low is None and found.high is None:
        return f" (the {found.level:.0%} interval is open on both sides)"
    low = f"below {number(found.smallest)}" if found.low is None else number(found.low)
    high = f"beyond {number(found.limit)}" if found.high is None else number(found.high)
    return f" [{low}, {high}{'' if is_for_new_rows else '; for these test rows'}]"


def _say_origin(found: Bounds, value: float) -> str:
    """Says so where a value was read from fits, beyond the largest size."""
    is_measured = found.refused or value <= found.limit / HORIZON
    return "" if is_measured else " (by the fit, beyond the largest size)"


def _to_metric(error: float, is_score: bool) -> float:
    return float(1 - error if is_score else error)


def _count(labels: float) -> str:
    """An estimated number of labels to three digits: 2,040."""
    digits = max(0, len(f"{labels:.0f}") - 3)
    return f"{round(labels, -digits):,.0f}"


def _ratio(ratio: float) -> str:
    """5.1, 23, 0.35."""
    return f"{ratio:,.0f}" if ratio >= 9.95 else f"{ratio:.1f}" if ratio >= 0.95 else f"{ratio:.2g}"


def _begin(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
