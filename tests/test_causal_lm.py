"""Language models in every mode: what is learnt, that plain libraries agree, and what a wrong input is told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel

from hftl.config import parse_args
from hftl.data.tokens import encode_chat, encode_completion, encode_text, mark_text
from hftl.errors import UserError
from hftl.records import RunRecord, read_predictions
from hftl.run import run
from hftl.tasks.causal_lm import TokenCollator, _write_on, keeps_rows_apart
from tests import tiny

MODES = ("full", "peft", "scratch", "zero-shot")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    tiny.write_tiny_llama(folder / "llama")
    tiny.write_jsonl(folder / "train.jsonl", tiny.make_completions(24))
    tiny.write_jsonl(folder / "test.jsonl", tiny.make_completions(7, seed=1))
    chats = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in tiny.make_completions(12)
    ]
    tiny.write_jsonl(folder / "chat.jsonl", chats)
    tiny.write_jsonl(folder / "text.jsonl", [{"text": " ".join([row["text"]] * 9)} for row in tiny.make_texts(8)])
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder / "llama")


@pytest.fixture
def train(folder, tmp_path, monkeypatch):
    """Run with flags, three steps unless they say otherwise."""
    monkeypatch.setenv("HFTL_CACHE", str(folder / "cache"))

    def start(mode: str, *flags: str, data: str = "train.jsonl", out: str = "run") -> tuple[RunRecord, Path]:
        words = ["--task", "causal-lm", "--model_name_or_path", str(folder / "llama"), "--train_file"]
        words += [str(folder / data), "--output_dir", str(tmp_path / out), "--max_steps", "3", *flags]
        if data == "train.jsonl":
            words += ["--test_file", str(folder / "test.jsonl")]
        return run(parse_args(words, mode=mode)), tmp_path / out

    return start


@pytest.mark.parametrize("mode", MODES)
def test_plain_libraries_give_the_stored_likelihoods(mode, train, folder):
    record, out = train(mode)
    if mode == "peft":
        network = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama")
        network = PeftModel.from_pretrained(network, out)
    else:
        network = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert network.config.use_cache, "whoever generates with it would wait"
    words = transformers.AutoTokenizer.from_pretrained(out)
    stored = read_predictions(out)
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    for index, row_id in enumerate(stored["row_id"]):
        prompt = words(rows[row_id]["prompt"]).input_ids
        ids = [*prompt, *words(rows[row_id]["completion"]).input_ids, words.eos_token_id]
        with torch.no_grad():
            scores = network.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = -sum(scores[place - 1, ids[place]].item() for place in range(len(prompt), len(ids)))
        assert stored["negative_log_likelihood"][index] == pytest.approx(expected, rel=1e-4)
        assert stored["num_tokens"][index] == len(ids) - len(prompt)
        assert stored["num_bytes"][index] == len(rows[row_id]["completion"].encode())
    metrics = record.metrics["test"]
    total = stored["negative_log_likelihood"].sum() / stored["num_tokens"].sum()
    assert metrics["perplexity"] == pytest.approx(np.exp(total), rel=1e-5)
    assert len(metrics["samples"]) == 3 and set(metrics["samples"][0]) == {"prompt", "expected", "written"}
    assert record.data["tokens"]["test"]["num_learnt_tokens"] == stored["num_tokens"].sum()


def test_training_lowers_the_perplexity(train):
    before, _ = train("zero-shot", out="before")
    after, _ = train("full", "--max_steps", "40", "--learning_rate", "0.01")
    assert after.metrics["test"]["perplexity"] < before.metrics["test"]["perplexity"] / 5


def test_an_adapter_leaves_the_head_alone(train):
    _, out = train("peft")
    from safetensors.torch import load_file

    names = list(load_file(out / "adapter_model.safetensors"))
    assert names and all("lora_" in name for name in names)


def test_tokens_count_once_however_a_step_is_divided(train):
    """8 x 1 and 2 x 4 give the same losses, although rows have different numbers of tokens."""
    flags = ("--logging_steps", "1", "--train_sampling_strategy", "sequential")
    whole, _ = train("full", "--per_device_train_batch_size", "8", *flags, out="whole")
    divided = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4")
    parts, _ = train("full", *divided, *flags, out="parts")
    losses = [[entry["loss"] for entry in record.history if "loss" in entry] for record in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 3


def test_packed_rows_give_the_losses_of_padded_ones(train):
    padded, _ = train("full", "--logging_steps", "1", out="padded")
    packed, _ = train("full", "--logging_steps", "1", "--packing", "true", out="packed")
    losses = [[entry["loss"] for entry in record.history if "loss" in entry] for record in (padded, packed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert packed.cost["padding_fraction"] == 0 < padded.cost["padding_fraction"]
    assert packed.cost["num_examples_seen"] == padded.cost["num_examples_seen"]


def test_a_network_that_ignores_positions_is_not_packed(caplog):
    def build(kind, **changes):
        torch.manual_seed(0)
        sizes = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2} | changes
        config = transformers.AutoConfig.for_model(kind, pad_token_id=0, **sizes)
        return transformers.AutoModelForCausalLM.from_config(config)

    collator = TokenCollator(0, is_packed=True)
    assert keeps_rows_apart(build("llama", intermediate_size=64), collator)
    assert not keeps_rows_apart(build("bloom", n_head=2, n_layer=2), collator)


def show(tokens, tokenizer) -> str:
    return mark_text({"input_ids": tokens.ids, "labels": tokens.labels}, tokenizer)


def test_only_the_completion_is_learnt(tokenizer):
    (tokens,) = encode_completion({"prompt": "cat very:", "completion": " dog"}, tokenizer, True)
    assert show(tokens, tokenizer) == "cat very:[[ dog<|end|>]]"


def test_a_prompt_is_read_as_it_will_be_later(tokenizer):
    """Where a token would span the border, the prompt's own tokens stay."""
    for prompt, completion in (("the ca", "t"), ("", "cat"), ("some ", "storm")):
        (tokens,) = encode_completion({"prompt": prompt, "completion": completion}, tokenizer, True)
        start = tokenizer(prompt).input_ids
        assert tokens.ids[: len(start)] == start and not any(tokens.is_learnt[: len(start)])
        assert tokenizer.decode(tokens.ids) == f"{prompt}{completion}<|end|>"


