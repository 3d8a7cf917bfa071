"""How sure is a score, or the difference of two? Intervals, p-values and how much more data would decide.

Training chains ("seeds") and test rows are both samples: another seed and another test set give other numbers, and an
interval that is to hold for new ones must count both. Must not know: arms, files, how a score was made.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from hftl.errors import UserError

MAX_EXTRA_SEEDS = 200
MAX_EXTRA_ROWS = 1_000_000
TAIL_NODES = 200  # relative error below 1e-5 down to p = 1e-9
EXACT_SIGN_FLIPS = 20  # seeds up to which all 2^(S-1) sign patterns are listed: 4 MB of sums
SEEDS_AND_ROWS, ROWS_ONLY, SEEDS_ONLY = "seeds and test rows", "test rows only", "seeds only"


@dataclass(frozen=True)
class VarianceParts:
    """Variance components of one score, in score units squared, none below 0.

    Attributes:
        seed: of a seed's expected score over all rows; None with one seed, which cannot show it.
        item: of a row's expected score over all seeds.
        residual: of one row under one seed, beyond both.
        num_seeds: S they were estimated from.
        num_items: N they were estimated from.
        unit: what one row can change, for scores that are right or wrong; 0 for others. See `crossed_interval`.
    """

    seed: float | None
    item: float
    residual: float
    num_seeds: int
    num_items: int
    unit: float = 0.0


@dataclass(frozen=True)
class Interval:
    """An estimate and the range that holds the truth in a fraction 1 - alpha of repetitions; None for what is unknown.

    Attributes:
        df: degrees of freedom (Satterthwaite's for `crossed_interval`).
        covers: which repetitions: over new seeds, new test rows or both.
        seed_variance: the part of std_error**2 that is known from S - 1 degrees of freedom only.
        item_variance: the rest of it.
    """

    mid: float
    low: float | None
    high: float | None
    std_error: float | None = None
    df: float | None = None
    covers: str = SEEDS_AND_ROWS
    seed_variance: float = 0.0
    item_variance: float = 0.0
    parts: VarianceParts | None = None


@dataclass(frozen=True)
class Need:
    """How many more would decide, or None and which part of the variance stops it: "seeds" or "test rows"."""

    number: int | None
    stopped_by: str | None = None


def crossed_interval(differences: np.ndarray, alpha: float = 0.05, *, unit: float = 0.0) -> Interval:
    """Interval for a mean over seeds and test rows that are crossed and both random: the primary interval.

    Two-way random effects with one observation a cell. Variance: (MS_seed + MS_item - MS_residual) / (S N), never
    below MS_seed / (S N). MS_item - MS_residual is known from many rows, MS_seed from S - 1 degrees of freedom only.
    The half-width is a quantile of sqrt(MS_seed / S N) T + sqrt(rest) Z, T of Student's t with S - 1 degrees of
    freedom and Z normal: the fiducial solution of Behrens and Fisher for a sum of two variances. One t quantile at
    Satterthwaite's df would trust a seed spread that is small by luck: simulated at S = 3 it covers down to 92 %
    instead of 95 %, and down to 96.6 % instead of 99 %, the level that a correction for several comparisons asks
    for. This one covered at least 94.9 % and 98.9 % for 2, 3 and 5 seeds. `df` still is Satterthwaite's, to read with
    `std_error`.

    With one seed only the rows vary: the interval is then about these trained models, not about the way of training
    (`covers` says so).

    Args:
        differences: [S, N] paired differences of per-example scores, or one arm's scores.
        alpha: 1 - confidence.
        unit: 1 for differences of scores that are 0 or 1. Normal theory fails where few rows differ, and says "no
            error" where none do. Two invented rows, one for each side, are added to the variance (Bonett and Price
            2012, doi 10.3102/1076998611411915), and the item part is at least (2 / N)^2: with no row that differs,
            the half-width is about 3 / N at alpha 0.1, the rule of three. Both vanish as N grows.
    """
    differences = _check_matrix(differences)
    num_seeds, num_items = differences.shape
    mid = float(differences.mean())
    row_means, seed_means = differences.mean(axis=0), differences.mean(axis=1)
    if num_seeds == 1:
        item = float(np.var(row_means, ddof=1))
        parts = VarianceParts(None, item, 0.0, 1, num_items, unit)
        return _build_interval(mid, 0.0, parts, alpha, df=num_items - 1)
    residuals = differences - row_means - seed_means[:, None] + mid
    residual_df = (num_seeds - 1) * (num_items - 1)
    ms_seed = num_items * float(np.var(seed_means, ddof=1))
    ms_item = num_seeds * float(np.var(row_means, ddof=1))
    ms_residual = float((residuals**2).sum()) / residual_df
    parts = VarianceParts(
        seed=max(ms_seed - ms_residual, 0.0) / num_items,
        item=max(ms_item - ms_residual, 0.0) / num_seeds,
        residual=ms_residual,
        num_seeds=num_seeds,
        num_items=num_items,
        unit=unit,
    )
    df = _satterthwaite_df(ms_seed, ms_item, ms_residual, num_seeds, num_items)
    return _build_interval(mid, ms_seed / differences.size, parts, alpha, df=df)


def _check_matrix(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or scores.shape[0] < 1 or scores.shape[1] < 2:
        raise UserError(
            f"Found scores of shape {scores.shape}; expected [seeds, test rows] with at least 2 test rows."
        )
    if not np.isfinite(scores).all():
        raise UserError("Found scores that are not finite numbers; leave out the seeds of cells that failed.")
    return scores


def _satterthwaite_df(ms_seed: float, ms_item: float, ms_residual: float, num_seeds: int, num_items: int) -> float:
    """Satterthwaite 1946, Biometrics Bulletin 2(6), of MS_seed + MS_item - MS_residual; at the floor of MS_seed."""
    if ms_item <= ms_residual:
        return float(num_seeds - 1) if ms_seed > 0 else float(num_items - 1)
    squares = ms_seed**2 / (num_seeds - 1) + ms_item**2 / (num_items - 1)
    squares += ms_residual**2 / ((num_seeds - 1) * (num_items - 1))
    return (ms_seed + ms_item - ms_residual) ** 2 / squares


def _item_variance(parts: VarianceParts, num_items: np.ndarray | int) -> np.ndarray:
    """Variance of a mean over `num_items` rows that the rows cause, wider for few rows and for few that differ."""
    one_row = (parts.unit / num_items) ** 2
    return np.maximum(parts.item / num_items + 2 * one_row, 4 * one_row)


def _few_rows_factor(num_items: np.ndarray | int) -> np.ndarray:
    """Makes a normal quantile one of Student's t with N - 1 df, matched at the 0.5 % point; 1.004 for 1,000 rows."""
    return (special.stdtrit(np.asarray(num_items) - 1.0, 0.995) / special.ndtri(0.995)) ** 2


