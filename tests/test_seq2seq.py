"""One text into another: columns, batches, scores against known answers, every mode, and what wrong input is told."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers

from hftl.config import DataArguments, parse_args
from hftl.data.pairs import standardize_pairs
from hftl.errors import UserError
from hftl.inference import predictor
from hftl.metrics.written import score_corpus, score_rows
from hftl.records import read_predictions
from hftl.run import run
from hftl.tasks.seq2seq import PairCollator, Seq2Seq, _read
from tests import tiny

SIZES = {"d_model": 32, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 0}
LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
BART = LAYERS | SIZES | {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "dropout": 0.0}
T5 = SIZES | {"d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
NETWORKS = {
    "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config, T5),
    "bart": (transformers.BartForConditionalGeneration, transformers.BartConfig, BART | {"bos_token_id": 1}),
    "mbart": (transformers.MBartForConditionalGeneration, transformers.MBartConfig, BART | {"bos_token_id": 1}),
    "marian": (transformers.MarianMTModel, transformers.MarianConfig, BART | {"forced_eos_token_id": None}),
}


def _build(name: str, vocab_size: int):
    network, config, settings = NETWORKS[name]
    torch.manual_seed(0)
    return network(config(vocab_size=vocab_size, **settings)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    tiny.write_tiny_llama(folder / "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "llama")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder / "t5")
    _build("t5", len(tokenizer)).save_pretrained(folder / "t5")
    for name, seed, count in (("train", 0, 24), ("test", 1, 7)):
        rows = [{"document": r["prompt"], "summary": r["completion"]} for r in tiny.make_completions(count, seed)]
        tiny.write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def train(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(folder / "cache"))

    def start(mode: str, *flags: str, train_file: Path | None = None, model: str = "t5"):
        words = ["--task", "seq2seq", "--model_name_or_path", str(folder / model), "--max_steps", "3", "--use_cpu"]
        words += ["--train_file", str(train_file or folder / "train.jsonl"), "--test_file", str(folder / "test.jsonl")]
        words += ["--output_dir", str(tmp_path / "run"), "--max_new_tokens", "5", *flags]
        return run(parse_args(words, mode=mode)), tmp_path / "run"

    return start


@pytest.mark.parametrize("mode", ["full", "peft", "scratch"])
def test_what_the_run_wrote_is_what_plain_transformers_writes(mode, train, folder):
    record, out = train(mode, "--source_prefix", "sum: ")
    assert record.metrics["test"].keys() >= {"rougeL", "bleu", "chrf", "token_loss"}
    if mode == "peft":
        base = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "t5")
        from peft import PeftModel

        network = PeftModel.from_pretrained(base, out).eval()
    else:
        network = transformers.AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    kept = read_predictions(out)
    rows = datasets.load_dataset("json", data_files=str(folder / "test.jsonl"), split="train")
    for place, row in enumerate(rows):
        inputs = tokenizer("sum: " + row["document"] + tokenizer.eos_token, return_tensors="pt")
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        written = network.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
        assert tokenizer.decode(written[0], skip_special_tokens=True).strip() == kept["written"][place]
        labels = torch.tensor([_read(row["summary"], tokenizer, is_target=True)[0]])
        loss = network(input_ids=ids, attention_mask=mask, labels=labels).loss.item() * labels.numel()
        assert kept["negative_log_likelihood"][place] == pytest.approx(loss, rel=1e-4)


def test_a_trained_network_answers_in_the_words_of_its_run(train, folder):
    _, out = train("full")
    found = predictor.load(out).predict([row["prompt"] for row in tiny.make_completions(7, seed=1)], max_new_tokens=5)
    assert [row["written"] for row in found] == read_predictions(out)["written"].tolist()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_decoder_reads_what_the_network_itself_makes_of_the_labels(name):
    network = _build(name, 20)
    batch = PairCollator(0, network.config)(
        [
            {"input_ids": [5, 6, 2], "labels": [7, 8, 9, 2, 3]},  # 2 ends a text, 3 is its language
            {"input_ids": [5, 2], "labels": [4, 2, 3]},
        ]
    )
    expected = network.prepare_decoder_input_ids_from_labels(labels=batch["labels"].clone())
    known = batch["labels"] != -100
    assert torch.equal(batch["decoder_input_ids"][known], expected[known])
    assert batch["labels"][1].tolist() == [4, 2, 3, -100, -100]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_kept_sums_are_the_loss_of_the_network_itself(name):
    network, task = _build(name, 20), Seq2Seq()
    batch = PairCollator(0, network.config)([{"input_ids": [5, 6, 0], "labels": [7, 8, 9, 0]}])
    outputs = network(**batch)
    kept = task.reduce(outputs.logits, batch["labels"])[0]
    assert kept[0].item() / 4 == pytest.approx(outputs.loss.item(), rel=1e-5) and kept[1] == 4
    assert task.sum_loss(outputs, batch["labels"], "seq2seq", 0.0).item() == pytest.approx(kept[0].item(), rel=1e-5)


def test_scores_of_known_texts():
    rows = score_rows(["the cat sat", "привет мир", "x"], ["the cat lay down", "Привет, мир!", "y"])
    assert rows["rouge1"] == pytest.approx([4 / 7, 1, 0])  # 2 of 3 and 2 of 4 words
    assert rows["rouge2"] == pytest.approx([2 / 5, 1, 0])
    assert rows["exact_match"].tolist() == [0, 0, 0]
    assert score_corpus(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(
        {"chrf": 1, "bleu": 1}
    )
    assert score_corpus(["a b c d"], ["e f g h"])["bleu"] < 0.2


def test_a_translation_column_is_taken_apart():
    rows = datasets.Dataset.from_list([{"translation": {"de": "Haus", "en": "house"}}])
    args = DataArguments(source_column="en", target_column="de")
    found = standardize_pairs(datasets.DatasetDict(train=rows), args)["train"]
    assert found[0] == {"row_id": 0, "text": "house", "target": "Haus"}
    with pytest.raises(UserError, match="'de', 'en' none are known as input and target. Give --source_column"):
        standardize_pairs(datasets.DatasetDict(train=rows), DataArguments())


def test_a_language_that_the_first_row_lacks_is_a_column_as_well():
    rows = datasets.Dataset.from_list([{"translation": {"de": "Haus"}}, {"translation": {"de": "Hof", "en": "yard"}}])
    args = DataArguments(source_column="en", target_column="de")
    found = standardize_pairs(datasets.DatasetDict(train=rows), args)["train"]
    assert found[:]["text"] == [None, "yard"]


def test_integers_that_flags_name_are_read_as_texts():
    rows = datasets.Dataset.from_dict({"a": [1, 20], "b": ["one", "twenty"]})
    args = DataArguments(source_column="a", target_column="b")
    assert standardize_pairs(datasets.DatasetDict(train=rows), args)["train"]["text"][:] == ["1", "20"]


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        ({"document": ["a"], "summary": ["b"]}, {"target_column": "sumary"}, "summary.*Correct --target_column"),
        ({"a": ["a"], "n": [1.5]}, {"source_column": "a", "target_column": "n"}, "not text; choose another"),
        ({"a": ["a"], "b": ["b"]}, {"source_column": "a", "target_column": "a"}, "give two columns"),
        ({"source": ["a"], "target": ["b"], "text": ["c"]}, {}, "several could be input and target"),
    ],
)
def test_wrong_columns_are_named(columns, given, message):
    splits = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns))
    with pytest.raises(UserError, match=message):
        standardize_pairs(splits, DataArguments(**given))


def test_wrong_input_is_refused_before_training(train, folder, tmp_path):
    empty = tiny.write_jsonl(tmp_path / "empty.jsonl", [{"document": "a b", "summary": s} for s in ("x", " ", "y")])
    with pytest.raises(UserError, match="empty target"):
        train("full", train_file=empty)
    with pytest.raises(UserError, match="which has no head for seq2seq"):
        train("full", model="llama")
    with pytest.raises(UserError, match="not for --task seq2seq; give --source_column"):
        train("full", "--label_column", "summary")
    with pytest.raises(UserError, match="metric_for_best_model"):
        train("full", "--metric_for_best_model", "rougeL")


def test_a_cut_text_keeps_its_end_and_is_counted(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "t5")
    tokenizer.model_max_length = 4
    ids, is_cut = _read("one two three four five", tokenizer)
    assert is_cut and len(ids) == 4 and ids[-1] == tokenizer.eos_token_id
    assert np.array_equal(_read("a", tokenizer)[0], [*tokenizer("a").input_ids, tokenizer.eos_token_id])


@pytest.mark.parametrize(
    "rows",
    [
        [{"en": "cat", "ro": "pisica"}, {"en": "dog", "ro": "caine"}],
        ['{"en": "cat", "ro": "pisica"}', '{"en": "dog", "ro": "caine"}'],
        ["{'en': 'cat', 'ro': 'pisica'}", "{'en': 'dog', 'ro': 'caine'}"],
    ],
)
def test_translations_are_taken_apart_however_they_are_stored(rows):
    raw = datasets.Dataset.from_dict({"translation": rows})
    args = DataArguments(task="seq2seq", source_column="en", target_column="ro")
    read = standardize_pairs(datasets.DatasetDict(train=raw), args)["train"]
    assert read["text"][:] == ["cat", "dog"] and read["target"][:] == ["pisica", "caine"]


@pytest.mark.parametrize("first", [{"ro": "pisica"}, {"en": None, "ro": "pisica"}, None])
def test_a_language_that_the_first_row_lacks_is_a_column(first):
    raw = datasets.Dataset.from_list([{"translation": first}, {"translation": {"en": "dog", "ro": "caine"}}])
    args = DataArguments(task="seq2seq", source_column="en", target_column="ro")
    assert standardize_pairs(datasets.DatasetDict(train=raw), args)["train"]["text"][:] == [None, "dog"]


@pytest.mark.parametrize("name", ["instruction", "context", "system"])
def test_an_instruction_beside_an_input_is_not_left_out(name):
    raw = datasets.DatasetDict(train=datasets.Dataset.from_dict({name: ["x"], "input": ["y"], "output": ["z"]}))
    with pytest.raises(UserError, match=f"The column '{name}' says what is to be done with 'input', and would not be"):
        standardize_pairs(raw, DataArguments(task="seq2seq"))
    given = DataArguments(task="seq2seq", source_column="input", target_column="output")
    assert standardize_pairs(raw, given)["train"]["text"][:] == ["y"]
