"""How good are predictions of any number of labels per example? (`f1_macro` is in `classification`.)

Must not know: logits, models, the threshold that made the predictions.
"""

import numpy as np

from hftl.metrics.base import MULTI_HOT, MULTI_HOT_PROBABILITIES, MULTI_LABEL, Metric
from hftl.metrics.spread import spread_average_precision, spread_f1_micro


class F1Micro(Metric):
    """F1 of all (example, label) decisions pooled, in [0, 1]; 0 when nothing is true and nothing is predicted."""

    inputs = {MULTI_LABEL: MULTI_HOT}
    by_row = staticmethod(lambda table: spread_f1_micro(table["label"], table["prediction"]))

    def compute(self, predictions, references):
        from sklearn import metrics as sk

        return {"f1_micro": float(sk.f1_score(np.ravel(references), np.ravel(predictions), zero_division=0))}


class MeanAveragePrecision(Metric):
    """Mean over labels of the average precision (scikit-learn's: no interpolation), in [0, 1].

    A label without a positive example has no average precision and is left out; nan when no label has one.
    """

    inputs = {MULTI_LABEL: MULTI_HOT_PROBABILITIES}
    by_row = staticmethod(lambda table: spread_average_precision(table["label"], table["probabilities"]))

    def compute(self, probabilities, references):
        from sklearn import metrics as sk

        probabilities, references = np.asarray(probabilities), np.asarray(references)  # [N, C]
        has_positive = references.any(axis=0)
        if not has_positive.any():
            return {"mean_average_precision": float("nan")}
        score = sk.average_precision_score(
            references[:, has_positive], probabilities[:, has_positive], average="macro"
        )
        return {"mean_average_precision": float(score)}


class ExactMatch(Metric):
    """Fraction of examples whose every label is right (subset accuracy), in [0, 1]."""

    inputs = {MULTI_LABEL: MULTI_HOT}
    by_row = staticmethod(lambda table: (table["label"] == table["prediction"]).all(axis=1).astype(float))

    def compute(self, predictions, references):
        return {"exact_match": float((np.asarray(predictions) == np.asarray(references)).all(axis=1).mean())}
