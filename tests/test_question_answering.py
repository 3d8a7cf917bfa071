"""Answers in a context: formats, windows, scores by known answers, every mode, and what wrong input is told."""

import json

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel

from hftl.cli import main
from hftl.config import DataArguments, parse_args
from hftl.data.load import load_splits
from hftl.errors import UserError
from hftl.inference import predictor
from hftl.inference.evaluation import evaluate
from hftl.metrics.squad import compute_exact_match, compute_f1
from hftl.records import read_predictions
from hftl.run import run
from hftl.tasks.question_answering import (
    NUM_BEST,
    OUTSIDE,
    QuestionAnswering,
    _rank,
    cut_windows,
    mark_answer,
)
from tests import tiny


@pytest.mark.parametrize(
    ("answer", "truths", "match", "f1"),
    [
        ("The Cat!", ["cat"], 1, 1),
        ("a black cat", ["the cat"], 0, 2 / 3),
        ("cat dog", ["cat", "dog horse fish"], 0, 2 / 3),
        ("dog dog", ["dog"], 0, 2 / 3),  # a word counts as often as both have it
        ("fish", ["cat"], 0, 0),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", ["a"], 1, 1),  # of both nothing is left
        ("U.S.", ["us"], 1, 1),
    ],
)
def test_scores_are_those_of_squad(answer, truths, match, f1):
    assert compute_exact_match(answer, truths) == match
    assert compute_f1(answer, truths) == pytest.approx(f1)


CONTEXT = "the cat has fur and the bird has a paw on the storm"
ROWS = [
    ("what has fur", CONTEXT, "cat", 4),
    ("what has a paw", CONTEXT, "bird", 24),
    ("what is snow", CONTEXT, None, None),
]


def as_squad():
    questions = [
        {
            "id": str(number),
            "question": question,
            "answers": [{"text": answer, "answer_start": start}] * 2 if answer else [],
            "is_impossible": answer is None,
        }
        for number, (question, _, answer, start) in enumerate(ROWS)
    ]
    return {"version": "v2.0", "data": [{"title": "x", "paragraphs": [{"context": CONTEXT, "qas": questions}]}]}


def write_formats(folder):
    """The same rows in every layout; returns file names."""
    (folder / "squad.json").write_text(json.dumps(as_squad(), indent=1))
    hub, flat, listed = [], [], []
    for question, context, answer, start in ROWS:
        row = {"question": question, "context": context}
        pair = {"text": [answer], "answer_start": [start]} if answer else {"text": [], "answer_start": []}
        hub.append(row | {"answers": pair})
        flat.append(row | {"answer": answer})
        listed.append(row | {"answers": [{"text": answer, "answer_start": start}] if answer else []})
    for name, rows in (("hub", hub), ("flat", flat), ("listed", listed)):
        tiny.write_jsonl(folder / f"{name}.jsonl", rows)
    lines = [f"{question},{context},{answer or ''}" for question, context, answer, _ in ROWS]
    (folder / "table.csv").write_text("\n".join(["question,context,answer", *lines]) + "\n")
    return ("squad.json", "hub.jsonl", "flat.jsonl", "listed.jsonl", "table.csv")


def read(path):
    args = DataArguments(task="question-answering", train_file=str(path))
    return QuestionAnswering().read(load_splits(args), args)


def test_every_layout_says_the_same(tmp_path):
    for name in write_formats(tmp_path):
        splits, info = read(tmp_path / name)
        rows = splits["train"]
        assert rows["text"][:] == [row[0] for row in ROWS] and rows["text_pair"][:] == [CONTEXT] * 3, name
        assert [answer[0] if answer else None for answer in rows["answers"][:]] == ["cat", "bird", None], name
        assert [start[0] if start else None for start in rows["starts"][:]] == [4, 24, None], name
        assert info.names == ("answer", "no answer")
        assert set(QuestionAnswering().find_faults(rows, info)) == {None}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tiny.write_tiny_bert(tmp_path_factory.mktemp("bert"))
    return QuestionAnswering().load_processor(str(folder), "main", parse_args([], mode="full").data)


