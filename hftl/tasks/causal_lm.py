"""Causal language modelling: plain texts, prompts with completions, or chats in the tokenizer's own template.

What is learnt is marked token by token: by default a completion, or the assistant's turns, and not the prompt.
"""

import hashlib
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers

from hftl.data.faults import leave_out
from hftl.data.inputs import list_texts
from hftl.data.labels import IGNORED, LabelInfo
from hftl.data.language import read_example, standardize_language
from hftl.data.roles import choose_prompts
from hftl.data.templates import fit_chat
from hftl.data.tokens import (
    SAMPLE_TOKENS,
    Tokens,
    check_marks,
    choose_encoder,
    decode_learnt,
    encode_prompt,
    mark_text,
    split_prompt,
)
from hftl.errors import UserError
from hftl.metrics import compute_token_metrics
from hftl.metrics.base import LANGUAGE
from hftl.tasks.base import AnswerOptions, Task
from hftl.tasks.packing import TokenCollator, keeps_rows_apart
from hftl.tasks.positions import count_free_positions, count_positions
from hftl.tasks.processors import load_tokenizer, map_cached, train_tokenizer, widen_vocabulary

logger = logging.getLogger(__name__)

MAX_LENGTH = 1024  # tokens of an example, unless the network reads fewer; what supervised fine-tuning commonly uses
NUM_SAMPLES = 3  # texts written at the end of a run


