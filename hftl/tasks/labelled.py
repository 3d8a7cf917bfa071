"""What tasks share whose rows have one class, several classes or a number: reading, loss, scores, predictions."""

from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F

from hftl.data.columns import choose_columns, choose_inputs, read_whole_numbers, standardize_columns
from hftl.data.label_columns import join_label_columns, refuse_rejected
from hftl.data.labels import (
    MULTI,
    REGRESSION,
    SINGLE,
    LabelInfo,
    build_labels,
    encode_labels,
    keep_labels,
    read_label_texts,
)
from hftl.metrics import compute_metrics, compute_predictions, compute_probabilities, compute_report
from hftl.tasks.base import AnswerOptions, Task


def _binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    # Divided by rows x columns in the end, so that the loss of a row does not grow with their number.
    return F.binary_cross_entropy_with_logits(logits, labels * (1 - smoothing) + smoothing / 2, reduction="sum")


def _squared_error(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    return F.mse_loss(logits.squeeze(-1), labels, reduction="sum")


LOSSES = {MULTI: _binary_cross_entropy, REGRESSION: _squared_error}


class LabelledTask(Task):
    """Text or images with labels."""

    fits_head = True
    flags = ("class_weights",)
    has_baselines = True

    def read(self, raw: datasets.DatasetDict, args: Any) -> tuple[datasets.DatasetDict, LabelInfo]:
        splits = self._choose(raw, args, args.problem_type)
        if args.problem_type == SINGLE:  # 1.0 is how a table with gaps writes class 1
            splits = datasets.DatasetDict({split: read_whole_numbers(rows) for split, rows in splits.items()})
        if args.only_labels:
            splits = keep_labels(splits, args.only_labels)
        info = build_labels(splits, args.problem_type, args.label_delimiter)
        return encode_labels(splits, info, args.label_delimiter), info

    def read_known(self, rows: datasets.Dataset, args: Any, info: LabelInfo) -> datasets.Dataset:
        rows = self._choose(datasets.DatasetDict(train=rows), args, info.problem_type)["train"]
        rows = rows if info.problem_type == REGRESSION else read_whole_numbers(rows)
        if args.only_labels:  # as in training: rows of other classes are no part of what was asked
            rows = keep_labels(datasets.DatasetDict(evaluated=rows), args.only_labels)["evaluated"]
        name = "the new data"
        return encode_labels(datasets.DatasetDict({name: rows}), info, args.label_delimiter)[name]

    def _choose(self, raw: datasets.DatasetDict, args: Any, problem_type: str | None) -> datasets.DatasetDict:
        """Canonical columns, the label one value or one list a row."""
        raw, args = join_label_columns(raw, args, problem_type)
        columns = choose_columns(raw, args, self.modality)
        refuse_rejected(raw, columns.label)
        splits = standardize_columns(raw, columns, self.modality, args)
        return read_label_texts(splits, problem_type)

    def choose_inputs(self, features: datasets.Features, args: Any) -> dict[str, str]:
        names = ("image",) if self.modality == "image" else ("text", "text_pair")
        return dict(zip(choose_inputs(features, args, self.modality), names, strict=False))

    def read_labels(self, config: Any) -> LabelInfo:
        kind = config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE)
        return LabelInfo(kind, tuple(config.id2label[index] for index in range(config.num_labels)))

    def count_outputs(self, info: LabelInfo) -> int:
        return info.num_labels

    def adjust_config(self, config: Any, processor: Any, info: LabelInfo) -> None:
        config.num_labels = info.num_labels
        config.id2label, config.label2id = info.id2label, info.label2id
        config.problem_type = info.problem_type

    def sum_loss(self, outputs: Any, labels: torch.Tensor, problem_type: str, smoothing: float) -> torch.Tensor:
        logits = outputs["logits"].float()  # [B, C]
        if problem_type != SINGLE:
            return LOSSES[problem_type](logits, labels, smoothing)
        weight = self.weights_on(logits.device)
        return F.cross_entropy(logits, labels, weight=weight, reduction="sum", label_smoothing=smoothing)

    def count_classes(self, rows: datasets.Dataset, info: LabelInfo) -> np.ndarray | None:
        if info.problem_type != SINGLE:
            return None
        return np.bincount(np.asarray(rows["labels"][:]), minlength=info.num_labels)

    def reduce(self, logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
        """The logits alone: some heads also return hidden states, which would fill the memory in evaluation."""
        return logits[0] if isinstance(logits, tuple) else logits

    def compute_metrics(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, float]:
        return compute_metrics(kept, np.asarray(rows["labels"][:]), info.problem_type, info.names)

    def compute_report(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        """Every metric of the problem type, per class too."""
        return compute_report(kept, np.asarray(rows["labels"][:]), info.problem_type, info.names)

    def describe_predictions(self, kept: np.ndarray, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
        probabilities = None if info.problem_type == REGRESSION else compute_probabilities(kept, info.problem_type)
        predictions = compute_predictions(kept, info.problem_type)
        return label_columns(rows["row_id"][:], np.asarray(rows["labels"][:]), predictions, probabilities)

    def decode(
        self, kept: list[np.ndarray], rows: dict[str, list], processor: Any, info: LabelInfo, options: AnswerOptions
    ) -> dict[str, list]:
        logits = np.stack(kept) if kept else np.empty((0, info.num_labels))
        values = compute_probabilities(logits, info.problem_type)  # [N, C], of a regression [N]
        if info.problem_type == REGRESSION:
            return {"value": values.tolist()}
        order = np.argsort(-values, axis=1, kind="stable")  # [N, C]
        if info.problem_type == MULTI:
            chosen = [
                [place for place in row if p[place] >= options.threshold] for row, p in zip(order, values, strict=True)
            ]
            return {
                "labels": [[info.names[place] for place in row] for row in chosen],
                "probabilities": [p[row].tolist() for row, p in zip(chosen, values, strict=True)],
            }
        columns = {}
        for rank in range(min(options.top_k, info.num_labels)):
            suffix = f"_{rank + 1}" if rank else ""
            columns[f"label{suffix}"] = [info.names[place] for place in order[:, rank]]
            columns[f"probability{suffix}"] = np.take_along_axis(values, order, 1)[:, rank].tolist()
        return columns


def label_columns(
    row_ids: Any, labels: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray | None
) -> dict[str, Any]:
    """The columns of `predictions.parquet`.

    Args:
        row_ids: [N] position of the example in its split as loaded.
        labels: [N] or, multi-label, [N, C].
        predictions: like `labels`.
        probabilities: [N, C] in the order of the label names; None for regression, and then not a column.
    """
    columns = {"row_id": np.asarray(row_ids, dtype=np.int64), "label": labels, "prediction": predictions}
    return columns if probabilities is None else columns | {"probabilities": np.asarray(probabilities, np.float32)}
