"""The numbers of a comparison: known answers of scipy and statsmodels, and what simulations say of the rest."""

import numpy as np
import pytest
import scipy.stats

from hftl.compare import stats
from hftl.compare.verdict import compare_pair, finish_pairs
from hftl.errors import UserError
from hftl.metrics import power

OPTIONS = {"size": 8, "margin": 0.01, "alpha": 0.05, "greater_is_better": True}


def draw_correct(rng, num_seeds, num_items, *, seed_sd=0.15, item_sd=1.5, shift=0.0, items=None):
    """Correct answers [S, N]: a logit a row (hard and easy rows), a logit a chain, and a coin for each of them."""
    items = rng.normal(1.0, item_sd, num_items) if items is None else items
    logits = items + rng.normal(shift, seed_sd, (num_seeds, 1)) + rng.normal(0, 0.8, (num_seeds, num_items))
    return (rng.random((num_seeds, num_items)) < 1 / (1 + np.exp(-logits))).astype(float)


# --- known answers


@pytest.mark.parametrize("num_seeds", [2, 3, 7])
def test_the_interval_over_seeds_is_that_of_the_paired_t_test(num_seeds):
    rng = np.random.default_rng(num_seeds)
    a, b = rng.normal(0.6, 0.02, (2, num_seeds))
    expected = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    found = stats.seed_interval(a - b, 0.05)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_wilson_holm_and_mcnemar_are_those_of_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import proportion_confint

    found = stats.wilson(83, 100)
    assert (found.low, found.high) == pytest.approx(proportion_confint(83, 100, method="wilson"))
    p_values = [0.01, 0.04, 0.03, 0.2, 0.005]
    assert stats.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert stats.holm([]) == []
    rng = np.random.default_rng(0)
    a, b = rng.random(200) < 0.8, rng.random(200) < 0.7
    table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
    assert stats.mcnemar_exact(a, b) == pytest.approx(mcnemar(table, exact=True).pvalue)


def test_the_smallest_p_of_a_sign_flip_is_two_of_all_flips():
    assert stats.sign_flip_p([0.1, 0.2, 0.3, 0.1, 0.2]) == pytest.approx(2 / 2**5)
    assert stats.sign_flip_p([0.1, -0.1]) == 1


def test_a_difference_at_the_stated_limit_is_found_with_80_percent_power():
    rng = np.random.default_rng(0)
    num_rows, disagreement = 2000, 0.1
    difference = power.minimum_detectable_difference(num_rows, disagreement)
    only_a, only_b = (disagreement + difference) / 2, (disagreement - difference) / 2
    counts = rng.multinomial(num_rows, [only_a, only_b, 1 - disagreement], size=2000)
    p = [scipy.stats.binomtest(a, a + b).pvalue for a, b, _ in counts]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.8, abs=0.04)


def test_alpha_is_shared_among_declared_looks_and_refused_at_others():
    assert stats.alpha_at_look(0.05, [6, 8, 10], 8) == pytest.approx(0.05 / 3)
    with pytest.raises(UserError, match="Found 7 seeds; looks were declared at 6, 8, 10"):
        stats.alpha_at_look(0.05, [6, 8, 10], 7)


# --- the crossed interval


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_the_crossed_interval_covers_the_truth_over_new_seeds_and_new_rows(num_seeds):
    rng = np.random.default_rng(num_seeds)
    covered = 0
    for _ in range(1000):
        seeds, rows = rng.normal(0, 0.02, (num_seeds, 1)), rng.normal(0, 0.4, (1, 300))
        differences = 0.03 + seeds + rows + rng.normal(0, 0.5, (num_seeds, 300))
        interval = stats.crossed_interval(differences)
        covered += interval.low <= 0.03 <= interval.high
    assert covered / 1000 >= 0.93
    assert covered / 1000 <= 0.985, "an interval that always covers says nothing"


def test_rows_shared_by_all_seeds_are_not_averaged_away():
    rng = np.random.default_rng(0)
    differences = np.tile(rng.normal(0.0, 1.0, 200), (50, 1)) + rng.normal(0, 0.01, (50, 1))
    interval = stats.crossed_interval(differences)
    assert interval.high - interval.low > 2 * 1.9 * differences[0].std() / np.sqrt(200)


