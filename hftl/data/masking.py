"""Which words of a text are hidden, to be found again? Whole words, drawn from a seed; tokens and numbers only.

Fifteen of a hundred words are chosen. Of their tokens eight of ten become the mask, one a random token and one stays
as it is, so that the network cannot rely on a mask to know what is asked (Devlin et al. 2019, section 3.1; whole words
as in their later checkpoints, since a part of a word gives the rest away).
"""

from collections.abc import Sequence

import numpy as np

from hftl.data.labels import IGNORED

SHARE = 0.15  # of the words
MASKED, RANDOM = 0.8, 0.1  # of their tokens; the others stay
NO_WORD = -1  # the word number of a token that the tokenizer added


def hide_words(
    ids: Sequence[int], words: Sequence[int], seed: Sequence[int], *, mask_token: int, drawn_from: np.ndarray
) -> tuple[list[int], list[int]]:
    """What the network reads of one text, and what it is to find.

    Args:
        ids: tokens, [T].
        words: number of the word that each belongs to, `NO_WORD` for special tokens, [T].
        seed: non-negative numbers; equal ones hide the same.
        mask_token: number of the mask.
        drawn_from: the tokens that a random one is drawn from.

    Returns:
        Tokens and labels, both [T]; a label is `IGNORED` where nothing is asked.
    """
    draw = np.random.default_rng(list(seed))
    words, ids = np.asarray(words), np.array(ids)
    known = np.unique(words[words != NO_WORD])
    chosen = draw.permutation(known)[: max(1, round(SHARE * len(known)))]
    is_asked = np.isin(words, chosen)
    labels = np.where(is_asked, ids, IGNORED)
    kind, others = draw.random(len(ids)), draw.choice(drawn_from, len(ids))
    ids = np.where(is_asked & (kind < MASKED), mask_token, ids)
    ids = np.where(is_asked & (kind >= MASKED) & (kind < MASKED + RANDOM), others, ids)
    return ids.tolist(), labels.tolist()
