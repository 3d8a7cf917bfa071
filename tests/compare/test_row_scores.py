"""Scores of rows have the score of the split as their mean, and spread as it would over new rows."""

import numpy as np
import pytest

from hftl.metrics import PROBLEM_METRICS, compute_token_metrics
from hftl.metrics.rows import ROW_SCORES


def draw_rows(num_rows: int, seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    count = draw.integers(3, 40, num_rows)
    loss = count * draw.gamma(8, 0.25, num_rows)
    table = {
        "negative_log_likelihood": loss,
        "num_tokens": count,
        "num_bytes": 4 * count + draw.integers(0, 9, num_rows),
    }
    return table | {"num_correct": draw.binomial(count, 0.4)}


@pytest.mark.parametrize("metric", PROBLEM_METRICS["language_modeling"])
def test_rows_of_a_language_model_add_up_to_its_score(metric):
    table = draw_rows(500, seed=0)
    assert ROW_SCORES[metric](table).mean() == pytest.approx(compute_token_metrics(table)[metric])


@pytest.mark.parametrize("metric", PROBLEM_METRICS["language_modeling"])
def test_their_spread_is_that_of_the_score_over_new_rows(metric):
    """Rows have different numbers of tokens: the plain spread of a row's own ratio would be another one."""
    scores = [compute_token_metrics(draw_rows(400, seed))[metric] for seed in range(1, 400)]
    foreseen = np.mean([ROW_SCORES[metric](draw_rows(400, seed)).std() for seed in range(1, 20)]) / np.sqrt(400)
    assert foreseen == pytest.approx(np.std(scores), rel=0.12)
