"""Masked language modelling: texts without labels, of which words are hidden and found again.

What a checkpoint is trained on further before it sees labels: `hftl train --task masked-lm`, then any other task with
the folder of that run as `--model_name_or_path`. A long text is read in windows, so that no word is lost.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import PreTrainedTokenizerFast

from hftl.data.inputs import list_texts
from hftl.data.labels import IGNORED, LabelInfo
from hftl.data.language import choose_text, standardize_texts
from hftl.data.masking import NO_WORD, hide_words
from hftl.errors import UserError
from hftl.metrics import SCORES
from hftl.tasks.base import AnswerOptions, Task
from hftl.tasks.processors import describe_windows, load_tokenizer, map_cached, train_tokenizer, widen_vocabulary

MAX_LENGTH = 512  # tokens of a window, unless the network reads fewer
EVALUATION_SEED = 0  # the words that are hidden of validation and test rows are always the same
_COLUMNS = ("row_id", "window", "input_ids", "words", "length")


class MaskedLM(Task):
    name = "masked-lm"
    modality = "text"
    auto_model = "AutoModelForMaskedLM"
    pipeline_tag = "fill-mask"
    modes = ("full", "peft", "scratch")
    flags = ("tokenizer_vocab_size",)
    targets = ()
    has_new_head = False
    eval_batch_size = 16  # the logits of 16 rows of 128 tokens with 30,000 words are 0.25 GB
    has_own_tokenizer = False  # made from the train rows, so that the network follows it
    scores = {name: SCORES[name] for name in ("perplexity", "token_loss", "token_accuracy")}  # of the hidden tokens
    snippet = """from transformers import pipeline

fill = pipeline("fill-mask", model=model, tokenizer=processor)
print(fill(f"A {processor.mask_token} has four legs."))"""

    def read(self, raw: datasets.DatasetDict, args: Any) -> tuple[datasets.DatasetDict, LabelInfo]:
        for flag in ("label_column", "problem_type", "only_labels", "num_train_examples_per_class"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag} is about labels, and --task {self.name} has none.")
        return standardize_texts(raw, args), LabelInfo(self.name, ())

    def read_known(self, rows: datasets.Dataset, args: Any, info: LabelInfo) -> datasets.Dataset:
        return standardize_texts(datasets.DatasetDict(train=rows), args)["train"]

    def read_labels(self, config: Any) -> LabelInfo:
        return LabelInfo(self.name, ())

    def load_processor(self, source: str, revision: str, args: Any) -> Any:
        tokenizer = load_tokenizer(source, revision, args.max_length, default_length=MAX_LENGTH)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UserError(f"{source} has a slow tokenizer, which does not say where words begin; give a fast one.")
        if tokenizer.mask_token is None:
            raise UserError(f"The tokenizer of {source} has no mask token, which stands for a hidden word.")
        return tokenizer

    def fit_processor(self, processor: Any, rows: datasets.Dataset, args: Any) -> Any:
        if args.tokenizer_vocab_size is None:
            return processor
        texts = (text for found, _ in list_texts(rows) for text in found)
        trained = train_tokenizer(processor, texts, args.tokenizer_vocab_size, len(rows))
        self.has_own_tokenizer = True
        return trained

    def adjust_config(self, config: Any, processor: Any, info: LabelInfo) -> None:
        if self.has_own_tokenizer:
            config.vocab_size = len(processor)
        widen_vocabulary(config, processor)
        if self.has_own_tokenizer or getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = processor.pad_token_id

    def prepare(self, dataset: datasets.Dataset, processor: Any, args: Any, fingerprint: str) -> datasets.Dataset:
        def tokenize(rows: dict[str, list]) -> dict[str, list]:
            windows = [
                (row_id, number, *window, len(window[0]))
                for row_id, text in zip(rows["row_id"], rows["text"], strict=True)
                for number, window in enumerate(cut_windows(text, processor))
            ]
            return dict(zip(_COLUMNS, map(list, zip(*windows, strict=True)), strict=True))

        key = {
            "rows": fingerprint,
            "tokenizer": hashlib.sha256(processor.backend_tokenizer.to_str().encode()).hexdigest(),
            "max_length": processor.model_max_length,
            "columns": _COLUMNS,
            "task": self.name,
            "transformers": transformers.__version__,
        }
        return map_cached(dataset, tokenize, key, description="Tokenizing")

    def describe_rows(self, rows: dict[str, datasets.Dataset], processor: Any, args: Any) -> dict[str, Any]:
        return describe_windows(rows)

    def build_collator(self, processor: Any, args: Any, augmentation: str) -> "MaskCollator":
        return MaskCollator(processor)

    def sum_loss(self, outputs: Any, labels: torch.Tensor, problem_type: str, smoothing: float) -> torch.Tensor:
        logits = outputs["logits"][:, -labels.shape[1] :]  # [B, T, V]; virtual tokens come first
        is_asked = labels != IGNORED  # a seventh of the tokens: the others would cost a softmax over the vocabulary
        return F.cross_entropy(logits[is_asked].float(), labels[is_asked], reduction="sum", label_smoothing=smoothing)

    def reduce(self, logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
        """Of each row the negative log-likelihood, the number of hidden tokens and how many are found, [B, 3]."""
        logits = (logits[0] if isinstance(logits, tuple) else logits)[:, -labels.shape[1] :]
        return torch.stack([_sum_row(*row) for row in zip(logits, labels, strict=True)])

    def compute_metrics(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, float]:
        loss, count, correct = (float(total) for total in np.asarray(kept, np.float64).sum(0))
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(loss / count))
        return {"perplexity": perplexity, "token_loss": loss / count, "token_accuracy": correct / count}

    def describe_predictions(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        """The sums of each text, over its windows."""
        row_ids, places = np.unique(np.asarray(rows["row_id"][:], dtype=np.int64), return_inverse=True)
        sums = np.zeros((len(row_ids), kept.shape[1]))
        np.add.at(sums, places, np.asarray(kept, np.float64))
        loss, count, correct = sums.T
        numbers = {"num_tokens": count.astype(np.int64), "num_correct": correct.astype(np.int64)}
        return {"row_id": row_ids, "negative_log_likelihood": loss} | numbers

    def choose_inputs(self, features: datasets.Features, args: Any) -> dict[str, str]:
        return {choose_text(features, args.text_columns): "text"}

    def encode(self, rows: dict[str, list], processor: Any, args: Any) -> dict[str, list]:
        """Texts in which the mask of the tokenizer stands for what is to be found."""
        ids = [processor(text, truncation=True).input_ids for text in rows["text"]]
        for text, tokens in zip(rows["text"], ids, strict=True):
            if processor.mask_token_id not in tokens:
                raise UserError(
                    f"The text {text[:60]!r} has no {processor.mask_token} within {processor.model_max_length} "
                    "tokens; write it where a word is to be found."
                )
        return {"input_ids": ids, "length": [len(tokens) for tokens in ids], "text": list(rows["text"])}

    def answer(
        self, network: Any, batch: dict[str, torch.Tensor], processor: Any, options: AnswerOptions
    ) -> torch.Tensor:
        """Of each token the most probable ones and how probable they are, [B, T, 2 k]; NaN where there is no mask."""
        logits = network(**batch).logits[:, -batch["input_ids"].shape[1] :]
        best = logits.float().softmax(-1).topk(min(options.top_k, logits.shape[-1]), dim=-1)
        found = torch.cat([best.indices.float(), best.values], dim=-1)
        return found.masked_fill((batch["input_ids"] != processor.mask_token_id).unsqueeze(-1), float("nan"))

    def decode(
        self, kept: list[np.ndarray], rows: dict[str, list], processor: Any, info: LabelInfo, options: AnswerOptions
    ) -> dict[str, list]:
        """`filled`, the text with the most probable tokens, and for each mask the `tokens` and `probabilities`."""
        answers: dict[str, list] = {"filled": [], "tokens": [], "probabilities": []}
        for values, text in zip(kept, rows["text"], strict=True):
            is_mask = ~np.isnan(values).any(-1) & (values >= 0).all(-1)  # shorter rows are filled with -100
            numbers, probabilities = np.split(values[is_mask], 2, axis=-1)
            tokens = [[processor.decode([int(token)]).strip() for token in row] for row in numbers]
            answers["tokens"].append(tokens)
            answers["probabilities"].append(probabilities.tolist())
            for row in tokens:
                text = text.replace(processor.mask_token, row[0], 1)
            answers["filled"].append(text)
        return answers

    def canary_row(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        words = row["text"].split()
        words[len(words) // 2] = processor.mask_token
        return {"text": " ".join(words)}


def cut_windows(text: str, processor: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens and word numbers of a text, in as many windows as it takes, each with the special tokens around it."""
    encoded = processor(text, truncation=True, return_overflowing_tokens=True, verbose=False)
    for index, ids in enumerate(encoded["input_ids"]):
        words = [NO_WORD if word is None else word for word in encoded.word_ids(index)]
        if set(words) != {NO_WORD}:
            yield ids, words


