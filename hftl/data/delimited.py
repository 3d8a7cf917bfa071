"""Where do the fields of a CSV or TSV file end? One layout for each file, found by reading it once, and one reader.

Fields are separated by what the ending says, or by the semicolon, tab or bar that the file turns out to use, and
quoted as RFC 4180 says; a TSV that nobody quoted is read without quotes. A file that both readings fit, or none, is
refused: rows would vanish in a text. Must not know which columns matter; numbers are not told from texts here.
"""

import contextlib
import csv
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hftl.data.encoding import UNPACKED, ending, not_utf8, open_text
from hftl.errors import UserError

SEPARATORS = (",", "\t", ";", "|")
NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
LOOKED_AT = 50  # lines that tell the separator
MOST_VALUES = 1000  # distinct values of a column, up to which those of other rows tell whether one belongs to it
_NUMBER = re.compile(r"\s*[-+]?[0-9][0-9.,]*(?:[eE][-+]?[0-9]+)?\s*")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\r\n]*')  # of Excel

Fields = list[str]
Record = tuple[Fields, list[str], int]  # fields, the lines that they stand in, and the number of the last of these


@dataclass(frozen=True)
class Layout:
    """How a file is read.

    Attributes:
        separator: between fields.
        names: of the columns.
        is_quoted: whether quotation marks around a field are no part of it.
        num_skipped: lines in front of the header, such as `sep=;`.
        num_rows: below the header.
    """

    separator: str
    names: list[str]
    is_quoted: bool = True
    num_skipped: int = 0
    num_rows: int = 0


class _Unfit(Exception):
    """A file cannot be read like this; the message says in which line and why."""


class _Unclear(_Unfit):
    """Nor can it be read without quotes: they are there, but not as they should be, or may be a text's own."""


def find_layout(path: Path) -> Layout:
    """How a file is to be read, after a look at every line of it.

    Raises:
        UserError: it is not UTF-8, has no header, rows of other lengths than its header, or quotation marks that make
            other rows of it than its lines are.
    """
    try:
        return _find_layout(path)
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    except UNPACKED as error:
        raise UserError(f"Cannot read {path}: {error}. Check the file.") from error


def read_records(path: Path, layout: Layout) -> Iterator[list[str | None]]:
    """The rows of a file; what is empty is None."""
    for fields, _, _ in itertools.islice(_parse(path, layout), 1, None):
        yield [field or None for field in fields] + [None] * (len(layout.names) - len(fields))


def _find_layout(path: Path) -> Layout:
    begin, num_skipped, given = _read_begin(path)
    if not begin:
        raise UserError(f"{path} has no rows; give a table with rows.")
    if "\0" in begin[0]:
        raise not_utf8(path)
    separator = given or _choose_separator(begin, "\t" if ending(path) == ".tsv" else ",")
    try:
        return _check(path, Layout(separator, [], num_skipped=num_skipped))
    except _Unfit as error:
        if separator == "\t" and not isinstance(error, _Unclear):
            with contextlib.suppress(_Unfit):  # what the usual reading found says more
                return _check(path, Layout(separator, [], is_quoted=False, num_skipped=num_skipped))
        raise UserError(f"Cannot read {path} as {ending(path)[1:]}: {error}.") from error


def _read_begin(path: Path) -> tuple[list[str], int, str | None]:
    """The first lines that are not blank, how many lines stand in front, and the separator that Excel names there."""
    with open_text(path, newline="") as file:
        lines, skipped, given = [], 0, None
        for line in file:
            if not lines and (found := _SEPARATOR_LINE.fullmatch(line)):
                skipped, given = skipped + 1, found[1]
            elif not lines and not line.strip():
                skipped += 1
            elif line.strip():
                lines.append(line.rstrip("\r\n"))
            if len(lines) == LOOKED_AT:
                break
    return lines, skipped, given


def _choose_separator(begin: list[str], usual: str) -> str:
    """Of those that part the header the usual one, unless rows have other lengths with it and fewer have with another.

    Texts of several lines are cut here, so that only most lines have to agree.
    """
    header = _without_quoted(begin[0])
    found = [separator for separator in SEPARATORS if separator in header]
    if usual in found and (len(found) == 1 or _is_even(begin, usual)):
        return usual
    return max(found, key=lambda separator: (_share_even(begin, separator), separator == usual), default=usual)


def _is_even(lines: list[str], separator: str) -> bool:
    return _share_even(lines, separator) == 1


def _share_even(lines: list[str], separator: str) -> float:
    counts = [_without_quoted(line).count(separator) for line in lines]
    return sum(count == counts[0] for count in counts) / len(counts)


