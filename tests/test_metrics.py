"""Are the numbers of `hftl.metrics` the ones their definitions give, on known answers and at the edges?"""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time

import evaluate
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from hftl.errors import UserError
from hftl.metrics import (
    METRICS,
    PROBLEM_SCORES,
    SCORES,
    compute_metrics,
    compute_predictions,
    compute_probabilities,
    compute_report,
    compute_token_metrics,
    load_metric,
)

SINGLE, MULTI, REGRESSION, LANGUAGE = PROBLEM_SCORES
LABELLED = (SINGLE, MULTI, REGRESSION)
TABLES = {"per_class", "confusion_matrix"}
LABEL_NAMES = ["cat", "dog", "eel", "fox"]


def make_case(problem_type: str, num_examples: int = 60, num_labels: int = 4):
    """Random float32 logits that carry some signal, and labels in which every class occurs."""
    rng = np.random.default_rng(0)
    if problem_type == REGRESSION:
        labels = rng.normal(size=num_examples)
        return (labels[:, None] + rng.normal(size=(num_examples, 1))).astype(np.float32), labels
    if problem_type == SINGLE:
        labels = np.arange(num_examples) % num_labels
        target = np.eye(num_labels)[labels]
    else:
        target = labels = rng.integers(0, 2, (num_examples, num_labels)).astype(np.float32)
    return (target + rng.normal(size=target.shape)).astype(np.float32), labels


def log_probabilities(rows) -> np.ndarray:
    """Logits whose softmax is `rows`."""
    return np.log(np.asarray(rows))


def one_hot_logits(classes, num_labels: int) -> np.ndarray:
    """Logits of a model that is certain of `classes`."""
    return 50.0 * np.eye(num_labels)[classes]


# --- against scikit-learn and scipy, called directly -------------------------------------------------------------


def test_single_label_scores_equal_scikit_learn():
    logits, labels = make_case(SINGLE)
    exp = np.exp(logits.astype(np.float64))
    predictions = logits.argmax(1)
    expected = {
        "accuracy": sk.accuracy_score(labels, predictions),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predictions),
        "f1_macro": sk.f1_score(labels, predictions, average="macro"),
        "f1_weighted": sk.f1_score(labels, predictions, average="weighted"),
        "log_loss": sk.log_loss(labels, exp / exp.sum(1, keepdims=True)),
    }
    found = compute_metrics(logits, labels, SINGLE, LABEL_NAMES)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_multi_label_scores_equal_scikit_learn():
    logits, labels = make_case(MULTI)
    predictions = (logits >= 0).astype(int)
    assert compute_metrics(logits, labels, MULTI, LABEL_NAMES) == pytest.approx(
        {
            "f1_micro": sk.f1_score(labels, predictions, average="micro"),
            "f1_macro": sk.f1_score(labels, predictions, average="macro"),
            "mean_average_precision": sk.average_precision_score(labels, logits, average="macro"),
            "exact_match": sk.accuracy_score(labels, predictions),
        },
        rel=1e-12,
    )


@pytest.mark.parametrize("as_column", [True, False])
def test_regression_scores_equal_scikit_learn_and_scipy(as_column):
    logits, labels = make_case(REGRESSION)
    values = logits[:, 0].astype(np.float64)
    found = compute_metrics(logits if as_column else values, labels[:, None] if as_column else labels, REGRESSION, [])
    assert found == pytest.approx(
        {
            "mse": sk.mean_squared_error(labels, values),
            "mae": sk.mean_absolute_error(labels, values),
            "pearson": stats.pearsonr(values, labels)[0],
            "spearman": stats.spearmanr(values, labels)[0],
            "r2": sk.r2_score(labels, values),
        },
        rel=1e-12,
    )


# --- by hand -----------------------------------------------------------------------------------------------------


def test_single_label_scores_equal_hand_computed_values():
    logits = one_hot_logits([0, 0, 1, 1, 0], 2)
    labels = np.array([0, 0, 0, 1, 1])  # class 0: tp 2, fp 1, fn 1; class 1: tp 1, fp 1, fn 1
    found = compute_report(logits, labels, SINGLE, ["no", "yes"])
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["f1_weighted"] == pytest.approx((3 * 2 / 3 + 2 * 1 / 2) / 5)
    assert found["confusion_matrix"] == [[2, 1], [1, 1]]
    assert found["per_class"] == {
        "no": {"precision": 2 / 3, "recall": 2 / 3, "f1": pytest.approx(2 / 3), "support": 3},
        "yes": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
    }


