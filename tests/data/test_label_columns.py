"""A column of zeros and ones for each label: read, refused, and the same in train, evaluate, audit and predict."""

import csv
import json

import datasets
import pytest

import hftl
from hftl.cli import main
from hftl.config import DataArguments, parse_args
from hftl.data.label_columns import join_label_columns, refuse_rejected
from hftl.data.load import load_splits
from hftl.errors import UserError
from hftl.run_record import RunRecord
from hftl.tasks import build_task
from hftl.training.run import run
from tests import tiny

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
NAMES = ["toxic", "obscene", "threat"]


def read(columns, problem_type=None, names=("b", "a"), **more):
    table = datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(len(columns["a"]))], **columns})
    args = DataArguments(train_file="x", label_column=list(names), problem_type=problem_type, **more)
    splits, info = build_task("text-classification").read(datasets.DatasetDict(train=table), args)
    return info, splits["train"]["label"][:]


@pytest.mark.parametrize(
    "yes, no", [(1, 0), (True, False), (1.0, 0.0), ("1", "0"), ("True", "False"), ("yes", "no"), ("Y", "N")]
)
def test_columns_that_say_yes_or_no_are_labels_in_the_order_in_which_they_are_named(yes, no):
    info, labels = read({"a": [yes, no, no], "b": [yes, yes, no]})
    assert (info.problem_type, info.names) == (MULTI, ("b", "a"))
    assert labels == [[1, 1], [1, 0], [0, 0]]


def test_one_yes_a_row_is_one_class_where_that_is_asked_for():
    info, labels = read({"a": [1, 0, 0], "b": [0, 1, 0], "c": [0, 0, 1]}, SINGLE, ["a", "b", "c"])
    assert (info.problem_type, info.names, labels) == (SINGLE, ("a", "b", "c"), [0, 1, 2])


@pytest.mark.parametrize(
    "columns, more, message",
    [
        (
            {"a": [1, 0], "b": [2, 0]},
            {},
            "label column 'b' of train has 2 in row 0; several label columns hold 0 and 1",
        ),
        ({"a": [1, -1], "b": [1, 0]}, {}, "label column 'a' of train has -1 in row 1"),
        ({"a": [1, None], "b": [1, 0]}, {}, "label column 'a' of train has None in row 1"),
        ({"a": [0.3, 0.0], "b": [1, 0]}, {}, "label column 'a' of train has 0.3 in row 0"),
        ({"a": [1, 0], "b": [1, 0]}, {"names": ["a", "bb"]}, "Unknown column 'bb'. Did you mean 'b'"),
        ({"a": [1, 0], "b": [1, 0]}, {"names": ["a", "a"]}, "names a column twice"),
        ({"a": [1, 0], "b": [1, 0]}, {"problem_type": "regression"}, "one number a row: give one --label_column"),
        ({"a": [1, 0], "b": [1, 1]}, {"problem_type": SINGLE}, "train row 0 has 2 of the labels b, a; expected one"),
        ({"a": [1, 0], "b": [0, 0]}, {"problem_type": SINGLE}, "train row 1 has 0 of the labels b, a; expected one"),
    ],
)
def test_columns_that_hold_something_else_are_refused(columns, more, message):
    with pytest.raises(UserError, match=message):
        read(columns, **more)


def test_one_column_is_left_as_it_is():
    args = DataArguments(train_file="x", label_column=["a"])
    splits = datasets.DatasetDict(train=datasets.Dataset.from_dict({"a": [0, 1]}))
    assert args.label_column == "a" and join_label_columns(splits, args, None) == (splits, args)


@pytest.mark.parametrize(
    "task", ["token-classification", "semantic-segmentation", "object-detection", "question-answering"]
)
def test_tasks_that_take_one_column_say_so(tmp_path, task):
    row = {"tokens": ["a"], "image": "x.png", "question": "a", "context": "a", "a": ["O"], "b": ["O"]}
    tiny.write_jsonl(tmp_path / "t.jsonl", [row])
    args = DataArguments(task=task, train_file=str(tmp_path / "t.jsonl"), label_column=["a", "b"])
    with pytest.raises(UserError, match=f"--task {task} takes one --label_column; found a, b"):
        build_task(task).read(load_splits(args), args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on a table whose labels have a column each; every fourth row has none."""
    folder = tmp_path_factory.mktemp("columns")
    tiny.write_tiny_bert(folder / "bert")
    rows = [
        [
            f"{tiny.CLASS_WORDS[i % 2][i % 3]} {tiny.FILLER_WORDS[i % 5]} {i}",
            int(i % 2 == 0),
            int(i % 3 == 0),
            int(i % 4 == 1),
        ]
        for i in range(24)
    ]
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text", *NAMES], *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        words = "--mode full --max_steps 2 --head_init random --use_cpu --train_file train.csv --test_file train.csv"
        run(
            parse_args(
                [*words.split(), *["--model_name_or_path", "bert", "--output_dir", "run", "--label_column"], *NAMES]
            )
        )
        yield folder


def test_the_record_names_the_labels_and_its_settings_repeat_the_run(folder):
    record = RunRecord.read(folder / "run")
    assert (record.data["label_names"], record.data["problem_type"]) == (NAMES, MULTI)
    assert record.config["label_column"] == NAMES
    again = run(parse_args([str(folder / "run" / "config.yaml"), "--output_dir", str(folder / "again"), "--use_cpu"]))
    assert again.data["fingerprint"] == record.data["fingerprint"]
    assert again.metrics["test"]["f1_micro"] == pytest.approx(record.metrics["test"]["f1_micro"])


def test_the_columns_are_evaluated_audited_and_not_read_in_a_prediction(folder, capsys):
    assert main(["evaluate", "run", "train.csv", "--output_file", "e.json"]) == 0
    scores = json.loads((folder / "e.json").read_text())["scores"]["f1_micro"]
    assert scores["value"] == pytest.approx(scores["stored"])
    assert main(["evaluate", "run", "train.csv", "--label_column", *NAMES]) == 0
    assert main(["audit", "--train_file", "train.csv", "--output_file", "a.json", "--label_column", *NAMES]) == 0
    assert json.loads((folder / "a.json").read_text())["num_classes"] == 3
    assert main(["predict", "run", "train.csv", "--output_file", "p.jsonl", "--threshold", "0.01"]) == 0
    answers = [json.loads(line) for line in (folder / "p.jsonl").read_text().splitlines()]
    assert len(answers) == 24 and all(set(answer["labels"]) == set(NAMES) for answer in answers)
    assert set(hftl.load("run").predict(["a text"], threshold=0.01)[0]["labels"]) == set(NAMES)


@pytest.mark.parametrize("answers", [["accept", "reject"], ["ignore", "accept"], ["reject", "reject"]])
def test_labels_that_an_annotator_rejected_are_not_learnt(answers):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"], "answer": answers})
    with pytest.raises(UserError, match="The column 'answer' of train says '(reject|ignore)' in row [01]"):
        refuse_rejected(datasets.DatasetDict(train=rows), "label")


@pytest.mark.parametrize("answers", [["accept", "accept"], ["yes", "no"], ["reject it", "accept"]])
def test_other_answers_are_no_verdicts(answers):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"], "answer": answers})
    refuse_rejected(datasets.DatasetDict(train=rows), "label")
    refuse_rejected(datasets.DatasetDict(train=rows.remove_columns("label")), "answer")
