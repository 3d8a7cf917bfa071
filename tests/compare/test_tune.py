"""Trials fill their ranges, however few they are."""

import math

import pytest

from hftl.compare.tune import spread_trials


@pytest.mark.parametrize("num_trials", [1, 3, 8])
@pytest.mark.parametrize("seed", [1, 1250])
def test_every_part_of_a_range_has_one_trial(num_trials, seed):
    ranges = {"learning_rate": (1e-5, 1e-2), "weight_decay": (0.01, 0.1)}
    trials = spread_trials(ranges, num_trials, seed)
    for flag, (low, high) in ranges.items():
        places = [math.log(trial[flag] / low) / math.log(high / low) * num_trials for trial in trials]
        assert sorted(map(int, places)) == list(range(num_trials))
        assert all(place % 1 == pytest.approx(0.5) for place in places)


def test_arms_with_ranges_of_the_same_width_get_the_same_ratios():
    low, high = (spread_trials({"learning_rate": (base, 100 * base)}, 3, 7) for base in (1e-5, 1e-3))
    ratios = [b["learning_rate"] / a["learning_rate"] for a, b in zip(low, high, strict=True)]
    assert ratios == pytest.approx([100] * 3)


def test_no_trials_are_no_settings():
    assert spread_trials({"learning_rate": (1e-5, 1e-3)}, 0, 1) == []
