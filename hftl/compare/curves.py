"""How does the error of an arm fall with the number of labels, and when does one arm catch up with another?

Everything here is in errors, 1 - score: [S, L] for S seeds and L sizes, NaN where a cell is missing. A row is one
chain of nested subsets, the same chain for every arm. This module must not know arms, metrics, files or costs.

Intervals come from draws of the mean errors (`curve_draws`). Beyond the largest size nothing is claimed unless a fit
to the smaller sizes has predicted it, and nothing at all beyond `HORIZON` times that size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hftl.compare.curve_draws import Sampling, check_table, draw_means, find_usable
from hftl.compare.curve_fits import CurveFit, fit_curve, fit_draws, fit_means
from hftl.errors import UserError

HORIZON = 4  # how far a fit that passed its back-test is followed, in largest sizes
BACKTEST_LEVEL = 0.90
BACKTEST_SLACK = 0.01  # of the error; fits to draws are on a grid of exponents, exact to half of that
TOO_FEW_SIZES = "not back-tested: fewer than 4 sizes"
TOO_FEW_SEEDS = "not back-tested: fewer than 2 seeds, so the noise is unknown"
DEFAULT = Sampling()


@dataclass(frozen=True)
class Band:
    """The fitted error at each n, and the interval for the expected error there; no interval from one seed."""

    n: np.ndarray
    mid: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


@dataclass(frozen=True)
class Backtest:
    """Did a fit to all sizes but the largest predict the mean error seen there? `refused`: why no extrapolation."""

    hidden_size: int | None = None
    predicted_low: float | None = None
    predicted_high: float | None = None
    observed: float | None = None
    is_inside: bool = False
    refused: str | None = None


@dataclass(frozen=True)
class Bounds:
    """A number of labels, or a ratio of two, known only between `smallest` and `limit`.

    `mid` is None where the estimate is outside: `is_beyond` says above the limit, else below the smallest. `low` None:
    the interval is open below; `high` None: open above. An interval that is wholly above the limit is (limit, None).
    Without an interval (one seed) both are None.
    """

    low: float | None
    mid: float | None
    high: float | None
    smallest: float
    limit: float
    is_beyond: bool
    has_interval: bool
    level: float
    refused: str | None


def band(
    sizes: Sequence[float],
    errors: np.ndarray,
    at: np.ndarray,
    *,
    row_errors: np.ndarray | None = None,
    sampling: Sampling = DEFAULT,
) -> Band:
    """The fitted curve at each n of `at`, with a pointwise interval for the expected error there.

    Args:
        errors: [S, L].
        row_errors: error of each test row [S, L, N], whose mean over rows is `errors` (for metrics that are no means:
            jackknife pseudo-values). With them intervals hold for new test rows as well, without for these rows only.
    """
    fit = fit_curve(sizes, errors)
    at = np.asarray(at, float)
    (means,) = draw_means(sizes, [errors], [row_errors], sampling)
    if means.draws is None or len(means.sizes) < 3:
        return Band(at, fit.at(at), None, None)
    tail = (1 - sampling.level) / 2
    low, high = np.quantile(fit_draws(means).at(at), [tail, 1 - tail], axis=0)
    return Band(at, fit.at(at), np.minimum(low, fit.at(at)), np.maximum(high, fit.at(at)))


def backtest(
    sizes: Sequence[float],
    errors: np.ndarray,
    *,
    row_errors: np.ndarray | None = None,
    sampling: Sampling = DEFAULT,
) -> Backtest:
    """Hides the largest size, fits the others and asks whether the mean error seen there was to be expected.

    Expected is the 90 % prediction interval, and 1 % of the error around it: noise of the fit and of the hidden mean,
    drawn together because both come from the same chains. Arguments as in `band`; the level of `sampling` is not used.
    """
    (means,) = draw_means(sizes, [errors], [row_errors], sampling)
    if len(means.sizes) < 4:
        return Backtest(refused=TOO_FEW_SIZES)
    if means.draws is None:
        return Backtest(refused=TOO_FEW_SEEDS)
    hidden, observed = means.sizes[-1], float(means.values[-1])
    known = means.only(np.arange(len(means.sizes)) < len(means.sizes) - 1)
    predicted = fit_draws(known).at(hidden)[:, 0] - (means.draws[:, -1] - observed)
    tail = (1 - BACKTEST_LEVEL) / 2
    slack = BACKTEST_SLACK * observed
    low, high = (float(value) for value in np.quantile(predicted, [tail, 1 - tail]) + np.array([-slack, slack]))
    is_inside = low <= observed <= high
    reason = (
        f"extrapolation refused: the sizes below n = {hidden:.0f} predict an error of {low:.3f} to {high:.3f} there, "
        f"{observed:.3f} was seen"
    )
    return Backtest(int(hidden), low, high, observed, is_inside, None if is_inside else reason)


def crossover(
    sizes: Sequence[float],
    errors_a: np.ndarray,
    errors_b: np.ndarray,
    *,
    row_errors: tuple[np.ndarray, np.ndarray] | None = None,
    sampling: Sampling = DEFAULT,
) -> Bounds:
    """The number of labels from which a, behind at first, has caught up with b.

    Inside the measured sizes the monotone-smoothed mean curves are compared: the crossing is where the lead of b,
    summed over sizes, is greatest, so that one noisy size does not move it. Beyond the largest size the fits are
    compared, if both pass their back-tests, up to `HORIZON` times that size.

    Args:
        errors_a, errors_b: [S, L] of the same chains. Sizes at which one of them has no score are left out.
        row_errors: those of a and of b, as in `band`.
    """
    arms = [check_table(sizes, errors_a)[1], check_table(sizes, errors_b)[1]]
    is_common = np.logical_and(*find_usable(arms))
    if not is_common.any():
        raise UserError("The two arms have no size in common. Run both at the same sizes.")
    arms = [np.where(is_common, errors, np.nan) for errors in arms]
    rows = row_errors or (None, None)
    a, b = draw_means(sizes, arms, rows, sampling)
    tests = [backtest(sizes, arm, row_errors=part, sampling=sampling) for arm, part in zip(arms, rows, strict=True)]
    refused = next((test.refused for test in tests if test.refused), None)
    fits = None if refused else (fit_means(a), fit_means(b))
    mid = _cross(a.sizes, a.smooth().values[None], b.smooth().values[None], fits)[0]
    draws = None
    if a.draws is not None:
        fits = None if refused else (fit_draws(a), fit_draws(b))
        draws = _cross(a.sizes, a.smooth().draws, b.smooth().draws, fits)
    limit = a.sizes[-1] * (1 if refused else HORIZON)
    return _bounds(mid, draws, (a.sizes[0], limit), sampling.level, refused)


def label_multiplier(
    sizes: Sequence[float],
    errors_a: np.ndarray,
    errors_b: np.ndarray,
    at: int,
    *,
    row_errors: tuple[np.ndarray, np.ndarray] | None = None,
    sampling: Sampling = DEFAULT,
) -> Bounds:
    """How many times more labels b needs to reach the error that a has at `at` labels.

    The measured, monotone-smoothed curve of b is inverted, straight between sizes in log error over log n, as a power
    law is. What b does not reach within its sizes is read from its fit if that passes its back-test, up to `HORIZON`
    times its largest size. Arguments as in `crossover`.
    """
    rows = row_errors or (None, None)
    a, b = draw_means(sizes, [errors_a, errors_b], rows, sampling)
    if at not in a.sizes:
        listed = ", ".join(f"{size:.0f}" for size in a.sizes)
        raise UserError(f"No score of the first arm at n = {at}. It has scores at: {listed}. Choose one of these.")
    if not len(b.sizes):
        raise UserError("The second arm has no score at any size. Run it first.")
    refused = backtest(sizes, errors_b, row_errors=rows[1], sampling=sampling).refused
    column = int(np.flatnonzero(a.sizes == at)[0])
    target = a.smooth().values[None, column]
    mid = _invert(b.sizes, b.smooth().values[None], target, None if refused else fit_means(b))[0]
    draws = None
    if b.draws is not None:
        fits = None if refused else fit_draws(b)
        draws = _invert(b.sizes, b.smooth().draws, a.smooth().draws[:, column], fits) / at
    limit = b.sizes[-1] * (1 if refused else HORIZON)
    return _bounds(mid / at, draws, (b.sizes[0] / at, limit / at), sampling.level, refused)


def _cross(
    sizes: np.ndarray, errors_a: np.ndarray, errors_b: np.ndarray, fits: tuple[CurveFit, CurveFit] | None
) -> np.ndarray:
    """Labels [D] from which a is no longer behind b, of falling curves [D, L]; -inf never behind, inf still behind."""
    gaps = np.log(errors_a / errors_b)
    leads = np.cumsum(gaps, axis=1)
    last, draw = leads.argmax(axis=1), np.arange(len(gaps))
    after = np.minimum(last + 1, len(sizes) - 1)
    before, beyond = gaps[draw, last], gaps[draw, after]
    fraction = before / np.where(before > beyond, before - beyond, 1)
    labels = np.exp(np.log(sizes[last]) + fraction * np.log(sizes[after] / sizes[last]))
    labels = np.where(last == len(sizes) - 1, _cross_fits(sizes[-1], fits, len(gaps)), labels)
    return np.where(leads.max(axis=1) > 0, labels, -np.inf)


def _cross_fits(largest: float, fits: tuple[CurveFit, CurveFit] | None, num_draws: int) -> np.ndarray:
    """Labels [D] beyond the largest size from which the fit of a stays below that of b; inf if not by the limit."""
    if fits is None:
        return np.full(num_draws, np.inf)
    n = np.geomspace(largest, HORIZON * largest, 257)  # steps of 0.5 %
    is_behind = fits[0].at(n) > fits[1].at(n)
    first_ahead = np.where(is_behind.any(axis=1), len(n) - is_behind[:, ::-1].argmax(axis=1), 0)
    return np.append(n, np.inf)[first_ahead]


def _invert(sizes: np.ndarray, errors: np.ndarray, target: np.ndarray, fits: CurveFit | None) -> np.ndarray:
    """Labels [D] at which falling curves [D, L] reach a target [D]; -inf below the sizes, inf beyond the limit."""
    is_reached = errors <= target[:, None]
    after, draw = is_reached.argmax(axis=1), np.arange(len(errors))
    before = np.maximum(after - 1, 0)
    heights = np.log(errors[draw, before] / errors[draw, after])
    fraction = np.log(errors[draw, before] / target) / np.where(heights > 0, heights, 1)
    labels = np.exp(np.log(sizes[before]) + fraction * np.log(sizes[after] / sizes[before]))
    labels = np.where(is_reached[:, 0] & (errors[:, 0] < target), -np.inf, labels)
    beyond = np.inf if fits is None else np.maximum(fits.labels_for(target), sizes[-1])
    beyond = np.where(beyond > HORIZON * sizes[-1], np.inf, beyond)
    return np.where(is_reached.any(axis=1), labels, beyond)


def _bounds(
    mid: float, draws: np.ndarray | None, known: tuple[float, float], level: float, refused: str | None
) -> Bounds:
    """The interval of the draws (order statistics, outwards), with what lies outside `known` left open."""
    smallest, limit = (float(end) for end in known)
    low, high = -np.inf, np.inf
    if draws is not None:
        ranks, tail = np.sort(draws), (1 - level) / 2 * (len(draws) - 1)
        low, high = min(ranks[math.floor(tail)], mid), max(ranks[math.ceil(len(draws) - 1 - tail)], mid)
    return Bounds(
        low=None if low == -np.inf else float(min(low, limit)),
        mid=float(mid) if np.isfinite(mid) else None,
        high=None if high == np.inf else float(max(high, smallest)),
        smallest=smallest,
        limit=limit,
        is_beyond=bool(mid == np.inf),
        has_interval=draws is not None,
        level=level,
        refused=refused,
    )
