"""Rows to be predicted, window by window, from any source: never more of a file in memory than one window.

A source is `-` (lines), a table, a text with one row a line, an image, a folder of images, or a data set as in
training, with `:SPLIT` behind its name. Labels are not looked at, and columns are not chosen here.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from hftl.data import coco, conll, delimited, files, json_rows, spans
from hftl.data.encoding import UNPACKED, ending, read_lines
from hftl.data.folders import find_images
from hftl.data.images import is_image
from hftl.data.load import load_splits
from hftl.data.paths import check_regular, is_text
from hftl.errors import UserError, unknown_name

if TYPE_CHECKING:
    from hftl.config import DataArguments

# What readers raise at a broken file; pyarrow's errors are ValueErrors.
READ_ERRORS = (ValueError, KeyError, *UNPACKED)
Window = dict[str, list]


@dataclass(frozen=True)
class Stream:
    """Rows in their order.

    Attributes:
        features: column name -> type, as far as the source says it.
        read: names of columns, rows of a window -> windows.
        num_rows: None where only reading tells.
        named_by: a column that says where a row comes from, such as the file of an image.
        folder: which paths of images are relative to; None: they are full, or the user's own words.
        is_table: whether its columns bear names that the user gave, and not those of a kind of file.
    """

    features: datasets.Features
    read: Callable[[list[str], int], Iterator[Window]]
    num_rows: int | None = None
    named_by: str | None = None
    folder: Path | None = None
    is_table: bool = True


def open_stream(
    source: str, args: "DataArguments", modality: str, lines: Iterable[str] = (), *, reads_words: bool = True
) -> Stream:
    """Find out what `source` is and what columns it has; rows are read later.

    Args:
        source: as the user named it.
        args: columns, and configuration and revision of a Hub data set; what it says of files is not read.
        modality: of the task: lines and folders are texts or images.
        lines: of the standard input, for `-`.
        reads_words: whether a .txt may hold sentences with a word a line; for other tasks its lines are rows.

    Raises:
        UserError: there is no such source, or it cannot be read.
    """
    path = Path(source).expanduser()
    if source == "-":
        return _stream_lines(lambda: lines, modality, None)
    check_regular(path)
    if path.is_file():
        return _stream_file(path, modality, reads_words=reads_words)
    if path.is_dir() and modality == "image" and not _is_data_set(path):
        return _stream_images(path)
    return _stream_data_set(source, args, modality)


def pick_split(splits: datasets.DatasetDict, split: str, source: str) -> datasets.Dataset:
    """The named split; without a name `test`, or the only one."""
    if split:
        if split not in splits:
            raise unknown_name(f"split of {source}:", split, splits)
        return splits[split]
    if "test" in splits:
        return splits["test"]
    if len(splits) > 1:
        raise UserError(f"{source} has the splits {', '.join(splits)}; say which with {source}:SPLIT.")
    return next(iter(splits.values()))


def split_name(source: str) -> tuple[str, str]:
    """`NAME:SPLIT` -> both parts; the split is empty where none is named."""
    head, colon, tail = source.removeprefix("bundled:").rpartition(":")
    if not colon or Path(source).exists():
        return source, ""
    return source[: len(source) - len(tail) - 1], tail


def _stream_data_set(source: str, args: "DataArguments", modality: str) -> Stream:
    name, split = split_name(source)
    rows = pick_split(load_splits(name_source(args, name)), split, name).with_format(None)
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    path = Path(name).expanduser()
    if modality == "image" and not path.exists():  # texts of the Hub name no files of this machine
        rows = rows.remove_columns([column for column, feature in rows.features.items() if is_text(feature)])
    return _stream_rows(rows, path if path.is_dir() else path.parent)


def name_source(args: "DataArguments", name: str) -> "DataArguments":
    """The same columns, of this data set or file alone."""
    return replace(args, dataset=name, train_file=None, validation_file=None, test_file=None)


def _is_data_set(folder: Path) -> bool:
    """Whether a folder holds tables or what `save_to_disk` wrote, and not images alone."""
    names = {path.name for path in folder.iterdir()}
    saved = {"dataset_dict.json", "state.json"} & names
    return bool(saved) or any(files.is_table(name) and name.split(".")[0] in _TABLES for name in names)


_TABLES = {*files.SPLIT_NAMES, "metadata"}


def _stream_images(folder: Path) -> Stream:
    paths = find_images(folder)
    if not paths:
        raise UserError(f"{folder} holds no images.")
    named = [str(path.relative_to(folder)) for path in paths]
    return _stream_image_columns({"image": [str(path) for path in paths], "file": named})


def _stream_image_columns(columns: dict[str, list[str]]) -> Stream:
    features = datasets.Features({"image": datasets.Image(decode=False)})
    num_rows = len(next(iter(columns.values())))

    def read(names: list[str], size: int) -> Iterator[Window]:
        for start in range(0, num_rows, size):
            yield {name: columns[name][start : start + size] for name in names}

    return Stream(features, read, num_rows, "file", is_table=False)


def _stream_file(path: Path, modality: str, *, reads_words: bool) -> Stream:
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); give rows.")
    if modality == "image" and is_image(path):
        return _stream_image_columns({"image": [str(path)], "file": [path.name]})
    kind = files.TABLE_FORMATS.get(ending(path))
    if kind == "csv":
        return _stream_delimited(path)
    if kind == "parquet":
        return _stream_parquet(path)
    if modality == "image" and ending(path) == ".json" and (content := coco.parse_coco(path)) is not None:
        return _stream_rows(coco.read_coco(path, content).cast_column("image", datasets.Image(decode=False)))
    if modality == "text" and ending(path) == ".json" and spans.is_squad(path):
        return replace(_stream_rows(spans.read_squad(path)), is_table=False)
    if kind:
        json_rows.check_json(path)
        json_rows.check_table(path)
        return _with_first_window(path, lambda size: _explained(json_rows.read_windows(path, size), path))
    if ending(path) in conll.ENDINGS and (ending(path) != ".txt" or (reads_words and conll.is_conll(path))):
        return replace(_stream_rows(conll.read_conll(path, needs_tags=False)), is_table=False)
    if ending(path) == ".txt":
        return _stream_lines(lambda: read_lines(path), modality, path.parent)
    raise UserError(
        f"{path} has an unknown ending; expected .txt with one row a line, or one of {', '.join(files.TABLE_FORMATS)}"
        f"{files.advise_ending(path)}."
    )


def _stream_lines(open_lines: Callable[[], Iterable[str]], modality: str, folder: Path | None) -> Stream:
    name = "image" if modality == "image" else "text"

    def read(names: list[str], size: int) -> Iterator[Window]:
        rows = (line.rstrip("\r\n") for line in open_lines())
        while window := list(itertools.islice(rows, size)):
            yield {name: window}

    return Stream(datasets.Features({name: datasets.Value("string")}), read, folder=folder, is_table=False)


def _stream_rows(rows: datasets.Dataset, folder: Path | None = None) -> Stream:
    def read(names: list[str], size: int) -> Iterator[Window]:
        chosen = rows.select_columns(names)
        yield from (chosen[start : start + size] for start in range(0, len(rows), size))

    return Stream(rows.features, read, len(rows), folder=folder)


def _stream_parquet(path: Path) -> Stream:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise files.read_error(path, error) from error

    def read(names: list[str], size: int) -> Iterator[Window]:
        batches = file.iter_batches(batch_size=size, columns=names)
        return _explained((batch.to_pydict() for batch in batches), path)

    features = datasets.Features.from_arrow_schema(file.schema_arrow)
    return Stream(features, read, file.metadata.num_rows, folder=path.parent)


def _with_first_window(path: Path, open_windows: Callable[[int], Iterator[Window]]) -> Stream:
    """A file whose columns only its rows tell: the first 100 are looked at."""
    first = next(open_windows(100), None)
    if first is None:
        raise UserError(f"{path} has no rows; give a table with rows.")
    features = infer_features(first)

    def read(names: list[str], size: int) -> Iterator[Window]:
        for window in open_windows(size):
            absent = [None] * len(next(iter(window.values())))  # no row of this window has it
            yield {name: window.get(name, absent) for name in names}

    return Stream(features, read, folder=path.parent)


def infer_features(columns: Window) -> datasets.Features:
    """The types of columns; what differs from row to row, as messages do, is JSON as in training."""
    features = {}
    for name, values in columns.items():
        try:
            features |= datasets.Features.from_arrow_schema(pa.table({name: values}).schema)
        except (pa.ArrowException, OverflowError):  # the second of an integer of more than 64 bits
            features[name] = datasets.Json()
    return datasets.Features(features)


def _stream_delimited(path: Path) -> Stream:
    """All columns as texts; as in training, "NA" is a text and an empty cell is none."""
    layout = delimited.find_layout(path)
    features = datasets.Features({name: datasets.Value("string") for name in layout.names})

    def read(names: list[str], size: int) -> Iterator[Window]:
        places = {name: layout.names.index(name) for name in names}
        records = delimited.read_records(path, layout)
        while rows := list(itertools.islice(records, size)):
            yield {name: [row[place] for row in rows] for name, place in places.items()}

    return Stream(features, read, layout.num_rows, folder=path.parent)


def _explained(windows: Iterator[Window], path: Path) -> Iterator[Window]:
    try:
        yield from windows
    except UserError:
        raise
    except READ_ERRORS as error:
        raise files.read_error(path, error) from error
