"""Which columns make an example of a language model, and what is the part of each?

A layout names for each part its column: `text`; or `prompt`, `prompt_2`, ... and `completion`; or `messages`; and
beside them `system`, `tools`, and what a language model cannot be given. Must not look at rows.
"""

from collections.abc import Mapping
from typing import Any

import datasets

from hftl.data.chats import CHAT_NAMES, CONTENT_KEYS, MEDIA, ROLE_KEYS
from hftl.data.columns import TEXT_NAMES
from hftl.data.paths import is_text
from hftl.errors import UserError, quote_names, unknown_name

# As the instruction data sets of the Hub call them.
PROMPT_NAMES = ("prompt", "instruction", "question", "query")
COMPLETION_NAMES = ("completion", "response", "output", "answer")
INPUT_NAMES = ("input", "context")  # what an instruction is about
SIDES = {
    "system": ("system", "systemprompt", "systemmessage", "systeminstruction"),
    "tools": ("tools", "functions", "availabletools", "toolschemas", "tooldefinitions"),
    "media": MEDIA,
    "history": ("history",),
}
ID_NAMES = ("id", "_id", "idx", "index", "uid", "uuid", "guid")
ADVICE = (
    "say which with `--text_columns TEXT`, `--text_columns PROMPT COMPLETION` (of several the last is the completion) "
    "or `--text_columns MESSAGES`."
)


def choose_layout(features: datasets.Features, given: list[str] | None) -> dict[str, str]:
    """Part -> column, of rows that are learnt: as given, or the only ones that fit.

    Raises:
        UserError: a name that is not a column, no best guess, or columns for another kind of training.
    """
    if given:
        return _read_given(features, given)
    _refuse_preferences(features)
    chats = _find_chats(features)
    pairs = _find_pairs(features)
    texts = [name for name, feature in features.items() if is_text(feature) and not is_id(name)]
    found = [{"messages": name} for name in chats] or pairs or [{"text": name} for name in _prefer(texts)]
    if len(found) != 1:
        reason = "several columns could be learnt" if found else "no column looks like a text or a chat"
        raise UserError(f"Among the columns {', '.join(features)} {reason}; {ADVICE}")
    _refuse_lone_prompt(found[0].get("text"), features)
    return _add_sides(found[0], features)


def choose_prompts(features: datasets.Features, given: list[str] | None) -> dict[str, str]:
    """Part -> column, of rows that are to be gone on from and need no answer.

    Raises:
        UserError: a name that is not a column, or no best guess.
    """
    if given:
        read = given[:-1] or given  # of several the last is the completion
        return _read_given(features, read, needs_completion=False)
    chats = _find_chats(features)
    texts = [name for name in features if is_text(features[name]) and not is_id(name)]
    prompts = _find_prompts(features)
    named = prompts or _prefer(texts)
    found = [{"messages": name} for name in chats] or [_as_prompts(features, name) for name in named]
    if len(found) != 1:
        reason = "several columns could be the prompt" if found else "no column looks like a prompt or a chat"
        raise UserError(f"Among the columns {', '.join(features)} {reason}; say which with `--text_columns PROMPT`.")
    return _add_sides(found[0], features)


def _prefer(texts: list[str]) -> list[str]:
    """Those that by their name hold chats, which a table may store as text, or texts; else all."""
    for names in (CHAT_NAMES, TEXT_NAMES):
        if found := [name for name in texts if name.lower() in names]:
            return found
    return texts


def is_whole(feature: object) -> bool:
    """Whether values are integers, which are written as they are; decimals would lose zeros."""
    return isinstance(feature, datasets.Value) and "int" in feature.dtype


def is_id(name: str) -> bool:
    """Whether a column by its name only says which row it is."""
    return name.lower() in ID_NAMES or name.lower().endswith("_id")


def is_chat(feature: object) -> bool:
    """Whether the type is that of a list of messages."""
    inner = feature.feature if isinstance(feature, datasets.List) else None
    if isinstance(inner, dict):
        return any(key in inner for key in ROLE_KEYS) and any(key in inner for key in CONTENT_KEYS)
    return False


