"""What rows does a JSON file hold? One object a line, or one list of objects; whatever else is refused by name.

Must not know which columns matter.
"""

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from hftl.data.encoding import UNPACKED, not_utf8, open_bytes, open_text
from hftl.errors import UserError, quote_names

MAX_DEPTH = 100
INNER_NAMES = ("data", "rows", "examples", "train", "validation", "test")  # where files keep their rows
_NULL_ROW = re.compile(rb"^[ \t\r]*null\b", re.MULTILINE)  # \s would go over line ends: quadratic in blank lines
_OPENING, _CLOSING = list(b"[{"), list(b"]}")
# A string without an end takes the rest: started again at each of its quotation marks, it would be quadratic.
_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z|\\\Z)|([\[{])|([\]}])', re.DOTALL)


def check_json(path: Path) -> None:
    """What ends the process without a word in pyarrow 26 (thousands of brackets in each other, rows that are `null`),
    what is not UTF-8, and a table that is one object.

    Raises:
        UserError: the file has one of them, or cannot be read.
    """
    try:
        _check_bytes(path)
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    except UNPACKED as error:
        raise UserError(f"Cannot read {path}: {error}. Check the file.") from error


def _check_bytes(path: Path) -> None:
    """Brackets inside texts count at first; only where they could matter is the file read by letters."""
    depth, deepest, decoder = 0, 0, codecs.getincrementaldecoder("utf-8")()
    with open_bytes(path) as file:
        begin = file.read(1000).removeprefix(codecs.BOM_UTF8)
        if b"\0" in begin:
            raise not_utf8(path)
        is_array = begin.lstrip().startswith(b"[")
        file.seek(0)
        while lines := file.readlines(1 << 24):
            block = b"".join(lines)
            decoder.decode(block)
            if not is_array and _NULL_ROW.search(block):
                raise UserError(f"{path} has a row that is null; expected one object a row. Remove it.")
            letters = np.frombuffer(block, np.uint8)
            depths = depth + np.cumsum(np.isin(letters, _OPENING).astype(np.int64) - np.isin(letters, _CLOSING))
            depth, deepest = int(depths[-1]), max(deepest, int(depths.max()))
        decoder.decode(b"", final=True)
        file.seek(0)
        if deepest > MAX_DEPTH and _is_nested(file.read()):
            raise UserError(
                f"{path} has more than {MAX_DEPTH} brackets inside each other; expected one flat object a row."
            )


def _is_nested(text: bytes) -> bool:
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += 1 if match[1] else -1 if match[2] else 0
        if depth > MAX_DEPTH:
            return True
    return False


def read_windows(path: Path, size: int) -> Iterator[dict[str, list]]:
    """Columns of `size` rows at a time, JSON lines one by one; a file that is one array is read whole.

    Raises:
        UserError: a row is not an object.
        ValueError: it is not JSON; the message names the line.
    """
    with open_text(path) as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        file.seek(0)
        rows = iter(json.load(file)) if start == "[" else _parse_lines(file)
        while window := list(itertools.islice(rows, size)):
            if wrong := [row for row in window if not isinstance(row, dict)]:
                raise UserError(f"{path} holds {str(wrong[0])[:60]!r}; expected one JSON object a row.")
            names = dict.fromkeys(name for row in window for name in row)
            yield {name: [row.get(name) for row in window] for name in names}


def find_fault(path: Path) -> ValueError | None:
    """The line that is not JSON, or the row that is no object; None where the fault is another one."""
    try:
        for _ in read_windows(path, 1000):
            pass
    except ValueError as error:
        return error
    return None


def _parse_lines(file: TextIO) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from error


def check_table(path: Path) -> None:
    """Whether a file is one object that holds all rows, as pandas and others write tables.

    Raises:
        UserError: it is; the message names the layout and what to write instead.
    """
    with open_text(path) as file:
        first = file.readline().strip()
        rest = file.read(1000).strip()
    if not first.startswith("{") or (rest.startswith("{") and first.endswith("}")):
        return
    try:
        with open_text(path) as file:
            content = json.load(file)
    except ValueError:  # what is wrong with it the reader says
        return
    if layout := _name_layout(content):
        raise UserError(
            f"{path} is one object {layout}, with the keys {quote_names(content, 4)}; expected a list of rows or one "
            "object a line, as `pandas.DataFrame.to_json(path, orient='records', lines=True)` writes them."
        )


def _name_layout(content: dict[str, Any]) -> str | None:
    """How one object holds a whole table; None: it is a row."""
    values = list(content.values())
    if {"columns", "data"} <= set(content) and isinstance(content["data"], list):
        return "of columns and data"
    if any(_are_rows(content.get(key)) for key in INNER_NAMES):
        return "with the rows inside"
    keys = {tuple(value) if isinstance(value, dict) else () for value in values}
    if len(values) > 1 and len(keys) == 1 and () not in keys:
        return "of columns or rows by their names"
    return None


def _are_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)
