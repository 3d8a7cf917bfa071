"""Do stated intervals for curves, crossovers and multipliers hold, and is nothing claimed that was not measured?

Experiments are simulated: power laws with a floor as true errors, one point of noise that belongs to a chain of nested
subsets (half of it the same at all sizes and shared by the arms), and 1000 test rows that are hard or easy for
everyone. An interval covers if the truth is in it; one that is open above covers only what lies above its lower end.
"""

import json
import math
import os
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import t as student
from sklearn.isotonic import IsotonicRegression

from hftl.compare.curve_draws import Sampling, draw_means, smooth_falling
from hftl.compare.curve_fits import fit_curve
from hftl.compare.curve_report import draw_curves
from hftl.compare.curves import HORIZON, Bounds, backtest, band, crossover, label_multiplier
from hftl.errors import UserError
from hftl.models.modes import Role

SIZES = np.array([32, 64, 128, 256, 512, 1024])
NUM_SEEDS, NUM_ROWS, NOISE = 5, 1000, 0.01
NUM_EXPERIMENTS = 200 if os.environ.get("HFTL_TEST_EXHAUSTIVE") == "1" else 30
# Of so many draws, the least share whose interval holds the truth; of 30 draws, two standard errors less.
NOMINAL = 0.90 if NUM_EXPERIMENTS == 200 else 0.90 - 2 * math.sqrt(0.9 * 0.1 / NUM_EXPERIMENTS)
Law = Callable[[np.ndarray], np.ndarray]


def power_law(floor: float, scale: float, exponent: float) -> Law:
    return lambda n: floor + scale * np.asarray(n, float) ** -exponent


# a, from scratch, and b, pretrained, behind which a is at first
CASES = {
    "inside": (power_law(0.10, 3.0, 0.5), power_law(0.22, 0.6, 0.4)),
    "beyond the largest size": (power_law(0.10, 3.0, 0.4), power_law(0.25, 0.5, 0.5)),
    "near the horizon": (power_law(0.10, 3.0, 0.4), power_law(0.20, 0.6, 0.4)),
    "beyond the horizon": (power_law(0.10, 3.0, 0.4), power_law(0.13, 0.6, 0.4)),
    "never": (power_law(0.20, 2.0, 0.4), power_law(0.10, 1.0, 0.4)),
    "ahead from the start": (power_law(0.05, 1.0, 0.4), power_law(0.20, 1.0, 0.3)),
}
CROSSOVERS = {
    "inside": 264.575,
    "beyond the largest size": 1450.36,
    "near the horizon": 2821.81,
    "beyond the horizon": 57243.3,
    "never": math.inf,
    "ahead from the start": 0.0,
}
SCRATCH, PRETRAINED = CASES["inside"]
ROLES = {
    "full": Role.TUNED,
    "lora": Role.TUNED,
    "probe": Role.FROZEN,
    "scratch": Role.SCRATCH,
    "tfidf": Role.CHEAP,
    "knn": Role.CHEAP,
}
TITLES = {"full": "Full fine-tuning", "lora": "LoRA", "scratch": "From scratch", "tfidf": "TF-IDF"}


def simulate(seed: int, *laws: Law, num_seeds: int = NUM_SEEDS) -> list[np.ndarray]:
    """Wrong (1) or right (0) of each test row, for each arm: [S, L, N]."""
    rng = np.random.default_rng(seed)
    difficulty = rng.standard_normal(NUM_ROWS)
    shared = rng.standard_normal((num_seeds, 1))
    arms = []
    for law in laws:
        own, each = rng.standard_normal((num_seeds, 1)), rng.standard_normal((num_seeds, len(SIZES)))
        chain = np.sqrt(0.25) * shared + np.sqrt(0.25) * own + np.sqrt(0.5) * each
        rates = np.clip(law(SIZES) + NOISE * chain, 1e-3, 0.999)
        thresholds = np.vectorize(NormalDist().inv_cdf)(rates)[:, :, None]
        luck = rng.standard_normal((num_seeds, len(SIZES), NUM_ROWS), dtype=np.float32)
        arms.append((np.sqrt(0.5) * difficulty + np.sqrt(0.5) * luck < thresholds).astype(float))
    return arms


def measure(seed: int, *laws: Law, num_seeds: int = NUM_SEEDS) -> tuple[list[np.ndarray], dict]:
    """Errors [S, L] of each arm of one simulated experiment, and the options of its analysis."""
    rows = simulate(seed, *laws, num_seeds=num_seeds)
    return [arm.mean(axis=2) for arm in rows], {"row_errors": tuple(rows), "sampling": Sampling(400, seed)}


