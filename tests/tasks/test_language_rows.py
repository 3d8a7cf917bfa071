"""The same rows in train, predict, evaluate and Python: what is bad is named, or left out, in each of them."""

import json
from types import SimpleNamespace

import datasets
import pandas as pd
import pytest
import transformers

from hftl.cli import main
from hftl.config import DataArguments, parse_args
from hftl.errors import UserError
from hftl.hub.load_check import build_inputs, check_inputs
from hftl.inference import predictor
from hftl.inference.evaluation import evaluate
from hftl.inference.predictor import recall_columns
from hftl.run_record import CANARY_FILE
from hftl.tasks import build_task
from hftl.training.run import run
from tests import tiny
from tests.tasks import chat_templates


def turns(*contents, first="user"):
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


CHATS = [
    {"messages": turns(f"{row['prompt']} {i}", row["completion"])} for i, row in enumerate(tiny.make_completions(12))
]
REFUSED = {"messages": turns("hello", "a cat", "what", first="assistant")}  # by a template that wants turns in order
UNREADABLE = {"messages": [{"role": "robot", "content": "hello"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    tiny.write_tiny_llama(folder / "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "llama")
    for name, template in (("strict", chat_templates.STRICT), ("marked", chat_templates.MARKED)):
        tiny.write_tiny_llama(folder / name)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder / name)
    tiny.write_jsonl(folder / "chats.jsonl", CHATS)
    tiny.write_jsonl(folder / "bad.jsonl", [*CHATS[:5], REFUSED, UNREADABLE, *CHATS[5:]])
    return folder


@pytest.fixture(scope="module")
def train(folder, tmp_path_factory):
    def start(data, *flags, model="strict"):
        out = tmp_path_factory.mktemp("run")
        words = ["--task", "causal-lm", "--model_name_or_path", str(folder / model), "--train_file"]
        words += [str(data), "--output_dir", str(out), "--max_steps", "2", "--use_cpu", *flags]
        return run(parse_args(words, mode="full")), out

    return start


@pytest.fixture(scope="module")
def trained(train, folder):
    return train(folder / "chats.jsonl")[1]


def test_bad_chats_are_named_before_training(train, folder, tmp_path):
    with pytest.raises(UserError, match=r"the role 'robot'.*\(row_id 6\)"):
        train(folder / "bad.jsonl")
    tiny.write_jsonl(tmp_path / "refused.jsonl", [*CHATS, REFUSED])
    with pytest.raises(UserError, match=r"begins with the assistant.*|Roles must alternate.*\(row_id 12\)"):
        train(tmp_path / "refused.jsonl", "--validation_file", str(folder / "chats.jsonl"))


def test_bad_chats_are_left_out_of_training(train, folder):
    record, _ = train(folder / "bad.jsonl", "--on_bad_rows", "skip", "--validation_file", str(folder / "bad.jsonl"))
    assert record.data["num_train_examples"] == record.data["tokens"]["train"]["num_rows"] == len(CHATS)
    dropped = record.data["audit"]["bad_rows"]["train"]
    assert sum(dropped.values()) == 2 and dropped["no model input"] == 1


def test_chats_that_the_template_refuses_are_left_out_of_what_is_held_out(train, tmp_path):
    rows = [REFUSED if i % 3 == 0 else {"messages": turns(f"{i}", "a cat")} for i in range(30)]
    tiny.write_jsonl(tmp_path / "third.jsonl", rows)
    record, _ = train(tmp_path / "third.jsonl", "--on_bad_rows", "skip")
    counts = [record.data[f"num_{split}_examples"] for split in ("train", "validation")]
    assert sum(counts) == 20 and counts[1] > 0
    assert {split: sum(kinds.values()) for split, kinds in record.data["audit"]["bad_rows"].items()} == {
        "train": 24 - counts[0],
        "validation": 6 - counts[1],
    }


def test_bad_chats_are_named_or_left_empty_by_predict(trained, folder, tmp_path, capsys):
    answers = tmp_path / "answers.jsonl"
    assert main(["predict", str(trained), str(folder / "bad.jsonl"), "--output_file", str(answers)]) == 2
    assert "Row 5 cannot be answered: the chat template refuses it: Roles must alternate" in capsys.readouterr().err
    words = [
        "predict",
        str(trained),
        str(folder / "bad.jsonl"),
        "--output_file",
        str(answers),
        "--on_bad_rows",
        "skip",
    ]
    assert not main([*words, "--max_new_tokens", "2"])
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["row_id"] for row in rows] == list(range(14))
    assert [row["row_id"] for row in rows if row["completion"] is None] == [5, 6]


def test_bad_chats_are_named_or_left_out_by_evaluate(trained, folder, capsys):
    assert main(["evaluate", str(trained), str(folder / "bad.jsonl")]) == 2
    assert "the role 'robot'" in capsys.readouterr().err
    assert not main(["evaluate", str(trained), str(folder / "bad.jsonl"), "--on_bad_rows", "skip"])
    assert "bad.jsonl: 12 rows" in capsys.readouterr().out


def test_chats_in_every_file_are_answered_alike(trained, tmp_path):
    """Lists, JSON in a cell, what Python shows, a column for the system, and messages that differ from row to row."""
    model = predictor.load(trained)
    chats = [row["messages"][:1] for row in CHATS[:3]]
    expected = [answer["completion"] for answer in model.predict(chats, max_new_tokens=3)]
    parts = [[{"role": "user", "content": [{"type": "text", "text": chat[0]["content"]}]}] for chat in chats]
    mixed = [{"messages": parts[0]}, {"messages": chats[1]}, {"messages": parts[2]}]
    tiny.write_jsonl(tmp_path / "mixed.jsonl", mixed)
    pd.DataFrame({"messages": [json.dumps(chat) for chat in chats], "id": "x"}).to_csv(
        tmp_path / "json.csv", index=False
    )
    pd.DataFrame({"prompt": [str(chat) for chat in chats]}).to_csv(tmp_path / "python.csv", index=False)
    pd.DataFrame({"conversations": chats}).to_parquet(tmp_path / "lists.parquet")
    for path in sorted(tmp_path.iterdir()):
        out = tmp_path / "out" / f"{path.stem}.jsonl"
        out.parent.mkdir(exist_ok=True)
        named = {"lists": ["--text_columns", "conversations"], "python": ["--text_columns", "prompt"]}.get(
            path.stem, []
        )
        words = ["predict", str(trained), str(path), "--output_file", str(out), "--max_new_tokens", "3"]
        assert not main([*words, *named])
        assert [json.loads(line)["completion"] for line in out.read_text().splitlines()] == expected, path
    assert [answer["completion"] for answer in model.predict(mixed, max_new_tokens=3)] == expected


def test_a_prompt_of_several_columns_is_read_by_predict_as_in_training(train, tmp_path):
    rows = [{"instruction": f"name it {i}", "input": "a paw", "output": " cat", "source": "web"} for i in range(9)]
    tiny.write_jsonl(tmp_path / "train.jsonl", rows)
    record, out = train(tmp_path / "train.jsonl")
    assert record.data["unread"]["train"] == {"source": record.data["num_train_examples"]}
    model = predictor.load(out)
    (split,) = model.predict([{"instruction": "name it 3", "input": "a paw"}], max_new_tokens=4)
    (whole,) = model.predict(["name it 3\n\na paw"], max_new_tokens=4)
    assert split == whole
    with pytest.raises(UserError, match="Row 1 cannot be answered: empty text"):
        model.predict(["a cat", " "])


@pytest.mark.parametrize(
    ("row", "read"),
    [
        ({"system": "be brief", "prompt": "name it", "completion": " cat"}, {"system", "prompt"}),
        ({"messages": turns("name it", "cat"), "system": "be brief"}, {"messages", "system"}),
        ({"tools": '[{"name": "see"}]', "messages": turns("name it", "cat")}, {"tools", "messages"}),
        ({"instruction": "name it", "context": "a paw", "response": " cat"}, {"instruction", "context"}),
    ],
)
def test_predict_reads_every_column_that_was_a_prompt_in_training(train, tmp_path, row, read):
    rows = [row | {"id": f"{place}"} for place in range(9)]
    _, out = train(tiny.write_jsonl(tmp_path / "train.jsonl", rows), "--max_length", "64", model="marked")
    model = predictor.load(out)
    assert set(model.choose_columns(datasets.Dataset.from_list(rows).features)) == read
    assert model.predict([{name: row[name] for name in read}], max_new_tokens=1)


def test_calls_and_tools_are_kept_for_the_check_of_the_saved_model(train, tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "see", "arguments": {"n": 1}}}]}
    tools = [{"type": "function", "function": {"name": "see"}}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{i}"},
                call,
                {"role": "tool", "content": "x"},
                *turns("a", "b")[1:],
            ]
        }
        for i in range(9)
    ]
    tiny.write_jsonl(tmp_path / "calls.jsonl", [row | {"tools": tools} for row in rows])
    record, out = train(tmp_path / "calls.jsonl", "--max_length", "64", model="marked")
    words = transformers.AutoTokenizer.from_pretrained(out)
    for row in pd.read_parquet(out / CANARY_FILE).to_dict("records"):
        assert "<call>" in row["text"] and '"see"' in row["tools"]
        assert check_inputs(words, row, build_inputs(words, row)) is None
    assert record.metrics["validation"]["samples"]


