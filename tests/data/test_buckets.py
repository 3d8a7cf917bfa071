"""Keys with gaps: which sequences share one, and that pairs and groups come out of them whole."""

import itertools
import random

import numpy as np
import pytest

from hftl.data.buckets import MAX_PARTNERS, connect, find_pairs
from hftl.data.spelling import make_letter_keys


def leave_out(text, num_gaps):
    return {"".join(kept) for gaps in range(num_gaps + 1) for kept in itertools.combinations(text, len(text) - gaps)}


@pytest.mark.parametrize("num_gaps", [0, 1, 2])
def test_texts_share_a_key_exactly_if_they_are_equal_without_some_letters(num_gaps):
    """Against the strings themselves."""
    draw = random.Random(num_gaps)
    texts = sorted({"".join(draw.choices("abc", k=draw.randint(0, 7))) for _ in range(60)})
    pairs = find_pairs(make_letter_keys(texts, lambda length: min(length, num_gaps)), len(texts))
    rests = [leave_out(text, min(len(text), num_gaps)) for text in texts]
    expected = {(a, b) for a, b in itertools.combinations(range(len(texts)), 2) if rests[a] & rests[b]}
    crowded = len(texts) > MAX_PARTNERS  # of one key; its members are linked in a chain all the same
    found = set(map(tuple, pairs.tolist()))
    assert found <= expected and (found == expected or crowded)
    groups = connect(pairs, len(texts))
    assert all(groups[a] == groups[b] for a, b in expected)


def test_a_negative_number_of_gaps_leaves_a_text_out():
    keys = make_letter_keys(["ab", "abc", "ab", "abc"], lambda length: -1 if length == 2 else 0)
    assert find_pairs(keys, 4).tolist() == [[1, 3]]


@pytest.mark.parametrize("texts", [[], [""], ["", "a"]])
def test_nothing_to_compare_is_no_pair(texts):
    assert find_pairs(make_letter_keys(texts, lambda length: 0), len(texts)).shape == (0, 2)


def test_a_pair_with_several_keys_in_common_is_there_once():
    tables = [(np.array([1, 1], np.uint64), np.array([1, 0])), (np.array([7, 7], np.uint64), np.array([0, 1]))]
    assert find_pairs(tables, 2).tolist() == [[0, 1]]