def test_calibration_error_equals_hand_computed_value():
    logits = log_probabilities([[0.9, 0.1], [0.1, 0.9], [0.92, 0.08], [0.6, 0.4]])
    labels = np.array([0, 0, 0, 1])
    # bin (13/15, 14/15]: 0.9 right, 0.9 wrong, 0.92 right -> |2 - 2.72|; bin (8/15, 9/15]: 0.6 wrong -> |0 - 0.6|
    found = compute_metrics(logits, labels, SINGLE, ["a", "b"])["expected_calibration_error"]
    assert found == pytest.approx((0.72 + 0.6) / 4)


def test_calibration_bins_include_their_upper_edge():
    probabilities = np.array([[2 / 3, 1 / 3], [0.65, 0.35]])  # 10/15 belongs to (9/15, 10/15], with 0.65
    found = METRICS["expected_calibration_error"]().compute(probabilities=probabilities, references=np.array([0, 1]))
    assert found["expected_calibration_error"] == pytest.approx(abs(1 - 2 / 3 - 0.65) / 2)


def test_calibration_bins_are_fifteen():
    probabilities = np.array([[0.66, 0.34], [0.67, 0.33]])  # on either side of 10/15
    found = METRICS["expected_calibration_error"]().compute(probabilities=probabilities, references=np.array([0, 1]))
    assert found["expected_calibration_error"] == pytest.approx((0.34 + 0.67) / 2)


def test_calibration_error_of_a_calibrated_model_is_zero():
    logits = log_probabilities([[0.75, 0.25]] * 4)
    found = compute_metrics(logits, np.array([0, 0, 0, 1]), SINGLE, ["a", "b"])
    assert found["expected_calibration_error"] == pytest.approx(0, abs=1e-12)


def test_multi_label_scores_equal_hand_computed_values():
    logits = np.array([[3.0, -1.0], [2.0, 1.0], [1.0, -2.0], [-1.0, 2.0]])
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    found = compute_metrics(logits, labels, MULTI, ["a", "b"])
    # label a ranks + - + -: (1 + 2/3) / 2; label b ranks - + - +: (1/2 + 2/4) / 2
    assert found["mean_average_precision"] == pytest.approx(((1 + 2 / 3) / 2 + (1 / 2 + 2 / 4) / 2) / 2)
    # label a: tp 2, fp 1, fn 0; label b: tp 1, fp 1, fn 1
    assert found["f1_micro"] == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert found["f1_macro"] == pytest.approx((4 / 5 + 2 / 4) / 2)
    assert found["exact_match"] == pytest.approx(1 / 4)


def test_regression_scores_equal_hand_computed_values():
    found = compute_metrics(np.array([1.0, 2.0, 4.0]), np.array([1, 3, 2]), REGRESSION, [])
    assert found == pytest.approx(
        {"mse": 5 / 3, "mae": 1.0, "pearson": 1 / np.sqrt(14 / 3 * 2), "spearman": 0.5, "r2": 1 - 5 / 2}
    )


# --- perfect, worst ----------------------------------------------------------------------------------------------


def test_perfect_predictions_score_the_best_value():
    labels = np.array([0, 1, 2, 2])
    found = compute_metrics(one_hot_logits(labels, 3), labels, SINGLE, ["a", "b", "c"])
    assert found == pytest.approx({n: float(SCORES[n].greater_is_better) for n in PROBLEM_SCORES[SINGLE]}, abs=1e-9)
    multi_hot = np.array([[1, 0], [1, 1], [0, 1]])
    found = compute_metrics(20.0 * multi_hot - 10, multi_hot, MULTI, ["a", "b"])
    assert found == dict.fromkeys(PROBLEM_SCORES[MULTI], 1.0)
    values = np.array([0.5, -1.0, 3.0])
    found = compute_metrics(values, values, REGRESSION, [])
    assert found == pytest.approx(
        {n: float(SCORES[n].greater_is_better) for n in PROBLEM_SCORES[REGRESSION]}, abs=1e-12
    )


