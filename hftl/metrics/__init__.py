"""Which numbers describe the predictions of a model on one split?

Every metric is a class kept in this package, and a module of `evaluate` by `load_metric`: nothing is fetched, nothing
is written to a cache. To add one: a class in the file of its problem type and an entry in `METRICS`; its `inputs` say
for which problem types it is reported. Must not know: tasks, models, runs, which split it looks at.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit, softmax

from hftl.errors import UserError, unknown_name
from hftl.metrics import classification, language, multilabel, regression
from hftl.metrics.base import LANGUAGE, MULTI_LABEL, REGRESSION, SINGLE_LABEL, TOKEN_SUMS, Metric, Score

if TYPE_CHECKING:
    import evaluate

logger = logging.getLogger(__name__)

METRICS: dict[str, type[Metric]] = {
    "accuracy": classification.Accuracy,
    "balanced_accuracy": classification.BalancedAccuracy,
    "f1_micro": multilabel.F1Micro,
    "f1_macro": classification.F1Macro,
    "f1_weighted": classification.F1Weighted,
    "log_loss": classification.LogLoss,
    "expected_calibration_error": classification.ExpectedCalibrationError,
    "mean_average_precision": multilabel.MeanAveragePrecision,
    "exact_match": multilabel.ExactMatch,
    "mse": regression.MeanSquaredError,
    "mae": regression.MeanAbsoluteError,
    "pearson": regression.Pearson,
    "spearman": regression.Spearman,
    "r2": regression.R2,
    "token_loss": language.TokenLoss,
    "perplexity": language.Perplexity,
    "bits_per_byte": language.BitsPerByte,
    "token_accuracy": language.TokenAccuracy,
    "per_class": classification.PerClass,
    "confusion_matrix": classification.ConfusionMatrix,
}

SCORES: dict[str, Score] = {
    name: Score(cls.greater_is_better, cls.by_row, bounds=cls.bounds)
    for name, cls in METRICS.items()
    if cls.greater_is_better is not None
}
"""What is known of each metric that is one number."""

# The first of a problem type selects a checkpoint and leads a comparison where nobody says otherwise. mse for
# regression, because a correlation is undefined for the constant predictions of an untrained or dead model.
_LEADING = {SINGLE_LABEL: "accuracy", MULTI_LABEL: "f1_micro", REGRESSION: "mse", LANGUAGE: "bits_per_byte"}
_REPORT = {
    problem_type: tuple(name for name, cls in METRICS.items() if problem_type in cls.inputs)
    for problem_type in _LEADING
}

PROBLEM_SCORES: dict[str, dict[str, Score]] = {
    problem_type: {name: SCORES[name] for name in (leading, *_REPORT[problem_type]) if name in SCORES}
    for problem_type, leading in _LEADING.items()
}
"""Problem type (transformers' word) -> the scores that `compute_metrics` returns, the leading one first."""


def load_metric(name: str, label_names: Sequence[str] = ()) -> "evaluate.Metric":
    """The metric of that name, ready for `add_batch` and `compute(references=, predictions= or probabilities=)`."""
    from hftl.metrics.module import Module  # half a second, which runs are spared

    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return Module(METRICS[name](label_names))


def compute_probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Softmax over classes or sigmoid per label, [N, C] float64; for regression the predicted values, [N] float64.

    A nan, or a softmax over +inf, comes out as nan, without a warning; -inf is probability 0.
    """
    _check_problem_type(problem_type)
    logits = np.asarray(logits, dtype=np.float64)
    if problem_type == REGRESSION:
        return logits.reshape(len(logits))
    with np.errstate(invalid="ignore"):
        return softmax(logits, axis=-1) if problem_type == SINGLE_LABEL else expit(logits)


def compute_predictions(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """The class index, [N] int64; the multi-hot labels with probability >= 0.5, [N, C] int64; or the value, [N]."""
    probabilities = compute_probabilities(logits, problem_type)
    if problem_type == SINGLE_LABEL:
        return np.asarray(logits).argmax(axis=-1)
    return (probabilities >= 0.5).astype(np.int64) if problem_type == MULTI_LABEL else probabilities


def compute_metrics(
    logits: np.ndarray, labels: np.ndarray, problem_type: str, label_names: Sequence[str]
) -> dict[str, float]:
    """Every score of the problem type.

    Args:
        logits: the model's outputs, [N, C]; for regression [N, 1] or [N].
        labels: class indices [N], multi-hot [N, C], or values [N] or [N, 1].
        problem_type: a key of `PROBLEM_SCORES`.
        label_names: the C class names in the order of the outputs; not used for regression.

    Returns:
        A float for each of `PROBLEM_SCORES[problem_type]`; all of them nan, with one warning, when a
        probability or value (see `compute_probabilities`) is not finite.

    Raises:
        UserError: no examples, shapes that do not fit, or labels that no class has.
    """
    return _score(PROBLEM_SCORES, logits, labels, problem_type, label_names)


def compute_report(logits: np.ndarray, labels: np.ndarray, problem_type: str, label_names: Sequence[str]) -> dict:
    """`compute_metrics` and the tables, ready for JSON.

    The tables are `per_class` ({name: {precision, recall, f1, support}}; single and multi label) and
    `confusion_matrix` (rows are true classes; single label). They are None where the scores are all nan.
    Labels without an example are warned about: they lower `f1_macro`.
    """
    report = _score(_REPORT, logits, labels, problem_type, label_names)
    absent = [name for name, row in (report.get("per_class") or {}).items() if row["support"] == 0]
    if absent:
        names = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
        message = "%d of %d labels have no example in this split, and f1_macro counts each as 0: %s"
        logger.warning(message, len(absent), len(label_names), names)
    return report


def compute_token_metrics(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Every score of a language model.

    Args:
        sums: the columns of `TOKEN_SUMS`, [N] each.

    Returns:
        A float for each of `PROBLEM_SCORES["language_modeling"]`; nan where a likelihood is not finite.

    Raises:
        UserError: no row has a predicted token.
    """
    if not np.sum(sums["num_tokens"]):
        raise UserError("No tokens to compute metrics on: every row is a prompt, or empty. Check the split.")
    result = {}
    for name in PROBLEM_SCORES[LANGUAGE]:
        result.update(METRICS[name]().compute(**{column: np.asarray(sums[column]) for column in TOKEN_SUMS}))
    return result


def _score(names_by_problem: dict, logits, labels, problem_type: str, label_names: Sequence[str]) -> dict:
    """The metrics of those names, without `evaluate`, which copies every row through Arrow (0.25 s a metric for
    10,000 x 45 probabilities) and gives the same."""
    _check_problem_type(problem_type)
    names = names_by_problem[problem_type]
    logits, labels = np.asarray(logits), np.asarray(labels)
    _check_shapes(logits.shape, labels.shape, problem_type, len(label_names))
    _check_labels(labels, problem_type, len(label_names))
    probabilities = compute_probabilities(logits, problem_type)
    is_bad = ~np.isfinite(probabilities.reshape(len(probabilities), -1)).all(axis=1)  # [N]
    if is_bad.any():
        logger.warning("%d of %d rows of model outputs are not finite: every metric is nan", is_bad.sum(), len(is_bad))
        return {name: float("nan") if name in SCORES else None for name in names}
    columns = {
        "probabilities": probabilities,
        "predictions": compute_predictions(logits, problem_type),
        "references": labels.astype(np.float64).reshape(-1) if problem_type == REGRESSION else labels.astype(np.int64),
    }
    result = {}
    for name in names:
        metric = METRICS[name](label_names)
        result.update(metric.compute(**{column: columns[column] for column in metric.inputs[problem_type]}))
    return result


def _check_problem_type(problem_type: str) -> None:
    if problem_type not in PROBLEM_SCORES:
        raise unknown_name("problem type", problem_type, PROBLEM_SCORES)


def _check_shapes(logits: tuple, labels: tuple, problem_type: str, num_labels: int) -> None:
    """Raises a UserError unless shapes of outputs and labels belong together."""
    n = labels[0]
    if n == 0:
        raise UserError("No examples to compute metrics on: found 0 labels, expected at least 1. Check the split.")
    if problem_type == SINGLE_LABEL and num_labels < 2:
        raise UserError(
            f"Found {num_labels} label names, but {SINGLE_LABEL} needs at least 2 classes. Check the label column."
        )
    column, matrix = [(n,), (n, 1)], [(n, num_labels)]
    valid_logits, valid_labels = {
        SINGLE_LABEL: (matrix, column[:1]),
        MULTI_LABEL: (matrix, matrix),
        REGRESSION: (column, column),
    }[problem_type]
    if logits not in valid_logits or labels not in valid_labels:
        raise UserError(
            f"Model outputs of shape {logits} and labels of shape {labels} do not fit {problem_type} with "
            f"{num_labels} label names: expected outputs {valid_logits[-1]} and labels {valid_labels[0]}. "
            "Check that the model's num_labels, the label column and the label names agree."
        )


def _check_labels(labels: np.ndarray, problem_type: str, num_labels: int) -> None:
    """Raises a UserError that shows the first labels that mean nothing, such as -100."""
    if problem_type == REGRESSION:
        is_valid, meaning = np.isfinite(labels), "finite numbers"
    elif problem_type == MULTI_LABEL:
        is_valid, meaning = np.isin(labels, (0, 1)), "0 or 1"
    else:
        is_valid, meaning = np.isin(labels, range(num_labels)), f"whole numbers from 0 to {num_labels - 1}"
    if not is_valid.all():
        found = np.unique(labels[~is_valid])[:5].tolist()
        raise UserError(f"Found labels {found}, expected {meaning} for {problem_type}. Correct the label column.")
