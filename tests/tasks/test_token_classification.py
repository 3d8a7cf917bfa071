"""Token classification: windows, tags and their scores, files, mistakes, and what a run and a prediction give."""

import gzip
import random

import numpy as np
import pytest
import transformers
from seqeval.metrics import f1_score

import hftl
from hftl.config import DataArguments, parse_args
from hftl.data.conll import is_conll, read_conll
from hftl.data.labels import LabelInfo
from hftl.data.load import load_splits
from hftl.data.stream import open_stream
from hftl.errors import UserError
from hftl.metrics.spans import count_document
from hftl.metrics.tag_schemes import read_scheme
from hftl.run_record import read_predictions
from hftl.tasks.token_classification import TokenClassification
from hftl.tasks.word_windows import cut_windows
from hftl.training.run import run
from tests import tiny

INFO = LabelInfo("token-classification", ("O", "B-X", "I-X", "B-Y", "I-Y"))


def make_rows(count, seed=0):
    """Words of a class get its tag; all others are O."""
    draw, kinds = random.Random(seed), ("A", "B")
    rows = []
    for _ in range(count):
        words = [draw.choice(tiny.FILLER_WORDS + tiny.CLASS_WORDS[0] + tiny.CLASS_WORDS[1]) for _ in range(8)]
        names = [
            next((k for k, group in zip(kinds, tiny.CLASS_WORDS, strict=False) if w in group), None) for w in words
        ]
        rows.append({"tokens": words, "tags": ["O" if name is None else f"B-{name}" for name in names]})
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    tiny.write_tiny_bert(folder / "bert")
    tiny.write_jsonl(folder / "train.jsonl", make_rows(40))
    tiny.write_jsonl(folder / "test.jsonl", make_rows(12, 1))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder / "bert")


@pytest.mark.parametrize("size", [8, 13, 32])
def test_every_word_of_a_long_document_is_answered_once(tokenizer, size):
    tokenizer.model_max_length = size
    draw = random.Random(size)
    words = [["".join(draw.choices("abc", k=draw.randint(1, 5))) for _ in range(n)] for n in (1, 5, 60)]
    windows = cut_windows([*words, ["a\u0000", "\u200d", "b"]], tokenizer)
    for row, document in enumerate([*words, [1, 2, 3]]):
        answered = [word for w in windows if w["row"] == row for word in w["word_ids"] if word >= 0]
        assert sorted(answered) == list(range(len(document)))
    assert max(w["length"] for w in windows) <= size


@pytest.mark.parametrize("seed", range(20))
def test_counts_give_the_f1_of_seqeval(seed):
    draw = random.Random(seed)
    true, found = ([[draw.randrange(5) for _ in range(9)] for _ in range(6)] for _ in range(2))
    names = [[[INFO.names[n] for n in row] for row in rows] for rows in (true, found)]
    scheme = read_scheme(INFO.names)
    counts = np.sum([count_document(a, b, scheme) for a, b in zip(*names, strict=True)], axis=0)
    assert 2 * counts[4] / (counts[2] + counts[3]) == pytest.approx(f1_score(*names))


def test_spans_of_a_known_case():
    """B-X I-X O against B-X O O: the span differs, so nothing matches, though two of three words are right."""
    scheme = read_scheme(INFO.names)
    assert count_document(["B-X", "I-X", "O"], ["B-X", "O", "O"], scheme) == (3, 2, 1, 1, 0)


def test_conll_files_are_read(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("-DOCSTART- -X- O\n\nEU NNP B-ORG\nsays VBZ O\n\n# 1 hash of more words\nhi UH O\n")
    rows = read_conll(path)
    assert rows[0] == {"tokens": ["EU", "says"], "tags": ["B-ORG", "O"]}
    path.write_text("EU B-ORG\nsays\n")
    with pytest.raises(UserError, match="line 2: found 1 columns, expected 2"):
        read_conll(path)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "test row 1 has 2 words and 1 tags"),
        ({"tokens": ["a"], "tags": ["B-Z"]}, "test row 1: the tag 'B-Z' of 'a' is not among those of train"),
    ],
)
def test_a_wrong_row_is_named_before_training(folder, tmp_path, row, message):
    tiny.write_jsonl(tmp_path / "test.jsonl", [*make_rows(1), row])
    words = [
        "--task",
        "token-classification",
        "--train_file",
        f"{folder}/train.jsonl",
        "--test_file",
        f"{tmp_path}/test.jsonl",
    ]
    with pytest.raises(UserError, match=message):
        run(parse_args([*words, "--model_name_or_path", f"{folder}/bert"], mode="full"))


def test_labels_of_rows_are_refused(folder, tmp_path):
    tiny.write_text_csv(tmp_path / "train.csv", 9)
    words = ["--task", "token-classification", "--train_file", f"{tmp_path}/train.csv", "--text_columns", "text"]
    with pytest.raises(UserError, match="holds string, no list.*is it data for text-classification"):
        run(parse_args([*words, "--model_name_or_path", f"{folder}/bert"], mode="full"))