def test_certain_and_wrong_predictions_score_the_worst_value():
    labels = np.array([0, 1, 0, 1])
    found = compute_metrics(1000 * one_hot_logits(1 - labels, 2), labels, SINGLE, ["a", "b"])
    assert found["log_loss"] == pytest.approx(-np.log(np.finfo(np.float64).eps))  # clipped: 36.04, not inf
    assert found["expected_calibration_error"] == 1.0
    assert [found[n] for n in ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted")] == [0.0] * 4
    multi_hot = np.array([[1, 0], [0, 1]])
    found = compute_metrics(10.0 - 20 * multi_hot, multi_hot, MULTI, ["a", "b"])
    assert found == {"f1_micro": 0, "f1_macro": 0, "mean_average_precision": 0.5, "exact_match": 0}


# --- labels that do not occur ------------------------------------------------------------------------------------


def test_class_without_example_counts_as_zero_in_macro_f1_whether_or_not_it_is_predicted():
    labels = np.array([0, 0, 1, 1])
    never_predicted = compute_metrics(one_hot_logits(labels, 3), labels, SINGLE, ["a", "b", "c"])
    assert never_predicted["f1_macro"] == pytest.approx(2 / 3)
    assert never_predicted["f1_weighted"] == pytest.approx(1)
    predicted = compute_metrics(one_hot_logits([0, 0, 1, 2], 3), labels, SINGLE, ["a", "b", "c"])
    assert predicted["f1_macro"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_present(recwarn):
    found = compute_metrics(one_hot_logits([0, 0, 1, 2], 3), np.array([0, 0, 1, 1]), SINGLE, ["a", "b", "c"])
    assert found["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert not recwarn.list


def test_log_loss_is_defined_when_a_class_has_no_example():
    logits = log_probabilities([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])
    found = compute_metrics(logits, np.array([0, 0]), SINGLE, ["a", "b", "c"])
    assert found["log_loss"] == pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2)


def test_label_without_positive_is_left_out_of_map_and_counts_as_zero_in_macro_f1():
    logits = np.array([[2.0, -1.0], [-1.0, -1.0], [1.0, -2.0]])
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    found = compute_metrics(logits, labels, MULTI, ["a", "b"])
    assert found["mean_average_precision"] == 1.0
    assert found["f1_macro"] == 0.5
    assert found["f1_micro"] == 1.0


def test_map_is_nan_and_f1_zero_when_no_label_has_a_positive():
    found = compute_metrics(-np.ones((3, 2)), np.zeros((3, 2)), MULTI, ["a", "b"])
    assert np.isnan(found.pop("mean_average_precision"))
    assert found == {"f1_micro": 0.0, "f1_macro": 0.0, "exact_match": 1.0}


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_report_warns_once_about_labels_without_example(problem_type, caplog):
    labels = np.array([0, 1])
    logits = one_hot_logits(labels, 3)
    compute_report(logits, labels if problem_type == SINGLE else np.eye(3)[labels], problem_type, ["a", "b", "c"])
    assert [r.getMessage() for r in caplog.records] == [
        "1 of 3 labels have no example in this split, and f1_macro counts each as 0: c"
    ]


def test_report_names_at_most_ten_labels_without_example(caplog):
    compute_report(one_hot_logits([0, 1], 14), np.array([0, 1]), SINGLE, [f"c{i}" for i in range(14)])
    assert "12 of 14" in caplog.text and "c11, ..." in caplog.text and "c12" not in caplog.text


def test_one_multi_label_column_is_scored_for_its_positive_class():
    labels = np.array([[1], [0], [0], [0]])  # class 0, were it scored by mistake, would have F1 2/3
    found = compute_report(np.array([[1.0], [1.0], [-1.0], [-1.0]]), labels, MULTI, ["a"])
    row = {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert found["per_class"] == {"a": row}
    found = compute_metrics(np.array([[1.0], [-1.0], [-1.0], [-1.0]]), 1 - labels, MULTI, ["a"])
    assert (found["f1_macro"], found["f1_micro"]) == (0.0, 0.0)


# --- constant values, one example --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "predictions, labels, undefined",
    [
        ([1.0, 1.0, 1.0], [0.0, 1.0, 2.0], {"pearson", "spearman"}),
        ([0.0, 1.0, 2.0], [1.0, 1.0, 1.0], {"pearson", "spearman", "r2"}),
        ([1.0], [2.0], {"pearson", "spearman", "r2"}),
    ],
)
def test_undefined_regression_scores_are_nan_without_a_warning(predictions, labels, undefined, recwarn):
    found = compute_metrics(np.array(predictions), np.array(labels), REGRESSION, [])
    assert {name for name, value in found.items() if np.isnan(value)} == undefined
    assert not recwarn.list


def test_one_example_is_scored():
    found = compute_report(one_hot_logits([1], 2), np.array([1]), SINGLE, ["a", "b"])
    assert (found["accuracy"], found["confusion_matrix"]) == (1.0, [[0, 0], [0, 1]])
    assert compute_metrics(np.array([[1.0, -1.0]]), np.array([[1, 0]]), MULTI, ["a", "b"])["exact_match"] == 1.0


# --- outputs that are not finite ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "problem_type, value", [*((p, np.nan) for p in LABELLED), (SINGLE, np.inf), (REGRESSION, -np.inf)]
)
def test_outputs_not_finite_make_every_metric_nan_with_one_warning(problem_type, value, caplog, recwarn):
    logits, labels = make_case(problem_type)
    logits[7, 0] = value
    found = compute_metrics(logits, labels, problem_type, LABEL_NAMES)
    assert found.keys() == PROBLEM_SCORES[problem_type].keys()
    assert np.isnan(list(found.values())).all()
    message = "1 of 60 rows of model outputs are not finite: every metric is nan"
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.WARNING, message)]
    assert not recwarn.list


