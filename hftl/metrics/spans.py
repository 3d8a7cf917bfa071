"""How many of the tagged words and entities are found? Counts that add up over documents, and scores of the sums.

Must not know rows or networks: it sees tags as texts.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from hftl.metrics.spread import linearize
from hftl.metrics.tag_schemes import Span, TagScheme, is_outside

COUNTS = ("num_words", "num_correct", "num_true", "num_predicted", "num_matched")

# Score without its prefix -> what each row of `predictions.parquet` adds to it.
SPAN_SCORES = {
    "f1": lambda t: linearize(2 * t["num_matched"], t["num_predicted"] + t["num_true"]),
    "precision": lambda t: linearize(t["num_matched"], t["num_predicted"]),
    "recall": lambda t: linearize(t["num_matched"], t["num_true"]),
}


def find_spans(tags: Sequence[str], scheme: TagScheme | None) -> list[Span]:
    """Kind, first and last word of each entity; without a scheme every word that is not outside is one."""
    if scheme is not None:
        return scheme.find_spans(tags)
    return [(tag, place, place) for place, tag in enumerate(tags) if not is_outside(tag)]


def count_document(true: Sequence[str], found: Sequence[str], scheme: TagScheme | None) -> tuple[int, ...]:
    """The `COUNTS` of one document, from its tags and the predicted ones."""
    spans, guesses = set(find_spans(true, scheme)), set(find_spans(found, scheme))
    correct = sum(a == b for a, b in zip(true, found, strict=True))
    return len(true), correct, len(spans), len(guesses), len(spans & guesses)


def score_kinds(
    documents: Iterable[tuple[Sequence[str], Sequence[str]]], scheme: TagScheme | None
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of each kind, from the tags and predicted tags of each document."""
    truths, found, matched = Counter(), Counter(), Counter()
    for document in documents:
        true, predicted = (set(find_spans(tags, scheme)) for tags in document)
        for counter, spans in ((truths, true), (found, predicted), (matched, true & predicted)):
            counter.update(kind for kind, *_ in spans)
    return {
        kind: score_counts(matched[kind], found[kind], truths[kind]) | {"support": truths[kind]}
        for kind in sorted({*truths, *found})
    }


def score_counts(matched: int, predicted: int, true: int) -> dict[str, float]:
    """Precision, recall and F1; 0 where there is nothing to divide by."""
    precision, recall = matched / predicted if predicted else 0.0, matched / true if true else 0.0
    return {"precision": precision, "recall": recall, "f1": 2 * matched / (predicted + true) if matched else 0.0}


def sum_counts(table: dict[str, np.ndarray]) -> dict[str, int]:
    """The `COUNTS` of all rows."""
    return {name: int(np.sum(table[name])) for name in COUNTS}
