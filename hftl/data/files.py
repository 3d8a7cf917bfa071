"""What do local tables hold? They become raw splits, rows as they are.

It must not know which columns matter or what a label means: names and types of columns are `columns` and `labels`.
Nothing here reads the network.
"""

import glob
import gzip
import logging
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from hftl.data import coco, conll, spans
from hftl.data.paths import check_regular, resolve_images
from hftl.errors import UserError

logger = logging.getLogger(__name__)

TABLE_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
}
# What the readers raise. StopIteration: `datasets` 5.2 lets it out for a JSON file of blank lines. ArrowException: a
# field holds other things in other rows.
UNREADABLE = (
    datasets.exceptions.DatasetsError,
    pa.ArrowException,
    pd.errors.ParserWarning,
    ValueError,
    OSError,
    StopIteration,
)

MAX_DEPTH = 100
_NULL_ROW = re.compile(rb"^\s*null\b", re.MULTILINE)
_OPENING, _CLOSING = list(b"[{"), list(b"]}")

# Only what reads back as the same text, so that "007" and ids of 20 digits stay texts.
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_DECIMAL = r"^[-+]?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$"


def is_table(path: str | Path) -> bool:
    """Whether the ending is that of a table (.csv, .tsv, .json, .jsonl, .parquet, in any case, also with .gz)."""
    return ending(path) in TABLE_FORMATS


def read_tables(
    files: dict[str, str], *, text_columns: Iterable[str] = (), image_column: str | None = None
) -> dict[str, datasets.Dataset]:
    """Reads one table a split.

    Args:
        files: split name -> path.
        text_columns: columns of a CSV that stay strings even if every value looks like a number.
        image_column: column with image paths; well-known names are found without it.

    Raises:
        UserError: a file is missing, of an unknown kind, unreadable or without rows.
    """
    return {
        split: resolve_images(
            _read_table(Path(path).expanduser(), set(text_columns)),
            Path(path).expanduser().absolute().parent,
            image_column,
        )
        for split, path in files.items()
    }


def ending(path: str | Path) -> str:
    """The last ending of a name, small, that of a packed file without its `.gz`."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    return "".join(suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def _read_table(path: Path, text_columns: set[str]) -> datasets.Dataset:
    check_regular(path)
    if not path.is_file():
        raise UserError(f"There is no file {path} (working folder: {Path.cwd()}).")
    if ending(path) == ".txt" and not conll.is_conll(path):
        return _read_lines(path)
    if ending(path) in conll.ENDINGS:
        return conll.read_conll(path)
    if not is_table(path):
        raise UserError(f"{path} has an unknown ending; expected one of {', '.join(TABLE_FORMATS)}, also with .gz.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); give a table with rows.")
    if TABLE_FORMATS[ending(path)] == "json":
        _check_json(path)
    if ending(path) == ".json" and spans.is_squad(path):
        return spans.read_squad(path)
    if ending(path) == ".json" and (content := coco.parse_coco(path)) is not None:
        return coco.read_coco(path, content)
    try:
        table = _parse_csv(path, text_columns) if TABLE_FORMATS[ending(path)] == "csv" else _parse(path)
        table.data.table.validate(full=True)  # the JSON reader lets bytes pass that are not UTF-8
        return table
    except UNREADABLE as error:
        raise read_error(path, error.__cause__ or error) from error


def _read_lines(path: Path) -> datasets.Dataset:
    """A text a line; empty lines are no rows."""
    rows = [line for line in read_lines(path) if line.strip()]
    if not rows:
        raise UserError(f"{path} has no rows; give a text a line.")
    return datasets.Dataset.from_dict({"text": rows})


def read_lines(path: Path) -> Iterator[str]:
    r"""The lines of a text, which end at \n, \r\n and \r alone: `splitlines` would cut at U+2028 and \x85 as well."""
    with open_text(path) as file:
        try:
            yield from (line.removesuffix("\n") for line in file)
        except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            raise read_error(path, error) from error


def open_text(path: Path) -> TextIO:
    """A text file, also one that ends in .gz."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    return opened(path, "rt", encoding="utf-8-sig")