def test_scores_leave_the_bad_rows_out(trained, folder):
    good = evaluate(predictor.load(trained), str(folder / "chats.jsonl")).scores["perplexity"].value
    model = predictor.load(trained, on_bad_rows="skip")
    assert evaluate(model, str(folder / "bad.jsonl")).scores["perplexity"].value == pytest.approx(good, rel=1e-5)


@pytest.mark.parametrize(
    ("table", "read"),
    [
        ({"instruction": ["x"], "input": ["y"], "output": ["z"]}, ["instruction", "input"]),
        ({"instruction": ["x"], "output": ["z"]}, ["instruction"]),
        ({"instruction": ["x"], "system": ["s"], "note": ["n"]}, ["instruction", "system"]),
        ({"instruction": ["x"], "question": ["q"]}, ["instruction"]),
    ],
)
def test_what_belongs_to_a_recorded_prompt_is_read_with_it(table, read):
    """Columns of the run are found again; all but the prompt itself may be missing."""
    source = SimpleNamespace(
        columns=("instruction", "input"),
        task=build_task("causal-lm"),
        data=DataArguments(task="causal-lm"),
        name="run",
    )
    features = datasets.Dataset.from_dict(table).features
    data = recall_columns(source, features)
    assert list(source.task.choose_inputs(features, data)) == read
    with pytest.raises(UserError, match="reads the column 'instruction', as in training; found 'question'"):
        recall_columns(source, datasets.Dataset.from_dict({"question": ["x"]}).features)
