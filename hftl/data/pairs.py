"""Which column is read and which is written? For tasks that turn one text into another.

After `standardize_pairs` all data look alike: `row_id`, `text` and `target`. This module must not know tokens.
"""

import logging
from typing import TYPE_CHECKING

import datasets
import numpy as np

from hftl.data.chats import parse_text
from hftl.data.paths import is_text
from hftl.data.roles import is_whole
from hftl.errors import UserError, quote_names, shorten, unknown_name

if TYPE_CHECKING:
    from hftl.config import DataArguments

logger = logging.getLogger(__name__)

# Input and target as the summarisation and translation data sets of the Hub call them.
PAIR_NAMES = (
    ("document", "summary"),
    ("article", "highlights"),
    ("article", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("source", "target"),
    ("src", "tgt"),
    ("input", "output"),
    ("text", "target"),
)
INSTRUCTIONS = ("instruction", "system", "system_prompt", "context")  # which belong to an input
ADVICE = "Give --source_column and --target_column."


def standardize_pairs(splits: datasets.DatasetDict, args: "DataArguments") -> datasets.DatasetDict:
    """Keeps the columns that the arguments name, or the only ones that fit, as `text` and `target`.

    A column `translation` with a text for each language is taken apart: its languages are columns then.

    Raises:
        UserError: a name that is not a column, no best guess, or a column that holds something else than text.
    """
    splits = datasets.DatasetDict({split: _take_apart(rows) for split, rows in splits.items()})
    source, target = _choose(splits["train"].features, args)
    logger.info("Columns used: %s to %s.", source, target)
    renamed = {}
    for split, rows in splits.items():
        rows = rows.with_format(None).select_columns([source, target])
        rows = rows.rename_columns({source: "text", target: "target"} if source != "target" else {})
        rows = rows.cast(datasets.Features(dict.fromkeys(("text", "target"), datasets.Value("string"))))
        rows = rows.add_column("row_id", np.arange(len(rows), dtype=np.int64))
        renamed[split] = rows.select_columns(["row_id", "text", "target"])
    return datasets.DatasetDict(renamed)


def choose_source(features: datasets.Features, given: str | None) -> str:
    """The column to read, in rows that need no target.

    Raises:
        UserError: a name that is not a column of text, or no best guess.
    """
    if given:
        return _check(given, features, "--source_column")
    texts = [name for name in features if is_text(features[name])]
    named = [name for name in dict.fromkeys(source for source, _ in PAIR_NAMES) if name in texts]
    found = named or texts
    if len(found) != 1:
        reason = "several columns could be read" if found else "no column is text"
        raise UserError(f"Among the columns {quote_names(features)} {reason}. Give --source_column.")
    return found[0]


def _choose(features: datasets.Features, args: "DataArguments") -> tuple[str, str]:
    given = (args.source_column, args.target_column)
    if all(given):
        if given[0] == given[1]:
            raise UserError(f"--source_column and --target_column are both {given[0]!r}; give two columns.")
        return _check(given[0], features, "--source_column"), _check(given[1], features, "--target_column")
    for name, flag in zip(given, ("--source_column", "--target_column"), strict=True):
        if name:
            _check(name, features, flag)
    found = [
        pair
        for pair in PAIR_NAMES
        if all(name in features and is_text(features[name]) for name in pair)
        and all(name in (None, other) for name, other in zip(given, pair, strict=True))
    ]
    instructions = [name for name in features if name.lower() in INSTRUCTIONS and is_text(features[name])]
    if len(found) == 1 and not all(given) and instructions and "input" in found[0]:
        raise UserError(
            f"The column {instructions[0]!r} says what is to be done with 'input', and would not be read. Write both "
            "into one column, or give --source_column and --target_column."
        )
    if len(found) != 1:
        reason = "several could be input and target" if found else "none are known as input and target"
        raise UserError(f"Among the columns {quote_names(features)} {reason}. {ADVICE}")
    return found[0]


def _check(name: str, features: datasets.Features, flag: str) -> str:
    if name not in features:
        raise unknown_name("column", name, features, f"Correct {flag}.")
    if not is_text(features[name]) and not is_whole(features[name]):
        found = shorten(str(features[name]), 200)
        raise UserError(f"The column {name!r} holds {found}, not text; choose another with {flag}.")
    return name


def _take_apart(rows: datasets.Dataset) -> datasets.Dataset:
    """Languages of a column `translation`, which may be written as JSON or by Python, as columns of their own."""
    if "translation" not in rows.column_names:
        return rows
    table = rows.with_format(None)["translation"][:]
    table = [parse_text(row) if isinstance(row, str) and row.lstrip().startswith("{") else row for row in table]
    if not any(isinstance(row, dict) for row in table):
        return rows
    if wrong := [index for index, row in enumerate(table) if row is not None and not isinstance(row, dict)]:
        raise UserError(f"Row {wrong[0]} has no text for each language in the column 'translation', as other rows do.")
    table = [row or {} for row in table]
    languages = dict.fromkeys(key for row in table for key in row)
    if taken := sorted(set(languages) & set(rows.column_names)):
        raise UserError(f"The column 'translation' has {taken[0]!r}, which is a column as well; rename one of them.")
    columns = {name: [row.get(name) for row in table] for name in languages}
    return datasets.concatenate_datasets(
        [rows.remove_columns("translation"), datasets.Dataset.from_dict(columns)], axis=1
    )
