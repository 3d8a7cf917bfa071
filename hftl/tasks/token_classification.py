"""Token classification: one tag for each word of a text, such as its part of speech, or where a name begins (IOB).

A word is answered at its first subword. A text that is longer than the network reads is cut into windows that overlap,
and each of its words counts in one of them, the one that shows most of what stands around it.
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hftl.assets import resolve_model
from hftl.data.labels import IGNORED, LabelInfo
from hftl.errors import UserError, unknown_name
from hftl.metrics.base import Score
from hftl.metrics.spread import linearize
from hftl.tasks.base import AnswerOptions, Task
from hftl.tasks.processors import describe_windows, load_tokenizer, map_cached, widen_vocabulary

logger = logging.getLogger(__name__)

MAX_LENGTH = 512  # tokens of a window
OVERLAP = 0.25  # of a window, shared with the one before
WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("tags", "ner_tags", "pos_tags", "labels", "label")
OUTSIDE = "O"
WORD = re.compile(r"\w+(?:[-'’.]\w+)*|[^\w\s]")  # of a text: words, and punctuation by itself


class TokenClassification(Task):
    name = "token-classification"
    modality = "text"
    auto_model = "AutoModelForTokenClassification"
    peft_task_type = "TOKEN_CLS"
    pipeline_tag = "token-classification"
    modes = ("full", "peft", "scratch")
    flags = ("class_weights",)
    targets = ("words", "tags")  # the text of `words` is what is read
    scores = {
        "entity_f1": Score(by_row=lambda t: linearize(2 * t["num_matched"], t["num_predicted"] + t["num_true"])),
        "entity_precision": Score(by_row=lambda t: linearize(t["num_matched"], t["num_predicted"])),
        "entity_recall": Score(by_row=lambda t: linearize(t["num_matched"], t["num_true"])),
        "word_accuracy": Score(by_row=lambda t: linearize(t["num_correct"], t["num_words"])),
    }
    snippet = """from transformers import pipeline

