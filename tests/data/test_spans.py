"""Answers in every layout that files have: as they are meant, or the row is named."""

import gzip
import json

import datasets
import pandas as pd
import pytest

from hftl.config import DataArguments
from hftl.data.load import load_splits
from hftl.data.spans import read_answers
from hftl.errors import UserError
from hftl.tasks.question_answering import QuestionAnswering

CONTEXT = "the old dog runs after a dog in 1912"


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ({"text": ["dog"], "answer_start": [8]}, None),
        ({"text": ["dog"], "answer_start": ["8"]}, None),
        ({"text": ["dog"], "answer_start": [8.0]}, None),
        ({"text": "dog", "answer_start": 8}, None),
        ({"text": "dog", "answer_start": "8"}, None),
        ([{"text": "dog", "answer_start": "8"}], None),
        ([{"text": ["dog"], "answer_start": [8]}], None),
        ('{"text": ["dog"], "answer_start": [8]}', None),
        ("{'text': ['dog'], 'answer_start': [8]}", None),
        ("{'text': array(['dog'], dtype=object), 'answer_start': array([8], dtype=int32)}", None),
        ('[{"text": "dog", "answer_start": 8}]', None),
        ("dog", 8),
        ("dog", "8"),
        ("dog", 8.0),
        ("dog", [8]),
        (["dog"], [8]),
        (["dog"], "[8]"),
        ("['dog']", "[8]"),
        ({"text": ["dog", ""], "answer_start": [8, -1]}, None),
    ],
)
def test_every_layout_of_an_answer_says_the_same(answer, place):
    assert read_answers(answer, place, None, CONTEXT) == [("dog", 8)]


@pytest.mark.parametrize(
    ("answer", "is_impossible"),
    [
        (None, None),
        ("", None),
        (" ", True),
        ([], None),
        ({"text": [], "answer_start": []}, None),
        ({"text": [""], "answer_start": [-1]}, None),
        ({"text": "", "answer_start": 0}, "true"),
        ({"text": ["dog"], "answer_start": [8]}, True),
        ("dog", "1"),
        ("[]", None),
        (float("nan"), None),
    ],
)
def test_no_answer_is_written_in_many_ways(answer, is_impossible):
    assert read_answers(answer, None, is_impossible, CONTEXT) == []


@pytest.mark.parametrize(
    ("answer", "place", "is_impossible", "message"),
    [
        ({"text": ["dog", "cat"], "answer_start": [8]}, None, None, "2 answers and 1 of answer_start"),
        (["dog"], [8, 9], None, "1 answers and 2 of answer_start"),
        ("dog", "eight", None, "answer_start is 'eight'; expected a number"),
        ("dog", 8.5, None, "answer_start is 8.5; expected a number"),
        ("dog", float("inf"), None, "answer_start is inf; expected a number"),
        ({"answer": "dog"}, None, None, "expected a text, or texts with their places"),
        ([["dog"]], None, None, "expected a text, or texts with their places"),
        (None, None, False, "is_impossible says that there is an answer, and none is given"),
        ("dog", 8, "perhaps", "is_impossible is 'perhaps'; expected true or false"),
    ],
)
def test_answers_that_cannot_be_read_are_told(answer, place, is_impossible, message):
    with pytest.raises(UserError, match=message):
        read_answers(answer, place, is_impossible, CONTEXT)


def test_texts_that_look_like_another_layout_stay_texts():
    assert read_answers("[8]", None, None, "see [8] of it") == [("[8]", None)]
    assert read_answers(1912, None, None, CONTEXT) == [("1912", None)]
    assert read_answers("[sic]", None, None, "x") == [("[sic]", None)]


def squad(**change):
    questions = [
        {"id": "1", "question": "what runs", "answers": [{"text": "dog", "answer_start": 8}], "is_impossible": False},
        {
            "id": "2",
            "question": "what flies",
            "answers": [],
            "is_impossible": True,
            "plausible_answers": [{"text": "x"}],
        },
    ]
    questions[0] |= change
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": questions}]}]}


def read(path):
    args = DataArguments(task="question-answering", train_file=str(path))
    splits, info = QuestionAnswering().read(load_splits(args), args)
    return splits["train"], info


def write_layouts(folder):
    plain = json.dumps(squad())
    (folder / "plain.json").write_text(plain)
    (folder / "list.json").write_text(json.dumps(squad()["data"]))
    (folder / "one.json").write_text(json.dumps(squad()["data"][0]))
    (folder / "packed.json.gz").write_bytes(gzip.compress(plain.encode()))
    (folder / "texts.json").write_text(json.dumps(squad(answers=[{"text": "dog", "answer_start": "8"}])))
    without = squad()
    for asked in without["data"][0]["paragraphs"][0]["qas"]:
        del asked["id"], asked["is_impossible"]
    (folder / "version1.json").write_text(json.dumps(without))
    answers = [{"text": ["dog"], "answer_start": [8]}, {"text": [], "answer_start": []}]
    table = pd.DataFrame({"question": ["what runs", "what flies"], "context": CONTEXT, "answers": answers})
    table.to_csv(folder / "python.csv", index=False)
    table.assign(answers=[json.dumps(answer) for answer in answers]).to_csv(folder / "json.csv", index=False)
    table.to_json(folder / "lines.jsonl", orient="records", lines=True)
    table.to_parquet(folder / "hub.parquet")
    flat = table.assign(answers=["dog", ""], answer_start=["8", ""], is_impossible=["False", "True"])
    flat.to_csv(folder / "flat.csv", index=False)
    return sorted(folder.iterdir())


def test_every_file_of_questions_says_the_same(tmp_path):
    paths = write_layouts(tmp_path)
    assert len(paths) == 11
    for path in paths:
        rows, info = read(path)
        assert rows["text"][:] == ["what runs", "what flies"], path
        assert rows["answers"][:] == [["dog"], []] and rows["starts"][:] == [[8], []], path
        assert info.names == ("answer", "no answer") and "fault" not in rows.column_names, path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": None}, "says that there is an answer"),
        ({"answers": []}, "says that there is an answer"),
        ({"answers": [{"text": "dog", "answer_start": "x"}]}, "answer_start is 'x'"),
    ],
)
def test_a_question_that_contradicts_itself_is_named(tmp_path, change, message):
    (tmp_path / "squad.json").write_text(json.dumps(squad(**change)))
    rows, info = read(tmp_path / "squad.json")
    assert message in rows["fault"][0] and rows["fault"][1] is None and info.names == ("answer", "no answer")


def test_an_answer_without_a_place_is_found_where_it_stands_once(tmp_path):
    content = squad(answers=[{"text": "old dog"}])
    (tmp_path / "squad.json").write_text(json.dumps(content))
    assert read(tmp_path / "squad.json")[0]["starts"][0] == [4]
    twice = datasets.Dataset.from_dict({"question": ["q"], "context": [CONTEXT], "answer": ["dog"]})
    rows = QuestionAnswering().read_known(twice, DataArguments(task="question-answering"), None)
    assert list(QuestionAnswering().find_faults(rows, None)) == [
        "the answer 'dog' stands 2 times in its context; give answer_start"
    ]
