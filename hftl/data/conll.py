"""What does a CoNLL file hold? One word a line with its columns, an empty line after a sentence.

The first column is the word and the last one its tag (CoNLL-2000, 2002, 2003); in the ten columns of CoNLL-U the
second and the fourth (UPOS). Lines that start with # are comments unless they have the columns of a word. It must not
know what a tag means.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from hftl.data.encoding import open_text, read_lines
from hftl.errors import UserError

ENDINGS = (".conll", ".conllu", ".iob", ".bio", ".txt")
DOCUMENT_START = "-DOCSTART-"
UNIVERSAL_COLUMNS = 10
LOOKED_AT = 200  # lines of a .txt, which may be either
ALIKE = 0.8  # of them with one number of columns
_SPAN = re.compile(r"\d+[-.]\d+")  # numbers of words that are written as one, or a word between two
_ROLE = re.compile(r"[BIESLUMWO]|[BIESLUMW][-_]\S+", re.IGNORECASE)  # a tag that no other word needs to have


@dataclass(frozen=True)
class Layout:
    """How the lines of words in a file look.

    Attributes:
        width: number of columns.
        is_tabbed: whether tabs separate them, so that a line without a tab is no word.
        tags: of the words that do not start with #.
        word: place of the column with the word: the second where the first counts the words of each sentence.
    """

    width: int
    is_tabbed: bool
    tags: frozenset[str]
    word: int = 0

    def is_comment(self, line: str, path: Path, number: int) -> bool:
        """Whether a line that starts with # is no word.

        Raises:
            UserError: it has the columns of a word, but its last one is nowhere a tag.
        """
        columns = line.split("\t") if self.is_tabbed else line.split()
        if len(columns) != self.width or self.width == UNIVERSAL_COLUMNS:
            return True
        if self.width == 1 or self.is_tabbed or columns[-1] in self.tags or _ROLE.fullmatch(columns[-1]):
            return False
        raise UserError(
            f"{path}, line {number}: {line.strip()[:60]!r} may be a comment or the word {columns[0]!r} with the tag "
            f"{columns[-1]!r}. Remove the line, or put tabs between the columns of all lines."
        )


def is_conll(path: Path) -> bool:
    """Whether a .txt is CoNLL: empty lines between sentences, and the same two or more columns in most others."""
    with open_text(path, errors="replace") as file:
        begin = list(itertools.islice(file, LOOKED_AT))
    lines = [line for line in begin if line.strip()]
    widths = Counter(len(_split(line)) for line in lines)
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
    lines = list(read_lines(path))
    layout = _find_layout(lines)
    if layout.width > UNIVERSAL_COLUMNS and lines[0].startswith("#begin document"):
        raise UserError(
            f"{path} has the columns of CoNLL-2011 and 2012 (OntoNotes), where brackets say what an entity is; write "
            "one word a line with its tag, e.g. `Paris B-LOC`."
        )
    rows: dict[str, list[list[str]]] = {"tokens": [], "tags": []}
    words, tags = [], []
    for number, line in enumerate([*lines, ""], 1):
        if not line.strip():
            if words:
                rows["tokens"].append(words)
                rows["tags"].append(tags)
            words, tags = [], []
            continue
        if line.startswith(DOCUMENT_START) or (line.startswith("#") and layout.is_comment(line, path, number)):
            continue
        columns = _split(line)
        if len(columns) != layout.width or (needs_tags and layout.width < 2):
            expected = max(1 + needs_tags, layout.width)
            raise UserError(
                f"{path}, line {number}: found {len(columns)} columns, expected {expected}: a word first, its tag "
                "last, an empty line after each sentence."
            )
        is_universal = layout.width == UNIVERSAL_COLUMNS and (columns[0].isdigit() or _SPAN.fullmatch(columns[0]))
        if (layout.word or is_universal) and _SPAN.fullmatch(columns[0]):
            continue  # a contraction, or an empty node: its parts have lines of their own
        if is_universal:
            columns = [columns[1], columns[3]]
        words.append(columns[layout.word])
        tags.append(columns[-1])
    if not rows["tokens"]:
        raise UserError(f"{path} holds no sentence; expected one word a line with its tag, e.g. `Paris B-LOC`.")
    return datasets.Dataset.from_dict(rows if layout.width > 1 else {"tokens": rows["tokens"]})


def _find_layout(lines: Sequence[str]) -> Layout:
    """From the first word that does not start with #; where all do, from the usual line."""
    words = [line for line in lines if line.strip() and not line.startswith(DOCUMENT_START)]
    plain = [line for line in words if not line.startswith("#")]
    if not words:
        return Layout(0, False, frozenset())
    if not plain:
        plain = [Counter(words).most_common(1)[0][0]]
    width, is_tabbed = len(_split(plain[0])), "\t" in plain[0]
    return Layout(width, is_tabbed, frozenset(_split(line)[-1] for line in plain), int(_are_counted(lines, width)))


def _are_counted(lines: Sequence[str], width: int) -> bool:
    """Whether the first of three or more columns holds 1, 2, 3, ... or 0, 1, 2, ... in every sentence."""
    sentences = []
    for is_filled, group in itertools.groupby(lines, key=lambda line: bool(line.strip())):
        firsts = [_split(line)[0] for line in group if is_filled and not line.startswith(("#", DOCUMENT_START))]
        firsts = [first for first in firsts if not _SPAN.fullmatch(first)]
        sentences += [firsts] if firsts else []
    is_told = 3 <= width != UNIVERSAL_COLUMNS and max(map(len, sentences), default=0) > 1
    return is_told and all(map(_is_count, sentences))


def _is_count(firsts: list[str]) -> bool:
    return any(firsts == [str(number) for number in range(start, start + len(firsts))] for start in (0, 1))


def _split(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else line.split()
