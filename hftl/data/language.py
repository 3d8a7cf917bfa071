"""Which columns does a language model learn from? Plain texts, prompts with completions, or chats.

After `standardize_language` all data look alike: `row_id` and `text`, or `prompt` and `completion`, or `messages`, a
list of {role, content} for each row. This module must not know tokens or templates.
"""

import logging
from typing import TYPE_CHECKING

import datasets
import numpy as np

from hftl.data.columns import TEXT_NAMES
from hftl.errors import UserError, unknown_name

if TYPE_CHECKING:
    from hftl.config import DataArguments

logger = logging.getLogger(__name__)

CHAT_NAMES = ("messages", "conversation", "conversations", "chat")
# Prompt and completion as the instruction data sets of the Hub call them.
COMPLETION_NAMES = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("input", "output"),
)
MESSAGE = {"role": datasets.Value("string"), "content": datasets.Value("string")}
ROLES = ("system", "user", "assistant", "tool", "developer")


def standardize_language(splits: datasets.DatasetDict, args: "DataArguments") -> datasets.DatasetDict:
    """Keeps the columns that `args.text_columns` names, or the only ones that fit, under their canonical names.

    Raises:
        UserError: a name that is not a column, no best guess, a column that holds something else, or a message without
            a role that chat templates know.
    """
    features = splits["train"].features
    names = _choose(features, args.text_columns)
    logger.info("Columns used: %s.", ", ".join(names))
    if len(names) == 2:
        return _rename(splits, dict(zip(names, ("prompt", "completion"), strict=True)))
    if not _is_text(features[names[0]]):
        return _read_chats(splits, names[0])
    return _rename(splits, {names[0]: "text"})


def _choose(features: datasets.Features, given: list[str] | None) -> list[str]:
    if given:
        for name in given:
            if name not in features:
                raise unknown_name("column", name, features, "Correct --text_columns.")
        if len(given) > 2 or len(set(given)) < len(given):
            raise UserError(f"--text_columns takes a text or a chat, or prompt and completion; found {given}.")
        return given
    chats = [name for name in features if name.lower() in CHAT_NAMES and not _is_text(features[name])]
    pairs = [list(pair) for pair in COMPLETION_NAMES if set(pair) <= set(features)]
    texts = [name for name, feature in features.items() if _is_text(feature)]
    named = [name for name in texts if name.lower() in TEXT_NAMES]
    found = [[name] for name in chats] or pairs or [[name] for name in named or texts]
    if len(found) != 1:
        reason = "several columns could be learnt" if found else "no column looks like a text or a chat"
        raise UserError(
            f"Among the columns {', '.join(features)} {reason}; say which with `--text_columns TEXT`, "
            "`--text_columns PROMPT COMPLETION` or `--text_columns MESSAGES`."
        )
    return found[0]


def choose_prompt(features: datasets.Features, given: list[str] | None) -> dict[str, str]:
    """The column to go on from, in rows that need no answer: its name -> `prompt` or `messages`.

    Raises:
        UserError: a name that is not a column, or no best guess.
    """
    if given and given[0] not in features:
        raise unknown_name("column", given[0], features, "Correct --text_columns.")
    chats = [name for name in features if name.lower() in CHAT_NAMES and not _is_text(features[name])]
    texts = [name for name in features if _is_text(features[name])]
    prompts = [name for name in dict.fromkeys(prompt for prompt, _ in COMPLETION_NAMES) if name in texts]
    named = prompts or [name for name in texts if name.lower() in TEXT_NAMES]
    found = given[:1] if given else chats or named or texts
    if len(found) != 1:
        reason = "several columns could be the prompt" if found else "no column looks like a prompt or a chat"
        raise UserError(f"Among the columns {', '.join(features)} {reason}; say which with `--text_columns PROMPT`.")
    return {found[0]: "prompt" if _is_text(features[found[0]]) else "messages"}


def standardize_texts(splits: datasets.DatasetDict, args: "DataArguments") -> datasets.DatasetDict:
    """Keeps the one column of texts, as `text`.

    Raises:
        UserError: a name that is not a column or holds no text, or no best guess.
    """
    return _rename(splits, {choose_text(splits["train"].features, args.text_columns): "text"})


def choose_text(features: datasets.Features, given: list[str] | None) -> str:
    """The one column of texts: as given, by its usual names, or because there is no other.

    Raises:
        UserError: a name that is not a column, several names, or no best guess.
    """
    for name in given or ():
        if name not in features:
            raise unknown_name("column", name, features, "Correct --text_columns.")
    texts = [name for name, feature in features.items() if _is_text(feature)]
    found = given or [name for name in texts if name.lower() in TEXT_NAMES] or texts
    if len(found) != 1:
        reason = "are several texts" if found else "is no text"
        raise UserError(
            f"Among the columns {', '.join(found or features)} there {reason}; name one with --text_columns."
        )
    return found[0]


def _is_text(feature: object) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _rename(splits: datasets.DatasetDict, names: dict[str, str]) -> datasets.DatasetDict:
    for name in names:
        if not _is_text(feature := splits["train"].features[name]):
            raise UserError(f"The column {name!r} holds {feature}, not text; choose another with --text_columns.")
    renamed = {}
    for split, rows in splits.items():
        rows = rows.with_format(None).select_columns(list(names)).rename_columns(names)
        rows = rows.cast(datasets.Features(dict.fromkeys(names.values(), datasets.Value("string"))))
        renamed[split] = _number(rows)
    return datasets.DatasetDict(renamed)


def _read_chats(splits: datasets.DatasetDict, name: str) -> datasets.DatasetDict:
    features = datasets.Features({"messages": datasets.List(MESSAGE)})
    read = {}
    for split, rows in splits.items():
        chats = [read_chat(chat, f"Row {index} of {split}") for index, chat in enumerate(rows.with_format(None)[name])]
        read[split] = _number(datasets.Dataset.from_dict({"messages": chats}, features=features))
    return datasets.DatasetDict(read)


def read_chat(chat: object, where: str) -> list[dict[str, str]]:
    """One chat, in the usual words; `from` and `value` of the ShareGPT layout are understood."""
    if not isinstance(chat, list) or not chat:
        raise UserError(f"{where} holds {str(chat)[:60]!r}; expected a list of messages with role and content.")
    messages = []
    for message in chat:
        fields = message if isinstance(message, dict) else {}
        role, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
        role = {"human": "user", "gpt": "assistant"}.get(str(role), str(role))
        if role not in ROLES or not isinstance(content, str):
            raise UserError(
                f"{where} has the message {str(message)[:80]!r}; expected a role ({', '.join(ROLES)}) and a content "
                "that is text."
            )
        messages.append({"role": role, "content": content})
    return messages


def _number(rows: datasets.Dataset) -> datasets.Dataset:
    names = rows.column_names
    return rows.add_column("row_id", np.arange(len(rows), dtype=np.int64)).select_columns(["row_id", *names])