class MaskCollator:
    """Hide words and pad on the right.

    Returns:
        `input_ids`, `attention_mask` int64 [B, T]; `labels` [B, T], `IGNORED` where nothing is asked, unless the rows
        are to be answered.
    """

    def __init__(self, processor: Any) -> None:
        self.pad_token_id, self.mask_token = processor.pad_token_id, processor.mask_token_id
        self.drawn_from = np.setdiff1d(np.arange(len(processor)), processor.all_special_ids)
        self.multiple = 8 if torch.cuda.is_available() else 1  # tensor cores want multiples of 8

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        width = -(-max(len(row["input_ids"]) for row in rows) // self.multiple) * self.multiple

        def fill(values: list[list[int]], value: int) -> torch.Tensor:
            return torch.tensor([list(row) + [value] * (width - len(row)) for row in values])

        mask = fill([[1] * len(row["input_ids"]) for row in rows], 0)
        if "words" not in rows[0]:
            return {"input_ids": fill([row["input_ids"] for row in rows], self.pad_token_id), "attention_mask": mask}
        ids, labels = zip(*map(self.hide, rows), strict=True)
        batch = {"input_ids": fill(ids, self.pad_token_id), "attention_mask": mask}
        return batch | {"labels": fill(labels, IGNORED)}

    def hide(self, row: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Other words each epoch while training, always the same ones in evaluation."""
        seed = row.get("augmentation_seed", (EVALUATION_SEED, row["row_id"], row["window"]))
        return hide_words(row["input_ids"], row["words"], seed, mask_token=self.mask_token, drawn_from=self.drawn_from)


def _sum_row(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] and labels [T] -> negative log-likelihood, hidden tokens, found ones; float32 [3]."""
    logits, labels = logits[labels != IGNORED].float(), labels[labels != IGNORED]
    loss, count = F.cross_entropy(logits, labels, reduction="sum"), (labels != IGNORED).sum()
    return torch.stack([loss, count, (logits.argmax(-1) == labels).sum()]).float()
