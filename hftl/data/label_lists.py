"""Is a text a list of labels? Lists of Python and JSON, sets, tuples, what numpy and torch print, zeros and ones.

A column of such texts becomes a column of lists, of which `labels` then says what it means. Must not know splits.
"""

import ast
import json
import re
from collections.abc import Sequence

from hftl.errors import UserError

Item = str | int | float | bool
MULTI, SINGLE = "--problem_type multi_label_classification", "--problem_type single_label_classification"

MAX_DIGITS = 15  # of a number; longer ones are names
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_WRAPPED = re.compile(r"(?:np\.|numpy\.|torch\.)?(?:array|tensor|frozenset|set|list|tuple)\((.*)\)", re.DOTALL)
_KEYWORDS = re.compile(r",\s*(?:dtype|device|shape)\s*=.*$", re.DOTALL)
_SCALAR = re.compile(r"(?:np|numpy)\.\w+\(((?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^'\"()]*))\)")
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_PART = re.compile(rf"(?:\s*(?P<quoted>{_QUOTED})\s*|(?P<bare>[^,'\"\[\](){{}}]+))(?P<comma>,|$)", re.DOTALL)
_SPACED = re.compile(rf"\s*(?:(?P<quoted>{_QUOTED})|(?P<bare>[^\s,'\"\[\](){{}}]+))(?P<comma>\s+|$)", re.DOTALL)
_NESTED = re.compile(
    r"[\[{(][\[{(\s]*['\"]|\[\s*\[[-+.\d\s]+[],]"
)  # a quoted word or lists of numbers, in any brackets
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_BITS = re.compile(r"[01](?:\.0*)?(?:(?P<mark>\s+|\s*[,;|]\s*)[01](?:\.0*)?)+")
_CONSTANTS = {"true": True, "false": False, "none": None, "null": None, "nan": None}


def parse_lists(texts: Sequence[str | None], problem_type: str | None, where: str) -> list[list[Item] | None] | None:
    """The lists that texts stand for; None where each text is one label, or labels with a delimiter.

    Args:
        texts: the labels of all rows.
        problem_type: as the user gave it; one class a row takes every text as it is.
        where: the column, for messages.

    Raises:
        UserError: some texts are lists and others are not, or what is meant cannot be told.
    """
    filled = [text.strip() for text in texts if text and text.strip()]
    if problem_type not in (None, "multi_label_classification") or not filled:
        return None
    is_asked = problem_type is not None
    if (width := _count_bits(filled)) and (is_asked or width > 2):
        return [None if text is None else _split_bits(text) for text in texts]
    if not is_asked:
        _refuse_unclear(filled, width, where)
    parsed = {text: parse_list(text) for text in set(filled)}
    if not any(_is_list(text, items, is_asked) for text, items in parsed.items()):
        return None
    if odd := next((text for text in filled if parsed[text] is None), None):
        raise UserError(
            f"Some labels of {where} are lists and {odd[:60]!r} is not one that can be read. Write each as ['a', 'b'] "
            f"or with a delimiter; if each text is one class, type `{SINGLE}`."
        )
    if not is_asked and _may_be_ranges(list(parsed.values())):
        raise UserError(
            f"The labels of {where} may be lists or ranges, such as {filled[0][:60]!r}: type `{MULTI}` or `{SINGLE}`."
        )
    return [None if text is None else parsed.get(text.strip(), []) for text in texts]


def parse_list(text: str) -> list[Item] | None:
    """The items of a list as Python, JSON, numpy or torch write it; None for any other text."""
    text = text.strip()
    is_wrapped = (match := _WRAPPED.fullmatch(text)) is not None
    text = _SCALAR.sub(r"\1", _KEYWORDS.sub("", match[1]).strip() if is_wrapped else text)
    if is_wrapped and not text:  # set()
        return []
    if text[:1] in _CLOSING and text[-1:] == _CLOSING[text[0]]:
        return _parse_items(text[1:-1])
    items = _parse_items(text) if text[:1] in "'\"" else None
    return items if items is not None and len(items) > 1 else None


def _parse_items(inner: str) -> list[Item] | None:
    """Items between brackets, with commas or with blanks between them as numpy prints them."""
    pattern = _PART if "," in re.sub(_QUOTED, "", inner, flags=re.DOTALL) else _SPACED
    items, place = [], 0
    inner = inner.strip().removesuffix(",")
    while place < len(inner):
        match = pattern.match(inner, place)
        if match is None or (match["bare"] or "").strip() in ("...", "…"):  # what is left out cannot be read
            return None
        if match["bare"] is None or match["bare"].strip():
            item = _read_item(match["quoted"], match["bare"])
            if item is None:
                return None
            items.append(item)
        place = match.end()
    return items


def _read_item(quoted: str | None, bare: str | None) -> Item | None:
    if quoted is not None:
        try:
            return json.loads(quoted) if quoted[0] == '"' else ast.literal_eval(quoted)
        except (ValueError, SyntaxError):
            return quoted[1:-1]
    bare = bare.strip()
    if bare.lower() in _CONSTANTS:
        return _CONSTANTS[bare.lower()]
    if len(bare) > MAX_DIGITS or not _NUMBER.fullmatch(bare):
        return None if ":" in bare else bare  # a dictionary
    number = float(bare)
    return int(bare) if bare.lstrip("+-").isdigit() else int(number) if number.is_integer() else number


def _is_list(text: str, items: list[Item] | None, is_asked: bool) -> bool:
    """Whether a text is a list beyond doubt: one bare word in brackets may be a name, such as [INST] or (a)."""
    if items is None:
        return bool(_NESTED.match(text))
    is_square = text[0] == "[" or _WRAPPED.fullmatch(text) is not None
    if len(items) != 1 and (is_square or items) or is_asked and is_square:
        return True
    return bool(re.search(r"['\"]", text))


def _count_bits(texts: list[str]) -> int:
    """How many zeros and ones each text holds; 0 where they are not alike or hold something else."""
    if not all(_BITS.fullmatch(text) for text in texts):
        return 0
    widths = {len(_split_bits(text)) for text in texts}
    return widths.pop() if len(widths) == 1 else 0


def _split_bits(text: str) -> list[Item]:
    return [int(float(part)) for part in re.split(r"[\s,;|]+", text.strip()) if part]


def _refuse_unclear(texts: list[str], width: int, where: str) -> None:
    is_pair = width == 2 and all(re.search(r"[\s,]", text) for text in texts)  # 0|1 is how genotypes are written
    is_packed = len({len(text) for text in texts}) == 1 and len(texts[0]) > 2 and set("".join(texts)) == {"0", "1"}
    if is_pair or is_packed and any(text[0] == "0" for text in texts):
        raise UserError(
            f"The labels of {where} may be rows of zeros and ones, such as {texts[0]!r}: type `{MULTI}` if each place "
            f"is a label of its own (written as 0 1 0), or `{SINGLE}` if each text is one class."
        )


def _may_be_ranges(lists: list[list[Item] | None]) -> bool:
    """Whether every list is two growing numbers, as in [18, 25], and not all zeros and ones."""
    pairs = [items for items in lists if items is not None and len(items) == 2]
    if len(pairs) < len(lists) or not all(isinstance(item, (int, float)) for items in pairs for item in items):
        return False
    return all(a < b for a, b in pairs) and not all(item in (0, 1) for items in pairs for item in items)
