"""From columns to the examples of a language model: plain texts, prompts with completions, or chats.

After `standardize_language` all data look alike: `row_id` and `text`, or `prompt` and `completion`, or `messages` (as
`chats.read_chat` gives them) with `tools`. Where it matters there are two columns more: `fault`, why a row cannot be
learnt, and `unread`, its columns that nobody reads. This module must not know tokens or templates.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from hftl.data.chats import is_empty, looks_like_chat, read_chat, read_tools
from hftl.data.columns import TEXT_NAMES
from hftl.data.paths import is_text
from hftl.data.roles import SIDES, choose_layout, is_id, is_whole
from hftl.errors import UserError, unknown_name

if TYPE_CHECKING:
    from hftl.config import DataArguments

logger = logging.getLogger(__name__)

STRING = datasets.Value("string")
MESSAGE = {"role": STRING, "content": STRING, "extra": STRING, "is_learnt": datasets.Value("bool")}
KINDS = {
    "text": {"text": STRING},
    "pair": {"prompt": STRING, "completion": STRING},
    "chat": {"messages": datasets.List(MESSAGE), "tools": STRING},
}
BETWEEN = "\n\n"  # the columns of a prompt
NO_CHAT = "no chat, as other rows are; expected a list of messages with role and content"


def standardize_language(splits: datasets.DatasetDict, args: "DataArguments") -> datasets.DatasetDict:
    """Keeps the columns that `args.text_columns` names, or the only ones that fit, under their canonical names.

    Raises:
        UserError: a name that is not a column, no best guess, or a column that holds something else.
    """
    layout = choose_layout(splits["train"].features, args.text_columns)
    logger.info("Columns used: %s.", ", ".join(layout.values()))
    kind = _find_kind(splits["train"], layout)
    return datasets.DatasetDict(
        {split: _standardize(rows, _find_columns(rows, split, layout), kind) for split, rows in splits.items()}
    )


def _find_columns(rows: datasets.Dataset, split: str, layout: Mapping[str, str]) -> dict[str, str]:
    """The layout in a split, which may be without what stands beside a chat or prompt."""
    found = {part: name for part, name in layout.items() if name in rows.column_names}
    if missing := [name for part, name in layout.items() if part not in found and not part.startswith(tuple(SIDES))]:
        raise UserError(f"{split} has no column {missing[0]!r}, which train has.")
    return found


def _find_kind(rows: datasets.Dataset, layout: Mapping[str, str]) -> str:
    """What most rows are; a text may hold a chat that was written as JSON."""
    if "messages" in layout:
        return "chat"
    first = layout.get("text", layout.get("prompt"))
    answer = rows.features[layout.get("completion", first)]
    if not is_text(rows.features[first]) or not (is_text(answer) or is_whole(answer)):
        return "chat"
    if sum(map(looks_like_chat, rows.with_format(None)[first])) > len(rows) / 2:
        return "chat"
    return "text" if "text" in layout else "pair"


def _standardize(rows: datasets.Dataset, layout: Mapping[str, str], kind: str) -> datasets.Dataset:
    if kind != "chat" and len(layout) == len(KINDS[kind]):
        read = _rename(rows, layout)
        faults = ["a chat among rows that are none"] if kind == "text" else ["a chat as prompt of a plain text"]
        found = [faults[0] if looks_like_chat(text) else None for text in read["text" if kind == "text" else "prompt"]]
    else:
        parts = [_attempt(row, kind) for row in _list_parts(rows, layout)]
        found = [part.pop("fault", None) for part in parts]
        features = datasets.Features({"row_id": datasets.Value("int64"), **KINDS[kind]})
        columns = {name: [part.get(name) for part in parts] for name in KINDS[kind]}
        read = datasets.Dataset.from_dict({"row_id": range(len(rows)), **columns}, features=features)
    if any(found):
        read = read.add_column("fault", found, feature=STRING)
    others = {name: _read_column(rows, name) for name in rows.column_names if name not in layout.values()}
    if others:
        unread = [[name for name in others if not is_empty(others[name][index])] for index in range(len(rows))]
        read = read.add_column("unread", unread, feature=datasets.List(STRING))
    return read


def _read_column(rows: datasets.Dataset, name: str) -> list:
    """The values of a column; pictures and sounds as they are stored."""
    if _is_plain(rows.features[name]):
        return rows.with_format(None)[name][:]
    return rows.with_format("arrow")[name][:].to_pylist()


def _is_plain(feature: object) -> bool:
    """Whether reading takes no decoding of a picture or a sound."""
    if isinstance(feature, dict):
        return all(map(_is_plain, feature.values()))
    inner = getattr(feature, "feature", None)
    return (
        isinstance(feature, (datasets.Value, datasets.Json, datasets.ClassLabel))
        if inner is None
        else _is_plain(inner)
    )


def _list_parts(rows: datasets.Dataset, layout: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    columns = {part: _read_column(rows, name) for part, name in layout.items()}
    return ({part: values[index] for part, values in columns.items()} for index in range(len(rows)))


def _attempt(parts: dict[str, Any], kind: str) -> dict[str, Any]:
    """An example, or the fault that the row has."""
    try:
        example = read_example(parts)
    except UserError as error:
        return {"fault": str(error)}
    if ("messages" in example) != (kind == "chat"):
        return {"fault": NO_CHAT if kind == "chat" else "a chat among rows that are none"}
    return example


def read_example(parts: Mapping[str, Any]) -> dict[str, Any]:
    """One row, by the parts that `roles` names, in canonical columns; without an answer where it has none.

    Raises:
        UserError: it is no chat, or holds what a language model cannot be given.
    """
    for part, value in parts.items():
        if part.startswith("media") and not is_empty(value):
            raise UserError("pictures or sounds belong to the row, and a language model reads text alone")
    prompts = [parts[part] for part in parts if part.startswith("prompt")]
    whole = parts.get("messages", parts.get("text"))
    first = whole if not prompts else prompts[0]
    is_chat = [value is not None and not isinstance(value, (str, int)) for value in (first, parts.get("completion"))]
    if any(is_chat) or looks_like_chat(first) or "messages" in parts:
        return _read_whole_chat(parts, first, prompts[1:])
    lost = ("tools", "history", "system") if "text" in parts else ("tools", "history")
    for part, value in parts.items():
        if part.startswith(lost) and not is_empty(value) and value != "[]":
            name = part.strip("0123456789")
            raise UserError(f"the row has a value in {name}, which a plain text cannot show; write such rows as chats")
    if "text" in parts:
        return {"text": whole}
    read = [value for part, value in parts.items() if part.startswith("system")] + prompts
    example = {"prompt": BETWEEN.join(str(text) for text in read if not is_empty(text))}
    if "completion" in parts:
        answer = parts["completion"]
        example["completion"] = None if answer is None else str(answer)
    return example


def _read_whole_chat(parts: Mapping[str, Any], chat: Any, about: list[Any]) -> dict[str, Any]:
    messages = _read_turns(chat, "user" if "completion" in parts else None)
    if any(not is_empty(text) for text in about):
        raise UserError("a text belongs to the row besides its chat; write it into the chat")
    if "completion" in parts:
        turns = _read_turns(parts["completion"], "assistant")
        messages = [message | {"is_learnt": False} for message in messages]
        is_repeated = turns[: len(messages)] == [message | {"is_learnt": True} for message in messages]
        messages += turns[len(messages) :] if is_repeated else turns
    if any(part.startswith("history") and not is_empty(value) and value != "[]" for part, value in parts.items()):
        raise UserError("the row has earlier turns in history; write them into the chat")
    for part in [part for part in parts if part.startswith("system")]:
        messages = _add_system(messages, parts[part])
    found = [tools for part, cell in parts.items() if part.startswith("tools") and (tools := read_tools(cell))]
    if len(found) > 1:
        raise UserError("several columns hold tools; leave one")
    return {"messages": messages, "tools": json.dumps(found[0], ensure_ascii=False) if found else None}


def _read_turns(cell: Any, speaker: str | None) -> list[dict[str, Any]]:
    """A chat; a plain text is what this speaker says."""
    is_said = speaker is not None and isinstance(cell, str) and not looks_like_chat(cell)
    return read_chat([{"role": speaker, "content": cell}] if is_said else cell)


def _add_system(messages: list[dict[str, Any]], system: Any) -> list[dict[str, Any]]:
    """The chat with the system message of its column in front."""
    if is_empty(system):
        return messages
    if not isinstance(system, str):
        raise UserError(f"the system message is {str(system)[:40]!r}; expected a text")
    if messages[0]["role"] == "system":
        if messages[0]["content"].strip() != system.strip():
            raise UserError("the chat has a system message and its column another one; leave one")
        return messages
    return read_chat([{"role": "system", "content": system}]) + messages


def standardize_texts(splits: datasets.DatasetDict, args: "DataArguments") -> datasets.DatasetDict:
    """Keeps the one column of texts, as `text`.

    Raises:
        UserError: a name that is not a column or holds no text, or no best guess.
    """
    layout = {"text": choose_text(splits["train"].features, args.text_columns)}
    return datasets.DatasetDict({split: _rename(rows, layout) for split, rows in splits.items()})


def choose_text(features: datasets.Features, given: list[str] | None) -> str:
    """The one column of texts: as given, by its usual names, or because there is no other.

    Raises:
        UserError: a name that is not a column, several names, or no best guess.
    """
    for name in given or ():
        if name not in features:
            raise unknown_name("column", name, features, "Correct --text_columns.")
    texts = [name for name, feature in features.items() if is_text(feature) and not is_id(name)]
    found = given or [name for name in texts if name.lower() in TEXT_NAMES] or texts
    if len(found) != 1:
        reason = "are several texts" if found else "is no text"
        raise UserError(
            f"Among the columns {', '.join(found or features)} there {reason}; name one with --text_columns."
        )
    return found[0]


def _rename(rows: datasets.Dataset, layout: Mapping[str, str]) -> datasets.Dataset:
    """The columns of texts under their canonical names, as they lie on disk."""
    for name in layout.values():
        if not is_text(feature := rows.features[name]) and not is_whole(feature):
            raise UserError(f"The column {name!r} holds {feature}, not text; choose another with --text_columns.")
    names = {name: part for part, name in layout.items()}
    rows = rows.with_format(None).select_columns(list(names)).rename_columns(names)
    rows = rows.cast(datasets.Features(dict.fromkeys(names.values(), STRING)))
    rows = rows.add_column("row_id", np.arange(len(rows), dtype=np.int64))
    return rows.select_columns(["row_id", *names.values()])
