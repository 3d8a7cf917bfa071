"""How uncertain are the mean errors of the arms at each size, and together?

Errors are 1 - score: [S, L] for S seeds and L sizes, NaN where a cell is missing. A row is one chain of nested
subsets, the same chain for every arm. This module must not know metrics, files or what the means are used for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hftl.errors import UserError

SMALLEST_ERROR = 1e-4  # errors are interpolated as logarithms; half an error in 5000 rows
PRIOR_SEEDS = 4  # a size's seed variance is pulled to the mean over sizes as if by so many more seeds


@dataclass(frozen=True)
class Sampling:
    """How intervals are drawn: number of draws, seed of the generator, two-sided level."""

    draws: int = 2000
    seed: int = 0
    level: float = 0.95


@dataclass(frozen=True)
class Means:
    """Mean errors [L] of one arm at its sizes [L], draws of them [D, L] (none from one seed), weights for fits [L]."""

    sizes: np.ndarray
    values: np.ndarray
    draws: np.ndarray | None
    weights: np.ndarray

    def smooth(self) -> "Means":
        draws = None if self.draws is None else smooth_falling(self.draws, self.weights)
        return Means(self.sizes, smooth_falling(self.values[None], self.weights)[0], draws, self.weights)

    def only(self, keep: np.ndarray) -> "Means":
        draws = None if self.draws is None else self.draws[:, keep]
        return Means(self.sizes[keep], self.values[keep], draws, self.weights[keep])


def draw_means(
    sizes: Sequence[float],
    errors: Sequence[np.ndarray],
    row_errors: Sequence[np.ndarray | None],
    sampling: Sampling,
) -> list[Means]:
    """Mean errors of each arm with joint draws of them, so that what the arms share cancels in comparisons.

    Sizes with one seed say nothing about noise and are left out where any size has more.
    """
    checked = [check_table(sizes, arm)[1] for arm in errors]
    sizes = np.asarray(sizes, float)
    if len({len(arm) for arm in checked}) > 1:
        raise UserError("The arms have different numbers of seeds. Give both the same ones, NaN for a missing cell.")
    keeps = find_usable(checked)
    kept = [arm[:, keep] for arm, keep in zip(checked, keeps, strict=True)]
    has_draws = all((np.isfinite(arm).sum(axis=0) > 1).any() for arm in kept)
    columns = np.concatenate(kept, axis=1)
    parts = [None] * len(kept)
    if has_draws:
        rows = [_mean_rows(arm, keep, size) for arm, keep, size in zip(row_errors, keeps, checked, strict=True)]
        is_known = all(part is not None for part in rows)
        noise = _draw_noise(columns, np.concatenate(rows) if is_known else None, sampling)
        parts = np.split(np.nanmean(columns, axis=0) + noise, np.cumsum([keep.sum() for keep in keeps])[:-1], axis=1)
    return [
        Means(
            sizes[keep],
            np.maximum(np.nanmean(arm, axis=0), SMALLEST_ERROR),
            None if part is None else np.maximum(part, SMALLEST_ERROR),
            weigh(find_std_errors(arm)),
        )
        for arm, keep, part in zip(kept, keeps, parts, strict=True)
    ]


def smooth_falling(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The weighted least-squares curve that never rises, for each row of [D, L].

    Isotonic regression by its min-max formula (Robertson, Wright and Dykstra 1988, section 1.4), quick for few sizes.
    """
    num_sizes = values.shape[1]
    weights = np.ones(num_sizes) if weights is None else weights
    totals = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values * weights, axis=1)], axis=1)
    masses = np.concatenate([[0.0], np.cumsum(weights)])
    smooth = np.full(values.shape, np.inf)
    for position in range(num_sizes):
        for start in range(position + 1):
            ends = np.arange(position + 1, num_sizes + 1)
            averages = (totals[:, ends] - totals[:, [start]]) / (masses[ends] - masses[start])
            smooth[:, position] = np.minimum(smooth[:, position], averages.max(axis=1))
    return smooth