def _read_given(features: datasets.Features, given: list[str], *, needs_completion: bool = True) -> dict[str, str]:
    for name in given:
        if name not in features:
            raise unknown_name("column", name, features, "Correct --text_columns.")
    if len(set(given)) < len(given):
        raise UserError(f"--text_columns takes a text or a chat, or prompt and completion; found {given}.")
    lists = [name for name in given if not is_text(features[name]) and not is_whole(features[name])]
    if wrong := [name for name in lists if not _may_be_chat(features[name])]:
        raise UserError(
            f"The column {wrong[0]!r} holds {features[wrong[0]]}, not text; choose another with --text_columns."
        )
    if lists and len(given) > 2:
        raise UserError(f"--text_columns takes one chat, or a prompt and a completion; found {given}.")
    if lists and len(given) == 1:
        return _add_sides({"messages": given[0]}, features)
    if len(given) == 1:
        return _add_sides({"text" if needs_completion else "prompt": given[0]}, features, is_named=True)
    prompts = given[:-1] if needs_completion else given
    layout = dict(zip(_number_prompts(len(prompts)), prompts, strict=True))
    layout |= {"completion": given[-1]} if needs_completion else {}
    return _add_sides(layout, features) if lists else layout


def _may_be_chat(feature: object) -> bool:
    """Lists, and what JSON files hold that differs from row to row."""
    return isinstance(feature, (datasets.List, datasets.LargeList, datasets.Json, dict, list))


def _find_chats(features: datasets.Features) -> list[str]:
    """By name, else by type; lists that are prompt and completion are a pair."""
    named = [name for name in features if name.lower() in CHAT_NAMES and _may_be_chat(features[name])]
    if named or _find_pairs(features):
        return named
    return [name for name, feature in features.items() if is_chat(feature) and name.lower() not in COMPLETION_NAMES]


def _find_prompts(features: datasets.Features) -> list[str]:
    """Columns that ask; `input` alone is one, beside another it is what that is about."""
    fits = [name for name in features if is_text(features[name]) or _may_be_chat(features[name])]
    found = [name for name in fits if name.lower() in PROMPT_NAMES]
    return found or [name for name in fits if name.lower() == "input"]


def _find_pairs(features: datasets.Features) -> list[dict[str, str]]:
    completions = [name for name in features if name.lower() in COMPLETION_NAMES]
    return [
        _as_prompts(features, prompt) | {"completion": name}
        for prompt in _find_prompts(features)
        for name in completions
        if is_text(features[name]) or is_whole(features[name]) or _may_be_chat(features[name])
    ]


def _as_prompts(features: Mapping[str, Any], prompt: str) -> dict[str, str]:
    """The prompt with the columns that belong to it, in the order in which they are read."""
    if not is_text(features[prompt]):
        return {"prompt": prompt}
    about = [name for name in features if name.lower() in INPUT_NAMES and is_text(features[name]) and name != prompt]
    return dict(zip(_number_prompts(1 + len(about)), [prompt, *about], strict=True))


def _number_prompts(count: int) -> list[str]:
    return ["prompt", *(f"prompt_{number}" for number in range(2, count + 1))][:count]


def _add_sides(layout: dict[str, str], features: datasets.Features, *, is_named: bool = False) -> dict[str, str]:
    """The columns beside a chat or prompt that say something of it; of a text only where it may be a chat."""
    first = next(iter(layout.values())).lower()
    if ("text" in layout or is_named) and first not in CHAT_NAMES:
        return layout
    taken = set(layout.values())
    for part, names in SIDES.items():
        found = [name for name in features if name.lower().replace("_", "") in names and name not in taken]
        layout = layout | {f"{part}{number or ''}": name for number, name in enumerate(found)}
    return layout


def _refuse_lone_prompt(text: str | None, features: datasets.Features) -> None:
    """A question whose answer stands in a column of a name or type that nobody knows would be learnt without it."""
    others = [name for name in features if name != text and not is_id(name)]
    if text is not None and text.lower() in (*PROMPT_NAMES, "input") and others:
        raise UserError(
            f"The column {text!r} looks like a prompt, and among {quote_names(others)} none is known as what answers "
            f"it; {ADVICE}"
        )


def _refuse_preferences(features: datasets.Features) -> None:
    """Data for tuning by preference, which would be learnt without what they are about."""
    if {"chosen", "rejected"} <= set(features) and not any(name.lower() in CHAT_NAMES for name in features):
        raise UserError(
            "The columns chosen and rejected are for tuning by preference (DPO), which hftl does not do. To learn "
            "what was chosen, name it: `--text_columns chosen`, or `--text_columns prompt chosen`."
        )
    label = features.get("label")
    if {"prompt", "completion"} <= set(features) and isinstance(label, datasets.Value) and label.dtype == "bool":
        raise UserError(
            "The column label says which completions are wanted, for tuning by preference (KTO), which hftl does not "
            "do. Keep the rows that are, or name what is learnt: `--text_columns prompt completion`."
        )
