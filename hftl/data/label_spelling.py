"""Which labels are one label in several spellings? Those that look the same, and those that look alike.

Must not know rows: it sees names.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

INVISIBLE = "\ufeff\u200b\u2060"  # a byte order mark, and spaces without width; joiners inside words are letters
_BETWEEN_WORDS = re.compile(r"(?<=\w)[\s_-]+(?=\w)")


def clean_label(name: str) -> str:
    """The name without blanks around it and with one between its words, its accents composed (NFC).

    Blanks and the two forms of "é" cannot be seen, so that nobody means two labels by them.
    """
    return unicodedata.normalize("NFC", " ".join(name.strip(INVISIBLE).split()).strip(INVISIBLE))


def find_joined(names: Iterable[str]) -> dict[str, list[str]]:
    """Clean label -> its spellings, where there are several among the names as they stand in the data."""
    spellings = defaultdict(set)
    for name in names:
        spellings[clean_label(name)].add(name)
    return {name: sorted(found) for name, found in sorted(spellings.items()) if len(found) > 1}


def find_alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of different labels that are equal but for case, width, or what joins their words (blank, - or _)."""
    groups = defaultdict(set)
    for name in names:
        groups[make_key(name)].add(name)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def make_key(name: str) -> str:
    """Equal for labels that look alike; single letters keep their case, for those are often the classes themselves."""
    wide = unicodedata.normalize("NFKC", clean_label(name))
    return wide if len(wide) == 1 else _BETWEEN_WORDS.sub(" ", wide).lower()
