"""Which words and tags do rows hold? A list of words and a list of as many tags each, in canonical columns.

It must not know what a tag means: schemes are `hftl.metrics.tag_schemes`.
"""

from collections.abc import Sequence
from typing import Any

import datasets

from hftl.data.label_columns import name_label_column
from hftl.data.label_spelling import clean_label
from hftl.data.labels import LabelInfo
from hftl.errors import UserError, unknown_name

WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("tags", "ner_tags", "pos_tags", "labels", "label")


def read_tagged_rows(rows: datasets.Dataset, split: str, args: Any) -> datasets.Dataset:
    """`row_id`, `text`, `words` and, as they are, `tags`.

    Raises:
        UserError: no such columns, one that is no list, or words and tags that differ in number.
    """
    features = rows.features
    given = args.text_columns[0] if args.text_columns else None
    words, tags = (
        _choose(features, given, WORD_COLUMNS, "--text_columns"),
        _choose(features, name_label_column(args), TAG_COLUMNS, "--label_column"),
    )
    for name in (words, tags):
        if not is_list(features[name]):
            raise UserError(
                f"The column {name!r} of {split} holds {getattr(features[name], 'dtype', features[name])}, no list. "
                "token-classification needs a list of words and a list with one tag for each word; is it data for "
                "text-classification?"
            )
    element = features[tags].feature
    found = [[("" if word is None else str(word)) for word in row or []] for row in rows[words][:]]
    marks = _check_marks(rows[tags][:], found, split)
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


def _check_marks(tags: list, words: list[list[str]], split: str) -> list[list]:
    marks = [row or [] for row in tags]
    for index, (row, marked) in enumerate(zip(words, marks, strict=True)):
        if len(row) != len(marked):
            raise UserError(f"{split} row {index} has {len(row)} words and {len(marked)} tags; give each word one.")
        if missing := [word for word, mark in zip(row, marked, strict=True) if mark is None or mark == ""]:
            raise UserError(f"{split} row {index}: the word {missing[0]!r} has no tag.")
    return marks


def list_tags(rows: datasets.Dataset) -> tuple[tuple[str, ...] | None, set[str]]:
    """The tags that the data declare, in order, and those that stand in the rows.

    Args:
        rows: of `read_tagged_rows`.
    """
    declared = rows.info.description
    names = tuple(dict.fromkeys(map(clean_label, declared.split("\n")))) if declared else None
    return names, {tag for row in rows["tags"] for tag in row}


def number_tags(rows: datasets.Dataset, split: str, info: LabelInfo) -> datasets.Dataset:
    """`tags` as the numbers of `info`.

    Raises:
        UserError: a tag is not one of them; the row and the word are named.
    """
    index = {clean_label(name): place for place, name in enumerate(info.names)} | info.label2id
    numbers = []
    for place, row in enumerate(rows["tags"]):
        tags = [tag if tag in index else clean_label(tag) for tag in row]
        if unknown := [tag for tag in tags if tag not in index]:
            word = rows[place]["words"][tags.index(unknown[0])]
            raise UserError(
                f"{split} row {place}: the tag {unknown[0]!r} of {word!r} is not among those of train "
                f"({', '.join(info.names[:20])}). Correct it, or add rows with it to train."
            )
        numbers.append([index[tag] for tag in tags])
    feature = datasets.List(datasets.Value("int64"))
    return rows.remove_columns("tags").add_column("tags", numbers, feature=feature)


def choose_words(features: datasets.Features, args: Any) -> str:
    """The column that a prediction reads: words, or a text."""
    given = args.text_columns[0] if args.text_columns else None
    name = given if given in features else next((n for n in (*WORD_COLUMNS, "text") if n in features), None)
    if name is None:
        raise UserError(
            f"Among the columns {', '.join(features)} none is tokens, words or text; name it with --text_columns."
        )
    return name


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


def is_list(feature: Any) -> bool:
    """Whether rows of such a column are lists."""
    return isinstance(feature, (datasets.List, datasets.LargeList))