def test_report_on_outputs_not_finite_has_no_tables():
    found = compute_report(np.full((2, 2), np.nan), np.array([0, 1]), SINGLE, ["a", "b"])
    assert found["per_class"] is None and found["confusion_matrix"] is None and np.isnan(found["accuracy"])


def test_class_ruled_out_with_minus_infinity_is_scored():
    found = compute_metrics(np.array([[0.0, -np.inf], [0.0, 0.0]]), np.array([0, 1]), SINGLE, ["a", "b"])
    assert found["log_loss"] == pytest.approx(np.log(2) / 2)


# --- invariants --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem_type", LABELLED)
def test_scores_do_not_depend_on_the_order_of_rows(problem_type):
    logits, labels = make_case(problem_type)
    order = np.random.default_rng(1).permutation(len(labels))
    shuffled = compute_metrics(logits[order], labels[order], problem_type, LABEL_NAMES)
    assert shuffled == pytest.approx(compute_metrics(logits, labels, problem_type, LABEL_NAMES), rel=1e-12)


@pytest.mark.parametrize("problem_type", LABELLED)
def test_half_precision_outputs_and_labels_are_scored_in_float64(problem_type):
    logits, labels = (array.astype(np.float16) for array in make_case(problem_type))
    found = compute_metrics(logits, labels, problem_type, LABEL_NAMES)
    assert found == compute_metrics(logits.astype(float), labels.astype(float), problem_type, LABEL_NAMES)


def test_one_column_of_multi_hot_rows_is_not_taken_for_class_indices_by_compute():
    columns = {"predictions": np.array([[1], [1], [0]]), "references": np.array([[1], [0], [0]])}
    assert load_metric("f1_macro", ["a"]).compute(**columns) == {"f1_macro": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    "name, problem_type",
    [(name, problem_type) for name, cls in METRICS.items() for problem_type in cls.inputs if problem_type != LANGUAGE],
)
def test_evaluate_interface_gives_the_same_in_one_call_and_in_batches(name, problem_type):
    logits, labels = make_case(problem_type)
    expected = compute_report(logits, labels, problem_type, LABEL_NAMES)[name]
    columns = {
        "probabilities": compute_probabilities(logits, problem_type),
        "predictions": compute_predictions(logits, problem_type),
        "references": labels,
    }
    columns = {column: columns[column] for column in METRICS[name].inputs[problem_type]}
    metric = load_metric(name, LABEL_NAMES)
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(**columns) == {name: expected}
    for start in range(0, len(labels), 16):
        metric.add_batch(**{column: rows[start : start + 16] for column, rows in columns.items()})
    assert metric.compute() == {name: expected}


def test_metric_without_label_names_counts_the_classes_that_occur():
    columns = {"predictions": [0, 2, 2], "references": [0, 2, 0]}
    assert load_metric("f1_macro").compute(**columns)["f1_macro"] == pytest.approx(2 / 3)
    assert load_metric("f1_macro", ["a", "b", "c"]).compute(**columns)["f1_macro"] == pytest.approx(4 / 9)
    assert list(load_metric("per_class").compute(**columns)["per_class"]) == ["0", "2"]


@pytest.mark.parametrize("problem_type", LABELLED)
def test_report_holds_the_metrics_and_survives_json(problem_type):
    logits, labels = make_case(problem_type)
    report = compute_report(logits, labels, problem_type, LABEL_NAMES)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    scores = {name: value for name, value in report.items() if name not in TABLES}
    assert scores == compute_metrics(logits, labels, problem_type, LABEL_NAMES)
    assert all(type(value) is float for value in scores.values())