def _without_quoted(line: str) -> str:
    return re.sub(r'"[^"]*(?:"|$)', "", line)


def _parse(path: Path, layout: Layout) -> Iterator[Record]:
    """The records of a file but for those at its end that hold separators alone, as Excel leaves them."""
    empty: list[Record] = []
    for fields, lines, number in _parse_all(path, layout):
        if len(fields) > 1 and not any(fields) and '"' not in lines[0]:
            empty.append((fields, list(lines), number))
            continue
        yield from empty
        empty.clear()
        yield fields, lines, number


def _parse_all(path: Path, layout: Layout) -> Iterator[Record]:
    """The records of a file, the header first; blank lines are none. Its lines are good until the next is asked for.

    Raises:
        _Unfit: quotation marks that end before their field does, or never.
    """
    csv.field_size_limit(sys.maxsize)
    lines: list[str] = []
    quoting = csv.QUOTE_MINIMAL if layout.is_quoted else csv.QUOTE_NONE
    with open_text(path, newline="") as file:

        def note() -> Iterator[str]:
            for line in itertools.islice(file, layout.num_skipped, None):
                lines.append(line)
                yield line

        reader = csv.reader(note(), delimiter=layout.separator, quoting=quoting, strict=True)
        try:
            width = 0
            for fields in reader:
                if len(fields) > 1 or (fields and (width == 1 or not lines[0].isspace())):
                    width = width or len(fields)
                    yield fields, lines, reader.line_num + layout.num_skipped
                lines.clear()
        except csv.Error as error:
            raise _explain(lines, reader.line_num + layout.num_skipped, str(error)) from error


def _explain(lines: list[str], last: int, said: str) -> _Unfit:
    place = f"in line {last - len(lines) + 1}"
    if any('\\"' in line for line in (lines[0], lines[-1])):
        return _refuse_escapes(place)
    advice = "put a text with quotation marks between quotation marks and double those within"
    if "end of data" in said:
        return _Unfit(f"{place} a quotation mark opens a text and none ends it (EOF inside string); {advice}")
    return _Unfit(f"the text {place} goes on behind the quotation mark that ends it; {advice}")


def _refuse_escapes(place: str) -> _Unclear:
    return _Unclear(
        f"{place} quotation marks within a text are marked by a backslash; double them instead, as "
        '`pandas.read_csv(path, escapechar="\\\\").to_csv(path, index=False)` does'
    )


def _check(path: Path, layout: Layout) -> Layout:
    """The layout with the names of the columns, after a look at every row.

    Raises:
        _Unfit: a row has more or fewer fields than the header, or might be several.
    """
    records = _parse(path, layout)
    fields, _, _ = next(records, ([], None, 0))
    if not fields:
        raise UserError(f"{path} has no rows but separators; give a table with rows.")
    layout = replace(layout, names=name_columns(fields))
    width, spans, short, num_rows = len(fields), [], [], 0
    for fields, lines, number in records:
        num_rows += 1
        if len(fields) > width:
            raise _Unfit(_describe_length(path, layout.separator, width, number, fields))
        if len(fields) < width:
            short.append((number, fields))
        if layout.is_quoted and f'{layout.separator} "' in lines[0] and _has_blank_before_quote(fields):
            raise _Unfit(f"in line {number} blanks stand in front of a quotation mark; remove them")
        if layout.is_quoted and layout.separator != "\t" and _has_bare_escape(fields, lines[0], layout.separator):
            raise _refuse_escapes(f"in line {number - len(lines) + 1}")
        if len(lines) > 1 and all(line.count(layout.separator) == width - 1 for line in lines):
            spans.append((number - len(lines) + 1, fields, list(lines)))
    evidence = _read_evidence(path, layout) if spans or short else None
    for number, fields in short:
        if not evidence.has_row(fields):
            raise _Unfit(_describe_length(path, layout.separator, width, number, fields))
    if spans:
        _check_spans(spans, evidence, layout.separator)
    return replace(layout, num_rows=num_rows)


def name_columns(header: Fields) -> list[str]:
    """Names without blanks around them; an empty one is `Unnamed: 2` and of two equal ones none keeps its name."""
    names = [name.strip() or f"Unnamed: {index}" for index, name in enumerate(header)]
    totals, counts, numbered = Counter(names), Counter(), []
    for name in names:
        counts[name] += 1
        numbered.append(f"{name}.{counts[name]}" if totals[name] > 1 else name)
    return numbered if len(set(numbered)) == len(names) else [f"{name} ({i})" for i, name in enumerate(names)]


