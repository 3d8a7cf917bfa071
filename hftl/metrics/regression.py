"""How good are predictions of one number per example?

A score that is undefined is nan, without a warning. Must not know: models, the unit of the numbers.
"""

import math
from collections.abc import Callable

import numpy as np

from hftl.metrics.base import CORRELATION, POSITIVE, REGRESSION, VALUES, Metric
from hftl.metrics.spread import spread_pearson, spread_r2, spread_spearman


def _correlation(statistic: Callable, predictions, references) -> float:
    """A correlation in [-1, 1]; nan when either side is constant, which includes a single example."""
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return float("nan")
    return float(statistic(predictions, references).statistic)


def _values(table: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions, float64 [N] each."""
    return table["label"].astype(float), table["prediction"].astype(float)


def _differences(table: dict[str, np.ndarray]) -> np.ndarray:
    """Label minus prediction, float64 [N]."""
    return np.subtract(*_values(table))


class MeanSquaredError(Metric):
    """Mean squared difference, in the squared unit of the label."""

    inputs = {REGRESSION: VALUES}
    greater_is_better = False
    by_row = staticmethod(lambda table: _differences(table) ** 2)
    bounds = POSITIVE

    def compute(self, predictions, references):
        from sklearn import metrics as sk

        return {"mse": float(sk.mean_squared_error(references, predictions))}


class MeanAbsoluteError(Metric):
    """Mean absolute difference, in the unit of the label."""

    inputs = {REGRESSION: VALUES}
    greater_is_better = False
    by_row = staticmethod(lambda table: np.abs(_differences(table)))
    bounds = POSITIVE

    def compute(self, predictions, references):
        from sklearn import metrics as sk

        return {"mae": float(sk.mean_absolute_error(references, predictions))}


class Pearson(Metric):
    """Linear correlation, in [-1, 1]; nan when the predictions or the labels are constant."""

    inputs = {REGRESSION: VALUES}
    by_row = staticmethod(lambda table: spread_pearson(*_values(table)))
    bounds = CORRELATION

    def compute(self, predictions, references):
        from scipy import stats

        return {"pearson": _correlation(stats.pearsonr, predictions, references)}


class Spearman(Metric):
    """Rank correlation (ties get their mean rank), in [-1, 1]; nan when the predictions or the labels are constant."""

    inputs = {REGRESSION: VALUES}
    by_row = staticmethod(lambda table: spread_spearman(*_values(table)))
    bounds = CORRELATION

    def compute(self, predictions, references):
        from scipy import stats

        return {"spearman": _correlation(stats.spearmanr, predictions, references)}


class R2(Metric):
    """Coefficient of determination: 1 is perfect, 0 is the mean of the labels, no lower bound.

    Nan when the labels are constant, which includes a single example: they have no variance to explain.
    """

    inputs = {REGRESSION: VALUES}
    by_row = staticmethod(lambda table: spread_r2(*_values(table)))
    bounds = (-math.inf, 1.0)

    def compute(self, predictions, references):
        from sklearn import metrics as sk

        if np.ptp(references) == 0:
            return {"r2": float("nan")}
        return {"r2": float(sk.r2_score(references, predictions))}