def test_tables_agree_with_the_scores():
    logits, labels = make_case(SINGLE)
    report = compute_report(logits, labels, SINGLE, LABEL_NAMES)
    matrix = np.array(report["confusion_matrix"])
    rows = report["per_class"]
    assert list(rows) == LABEL_NAMES
    assert np.trace(matrix) / matrix.sum() == pytest.approx(report["accuracy"])
    assert matrix.sum(1).tolist() == [row["support"] for row in rows.values()]
    assert np.mean([row["f1"] for row in rows.values()]) == pytest.approx(report["f1_macro"])
    assert np.mean([row["recall"] for row in rows.values()]) == pytest.approx(report["balanced_accuracy"])


# --- probabilities and predictions -------------------------------------------------------------------------------


def test_softmax_is_stable_and_in_float64():
    found = compute_probabilities(np.array([[1e4, 1e4], [0.0, np.log(3)]], dtype=np.float32), SINGLE)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [[0.5, 0.5], [0.25, 0.75]], rtol=1e-7)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-15)


def test_sigmoid_is_stable_and_in_float64():
    found = compute_probabilities(np.array([[-1e4, 0.0, 1e4, np.log(3)]], dtype=np.float32), MULTI)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [[0, 0.5, 1, 0.75]], rtol=1e-7)


def test_regression_values_come_back_squeezed_also_for_one_row():
    assert compute_probabilities(np.array([[2.5]], dtype=np.float32), REGRESSION).tolist() == [2.5]
    assert compute_predictions(np.array([[2.5], [1.0]]), REGRESSION).tolist() == [2.5, 1.0]


def test_prediction_is_the_greatest_class_or_every_label_from_one_half():
    assert compute_predictions(np.array([[0.0, 3.0, 1.0]]), SINGLE).tolist() == [1]
    assert compute_predictions(np.array([[-0.01, 0.0, 0.01]]), MULTI).tolist() == [[0, 1, 1]]


# --- the registry ------------------------------------------------------------------------------------------------


def test_every_metric_but_the_tables_is_reported_for_a_problem_type():
    assert {name for names in PROBLEM_SCORES.values() for name in names} == set(METRICS) - TABLES


def test_the_first_score_leads_and_is_defined_for_any_prediction():
    assert [next(iter(scores)) for scores in PROBLEM_SCORES.values()] == [
        "accuracy",
        "f1_micro",
        "mse",
        "bits_per_byte",
    ]


def test_errors_and_losses_are_the_only_metrics_where_less_is_better():
    names = {name for name in set(METRICS) - TABLES if not SCORES[name].greater_is_better}
    assert names == {"log_loss", "expected_calibration_error", "mse", "mae", *PROBLEM_SCORES[LANGUAGE]} - {
        "token_accuracy"
    }


# --- what a user's mistake looks like ----------------------------------------------------------------------------


def test_unknown_names_are_errors_that_name_the_nearest():
    with pytest.raises(UserError, match="Unknown metric 'acuracy'. Did you mean 'accuracy'?"):
        load_metric("acuracy")
    for function in (compute_probabilities, compute_predictions):
        with pytest.raises(UserError, match="Unknown problem type 'single_label'. Did you mean 'single_label_class"):
            function(np.zeros((1, 2)), "single_label")
    with pytest.raises(UserError, match="Unknown problem type 'regresion'. Did you mean 'regression'?"):
        compute_metrics(np.zeros(1), np.zeros(1), "regresion", [])


@pytest.mark.parametrize(
    "problem_type, logits, labels, names, expected",
    [
        (SINGLE, (2, 3), (2,), 2, "outputs (2, 2) and labels (2,)"),  # label names do not fit the model
        (SINGLE, (3, 2), (2,), 2, "outputs (2, 2) and labels (2,)"),  # rows lost
        (SINGLE, (2, 2), (2, 2), 2, "outputs (2, 2) and labels (2,)"),  # multi-hot labels
        (MULTI, (2, 2), (2,), 2, "outputs (2, 2) and labels (2, 2)"),  # class indices
        (MULTI, (2, 3), (2, 3), 2, "outputs (2, 2) and labels (2, 2)"),
        (REGRESSION, (2, 2), (2,), 0, "outputs (2, 1) and labels (2,)"),
    ],
)
def test_shapes_that_do_not_fit_are_an_error(problem_type, logits, labels, names, expected):
    message = f"outputs of shape {logits} and labels of shape {labels} do not fit {problem_type} with {names} label"
    with pytest.raises(UserError, match=re.escape(message) + ".*" + re.escape(f"expected {expected}")):
        compute_metrics(np.zeros(logits), np.zeros(labels), problem_type, LABEL_NAMES[:names])


