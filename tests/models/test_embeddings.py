"""Tokens without a row in the checkpoint's embedding: every mode gives them one, and what is saved has them."""

import csv
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hftl.config import ModelArguments, parse_args
from hftl.errors import UserError
from hftl.inference.merge import merge_run
from hftl.models.adapters import ADAPTERS
from hftl.models.embeddings import add_rows, find_trainable_rows, warn_of_still_rows
from hftl.models.head import head_modules
from hftl.models.modes import MODES
from hftl.run_record import read_predictions
from hftl.tasks.processors import count_tokens, widen_vocabulary
from hftl.training.run import run
from tests import tiny
from tests.models.adapter_matrix import build_batch, train_steps
from tests.networks import VOCABULARY, build_network, build_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ADDED = ["[E1]", "[E2]"]
NEW = range(VOCABULARY, VOCABULARY + 2)
TRAINS_ROWS = {"lora", "rslora", "dora", "pissa", "olora", "eva", "adalora"}


def add_tokens(folder):
    """To the tokenizer alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ADDED}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """As `tiny.write_text_task`; every text stands between the two tokens."""
    folder = tiny.write_text_task(tmp_path_factory.mktemp("tokens"))
    assert add_tokens(folder / "bert") == 98
    for name in ("train.csv", "test.csv"):
        rows = list(csv.DictReader((folder / name).open()))
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows({"text": f"[E1] {row['text']} [E2]", "label": row["label"]} for row in rows)
    return folder


@pytest.fixture(scope="module")
def train(train_once):
    return lambda mode, *more: train_once(mode, "--max_steps", "4", *(["--lora_r", "4"] * (mode == "peft")), *more)


def predict(network, files, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [row["text"] for row in csv.DictReader((files / "test.csv").open())]
    with torch.inference_mode():
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        assert inputs["input_ids"].max() == 97
        return network.eval()(**inputs).logits.softmax(-1).numpy()


@pytest.mark.parametrize("mode", ["full", "scratch", "probe", "bitfit"])
def test_a_network_saved_whole_has_a_row_for_each_token(mode, train, files):
    folder = train("peft", "--adapter", "bitfit") if mode == "bitfit" else train(mode)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    assert network.get_input_embeddings().weight.shape[0] == network.config.vocab_size == 98
    expected = read_predictions(folder)["probabilities"]
    torch.testing.assert_close(predict(network, files, folder), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("adapter", ["lora", "ia3", "prompt"])
def test_an_adapter_loads_with_plain_peft_over_the_base_with_as_many_rows(adapter, train, files):
    """As docs/adapters.md says it."""
    folder = train("peft", "--adapter", adapter)
    base = AutoModelForSequenceClassification.from_pretrained(files / "bert", num_labels=3)
    base.resize_token_embeddings(len(AutoTokenizer.from_pretrained(folder)))
    expected = read_predictions(folder)["probabilities"]
    found = predict(PeftModel.from_pretrained(base, folder), files, folder)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    found = predict(AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=3), files, folder)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)  # which widens the base by itself


def test_only_the_new_rows_are_saved_with_lora_and_all_with_ia3(train, files):
    saved = {a: load_file(train("peft", "--adapter", a) / "adapter_model.safetensors") for a in ("lora", "ia3")}
    rows = {a: {k: v for k, v in weights.items() if "word_embeddings" in k} for a, weights in saved.items()}
    assert [tuple(value.shape) for value in rows["lora"].values()] == [(2, 32)]
    assert [tuple(value.shape) for value in rows["ia3"].values()] == [(98, 32)]
    (lora,), (ia3,) = rows["lora"].values(), rows["ia3"].values()
    old = load_file(files / "bert" / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(ia3[:96], old)
    start = old.mean(0).expand(2, -1)
    torch.testing.assert_close(ia3[96:], start, atol=1e-3, rtol=0)
    assert (lora - start).abs().max() > 1e-3 and not torch.allclose(lora[0], lora[1], atol=1e-4)  # trained


def test_going_on_from_a_checkpoint_keeps_the_new_rows(train, files, tmp_path):
    for adapter in ("lora", "ia3"):
        steps = ("--adapter", adapter, "--save_strategy", "steps", "--save_steps", "2")
        whole = train("peft", *steps)
        words = ["--train_file", f"{files}/train.csv", "--test_file", f"{files}/test.csv", "--use_cpu"]
        words += ["--model_name_or_path", f"{files}/bert", "--output_dir", str(tmp_path / adapter), "--max_steps", "4"]
        words += ["--lora_r", "4", "--resume_from_checkpoint", str(whole / "checkpoint-2")]
        run(parse_args([*words, *steps], mode="peft"))
        expected, found = (load_file(path / "adapter_model.safetensors") for path in (whole, tmp_path / adapter))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_the_new_rows_are_merged_with_the_adapter(train, files, tmp_path):
    folder = train("peft", "--adapter", "lora")
    merge_run(folder, tmp_path / "whole")
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    found = predict(network, files, tmp_path / "whole")
    torch.testing.assert_close(found, read_predictions(folder)["probabilities"], atol=1e-5, rtol=0)


def test_rows_can_be_trained_over_weights_in_4_bits(train):
    pytest.importorskip("bitsandbytes")
    saved = load_file(train("peft", "--quantization", "nf4") / "adapter_model.safetensors")
    assert [tuple(v.shape) for k, v in saved.items() if "word_embeddings" in k] == [(2, 32)]


@pytest.mark.parametrize("adapter", [name for name, entry in ADAPTERS.items() if entry.build is not None])
def test_each_method_saves_the_new_rows_and_those_that_can_train_them(adapter, tmp_path, caplog):
    build_network("bert").save_pretrained(tmp_path / "base")
    network_class = type(build_network("bert"))

    def widen(seed):
        network = network_class.from_pretrained(tmp_path / "base")
        torch.manual_seed(seed)
        network.resize_token_embeddings(VOCABULARY + 2)
        return network

    network, batch = widen(0), build_batch("bert")
    batch["input_ids"][:, 2:4] = torch.tensor(NEW)
    start = network.get_input_embeddings().weight.detach().clone()
    args = ModelArguments(adapter=adapter, lora_r=4, lora_alpha=4, num_virtual_tokens=3)
    adapted = MODES["peft"].adapt(network, args, head_modules(network, []), "SEQ_CLS", NEW)
    with caplog.at_level(logging.WARNING, "hftl"):
        warn_of_still_rows(adapted, NEW)
    assert ("2 tokens that the tokenizer adds are not trained here" in caplog.text) == (adapter not in TRAINS_ROWS)
    if ADAPTERS[adapter].initialize is not None:
        ADAPTERS[adapter].initialize(adapted, lambda: [batch])
    train_steps(adapted, batch)
    with torch.inference_mode():
        expected = adapted.eval()(**batch).logits
    moved = (adapted.get_input_embeddings().weight != start).any(1).nonzero().flatten().tolist()
    assert moved == (list(NEW) if adapter in TRAINS_ROWS else [])
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(widen(7), tmp_path / "adapter")
    with torch.inference_mode():
        torch.testing.assert_close(loaded.eval()(**batch).logits, expected, atol=1e-7, rtol=0)


def test_without_a_network_the_rows_over_a_base_of_the_hub_are_saved_too(tmp_path):
    """peft asks the Hub how many rows the base had, and takes no answer for as many."""
    network = build_network("bert")
    new = add_rows(network, VOCABULARY + 2)
    args = ModelArguments(adapter="ia3")
    adapted = MODES["peft"].adapt(network, args, head_modules(network, []), "SEQ_CLS", new)
    adapted.peft_config["default"].base_model_name_or_path = "org/model"
    adapted.save_pretrained(tmp_path / "ours")
    type(adapted).save_pretrained(adapted, tmp_path / "plain")
    kept = {n: load_file(tmp_path / n / "adapter_model.safetensors") for n in ("ours", "plain")}
    assert {n: any("word_embeddings" in key for key in kept[n]) for n in kept} == {"ours": True, "plain": False}


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_language_model_reads_and_writes_the_new_tokens(is_tied, tmp_path):
    tiny.write_tiny_llama(tmp_path / "llama")
    if not is_tied:
        config = transformers.AutoConfig.from_pretrained(tmp_path / "llama")
        config.tie_word_embeddings = False
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    num_tokens = add_tokens(tmp_path / "llama")
    rows = [
        {"prompt": f"[E1]{row['prompt']}", "completion": f"{row['completion']}[E2]"}
        for row in tiny.make_completions(16)
    ]
    tiny.write_jsonl(tmp_path / "train.jsonl", rows)
    words = ["--task", "causal-lm", "--model_name_or_path", str(tmp_path / "llama"), "--max_steps", "3", "--use_cpu"]
    words += ["--train_file", str(tmp_path / "train.jsonl"), "--output_dir", str(tmp_path / "run")]
    run(parse_args(words, mode="peft"))
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    added = {key: value for key, value in saved.items() if "trainable_tokens" in key}
    assert len(added) == (1 if is_tied else 2) and {len(value) for value in added.values()} == {2}
    assert not [key for key in saved if "embed_tokens" in key and key not in added]
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    base.resize_token_embeddings(num_tokens)
    loaded = PeftModel.from_pretrained(base, tmp_path / "run").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    stored = read_predictions(tmp_path / "run")
    for index, row_id in enumerate(stored["row_id"]):
        prompt = tokenizer(rows[row_id]["prompt"]).input_ids
        ids = [*prompt, *tokenizer(rows[row_id]["completion"]).input_ids, tokenizer.eos_token_id]
        with torch.inference_mode():
            scores = loaded(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = -sum(scores[place - 1, ids[place]].item() for place in range(len(prompt), len(ids)))
        assert stored["negative_log_likelihood"][index] == pytest.approx(expected, rel=1e-4)


def test_where_modules_read_the_embedding_on_their_own_it_is_saved_whole(tmp_path):
    """T5's encoder has a module of its own with the same weight."""
    network = build_network("t5")
    new = add_rows(network, VOCABULARY + 2)
    assert find_trainable_rows(network, new) == {}
    adapted = MODES["peft"].adapt(network, ModelArguments(lora_r=4), head_modules(network, []), "SEQ_CLS", new)
    adapted.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert [tuple(value.shape) for key, value in saved.items() if key.endswith("shared.weight")] == [(42, 16)]


