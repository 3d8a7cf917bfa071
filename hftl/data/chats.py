"""What does a cell that holds a chat say? Turns with role, content, what else they hold, and whether they are learnt.

A chat is a list of messages, in the layout of OpenAI or of ShareGPT, also as JSON or as Python writes it. Must not
know columns, tokens or templates.
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from hftl.errors import UserError

CHAT_NAMES = ("messages", "conversation", "conversations", "chat")
ROLES = ("system", "user", "assistant", "tool", "developer")
SPELLINGS = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "bard", "bing", "ai", "model"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response", "tool_response", "ipython"), "tool"),
}
CALLS = ("function_call", "tool_call", "tool_calls")  # roles of a turn whose content is the call
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "text")
FLAGS = ("weight", "loss_weight", "loss", "train", "training", "trainable")  # of a turn: whether it is learnt
REFUSAL = "refusal"
REASONING = ("reasoning_content", "thinking", "reasoning")  # as templates call it
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
TEXT_PARTS = (None, "text", "input_text", "output_text")
_CHAT_START = re.compile(
    r"""\s*(?:array)?\(?\s*[\[{].{0,300}?["'](?:role|from|messages|conversations?|chat)["']\s*:""", re.DOTALL
)
_OBJECT_START = re.compile(r"\s*(?:array)?\(?\s*\[?\s*\{")
_ARRAY = re.compile(r"\s*array\((.*?)(?:,\s*dtype=\w+)?\)\s*", re.DOTALL)  # as numpy writes one


def is_empty(value: Any) -> bool:
    """Whether a field says nothing."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {}, ())


def parse_text(text: str) -> Any:
    """What a text means that was written as JSON or by Python; None where it is neither."""
    if match := _ARRAY.fullmatch(text):
        text = match[1]
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None


def looks_like_chat(cell: Any) -> bool:
    """Whether a text begins as a chat does that was written as JSON or by Python."""
    if not isinstance(cell, str) or not _OBJECT_START.match(cell) or not _CHAT_START.match(cell):
        return False
    parsed = parse_text(cell)
    if isinstance(parsed, dict):
        return any(isinstance(parsed.get(name), list) for name in CHAT_NAMES)
    # What cannot be parsed begins as a chat, and may well be one that was cut or written by another program.
    return parsed is None or (isinstance(parsed, (list, tuple)) and all(_is_message(part) for part in parsed))


def _is_message(part: Any) -> bool:
    return isinstance(part, dict) and any(key in part for key in ROLE_KEYS)


def read_chat(cell: Any) -> list[dict[str, Any]]:
    """The turns of a chat.

    Returns:
        Of each turn `role`, one of `ROLES`; `content`; `extra`, all its other fields as a JSON object, or None; and
        `is_learnt`, which says whether the user wants it to be learnt if the assistant speaks.

    Raises:
        UserError: it is no chat, or holds what a language model cannot be given.
    """
    messages = _as_list(cell)
    if not messages:
        raise UserError(f"the chat is {str(cell)[:60]!r}; expected a list of messages with role and content")
    return [read_message(message) for message in messages]


def _as_list(cell: Any) -> list | None:
    if isinstance(cell, str):
        parsed = parse_text(cell)
        return None if isinstance(parsed, str) else _as_list(parsed)
    if isinstance(cell, Mapping):
        fields = {name: value for name, value in cell.items() if not is_empty(value)}
        if len(fields) == 1 and next(iter(fields)) in CHAT_NAMES:
            return _as_list(next(iter(fields.values())))
        lengths = {len(value) if isinstance(value, list) else 0 for value in fields.values()}
        if len(fields) > 1 and len(lengths) == 1 and 0 not in lengths:  # a list for each field
            return [dict(zip(fields, row, strict=True)) for row in zip(*fields.values(), strict=True)]
        return None
    return list(cell) if isinstance(cell, (list, tuple)) else None


def read_message(message: Any) -> dict[str, Any]:
    """One turn, as `read_chat` gives it.

    Raises:
        UserError: its role is none of the known ones, or its content is no text.
    """
    fields = parse_text(message) if isinstance(message, str) else message
    if not isinstance(fields, Mapping):
        raise UserError(f"the message {str(message)[:60]!r} is no object; expected role and content")
    fields = {name: value for name, value in drop_nulls(fields).items() if not is_empty(value)}
    spoken = str(next((fields.pop(key) for key in ROLE_KEYS if key in fields), None))
    role = "assistant" if spoken.lower() in CALLS else SPELLINGS.get(spoken.lower())
    if role is None:
        raise UserError(f"a message has the role {spoken[:40]!r}; expected a role of {', '.join(ROLES)}")
    if shown := [name for name in fields if name.lower() in MEDIA]:
        raise UserError(f"a message has {shown[0]!r}, and a language model reads text alone")
    texts = [fields.pop(key) for key in CONTENT_KEYS if key in fields]
    if len(texts) > 1 and any(text != texts[0] for text in texts):
        raise UserError(f"a message of {role} has two contents; leave one of {', '.join(CONTENT_KEYS)}")
    content = _read_content(texts[0] if texts else "", fields)
    if spoken.lower() in CALLS:
        content, fields["tool_calls"] = "", content
    is_learnt = _read_flags(fields)
    _read_calls(fields)
    if not content and isinstance(fields.get(REFUSAL), str):  # what OpenAI's models say instead of an answer
        content = fields.pop(REFUSAL)
    extra = json.dumps(fields, ensure_ascii=False) if fields else None
    return {"role": role, "content": content, "extra": extra, "is_learnt": is_learnt}


def drop_nulls(value: Any) -> Any:
    """Without the nulls that a table puts where other rows have a field."""
    if isinstance(value, Mapping):
        return {name: drop_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [drop_nulls(part) for part in value]
    return value


def _read_content(content: Any, fields: dict[str, Any]) -> str:
    """The text of a message; of several parts one after the other. Reasoning goes where templates look for it."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        raise UserError(f"a message has the content {str(content)[:40]!r}; expected a text")
    texts = []
    for part in content:
        part = {"text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("thinking", "reasoning") and isinstance(part.get(kind, part.get("text")), str):
            fields[REASONING[0]] = fields.get(REASONING[0], "") + part.get(kind, part.get("text"))
        elif isinstance(part, Mapping) and kind in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            named = f"of type {kind!r}" if kind else repr(str(part)[:40])
            raise UserError(f"a message has a part {named}, and a language model reads text alone")
    return "".join(texts)


def _read_flags(fields: dict[str, Any]) -> bool:
    """Whether a turn is to be learnt; the flags are taken out of `fields`."""
    if "mask" in fields:
        raise UserError(
            "a message has the flag 'mask', which some read as learnt and others as hidden; write 'weight': 1 for a "
            "turn that is learnt and 'weight': 0 for one that is not"
        )
    found = {_read_flag(name, fields.pop(name)) for name in FLAGS if name in fields}
    if len(found) > 1:
        raise UserError(f"a message has flags of {', '.join(FLAGS)} that contradict each other; leave one")
    return found.pop() if found else True


def _read_flag(name: str, value: Any) -> bool:
    known = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True, "0.0": False, "1.0": True}
    if (meant := known.get(str(value).strip().lower())) is None:
        raise UserError(f"a message has {name} {str(value)[:20]!r}; expected 0 or 1")
    return meant


def _read_calls(fields: dict[str, Any]) -> None:
    """Calls of functions, all as `tool_calls` in the layout that templates read, their arguments as objects."""
    calls = fields.pop("tool_calls", None)
    calls = fields.pop("function_call", None) if is_empty(calls) else calls
    if is_empty(calls):
        return
    parsed = parse_text(calls) if isinstance(calls, str) else calls
    parsed = [parsed] if isinstance(parsed, Mapping) else parsed
    if not isinstance(parsed, list) or not parsed:
        raise UserError(f"a call is {str(calls)[:40]!r}; expected an object with name and arguments")
    fields["tool_calls"] = [_read_call(call) for call in parsed]


def _read_call(call: Any) -> dict[str, Any]:
    call = parse_text(call) if isinstance(call, str) else call
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f"a call is {str(call)[:40]!r}; expected an object with name and arguments")
    arguments = function.get("arguments", {})
    parsed = parse_text(arguments) if isinstance(arguments, str) and arguments.strip() else arguments or {}
    around = {name: value for name, value in call.items() if name not in ("name", "arguments", "function")}
    named = {"name": function["name"], "arguments": arguments if parsed is None else parsed}
    rest = {} if function is call else {name: value for name, value in function.items() if name not in named}
    return {"type": "function", **around, "function": {**named, **rest}}


def read_tools(cell: Any) -> list[dict[str, Any]] | None:
    """The functions that an assistant may call, each as {type, function}; None where there are none.

    Raises:
        UserError: it is no list of objects.
    """
    if is_empty(cell) or cell in ("[]", "{}", "null", "None"):
        return None
    tools = parse_text(cell) if isinstance(cell, str) else cell
    tools = [tools] if isinstance(tools, Mapping) else tools
    tools = [parse_text(tool) if isinstance(tool, str) else tool for tool in tools] if isinstance(tools, list) else []
    if not tools or not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError(f"the tools are {str(cell)[:60]!r}; expected a JSON list of objects")
    tools = [drop_nulls(tool) for tool in tools]
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