def check_table(sizes: Sequence[float], errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes [L] and errors [S, L] as floats; raises for shapes, order or values that cannot be."""
    sizes, errors = np.asarray(sizes, float), np.atleast_2d(np.asarray(errors, float))
    if errors.ndim != 2 or errors.shape[1] != len(sizes):
        raise UserError(f"Errors of shape {errors.shape} for {len(sizes)} sizes; expected [seeds, {len(sizes)}].")
    if not (sizes > 0).all() or not (np.diff(sizes) > 0).all():
        raise UserError(f"Sizes {sizes.tolist()} must be positive and rise. Sort them and drop repeated ones.")
    if (errors < 0).any() or np.isinf(errors).any():
        raise UserError("An error is negative or infinite; errors are 1 - score. Leave failed cells out (NaN).")
    return sizes, errors


def find_usable(arms: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Which sizes [L] of each arm [S, L] have a score from two seeds; from one if an arm nowhere has two."""
    counts = [np.isfinite(arm).sum(axis=0) for arm in arms]
    least = 2 if all((count > 1).any() for count in counts) else 1
    return [count >= least for count in counts]


def find_std_errors(errors: np.ndarray) -> np.ndarray:
    """Standard error of each mean [L] from seeds [S, L], each variance pulled to the mean variance over sizes.

    A variance from 3 to 5 seeds alone is too noisy to weigh with. Equal ones where no size has two seeds.
    """
    counts = np.isfinite(errors).sum(axis=0)
    squares = np.nansum((errors - np.nanmean(errors, axis=0)) ** 2, axis=0)
    freedom = counts - 1
    if not freedom.any() or not squares.any():
        return np.zeros(errors.shape[1])
    pooled = squares.sum() / freedom.sum()
    return np.sqrt((squares + PRIOR_SEEDS * pooled) / (freedom + PRIOR_SEEDS) / counts)


def weigh(std_errors: np.ndarray) -> np.ndarray:
    """1 / variance with mean 1; a mean that claims to be exact weighs at most 10,000 times the noisiest."""
    if not std_errors.any():
        return np.ones_like(std_errors)
    weights = 1 / np.maximum(std_errors, std_errors.max() / 100) ** 2
    return weights / weights.mean()


def _mean_rows(row_errors: np.ndarray | None, keep: np.ndarray, errors: np.ndarray) -> np.ndarray | None:
    """Error of each test row, mean over the seeds that have a score: [L, N]."""
    if row_errors is None:
        return None
    if row_errors.shape[:2] != errors.shape:
        raise UserError(f"Row errors of shape {row_errors.shape} for errors of shape {errors.shape}.")
    rows = np.where(np.isfinite(errors)[:, :, None], row_errors, np.nan)[:, keep]
    return np.nanmean(rows, axis=0)


def _draw_noise(columns: np.ndarray, rows: np.ndarray | None, sampling: Sampling) -> np.ndarray:
    """Draws [D, K] of the noise of column means [K], from chains [S, K] and, if given, from test rows [K, N].

    Chains: one Gaussian weight a chain for all columns, so whatever correlates within a chain stays so, and one
    chi-square divisor a draw. Every linear contrast of complete columns then has the spread of its t-interval with
    S - 1 degrees of freedom (a multivariate t), where resampling 3 to 5 chains would be too narrow by a third.
    Test rows: Gaussian with the covariance of the means over rows. Rows x chains noise is in both: on the safe side.
    """
    rng = np.random.default_rng(sampling.seed)
    counts = np.isfinite(columns).sum(axis=0)
    residuals = np.nan_to_num(columns - np.nanmean(columns, axis=0)) / np.sqrt(counts * (counts - 1))
    freedom = int(counts.min()) - 1
    divisors = np.sqrt(rng.chisquare(freedom, (sampling.draws, 1)) / freedom)
    noise = rng.standard_normal((sampling.draws, len(columns))) @ residuals / divisors
    if rows is not None:
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(rows)) / rows.shape[1])
        root = vectors * np.sqrt(np.maximum(values, 0))
        noise += rng.standard_normal((sampling.draws, len(values))) @ root.T
    return noise