def covers(found: Bounds, truth: float) -> bool:
    return (found.low is None or truth >= found.low) and (found.high is None or truth <= found.high)


def exact(law: Law, num_seeds: int = 2) -> np.ndarray:
    """The true errors, for every seed the same."""
    return np.tile(law(SIZES), (num_seeds, 1))


def labels_for(law: Law, error: float) -> float:
    """Labels at which a falling law reaches an error, by bisection; infinite if it never does."""
    low, high = 1.0, 1e12
    if law(high) > error:
        return math.inf
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if law(middle) > error else (low, middle)
    return high


@pytest.mark.parametrize("case", CASES)
def test_the_stated_crossovers_are_those_of_the_curves(case: str) -> None:
    a, b = CASES[case]
    n = np.geomspace(SIZES[0], 1e7, 10_001)
    assert (a(n) > b(n)).tolist() == (n < CROSSOVERS[case]).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_crossover_intervals_cover_the_truth(case: str) -> None:
    found = []
    for seed in range(NUM_EXPERIMENTS):
        errors, options = measure(seed, *CASES[case])
        found.append(crossover(SIZES, *errors, **options))
    assert np.mean([covers(bounds, CROSSOVERS[case]) for bounds in found]) >= NOMINAL
    assert_useful(case, [bounds.low or 0 for bounds in found], [bounds.high or math.inf for bounds in found])


def assert_useful(case: str, lows: list[float], highs: list[float]) -> None:
    """An interval that says nothing covers always; the typical one must be narrow, or open only where it has to be."""
    low, high, largest = np.median(lows), np.median(highs), SIZES[-1]
    if case == "inside":
        assert high / low < 2
    elif case == "ahead from the start":
        assert high == SIZES[0]
    elif case in ("beyond the horizon", "never"):
        assert low == HORIZON * largest
    else:
        assert low > 0.5 * CROSSOVERS[case]


def test_crossover_intervals_cover_the_truth_in_a_few_experiments() -> None:
    found = []
    for seed in range(20):
        errors, options = measure(seed, SCRATCH, PRETRAINED)
        found.append(crossover(SIZES, *errors, **options))
    assert sum(covers(bounds, CROSSOVERS["inside"]) for bounds in found) >= 18
    assert max(bounds.high / bounds.low for bounds in found) < 4


@pytest.mark.slow
@pytest.mark.parametrize("at", [64, 256])
@pytest.mark.parametrize("case", ["inside", "beyond the largest size", "beyond the horizon", "never"])
def test_multiplier_intervals_cover_the_truth(case: str, at: int) -> None:
    scratch, pretrained = CASES[case]
    truth = labels_for(scratch, pretrained(at)) / at
    found = []
    for seed in range(NUM_EXPERIMENTS):
        (a, b), options = measure(seed, pretrained, scratch)
        found.append(label_multiplier(SIZES, a, b, at, **options))
    assert np.mean([covers(bounds, truth) for bounds in found]) >= NOMINAL
    if truth * at < SIZES[-1]:
        assert np.median([(bounds.high or math.inf) / bounds.low for bounds in found]) < 2.5
    else:
        assert np.median([bounds.low or 0 for bounds in found]) > 0.4 * min(truth, HORIZON * SIZES[-1] / at)


@pytest.mark.slow
@pytest.mark.parametrize("law", [SCRATCH, PRETRAINED, power_law(0.0, 1.1, 0.15)])
def test_bands_cover_the_curve_within_the_sizes_and_up_to_the_horizon(law: Law) -> None:
    at = np.array([32, 90, 256, 1024, 4096])
    covered, widths = [], []
    for seed in range(NUM_EXPERIMENTS):
        (errors,), options = measure(seed, law)
        curve = band(SIZES, errors, at, row_errors=options["row_errors"][0], sampling=options["sampling"])
        covered.append((curve.low <= law(at)) & (law(at) <= curve.high))
        widths.append(curve.high - curve.low)
    assert (np.mean(covered, axis=0) >= NOMINAL).all()
    assert (np.median(widths, axis=0) < 0.07).all()


