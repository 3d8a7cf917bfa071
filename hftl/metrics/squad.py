"""How well does an answer agree with the true ones? Exact match and F1 of words, as in SQuAD 1.1 and 2.0.

Rajpurkar et al. 2016, section 4.2, and 2018: case, punctuation, articles and spaces do not count, the best of several
true answers does, and no answer agrees with no answer alone. Here from 0 to 1, not to 100.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score_answers(found: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """`exact_match` and `f1` of each row, [N]; a row without true answers has none."""
    rows = [
        (compute_exact_match(answer, true), compute_f1(answer, true))
        for answer, true in zip(found, truths, strict=True)
    ]
    matches, overlaps = np.array(rows, dtype=float).reshape(-1, 2).T
    return {"exact_match": matches, "f1": overlaps}


def compute_exact_match(answer: str, truths: Sequence[str]) -> float:
    """1 where a true answer is the same."""
    return float(normalize(answer) in {normalize(truth) for truth in _known(truths)})


def compute_f1(answer: str, truths: Sequence[str]) -> float:
    """Of the words that are shared with the true answer that shares most."""
    return max(_compute_overlap(normalize(answer).split(), normalize(truth).split()) for truth in _known(truths))


def normalize(text: str) -> str:
    """What counts of an answer."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _known(truths: Sequence[str]) -> Sequence[str]:
    """Those that something is left of; no answer is the empty one."""
    return [truth for truth in truths if normalize(truth)] or [""]


def _compute_overlap(found: list[str], true: list[str]) -> float:
    if not found or not true:
        return float(found == true)
    shared = sum((Counter(found) & Counter(true)).values())
    return 2 * shared / (len(found) + len(true))
