"""Scores on new data: those of the run on its own test set, with intervals that hold; labels must be known."""

import json

import numpy as np
import pytest

import hftl
from hftl import cli
from hftl.config import parse_args
from hftl.errors import UserError
from hftl.inference.evaluation import compute_intervals, evaluate
from hftl.metrics import PROBLEM_SCORES
from hftl.run import run
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft's hints


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def train(train_once):
    return lambda mode, *more: train_once(mode, "--max_steps", "3", *more)


@pytest.mark.parametrize("mode", ["full", "peft"])
def test_on_the_data_of_the_run_the_scores_are_those_of_the_run(train, files, capsys, tmp_path, mode):
    folder = train(mode)
    capsys.readouterr()
    words = ["evaluate", str(folder), f"{files}/test.csv", "--output_file", f"{tmp_path}/new/scores.json"]
    assert cli.main(words) == 0
    output = capsys.readouterr().out
    found = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert set(found["scores"]) == set(PROBLEM_SCORES["single_label_classification"])
    assert (found["num_rows"], found["stored_split"]) == (9, "test")
    for name, score in found["scores"].items():
        assert score["value"] == pytest.approx(score["stored"], abs=1e-4), name
        assert score["low"] <= score["value"] <= score["high"], name
        assert any(line.startswith(f"{name} ") and f"{score['value']:.4f}" in line for line in output.splitlines())
    assert set(found["report"]["per_class"]) == set(tiny.LABELS)
    assert f"{files}/test.csv: 9 rows" in output
    assert output.splitlines()[1].split() == ["here", "95", "%", "interval", "test", "of", "its", "run"]


def test_a_run_on_some_classes_is_scored_on_rows_of_these(train, files):
    folder = train("full", "--only_labels", "animal", "weather")
    found = evaluate(hftl.load(folder), f"{files}/test.csv")
    assert found.num_rows == 6 and found.scores["accuracy"].value == pytest.approx(found.scores["accuracy"].stored)


def test_data_without_a_row_of_the_classes_of_the_run_are_refused(train, tmp_path):
    (tmp_path / "new.csv").write_text("text,label\na run,motion\n")
    predictor = hftl.load(train("full", "--only_labels", "animal", "weather"))
    with pytest.raises(UserError, match="The evaluated split has no row of the classes in --only_labels"):
        evaluate(predictor, f"{tmp_path}/new.csv")


def test_a_language_model_is_scored_by_its_tokens(tmp_path):
    tiny.write_tiny_llama(tmp_path / "llama")
    tiny.write_jsonl(tmp_path / "train.jsonl", tiny.make_completions(32))
    tiny.write_jsonl(tmp_path / "test.jsonl", tiny.make_completions(12, seed=1))
    words = ["--task", "causal-lm", "--train_file", f"{tmp_path}/train.jsonl", "--use_cpu", "--max_steps", "2"]
    words += ["--test_file", f"{tmp_path}/test.jsonl", "--model_name_or_path", f"{tmp_path}/llama"]
    run(parse_args([*words, "--output_dir", f"{tmp_path}/run"], mode="full"))
    found = evaluate(hftl.load(tmp_path / "run"), str(tmp_path / "test.jsonl"))
    assert set(found.scores) == set(PROBLEM_SCORES["language_modeling"])
    for score in found.scores.values():
        assert score.value == pytest.approx(score.stored, rel=1e-4)
        assert score.low <= score.value <= score.high and score.low < score.high


def test_intervals_cover_the_score_of_all_rows_as_often_as_they_say(train):
    """95 % of intervals from 150 rows hold the score of 3,000; for a mean over rows, and for one that is none."""
    predictor = hftl.load(train("full"))
    draw = np.random.default_rng(0)
    labels = draw.integers(3, size=3000)
    kept = draw.normal(size=(3000, 3)) + 1.5 * np.eye(3)[labels]
    truth = predictor.task.compute_metrics(kept, {"labels": labels}, predictor.source.labels)
    for name, repetitions in (("accuracy", 100), ("log_loss", 100), ("f1_macro", 30)):
        hits = 0
        for repetition in range(repetitions):
            place = np.random.default_rng(repetition + 1).choice(3000, 150, replace=False)
            rows = {"labels": labels[place]}
            value = predictor.task.compute_metrics(kept[place], rows, predictor.source.labels)[name]
            low, high = compute_intervals(predictor, kept[place], FakeRows(labels[place]), {name: value})[name]
            hits += low <= truth[name] <= high
        assert 0.85 * repetitions <= hits, (name, hits)
        assert hits <= 0.99 * repetitions or repetitions < 100, (name, hits)


class FakeRows(dict):
    """Prepared rows with labels alone."""

    def __init__(self, labels):
        super().__init__(labels=labels, row_id=np.arange(len(labels)))

    def __len__(self):
        return len(self["labels"])

    def select(self, place):
        return FakeRows(self["labels"][place])


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (
            [{"text": "cat", "label": "animal"}, {"text": "x", "label": "metal"}],
            (),
            "The label 'metal' is in the new data but not among the labels of the model (row_id 1)",
        ),
        ([{"text": "cat", "label": None}, {"text": "x", "label": "motion"}], (), "the new data has missing labels"),
        ([{"text": "cat", "kind": "animal"}], (), "no column looks like the label"),
        ([{"text": "cat", "kind": "animal"}], ("--label_column", "kin"), "Did you mean 'kind'?"),
    ],
)
def test_labels_must_be_there_and_known(train, tmp_path, capsys, rows, more, message):
    tiny.write_jsonl(tmp_path / "new.jsonl", rows)
    assert cli.main(["evaluate", str(train("full")), f"{tmp_path}/new.jsonl", *more]) == 2
    assert message in capsys.readouterr().err


def test_one_row_has_no_interval(train, tmp_path):
    tiny.write_jsonl(tmp_path / "new.jsonl", [{"text": "cat dog", "label": "animal"}])
    found = evaluate(hftl.load(train("full")), str(tmp_path / "new.jsonl"))
    assert {(score.low, score.high) for score in found.scores.values()} == {(None, None)}
    assert found.num_rows == 1 and len(found.lines()) == 2 + len(found.scores)
