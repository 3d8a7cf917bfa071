"""Question answering: the words of a context that answer a question, or none.

A long context is read in windows that overlap; each answers for the characters that it shows, and the best answer of a
question over its windows is its answer. Where questions without an answer were learnt from, "none" is an answer like
any other (threshold 0, as SQuAD 2.0 is scored).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import PreTrainedTokenizerFast

from hftl.data.faults import leave_out
from hftl.data.labels import LabelInfo
from hftl.data.spans import choose_question, find_fault, standardize_questions
from hftl.errors import UserError
from hftl.metrics.base import Score
from hftl.metrics.squad import score_answers
from hftl.tasks.base import FILL, AnswerOptions, Task
from hftl.tasks.processors import describe_windows, load_tokenizer, map_cached, widen_vocabulary

MAX_LENGTH = 384  # tokens of question and window (Devlin et al. 2019 and the scripts of transformers)
OVERLAP = 1 / 3  # of a window, shared with the one before: 128 of 384
MIN_ROOM = 16  # tokens of a window, below which a question leaves too little of the context
NUM_BEST = 20  # starts and ends of a window that are looked at
MAX_ANSWER_TOKENS = 30
OUTSIDE = -1  # of a token that is no part of the context
SHIFTS = "its virtual tokens stand in front of the text, so that every answer would be looked for too late"
ANSWER, NO_ANSWER = "answer", "no answer"
_COLUMNS = ("row", "input_ids", "token_type_ids", "begins", "ends", "length")


class Span(NamedTuple):
    """A part of a context, by characters, and the sum of the two logits that speak for it."""

    score: float
    start: int
    end: int


class QuestionAnswering(Task):
    name = "question-answering"
    modality = "text"
    auto_model = "AutoModelForQuestionAnswering"
    peft_task_type = "QUESTION_ANS"
    refused_adapters = dict.fromkeys(("prompt", "p-tuning"), SHIFTS)
    pipeline_tag = "question-answering"
    modes = ("full", "peft", "scratch")
    targets = ("answers", "starts")
    outputs = ("start_logits", "end_logits")
    eval_batch_size = 32
    scores = {
        "f1": Score(by_row=lambda table: np.asarray(table["f1"], dtype=float)),
        "exact_match": Score(by_row=lambda table: np.asarray(table["exact_match"], dtype=float)),
    }
    snippet = """question, context = {example}
