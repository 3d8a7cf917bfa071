"""Which power law with a floor do the mean errors of an arm follow?

Fits to means and to draws of them (`curve_draws`). This module must not know what is read from a fit, nor how far.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from hftl.compare.curve_draws import SMALLEST_ERROR, Means, check_table, find_std_errors, weigh
from hftl.errors import UserError

SLOWEST, FASTEST = 0.02, 2.0  # exponents; below the slowest a power law cannot be told from a logarithm
EXPONENTS = np.geomspace(SLOWEST, FASTEST, 100)  # neighbours differ by 5 %


@dataclass(frozen=True)
class CurveFit:
    """E(n) = floor + scale * n ** -exponent. The numbers, or one of each per draw [D].

    `flag` says in words why the data do not look like a falling power law, else None.
    """

    floor: float | np.ndarray
    scale: float | np.ndarray
    exponent: float | np.ndarray
    flag: str | None = None

    def at(self, n: float | np.ndarray) -> np.ndarray:
        """Error at n labels: [N], or [D, N] for draws."""
        floor, scale, exponent = (np.asarray(part)[..., None] for part in (self.floor, self.scale, self.exponent))
        return floor + scale * np.asarray(n, float) ** -exponent

    def labels_for(self, error: np.ndarray) -> np.ndarray:
        """Number of labels at which the error is reached, elementwise; infinite where it never is."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            labels = (self.scale / (error - self.floor)) ** (1 / self.exponent)
        return np.where(error > self.floor, labels, np.inf)


def fit_curve(sizes: Sequence[float], errors: np.ndarray, std_errors: np.ndarray | None = None) -> CurveFit:
    """Fits floor + scale * n ** -exponent to mean errors by weighted least squares.

    Bounds: 0 <= floor <= the smallest mean error, scale >= 0, 0.02 <= exponent <= 2. Starts: the three best of a grid
    of exponents with the exact floor and scale for each.

    Args:
        errors: [S, L], or mean errors [L].
        std_errors: of the means [L]; without them from the seeds, and equal ones from one seed.

    Raises:
        UserError: fewer than 3 sizes have a score. Data that do not fall are fitted, and flagged.
    """
    sizes, errors = check_table(sizes, errors)
    keep = np.isfinite(errors).any(axis=0)
    sizes, errors = sizes[keep], errors[:, keep]
    if len(sizes) < 3:
        raise UserError(f"{len(sizes)} sizes have a score; a curve has 3 unknowns. Measure at least 3 sizes.")
    means = np.nanmean(errors, axis=0)
    deviations = np.asarray(std_errors, float)[keep] if std_errors is not None else find_std_errors(errors)
    fit = _polish(sizes, means, weigh(deviations), _grid_fits(sizes, means, weigh(deviations)))
    return CurveFit(fit.floor, fit.scale, fit.exponent, _flag(sizes, means, deviations, fit))


def fit_means(means: Means) -> CurveFit:
    """The fit to the means themselves, in the form of one draw."""
    fit = _polish(means.sizes, means.values, means.weights, _grid_fits(means.sizes, means.values, means.weights))
    return CurveFit(*(np.array([part]) for part in (fit.floor, fit.scale, fit.exponent)))


def fit_draws(means: Means) -> CurveFit | None:
    """One fit a draw on the grid of exponents."""
    if means.draws is None:
        return None
    floor, scale, squares = _grid_fits(means.sizes, means.draws, means.weights)
    best, draw = squares.argmin(axis=0), np.arange(len(means.draws))
    return CurveFit(floor[best, draw], scale[best, draw], EXPONENTS[best])


def _grid_fits(sizes: np.ndarray, means: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Best floor and scale for each exponent of the grid, and the sum of squares: each [G, ...] for means [..., L].

    Both are linear given the exponent; the one that comes out negative is set to 0 and the other solved again.
    """
    centre = np.exp(np.log(sizes).mean())
    powers = (sizes / centre) ** -EXPONENTS[:, None]  # [G, L]
    total, first = weights.sum(), powers @ weights
    second, mean = powers**2 @ weights, means @ weights
    product = np.moveaxis((means * weights) @ powers.T, -1, 0)  # [G, ...]
    first, second = (part.reshape(-1, *[1] * (means.ndim - 1)) for part in (first, second))
    scale = (total * product - first * mean) / (total * second - first**2)
    floor = (mean - scale * first) / total
    scale = np.where(floor < 0, product / second, np.maximum(scale, 0))
    floor = np.where(floor < 0, 0, np.where(scale > 0, floor, mean / total))
    squares = (means**2) @ weights - 2 * scale * product - 2 * floor * mean
    squares = squares + scale**2 * second + 2 * scale * floor * first + floor**2 * total
    return floor, scale * centre ** EXPONENTS.reshape(first.shape), squares


def _polish(sizes: np.ndarray, means: np.ndarray, weights: np.ndarray, grid: tuple[np.ndarray, ...]) -> CurveFit:
    """The best of bounded least squares from the grid's three best points, or the grid's best where none is better."""
    floors, scales, squares = grid
    centre, roots = np.exp(np.log(sizes).mean()), np.sqrt(weights)
    highest = max(means.min(), SMALLEST_ERROR)

    def residuals(parameters: np.ndarray) -> np.ndarray:
        floor, height, exponent = parameters
        return roots * (floor + height * (sizes / centre) ** -exponent - means)

    order = np.argsort(squares, kind="stable")[:3]
    best = (min(floors[order[0]], highest), scales[order[0]], EXPONENTS[order[0]])
    least = squares[order[0]]
    for position in order:
        start = (floors[position], scales[position] * centre ** -EXPONENTS[position], EXPONENTS[position])
        bounds = ([0, 0, SLOWEST], [highest, np.inf, FASTEST])
        found = least_squares(residuals, np.clip(start, *bounds), bounds=bounds, xtol=1e-12, ftol=1e-12, gtol=1e-12)
        if 2 * found.cost < least:
            least = 2 * found.cost
            best = (found.x[0], found.x[1] * centre ** found.x[2], found.x[2])
    return CurveFit(*(float(part) for part in best))


def _flag(sizes: np.ndarray, means: np.ndarray, std_errors: np.ndarray, fit: CurveFit) -> str | None:
    """Why the means do not look like a falling power law; what is within two or three standard errors is noise."""
    noise = 2 * np.hypot(std_errors[1:], std_errors[:-1])
    rises = np.flatnonzero(np.diff(means) > noise + 1e-12)
    if fit.at(sizes[0]) - fit.at(sizes[-1]) <= 2 * np.hypot(std_errors[0], std_errors[-1]) + 1e-12:
        return "flat: the error does not fall with more labels by more than its noise"
    if len(rises):
        return f"not monotone: the error rises from n = {sizes[rises[0]]:.0f} to n = {sizes[rises[0] + 1]:.0f}"
    misses = np.abs(fit.at(sizes) - means)
    worst = int(np.argmax(misses - 3 * std_errors))
    if std_errors.any() and misses[worst] > 3 * std_errors[worst] + 1e-6:
        return f"not a power law: the fit misses the error at n = {sizes[worst]:.0f} by {misses[worst]:.3f}"
    return None