class CausalLM(Task):
    name = "causal-lm"
    modality = "language"
    auto_model = "AutoModelForCausalLM"
    pipeline_tag = "text-generation"
    is_answer_last = True
    targets = ()
    snippet = """inputs = processor("Once upon a time", return_tensors="pt", return_token_type_ids=False)
written = model.generate(**inputs, max_new_tokens=32, do_sample=False)
print(processor.decode(written[0], skip_special_tokens=True))"""
    peft_task_type = "CAUSAL_LM"
    modes = ("full", "peft", "scratch", "zero-shot")
    flags = ("completion_only", "packing", "tokenizer_vocab_size", "show_example")
    has_new_head = False
    eval_batch_size = 8  # the logits of 8 rows of 512 tokens with 50,000 words are 0.8 GB
    has_own_tokenizer = False  # made from the train rows, so that the network follows it

    def read(self, raw: datasets.DatasetDict, args: Any) -> tuple[datasets.DatasetDict, LabelInfo]:
        for flag in ("label_column", "problem_type", "only_labels", "num_train_examples_per_class"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag} is about labels, and --task causal-lm has none.")
        return standardize_language(raw, args), LabelInfo(LANGUAGE, ())

    def load_processor(self, source: str, revision: str, args: Any) -> Any:
        tokenizer = load_tokenizer(source, revision, args.max_length, default_length=MAX_LENGTH)
        if tokenizer.eos_token is None:
            raise UserError(f"The tokenizer of {source} has no end token, so what is written would have no end.")
        tokenizer.padding_side = "right"
        return tokenizer

    def fit_processor(self, processor: Any, rows: datasets.Dataset, args: Any) -> Any:
        if args.tokenizer_vocab_size is None:
            return processor
        texts = (text for found, _ in list_texts(rows) for text in found)
        trained = train_tokenizer(processor, texts, args.tokenizer_vocab_size, len(rows))
        trained.padding_side = "right"
        trained.chat_template = processor.chat_template
        self.has_own_tokenizer = True
        return trained

    def prepare(self, dataset: datasets.Dataset, processor: Any, args: Any, fingerprint: str) -> datasets.Dataset:
        encode = choose_encoder(dataset, processor)

        def tokenize(rows: dict[str, list]) -> dict[str, list]:
            columns: dict[str, list] = {name: [] for name in _COLUMNS}
            for index, row_id in enumerate(rows["row_id"]):
                row = {name: values[index] for name, values in rows.items()}
                try:
                    found = encode(row, processor, args.completion_only)
                    for tokens in found:
                        check_marks(tokens, processor)
                except UserError as error:
                    found = [Tokens([processor.eos_token_id], [False], fault=str(error))]
                for tokens in found:
                    _append(columns, row_id, tokens, [*(row.get("unread") or ()), *tokens.unread], processor)
            return columns

        key = {
            "rows": fingerprint,
            "tokenizer": hashlib.sha256(processor.backend_tokenizer.to_str().encode()).hexdigest(),
            "template": processor.chat_template,
            "special": [processor.bos_token, processor.eos_token],
            "max_length": processor.model_max_length,
            "completion_only": args.completion_only,
            "columns": _COLUMNS,
            "transformers": transformers.__version__,
        }
        prepared = map_cached(dataset, tokenize, key, description="Tokenizing")
        prepared = leave_out(prepared, [fault or None for fault in prepared["fault"][:]], args.on_bad_rows)
        return _drop_unlearnable(prepared, processor, args.on_bad_rows)

    def describe_rows(self, rows: dict[str, datasets.Dataset], processor: Any, args: Any) -> dict[str, Any]:
        if args.show_example:
            logger.info(
                "One training row; what is learnt stands in [[ ]]:\n%s", mark_text(rows["train"][0], processor)
            )
        unread = {split: _count_unread(part) for split, part in rows.items()}
        if any(unread.values()):
            found = dict.fromkeys(name for counts in unread.values() for name in counts)
            logger.warning("Not read, though rows hold it: %s.", ", ".join(map(repr, found)))
        return {"tokens": {split: _count_tokens(part) for split, part in rows.items()}, "unread": unread}

    def build_collator(self, processor: Any, args: Any, augmentation: str) -> "TokenCollator":
        return TokenCollator(processor.pad_token_id, is_packed=args.packing)

    def adapt_collator(self, collator: "TokenCollator", network: torch.nn.Module) -> "TokenCollator":
        if collator.is_packed and not keeps_rows_apart(network, collator):
            logger.warning(
                "--packing: in this network rows that follow each other in a batch see each other, so that they are "
                "padded instead."
            )
            return TokenCollator(collator.pad_token_id, is_packed=False)
        return collator

    def adjust_config(self, config: Any, processor: Any, info: LabelInfo) -> None:
        if self.has_own_tokenizer:
            config.vocab_size = len(processor)
            config.bos_token_id, config.eos_token_id = processor.bos_token_id, processor.eos_token_id
            config.pad_token_id = processor.pad_token_id
            return
        widen_vocabulary(config, processor)
        if getattr(config, "pad_token_id", None) is None:  # of CodeGen and RWKV it does not even have the name
            config.pad_token_id = processor.pad_token_id

    def sum_loss(self, outputs: Any, labels: torch.Tensor, problem_type: str, smoothing: float) -> torch.Tensor:
        logits = outputs["logits"][:, -labels.shape[1] :]  # [B, T, V]; virtual tokens come first
        return F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            labels[:, 1:].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=smoothing,
        )

    def reduce(self, logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
        """Of each row the negative log-likelihood, the number of learnt tokens and how many are foreseen, [B, 3]."""
        logits = (logits[0] if isinstance(logits, tuple) else logits)[:, -labels.shape[1] :]
        return torch.stack([_sum_row(*row) for row in zip(logits[:, :-1], labels[:, 1:], strict=True)])

    def compute_metrics(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, float]:
        return compute_token_metrics(_as_sums(kept, rows))

    def describe_predictions(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        return {"row_id": np.asarray(rows["row_id"][:], dtype=np.int64), **_as_sums(kept, rows)}

    def read_labels(self, config: Any) -> LabelInfo:
        return LabelInfo(LANGUAGE, ())

    def canary_row(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """One text, a chat in its template."""
        if "messages" in row:
            chat, _ = fit_chat(row, processor)
            canary = {"messages": json.dumps(chat.messages), "text": chat.write(processor)}
            return canary | ({} if chat.tools is None else {"tools": json.dumps(chat.tools)})
        if "completion" in row:
            return {"text": (row["prompt"] or "") + row["completion"]}
        return {"text": row["text"]}

    def read_known(self, rows: datasets.Dataset, args: Any, info: LabelInfo) -> datasets.Dataset:
        return standardize_language(datasets.DatasetDict(train=rows), args)["train"]

    def choose_inputs(self, features: datasets.Features, args: Any) -> dict[str, str]:
        return {name: part for part, name in choose_prompts(features, args.text_columns).items()}

    def find_unanswerable(self, rows: dict[str, list], processor: Any, args: Any) -> list[str | None]:
        return [_find_fault(row, processor) for row in _list_rows(rows)]

    def encode(self, rows: dict[str, list], processor: Any, args: Any) -> dict[str, list]:
        """Prompts; a chat up to the assistant's next turn."""
        prompts = (encode_prompt(read_example(row), processor) for row in _list_rows(rows))
        ids = [tokens[-processor.model_max_length :] for tokens in prompts]
        return {"input_ids": ids, "length": [len(tokens) for tokens in ids]}

    def answer(
        self, network: Any, batch: dict[str, torch.Tensor], processor: Any, options: AnswerOptions
    ) -> torch.Tensor:
        """The tokens that the network writes, word by most probable word, int64 [B, T]."""
        context = count_positions(network)
        room = max(1, context - options.max_new_tokens) if context else batch["input_ids"].shape[1]
        batch = {name: tensor[:, -room:] for name, tensor in batch.items()}  # padded on the left
        return _write_on(network, batch, processor, options.max_new_tokens)

    def decode(
        self, kept: list[np.ndarray], rows: dict[str, list], processor: Any, info: LabelInfo, options: AnswerOptions
    ) -> dict[str, list]:
        return {"completion": processor.batch_decode([tokens.tolist() for tokens in kept], skip_special_tokens=True)}

    @torch.inference_mode()
    def sample(self, network: Any, processor: Any, rows: datasets.Dataset) -> list[dict[str, str]]:
        """What the network writes, word by most probable word, after the prompts of the first rows."""
        network.eval()
        texts = []
        for row in rows.select(range(min(NUM_SAMPLES, len(rows)))):
            prompt, expected = split_prompt(row, processor)
            ids = torch.tensor([prompt[-processor.model_max_length :]], device=network.device)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            new = _write_on(network, batch, processor, SAMPLE_TOKENS)[0]
            text = processor.decode(new, skip_special_tokens=True)
            texts.append({"prompt": processor.decode(prompt), "expected": expected, "written": text})
        return texts


def _write_on(network: Any, batch: dict[str, torch.Tensor], processor: Any, max_new_tokens: int) -> torch.Tensor:
    """The new tokens alone, [B, T], word by most probable word; shorter rows are filled.

    A prompt loses its beginning where it would leave no position for what is to be written.
    """
    positions = count_free_positions(network) or sys.maxsize
    max_new_tokens = min(max_new_tokens, max(1, positions // 2))
    batch = {name: values[:, -(positions - max_new_tokens) :] for name, values in batch.items()}  # padded on the left
    ends = {"eos_token_id": processor.eos_token_id, "pad_token_id": processor.pad_token_id}
    with warnings.catch_warnings():  # peft drops the positions that `generate` hands on, and counts its own
        warnings.filterwarnings("ignore", "Position ids are not supported for parameter efficient tuning")
        written = network.generate(**batch, do_sample=False, max_new_tokens=max_new_tokens, **ends)
    # peft's prompt methods give the written tokens alone.
    width = batch["input_ids"].shape[1]
    return written[:, width:] if torch.equal(written[:, :width], batch["input_ids"]) else written


_COLUMNS = ("row_id", "input_ids", "labels", "length", "num_learnt", "num_bytes", "is_cut", "fault", "unread")


def _list_rows(columns: dict[str, list]) -> Iterable[dict[str, Any]]:
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _find_fault(row: dict[str, Any], tokenizer: Any) -> str | None:
    """Why a row cannot be gone on from; None for a good one."""
    try:
        encode_prompt(read_example(row), tokenizer)
    except UserError as error:
        return str(error)
    return None


def _append(columns: dict[str, list], row_id: int, tokens: Tokens, unread: list[str], tokenizer: Any) -> None:
    num_bytes = len(decode_learnt(tokens, tokenizer, skip_special_tokens=True).encode())
    counts = (len(tokens.ids), sum(tokens.is_learnt), num_bytes)
    values = (row_id, tokens.ids, tokens.labels, *counts, tokens.is_cut, tokens.fault, json.dumps(unread))
    for name, value in zip(_COLUMNS, values, strict=True):
        columns[name].append(value)


def _count_unread(rows: datasets.Dataset) -> dict[str, int]:
    """Column or field of messages that is not read -> prepared rows that hold it."""
    counts: Counter[str] = Counter()
    for names, count in Counter(rows["unread"][:]).items():
        counts.update(dict.fromkeys(json.loads(names), count))
    return dict(counts)


def _drop_unlearnable(rows: datasets.Dataset, processor: Any, on_bad_rows: str) -> datasets.Dataset:
    counts = np.asarray(rows["num_learnt"][:])
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return rows
    ids = rows.select(empty[:5])["row_id"][:]
    found = f"{len(empty)} rows have no token to learn within {processor.model_max_length} tokens (rows {ids})"
    if on_bad_rows == "error" or len(empty) == len(rows):
        raise UserError(f"{found}: raise --max_length, shorten their prompts, or drop them with --on_bad_rows skip.")
    logger.warning("Dropped: %s.", found)
    return rows.select(np.flatnonzero(counts))


def _count_tokens(rows: datasets.Dataset) -> dict[str, int]:
    columns = {"num_tokens": "length", "num_learnt_tokens": "num_learnt", "num_cut": "is_cut"}
    return {"num_rows": len(rows)} | {name: int(np.sum(rows[column][:])) for name, column in columns.items()}


# --- sums over tokens


def _sum_row(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] and targets [T] -> negative log-likelihood, learnt tokens, foreseen ones; float32 [3]."""
    logits = logits.float()
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    is_learnt = targets != IGNORED
    return torch.stack([loss, is_learnt.sum(), ((logits.argmax(-1) == targets) & is_learnt).sum()]).float()


def _as_sums(kept: np.ndarray, rows: datasets.Dataset) -> dict[str, np.ndarray]:
    """The columns of `TOKEN_SUMS`."""
    loss, count, correct = np.asarray(kept, dtype=np.float64).T
    sums = {"negative_log_likelihood": loss, "num_tokens": count.astype(np.int64)}
    return sums | {"num_correct": correct.astype(np.int64), "num_bytes": np.asarray(rows["num_bytes"][:])}
