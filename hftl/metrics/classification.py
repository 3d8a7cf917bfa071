"""How good are predictions of one class per example? (`f1_macro` and `per_class` serve several labels too.)

Classes without an example: see each metric. Must not know: logits, models, how a run uses a score.
"""

from collections.abc import Callable

import numpy as np

from hftl.metrics.base import CLASS_PROBABILITIES, CLASSES, MULTI_HOT, MULTI_LABEL, POSITIVE, SINGLE_LABEL, Metric
from hftl.metrics.spread import (
    spread_balanced_accuracy,
    spread_calibration_error,
    spread_f1_macro,
    spread_f1_weighted,
    spread_log_loss,
)

CALIBRATION_EDGES = np.linspace(0, 1, 16)[1:-1]  # between the 15 bins of Guo et al. 2017, table 1


def _precision_recall_f1(predictions, references, labels: list[int] | None, average: str | None) -> tuple:
    """scikit-learn's scores; 0 for a label that is never predicted (precision) or has no example (recall, F1)."""
    from sklearn import metrics as sk

    predictions, references = np.asarray(predictions), np.asarray(references)
    if references.ndim == 2 and references.shape[1] == 1:
        # scikit-learn takes a single multi-hot column for a problem with the two classes 0 and 1; ours is class 1.
        predictions, references, labels = predictions.ravel(), references.ravel(), [1]
    return sk.precision_recall_fscore_support(references, predictions, labels=labels, average=average, zero_division=0)


def _spread(table: dict[str, np.ndarray], spread: Callable[..., np.ndarray]) -> np.ndarray:
    """`spread` of a score that counts over all classes, of which the probabilities tell the number."""
    return spread(table["label"], table["prediction"], table["probabilities"].shape[1])


class Accuracy(Metric):
    """Fraction of examples whose class is predicted, in [0, 1]."""

    inputs = {SINGLE_LABEL: CLASSES}
    by_row = staticmethod(lambda table: (table["label"] == table["prediction"]).astype(float))

    def compute(self, predictions, references):
        from sklearn import metrics as sk

        return {"accuracy": float(sk.accuracy_score(references, predictions))}


class BalancedAccuracy(Metric):
    """Mean recall over the classes that have an example, in [0, 1]; classes without one have no recall."""

    inputs = {SINGLE_LABEL: CLASSES}
    by_row = staticmethod(lambda table: spread_balanced_accuracy(table["label"], table["prediction"]))

    def compute(self, predictions, references):
        from sklearn import metrics as sk

        # Equal to balanced_accuracy_score, without its warning when a class is predicted that has no example.
        present = np.unique(references)
        recall = sk.recall_score(references, predictions, labels=present, average="macro", zero_division=0)
        return {"balanced_accuracy": float(recall)}


class F1Macro(Metric):
    """Unweighted mean of the F1 of every label, in [0, 1].

    The mean is over all labels of the model. A label without an example counts as 0, whatever is predicted: the
    denominator is then the same for every model scored on a split, and the best possible score is
    (labels with an example) / (labels).
    """

    inputs = {MULTI_LABEL: MULTI_HOT, SINGLE_LABEL: CLASSES}
    by_row = staticmethod(lambda table: _spread(table, spread_f1_macro))

    def compute(self, predictions, references):
        return {"f1_macro": float(_precision_recall_f1(predictions, references, self.labels, "macro")[2])}


class F1Weighted(Metric):
    """Mean of the F1 of every class weighted by its number of examples, in [0, 1]; a class without one weighs 0."""

    inputs = {SINGLE_LABEL: CLASSES}
    by_row = staticmethod(lambda table: _spread(table, spread_f1_weighted))

    def compute(self, predictions, references):
        return {"f1_weighted": float(_precision_recall_f1(predictions, references, self.labels, "weighted")[2])}


class LogLoss(Metric):
    """Mean of -ln(probability of the true class), in nats.

    A probability below 2.2e-16 (float64 eps, clipped by scikit-learn) counts as that: an example costs at most 36.04.
    """

    inputs = {SINGLE_LABEL: CLASS_PROBABILITIES}
    greater_is_better = False
    by_row = staticmethod(lambda table: spread_log_loss(table["label"], table["probabilities"]))
    bounds = POSITIVE

    def compute(self, probabilities, references):
        from sklearn import metrics as sk

        probabilities = np.asarray(probabilities)  # [N, C]
        return {"log_loss": float(sk.log_loss(references, probabilities, labels=range(probabilities.shape[1])))}


class ExpectedCalibrationError(Metric):
    """Mean gap between confidence and accuracy, in [0, 1], over 15 equal-width bins of the top probability.

    sum_m |B_m| / N * |accuracy(B_m) - mean confidence(B_m)|, where B_m holds the examples whose top probability lies
    in ((m - 1) / 15, m / 15]. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv:1706.04599),
    section 2, equation 3.
    """

    inputs = {SINGLE_LABEL: CLASS_PROBABILITIES}
    greater_is_better = False
    by_row = staticmethod(
        lambda table: spread_calibration_error(table["label"], table["probabilities"], CALIBRATION_EDGES)
    )

    def compute(self, probabilities, references):
        probabilities = np.asarray(probabilities)  # [N, C]
        confidence = probabilities.max(axis=1)
        is_correct = probabilities.argmax(axis=1) == references
        bins = np.digitize(confidence, CALIBRATION_EDGES, right=True)
        gaps = np.bincount(bins, weights=is_correct - confidence)  # |B_m| * (accuracy - confidence)
        return {"expected_calibration_error": float(np.abs(gaps).sum() / len(confidence))}


class PerClass(Metric):
    """Precision, recall, F1 (in [0, 1]) and support (number of examples) of every label, by its name.

    Precision is 0 for a label that is never predicted; recall and F1 are 0 for a label without an example.
    """

    inputs = {MULTI_LABEL: MULTI_HOT, SINGLE_LABEL: CLASSES}
    greater_is_better = None

    def compute(self, predictions, references):
        from sklearn.utils.multiclass import unique_labels

        columns = _precision_recall_f1(predictions, references, self.labels, None)
        names = self.label_names or map(str, unique_labels(references, predictions))
        rows = zip(*(column.tolist() for column in columns), strict=True)
        keys = ("precision", "recall", "f1", "support")
        return {"per_class": {name: dict(zip(keys, row, strict=True)) for name, row in zip(names, rows, strict=True)}}


class ConfusionMatrix(Metric):
    """Number of examples by true class (row) and predicted class (column), in the order of the label names."""

    inputs = {SINGLE_LABEL: CLASSES}
    greater_is_better = None

    def compute(self, predictions, references):
        from sklearn import metrics as sk

        return {"confusion_matrix": sk.confusion_matrix(references, predictions, labels=self.labels).tolist()}