inputs = processor(question, context, return_offsets_mapping=True, return_tensors="pt")
places = inputs.pop("offset_mapping")[0]
outputs = model(**inputs)
first, last = outputs.start_logits.argmax(), outputs.end_logits.argmax()
print(context[places[first][0] : places[last][1]])"""

    def read(self, raw: datasets.DatasetDict, args: Any) -> tuple[datasets.DatasetDict, LabelInfo]:
        for flag in ("problem_type", "only_labels", "num_train_examples_per_class"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag} is about rows with one label; --task {self.name} has answers.")
        splits = standardize_questions(raw, args)
        train = splits["train"]
        faults = train["fault"][:] if "fault" in train.column_names else [None] * len(train)
        has_none = any(not found and not fault for found, fault in zip(train["answers"][:], faults, strict=True))
        names = (ANSWER, NO_ANSWER) if has_none else (ANSWER,)
        return splits, LabelInfo(self.name, names)

    def read_known(self, rows: datasets.Dataset, args: Any, info: LabelInfo) -> datasets.Dataset:
        return standardize_questions(datasets.DatasetDict(train=rows), args)["train"]

    def read_labels(self, config: Any) -> LabelInfo:
        return LabelInfo(self.name, (ANSWER,))

    def find_faults(self, rows: datasets.Dataset, info: LabelInfo) -> Iterable[str | None]:
        columns = (rows[name][:] for name in ("answers", "starts", "text_pair"))
        return [find_fault(*row) for row in zip(*columns, strict=True)]

    def load_processor(self, source: str, revision: str, args: Any) -> Any:
        tokenizer = load_tokenizer(source, revision, args.max_length, default_length=MAX_LENGTH)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UserError(f"{source} has a slow tokenizer, which does not say where tokens stand; give a fast one.")
        tokenizer.padding_side = "right"
        return tokenizer

    def adjust_config(self, config: Any, processor: Any, info: LabelInfo) -> None:
        widen_vocabulary(config, processor)
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = processor.pad_token_id

    def prepare(self, dataset: datasets.Dataset, processor: Any, args: Any, fingerprint: str) -> datasets.Dataset:
        dataset = leave_out(dataset, find_long_questions(dataset["text"][:], processor), args.on_bad_rows)

        def tokenize(rows: dict[str, list]) -> dict[str, list]:
            columns = cut_windows(rows["text"], rows["text_pair"], processor)
            seen: set[int] = set()
            new: dict[str, list] = {name: [] for name in ("row_id", "labels", "context", "answers")}
            for index, row in enumerate(columns["row"]):
                answers, starts = rows["answers"][row], rows["starts"][row]
                span = (starts[0], starts[0] + len(answers[0])) if answers else None
                new["labels"].append(mark_answer(span, columns["begins"][index], columns["ends"][index]))
                new["row_id"].append(rows["row_id"][row])
                new["context"].append(None if row in seen else rows["text_pair"][row])  # once, however many windows
                new["answers"].append(None if row in seen else answers)
                seen.add(row)
            return {name: values for name, values in columns.items() if name != "row"} | new

        key = {
            "rows": fingerprint,
            "tokenizer": hashlib.sha256(processor.backend_tokenizer.to_str().encode()).hexdigest(),
            "max_length": processor.model_max_length,
            "segments": "token_type_ids" in processor.model_input_names,
            "task": self.name,
            "transformers": transformers.__version__,
        }
        return map_cached(dataset, tokenize, key, description="Tokenizing")

    def describe_rows(self, rows: dict[str, datasets.Dataset], processor: Any, args: Any) -> dict[str, Any]:
        return describe_windows(rows)

    def build_collator(self, processor: Any, args: Any, augmentation: str) -> "SpanCollator":
        return SpanCollator(processor)

    def sum_loss(self, outputs: Any, labels: torch.Tensor, problem_type: str, smoothing: float) -> torch.Tensor:
        """Of start and end, `labels` [B, 2]; each counts as one label, so that their mean is the usual loss."""
        return sum(
            F.cross_entropy(outputs[name].float(), places, reduction="sum", label_smoothing=smoothing)
            for name, places in zip(self.outputs, labels.unbind(1), strict=True)
        )

    def reduce(self, logits: torch.Tensor | tuple, labels: torch.Tensor | None) -> torch.Tensor:
        """Of each window the best starts and ends, their logits, and the logit of no answer, [B, 4 * NUM_BEST + 1]."""
        starts, ends = logits[0].float(), logits[1].float()
        parts = [part for values in (starts, ends) for part in _find_best(values)]
        return torch.cat([*parts, (starts[:, 0] + ends[:, 0]).unsqueeze(1)], dim=1)

    def compute_metrics(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, float]:
        table = self.describe_predictions(kept, rows, info)
        return {name: float(table[name].mean()) for name in self.scores}

    def compute_report(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        """The scores of questions with an answer and of those without as well."""
        table = self.describe_predictions(kept, rows, info)
        has_answer = np.array([bool(answer) for answer in table["true_answer"]])
        per_class = {
            kind: {name: float(table[name][chosen].mean()) for name in self.scores} | {"support": int(chosen.sum())}
            for kind, chosen in ((ANSWER, has_answer), (NO_ANSWER, ~has_answer))
            if chosen.any()
        }
        return {name: float(table[name].mean()) for name in self.scores} | {"per_class": per_class}

    def describe_predictions(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        columns = {name: rows[name][:] for name in ("row_id", "begins", "ends", "context", "answers")}
        row_ids, contexts, truths, found = [], [], [], []
        for windows in _group(columns["row_id"]):
            first = next(index for index in windows if columns["context"][index] is not None)
            spans = _rank([kept[i] for i in windows], *_pick(columns, windows), has_none=NO_ANSWER in info.names)
            row_ids.append(columns["row_id"][first])
            contexts.append(columns["context"][first])
            truths.append(columns["answers"][first])
            found.append(spans[0])
        texts = [context[span.start : span.end] for context, span in zip(contexts, found, strict=True)]
        table = {"row_id": np.array(row_ids, dtype=np.int64), "predicted": np.array(texts, dtype=object)}
        table["true_answer"] = np.array([truth[0] if truth else "" for truth in truths], dtype=object)
        return table | {"score": np.array([span.score for span in found])} | score_answers(texts, truths)

    def choose_inputs(self, features: datasets.Features, args: Any) -> dict[str, str]:
        return choose_question(features, args.text_columns)

    def find_unanswerable(self, rows: dict[str, list], processor: Any, args: Any) -> list[str | None]:
        return find_long_questions(rows["text"], processor)

    def encode(self, rows: dict[str, list], processor: Any, args: Any) -> dict[str, list]:
        columns = cut_windows(rows["text"], rows["text_pair"], processor)
        return columns | {"context": [rows["text_pair"][row] for row in columns["row"]]}

    def decode(
        self, kept: list[np.ndarray], rows: dict[str, list], processor: Any, info: LabelInfo, options: AnswerOptions
    ) -> dict[str, list]:
        """`answer` (empty: none), its `score`, and the characters from `start` to `end`; then `answer_2` and so on."""
        names = ("answer", "score", "start", "end")
        answers: dict[str, list] = {
            name if rank == 0 else f"{name}_{rank + 1}": [] for rank in range(options.top_k) for name in names
        }
        for windows in _group(rows["row"]):
            spans = _rank([kept[i] for i in windows], *_pick(rows, windows), has_none=NO_ANSWER in info.names)
            context = rows["context"][windows[0]]
            spans += [None] * (options.top_k - len(spans))
            values = [
                value
                for span in spans[: options.top_k]
                for value in ((None,) * 4 if span is None else (context[span.start : span.end], *span))
            ]
            for column, value in zip(answers.values(), values, strict=True):
                column.append(value)
        return answers


# --- windows


def find_long_questions(questions: Sequence[str], tokenizer: Any) -> list[str | None]:
    """Which questions leave next to no room for their context, and what to do; None for the others."""
    size = tokenizer.model_max_length
    room = size - tokenizer.num_special_tokens_to_add(pair=True)
    lengths = [len(ids) for ids in tokenizer(list(questions), add_special_tokens=False).input_ids]
    return [
        f"a question of {length} tokens, which leaves less than {MIN_ROOM} of {size} for its context; give "
        f"--max_length {length + MIN_ROOM + size - room} or more, or shorten it"
        if length > room - MIN_ROOM
        else None
        for length in lengths
    ]


def cut_windows(questions: Sequence[str], contexts: Sequence[str], tokenizer: Any) -> dict[str, list]:
    """Model inputs: which `row` each window is of, and for each token the characters that it stands for, or -1."""
    size = tokenizer.model_max_length
    room = size - tokenizer.num_special_tokens_to_add(pair=True)
    lengths = [len(ids) for ids in tokenizer(list(questions), add_special_tokens=False).input_ids]
    encoded = tokenizer(
        list(questions),
        list(contexts),
        truncation="only_second",
        max_length=size,
        stride=min(int(OVERLAP * size), (room - max(lengths)) // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    columns: dict[str, list] = {name: [] for name in _COLUMNS}
    for index, row in enumerate(encoded["overflow_to_sample_mapping"]):
        is_context = [part == 1 for part in encoded.sequence_ids(index)]
        places = encoded["offset_mapping"][index]
        columns["row"].append(row)
        columns["input_ids"].append(encoded["input_ids"][index])
        columns["token_type_ids"].append(encoded["token_type_ids"][index])
        for name, side in (("begins", 0), ("ends", 1)):
            column = [place[side] if inside else OUTSIDE for place, inside in zip(places, is_context, strict=True)]
            columns[name].append(column)
        columns["length"].append(len(places))
    return columns


def mark_answer(span: tuple[int, int] | None, begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """First and last token of the answer in a window, [2]; both 0, the first token, where it is not all there."""
    if span is None:
        return [0, 0]
    inside = [i for i, begin in enumerate(begins) if begin != OUTSIDE and begin < span[1] and ends[i] > span[0]]
    is_whole = inside and begins[inside[0]] <= span[0] and ends[inside[-1]] >= span[1]
    return [inside[0], inside[-1]] if is_whole else [0, 0]


class SpanCollator:
    """Pad a batch on the right.

    Returns:
        `input_ids`, `attention_mask`, `token_type_ids` where the network reads them, int64 [B, T]; `labels` [B, 2]
        when the rows have them.
    """

    def __init__(self, processor: Any) -> None:
        self.pad_token_id, self.pad_segment = processor.pad_token_id, processor.pad_token_type_id
        self.has_segments = "token_type_ids" in processor.model_input_names
        self.multiple = 8 if torch.cuda.is_available() else 1  # tensor cores want multiples of 8

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        width = -(-max(len(row["input_ids"]) for row in rows) // self.multiple) * self.multiple

        def fill(values: Iterable[Sequence[int]], value: int) -> torch.Tensor:
            return torch.tensor([list(row) + [value] * (width - len(row)) for row in values])

        batch = {
            "input_ids": fill((row["input_ids"] for row in rows), self.pad_token_id),
            "attention_mask": fill(([1] * len(row["input_ids"]) for row in rows), 0),
        }
        if self.has_segments:
            batch["token_type_ids"] = fill((row["token_type_ids"] for row in rows), self.pad_segment)
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch


# --- answers


def _find_best(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers and logits of the best tokens, both [B, NUM_BEST]; filled where a window has fewer."""
    best = logits.topk(min(NUM_BEST, logits.shape[1]), dim=1)
    gap = (0, NUM_BEST - best.values.shape[1])
    return F.pad(best.indices.float(), gap, value=FILL), F.pad(best.values, gap, value=FILL)


