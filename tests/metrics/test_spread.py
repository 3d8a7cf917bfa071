"""Scores of rows have the score of the split as their mean, and spread as it would over new rows."""

import time

import numpy as np
import pytest

from hftl.metrics import (
    METRICS,
    PROBLEM_SCORES,
    SCORES,
    compute_metrics,
    compute_predictions,
    compute_probabilities,
    compute_token_metrics,
)


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


@pytest.mark.parametrize("metric", PROBLEM_SCORES["language_modeling"])
def test_rows_of_a_language_model_add_up_to_its_score(metric):
    table = draw_rows(500, seed=0)
    assert SCORES[metric].by_row(table).mean() == pytest.approx(compute_token_metrics(table)[metric])


@pytest.mark.parametrize("metric", PROBLEM_SCORES["language_modeling"])
def test_their_spread_is_that_of_the_score_over_new_rows(metric):
    """Rows have different numbers of tokens: the plain spread of a row's own ratio would be another one."""
    scores = [compute_token_metrics(draw_rows(400, seed))[metric] for seed in range(1, 400)]
    foreseen = np.mean([SCORES[metric].by_row(draw_rows(400, seed)).std() for seed in range(1, 20)]) / np.sqrt(400)
    assert foreseen == pytest.approx(np.std(scores), rel=0.12)


def draw_classes(num_rows: int, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Five classes of unequal size, of which two are rare."""
    label = draw.choice(5, num_rows, p=[0.5, 0.25, 0.15, 0.06, 0.04])
    logits = draw.normal(size=(num_rows, 5)) + 1.5 * np.eye(5)[label]
    return {"label": label, "logits": logits}


def draw_label_sets(num_rows: int, draw: np.random.Generator) -> dict[str, np.ndarray]:
    logits = draw.normal(-1, 1.5, (num_rows, 4)).round(1)  # with ties
    return {"label": (draw.random((num_rows, 4)) < 1 / (1 + np.exp(-0.7 * logits))).astype(int), "logits": logits}


def draw_values(num_rows: int, draw: np.random.Generator) -> dict[str, np.ndarray]:
    label = draw.gamma(2, 1, num_rows).round(1)
    return {"label": label, "logits": (0.5 * label + draw.normal(size=num_rows)).round(1)[:, None]}


DRAWS = {
    "single_label_classification": draw_classes,
    "multi_label_classification": draw_label_sets,
    "regression": draw_values,
}
LABELED = [(problem, name) for problem in DRAWS for name in PROBLEM_SCORES[problem]]


def read(problem_type: str, name: str, num_rows: int, draw: np.random.Generator) -> tuple[float, np.ndarray]:
    """The score as `run.json` has it and its rows as `predictions.parquet` gives them, probabilities as float32."""
    drawn = DRAWS[problem_type](num_rows, draw)
    probabilities = compute_probabilities(drawn["logits"], problem_type)
    table = {"label": drawn["label"], "prediction": compute_predictions(drawn["logits"], problem_type)}
    metric = METRICS[name]([f"class {k}" for k in range(drawn["logits"].shape[1])])
    columns = {"references": table["label"], "predictions": table["prediction"], "probabilities": probabilities}
    score = metric.compute(**{column: columns[column] for column in metric.inputs[problem_type]})[name]
    return score, SCORES[name].by_row(table | {"probabilities": probabilities.astype(np.float32)})


@pytest.mark.parametrize(("problem_type", "name"), LABELED)
def test_rows_have_the_score_as_their_mean(problem_type, name):
    score, rows = read(problem_type, name, 300, np.random.default_rng(1))
    assert rows.shape == (300,)
    assert rows.mean() == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(("problem_type", "name"), LABELED)
def test_their_standard_error_is_the_spread_of_the_score(problem_type, name):
    draw = np.random.default_rng(5)
    found = [read(problem_type, name, 500, draw) for _ in range(400)]
    foreseen = np.mean([rows.std(ddof=1) for _, rows in found[:50]]) / np.sqrt(500)
    assert foreseen == pytest.approx(np.std([score for score, _ in found]), rel=0.15)


@pytest.mark.parametrize("name", ["f1_macro", "f1_weighted", "balanced_accuracy"])
def test_a_class_that_is_absent_from_test_counts_in_the_rows_as_in_the_score(name):
    label, logits = np.array([0, 0, 1, 1, 1]), np.eye(4)[[0, 1, 1, 1, 3]]
    names = ["a", "b", "c", "d"]
    table = {"label": label, "prediction": logits.argmax(1), "probabilities": logits}
    score = compute_metrics(logits, label, "single_label_classification", names)[name]
    assert SCORES[name].by_row(table).mean() == pytest.approx(score)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_correlation_with_a_constant_explains_nothing(name):
    rows = SCORES[name].by_row({"label": np.arange(5.0), "prediction": np.full(5, 2.0)})
    assert rows.tolist() == [0.0] * 5


def test_the_rows_of_every_metric_take_less_than_a_tenth_of_a_second():
    draw = np.random.default_rng(3)
    slow = {}
    for problem_type, name in LABELED:
        started = time.process_time()
        read(problem_type, name, 2000, draw)
        slow[name] = time.process_time() - started
    assert max(slow.values()) < 0.1 * 5, slow  # five times the goal: the machine may be busy
