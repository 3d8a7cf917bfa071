"""What does a tokenizer's chat template make of a chat, and what does it leave out?

Templates differ in what they read: some want the arguments of a call as an object and others as a text. The form that
is written whole is looked for by asking the template. (The names of reasoning are made equal by transformers 5.23.)
Must not know tokens.
"""

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hftl.data.chats import REASONING
from hftl.errors import UserError

# Fields of calls and tools that say nothing to be read, and that templates leave out or branch on.
STRUCTURE = {"id", "type", "tool_call_id", "call_id", "index", "required", "$schema", "format"}
NEEDED = {"content", "tools", "tool_calls", *REASONING}  # without which another thing would be learnt
MARK = "qz{}zq"


@dataclass(frozen=True)
class Chat:
    """A chat as its template reads it.

    Attributes:
        messages: dictionaries of role, content and whatever else they hold.
        is_learnt: of each message whether it is to be learnt if the assistant speaks.
        tools: that the assistant may call.
    """

    messages: list[dict[str, Any]]
    is_learnt: list[bool]
    tools: list[dict[str, Any]] | None = None

    def write(self, tokenizer: Any, end: int | None = None, *, asks: bool = False) -> str:
        """The text of the messages before `end`; `asks` for the beginning of an answer behind them.

        Raises:
            UserError: the template refuses it.
        """
        try:
            return tokenizer.apply_chat_template(
                self.messages[:end], tools=self.tools, tokenize=False, add_generation_prompt=asks
            )
        except Exception as error:  # a template is a program of somebody else and fails in its own way
            said = str(error).strip().split("\n")[0][:120] or type(error).__name__
            raise UserError(f"the chat template refuses it: {said}") from error


def build_chat(row: dict[str, Any]) -> Chat:
    """The messages of a row in canonical columns."""
    messages = [
        {"role": message["role"], "content": message["content"]} | json.loads(message.get("extra") or "{}")
        for message in row["messages"]
    ]
    tools = json.loads(row["tools"]) if row.get("tools") else None
    return Chat(messages, [message.get("is_learnt", True) is not False for message in row["messages"]], tools)


def fit_chat(row: dict[str, Any], tokenizer: Any) -> tuple[Chat, list[str]]:
    """The form of a chat that the template writes whole, and the fields of messages that it leaves out.

    Raises:
        UserError: the template refuses every form, or leaves out what would be missed.
    """
    chat = build_chat(row)
    missed, errors = set(), []
    for form in _list_forms(chat):
        try:
            left_out = find_left_out(form, tokenizer)
        except UserError as error:
            errors.append(error)
            continue
        if not NEEDED & left_out:
            return form, sorted(left_out)
        missed = missed or NEEDED & left_out
    if missed:
        raise UserError(
            f"the chat template leaves out {' and '.join(sorted(missed))}; remove it from the data, or name a "
            "checkpoint whose template writes it"
        )
    raise errors[0]


def _list_forms(chat: Chat) -> Iterator[Chat]:
    """The chat in every form that some template asks for; as it is comes first."""
    keys = {key for message in chat.messages for key in message}
    as_texts = (False, True) if "tool_calls" in keys else (False,)
    roles = ("developer", "system") if any(m["role"] == "developer" for m in chat.messages) else ("developer",)
    for as_text, role in itertools.product(as_texts, roles):
        messages = [_change(message, as_text=as_text, role=role) for message in chat.messages]
        yield Chat(messages, chat.is_learnt, chat.tools)


def _change(message: dict[str, Any], *, as_text: bool, role: str) -> dict[str, Any]:
    changed = copy.deepcopy(message)
    if changed["role"] == "developer":
        changed["role"] = role
    for call in changed.get("tool_calls", ()) if as_text else ():
        if not isinstance(call["function"]["arguments"], str):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return changed


def find_left_out(chat: Chat, tokenizer: Any) -> set[str]:
    """The fields whose texts the template does not write, or not to their end.

    Each text is marked at both ends, and the marks are looked for in what is written.

    Raises:
        UserError: the template refuses the chat.
    """
    text = chat.write(tokenizer)
    marks: dict[str, str] = {}

    def mark(value: str, field: str) -> str:
        first, last = (MARK.format(len(marks) + place) for place in (0, 1))
        marks.update({first: field, last: field})
        return f"{first}{value}{last}"

    # The fields of a message themselves all say something: only what lies inside of them may be structure.
    marked = [
        {key: value if key == "role" else _mark_all(value, "", key, mark) for key, value in message.items()}
        for message in chat.messages
    ]
    tools = None if chat.tools is None else _mark_all(chat.tools, "tools", "tools", mark)
    try:
        written = Chat(marked, chat.is_learnt, tools).write(tokenizer)
        left_out = {field for found, field in marks.items() if found not in written}
    except UserError:  # the template looks at what it writes: the texts themselves are looked for
        left_out = _find_missing(chat, text)
    return left_out | _find_python(chat, text)


def _mark_all(value: Any, key: str, field: str, mark: Callable[[str, str], str]) -> Any:
    if isinstance(value, dict):
        return {name: _mark_all(part, name, field, mark) for name, part in value.items()}
    if isinstance(value, list):
        return value if key in STRUCTURE else [_mark_all(part, key, field, mark) for part in value]
    is_said = isinstance(value, str) and value.strip() and key not in STRUCTURE
    return mark(value, field) if is_said else value


def _find_missing(chat: Chat, text: str) -> set[str]:
    missing: set[str] = set()

    def look(value: str, field: str) -> str:
        forms = (value.strip(), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
        missing.update([] if any(form in text for form in forms) else [field])
        return value

    for message in chat.messages:
        for key, value in message.items():
            if key != "role":
                _mark_all(value, "", key, look)
    _mark_all(chat.tools or [], "tools", "tools", look)
    return missing


def _find_python(chat: Chat, text: str) -> set[str]:
    """Calls whose arguments are written as Python shows an object, by a template that expects a text."""
    calls = [call["function"].get("arguments") for message in chat.messages for call in message.get("tool_calls", ())]
    shown = [str(arguments) for arguments in calls if isinstance(arguments, dict) and "'" in str(arguments)]
    return {"tool_calls"} if any(arguments in text for arguments in shown) else set()