def _check_json(path: Path) -> None:
    """Two things at which pyarrow 26 ends the process without a word: thousands of brackets in each other, and rows
    that are `null`. Brackets inside texts count at first; only where they could matter is the file read by letters.

    Raises:
        UserError: the file has one of them, or cannot be read.
    """
    depth, deepest = 0, 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            is_array = file.read(1000).lstrip().startswith(b"[")
            file.seek(0)
            while lines := file.readlines(1 << 24):
                block = b"".join(lines)
                if not is_array and _NULL_ROW.search(block):
                    raise UserError(f"{path} has a row that is null; expected one object a row. Remove it.")
                letters = np.frombuffer(block, np.uint8)
                depths = depth + np.cumsum(np.isin(letters, _OPENING).astype(np.int64) - np.isin(letters, _CLOSING))
                depth, deepest = int(depths[-1]), max(deepest, int(depths.max()))
            file.seek(0)
            is_nested = deepest > MAX_DEPTH and _is_nested(file.read())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"Cannot read {path}: {error}. Check the file.") from error
    if is_nested:
        raise UserError(
            f"{path} has more than {MAX_DEPTH} brackets inside each other; expected one flat object a row."
        )


def _is_nested(text: bytes) -> bool:
    depth = 0
    for match in re.finditer(rb'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])', text, re.DOTALL):
        depth += 1 if match[1] else -1 if match[2] else 0
        if depth > MAX_DEPTH:
            return True
    return False


def read_error(path: Path, cause: BaseException) -> UserError:
    """What is wrong with a table, from what its reader said."""
    if isinstance(cause, UnicodeDecodeError) or "UTF" in str(cause).upper():
        return UserError(f"{path} is not UTF-8 ({cause}); convert it, e.g. `iconv -f latin1 -t utf-8`.")
    if "corresponds to no data" in str(cause) or isinstance(cause, StopIteration):
        return UserError(f"{path} has no rows; give a table with rows.")
    if isinstance(cause, pd.errors.ParserWarning):
        return UserError(f"Rows of {path} have more fields than its header; quote the texts that hold the separator.")
    return UserError(f"Cannot read {path} as {ending(path)[1:]}: {cause}. Check the file.")


def _parse(path: Path, **options) -> datasets.Dataset:
    # The library takes a path as a glob pattern, so `a[1].csv` must be escaped.
    files = {"train": glob.escape(str(path.absolute()))}
    return datasets.load_dataset(TABLE_FORMATS[ending(path)], data_files=files, split="train", **options)


def _parse_csv(path: Path, text_columns: set[str]) -> datasets.Dataset:
    """Reads every column as text and then makes numbers of those columns that hold nothing else.

    pandas' own guess turns "NA" and "null" into missing values and "007" into 7, and gives up when a column turns
    from numbers to texts after 10,000 rows.
    """
    separator = "\t" if ending(path) == ".tsv" else ","
    names = list(pd.read_csv(path, sep=separator, nrows=0, index_col=False).columns)
    features = datasets.Features({name: datasets.Value("string") for name in names})
    with warnings.catch_warnings():
        # Without index_col=False a surplus field shifts all columns by one; with it, it is dropped with this warning.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        table = _parse(path, features=features, sep=separator, keep_default_na=False, na_values=[""], index_col=False)
    for name in set(names) - text_columns:
        if dtype := _number_type(table, name):
            features[name] = datasets.Value(dtype)
    return table.cast(features)


def _number_type(table: datasets.Dataset, name: str) -> str | None:
    values = pc.unique(table.data.column(name)).drop_null()
    if len(values) == 0:
        return None
    for pattern, dtype in ((_INTEGER, "int64"), (_DECIMAL, "float64")):
        if pc.all(pc.match_substring_regex(values, pattern)).as_py():
            return dtype
    return None