def _build_interval(mid: float, seed_variance: float, parts: VarianceParts, alpha: float, *, df: float) -> Interval:
    """Width from the two variances; `std_error` is the plain root of their sum."""
    item_variance = float(_item_variance(parts, parts.num_items))
    half = _half_width(seed_variance, item_variance, parts.num_seeds, parts.num_items, alpha)
    return Interval(
        mid=mid,
        low=mid - half,
        high=mid + half,
        std_error=math.sqrt(seed_variance + item_variance),
        df=df,
        covers=ROWS_ONLY if parts.num_seeds == 1 else SEEDS_AND_ROWS,
        seed_variance=seed_variance,
        item_variance=item_variance,
        parts=parts,
    )


def _tail(distance: float, seed_variance, item_variance, num_seeds, num_items) -> np.ndarray:
    """P(sqrt(seed_variance) T + sqrt(item_variance) Z > distance), distance >= 0; T has S - 1 degrees of freedom.

    Arguments beside `distance` are numbers or arrays [K]. Given its chi-square x, T is normal: the trapezoid rule over
    y = ln x, in which all is smooth, gives six digits.
    """
    by_seed, by_item, num_seeds, num_items = np.broadcast_arrays(seed_variance, item_variance, num_seeds, num_items)
    df = np.maximum(num_seeds - 1.0, 1.0)
    y = np.linspace(np.log(df) - 2 - 40 / df, np.log(df + 12 * np.sqrt(2 * df) + 40), TAIL_NODES)  # [nodes, K]
    log_density = df / 2 * y - np.exp(y) / 2
    density = np.exp(log_density - log_density.max(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):  # no variance at all: see the last line
        scale = np.sqrt(by_seed * df / np.exp(y) + by_item * _few_rows_factor(num_items))
        mixed = (special.ndtr(-distance / scale) * density).sum(axis=0) / density.sum(axis=0)
        rows_only = special.stdtr(num_items - 1.0, -distance / np.sqrt(by_item))
    tail = np.where(by_seed > 0, mixed, rows_only)
    return np.where(by_seed + by_item > 0, tail, 0.5 if distance == 0 else 0.0)


def _half_width(seed_variance: float, item_variance: float, num_seeds: int, num_items: int, alpha: float) -> float:
    std_error = math.sqrt(seed_variance + item_variance)
    if std_error == 0:
        return 0.0
    if seed_variance == 0:
        return float(special.stdtrit(num_items - 1, 1 - alpha / 2)) * std_error
    # P(A + B > a + b) <= P(A > a) + P(B > b), each half of what is left to miss: no half-width is beyond this one.
    few_rows = math.sqrt(float(_few_rows_factor(num_items)))
    widest = special.stdtrit(num_seeds - 1, 1 - alpha / 4) + few_rows * special.ndtri(1 - alpha / 4)

    def miss(distance: float) -> float:
        return float(_tail(distance, seed_variance, item_variance, num_seeds, num_items)) - alpha / 2

    return float(optimize.brentq(miss, 0.0, float(widest) * std_error * 1.01, rtol=1e-6))


def two_sided_p(interval: Interval) -> float:
    """P-value of "the true mean is 0", by the distribution that made the interval of `crossed_interval`."""
    return min(1.0, 2 * _tail_of(abs(interval.mid), interval))


def equivalence_p(interval: Interval, margin: float) -> float:
    """Larger p-value of two one-sided tests of "|true mean| >= margin", by the distribution of `crossed_interval`."""
    room = _check_margin(margin) - abs(interval.mid)
    if interval.std_error == 0:
        return 0.0 if room > 0 else 1.0
    tail = _tail_of(abs(room), interval)
    return tail if room > 0 else 1 - tail


def _tail_of(distance: float, interval: Interval) -> float:
    sizes = interval.parts.num_seeds, interval.parts.num_items
    return float(_tail(distance, interval.seed_variance, interval.item_variance, *sizes))


def _check_margin(margin: float) -> float:
    if not margin >= 0:
        raise UserError(f"Found a margin of {margin}; expected 0 or more, in units of the score.")
    return margin


def seed_interval(values: Sequence[float], alpha: float = 0.05) -> Interval:
    """Student's t interval over seeds for one number a seed, the test rows taken as given; one seed has no limits."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise UserError(f"Found values of shape {values.shape}; expected one finite number a seed.")
    mid = float(values.mean())
    if values.size == 1:
        return Interval(mid, None, None, covers=SEEDS_ONLY)
    df = values.size - 1
    std_error = float(values.std(ddof=1)) / math.sqrt(values.size)
    half = float(special.stdtrit(df, 1 - alpha / 2)) * std_error
    return Interval(mid, mid - half, mid + half, std_error, float(df), SEEDS_ONLY)


def score_interval(by_row: np.ndarray, bounds: tuple[float, float], alpha: float = 0.05) -> Interval:
    """Interval for one score over new test rows, and over new seeds where there are several.

    Args:
        by_row: [S, N] values whose mean is the score; see `hftl.metrics.base.Score`.
        bounds: the lowest and the highest value that the score can have; no limit lies beyond them.
        alpha: 1 - confidence.
    """
    by_row = _check_matrix(by_row)
    is_binary = bool(np.isin(by_row, (0, 1)).all())
    if is_binary and len(by_row) == 1:
        return wilson(int(by_row.sum()), by_row.size, alpha)
    # Where no row differs from another there is no error to estimate: one may be as far off as the bounds allow.
    width = bounds[1] - bounds[0]
    is_constant = np.ptp(by_row) == 0
    unit = width if (is_binary or is_constant) and math.isfinite(width) else float(np.abs(by_row).max()) * is_constant
    interval = crossed_interval(by_row, alpha, unit=unit)
    low, high = (float(np.clip(limit, *bounds)) for limit in (interval.low, interval.high))
    return dataclasses.replace(interval, low=low, high=high)


def mcnemar_exact(correct_a: np.ndarray, correct_b: np.ndarray) -> float:
    """Exact two-sided p of "both models are right equally often": a sign test on rows where exactly one is right."""
    from scipy import stats

    correct_a, correct_b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if correct_a.shape != correct_b.shape:
        raise UserError(f"Found {correct_a.shape} and {correct_b.shape} answers; expected the same test rows twice.")
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def wilson(successes: int, n: int, alpha: float = 0.05) -> Interval:
    """Wilson 1927 score interval for a proportion, e.g. one model's accuracy over new test rows."""
    from scipy import stats  # half a second, which training need not wait for

    if not 0 <= successes <= n or n == 0:
        raise UserError(f"Found {successes} successes in {n} trials; expected 0 <= successes <= trials, trials > 0.")
    limits = stats.binomtest(int(successes), int(n)).proportion_ci(1 - alpha, method="wilson")
    return Interval(successes / n, float(limits.low), float(limits.high), covers=ROWS_ONLY)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979 adjusted p-values: below alpha in a family with at most alpha chance of any false one."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * (len(p_values) - np.arange(len(p_values)))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def sign_flip_p(values: Sequence[float], *, draws: int = 100_000, seed: int = 0) -> float:
    """Two-sided permutation p of "the differences are symmetric about 0"; its floor is 2 / 2^S, so check the number S.

    Exact up to 20 seeds; above, `draws` random patterns with the observed one counted in (Phipson and Smyth 2010).
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size == 0:
        raise UserError(f"Found values of shape {values.shape}; expected one number a seed.")
    threshold = abs(values.sum()) * (1 - 1e-12) - 1e-15  # sums of the same numbers in another order differ in rounding
    if values.size > EXACT_SIGN_FLIPS:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, values.size))
        return float(((np.abs(signs @ values) >= threshold).sum() + 1) / (draws + 1))
    sums = values[:1]  # its sign is fixed: the other half of the patterns mirrors this one
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= threshold).mean())


def alpha_at_look(alpha: float, looks: Sequence[int], look: int) -> float:
    """Alpha for one of the declared looks: equal parts (Bonferroni), so that all together stay within `alpha`.

    Args:
        looks: numbers of seeds after which the results are judged, declared in advance.
        look: seeds there are now.
    """
    if not looks or len(set(looks)) != len(looks):
        raise UserError(f"Found looks {list(looks)}; expected different numbers of seeds, at least one.")
    if look not in looks:
        raise UserError(
            f"Found {look} seeds; looks were declared at {', '.join(map(str, looks))}. Judging at another number "
            "would raise the chance of a false verdict: run up to the next declared look, or declare looks before the "
            "start."
        )
    return alpha / len(looks)


def extra_seeds(interval: Interval, *, margin: float, alpha: float, alpha_equivalence: float | None = None) -> Need:
    """Fewest more seeds with which an interval of `crossed_interval` would exclude 0 or fit inside the margin.

    The mean and the variance parts are taken as they were estimated. The true ones differ, so that it is a plan, with
    about even odds, and no promise.

    Args:
        alpha: for "excludes 0", two-sided, after the correction for several comparisons.
        alpha_equivalence: for the two one-sided tests; `alpha` if None.
    """
    parts, numbers = interval.parts, np.arange(1, MAX_EXTRA_SEEDS + 1)
    return _search(interval, numbers, (parts.num_seeds + numbers, parts.num_items), (margin, alpha, alpha_equivalence))


def extra_test_rows(
    interval: Interval, *, margin: float, alpha: float, alpha_equivalence: float | None = None
) -> Need:
    """As `extra_seeds` for test rows, among numbers with two significant digits: a little fewer may do as well."""
    numbers = np.unique(np.concatenate([np.arange(1, 100) * 10**power for power in range(5)] + [[MAX_EXTRA_ROWS]]))
    parts = interval.parts
    return _search(interval, numbers, (parts.num_seeds, parts.num_items + numbers), (margin, alpha, alpha_equivalence))


def _search(interval: Interval, numbers: np.ndarray, sizes: tuple, test: tuple) -> Need:
    """First number that decides. All are tried: with few seeds, more rows may first widen an interval."""
    margin, alpha, alpha_equivalence = test
    if interval.parts.seed is None:
        return Need(None, "seeds")
    by_seed, by_item = np.broadcast_arrays(*_expected_variances(interval.parts, *sizes))
    distance, room = abs(interval.mid), margin - abs(interval.mid)
    decides = np.zeros(len(numbers), dtype=bool)
    if distance > 0:
        decides |= 2 * _tail(distance, by_seed, by_item, *sizes) < alpha
    if room > 0:
        decides |= _tail(room, by_seed, by_item, *sizes) < (alpha if alpha_equivalence is None else alpha_equivalence)
    if decides.any():
        return Need(int(numbers[decides.argmax()]))
    return Need(None, "seeds" if by_seed[-1] > by_item[-1] else "test rows")


def _expected_variances(parts: VarianceParts, num_seeds: np.ndarray, num_items: np.ndarray) -> tuple:
    by_seed = parts.seed / num_seeds + parts.residual / (num_seeds * num_items)
    return by_seed, _item_variance(parts, num_items)
