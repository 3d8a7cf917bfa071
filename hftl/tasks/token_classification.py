"""Token classification: one tag for each word of a text, such as its part of speech, or where a name begins (IOB).

A word is answered at its first subword. A text that is longer than the network reads is cut into windows that overlap
(`word_windows`). Tags of a scheme are scored as entities, all others as classes of single words; the names of the
scores say which.
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hftl.assets import resolve_model
from hftl.data.label_spelling import clean_label, find_joined
from hftl.data.labels import IGNORED, LabelInfo
from hftl.data.tags import choose_words, is_list, list_tags, number_tags, read_tagged_rows
from hftl.errors import UserError
from hftl.metrics.base import Score
from hftl.metrics.spans import COUNTS, SPAN_SCORES, count_document, find_spans, score_counts, score_kinds, sum_counts
from hftl.metrics.spread import linearize
from hftl.metrics.tag_schemes import TagScheme, is_outside, odd_tags, read_scheme
from hftl.tasks.base import AnswerOptions, Task
from hftl.tasks.processors import describe_windows, load_tokenizer, map_cached, widen_vocabulary
from hftl.tasks.word_windows import as_columns, cut_windows

logger = logging.getLogger(__name__)

MAX_LENGTH = 512  # tokens of a window
WORD = re.compile(r"\w+(?:[-'’.]\w+)*|[^\w\s]")  # of a text: words, and punctuation by itself


WORD_CLASSES = "word-classification"  # the problem type of tags that are classes of single words


def _name_scores(prefix: str) -> dict[str, Score]:
    """What is scored, the first leads: by entities or by tags of single words, and all words."""
    scores = {f"{prefix}_{name}": Score(by_row=by_row) for name, by_row in SPAN_SCORES.items()}
    return scores | {"word_accuracy": Score(by_row=lambda t: linearize(t["num_correct"], t["num_words"]))}


class TokenClassification(Task):
    name = "token-classification"
    modality = "text"
    auto_model = "AutoModelForTokenClassification"
    peft_task_type = "TOKEN_CLS"
    pipeline_tag = "token-classification"
    modes = ("full", "peft", "scratch")
    flags = ("class_weights",)
    targets = ("words", "tags")  # the text of `words` is what is read
    scores = _name_scores("entity")
    # What is scored where tags are no scheme: single words, outside not counted.
    scores_by_problem: ClassVar = {WORD_CLASSES: _name_scores("tag")}
    snippet = """from transformers import pipeline