def test_new_rows_start_at_the_mean_of_the_others_and_old_ones_stay():
    network = build_network("bert")
    old = network.get_input_embeddings().weight.detach().clone()
    assert add_rows(network, VOCABULARY + 3) == range(VOCABULARY, VOCABULARY + 3)
    weight = network.get_input_embeddings().weight
    assert torch.equal(weight[:VOCABULARY], old)
    torch.testing.assert_close(weight[VOCABULARY:], old.mean(0).expand(3, -1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("size", "expected"), [(128, 128), (VOCABULARY, VOCABULARY), (30, VOCABULARY)])
def test_a_checkpoint_with_more_rows_than_tokens_keeps_them(size, expected):
    config = build_network("bert", vocab_size=size).config
    widen_vocabulary(config, build_tokenizer())
    assert config.vocab_size == expected


def test_numbers_with_gaps_get_a_row_up_to_the_largest():
    tokenizer = build_tokenizer()
    tokenizer.get_vocab = lambda: {"a": 0, "b": 99}
    assert count_tokens(tokenizer) == 100
    assert count_tokens(object()) is None


def test_a_network_from_scratch_with_too_few_rows_is_refused(files, tmp_path):
    words = ["--train_file", f"{files}/train.csv", "--model_name_or_path", f"{files}/bert", "--use_cpu"]
    words += ["--output_dir", str(tmp_path / "run"), "--config_overrides", "vocab_size=50"]
    with pytest.raises(UserError, match="tokenizer writes 98 different tokens, but the embedding has 50 rows. Leave"):
        run(parse_args(words, mode="scratch"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mode", "settings", "is_said"),
    [
        ("probe", {}, True),
        ("full", {"freeze_layers": 1}, True),
        ("full", {}, False),
        ("peft", {"adapter": "bitfit"}, True),
        ("peft", {"adapter": "lora"}, False),
    ],
)
def test_it_is_said_when_nothing_trains_the_new_rows(mode, settings, is_said, caplog):
    network = build_network("bert")
    new, args = add_rows(network, VOCABULARY + 2), ModelArguments(mode=mode, **settings)
    network = MODES[mode].adapt(network, args, head_modules(network, []), "SEQ_CLS", new)
    with caplog.at_level(logging.WARNING, "hftl"):
        warn_of_still_rows(network, new)
    assert ("--mode full without --freeze_layers trains them" in caplog.text) == is_said


def test_the_configuration_beside_an_adapter_says_how_many_rows_it_needs(train):
    config = json.loads((Path(train("peft", "--adapter", "lora")) / "config.json").read_text())
    assert config["vocab_size"] == 98


def test_a_checkpoint_without_the_tokens_is_not_touched(files, tmp_path):
    shutil.copytree(files / "bert", tmp_path / "bert")
    before = {path.name: path.read_bytes() for path in (tmp_path / "bert").iterdir()}
    words = ["--train_file", f"{files}/train.csv", "--model_name_or_path", f"{tmp_path}/bert", "--use_cpu"]
    run(parse_args([*words, "--output_dir", str(tmp_path / "run"), "--max_steps", "1"], mode="full"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "bert").iterdir()} == before