def test_windows_show_every_word_and_the_answer_is_marked_where_it_is_whole(tokenizer):
    tokenizer.model_max_length = 30
    try:
        columns = cut_windows(["what has a paw"], [CONTEXT * 4], tokenizer)
    finally:
        tokenizer.model_max_length = tiny.MAX_LENGTH
    assert len(columns["row"]) > 2 and max(columns["length"]) <= 30
    shown = {place for begins in columns["begins"] for place in begins if place != OUTSIDE}
    whole = tokenizer(CONTEXT * 4, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    assert shown == {begin for begin, _ in whole}
    span, marks = (24, 28), []
    for begins, ends in zip(columns["begins"], columns["ends"], strict=True):
        first, last = mark_answer(span, begins, ends)
        marks.append(first > 0)
        if first:
            assert (begins[first], ends[last]) == span
        else:
            assert not (span[0] in begins and span[1] in ends)
    assert any(marks) and not all(marks)
    assert mark_answer(None, columns["begins"][0], columns["ends"][0]) == [0, 0]


def keep(starts, ends):
    logits = torch.tensor([starts]), torch.tensor([ends])
    return QuestionAnswering().reduce(logits, None)[0].numpy()


def test_the_best_pair_that_is_a_span_of_the_context_is_the_answer():
    begins, ends = [OUTSIDE, OUTSIDE, 0, 4, 8], [OUTSIDE, OUTSIDE, 3, 7, 11]
    kept = keep([5.0, 9.0, 1.0, 4.0, 2.0], [5.0, 9.0, 6.0, 2.0, 3.0])  # the question itself scores most
    assert kept.shape == (4 * NUM_BEST + 1,)
    spans = _rank([kept], [begins], [ends], has_none=False)
    assert [tuple(span) for span in spans[:3]] == [(7.0, 0, 3), (7.0, 4, 11), (6.0, 4, 7)]  # 4 + 6 ends too early
    assert _rank([kept], [begins], [ends], has_none=True)[0] == (10.0, 0, 0)
    other = keep([0.0, 0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0, 0.0])  # another window of the same question
    assert _rank([kept, other], [begins, [b + 20 for b in begins]], [ends, [e + 20 for e in ends]], has_none=True)[
        0
    ] == (18.0, 20, 23)


def test_loss_is_that_of_the_stock_head():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    network = transformers.BertForQuestionAnswering(config).eval()
    ids, labels = torch.randint(0, 50, (3, 9)), torch.tensor([[1, 2], [0, 0], [4, 8]])
    stock = network(input_ids=ids, start_positions=labels[:, 0], end_positions=labels[:, 1])
    ours = QuestionAnswering().sum_loss(network(input_ids=ids), labels, "question-answering", 0.0) / labels.numel()
    assert ours.item() == pytest.approx(stock.loss.item(), abs=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    tiny.write_tiny_bert(folder / "bert")
    for split, count, seed in (("train", 32, 0), ("test", 9, 1)):
        rows = []
        for row in tiny.make_texts(count, seed=seed):
            context = f"{row['text']} and rain was more"
            answers = {"text": ["rain"], "answer_start": [context.index("rain was")]}
            rows.append({"question": "what was more", "context": context, "answers": answers, "label": 1})
        tiny.write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


@pytest.fixture
def train(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(folder / "cache"))

    def start(mode, *flags, train_file=None, model="bert"):
        words = ["--task", "question-answering", "--train_file", str(train_file or folder / "train.jsonl")]
        words += [] if train_file else ["--test_file", f"{folder}/test.jsonl"]
        words += ["--model_name_or_path", str(folder / model), "--use_cpu"]
        words += ["--max_steps", "4", "--output_dir", str(tmp_path / "run"), *flags]
        return run(parse_args(words, mode=mode)), tmp_path / "run"

    return start


def test_answers_are_learnt_and_found_again_by_plain_transformers(train, folder):
    record, out = train("full", "--max_steps", "60", "--learning_rate", "3e-3", "--max_length", "28")
    assert record.metrics["test"]["exact_match"] > 0.8 and record.metrics["test"]["f1"] > 0.8
    table = read_predictions(out)
    assert table["row_id"].tolist() == list(range(9))
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    answers = predictor.load(out).predict(rows, top_k=2)
    assert [answer["answer"] for answer in answers] == table["predicted"].tolist()
    first = answers[0]
    assert rows[0]["context"][first["start"] : first["end"]] == first["answer"] and first["score"] >= first["score_2"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    network = transformers.AutoModelForQuestionAnswering.from_pretrained(out).eval()
    short = next(i for i, row in enumerate(rows) if len(tokenizer(row["question"], row["context"]).input_ids) <= 28)
    row = rows[short]
    inputs = tokenizer(row["question"], row["context"], return_offsets_mapping=True, return_tensors="pt")
    places = inputs.pop("offset_mapping")[0]
    with torch.no_grad():
        outputs = network(**inputs)
    begin, end = places[outputs.start_logits.argmax()][0], places[outputs.end_logits.argmax()][1]
    assert row["context"][begin:end] == answers[short]["answer"]


def test_an_adapter_is_saved_with_its_head(train, folder):
    _, out = train("peft", "--lora_r", "2", "--learning_rate", "1e-2")
    config = transformers.AutoConfig.from_pretrained(out)
    base = transformers.AutoModelForQuestionAnswering.from_pretrained(folder / "bert", config=config)
    before = base.qa_outputs.weight.clone()
    network = PeftModel.from_pretrained(base, out)
    after = dict(network.named_modules())["base_model.model.qa_outputs"].modules_to_save["default"].weight
    assert not np.allclose(before.detach(), after.detach())


@pytest.mark.parametrize("adapter", ["prompt", "p-tuning"])
def test_virtual_tokens_that_would_move_the_answers_are_refused(train, adapter):
    with pytest.raises(UserError, match="every answer would be looked for too late. What does: lora"):
        train("peft", "--adapter", adapter)


def test_a_prefix_moves_nothing(train, folder):
    record, out = train("peft", "--adapter", "prefix", "--num_virtual_tokens", "3", "--max_steps", "60")
    assert record.metrics["test"]["exact_match"] > 0.3  # the head learns it; shifted answers would be none


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"text": ["snow"], "answer_start": [2]}}, r"the answer 'snow' is not at answer_start 2.*\brow"),
        ({"answers": {"text": ["snow"], "answer_start": [900]}}, "is not at answer_start 900"),
        ({"answers": {"text": ["xyz"], "answer_start": [-1]}}, "'xyz' is not in its context"),
        ({"answers": 3}, "expected a text, or texts with their places"),
        ({"question": "what " * 30}, "leaves less than 16 of 32 for its context"),
        ({"context": ""}, "empty"),
    ],
)
def test_wrong_rows_are_named(train, folder, tmp_path, change, message):
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows = [row | change for row in rows] if "answers" in change and change["answers"] == 3 else rows
    rows[5] |= change
    tiny.write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(UserError, match=message) as caught:
        train("full", train_file=tmp_path / "train.jsonl")
    assert "5" in str(caught.value) or change["answers"] == 3


