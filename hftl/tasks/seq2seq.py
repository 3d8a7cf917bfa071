"""One text into another (summaries, translations) by an encoder and a decoder: T5, BART, mBART, Marian.

Checkpoints are judged by the loss of the true text; at the end the network writes, and what it wrote is scored.
"""

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers

from hftl.data.labels import IGNORED, LabelInfo
from hftl.data.pairs import choose_source, standardize_pairs
from hftl.errors import UserError
from hftl.metrics.base import POSITIVE, Score
from hftl.metrics.spread import linearize
from hftl.metrics.written import score_corpus, score_rows
from hftl.tasks.base import AnswerOptions, Task
from hftl.tasks.positions import count_positions
from hftl.tasks.processors import load_tokenizer, map_cached, train_tokenizer, widen_vocabulary

MAX_LENGTH = 512  # tokens of an input and of a target, unless the network reads fewer
NUM_SUMS = 3  # kept of the true text in front of the tokens that the network wrote
# Their decoder starts with the last token of the target, its language; `shift_tokens_right` of their modeling files.
WRAPPED = ("mbart", "plbart")
_COLUMNS = ("row_id", "input_ids", "labels", "length", "is_cut", "target")


def _by_row(name: str) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    return lambda table: np.asarray(table[name], dtype=float)