@pytest.mark.slow
def test_backtests_pass_where_the_curve_is_a_power_law() -> None:
    passed = []
    for seed in range(NUM_EXPERIMENTS):
        (errors,), options = measure(seed, SCRATCH)
        test = backtest(SIZES, errors, row_errors=options["row_errors"][0], sampling=options["sampling"])
        passed.append(test.is_inside)
    assert np.mean(passed) >= 0.9


def test_draws_of_a_paired_difference_spread_as_its_t_interval() -> None:
    rng = np.random.default_rng(3)
    a = 0.4 + 0.02 * rng.standard_normal((4, 1))
    b = a - 0.1 + 0.005 * rng.standard_normal((4, 1))
    means_a, means_b = draw_means([100], [a, b], [None, None], Sampling(40_000))
    low, high = np.quantile(means_a.draws - means_b.draws, [0.025, 0.975])
    half = student.ppf(0.975, 3) * np.std(a - b, ddof=1) / 2
    assert (low, high) == pytest.approx((np.mean(a - b) - half, np.mean(a - b) + half), rel=0.03)


def test_draws_hold_for_new_test_rows_when_rows_are_given() -> None:
    (errors,), options = measure(0, power_law(0.4, 0.0, 1.0))
    rows = options["row_errors"][0]
    with_rows, without = (draw_means(SIZES, [errors], [part], Sampling(20_000))[0] for part in (rows, None))
    added = with_rows.draws.var(axis=0) - np.minimum(without.draws, 1).var(axis=0)
    difficulty = np.var(rows.mean(axis=0), axis=1) / NUM_ROWS
    assert added == pytest.approx(difficulty, rel=0.35)


def test_a_planted_ossification_gives_a_finite_crossover() -> None:
    ossified = power_law(0.25, 0.5, 0.5)  # ahead on few labels, but stuck at an error of 0.25
    (a, b), options = measure(1, power_law(0.10, 3.0, 0.4), ossified)
    found = crossover(SIZES, a, b, **options)
    assert found.refused is None
    assert SIZES[-1] < found.mid < HORIZON * SIZES[-1]
    assert found.low > SIZES[-1] / 2
    assert covers(found, CROSSOVERS["beyond the largest size"])


@pytest.mark.parametrize(("floor", "scale", "exponent"), [(0.1, 3.0, 0.5), (0.0, 1.1, 0.15), (0.22, 0.6, 0.4)])
def test_fits_recover_the_parameters_of_noise_free_curves(floor: float, scale: float, exponent: float) -> None:
    fit = fit_curve(SIZES, power_law(floor, scale, exponent)(SIZES))
    assert (fit.floor, fit.scale, fit.exponent) == pytest.approx((floor, scale, exponent), rel=1e-3, abs=1e-4)
    assert fit.flag is None


@pytest.mark.parametrize(
    ("means", "word"),
    [
        ([0.3] * 6, "flat"),
        ([0.6, 0.5, 0.4, 0.45, 0.3, 0.25], "not monotone"),
        ([0.6, 0.6, 0.6, 0.2, 0.2, 0.2], "power"),
    ],
)
def test_curves_that_are_no_falling_power_law_are_flagged(means: list[float], word: str) -> None:
    errors = np.array(means) + np.array([[-0.005], [0.0], [0.005]])
    assert word in fit_curve(SIZES, errors).flag


def test_fits_need_three_sizes() -> None:
    with pytest.raises(UserError, match="2 sizes have a score"):
        fit_curve(SIZES, np.array([0.5, np.nan, 0.4, np.nan, np.nan, np.nan]))


def test_crossovers_and_multipliers_of_noise_free_curves_are_exact() -> None:
    a, b = exact(SCRATCH), exact(PRETRAINED)
    assert crossover(SIZES, a, b).mid == pytest.approx(CROSSOVERS["inside"], rel=0.01)
    beyond = [exact(law) for law in CASES["beyond the largest size"]]
    assert crossover(SIZES, *beyond).mid == pytest.approx(CROSSOVERS["beyond the largest size"], rel=0.01)
    truth = labels_for(SCRATCH, float(PRETRAINED(64))) / 64
    assert label_multiplier(SIZES, b, a, 64).mid == pytest.approx(truth, rel=0.02)  # straight between sizes
    no_floor = exact(power_law(0.0, 1.0, 0.3)), exact(power_law(0.0, 2.0, 0.3))
    assert label_multiplier(SIZES, *no_floor, 64).mid == pytest.approx(2 ** (1 / 0.3), rel=1e-9)