def test_bad_questions_are_left_out_of_train_predict_and_evaluate(train, folder, tmp_path):
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows[3] |= {"question": "what " * 30}
    rows[5] |= {"answers": {"text": ["rain", "more"], "answer_start": [1]}}
    tiny.write_jsonl(tmp_path / "bad.jsonl", rows)
    record, out = train("full", "--on_bad_rows", "skip", train_file=tmp_path / "bad.jsonl")
    assert record.data["num_train_examples"] + record.data["num_validation_examples"] == len(rows) - 2
    model = predictor.load(out)
    with pytest.raises(UserError, match="Row 3 cannot be answered: a question of .* tokens"):
        model.predict(rows)
    answers = model.predict(rows, on_bad_rows="skip")
    assert [answer["row_id"] for answer in answers if answer["answer"] is None] == [3]
    with pytest.raises(UserError, match=r"2 answers and 1 of answer_start \(row_id 5\)"):
        evaluate(predictor.load(out, on_bad_rows="error"), str(tmp_path / "bad.jsonl"))
    assert evaluate(predictor.load(out), str(tmp_path / "bad.jsonl")).num_rows == len(rows) - 2


def test_a_file_of_squad_is_answered(train, tmp_path):
    _, out = train("full")
    (tmp_path / "squad.json").write_text(json.dumps(as_squad()))
    answers = tmp_path / "answers.jsonl"
    assert not main(["predict", str(out), str(tmp_path / "squad.json"), "--output_file", str(answers)])
    assert len(answers.read_text().splitlines()) == len(ROWS)


def test_an_answer_that_stands_twice_needs_its_place(train, tmp_path):
    rows = [{"question": "q", "context": "rain and rain", "answer": "rain"}] * 20
    tiny.write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(UserError, match="stands 2 times in its context; give answer_start"):
        train("full", train_file=tmp_path / "train.jsonl")


def test_data_of_another_task_are_refused(train, tmp_path):
    tiny.write_jsonl(tmp_path / "train.jsonl", [{"text": "a cat", "label": "x"}] * 20)
    with pytest.raises(UserError, match="none is question or query, which question-answering needs"):
        train("full", train_file=tmp_path / "train.jsonl")


def test_a_broken_squad_file_is_refused(tmp_path):
    content = as_squad()
    del content["data"][0]["paragraphs"][0]["qas"][1]["answers"]
    (tmp_path / "squad.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not whole: after 1 questions there is no 'answers'"):
        read(tmp_path / "squad.json")