def _describe_length(path: Path, separator: str, width: int, number: int, fields: Fields) -> str:
    name = NAMES.get(separator, repr(separator))
    advice = f"put texts that hold {name} between quotation marks"
    if len(fields) < width:
        advice = "write empty fields too, and put texts of several lines between quotation marks"
    elif len(fields) == width + 1 and not fields[-1]:
        advice = "end the header as the rows end, or " + advice
    elif len(fields) == width + 1:
        advice += "; if the rows have names, as R writes them, name their column as well"
    return (
        f"Expected {width} fields in line {number}, saw {len(fields)}. Rows of {path} have "
        f"{'more' if len(fields) > width else 'fewer'} fields than its header; {advice}"
    )


def _has_bare_escape(fields: Fields, line: str, separator: str) -> bool:
    """Whether a field without quotation marks around it has one behind a backslash, as Python's csv can write it."""
    if '\\"' not in line:
        return False
    padded = separator + line.rstrip("\r\n") + separator
    return any('\\"' in field and f"{separator}{field}{separator}" in padded for field in fields)


def _has_blank_before_quote(fields: Fields) -> bool:
    return any(field.startswith(" ") and field.lstrip().startswith('"') and field.endswith('"') for field in fields)


@dataclass(frozen=True)
class _Evidence:
    """What the rows of one line each say of a file.

    Attributes:
        values: of each column; None where there are too many to know them.
        are_numbers: whether those of a column are numbers alone.
        has_quoted: fields that need quotation marks have them.
        has_bare: a quotation mark stands in a field without any around it, as no writer of quotes would leave it.
    """

    values: list[set[str] | None]
    are_numbers: list[bool]
    has_quoted: bool
    has_bare: bool

    def looks_right(self, index: int, value: str) -> bool | None:
        """Whether a value is like those of a column; None: nothing tells."""
        if self.are_numbers[index]:
            return bool(_NUMBER.fullmatch(value))
        known = self.values[index]
        return None if known is None else value in known

    def has_row(self, fields: Fields) -> bool:
        """Whether fields without the last ones are a row whose last cells are empty, and not a part of a text."""
        found = {self.looks_right(index, value) for index, value in enumerate(fields) if value}
        return True in found and False not in found


def _read_evidence(path: Path, layout: Layout) -> _Evidence:
    width = len(layout.names)
    values: list[set[str] | None] = [set() for _ in layout.names]
    are_numbers, has_quoted, has_bare, num_rows = [True] * width, False, False, 0
    for fields, lines, _ in itertools.islice(_parse(path, layout), 1, None):
        if len(lines) > 1 or len(fields) < width:
            continue
        num_rows += 1
        line = lines[0]
        if '"' in line:
            has_quoted |= any(layout.separator in field for field in fields) or '""' in line
            has_bare |= '""' not in line and any('"' in field for field in fields)
        for index, field in enumerate(fields):
            are_numbers[index] = are_numbers[index] and bool(not field or _NUMBER.fullmatch(field))
            if (known := values[index]) is not None:
                known.add(field)
                if len(known) > MOST_VALUES:
                    values[index] = None
    return _Evidence(
        [known if known and len(known) <= num_rows // 2 else None for known in values],
        [is_number and num_rows > 0 for is_number in are_numbers],
        has_quoted,
        has_bare,
    )


def _check_spans(spans: list[tuple[int, Fields, list[str]]], evidence: _Evidence, separator: str) -> None:
    """Texts of several lines, each of which could be a row as well.

    Raises:
        _Unfit: they are rows, or nothing tells.
    """
    for number, fields, lines in spans:
        votes = list(_list_votes(fields, lines, evidence, separator))
        unclear = evidence.has_bare or (len(fields) > 1 and not evidence.has_quoted)
        if sum(votes) * 2 >= len(votes) if votes else unclear:
            raise (_Unfit if votes else _Unclear)(
                f"a quotation mark in line {number} makes one text of {len(lines)} lines that each look like a row; "
                "double quotation marks within texts and put such texts between quotation marks"
            )


def _list_votes(fields: Fields, lines: list[str], evidence: _Evidence, separator: str) -> Iterator[bool]:
    """For each value that would be in another column if lines were rows: whether it looks like that column."""
    quoted = next(index for index, field in enumerate(fields) if "\n" in field or "\r" in field)
    for place, line in enumerate(lines):
        for index, value in enumerate(line.rstrip("\r\n").split(separator)):
            is_outside = (place == 0 and index <= quoted) or (place == len(lines) - 1 and index >= quoted)
            if not is_outside and value and (vote := evidence.looks_right(index, value)) is not None:
                yield vote
