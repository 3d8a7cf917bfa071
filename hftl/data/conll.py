"""What does a CoNLL file hold? One word a line with its columns, an empty line after a sentence.

The first column is the word and the last one its tag (CoNLL-2000, 2002, 2003); in the ten columns of CoNLL-U the
second and the fourth (UPOS). It must not know what a tag means.
"""

import itertools
from collections import Counter
from pathlib import Path

import datasets

from hftl.errors import UserError

ENDINGS = (".conll", ".conllu", ".iob", ".bio", ".txt")
DOCUMENT_START = "-DOCSTART-"
UNIVERSAL_COLUMNS = 10
LOOKED_AT = 200  # lines of a .txt, which may be either
ALIKE = 0.8  # of them with one number of columns


def is_conll(path: Path) -> bool:
    """Whether a .txt is CoNLL: empty lines between sentences, and the same two or more columns in most others."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        begin = list(itertools.islice(file, LOOKED_AT))
    lines = [line for line in begin if line.strip()]
    widths = Counter(len(line.split("\t") if "\t" in line else line.split()) for line in lines)
    width, count = widths.most_common(1)[0] if widths else (0, 0)
    return width >= 2 and count >= ALIKE * len(lines) and len(lines) < len(begin)


def read_conll(path: Path, *, needs_tags: bool = True) -> datasets.Dataset:
    """The sentences of a file.

    Args:
        path: of the file.
        needs_tags: refuse a file of words alone, which can be tagged but not learnt from.

    Raises:
        UserError: it is not UTF-8, holds no sentence, or a line has another number of columns than the first.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:  # not `splitlines`, which ends a line at U+2028 and \x85 as well
            lines = [line.rstrip("\n") for line in file]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); convert it, e.g. `iconv -f latin1 -t utf-8`.") from error
    rows: dict[str, list[list[str]]] = {"tokens": [], "tags": []}
    words, tags, width = [], [], 0
    for number, line in enumerate([*lines, ""], 1):
        if not line.strip():
            if words:
                rows["tokens"].append(words)
                rows["tags"].append(tags)
            words, tags = [], []
            continue
        if line.startswith(DOCUMENT_START) or (line.startswith("#") and (not words or len(line.split()) != width)):
            continue
        columns = line.split("\t") if "\t" in line else line.split()
        width = width or len(columns)
        if len(columns) != width or (needs_tags and width < 2):
            raise UserError(
                f"{path}, line {number}: found {len(columns)} columns, expected {max(1 + needs_tags, width)}: a word "
                "first, its tag last, an empty line after each sentence."
            )
        if width == UNIVERSAL_COLUMNS and columns[0].replace("-", "").replace(".", "").isdigit():
            if not columns[0].isdigit():  # a contraction, or an empty node: its parts have lines of their own
                continue
            columns = [columns[1], columns[3]]
        words.append(columns[0])
        tags.append(columns[-1])
    if not rows["tokens"]:
        raise UserError(f"{path} holds no sentence; expected one word a line with its tag, e.g. `Paris B-LOC`.")
    return datasets.Dataset.from_dict(rows if width > 1 else {"tokens": rows["tokens"]})