tag = pipeline("token-classification", model=model, tokenizer=processor, aggregation_strategy="first")
print(tag({example}))"""

    def read(self, raw: datasets.DatasetDict, args: Any) -> tuple[datasets.DatasetDict, LabelInfo]:
        for flag in ("problem_type", "only_labels", "num_train_examples_per_class"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag} is about rows with one label; --task {self.name} has one for each word.")
        splits = {split: read_tagged_rows(rows, split, args) for split, rows in raw.items()}
        info = _name_tags(splits)
        numbered = {split: number_tags(rows, split, info) for split, rows in splits.items()}
        for split, rows in numbered.items():
            _warn_of_late_begins(rows, split, info)
        return datasets.DatasetDict(numbered), info

    def read_known(self, rows: datasets.Dataset, args: Any, info: LabelInfo) -> datasets.Dataset:
        return number_tags(read_tagged_rows(rows, "the new data", args), "the new data", info)

    def find_faults(self, rows: datasets.Dataset, info: LabelInfo) -> Iterator[str | None]:
        for words in rows["words"]:
            yield None if all(word.split() for word in words) else "empty word"

    def load_processor(self, source: str, revision: str, args: Any) -> Any:
        tokenizer = load_tokenizer(source, revision, args.max_length, default_length=MAX_LENGTH)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UserError(f"{source} has a slow tokenizer, which does not say where words begin; give a fast one.")
        if (
            getattr(tokenizer, "add_prefix_space", None) is False
        ):  # byte-level ones read words without a space otherwise
            length = tokenizer.model_max_length
            tokenizer = AutoTokenizer.from_pretrained(
                resolve_model(source), revision=revision, trust_remote_code=False, add_prefix_space=True
            )
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            tokenizer.model_max_length = length
        return tokenizer

    def prepare(self, dataset: datasets.Dataset, processor: Any, args: Any, fingerprint: str) -> datasets.Dataset:
        def tokenize(rows: dict[str, list]) -> dict[str, list]:
            windows = cut_windows(rows["words"], processor)
            columns = as_columns(windows)
            columns["row_id"] = [rows["row_id"][row] for row in columns.pop("row")]
            columns["labels"] = [
                [IGNORED if word < 0 else rows["tags"][window["row"]][word] for word in window["word_ids"]]
                for window in windows
            ]
            return columns

        key = {
            "rows": fingerprint,
            "tokenizer": hashlib.sha256(processor.backend_tokenizer.to_str().encode()).hexdigest(),
            "max_length": processor.model_max_length,
            "task": self.name,
            "transformers": transformers.__version__,
        }
        return map_cached(dataset, tokenize, key, description="Tokenizing")

    def describe_rows(self, rows: dict[str, datasets.Dataset], processor: Any, args: Any) -> dict[str, Any]:
        return describe_windows(rows)

    def build_collator(self, processor: Any, args: Any, augmentation: str) -> "WordCollator":
        return WordCollator(processor.pad_token_id)

    def adjust_config(self, config: Any, processor: Any, info: LabelInfo) -> None:
        config.num_labels = info.num_labels
        config.id2label, config.label2id = info.id2label, info.label2id
        widen_vocabulary(config, processor)
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = processor.pad_token_id

    def read_labels(self, config: Any) -> LabelInfo:
        names = tuple(config.id2label[index] for index in range(config.num_labels))
        return LabelInfo(self.name if read_scheme(names) else WORD_CLASSES, names)

    def sum_loss(self, outputs: Any, labels: torch.Tensor, problem_type: str, smoothing: float) -> torch.Tensor:
        logits = outputs["logits"][:, -labels.shape[1] :].float()  # [B, T, C]; virtual tokens come first
        return F.cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(),
            weight=self.weights_on(logits.device),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=smoothing,
        )

    def count_classes(self, rows: datasets.Dataset, info: LabelInfo) -> np.ndarray:
        labels = np.concatenate([np.asarray(row) for row in rows["labels"][:]])
        return np.bincount(labels[labels != IGNORED], minlength=info.num_labels)

    def reduce(self, logits: torch.Tensor | tuple, labels: torch.Tensor | None) -> torch.Tensor:
        """The most probable class of each token, [B, T]; without labels its probability as well, [B, T, 2]."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        if labels is None:
            return torch.stack([part.float() for part in logits.float().softmax(-1).max(-1)][::-1], dim=-1)
        return logits[:, -labels.shape[1] :].argmax(-1)

    def compute_metrics(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, float]:
        totals = sum_counts(self.describe_predictions(kept, rows, info))
        scores = score_counts(totals["num_matched"], totals["num_predicted"], totals["num_true"])
        prefix = "tag" if info.problem_type == WORD_CLASSES else "entity"
        named = {f"{prefix}_{name}": scores[name] for name in SPAN_SCORES}
        return named | {"word_accuracy": totals["num_correct"] / max(1, totals["num_words"])}

    def compute_report(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        """Scores of each kind too, and what always answering the most frequent tag would score."""
        documents = list(_merge(kept, rows, info))
        tags = Counter(tag for true, _ in documents for tag in true)
        chance = {"word_accuracy": max(tags.values(), default=0) / max(1, sum(tags.values()))}
        per_class = score_kinds(documents, read_scheme(info.names))
        return self.compute_metrics(kept, rows, info) | {"per_class": per_class, "most_frequent_tag": chance}

    def describe_predictions(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        """One row a document: its tags and predicted tags, and the counts that add up to the scores."""
        documents, scheme = list(_merge(kept, rows, info)), read_scheme(info.names)
        columns: dict[str, Any] = {"row_id": np.array(list(dict.fromkeys(rows["row_id"][:])), dtype=np.int64)}
        counts = np.array([count_document(*document, scheme) for document in documents]).reshape(-1, len(COUNTS))
        columns |= dict(zip(COUNTS, counts.T, strict=True))
        for name, place in (("tags", 0), ("predicted", 1)):
            columns[name] = [" ".join(document[place]) for document in documents]
        return columns

    def choose_inputs(self, features: datasets.Features, args: Any) -> dict[str, str]:
        name = choose_words(features, args)
        return {name: "words" if is_list(features[name]) else "text"}

    def encode(self, rows: dict[str, list], processor: Any, args: Any) -> dict[str, list]:
        if "words" in rows:
            texts, places = [None] * len(rows["words"]), [None] * len(rows["words"])
            words = [list(row) for row in rows["words"]]
        else:
            texts = rows["text"]
            places = [[match.span() for match in WORD.finditer(text)] for text in texts]
            words = [[text[slice(*place)] for place in row] for text, row in zip(texts, places, strict=True)]
        columns = as_columns(cut_windows(words, processor))
        for name, values in {"words": words, "places": places, "text": texts}.items():
            columns[name] = [values[row] for row in columns["row"]]
        return columns

    def decode(
        self, kept: list[np.ndarray], rows: dict[str, list], processor: Any, info: LabelInfo, options: AnswerOptions
    ) -> dict[str, list]:
        """`words`, `labels` and `probabilities`, a list a row, and `entities`, with characters for a text."""
        answers: dict[str, list] = {name: [] for name in ("words", "labels", "probabilities", "entities")}
        documents: dict[int, int] = {}
        for index, values in enumerate(kept):
            row = rows["row"][index]
            if row not in documents:
                documents[row] = index
                for name in ("labels", "probabilities"):
                    answers[name].append([None] * len(rows["words"][index]))
                answers["words"].append(rows["words"][index])
            for word, (number, probability) in zip(rows["word_ids"][index], values, strict=False):
                if word >= 0:
                    answers["labels"][-1][word] = info.names[int(number)]
                    answers["probabilities"][-1][word] = float(probability)
        scheme = read_scheme(info.names)
        for labels, index in zip(answers["labels"], documents.values(), strict=True):
            words, places, text = (rows[name][index] for name in ("words", "places", "text"))
            answers["entities"].append(_describe_entities(find_spans(labels, scheme), words, places, text))
        return answers


class WordCollator:
    """Pad a batch on the right.

    Returns:
        `input_ids`, `attention_mask` int64 [B, T]; `labels` [B, T] when the rows have them.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id
        self.multiple = 8 if torch.cuda.is_available() else 1  # tensor cores want multiples of 8

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        width = -(-max(len(row["input_ids"]) for row in rows) // self.multiple) * self.multiple

        def fill(values: list[list[int]], value: int) -> torch.Tensor:
            return torch.tensor([list(row) + [value] * (width - len(row)) for row in values])

        ids = [row["input_ids"] for row in rows]
        batch = {"input_ids": fill(ids, self.pad_token_id), "attention_mask": fill([[1] * len(r) for r in ids], 0)}
        if "labels" in rows[0]:
            batch["labels"] = fill([row["labels"] for row in rows], IGNORED)
        return batch


# --- tags


def _name_tags(splits: dict[str, datasets.Dataset]) -> LabelInfo:
    """Every tag of train, outside first, those of a scheme complete; and whether they are of one."""
    declared, written = list_tags(splits["train"])
    names = declared or tuple(map(clean_label, written))
    if len(set(names)) < 2:
        raise UserError(f"Train has one tag only ({', '.join(names) or 'none'}); at least two are needed.")
    scheme = read_scheme(names)
    if declared is None:
        names = _order_tags(set(names), scheme)
    if scheme is None:
        _say_no_scheme(names)
    else:
        logger.info("Tags are read as %s; scores are of entities.", scheme.name)
    spellings = find_joined({tag for rows in splits.values() for tag in list_tags(rows)[1]})
    return LabelInfo(TokenClassification.name if scheme else WORD_CLASSES, names, spellings)


def _order_tags(names: set[str], scheme: TagScheme | None) -> tuple[str, ...]:
    if scheme is not None:
        names |= scheme.complete()
        scheme = read_scheme(names)
        return tuple(sorted(names, key=lambda name: (name in scheme.parts, scheme.parts.get(name, " ")[1:], name)))
    if all(name.lstrip("-").isdigit() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names, key=lambda name: (not is_outside(name), name)))


def _say_no_scheme(names: Sequence[str]) -> None:
    if odd := odd_tags(names):
        logger.warning(
            "Most tags say where an entity begins, but %s do not: scores are of single words (tag_f1), not of "
            "entities. Correct those tags, or give all of them a role.",
            ", ".join(odd[:5]),
        )
    else:
        logger.info("Tags are classes of single words: scores are of words (tag_f1).")


def _warn_of_late_begins(rows: datasets.Dataset, split: str, info: LabelInfo) -> None:
    scheme = read_scheme(info.names)
    count = sum(scheme.begins_late([info.names[number] for number in row]) for row in rows["tags"]) if scheme else 0
    if count:
        logger.warning(
            "%s: %d entities begin without the tag of a begin (IOB1, or mistakes); each counts as one that begins.",
            split,
            count,
        )


def _merge(kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> Iterator[tuple[list[str], list[str]]]:
    """Tags and predicted tags of each document, word by word, from its windows."""
    documents: dict[int, dict[int, tuple[int, int]]] = {}
    table = rows.select_columns(["row_id", "labels", "word_ids"])
    for values, row in zip(kept, table, strict=True):
        words = documents.setdefault(row["row_id"], {})
        for word, label, value in zip(row["word_ids"], row["labels"], values, strict=False):
            if word >= 0:
                words[word] = label, int(value)
    for words in documents.values():
        pairs = [words[word] for word in sorted(words)]
        yield [info.names[label] for label, _ in pairs], [info.names[value] for _, value in pairs]


def _describe_entities(
    spans: list[tuple[str, int, int]], words: list[str], places: list[tuple[int, int]] | None, text: str | None
) -> list[dict[str, Any]]:
    found = []
    for kind, first, last in spans:
        entity = {"label": kind, "text": " ".join(words[first : last + 1]), "first_word": first, "last_word": last}
        if places is not None:
            start, end = places[first][0], places[last][1]
            entity |= {"text": text[start:end], "start": start, "end": end}
        found.append(entity)
    return found
