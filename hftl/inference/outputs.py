"""Where do the rows of a table go, window by window: JSON lines, CSV, Parquet, or columns on a terminal?

A file gets its name when it is whole. Must not know what the columns mean.
"""

import contextlib
import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from hftl.errors import UserError

Rows = Mapping[str, list]
Write = Callable[[Rows], None]
# What starts a formula in a spreadsheet, in letters of full width as well; some skip blanks before it.
FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?%?")
MAX_WIDTH = 60  # characters of a cell on a terminal


def check_output(path: str | None, source: str) -> None:
    """Refuse a file of an unknown kind, or one that is read at the same time, before anything is computed."""
    if path is None:
        return
    if Path(path).suffix.lower() not in WRITERS:
        raise UserError(f"--output_file {path} has an unknown ending; expected one of {', '.join(WRITERS)}.")
    if Path(path).is_dir():
        raise UserError(f"--output_file {path} is a folder; name a file.")
    if Path(source).exists() and Path(path).exists() and Path(source).samefile(path):
        raise UserError(f"--output_file {path} is what is read; name another file.")


@contextmanager
def open_output(path: str | None, stream: TextIO, *, keep_formulas: bool = False) -> Iterator[Write]:
    """A function that writes one window of rows.

    Args:
        path: a file, by whose ending its kind is chosen; None: `stream`, as a table if a person reads it, else JSON
            lines.
        stream: the standard output.
        keep_formulas: leave texts of a CSV file as they are, though a spreadsheet would compute them.
    """
    if path is None:
        with (_write_table if stream.isatty() else _write_json)(stream) as write:
            yield write
        stream.flush()
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with WRITERS[target.suffix.lower()](temporary) as write:
            is_quoted = target.suffix.lower() == ".csv" and not keep_formulas
            yield (lambda columns: write(quote_formulas(columns))) if is_quoted else write
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _rows(columns: Rows) -> Iterator[dict[str, Any]]:
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def quote_formulas(columns: Rows) -> Rows:
    """Put `'` before texts that a spreadsheet would take for a formula and compute; names of columns as well.

    See owasp.org/www-community/attacks/CSV_Injection. Numbers, such as the labels -1 and +1, compute nothing.
    """
    return {_quote(name): list(map(_quote, values)) for name, values in columns.items()}


def _quote(value: Any) -> Any:
    is_formula = isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


@contextmanager
def _write_json(target: Path | TextIO) -> Iterator[Write]:
    with _opened(target) as file:

        def write(columns: Rows) -> None:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(columns))
            file.flush()

        yield write


@contextmanager
def _write_csv(target: Path) -> Iterator[Write]:
    """Lists are JSON inside their cell; what is missing is an empty one."""
    with _opened(target) as file:
        writer: list[csv.DictWriter] = []

        def write(columns: Rows) -> None:
            if not writer:
                writer.append(csv.DictWriter(file, list(columns)))
                writer[0].writeheader()
            for row in _rows(columns):
                cells = {n: json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for n, v in row.items()}
                writer[0].writerow(cells)

        yield write


@contextmanager
def _write_parquet(target: Path) -> Iterator[Write]:
    """Rows wait until each column has shown its type, or until the end."""
    with contextlib.ExitStack() as stack:
        writer: list[pq.ParquetWriter] = []
        waiting: list[Rows] = []

        def write(columns: Rows, is_last: bool = False) -> None:
            if writer:
                writer[0].write_table(pa.table(dict(columns), schema=writer[0].schema))
                return
            waiting.append(columns)
            table = pa.table({name: [value for rows in waiting for value in rows[name]] for name in columns})
            if is_last or not any(map(_is_untyped, table.schema.types)):
                writer.append(stack.enter_context(pq.ParquetWriter(target, table.schema)))
                writer[0].write_table(table)

        yield write
        if waiting and not writer:
            write({name: [] for name in waiting[0]}, is_last=True)


def _is_untyped(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or (pa.types.is_list(kind) and pa.types.is_null(kind.value_type))


@contextmanager
def _write_table(stream: TextIO) -> Iterator[Write]:
    """Columns as wide as the first window needs."""
    widths: dict[str, int] = {}

    def show(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4f}"
        text = ", ".join(map(show, value)) if isinstance(value, list) else "" if value is None else str(value)
        text = " ".join(text.split())
        return text if len(text) <= MAX_WIDTH else f"{text[: MAX_WIDTH - 3]}..."

    def write(columns: Rows) -> None:
        cells = {name: [show(value) for value in values] for name, values in columns.items()}
        if not widths:
            widths.update({name: max(map(len, [name, *values])) for name, values in cells.items()})
            stream.write("  ".join(name.ljust(widths[name]) for name in cells).rstrip() + "\n")
        for row in _rows(cells):
            stream.write("  ".join(text.ljust(widths[name]) for name, text in row.items()).rstrip() + "\n")

    yield write


@contextmanager
def _opened(target: Path | TextIO) -> Iterator[TextIO]:
    if not isinstance(target, Path):
        yield target
        return
    with target.open("w", encoding="utf-8", newline="") as file:
        yield file


WRITERS: dict[str, Callable] = {".jsonl": _write_json, ".csv": _write_csv, ".parquet": _write_parquet}