def test_every_turn_of_the_assistant_is_learnt_and_no_other(tokenizer):
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": f"{role} cat {n}"} for n, role in enumerate(roles)]
    (tokens,) = encode_chat({"row_id": 0, "messages": messages}, tokenizer, True)
    assert show(tokens, tokenizer) == (
        "<|system|>system cat 0<|end|>\n<|user|>user cat 1<|end|>\n<|assistant|>[[assistant cat 2<|end|>]]\n"
        "<|user|>user cat 3<|end|>\n<|assistant|>[[assistant cat 4<|end|>]]\n"
    )


def test_a_long_text_is_learnt_whole_in_parts_of_the_largest_length(tokenizer):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    tokenizer.model_max_length = 10
    text = "rain snow storm wind cloud hail " * 6
    parts = encode_text({"text": text}, tokenizer, True)
    learnt = [i for tokens in parts for i, m in zip(tokens.ids, tokens.is_learnt, strict=True) if m]
    assert learnt == [*tokenizer(text).input_ids[1:], tokenizer.eos_token_id]
    assert max(len(tokens.ids) for tokens in parts) == 10


@pytest.mark.parametrize("data", ["chat.jsonl", "text.jsonl"])
def test_chats_and_plain_texts_are_trained_on(data, train):
    record, _ = train("full", data=data)
    assert np.isfinite(record.metrics["validation"]["perplexity"])


def test_scratch_can_have_a_tokenizer_of_its_own(train):
    record, out = train("scratch", "--tokenizer_vocab_size", "280")
    network = transformers.AutoModelForCausalLM.from_pretrained(out)
    words = transformers.AutoTokenizer.from_pretrained(out)
    assert network.config.vocab_size == len(words) == 280
    assert network.config.eos_token_id == words.eos_token_id
    assert record.metrics["test"]["bits_per_byte"] > 0


