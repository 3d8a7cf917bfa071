"""From a text, a prompt with its completion or a chat to tokens, each marked as learnt or only read.

The marks are checked by reading the marked tokens back. It takes any fast tokenizer and must not know networks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import datasets

from hftl.data.labels import IGNORED
from hftl.data.templates import Chat, fit_chat
from hftl.errors import UserError

SAMPLE_TOKENS = 48  # of a plain text, so many are given and so many asked for, at most


@dataclass(frozen=True)
class Tokens:
    """One example.

    Attributes:
        ids: [T].
        is_learnt: [T].
        text: what the learnt tokens must read; None: whatever they read.
        is_cut: whether the end is missing.
        unread: fields of a chat that its template leaves out.
        fault: why there is nothing to learn; empty for a good one.
    """

    ids: list[int]
    is_learnt: list[bool]
    text: str | None = None
    is_cut: bool = False
    unread: tuple[str, ...] = ()
    fault: str = ""

    @property
    def labels(self) -> list[int]:
        """The ids that are learnt, `IGNORED` for the others, [T]."""
        return [token if marked else IGNORED for token, marked in zip(self.ids, self.is_learnt, strict=True)]


def choose_encoder(dataset: datasets.Dataset, processor: Any) -> Callable:
    if "messages" in dataset.column_names:
        _check_template(processor)
        return encode_chat
    return encode_completion if "completion" in dataset.column_names else encode_text


def _check_template(tokenizer: Any) -> None:
    if tokenizer.chat_template is None:
        raise UserError(
            "The rows are chats, but the tokenizer has no chat template that says how to write one. Name a "
            "checkpoint that was tuned for chats, or give prompt and completion columns."
        )


def encode_text(row: dict[str, Any], tokenizer: Any, completion_only: bool) -> list[Tokens]:
    """A plain text and its end; a longer one in parts that overlap by one token, so that each is learnt once."""
    ids, length = _with_end(tokenizer(row["text"]).input_ids, tokenizer), tokenizer.model_max_length
    starts = range(0, max(1, len(ids) - 1), max(1, length - 1))
    parts = [ids[start : start + length] for start in starts]
    return [Tokens(part, [False] + [True] * (len(part) - 1)) for part in parts]


def encode_completion(row: dict[str, Any], tokenizer: Any, completion_only: bool) -> list[Tokens]:
    """A prompt as it will be read later, token by token, then the completion and the end."""
    prompt, text = row["prompt"] or "", row["completion"]
    start = _without_end(tokenizer(prompt).input_ids, tokenizer)
    both = _without_end(tokenizer(prompt + text).input_ids, tokenizer)
    # Else the last letters of the prompt and the first of the completion are one token, which nobody will ask for.
    is_clean = both[: len(start)] == start
    ids = _with_end(both if is_clean else start + tokenizer(text, add_special_tokens=False).input_ids, tokenizer)
    first = max(1, len(start)) if completion_only else 1
    is_learnt = [place >= first for place in range(len(ids))]
    is_whole = completion_only and start  # without a prompt, the first token of the completion is given, not learnt
    return [_cut(Tokens(ids, is_learnt, text + tokenizer.eos_token if is_whole else None), tokenizer)]


def encode_chat(row: dict[str, Any], tokenizer: Any, completion_only: bool) -> list[Tokens]:
    """A chat in the tokenizer's template; learnt are the turns of the assistant with their end mark.

    Raises:
        UserError: the template refuses the chat or leaves out some of it, or turns cannot be told apart.
    """
    chat, left_out = fit_chat(row, tokenizer)
    whole = chat.write(tokenizer)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded.input_ids, encoded.offset_mapping
    unread = tuple(f"messages.{name}" for name in left_out)
    spans = _find_turns(chat, whole, tokenizer, are_learnt=completion_only)
    inside = [any(low <= start < end <= high for low, high in spans) for start, end in offsets]
    if not completion_only:
        is_learnt = [place > 0 and not hidden for place, hidden in enumerate(inside)]
        return [_cut(Tokens(ids, is_learnt, unread=unread), tokenizer)]
    text = "".join(whole[low:high] for low, high in spans)
    return [_cut(Tokens(ids, inside, text, unread=unread), tokenizer)]


def _find_turns(chat: Chat, whole: str, tokenizer: Any, *, are_learnt: bool) -> list[tuple[int, int]]:
    """Where the turns of the assistant that are to be learnt, or are not, stand in a written chat."""
    spans = []
    for index, (message, is_learnt) in enumerate(zip(chat.messages, chat.is_learnt, strict=True)):
        if message["role"] != "assistant" or is_learnt != are_learnt:
            continue
        if index == 0:
            raise UserError(
                "the chat begins with the assistant, whose turn then answers nothing; begin with another role, or "
                "give that turn 'weight': 0"
            )
        before, after = chat.write(tokenizer, index, asks=True), chat.write(tokenizer, index + 1).rstrip()
        if not (after.startswith(before) and whole.startswith(after)):
            raise UserError(
                "the chat template writes a turn in another way once more turns follow, so that what to learn cannot "
                "be marked; split such chats, or give --completion_only false"
            )
        spans.append((len(before), len(after)))
    return spans


def _with_end(ids: list[int], tokenizer: Any) -> list[int]:
    return ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def _without_end(ids: list[int], tokenizer: Any) -> list[int]:
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def _cut(tokens: Tokens, tokenizer: Any) -> Tokens:
    length = tokenizer.model_max_length
    if len(tokens.ids) <= length:
        return tokens
    return replace(tokens, ids=tokens.ids[:length], is_learnt=tokens.is_learnt[:length], is_cut=True)


def check_marks(tokens: Tokens, tokenizer: Any) -> None:
    """Read the learnt tokens back: they must give the text that is to be learnt, or its beginning if it was cut.

    Raises:
        UserError: they do not.
    """
    if tokens.text is None:
        return
    found = decode_learnt(tokens, tokenizer, skip_special_tokens=False).strip()
    expected = tokens.text.strip()
    if found == expected or (tokens.is_cut and expected.startswith(found.rstrip("\ufffd"))):
        return
    # A tokenizer that changes letters (lower case, accents) cannot give back what it was given.
    changed = tokenizer.decode(tokenizer(expected, add_special_tokens=False).input_ids).strip()
    if found == changed or (tokens.is_cut and changed.startswith(found)):
        return
    raise UserError(
        f"to be learnt is {expected[:80]!r}, but the tokens marked for it read {found[:80]!r}: the tokenizer joins "
        "letters across the border; put a space or a line break at the start of the completion"
    )


def decode_learnt(tokens: Tokens, tokenizer: Any, *, skip_special_tokens: bool) -> str:
    learnt = [label for label in tokens.labels if label != IGNORED]
    return tokenizer.decode(learnt, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)


def mark_text(row: dict[str, Any], tokenizer: Any) -> str:
    """The text of a prepared row with what is learnt in double brackets."""
    parts, learnt, current = [], False, []
    for token, label in [*zip(row["input_ids"], row["labels"], strict=True), (None, None)]:
        if current and (token is None or (label != IGNORED) != learnt):
            text = tokenizer.decode(current, clean_up_tokenization_spaces=False)
            parts.append(f"[[{text}]]" if learnt else text)
            current = []
        if token is not None:
            learnt = label != IGNORED
            current.append(token)
    return "".join(parts)


def split_prompt(row: dict[str, Any], tokenizer: Any) -> tuple[list[int], str]:
    """What a model is asked to go on from, and how the row goes on."""
    if "messages" in row:
        chat, _ = fit_chat(row, tokenizer)
        turns = zip(chat.messages, chat.is_learnt, strict=True)
        last = max(place for place, (message, is_learnt) in enumerate(turns) if _is_answer(message) and is_learnt)
        text = chat.write(tokenizer, last, asks=True)
        expected = chat.write(tokenizer, last + 1)[len(text) :]
        expected = chat.messages[last]["content"] or expected  # a call has no content
        return tokenizer(text, add_special_tokens=False).input_ids, expected
    if "completion" in row:
        return _without_end(tokenizer(row["prompt"] or "").input_ids, tokenizer), row["completion"]
    ids = _without_end(tokenizer(row["text"]).input_ids, tokenizer)[: 2 * SAMPLE_TOKENS]
    half = max(1, len(ids) // 2)
    return ids[:half], tokenizer.decode(ids[half:])


def _is_answer(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant"


def encode_prompt(row: dict[str, Any], tokenizer: Any) -> list[int]:
    """What a model is asked to go on from, in a row that has no answer; the answer that ends a chat is left out.

    Raises:
        UserError: there is nothing to go on from, or the chat template refuses it or leaves out some of it.
    """
    if "messages" not in row:
        if not (row["prompt"] or "").split():
            raise UserError("empty text")
        return _without_end(tokenizer(row["prompt"]).input_ids, tokenizer)
    _check_template(tokenizer)
    messages = row["messages"][:-1] if _is_answer(row["messages"][-1]) else row["messages"]
    if not messages:
        raise UserError("the chat has an answer alone, and nothing that it answers")
    chat, _ = fit_chat(row | {"messages": messages}, tokenizer)
    return tokenizer(chat.write(tokenizer, asks=True), add_special_tokens=False).input_ids