@pytest.fixture(scope="module")
def trained(folder):
    words = [
        "--task",
        "token-classification",
        "--train_file",
        f"{folder}/train.jsonl",
        "--test_file",
        f"{folder}/test.jsonl",
    ]
    words += ["--model_name_or_path", f"{folder}/bert", "--max_steps", "40", "--output_dir", f"{folder}/run"]
    words += ["--learning_rate", "3e-3", "--max_length", "8", "--metric_for_best_model", "entity_f1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(folder / "cache"))
        args = parse_args(words, mode="full")
        return run(args), folder / "run"


def test_the_loss_of_evaluation_is_a_mean_over_tags_however_rows_are_batched(folder, tmp_path):
    rows = [
        {name: values * (1 + number % 3) for name, values in row.items()}
        for number, row in enumerate(make_rows(30, 2))
    ]
    tiny.write_jsonl(tmp_path / "validation.jsonl", rows)
    losses = []
    for size in ("1", "7", "30"):
        flags = "--task token-classification --mode full --use_cpu --max_steps 2 --eval_strategy steps --eval_steps 2"
        words = [*flags.split(), "--train_file", str(folder / "train.jsonl"), "--per_device_eval_batch_size", size]
        words += ["--validation_file", str(tmp_path / "validation.jsonl"), "--output_dir", str(tmp_path / size)]
        record = run(parse_args([*words, "--model_name_or_path", str(folder / "bert")]))
        losses += [entry["eval_loss"] for entry in record.history if "eval_loss" in entry]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_a_run_over_windows_learns_and_its_rows_add_up(trained):
    record, folder = trained
    scores, table = record.metrics["test"], read_predictions(folder)
    assert scores["entity_f1"] > 0.8 and scores["word_accuracy"] > scores["most_frequent_tag"]["word_accuracy"]
    assert len(table["row_id"]) == 12 and set(table["num_words"]) == {8}
    for name, score in TokenClassification.scores.items():
        assert score.by_row(table).mean() == pytest.approx(scores[name])


def test_prediction_gives_words_and_entities_with_characters(trained):
    _, folder = trained
    text = f"{'the ' * 12}{tiny.CLASS_WORDS[0][0]}, very"
    answer, whole = hftl.load(folder).predict([text, tiny.CLASS_WORDS[1][0]])
    assert len(answer["words"]) == len(answer["labels"]) == 15 and None not in answer["labels"]
    assert all(text[e["start"] : e["end"]] == e["text"] for e in answer["entities"])
    assert [e["label"] for e in whole["entities"]] == ["B"]
    split = hftl.load(folder).predict([{"tokens": text.split()}])[0]
    assert split["words"] == text.split()


def test_pipeline_gives_the_same_labels(trained):
    _, folder = trained
    tag = transformers.pipeline("token-classification", model=str(folder), aggregation_strategy="first")
    word = tiny.CLASS_WORDS[0][0]
    assert [e["entity_group"] for e in tag(word)] == [
        e["label"] for e in hftl.load(folder).predict([word])[0]["entities"]
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris B-LOC\nis O\n\nBerlin B-LOC\n", True),
        ("Paris\tNNP\tB-LOC\n" * 3 + "\n" + "is\tVB\tO\n" * 3, True),
        ("two words\n" * 9, False),  # texts of one length, one a line
        ("A text.\n\nAnother one that is longer.\n\nA third.\n", False),
        ("", False),
    ],
)
def test_a_txt_file_is_conll_only_where_it_looks_like_it(tmp_path, text, expected):
    path = tmp_path / "a.txt"
    path.write_text(text)
    assert is_conll(path) is expected


def test_words_of_a_conll_file_are_tagged(tmp_path):
    (tmp_path / "new.conll").write_text("the O\ncat O\n\nrain O\n")
    stream = open_stream(str(tmp_path / "new.conll"), DataArguments(), "text")
    assert [window["tokens"] for window in stream.read(["tokens"], 5)] == [[["the", "cat"], ["rain"]]]


def test_words_without_tags_can_be_tagged_but_not_learnt_from(tmp_path):
    (tmp_path / "new.conll").write_text("the\ncat\n\nrain\n")
    stream = open_stream(str(tmp_path / "new.conll"), DataArguments(), "text")
    assert list(stream.features) == ["tokens"]
    assert [window["tokens"] for window in stream.read(["tokens"], 5)] == [[["the", "cat"], ["rain"]]]
    with pytest.raises(UserError, match="line 1: found 1 columns, expected 2: a word first, its tag last"):
        load_splits(DataArguments(train_file=str(tmp_path / "new.conll")))


def test_a_line_ends_where_hftl_predict_ends_it(tmp_path):
    """`splitlines` makes two rows of one at these characters, which stand in texts from the web."""
    texts = [f"one{mark}text" for mark in ("\u2028", "\u2029", "\x0b", "\x0c", "\x85", "\x1c")]
    for ending in ("\n", "\r\n", "\r"):
        path = tmp_path / f"{len(ending)}{ord(ending[0])}.txt"
        path.write_bytes(ending.join(texts).encode())
        assert load_splits(DataArguments(train_file=str(path)))["train"]["text"][:] == texts
        stream = open_stream(str(path), DataArguments(), "text")
        assert [window["text"] for window in stream.read(["text"], 9)] == [texts]
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write("\n".join(texts))
    assert load_splits(DataArguments(train_file=str(tmp_path / "a.txt.gz")))["train"]["text"][:] == texts
    (tmp_path / "a.conll").write_text("".join(f"{text}\tO\n" for text in ["a\x85b", "c"]))
    found = read_conll(tmp_path / "a.conll")
    assert len(found["tokens"][0]) == 2 and found["tags"][0] == ["O", "O"]


def test_a_txt_file_of_texts_has_a_row_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("one text\n\nanother\n")
    rows = load_splits(DataArguments(train_file=str(tmp_path / "a.txt")))["train"]
    assert rows["text"][:] == ["one text", "another"]
