"""How does a document of words fit into a network? In windows that overlap, each word answered once.

It is answered at its first subword, in the window that shows most of what stands around it. Must not know tags.
"""

from collections.abc import Iterator, Sequence
from typing import Any

OVERLAP = 0.25  # of a window, shared with the one before


def cut_windows(documents: Sequence[Sequence[str]], tokenizer: Any) -> list[dict[str, Any]]:
    """Model inputs of documents: `row` (which document), `input_ids`, `length`, and for each token in `word_ids` the
    word that is answered there, or -1. Every word is answered once."""
    size = tokenizer.model_max_length
    room = size - tokenizer.num_special_tokens_to_add()
    overlap = int(OVERLAP * room)
    words = [[_readable(word, tokenizer) for word in row] for row in documents]
    encoded = tokenizer(
        words,
        is_split_into_words=True,
        truncation=True,
        max_length=size,
        stride=overlap,
        return_overflowing_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    windows = []
    for index, row in enumerate(encoded["overflow_to_sample_mapping"]):
        ids = encoded["input_ids"][index]
        windows.append({"row": row, "input_ids": ids, "length": len(ids), "word_ids": encoded.word_ids(index)})
    seen: dict[tuple[int, int], list[tuple[int, int, int]]] = {}  # (row, word) -> (context, window, position)
    for index, window in enumerate(windows):
        for position, word in _first_subwords(window["word_ids"]):
            is_start = index == 0 or windows[index - 1]["row"] != window["row"]
            before = size if is_start else position
            is_end = index + 1 == len(windows) or windows[index + 1]["row"] != window["row"]
            after = size if is_end else window["length"] - position
            seen.setdefault((window["row"], word), []).append((min(before, after), index, position))
    for window in windows:
        window["word_ids"] = [-1] * window["length"]
    for (_, word), places in seen.items():
        _, index, position = max(places, key=lambda place: (place[0], -place[1]))
        windows[index]["word_ids"][position] = word
    return windows


def _first_subwords(word_ids: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """Position and number of each word that begins here; what a window begins with may be the rest of a word."""
    previous = None
    for position, word in enumerate(word_ids):
        if word is not None and word != previous:
            yield position, word
        previous = word


def _readable(word: str, tokenizer: Any) -> str:
    """The word, or the unknown token for one that the tokenizer makes nothing of, such as a control character."""
    if word.isalnum() or tokenizer.tokenize(word):
        return word
    return tokenizer.unk_token or "?"


def as_columns(windows: list[dict[str, Any]]) -> dict[str, list]:
    """The windows as columns."""
    return {name: [w[name] for w in windows] for name in ("row", "input_ids", "length", "word_ids")}