@pytest.mark.parametrize(
    "problem_type, labels, message",
    [
        (SINGLE, [0, -100], r"Found labels \[-100\], expected whole numbers from 0 to 1"),
        (SINGLE, [2, 1], r"Found labels \[2\], expected whole numbers from 0 to 1"),
        (SINGLE, [0.5, 1.0], r"Found labels \[0.5\], expected whole numbers from 0 to 1"),
        (MULTI, [[0, 1], [0, 2]], r"Found labels \[2\], expected 0 or 1"),
        (REGRESSION, [0.0, np.nan], r"Found labels \[nan\], expected finite numbers"),
    ],
)
def test_labels_that_mean_nothing_are_an_error(problem_type, labels, message):
    logits = np.zeros((2, 1 if problem_type == REGRESSION else 2))
    with pytest.raises(UserError, match=message):
        compute_metrics(logits, np.array(labels), problem_type, ["a", "b"])


def test_no_examples_and_a_single_class_are_errors():
    with pytest.raises(UserError, match="No examples to compute metrics on: found 0 labels"):
        compute_metrics(np.zeros((0, 2)), np.zeros(0), SINGLE, ["a", "b"])
    with pytest.raises(UserError, match="Found 1 label names, but single_label_classification needs at least 2"):
        compute_metrics(np.zeros((3, 1)), np.zeros(3), SINGLE, ["a"])


# --- cost and side effects ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem_type", LABELLED)
def test_ten_thousand_rows_of_45_labels_take_under_a_second(problem_type):
    logits, labels = make_case(problem_type, num_examples=10_000, num_labels=45)
    start = time.process_time()
    compute_metrics(logits, labels, problem_type, [str(i) for i in range(45)])
    assert time.process_time() - start < 1  # measured: 0.04, 0.26 and 0.01 s


def test_no_metric_opens_a_socket_or_writes_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in METRICS:
        load_metric(name)
    load_metric("accuracy").compute(predictions=[0, 1], references=[0, 1])
    for problem_type in LABELLED:
        compute_report(*make_case(problem_type), problem_type, LABEL_NAMES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_import_and_use_make_no_request_and_write_no_file_when_online_is_allowed(tmp_path):
    code = """
import sys
def refuse(event, args):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto"}:
        raise SystemExit(f"{event} {args}")  # not an Exception, which a library could swallow
sys.addaudithook(refuse)
from hftl.metrics import METRICS, load_metric
for name in METRICS:
    load_metric(name)
print(load_metric("accuracy").compute(predictions=[0, 1], references=[0, 1]))
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    env |= {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == "{'accuracy': 1.0}\n", result.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not list(tmp_path.rglob("metrics"))


# --- language models ---------------------------------------------------------------------------------------------


def build_sums(**changes):
    sums = {"negative_log_likelihood": [2.0, 6.0], "num_tokens": [2, 6], "num_correct": [1, 2], "num_bytes": [8, 24]}
    return {name: np.array(values) for name, values in (sums | changes).items()}


def test_scores_of_a_language_model_are_over_all_tokens_not_means_over_rows():
    found = compute_token_metrics(build_sums(negative_log_likelihood=[4.0, 6.0]))
    assert found == pytest.approx(
        {
            "token_loss": 10 / 8,
            "perplexity": np.exp(10 / 8),
            "bits_per_byte": 10 / 32 / np.log(2),
            "token_accuracy": 3 / 8,
        }
    )


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    sums = build_sums(negative_log_likelihood=[2 * np.log(50), 6 * np.log(50)])
    assert compute_token_metrics(sums)["perplexity"] == pytest.approx(50)


def test_a_likelihood_that_is_not_finite_is_seen_in_every_score_of_it():
    found = compute_token_metrics(build_sums(negative_log_likelihood=[np.nan, 1.0]))
    assert all(np.isnan(found[name]) for name in ("token_loss", "perplexity", "bits_per_byte"))


def test_rows_without_a_token_to_predict_are_said_to_have_none():
    with pytest.raises(UserError, match="every row is a prompt"):
        compute_token_metrics(build_sums(num_tokens=[0, 0]))