def _group(rows: Iterable[int]) -> Iterator[list[int]]:
    """The windows of each row, in the order of the rows' first windows."""
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row, []).append(index)
    yield from groups.values()


def _pick(columns: dict[str, list], windows: list[int]) -> tuple[list[Any], list[Any]]:
    return [columns["begins"][i] for i in windows], [columns["ends"][i] for i in windows]


def _rank(
    kept: Sequence[np.ndarray], begins: Sequence[Sequence[int]], ends: Sequence[Sequence[int]], *, has_none: bool
) -> list[Span]:
    """The answers of one question over its windows, the best first; (0, 0) is none. Never empty."""
    spans: dict[tuple[int, int], float] = {}
    for window, begin, end in zip(kept, begins, ends, strict=True):
        for span in _list_spans(np.asarray(window), begin, end):
            spans[span.start, span.end] = max(span.score, spans.get((span.start, span.end), -np.inf))
    none = min(float(window[-1]) for window in kept)  # a window without the answer says none, too
    if has_none or not spans:
        spans[0, 0] = none
    found = (Span(score, *place) for place, score in spans.items())
    return sorted(found, key=lambda span: (-span.score, span.start, span.end))


def _list_spans(window: np.ndarray, begins: Sequence[int], ends: Sequence[int]) -> Iterator[Span]:
    starts, start_logits, stops, stop_logits = window[:-1].reshape(4, NUM_BEST)
    for start, first in zip(starts.astype(int), start_logits, strict=True):
        if start < 0 or start >= len(begins) or begins[start] == OUTSIDE:
            continue
        for stop, second in zip(stops.astype(int), stop_logits, strict=True):
            if start <= stop < min(len(ends), start + MAX_ANSWER_TOKENS) and ends[stop] != OUTSIDE:
                yield Span(float(first + second), begins[start], ends[stop])