def test_one_seed_gives_an_interval_for_these_models_only():
    interval = stats.crossed_interval(np.random.default_rng(0).normal(size=(1, 100)))
    assert interval.covers != stats.crossed_interval(np.random.default_rng(0).normal(size=(3, 100))).covers
    assert compare_pair("a", "b", np.ones((1, 50)), np.zeros((1, 50)), **OPTIONS)["p_value"] is None


def test_answers_that_never_differ_are_not_certain():
    interval = stats.crossed_interval(np.zeros((3, 100)), unit=1.0)
    assert interval.low < 0 < interval.high
    assert interval.high < 0.06


def test_shapes_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError):
        stats.crossed_interval(np.zeros((3, 1)))
    with pytest.raises(UserError):
        compare_pair(
            "a", "b", np.zeros((2, 5)), np.zeros((3, 5)), size=8, margin=0.01, alpha=0.05, greater_is_better=True
        )


# --- verdicts in simulation


def judge(rng, *, shift=0.0, sizes=3, num_seeds=5, num_items=400, margin=0.02):
    pairs = []
    for size in range(sizes):
        items = rng.normal(1.0, 1.5, num_items)
        a = draw_correct(rng, num_seeds, num_items, items=items, shift=shift)
        b = draw_correct(rng, num_seeds, num_items, items=items)
        pairs.append(compare_pair("a", "b", a, b, size=2**size, margin=margin, alpha=0.05, greater_is_better=True))
    return [pair["verdict"] for pair in finish_pairs(pairs, 0.05)]


@pytest.mark.parametrize("num_draws", [150, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_an_arm_compared_with_itself_is_called_better_or_worse_in_at_most_five_percent(num_draws):
    rng = np.random.default_rng(0)
    false = sum(bool({"better", "worse"} & set(judge(rng))) for _ in range(num_draws))
    slack = 0 if num_draws == 1000 else 2 * np.sqrt(0.05 * 0.95 * num_draws)  # of the simulation
    assert false <= 0.05 * num_draws + slack, false


def test_a_planted_difference_is_found_and_has_the_right_sign():
    rng = np.random.default_rng(1)
    found = [verdict for _ in range(20) for verdict in judge(rng, shift=1.0, sizes=1)]
    assert found.count("better") >= 18
    assert "worse" not in found


def test_a_difference_as_large_as_the_margin_is_called_equivalent_in_at_most_five_percent():
    rng = np.random.default_rng(2)
    false = 0
    for _ in range(400):
        rows = rng.normal(0, 0.1, 400)
        a, b = (rng.normal(0.6, 0.002, (5, 1)) + rows + rng.normal(0, 0.05, (5, 400)) for _ in "ab")
        pair = compare_pair("a", "b", a + 0.01, b, size=8, margin=0.01, alpha=0.05, greater_is_better=True)
        false += finish_pairs([pair], 0.05)[0]["verdict"] == "equivalent"
    assert false <= 0.05 * 400 + 2 * np.sqrt(0.05 * 0.95 * 400)


def test_as_many_more_seeds_as_are_asked_for_decide_when_the_estimates_hold():
    rng = np.random.default_rng(4)
    differences = 0.02 + rng.normal(0, 0.02, (3, 1)) + rng.normal(0, 0.02, (3, 2000))
    interval = stats.crossed_interval(differences)
    assert interval.low < 0
    more = stats.extra_seeds(interval, margin=0.001, alpha=0.05).number
    assert more and more > 0
    # The same spread of seeds, three and the asked number of them.
    centred = np.resize(differences - differences.mean(), (3 + more, 2000))
    assert stats.crossed_interval(centred + interval.mid).low > -0.3 * interval.mid


def test_when_the_seeds_differ_more_rows_would_not_decide():
    rng = np.random.default_rng(5)
    differences = 0.001 + rng.normal(0, 0.05, (3, 1)) + rng.normal(0, 0.1, (3, 200))
    need = stats.extra_test_rows(stats.crossed_interval(differences), margin=0.0005, alpha=0.05)
    assert (need.number, need.stopped_by) == (None, "seeds")