class Seq2Seq(Task):
    name = "seq2seq"
    modality = "text"
    auto_model = "AutoModelForSeq2SeqLM"
    pipeline_tag = "text2text-generation"
    peft_task_type = "SEQ_2_SEQ_LM"
    modes = ("full", "peft", "scratch", "zero-shot")
    flags = ("source_column", "target_column", "source_prefix", "max_new_tokens", "num_beams", "tokenizer_vocab_size")
    targets = ("target",)
    has_new_head = False
    eval_batch_size = 16
    has_own_tokenizer = False  # made from the train rows, so that the network follows it
    scores = {
        **{name: Score(by_row=_by_row(name), is_written=True) for name in ("rougeL", "rouge1", "rouge2")},
        "chrf": Score(is_written=True),
        "bleu": Score(is_written=True),
        "exact_match": Score(by_row=_by_row("exact_match"), is_written=True),
        "token_loss": Score(
            False, lambda table: linearize(table["negative_log_likelihood"], table["num_tokens"]), bounds=POSITIVE
        ),
        "token_accuracy": Score(by_row=lambda table: linearize(table["num_correct"], table["num_tokens"])),
    }
    snippet = """inputs = processor({example}, return_tensors="pt")
written = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(written[0], skip_special_tokens=True))"""

    def read(self, raw: datasets.DatasetDict, args: Any) -> tuple[datasets.DatasetDict, LabelInfo]:
        for flag in ("label_column", "problem_type", "only_labels", "num_train_examples_per_class", "text_columns"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag} is not for --task seq2seq; give --source_column and --target_column.")
        return standardize_pairs(raw, args), LabelInfo(self.name, ())

    def read_known(self, rows: datasets.Dataset, args: Any, info: LabelInfo) -> datasets.Dataset:
        return standardize_pairs(datasets.DatasetDict(train=rows), args)["train"]

    def read_labels(self, config: Any) -> LabelInfo:
        return LabelInfo(self.name, ())

    def find_faults(self, rows: datasets.Dataset, info: LabelInfo) -> Iterable[str | None]:
        return [None if (target or "").split() else "empty target" for target in rows["target"][:]]

    def load_processor(self, source: str, revision: str, args: Any) -> Any:
        tokenizer = load_tokenizer(source, revision, args.max_length, default_length=MAX_LENGTH)
        if tokenizer.eos_token is None:
            raise UserError(f"The tokenizer of {source} has no end token, so what is written would have no end.")
        return tokenizer

    def fit_processor(self, processor: Any, rows: datasets.Dataset, args: Any) -> Any:
        if args.tokenizer_vocab_size is None:
            return processor
        texts = (text for name in ("text", "target") for text in rows[name])
        trained = train_tokenizer(processor, texts, args.tokenizer_vocab_size, 2 * len(rows))
        self.has_own_tokenizer = True
        return trained

    def adjust_config(self, config: Any, processor: Any, info: LabelInfo) -> None:
        if self.has_own_tokenizer:
            config.vocab_size = len(processor)
            config.pad_token_id, config.eos_token_id = processor.pad_token_id, processor.eos_token_id
            config.decoder_start_token_id = processor.pad_token_id
        widen_vocabulary(config, processor)
        if getattr(config, "decoder_start_token_id", None) is None:  # T5 made from its class does not have the name
            pad = getattr(config, "pad_token_id", None)
            config.decoder_start_token_id = processor.pad_token_id if pad is None else pad
        self._config = config  # what starts a text to be written

    def prepare(self, dataset: datasets.Dataset, processor: Any, args: Any, fingerprint: str) -> datasets.Dataset:
        self._remember(processor, args)
        key = {
            "rows": fingerprint,
            "tokenizer": hashlib.sha256(processor.backend_tokenizer.to_str().encode()).hexdigest(),
            "special": [
                processor.eos_token,
                getattr(processor, "src_lang", None),
                getattr(processor, "tgt_lang", None),
            ],
            "max_length": processor.model_max_length,
            "prefix": args.source_prefix,
            "columns": _COLUMNS,
            "transformers": transformers.__version__,
        }
        return map_cached(dataset, partial(_tokenize, self, processor), key, description="Tokenizing")

    def _remember(self, processor: Any, args: Any) -> None:
        """What reading and writing take besides the network."""
        self._processor, self._prefix = processor, args.source_prefix or ""
        self._max_new_tokens, self._num_beams = args.max_new_tokens, args.num_beams

    def describe_rows(self, rows: dict[str, datasets.Dataset], processor: Any, args: Any) -> dict[str, Any]:
        return {
            "tokens": {
                split: {"num_rows": len(part), "num_cut": int(np.sum(part["is_cut"][:]))}
                for split, part in rows.items()
            }
        }

    def build_collator(self, processor: Any, args: Any, augmentation: str) -> "PairCollator":
        return PairCollator(processor.pad_token_id, self._config)

    def sum_loss(self, outputs: Any, labels: torch.Tensor, problem_type: str, smoothing: float) -> torch.Tensor:
        logits = outputs["logits"][:, -labels.shape[1] :]  # [B, T, V]; virtual tokens come first
        return F.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=smoothing,
        )

    def reduce(self, logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
        """Of each row the negative log-likelihood, the number of tokens and how many are foreseen, [B, 3]."""
        logits = (logits[0] if isinstance(logits, tuple) else logits)[:, -labels.shape[1] :].float()
        loss = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none").sum(1)
        is_known = labels != IGNORED
        correct = ((logits.argmax(-1) == labels) & is_known).sum(1)
        return torch.stack([loss, is_known.sum(1), correct], dim=1).float()

    def write(self, network: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Token numbers, [B, T]."""
        return self._generate(network, batch, self._processor, self._max_new_tokens)

    def _generate(self, network: Any, batch: dict[str, torch.Tensor], processor: Any, limit: int) -> torch.Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        ends = {"eos_token_id": processor.eos_token_id, "pad_token_id": processor.pad_token_id}
        limit = min(limit, (count_positions(network) or limit + 1) - 1)  # of the decoder, which starts with a mark
        lengths = {"max_new_tokens": limit, "max_length": None, "min_length": 0}
        return network.generate(**inputs, do_sample=False, num_beams=self._num_beams, **lengths, **ends)

    def compute_metrics(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, float]:
        loss, count, correct = (float(total) for total in np.asarray(kept, np.float64)[:, :NUM_SUMS].sum(0))
        scores = {"token_loss": loss / count, "token_accuracy": correct / count}
        if kept.shape[1] == NUM_SUMS:  # while training nothing is written
            return scores
        written, references = self._read_written(kept), rows["target"][:]
        found = {name: float(values.mean()) for name, values in score_rows(written, references).items()}
        return found | score_corpus(written, references) | scores

    def describe_predictions(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        loss, count, correct = np.asarray(kept, np.float64)[:, :NUM_SUMS].T
        columns = {
            "row_id": np.asarray(rows["row_id"][:], dtype=np.int64),
            "negative_log_likelihood": loss,
            "num_tokens": count.astype(np.int64),
            "num_correct": correct.astype(np.int64),
        }
        written = self._read_written(kept)
        return columns | {"written": np.array(written, dtype=object)} | score_rows(written, rows["target"][:])

    def _read_written(self, kept: np.ndarray) -> list[str]:
        return _decode(self._processor, np.asarray(kept)[:, NUM_SUMS:].astype(np.int64))

    def choose_inputs(self, features: datasets.Features, args: Any) -> dict[str, str]:
        return {choose_source(features, args.source_column): "text"}

    def encode(self, rows: dict[str, list], processor: Any, args: Any) -> dict[str, list]:
        self._remember(processor, args)
        ids = [_read(self._prefix + text, processor)[0] for text in rows["text"]]
        return {"input_ids": ids, "length": [len(tokens) for tokens in ids]}

    def answer(
        self, network: Any, batch: dict[str, torch.Tensor], processor: Any, options: AnswerOptions
    ) -> torch.Tensor:
        return self._generate(network, batch, processor, options.max_new_tokens)

    def decode(
        self, kept: list[np.ndarray], rows: dict[str, list], processor: Any, info: LabelInfo, options: AnswerOptions
    ) -> dict[str, list]:
        return {"written": _decode(processor, kept)}

    def canary_row(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        return {"text": self._prefix + row["text"]}


class PairCollator:
    """Inputs padded to the longest, targets with `IGNORED`, and what the decoder reads: the targets one place later.

    Returns:
        `input_ids`, `attention_mask` [B, S], `decoder_input_ids` and, where there are targets, `labels` int64 [B, T].
    """

    def __init__(self, pad_token_id: int, config: Any) -> None:
        self.pad_token_id = pad_token_id
        self.start = config.decoder_start_token_id
        self.is_wrapped = config.model_type in WRAPPED

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = [row["input_ids"] for row in rows]
        mask = _pad([[1] * len(row) for row in ids], 0)
        batch = {"input_ids": _pad(ids, self.pad_token_id), "attention_mask": mask}
        if "labels" not in rows[0]:
            return batch | {"decoder_input_ids": torch.full((len(rows), 1), self.start)}
        labels = [list(row["labels"]) for row in rows]
        shifted = [[row[-1] if self.is_wrapped else self.start, *row[:-1]] for row in labels]
        return batch | {"decoder_input_ids": _pad(shifted, self.pad_token_id), "labels": _pad(labels, IGNORED)}


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([list(row) + [value] * (width - len(row)) for row in rows])


def _tokenize(task: Seq2Seq, processor: Any, rows: dict[str, list]) -> dict[str, list]:
    columns: dict[str, list] = {name: [] for name in _COLUMNS}
    for row_id, text, target in zip(rows["row_id"], rows["text"], rows["target"], strict=True):
        ids, is_cut = _read(task._prefix + text, processor)
        labels, is_target_cut = _read(target, processor, is_target=True)
        values = (row_id, ids, labels, len(ids), is_cut or is_target_cut, target)
        for name, value in zip(_COLUMNS, values, strict=True):
            columns[name].append(value)
    return columns


def _read(text: str, processor: Any, *, is_target: bool = False) -> tuple[list[int], bool]:
    """The tokens of a text with its end, and whether it was cut."""
    ids = (processor(text_target=text) if is_target else processor(text)).input_ids
    if processor.eos_token_id not in ids:
        ids = [*ids, processor.eos_token_id]
    limit = processor.model_max_length
    if len(ids) <= limit:
        return ids, False
    end = ids[ids.index(processor.eos_token_id) :]  # of some tokenizers a language follows
    return ids[: limit - len(end)] + end, True


def _decode(processor: Any, rows: Iterable[np.ndarray]) -> list[str]:
    tokens = [[int(token) for token in row if token >= 0] for row in rows]
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
