"""From what the user named to model inputs: splits, labels, audit, subsets, tokens or pixels."""

from dataclasses import dataclass, replace
from typing import Any

import datasets

from hftl.config import DataArguments
from hftl.data.audit import AuditReport, audit
from hftl.data.columns import choose_columns, standardize_columns
from hftl.data.labels import LabelInfo, build_labels, encode_labels
from hftl.data.load import compute_fingerprint, load_splits
from hftl.data.subsets import take_subsets
from hftl.tasks.base import Task


@dataclass(frozen=True)
class Examples:
    """The rows of one run: labels as numbers, inputs still as text or images."""

    splits: datasets.DatasetDict
    labels: LabelInfo
    audit: AuditReport
    fingerprints: dict[str, str]

    def describe(self, source: str) -> dict[str, Any]:
        """The `data` part of a run record."""
        sizes = {f"num_{split}_examples": len(rows) for split, rows in self.splits.items()}
        return {
            "source": source,
            "fingerprint": self.fingerprints["train"],
            "fingerprints": self.fingerprints,
            "problem_type": self.labels.problem_type,
            "label_names": list(self.labels.names),
            "audit": self.audit.as_dict(),
            **sizes,
        }


def load_examples(args: DataArguments, task: Task, seed: int) -> Examples:
    """Load, check and cut the rows. `seed` draws the training subset only: validation and test stay the same."""
    raw = load_splits(args)
    splits = standardize_columns(raw, choose_columns(raw, args, task.modality), task.modality)
    labels = build_labels(splits, args.problem_type, args.label_delimiter)
    splits = encode_labels(splits, labels, args.label_delimiter)
    bad_rows = {}
    if args.on_bad_rows == "skip":  # before the subsets, which would end up smaller than asked for otherwise
        splits, skipped = audit(splits, labels, task.modality, "skip")
        bad_rows = skipped.bad_rows
    splits = take_subsets(splits, args, seed, labels.names)
    splits, report = audit(splits, labels, task.modality, "error")
    report = replace(report, bad_rows=bad_rows or report.bad_rows)
    return Examples(splits, labels, report, {name: compute_fingerprint(rows) for name, rows in splits.items()})


def prepare_examples(
    examples: Examples, task: Task, processor: Any, args: DataArguments
) -> dict[str, datasets.Dataset]:
    """Model inputs of every split, computed once and cached."""
    return {
        name: task.prepare(rows, processor, args, examples.fingerprints[name])
        for name, rows in examples.splits.items()
    }


def describe_source(args: DataArguments) -> str:
    """What the user named, for the record."""
    return args.dataset or str(args.train_file)
