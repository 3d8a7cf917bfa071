"""Which words of a collection are one word in two spellings? A slip of the keyboard, or an ending.

This module must not know texts: it sees each word once, with the number of texts that have it.
"""

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hftl.data.buckets import find_pairs, make_gap_keys

MIN_LETTERS, MAX_LETTERS = 3, 24  # of two letters one is half a word; beyond are addresses and codes
LONG_WORD = 6  # letters from which on two of them may be wrong
SLIP = 30  # times as many texts have the word that was meant, where more than one has the slip

# A word that is not of letters alone, such as a number, has none here.
_PARTS = re.compile(r"(\d*)([^\W\d_]+$|)")


def match_spellings(words: Sequence[str], counts: np.ndarray) -> np.ndarray:
    """Pairs of words that are equal but for one letter left out, put in, replaced or moved, in long words two.

    "east" and "west" are so as well. What tells a slip is that hardly anybody else writes it (`is_slip`). An ending is
    one letter more at the end of a word, as in plurals.

    Args:
        words: each once; a number in front (the place of a second text) has to be the same.
        counts: texts that have it, int [V].

    Returns:
        Positions in `words`, int64 [M, 2].
    """
    places, letters = zip(*(_PARTS.match(word).groups() for word in words), strict=True) if words else ((), ())
    found = [np.empty((0, 2), np.int64)]
    for num_gaps, shortest in ((1, MIN_LETTERS), (2, LONG_WORD)):
        usable = np.flatnonzero([shortest <= len(part) <= MAX_LETTERS for part in letters])
        keys = make_letter_keys([letters[index] for index in usable], lambda _, gaps=num_gaps: gaps)
        pairs = usable[find_pairs(keys, len(usable))]
        is_slipped = is_slip(*np.sort(counts[pairs], axis=1).T, num_gaps)
        is_same_place = [places[a] == places[b] for a, b in pairs]
        is_ending = [_is_ending(letters[a], letters[b]) for a, b in pairs]
        found.append(pairs[np.array(is_same_place, bool) & (is_slipped | np.array(is_ending, bool))])
    return np.unique(np.concatenate(found), axis=0)


def make_letter_keys(
    texts: Sequence[str], count_gaps: Callable[[int], int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`make_gap_keys` of the letters of each text."""
    letters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    return make_gap_keys(letters, np.cumsum([0, *map(len, texts)]), count_gaps)


def is_slip(rarest: np.ndarray, commonest: np.ndarray, num_letters: int) -> np.ndarray:
    """Whether the rarer of two words that look alike is likely to be the other, mistyped.

    Args:
        rarest: texts that have it, int [M].
        commonest: texts that have the other one.
        num_letters: that differ; of one, two words in one text each may be the same, because most words are rare.
    """
    return (commonest >= SLIP * rarest) | ((rarest == 1) & (num_letters == 1))


def _is_ending(a: str, b: str) -> bool:
    return abs(len(a) - len(b)) == 1 and (a.startswith(b) or b.startswith(a))
