"""From what the user named to model inputs: splits, labels, audit, subsets, tokens or pixels."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm

from hftl.config import DataArguments
from hftl.data.audit import AuditReport, audit
from hftl.data.faults import BadRows
from hftl.data.findings import Finding, act_on, find_cut_texts, find_small_test, parse_policies
from hftl.data.folders import list_files
from hftl.data.labels import SINGLE, LabelInfo
from hftl.data.load import compute_fingerprint, find_empty, load_splits
from hftl.data.subsets import take_subsets
from hftl.errors import UserError, quote_names, unknown_name
from hftl.metrics.power import EXPECTED_DISAGREEMENT, minimum_detectable_difference
from hftl.tasks import build_task
from hftl.tasks.base import Task


@dataclass(frozen=True)
class Examples:
    """The rows of one run: labels as numbers, inputs still as text or images."""

    splits: datasets.DatasetDict
    labels: LabelInfo
    audit: AuditReport
    fingerprints: dict[str, str]
    targets: tuple[str, ...] = ("label",)
    columns: tuple[str, ...] = ()

    def describe(self, source: str) -> dict[str, Any]:
        """The `data` part of a run record."""
        no_inputs = ("row_id", "group", "fault", "unread", *self.targets)
        sizes = {f"num_{split}_examples": len(rows) for split, rows in self.splits.items()}
        return {
            "source": source,
            "is_local": Path(source).exists(),
            "fingerprint": self.fingerprints["train"],
            "fingerprints": self.fingerprints,
            "problem_type": self.labels.problem_type,
            "label_names": list(self.labels.names),
            "columns": list(self.columns),
            "inputs": [name for name in self.splits["train"].column_names if name not in no_inputs],
            "audit": self.audit.as_dict(),
            **sizes,
        }


# The settings that cut rows out of what was loaded; all others decide what is loaded.
_CUTS = {
    *("num_train_examples", "num_train_examples_per_class", "num_validation_examples", "num_test_examples"),
    *("validation_seed", "validation_fraction", "evaluate_test", "on_bad_rows", "audit"),
    *("max_length", "image_size"),
    *("augmentation", "completion_only", "packing", "tokenizer_vocab_size", "show_example"),
    *("source_prefix", "max_new_tokens", "num_beams"),
}


def load_examples(args: DataArguments, task: Task, seed: int, *, is_thorough: bool = False) -> Examples:
    """Load, check and cut the rows. `seed` draws the training subset only: validation and test stay the same.

    Args:
        is_thorough: look for near duplicates however many rows there are.
    """
    policies = parse_policies(args.audit)
    splits, labels = load_rows(args)
    columns = load_columns(args)
    bad_rows, dropped = {}, []
    if args.on_bad_rows == "skip" or "drop" in policies.values():
        # Before the subsets, which would end up smaller than asked for otherwise.
        silent = {kind: policy if policy == "drop" else "note" for kind, policy in policies.items()}
        splits, first = audit(splits, labels, task.modality, args.on_bad_rows, silent, find_faults=task.find_faults)
        bad_rows, dropped = first.bad_rows, [finding for finding in first.findings if finding.num_dropped]
    splits = take_subsets(splits, args, seed, labels.names)
    if not args.evaluate_test:
        splits.pop("test", None)
    splits, report = audit(
        splits, labels, task.modality, "error", policies, is_thorough=is_thorough, find_faults=task.find_faults
    )
    report = replace(report, bad_rows=bad_rows or report.bad_rows, findings=dropped + report.findings)
    if "test" in splits and labels.problem_type == SINGLE:
        difference = minimum_detectable_difference(len(splits["test"]), EXPECTED_DISAGREEMENT)
        report = replace(report, detectable_difference=difference)
        _add_finding(report, find_small_test(len(splits["test"]), difference), policies)
    fingerprints = {name: compute_fingerprint(rows) for name, rows in splits.items()}
    return Examples(splits, labels, report, fingerprints, task.targets, columns)


def audit_lengths(examples: Examples, described: dict[str, Any], args: DataArguments) -> None:
    """Add to the report which texts are cut; what a task says of its prepared rows is all that is known of tokens.

    Raises:
        UserError: some are, and `--audit` makes that an error.
    """
    _add_finding(examples.audit, find_cut_texts(described.get("tokens", {})), parse_policies(args.audit))


def _add_finding(report: AuditReport, finding: Finding | None, policies: dict[str, str]) -> None:
    if finding is not None:
        act_on([finding], policies, report.num_rows)
        report.findings.append(finding)


def load_rows(args: DataArguments) -> tuple[datasets.DatasetDict, LabelInfo]:
    """All rows in the task's canonical columns, labels as numbers, and what the numbers mean.

    A process that makes many runs on the same source loads it once, unless a file of it has changed.
    """
    return _load_once(args)[:2]


def load_columns(args: DataArguments) -> tuple[str, ...]:
    """The columns of the source that are the inputs, by their own names; none where the names do not tell."""
    return _load_once(args)[2]


def _load_once(args: DataArguments) -> tuple[datasets.DatasetDict, LabelInfo, tuple[str, ...]]:
    settings = {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.name not in _CUTS}
    key = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in settings.items())
    named = (args.dataset, args.train_file, args.validation_file, args.test_file)
    return _load_rows(key, tuple(_stamp(name) for name in named if name))


def _stamp(source: str) -> int:
    """Changes when a file at a local path comes or goes, is another one, has another name, or is written."""
    path = Path(source).expanduser()
    files = list_files(path) if path.is_dir() else [path]
    stats = [file.stat() if file.is_file() else None for file in files]
    return hash((tuple(files), tuple(s and (s.st_ino, s.st_size, s.st_mtime_ns) for s in stats)))


@functools.lru_cache(maxsize=1)
def _load_rows(
    settings: tuple[tuple[str, Any], ...], stamps: tuple
) -> tuple[datasets.DatasetDict, LabelInfo, tuple[str, ...]]:
    args = DataArguments(**{name: list(value) if isinstance(value, tuple) else value for name, value in settings})
    raw = load_splits(args)
    if args.group_column is None:
        return _read_rows(raw, args)
    if args.group_column not in raw["train"].column_names:
        raise unknown_name("column", args.group_column, raw["train"].column_names, "Correct --group_column.")
    splits, labels, columns = _read_rows(raw.remove_columns(args.group_column), args)
    splits = {name: _add_groups(rows, raw[name][args.group_column][:]) for name, rows in splits.items()}
    return datasets.DatasetDict(splits), labels, columns


def _read_rows(
    raw: datasets.DatasetDict, args: DataArguments
) -> tuple[datasets.DatasetDict, LabelInfo, tuple[str, ...]]:
    """What the task reads; a column that it needs and that a split has not is named."""
    task, columns, absent = build_task(args.task), (), find_empty(raw)
    with contextlib.suppress(UserError):  # reading says what is wrong
        columns = tuple(task.choose_inputs(raw["train"].features, args))
    for split, names in absent.items():
        needed = columns[:1] if task.modality == "language" else columns  # beside a prompt or chat all may be empty
        if lost := [name for name in needed if name in names]:
            raise UserError(f"The {split} split has no column {lost[0]!r}, or nothing in it, and train has.")
    try:
        splits, labels = task.read(raw, args)
        for split, names in (find_empty(splits) if absent else {}).items():
            raise UserError(f"The {split} split has nothing to read as {names[0]!r}, and train has.")
        return splits, labels, columns
    except UserError as error:
        if not absent:
            raise
        listed = "; ".join(f"{split} has no {quote_names(names)}" for split, names in absent.items())
        raise UserError(f"{error} (Of the columns of train, {listed}.)") from error


def _add_groups(rows: datasets.Dataset, values: list) -> datasets.Dataset:
    """The group of each row, as text; a row without one is a group of its own."""
    groups = [f"row {index}" if (value := values[index]) is None else str(value) for index in rows["row_id"][:]]
    return rows.add_column("group", groups)


def prepare_examples(
    examples: Examples, task: Task, processor: Any, args: DataArguments
) -> dict[str, datasets.Dataset]:
    """Model inputs of every split, computed once and cached; rows that give none are left out of `examples`."""
    prepared = {}
    for name, rows in examples.splits.items():
        try:
            prepared[name] = task.prepare(rows, processor, args, examples.fingerprints[name])
        except BadRows as error:
            raise BadRows(f"{name}: {error}") from error
        _keep_prepared(examples, name, np.unique(prepared[name]["row_id"][:]))
    return prepared


def _keep_prepared(examples: Examples, split: str, row_ids: np.ndarray) -> None:
    rows = examples.splits[split]
    good = np.flatnonzero(np.isin(rows["row_id"][:], row_ids))
    if num_dropped := len(rows) - len(good):
        examples.splits[split] = rows.select(good)
        examples.audit.num_rows[split] -= num_dropped
        examples.audit.bad_rows.setdefault(split, {})["no model input"] = num_dropped
        example = f"{split}: {num_dropped} rows give no model input"
        examples.audit.findings.append(
            Finding("bad_rows", {split: num_dropped}, [example], policy="drop", num_dropped=num_dropped)
        )


def describe_source(args: DataArguments) -> str:
    """What the user named, for the record."""
    return args.dataset or str(args.train_file)


def build_batches(
    rows: datasets.Dataset, size: int, collator: Callable, description: str
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of `size` rows in their order, with a progress bar."""
    with tqdm(total=len(rows), desc=description, unit="row", disable=None) as bar:
        for start in range(0, len(rows), size):
            batch = rows.__getitems__(list(range(start, min(start + size, len(rows)))))
            yield collator(batch)
            bar.update(len(batch))