def test_never_and_already_ahead_are_told_apart() -> None:
    behind = crossover(SIZES, *(exact(law) for law in CASES["never"]))
    ahead = crossover(SIZES, *(exact(law) for law in CASES["ahead from the start"]))
    assert (behind.mid, behind.is_beyond, behind.low, behind.high) == (None, True, 4096, None)
    assert (ahead.mid, ahead.is_beyond, ahead.low, ahead.high) == (None, False, None, SIZES[0])


def test_nothing_is_extrapolated_from_fewer_than_four_sizes() -> None:
    a, b = (exact(law)[:, 3:] for law in CASES["beyond the largest size"])
    found = crossover(SIZES[3:], a, b)
    assert "fewer than 4 sizes" in found.refused
    assert (found.mid, found.is_beyond, found.limit) == (None, True, SIZES[-1])
    assert "fewer than 4 sizes" in backtest(SIZES[3:], a).refused


def test_nothing_is_extrapolated_after_a_failed_backtest() -> None:
    (a, b), options = measure(2, *CASES["beyond the largest size"])
    a[:, -1] += 0.2  # worse at the largest size than the others foretell
    test = backtest(SIZES, a, sampling=options["sampling"])
    found = crossover(SIZES, a, b, sampling=options["sampling"])
    assert not test.is_inside
    assert "extrapolation refused" in test.refused
    assert (found.refused, found.mid, found.limit) == (test.refused, None, SIZES[-1])
    (curve, _) = draw_curves(SIZES, {"scratch": a, "full": b}, ROLES)["curves"]
    assert curve["refused"].startswith("extrapolation refused")
    assert max(point["n"] for point in curve["band"]) == SIZES[-1]


def test_one_seed_gives_estimates_without_intervals() -> None:
    found = crossover(SIZES, exact(SCRATCH, 1), exact(PRETRAINED, 1))
    assert (found.has_interval, found.low, found.high) == (False, None, None)
    assert found.mid == pytest.approx(CROSSOVERS["inside"], rel=0.01)
    assert "fewer than 2 seeds" in found.refused


def test_smoothing_is_isotonic_regression() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.random((50, 7)), rng.random(7) + 0.1
    smooth = smooth_falling(values, weights)
    assert (np.diff(smooth, axis=1) <= 1e-12).all()
    for row, found in zip(values, smooth, strict=True):
        expected = IsotonicRegression(increasing=False).fit_transform(np.arange(7), row, sample_weight=weights)
        assert found == pytest.approx(expected)


def build_experiment(num_seeds: int = NUM_SEEDS) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    laws = {
        "full": PRETRAINED,
        "lora": power_law(0.20, 0.6, 0.4),
        "probe": power_law(0.31, 0.05, 0.6),
        "scratch": SCRATCH,
        "tfidf": power_law(0.25, 1.0, 0.5),
        "knn": power_law(0.34, 0.6, 0.3),
    }
    rows = dict(zip(laws, simulate(5, *laws.values(), num_seeds=num_seeds), strict=True))
    return {arm: table.mean(axis=2) for arm, table in rows.items()}, rows


def test_the_report_has_every_comparison_asked_for() -> None:
    errors, rows = build_experiment()
    drawn = draw_curves(SIZES.tolist(), errors, ROLES, rows, titles=TITLES, sampling=Sampling(400))
    json.dumps(drawn, allow_nan=False)
    assert [curve["arm"] for curve in drawn["curves"]] == list(errors)
    crossed = {(entry["a"], entry["b"]) for entry in drawn["crossovers"]}
    # full and LoRA overtake the probe; with TF-IDF and kNN they never change places
    assert crossed == {("scratch", arm) for arm in ("full", "lora", "probe")} | {("full", "probe"), ("lora", "probe")}
    pairs = {(entry["a"], entry["b"]) for entry in drawn["multipliers"]}
    assert pairs == {(a, b) for a in ("full", "lora") for b in ("scratch", "tfidf", "knn")}
    for entry in drawn["multipliers"]:
        assert entry["mid"] is None or (entry["low"] or 0) <= entry["mid"] <= (entry["high"] or math.inf)
        assert entry["is_censored"] == (entry["mid"] is None)


