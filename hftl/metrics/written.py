"""How near is a text that a model wrote to the one it should have written? By the libraries that papers use.

ROUGE is that of `rouge_score`, without stemming, a mean over rows; its words are runs of letters and digits of any
script in lower case, where the library knows a to z only: for English the numbers are the same. BLEU (13a, 4-grams)
and chrF2 are those of `sacrebleu`, of the whole split. All are in [0, 1]. Must not know: models, tokens.
"""

import re
from collections.abc import Sequence

import numpy as np

ROUGE = ("rouge1", "rouge2", "rougeL")


class _Words:
    """A tokenizer of `rouge_score`."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def score_rows(written: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """F1 of ROUGE-1, -2 and -L, and whether the texts are equal but for white space, [N] each."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), tokenizer=_Words())
    found = [scorer.score(reference, text) for text, reference in zip(written, references, strict=True)]
    scores = {name: np.array([row[name].fmeasure for row in found], dtype=np.float64) for name in ROUGE}
    equal = [text.split() == reference.split() for text, reference in zip(written, references, strict=True)]
    return scores | {"exact_match": np.array(equal, dtype=np.float64)}


def score_corpus(written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """chrF2 and BLEU of all rows together."""
    from sacrebleu.metrics import BLEU, CHRF

    return {
        "chrf": CHRF().corpus_score(list(written), [list(references)]).score / 100,
        "bleu": BLEU(force=True).corpus_score(list(written), [list(references)]).score / 100,
    }
