"""The metric that chooses the best checkpoint is one of the task's, and has its direction."""

import pytest

from hftl.config import parse_args
from hftl.errors import UserError
from hftl.settings import check_best_metric


def check(tmp_path, metric, problem_type, *flags):
    words = ["--dataset", "x", "--output_dir", str(tmp_path), "--metric_for_best_model", metric, *flags]
    args = parse_args(words, mode="full")
    check_best_metric(args, problem_type)
    return args.training.greater_is_better


@pytest.mark.parametrize(
    ("metric", "problem_type", "expected"),
    [
        ("accuracy", "single_label_classification", True),
        ("eval_log_loss", "single_label_classification", False),
        ("mse", "regression", False),
        ("entity_f1", "token-classification", True),
        ("mean_iou", "semantic-segmentation", True),
        ("perplexity", "masked-lm", False),
        ("token_loss", "seq2seq", False),
        ("f1", "question-answering", True),
    ],
)
def test_the_direction_is_that_of_the_metric(tmp_path, metric, problem_type, expected):
    assert check(tmp_path, metric, problem_type) is expected


@pytest.mark.parametrize(
    ("metric", "problem_type", "direction"),
    [
        ("mse", "regression", "true"),
        ("loss", "single_label_classification", "true"),
        ("eval_accuracy", "single_label_classification", "false"),
    ],
)
def test_a_direction_that_would_keep_the_worst_checkpoint_is_refused(tmp_path, metric, problem_type, direction):
    with pytest.raises(UserError, match=f"--greater_is_better is {direction}, but of .* the worst checkpoint"):
        check(tmp_path, metric, problem_type, "--greater_is_better", direction)
    right = {"true": "false", "false": "true"}[direction]
    assert check(tmp_path, metric, problem_type, "--greater_is_better", right) is (right == "true")


@pytest.mark.parametrize(
    ("metric", "problem_type", "message"),
    [
        ("acuracy", "single_label_classification", "Did you mean 'accuracy'"),
        ("accuracy", "token-classification", "entity_f1"),
        ("rougeL", "seq2seq", "token_loss"),  # nothing is written while training
        ("mean_iou", "masked-lm", "perplexity"),
    ],
)
def test_a_metric_of_another_task_is_refused(tmp_path, metric, problem_type, message):
    with pytest.raises(UserError, match=message):
        check(tmp_path, metric, problem_type)