tag = pipeline("token-classification", model=model, tokenizer=processor, aggregation_strategy="first")
print(tag({example}))"""

    def read(self, raw: datasets.DatasetDict, args: Any) -> tuple[datasets.DatasetDict, LabelInfo]:
        for flag in ("problem_type", "only_labels", "num_train_examples_per_class"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag} is about rows with one label; --task {self.name} has one for each word.")
        splits = {split: _read_rows(rows, split, args) for split, rows in raw.items()}
        info = LabelInfo(self.name, _name_tags(splits["train"]))
        return datasets.DatasetDict({s: _number_tags(rows, s, info) for s, rows in splits.items()}), info

    def read_known(self, rows: datasets.Dataset, args: Any, info: LabelInfo) -> datasets.Dataset:
        return _number_tags(_read_rows(rows, "the new data", args), "the new data", info)

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
            columns = _as_columns(windows)
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
        return LabelInfo(self.name, tuple(config.id2label[index] for index in range(config.num_labels)))

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
        table = self.describe_predictions(kept, rows, info)
        totals = {name: int(np.sum(table[name])) for name in _COUNTS}
        scores = _score(totals["num_matched"], totals["num_predicted"], totals["num_true"])
        named = {f"entity_{name}": scores[name] for name in ("f1", "precision", "recall")}
        return named | {"word_accuracy": totals["num_correct"] / max(1, totals["num_words"])}

    def compute_report(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        """Scores of each type too, and what always answering the most frequent tag would score."""
        documents = list(_merge(kept, rows))
        truths, found, matched = Counter(), Counter(), Counter()
        for labels, predictions in documents:
            true, predicted = (_find_spans(numbers, info) for numbers in (labels, predictions))
            for counter, spans in ((truths, true), (found, predicted), (matched, true & predicted)):
                counter.update(kind for kind, *_ in spans)
        per_class = {
            kind: _score(matched[kind], found[kind], truths[kind]) | {"support": truths[kind]}
            for kind in sorted({*truths, *found})
        }
        tags = Counter(label for labels, _ in documents for label in labels)
        chance = {"word_accuracy": max(tags.values(), default=0) / max(1, sum(tags.values()))}
        return self.compute_metrics(kept, rows, info) | {"per_class": per_class, "most_frequent_tag": chance}

    def describe_predictions(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        """One row a document: its tags and predicted tags, and the counts that add up to the scores."""
        documents = list(_merge(kept, rows))
        columns: dict[str, Any] = {"row_id": np.array(list(dict.fromkeys(rows["row_id"][:])), dtype=np.int64)}
        counts = np.array([_count(labels, found, info) for labels, found in documents]).reshape(-1, len(_COUNTS))
        columns |= dict(zip(_COUNTS, counts.T, strict=True))
        for name, rows_of in (("tags", 0), ("predicted", 1)):
            columns[name] = [" ".join(info.names[n] for n in document[rows_of]) for document in documents]
        return columns

    def choose_inputs(self, features: datasets.Features, args: Any) -> dict[str, str]:
        given = args.text_columns[0] if args.text_columns else None
        name = given if given in features else next((n for n in (*WORD_COLUMNS, "text") if n in features), None)
        if name is None:
            raise UserError(
                f"Among the columns {', '.join(features)} none is tokens, words or text; name it with --text_columns."
            )
        return {name: "words" if _is_list(features[name]) else "text"}

    def encode(self, rows: dict[str, list], processor: Any, args: Any) -> dict[str, list]:
        if "words" in rows:
            texts, places = [None] * len(rows["words"]), [None] * len(rows["words"])
            words = [list(row) for row in rows["words"]]
        else:
            texts = rows["text"]
            places = [[match.span() for match in WORD.finditer(text)] for text in texts]
            words = [[text[slice(*place)] for place in row] for text, row in zip(texts, places, strict=True)]
        columns = _as_columns(cut_windows(words, processor))
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
        for labels, index in zip(answers["labels"], documents.values(), strict=True):
            answers["entities"].append(
                _describe_entities(labels, rows["words"][index], rows["places"][index], rows["text"][index])
            )
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


# --- windows


def cut_windows(documents: Sequence[Sequence[str]], tokenizer: Any) -> list[dict[str, Any]]:
    """Model inputs of documents: `row` (which document), `input_ids`, `length`, and for each token in `word_ids` the
    word that is answered there, or -1. Every word is answered once."""
    size = tokenizer.model_max_length
    room = size - tokenizer.num_special_tokens_to_add()
    overlap = int(OVERLAP * room)
    words = [[_readable(word, tokenizer) for word in row] for row in documents]
    encoded = tokenizer(
        words,
        is_split_into_words=True,
        truncation=True,
        max_length=size,
        stride=overlap,
        return_overflowing_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    windows = []
    for index, row in enumerate(encoded["overflow_to_sample_mapping"]):
        ids = encoded["input_ids"][index]
        windows.append({"row": row, "input_ids": ids, "length": len(ids), "word_ids": encoded.word_ids(index)})
    seen: dict[tuple[int, int], list[tuple[int, int, int]]] = {}  # (row, word) -> (context, window, position)
    for index, window in enumerate(windows):
        for position, word in _first_subwords(window["word_ids"]):
            is_start = index == 0 or windows[index - 1]["row"] != window["row"]
            before = size if is_start else position
            is_end = index + 1 == len(windows) or windows[index + 1]["row"] != window["row"]
            after = size if is_end else window["length"] - position
            seen.setdefault((window["row"], word), []).append((min(before, after), index, position))
    for window in windows:
        window["word_ids"] = [-1] * window["length"]
    for (_, word), places in seen.items():
        _, index, position = max(places, key=lambda place: (place[0], -place[1]))
        windows[index]["word_ids"][position] = word
    return windows


def _first_subwords(word_ids: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """Position and number of each word that begins here; what a window begins with may be the rest of a word."""
    previous = None
    for position, word in enumerate(word_ids):
        if word is not None and word != previous:
            yield position, word
        previous = word


def _readable(word: str, tokenizer: Any) -> str:
    """The word, or the unknown token for one that the tokenizer makes nothing of, such as a control character."""
    if word.isalnum() or tokenizer.tokenize(word):
        return word
    return tokenizer.unk_token or "?"


def _as_columns(windows: list[dict[str, Any]]) -> dict[str, list]:
    return {name: [w[name] for w in windows] for name in ("row", "input_ids", "length", "word_ids")}


# --- tags


def _read_rows(rows: datasets.Dataset, split: str, args: Any) -> datasets.Dataset:
    """`row_id`, `text`, `words` and, as they are, `tags`.

    Raises:
        UserError: no such columns, one that is no list, or words and tags that differ in number.
    """
    features = rows.features
    given = args.text_columns[0] if args.text_columns else None
    words, tags = (
        _choose(features, given, WORD_COLUMNS, "--text_columns"),
        _choose(features, args.label_column, TAG_COLUMNS, "--label_column"),
    )
    for name in (words, tags):
        if not _is_list(features[name]):
            raise UserError(
                f"The column {name!r} of {split} holds {getattr(features[name], 'dtype', features[name])}, no list. "
                "token-classification needs a list of words and a list with one tag for each word; is it data for "
                "text-classification?"
            )
    element = features[tags].feature
    found = [[("" if word is None else str(word)) for word in row or []] for row in rows[words][:]]
    marks = [row or [] for row in rows[tags][:]]
    for index, (row, marked) in enumerate(zip(found, marks, strict=True)):
        if len(row) != len(marked):
            raise UserError(f"{split} row {index} has {len(row)} words and {len(marked)} tags; give each word one.")
        if None in marked:
            raise UserError(f"{split} row {index}: the word {row[marked.index(None)]!r} has no tag.")
    if isinstance(element, datasets.ClassLabel):
        marks = [[element.int2str(mark) for mark in row] for row in marks]
    table = datasets.Dataset.from_dict(
        {
            "row_id": list(range(len(found))),
            "text": [" ".join(row) for row in found],
            "words": found,
            "tags": [[str(mark) for mark in row] for row in marks],
        }
    )
    table.info.description = "\n".join(element.names) if isinstance(element, datasets.ClassLabel) else ""
    return table


def _name_tags(rows: datasets.Dataset) -> tuple[str, ...]:
    """Every tag of train, O first, those of IOB complete: who has seen B-LOC knows I-LOC."""
    if rows.info.description:
        return tuple(rows.info.description.split("\n"))
    names = {tag for row in rows["tags"] for tag in row}
    if len(names) < 2:
        raise UserError(f"Train has one tag only ({', '.join(names) or 'none'}); at least two are needed.")
    if all(name.lstrip("-").isdigit() for name in names):
        return tuple(sorted(names, key=int))
    if _has_spans(names):
        kinds = {name[2:] for name in names - {OUTSIDE}}
        prefixes = "BIES" if {name[0] for name in names} & set("ES") else "BI"
        names |= {f"{prefix}-{kind}" for kind in kinds for prefix in prefixes}
    return tuple(sorted(names, key=lambda name: (name != OUTSIDE, name[2:] if name[1:2] == "-" else name, name)))


def _number_tags(rows: datasets.Dataset, split: str, info: LabelInfo) -> datasets.Dataset:
    numbers, num_odd = [], 0
    for index, row in enumerate(rows["tags"]):
        if unknown := [tag for tag in row if tag not in info.label2id]:
            place = row.index(unknown[0])
            raise UserError(
                f"{split} row {index}: the tag {unknown[0]!r} of {rows[index]['words'][place]!r} is not among "
                f"those of train ({', '.join(info.names[:20])}). Correct it, or add rows with it to train."
            )
        numbers.append([info.label2id[tag] for tag in row])
        num_odd += sum(
            tag[:2] == "I-" and before[2:] != tag[2:] for before, tag in zip([OUTSIDE, *row], row, strict=False)
        )
    if num_odd and _has_spans(info.names):
        logger.warning(
            "%s: %d entities begin with I- (IOB1, or mistakes); each counts as one that begins.", split, num_odd
        )
    feature = datasets.List(datasets.Value("int64"))
    return rows.remove_columns("tags").add_column("tags", numbers, feature=feature)


def _has_spans(names: Iterable[str]) -> bool:
    """Whether the names are those of IOB or IOBES."""
    others = [name for name in names if name != OUTSIDE]
    return bool(others) and all(name[:2] in ("B-", "I-", "E-", "S-") and len(name) > 2 for name in others)


def _read_iob(tags: list[str]) -> list[tuple[str, int, int]]:
    """Type, first and last word of each entity."""
    from seqeval.metrics.sequence_labeling import get_entities  # and with it scikit-learn

    return get_entities(tags)


def _find_spans(numbers: Sequence[int], info: LabelInfo) -> set[tuple[str, int, int]]:
    """Type, first and last word of each entity; without IOB every word that is not O is one."""
    tags = [info.names[number] for number in numbers]
    if _has_spans(info.names):
        return set(_read_iob(tags))
    return {(tag, place, place) for place, tag in enumerate(tags) if tag != OUTSIDE}


_COUNTS = ("num_words", "num_correct", "num_true", "num_predicted", "num_matched")


def _count(labels: list[int], found: list[int], info: LabelInfo) -> tuple[int, ...]:
    true, predicted = _find_spans(labels, info), _find_spans(found, info)
    correct = sum(a == b for a, b in zip(labels, found, strict=True))
    return len(labels), correct, len(true), len(predicted), len(true & predicted)


def _score(matched: int, predicted: int, true: int) -> dict[str, float]:
    precision, recall = matched / predicted if predicted else 0.0, matched / true if true else 0.0
    return {"precision": precision, "recall": recall, "f1": 2 * matched / (predicted + true) if matched else 0.0}


def _merge(kept: np.ndarray, rows: datasets.Dataset) -> Iterator[tuple[list[int], list[int]]]:
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
        yield [label for label, _ in pairs], [value for _, value in pairs]


def _describe_entities(
    labels: list[str], words: list[str], places: list[tuple[int, int]] | None, text: str | None
) -> list[dict[str, Any]]:
    if _has_spans(set(labels)):
        spans = _read_iob(labels)
    else:
        spans = [(label, place, place) for place, label in enumerate(labels) if label != OUTSIDE]
    found = []
    for kind, first, last in spans:
        entity = {"label": kind, "text": " ".join(words[first : last + 1]), "first_word": first, "last_word": last}
        if places is not None:
            start, end = places[first][0], places[last][1]
            entity |= {"text": text[start:end], "start": start, "end": end}
        found.append(entity)
    return found


def _choose(features: datasets.Features, given: str | None, known: Sequence[str], flag: str) -> str:
    if given is not None:
        if given not in features:
            raise unknown_name("column", given, features, f"Correct {flag}.")
        return given
    found = [name for name in known if name in features]
    if len(found) != 1:
        reason = f"several could be meant ({', '.join(found)})" if found else f"none is called {' or '.join(known)}"
        raise UserError(f"Among the columns {', '.join(features)} {reason}; say which with `{flag} X`.")
    return found[0]


def _is_list(feature: Any) -> bool:
    return isinstance(feature, (datasets.List, datasets.LargeList))