def test_rows_that_are_cut_are_counted(train, caplog):
    record, _ = train("full", "--max_length", "9", "--on_bad_rows", "skip")
    tokens = record.data["tokens"]["train"]
    assert 0 < tokens["num_cut"] <= tokens["num_rows"]
    assert f"truncated_texts: {tokens['num_cut']} of {tokens['num_rows']} rows of train" in caplog.text


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--max_length", "65"], "reads at most 64 tokens"),
        (["--max_length", "2"], r"rows have no token to learn within 2 tokens \(rows \[0, "),
        (["--label_column", "completion"], "--label_column is about labels, and --task causal-lm has none"),
        (["--tokenizer_vocab_size", "300"], "it needs --mode scratch"),
        (["--head_init", "probe"], "causal-lm keeps the checkpoint's head"),
        (["--text_columns", "prompt", "complection"], "Did you mean 'completion'"),
    ],
)
def test_a_wrong_setting_is_said_before_training(flags, message, train, tmp_path):
    with pytest.raises(UserError, match=message):
        train("full", *flags)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--max_length", "50"], "of the 64 positions of .* 20 go to virtual tokens. Give --max_length 44 or less"),
        (["--num_virtual_tokens", "60"], "60 virtual tokens .--num_virtual_tokens. leave 4 for a text. Give fewer"),
    ],
)
def test_virtual_tokens_take_positions_from_the_text(flags, message, train):
    with pytest.raises(UserError, match=message):
        train("peft", "--adapter", "prompt", *flags)


@pytest.mark.parametrize("adapter", ["prompt", "prefix", "p-tuning"])
def test_a_long_text_leaves_room_for_virtual_tokens(adapter, train):
    _, run_folder = train("peft", "--adapter", adapter, data="text.jsonl")
    assert transformers.AutoTokenizer.from_pretrained(run_folder).model_max_length == 44


def test_a_prompt_as_long_as_the_network_reads_loses_its_beginning(folder, tokenizer):
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=16, vocab_size=len(tokenizer))
    network = transformers.GPT2LMHeadModel(config).eval()  # it has no 17th position
    ids = torch.arange(20, 36)[None]
    whole, end = (
        _write_on(network, {"input_ids": part, "attention_mask": torch.ones_like(part)}, tokenizer, 5)
        for part in (ids, ids[:, 5:])
    )
    assert torch.equal(whole, end) and whole.shape == (1, 5)


def test_modes_and_baselines_of_labels_are_refused(train):
    with pytest.raises(UserError, match="--mode probe does not fit causal-lm; what does: full, peft, scratch, z"):
        train("probe")


def test_flags_of_language_models_are_refused_elsewhere(folder, tmp_path):
    words = ["--dataset", "bundled:wordnet", "--model_name_or_path", str(folder / "llama"), "--packing", "true"]
    with pytest.raises(UserError, match="--packing is for --task causal-lm"):
        run(parse_args([*words, "--output_dir", str(tmp_path / "run")], mode="full"))


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"prompt": "a", "completion": " "}] * 9, "empty completion"),
        ([{"messages": [{"role": "user", "content": "a"}]}] * 9, "chat without an answer of the assistant"),
        ([{"messages": [{"role": "robot", "content": "a"}]}] * 9, r"has the role 'robot'; expected a role .*row_id 0"),
        ([{"a": "x", "b": "y"}] * 9, "several columns could be learnt; say which with"),
        ([{"a": 1.5}] * 9, "no column looks like a text or a chat"),
    ],
)
def test_wrong_rows_are_named(rows, message, train, folder):
    tiny.write_jsonl(folder / "wrong.jsonl", rows)
    with pytest.raises(UserError, match=message):
        train("full", data="wrong.jsonl")


def test_chats_without_a_template_say_what_to_do(train, folder, monkeypatch):
    monkeypatch.setattr(tiny, "CHAT_TEMPLATE", None)
    tiny.write_tiny_llama(folder / "plain")
    with pytest.raises(UserError, match="no chat template .*or give prompt and completion columns"):
        train("full", "--model_name_or_path", str(folder / "plain"), data="chat.jsonl")
