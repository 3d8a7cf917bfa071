"""Hidden words: which are hidden, what counts, every mode, and what wrong input is told."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel
from safetensors.torch import load_file

from hftl.config import parse_args
from hftl.data.labels import IGNORED
from hftl.data.masking import NO_WORD, SHARE, hide_words
from hftl.errors import UserError
from hftl.inference import predictor
from hftl.run_record import read_predictions
from hftl.tasks.masked_lm import MaskCollator, MaskedLM, cut_windows
from hftl.training.run import run
from tests import tiny

MASK = 4
VOCABULARY = np.arange(5, 1000)


def hide(ids, words, seed=(0, 0, 0)):
    return hide_words(ids, words, seed, mask_token=MASK, drawn_from=VOCABULARY)


def test_the_shares_of_words_masks_and_random_tokens_are_those_of_bert():
    ids = list(range(5, 805))
    words = [index // 2 for index in range(800)]
    asked = masked = random = kept = 0
    for epoch in range(100):
        seen, labels = hide(ids, words, (7, epoch, 3))
        places = [index for index, label in enumerate(labels) if label != IGNORED]
        assert len({words[place] for place in places}) * 2 == len(places)  # whole words
        assert all(labels[place] == ids[place] for place in places)
        assert [a for a, label in zip(seen, labels, strict=True) if label == IGNORED] == [
            a for a, label in zip(ids, labels, strict=True) if label == IGNORED
        ]
        asked += len(places)
        masked += sum(seen[place] == MASK for place in places)
        kept += sum(seen[place] == ids[place] for place in places)
        random += sum(seen[place] not in (MASK, ids[place]) for place in places)
    assert asked == 100 * SHARE * 800
    for count, share in ((masked, 0.8), (random, 0.1), (kept, 0.1)):
        assert count / asked == pytest.approx(share, abs=0.015)  # five standard deviations of 12,000 draws


def test_special_tokens_stay_and_one_word_is_always_asked():
    seen, labels = hide([101, 7, 102], [NO_WORD, 0, NO_WORD])
    assert labels == [IGNORED, 7, IGNORED] and (seen[0], seen[2]) == (101, 102)


def test_equal_seeds_hide_the_same_and_other_ones_do_not():
    ids, words = list(range(5, 105)), list(range(100))
    assert hide(ids, words, (1, 2, 3)) == hide(ids, words, (1, 2, 3))
    assert hide(ids, words, (1, 2, 3)) != hide(ids, words, (1, 3, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    tiny.write_tiny_bert(folder / "bert")
    for split, count, seed in (("train", 24, 0), ("test", 9, 1)):
        texts = [row["text"] for row in tiny.make_texts(count, seed=seed)]
        tiny.write_jsonl(folder / f"{split}.jsonl", [{"text": text, "topic": "x"} for text in texts])
    return folder


@pytest.fixture
def train(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(folder / "cache"))

    def start(mode, *flags, name="run", model=None):
        words = ["--task", "masked-lm", "--train_file", f"{folder}/train.jsonl", "--test_file", f"{folder}/test.jsonl"]
        words += ["--model_name_or_path", str(model or folder / "bert"), "--output_dir", str(tmp_path / name)]
        words += ["--text_columns", "text", "--use_cpu", "--max_steps", "4", *map(str, flags)]
        return run(parse_args(words, mode=mode)), tmp_path / name

    return start


def load_tokenizer(folder):
    return MaskedLM().load_processor(str(folder / "bert"), "main", parse_args([], mode="full").data)


def test_windows_hold_every_word_once(folder):
    tokenizer = load_tokenizer(folder)
    text = " ".join(row["text"] for row in tiny.make_texts(9))
    whole = tokenizer(text).input_ids[1:-1]
    tokenizer.model_max_length = 7
    windows = list(cut_windows(text, tokenizer))
    assert len(windows) > 3 and all(len(ids) <= 7 for ids, _ in windows)
    assert [token for ids, _ in windows for token in ids[1:-1]] == whole
    assert all(words[0] == words[-1] == NO_WORD for _, words in windows)


def test_words_are_hidden_anew_in_training_and_always_alike_in_evaluation(folder):
    tokenizer = load_tokenizer(folder)
    ids, words = next(cut_windows(" ".join(row["text"] for row in tiny.make_texts(9)), tokenizer))
    row = {"row_id": 3, "window": 0, "input_ids": ids, "words": words}
    collate = MaskCollator(tokenizer)
    first, second = ({**row, "augmentation_seed": (0, epoch, 3)} for epoch in (0, 1))
    assert not torch.equal(collate([first])["labels"], collate([second])["labels"])
    assert torch.equal(collate([row])["labels"], collate([dict(row)])["labels"])
    batch = collate([row, {**row, "input_ids": ids[:5], "words": words[:5]}])
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"][1].sum() == 5 and (batch["labels"][1, 5:] == IGNORED).all()


def test_loss_and_sums_are_those_of_the_hidden_tokens():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 5, 11, generator=generator), torch.full((2, 5), IGNORED)
    labels[0, 1], labels[1, 2], labels[1, 3] = 3, 4, int(logits[1, 3].argmax())
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    task = MaskedLM()
    assert task.sum_loss({"logits": logits}, labels, "masked-lm", 0.0) == pytest.approx(expected.item(), abs=1e-5)
    kept = task.reduce(logits, labels)
    assert kept[:, 1].tolist() == [1, 2] and kept[1, 2] >= 1
    assert kept[:, 0].sum() == pytest.approx(expected.item(), abs=1e-5)


def test_a_text_of_several_windows_is_one_row_of_the_predictions(train):
    record, out = train("full", "--max_length", "6")
    table = read_predictions(out)
    assert table["row_id"].tolist() == list(range(9))
    loss = table["negative_log_likelihood"].sum() / table["num_tokens"].sum()
    assert record.metrics["test"]["perplexity"] == pytest.approx(np.exp(loss), rel=1e-6)
    assert record.metrics["test"]["token_accuracy"] == table["num_correct"].sum() / table["num_tokens"].sum()


def test_an_adapter_leaves_the_embedding_that_the_output_shares_where_it_is(train, folder):
    _, out = train("peft", "--lora_r", "2")
    assert not any("embeddings" in name or "decoder" in name for name in load_file(out / "adapter_model.safetensors"))
    base = transformers.AutoModelForMaskedLM.from_pretrained(folder / "bert")
    network = PeftModel.from_pretrained(base, out)
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


def test_another_task_starts_from_the_body_that_was_trained(train, folder, tmp_path):
    _, out = train("full")
    words = ["--train_file", str(tiny.write_text_task(tmp_path / "text") / "train.csv"), "--max_steps", "1"]
    words += ["--model_name_or_path", str(out), "--output_dir", str(tmp_path / "next"), "--learning_rate", "0"]
    run(parse_args([*words, "--use_cpu"], mode="full"))
    before, after = (load_file(path / "model.safetensors") for path in (out, tmp_path / "next"))
    body = [name for name in after if name.startswith("bert.encoder")]
    assert body and all(torch.equal(before[name], after[name]) for name in body)


def test_a_resumed_run_hides_the_same_words(train, tmp_path):
    flags = ("--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1")
    whole, out = train("full", *flags)
    rest, other = train("full", *flags, "--resume_from_checkpoint", out / "checkpoint-2", name="rest")
    assert rest.history[-1]["loss"] == whole.history[-1]["loss"]
    first, second = (load_file(path / "model.safetensors") for path in (out, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_network_from_random_weights_can_have_a_tokenizer_of_its_own(train):
    _, out = train("scratch", "--tokenizer_vocab_size", "60")
    config = transformers.AutoConfig.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert config.vocab_size == len(tokenizer) <= 60 and tokenizer.mask_token is not None


def test_each_mask_of_a_text_is_answered(train):
    _, out = train("full")
    model = predictor.load(out)
    one, two = model.predict(["red [MASK]", "a [MASK] of [MASK] fish in the sea"], top_k=3)
    assert [len(row["tokens"]) for row in (one, two)] == [1, 2]
    assert all(len(words) == 3 for words in two["tokens"])
    assert one["probabilities"][0] == sorted(one["probabilities"][0], reverse=True)
    assert one["filled"] == f"red {one['tokens'][0][0]}"
    fill = transformers.pipeline("fill-mask", model=str(out), tokenizer=str(out), top_k=3)
    assert [found["token_str"] for found in fill("red [MASK]")] == one["tokens"][0]
    with pytest.raises(UserError, match=r"The text 'no mask' has no \[MASK\] within"):
        model.predict(["no mask"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--label_column", "topic"), "--label_column is about labels, and --task masked-lm has none"),
        (("--text_columns", "txt"), "txt.*Did you mean 'text'|txt.*text"),
        (("--text_columns", "text", "topic"), "name one with --text_columns"),
        (("--packing", "true"), "--packing is for --task causal-lm"),
        (("--tokenizer_vocab_size", "50"), "needs --mode scratch"),
    ],
)
def test_wrong_settings_are_refused(train, flags, message):
    with pytest.raises(UserError, match=message):
        train("full", *flags)


def test_a_network_that_cannot_find_hidden_words_is_refused(train, tmp_path):
    tiny.write_tiny_llama(tmp_path / "llama")
    with pytest.raises(UserError, match="is a llama network, which has no head for masked-lm"):
        train("full", model=tmp_path / "llama")


def test_a_tokenizer_without_a_mask_is_refused(train, folder, tmp_path):
    transformers.AutoModel.from_pretrained(folder / "bert").save_pretrained(tmp_path / "bert")
    tiny.write_tiny_llama(tmp_path / "llama")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "llama").save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="has no mask token"):
        train("full", model=tmp_path / "bert")
