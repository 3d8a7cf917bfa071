"""How do several columns of zeros and ones, one for each label, become one column of labels?

Only the columns that `--label_column` names; it must not know inputs.
"""

import dataclasses
import logging
from typing import Any

import datasets

from hftl.data.label_spelling import clean_label
from hftl.errors import UserError, unknown_name

logger = logging.getLogger(__name__)

SINGLE, REGRESSION = "single_label_classification", "regression"
YES, NO = ("1", "1.0", "true", "yes", "y", "t"), ("0", "0.0", "false", "no", "n", "f")


def name_label_columns(args: Any) -> list[str]:
    """The columns that `--label_column` names."""
    given = args.label_column
    return [given] if isinstance(given, str) else list(given or ())


def name_label_column(args: Any) -> str | None:
    """The only column that `--label_column` names, of tasks that take no more.

    Raises:
        UserError: it names several.
    """
    names = name_label_columns(args)
    if len(names) > 1:
        raise UserError(f"--task {args.task} takes one --label_column; found {', '.join(names)}.")
    return names[0] if names else None


def join_label_columns(
    splits: datasets.DatasetDict, args: Any, problem_type: str | None
) -> tuple[datasets.DatasetDict, Any]:
    """One column of names instead of several that say yes or no, and arguments that name it.

    A row has any number of labels, or one if `problem_type` is that of one class a row. One column or none is left as
    it is.

    Raises:
        UserError: there is no such column, one holds something else, or a row that should have one class has not.
    """
    names = name_label_columns(args)
    if len(names) < 2:
        return splits, args
    _check_names(names, splits["train"].features, problem_type)
    joined = " + ".join(names)
    is_single = problem_type == SINGLE
    found = {split: _read_rows(rows, split, names, is_single) for split, rows in splits.items()}
    if not is_single and all(len(row) == 1 for rows in found.values() for row in rows):
        logger.info("Each row has one of the labels: --problem_type %s would learn them as one choice.", SINGLE)
    classes = datasets.ClassLabel(names=[clean_label(name) for name in names])
    feature = classes if is_single else datasets.List(classes)
    for split, rows in found.items():
        values = [row[0] for row in rows] if is_single else rows
        splits = splits | {split: splits[split].remove_columns(names).add_column(joined, values, feature=feature)}
    return datasets.DatasetDict(splits), dataclasses.replace(args, label_column=joined)


def _check_names(names: list[str], features: datasets.Features, problem_type: str | None) -> None:
    if unknown := [name for name in names if name not in features]:
        raise unknown_name("column", unknown[0], features, "Correct --label_column.")
    if len({clean_label(name) for name in names}) < len(names):
        raise UserError(f"--label_column names a column twice: {', '.join(names)}.")
    if problem_type == REGRESSION:
        raise UserError("A regression has one number a row: give one --label_column.")


def _read_rows(rows: datasets.Dataset, split: str, names: list[str], is_single: bool) -> list[list[int]]:
    """Places of the columns that say yes, for each row."""
    marks = [[_read_mark(value, name, split, row) for row, value in enumerate(rows[name][:])] for name in names]
    found = [[place for place, mark in enumerate(row) if mark] for row in zip(*marks, strict=True)]
    if is_single and (bad := [index for index, row in enumerate(found) if len(row) != 1]):
        raise UserError(
            f"{split} row {bad[0]} has {len(found[bad[0]])} of the labels {', '.join(names)}; expected one a row. For "
            "any number leave --problem_type out."
        )
    return found


def _read_mark(value: Any, name: str, split: str, row: int) -> bool:
    text = str(value).strip().lower()
    if text in YES:
        return True
    if text in NO:
        return False
    raise UserError(
        f"The label column {name!r} of {split} has {value!r} in row {row}; several label columns hold 0 and 1 each. "
        "Fill in or remove the row, or give one --label_column."
    )


VERDICTS = {"accept", "reject", "ignore"}  # of an annotator on each row, beside the label that was proposed


def refuse_rejected(splits: datasets.DatasetDict, label: str) -> None:
    """Rows whose label an annotator rejected, as Prodigy exports them, would be learnt as if it were right.

    Raises:
        UserError: there are some.
    """
    for split, rows in splits.items():
        for name in set(rows.column_names) - {label}:
            if name.lower() == "answer" and set(answers := rows[name][:]) <= VERDICTS and {*answers} - {"accept"}:
                place = next(index for index, answer in enumerate(answers) if answer != "accept")
                raise UserError(
                    f"The column {name!r} of {split} says {answers[place]!r} in row {place}: its label is not true. "
                    "Leave out all rows that are not accepted, and that column."
                )