@pytest.mark.parametrize("is_score", [True, False])
def test_curves_are_reported_in_the_metric(is_score: bool) -> None:
    errors, rows = build_experiment()
    options = {"is_score": is_score, "sampling": Sampling(400)}
    (curve,) = draw_curves(SIZES, {"full": errors["full"]}, ROLES, rows, **options)["curves"]
    expected = 1 - errors["full"].mean(axis=0) if is_score else errors["full"].mean(axis=0)
    assert [point["mean"] for point in curve["points"]] == pytest.approx(expected)
    assert all(point["low"] < point["mid"] < point["high"] for point in curve["band"])
    assert [point["n"] for point in curve["band"]][:: len(curve["band"]) - 1] == [SIZES[0], HORIZON * SIZES[-1]]
    test = curve["backtest"]
    assert test["predicted_low"] < test["observed"] < test["predicted_high"]
    assert test["observed"] == pytest.approx(expected[-1])


def test_two_tuned_arms_that_change_places_are_said_to() -> None:
    laws = {"lora": exact(SCRATCH), "full": exact(PRETRAINED)}
    (crossing,) = draw_curves(SIZES, laws, ROLES, titles=TITLES)["crossovers"]
    assert crossing["sentence"].startswith("LoRA catches up with full fine-tuning at about n = 265")
    never = {"lora": exact(PRETRAINED), "full": exact(PRETRAINED)}
    assert draw_curves(SIZES, never, ROLES, titles=TITLES)["crossovers"] == []


def test_sentences_say_what_was_found() -> None:
    drawn = draw_curves(SIZES, {"full": exact(PRETRAINED), "scratch": exact(SCRATCH)}, ROLES, titles=TITLES)
    (crossing,), (first, last) = drawn["crossovers"], drawn["multipliers"]
    assert crossing["sentence"] == (
        "From scratch catches up with full fine-tuning at about n = 265 [265, 265; for these test rows]."
    )
    assert first["size"] == 128
    assert first["sentence"].startswith(
        "Pretraining was worth 1.7x [1.7, 1.7; for these test rows] the labels at n = 128"
    )
    assert last["size"] == 1024
    assert last["mid"] < 1
    never = {arm: exact(law)[:, :3] for arm, law in zip(("scratch", "full"), CASES["never"], strict=True)}
    drawn = draw_curves(SIZES[:3], never, ROLES, titles=TITLES)
    assert drawn["crossovers"][0]["sentence"] == (
        "From scratch has not caught up with full fine-tuning by n = 128 (largest size; no extrapolation: "
        "not back-tested: fewer than 4 sizes)."
    )
    ahead = {arm: exact(law) for arm, law in zip(("scratch", "full"), CASES["ahead from the start"], strict=True)}
    (crossing,) = draw_curves(SIZES, ahead, ROLES, titles=TITLES)["crossovers"]
    assert crossing["sentence"] == "From scratch is already ahead of full fine-tuning at the smallest size, n = 32."


@pytest.mark.parametrize("seed", range(1, 7))
def test_partial_experiments_are_drawn_as_far_as_they_go(seed: int) -> None:
    errors, rows = build_experiment(num_seeds=3)
    rng = np.random.default_rng(seed)
    for table in errors.values():
        table[rng.random(table.shape) < 0.1 + 0.1 * seed] = np.nan
    rows |= {"full": None, "knn": np.where(np.isfinite(errors["knn"])[:, :, None], rows["knn"], np.nan)}
    drawn = draw_curves(SIZES, errors, ROLES, rows, sampling=Sampling(100))
    json.dumps(drawn, allow_nan=False)
    for curve in drawn["curves"]:
        seen = np.isfinite(errors[curve["arm"]]).any(axis=0)
        assert [point["n"] for point in curve["points"]] == SIZES[seen].tolist()
        assert (curve["fit"] is None) == (seen.sum() < 3)
        assert curve["fit"] or curve["refused"]


@pytest.mark.parametrize(("num_seeds", "num_sizes"), [(1, 6), (5, 1), (5, 2), (1, 1)])
def test_small_experiments_are_drawn_as_far_as_they_go(num_seeds: int, num_sizes: int) -> None:
    errors = {arm: table[:num_seeds, :num_sizes] for arm, table in build_experiment()[0].items()}
    errors["lora"] = np.full_like(errors["lora"], np.nan)
    drawn = draw_curves(SIZES[:num_sizes], errors, ROLES, sampling=Sampling(100))
    json.dumps(drawn, allow_nan=False)
    assert "lora" not in {curve["arm"] for curve in drawn["curves"]}
    assert all(curve["refused"] for curve in drawn["curves"])
    assert bool(drawn["crossovers"]) == (num_sizes > 1)
    assert all(point["low"] is None for curve in drawn["curves"] for point in curve["band"])
