"""Two spellings of a word: slips that hardly anybody makes and endings, but not two words that look alike."""

import numpy as np
import pytest

from hftl.data.spelling import SLIP, match_spellings


@pytest.mark.parametrize(
    ("words", "counts", "is_one"),
    [
        (["weather", "waether"], [5, 1], True),  # letters swapped
        (["weather", "wether"], [1, 1], True),  # one left out; in few texts most words are in one alone
        (["weather", "weathxr"], [5, 1], True),
        (["east", "west"], [50, 40], False),  # one letter, and many write both
        (["east", "eask"], [2 * SLIP, 2], True),  # a slip that two made
        (["weather", "wxathxr"], [SLIP, 1], True),  # two letters
        (["technophilia", "technophobia"], [1, 1], False),
        (["people", "people's"], [9, 1], False),  # list_words divides it before
        (["member", "members"], [80, 90], True),
        (["of", "or"], [500, 1], False),  # of two letters one is half
        (["1856", "1857"], [1, 1], False),
        (["20th", "19th"], [1, 1], False),
        (["1weather", "1wether"], [5, 1], True),  # both of the second text
        (["weather", "1weather"], [5, 1], False),
        (["rain", "brain"], [50, 40], False),
    ],
)
def test_a_slip_or_an_ending_is_the_same_word_and_a_likeness_is_not(words, counts, is_one):
    expected = [[0, 1]] if is_one else []
    assert match_spellings(words, np.array(counts)).tolist() == expected


def test_no_words_are_no_pairs():
    assert match_spellings([], np.empty(0, int)).shape == (0, 2)
