"""What do local tables hold? They become raw splits, rows as they are.

It must not know which columns matter or what a label means: names and types of columns are `columns` and `labels`.
Nothing here reads the network.
"""

import contextlib
import glob
import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from hftl.data import coco, conll, delimited, json_rows, spans
from hftl.data.encoding import SHEET, ending, not_utf8, read_lines
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
    ValueError,
    OSError,
    StopIteration,
)

CHUNK = 10_000  # rows of a CSV that become one piece of a column

# Only what reads back as the same text, so that "007" and ids of 20 digits stay texts.
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_DECIMAL = r"^[-+]?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$"


def is_table(path: str | Path) -> bool:
    """Whether the ending is that of a table (.csv, .tsv, .json, .jsonl, .parquet, in any case, also with .gz)."""
    return ending(path) in TABLE_FORMATS


def read_tables(
    files: dict[str, str], *, text_columns: Iterable[str] | None = (), image_column: str | None = None
) -> dict[str, datasets.Dataset]:
    """Reads one table a split.

    Args:
        files: split name -> path.
        text_columns: columns of a CSV that stay strings even if every value looks like a number; so do those that hold
            words in another split. None: all do.
        image_column: column with image paths; well-known names are found without it.

    Raises:
        UserError: a file is missing, of an unknown kind, unreadable or without rows.
    """
    paths = {split: Path(path).expanduser() for split, path in files.items()}
    tables = {split: _read_table(path) for split, path in paths.items()}
    texts = {split: table for split, table in tables.items() if TABLE_FORMATS.get(ending(paths[split])) == "csv"}
    if text_columns is not None:
        types = _find_numbers(texts, set(text_columns))
        tables |= {split: _cast_numbers(table, types[split]) for split, table in texts.items()}
    return {
        split: resolve_images(table, paths[split].absolute().parent, image_column) for split, table in tables.items()
    }


def _read_table(path: Path) -> datasets.Dataset:
    check_regular(path)
    if not path.is_file():
        raise UserError(f"There is no file {path} (working folder: {Path.cwd()}).")
    if ending(path) == ".txt" and not conll.is_conll(path):
        return _read_lines(path)
    if ending(path) in conll.ENDINGS:
        return conll.read_conll(path)
    if not is_table(path):
        raise UserError(
            f"{path} has an unknown ending; expected one of {', '.join(TABLE_FORMATS)}, also with .gz"
            f"{advise_ending(path)}."
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); give a table with rows.")
    if TABLE_FORMATS[ending(path)] == "csv":
        return _read_delimited(path)
    if TABLE_FORMATS[ending(path)] == "json":
        json_rows.check_json(path)
    if ending(path) == ".json" and spans.is_squad(path):
        return spans.read_squad(path)
    if ending(path) == ".json" and (content := coco.parse_coco(path)) is not None:
        return coco.read_coco(path, content)
    return _parse(path)


def advise_ending(path: Path) -> str:
    """What to do with a file of another program."""
    return f"; {SHEET}" if ending(path) in (".xlsx", ".xls", ".xlsm", ".ods") else ""


def _read_lines(path: Path) -> datasets.Dataset:
    """A text a line; empty lines are no rows."""
    rows = [line for line in read_lines(path) if line.strip()]
    if not rows:
        raise UserError(f"{path} has no rows; give a text a line.")
    return datasets.Dataset.from_dict({"text": rows})


def read_error(path: Path, cause: BaseException) -> UserError:
    """What is wrong with a table, from what its reader said."""
    if isinstance(cause, UnicodeDecodeError) or "UTF" in str(cause).upper():
        return not_utf8(path)
    if "corresponds to no data" in str(cause) or isinstance(cause, StopIteration):
        return UserError(f"{path} has no rows; give a table with rows.")
    return UserError(f"Cannot read {path} as {ending(path)[1:]}: {str(cause).rstrip('.')}. Check the file.")


def _parse(path: Path) -> datasets.Dataset:
    """A JSON or parquet file by the reader of the library."""
    kind = TABLE_FORMATS[ending(path)]
    if kind == "json":
        json_rows.check_table(path)
    try:
        # The library takes a path as a glob pattern, so `a[1].json` must be escaped.
        files = {"train": glob.escape(str(path.absolute()))}
        with _quiet():
            table = datasets.load_dataset(kind, data_files=files, split="train")
        table.data.table.validate(full=True)  # the JSON reader lets bytes pass that are not UTF-8
        return _restore_times(path, table) if kind == "json" else table
    except UNREADABLE as error:
        fault = json_rows.find_fault(path) if kind == "json" else None
        raise read_error(path, fault or error.__cause__ or error) from error


def _restore_times(path: Path, table: datasets.Dataset) -> datasets.Dataset:
    """The texts of a JSON file as they stand there: its reader makes times of 2020-01-31 and what looks like it."""
    names = [field.name for field in table.features.arrow_schema if _has_times(field.type)]
    if not names:
        return table
    values: dict[str, list] = {name: [] for name in names}
    for window in json_rows.read_windows(path, CHUNK):
        absent = [None] * len(next(iter(window.values())))
        for name in names:
            values[name] += window.get(name, absent)
    restored = datasets.Dataset(pa.table(values))
    others = table.remove_columns(names)
    joined = datasets.concatenate_datasets([others, restored], axis=1) if others.column_names else restored
    return joined.select_columns(table.column_names)


def _has_times(dtype: pa.DataType) -> bool:
    """Whether a type is that of a time, or holds one."""
    inner = [dtype.field(index).type for index in range(dtype.num_fields)]
    return pa.types.is_temporal(dtype) or any(map(_has_times, inner))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own words on a file that it cannot read, which would come in front of ours."""
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)


def _read_delimited(path: Path) -> datasets.Dataset:
    """Every column as text: "NA" and "null" are words, and "007" is not 7."""
    layout = delimited.find_layout(path)
    records = delimited.read_records(path, layout)
    schema = pa.schema([(name, pa.string()) for name in layout.names])
    batches = []
    while rows := list(itertools.islice(records, CHUNK)):
        columns = [pa.array(values, pa.string()) for values in zip(*rows, strict=True)]
        batches.append(pa.record_batch(columns, schema=schema))
    if not batches:
        raise UserError(f"{path} has no rows; give a table with rows.")
    return datasets.Dataset(pa.Table.from_batches(batches, schema))


def _find_numbers(tables: dict[str, datasets.Dataset], text_columns: set[str]) -> dict[str, dict[str, str]]:
    """For each split, the columns that hold nothing but numbers -> their type.

    Words in one split make texts of a column in all: cast back, the number of 1.50 would be another text.
    """
    found: dict[str, dict[str, str]] = {}
    texts = set(text_columns)
    for split, table in tables.items():
        found[split] = {}
        for name in set(table.column_names) - text_columns:
            values = pc.unique(table.data.column(name)).drop_null()
            if len(values) and (dtype := _number_type(values)):
                found[split][name] = dtype
            elif len(values):
                texts.add(name)
    return {split: {n: dtype for n, dtype in types.items() if n not in texts} for split, types in found.items()}


def _number_type(values: pa.Array) -> str | None:
    for pattern, dtype in ((_INTEGER, "int64"), (_DECIMAL, "float64")):
        if pc.all(pc.match_substring_regex(values, pattern)).as_py():
            return dtype
    return None


def _cast_numbers(table: datasets.Dataset, types: dict[str, str]) -> datasets.Dataset:
    names = table.column_names
    features = datasets.Features({name: datasets.Value(types.get(name, "string")) for name in names})
    return datasets.Dataset(table.data.table.cast(features.arrow_schema)) if types else table
