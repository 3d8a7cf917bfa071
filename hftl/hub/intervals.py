"""Between which values does a test score lie, given how few rows it was measured on?

Percentile bootstrap over the stored predictions (Efron 1979), for scores that are a sum over rows divided by another.
Only the rows are redrawn: what another seed of training would give, a single run cannot know.
"""

import math
from collections.abc import Mapping

import numpy as np

from hftl.metrics.base import LANGUAGE, MULTI_LABEL, REGRESSION, SINGLE_LABEL

NUM_DRAWS = 2000
LEVEL = 0.95


def compute_interval(problem_type: str, columns: Mapping[str, np.ndarray]) -> tuple[str, float, float]:
    """The leading metric of a problem type and its 95 % interval.

    Args:
        problem_type: single label, multi-label, regression or language.
        columns: of `predictions.parquet`.

    Returns:
        Name of the metric, lower and upper end.
    """
    metric, above, below = _SUMS[problem_type](columns)
    draws = np.random.default_rng(0)
    scores = []
    for _ in range(NUM_DRAWS):
        chosen = draws.integers(0, len(above), len(above))
        scores.append(above[chosen].sum() / max(below[chosen].sum(), 1e-12))
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return metric, float(low), float(high)


def _accuracy(columns: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray, np.ndarray]:
    correct = (columns["label"] == columns["prediction"]).astype(float)
    return "accuracy", correct, np.ones_like(correct)


def _f1_micro(columns: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray, np.ndarray]:
    label, prediction = columns["label"], columns["prediction"]
    return "f1_micro", 2.0 * (label * prediction).sum(1), (label + prediction).sum(1).astype(float)


def _squared_error(columns: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray, np.ndarray]:
    error = (columns["label"].reshape(-1) - columns["prediction"].reshape(-1)) ** 2
    return "mse", error, np.ones_like(error)


def _bits_per_byte(columns: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray, np.ndarray]:
    return "bits_per_byte", columns["negative_log_likelihood"] / math.log(2), columns["num_bytes"].astype(float)


_SUMS = {
    SINGLE_LABEL: _accuracy,
    MULTI_LABEL: _f1_micro,
    REGRESSION: _squared_error,
    LANGUAGE: _bits_per_byte,
}
