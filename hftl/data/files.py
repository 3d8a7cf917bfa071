"""What do local files hold? Tables, image folders and `save_to_disk` folders become raw splits, rows as they are.

It must not know which columns matter or what a label means: names and types of columns are `columns` and `labels`.
Nothing here reads the network.
"""

import contextlib
import glob
import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from hftl.data import coco, conll, delimited, json_rows, spans
from hftl.data.encoding import ending, not_utf8, read_lines
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
IMAGE_PATH_NAMES = ("image", "img", "image_path", "image_file", "file_name", "filename", "file_path", "path", "file")
PAIRED_FOLDERS = ("images", "masks")
MASK_NAMES = ("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentation_mask")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "_annotations.coco.json")

CHUNK = 10_000  # rows of a CSV that become one piece of a column

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
        text_columns: columns of a CSV that stay strings even if every value looks like a number; so do those that hold
            words in another split.
        image_column: column with image paths; well-known names are found without it.

    Raises:
        UserError: a file is missing, of an unknown kind, unreadable or without rows.
    """
    tables = {split: _read_table(Path(path).expanduser()) for split, path in files.items()}
    texts = {split: table for split, table in tables.items() if TABLE_FORMATS.get(ending(files[split])) == "csv"}
    types = _find_numbers(texts, set(text_columns))
    tables |= {split: _cast_numbers(table, types[split]) for split, table in texts.items()}
    return {split: _absolute_image_paths(table, files[split], image_column) for split, table in tables.items()}


def read_folder(
    folder: Path, *, text_columns: Iterable[str] = (), image_column: str | None = None
) -> dict[str, datasets.Dataset]:
    """Reads a `save_to_disk` folder, a folder of tables named by split (train.csv, ...), or a folder of images.

    Images lie in one folder a class, with or without folders named by split above them, or beside a metadata table
    with a `file_name` column, or in `images` with a mask of the same name in `masks`.

    Raises:
        UserError: the folder holds none of these.
    """
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _read_saved(folder)
    options = {"text_columns": text_columns, "image_column": image_column}
    tables = {path.name.split(".")[0]: str(path) for path in sorted(folder.iterdir()) if is_table(path)}
    if tables := {name: path for name, path in tables.items() if name.lower() in SPLIT_NAMES}:
        return read_tables(tables, **options)
    children = [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    # Split folders only if all are: a folder of classes may well have one that is called `train`.
    is_split = bool(children) and all(child.name.lower() in SPLIT_NAMES for child in children)
    roots = {child.name: child for child in children} if is_split else {"train": folder}
    metadata = {name: _metadata_file(root) for name, root in roots.items()}
    if any(metadata.values()):
        if missing := [str(roots[name]) for name, path in metadata.items() if path is None]:
            raise UserError(f"Other splits have a metadata table but {missing[0]} has none; add one to it.")
        return read_tables(metadata, **options)
    if all((root / name).is_dir() for root in roots.values() for name in PAIRED_FOLDERS):
        return {name: _read_pairs(root) for name, root in roots.items()}
    return _read_image_folders(roots)


def _read_saved(folder: Path) -> dict[str, datasets.Dataset]:
    _check_inside(folder)
    try:
        saved = datasets.load_from_disk(str(folder))
    # IndexError: `datasets` 5.2 writes a split without rows but cannot read it.
    except (datasets.exceptions.DatasetsError, ValueError, OSError, KeyError, IndexError) as error:
        raise UserError(f"Cannot read {folder} ({error}): a file is damaged or a split has no rows.") from error
    return dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}


def _check_inside(folder: Path) -> None:
    """The library opens any file that a `state.json` names; those of a sound folder lie beside it.

    Raises:
        UserError: one does not, or the file is damaged.
    """
    for state in [folder / "state.json", *folder.glob("*/state.json")]:
        try:
            entries = json.loads(state.read_text("utf-8"))["_data_files"] if state.is_file() else []
            names = [entry["filename"] for entry in entries]
            strange = [name for name in names if Path(name).name != name]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"Cannot read {state} ({error}): the file is damaged.") from error
        if strange:
            raise UserError(f"{state} names {strange[0]!r}, which is not beside it. Write the data set anew.")


def _read_table(path: Path) -> datasets.Dataset:
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
    if TABLE_FORMATS[ending(path)] == "csv":
        return _read_delimited(path)
    if TABLE_FORMATS[ending(path)] == "json":
        json_rows.check_json(path)
    if ending(path) == ".json" and spans.is_squad(path):
        return spans.read_squad(path)
    if ending(path) == ".json" and (content := coco.parse_coco(path)) is not None:
        return coco.read_coco(path, content)
    return _parse(path)


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
        return table
    except UNREADABLE as error:
        fault = json_rows.find_fault(path) if kind == "json" else None
        raise read_error(path, fault or error.__cause__ or error) from error


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


def _absolute_image_paths(table: datasets.Dataset, path: str, image_column: str | None) -> datasets.Dataset:
    """Makes image paths, which are relative to the folder of their table, absolute."""
    folder = Path(path).expanduser().absolute().parent
    names = [image_column] if image_column else [name for name in table.column_names if name in IMAGE_PATH_NAMES]
    names += [name for name in MASK_NAMES if name in table.column_names and name not in names]
    for name in names:
        feature = table.features.get(name)
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string"):
            values = table[name][:]
            if name == image_column or is_image(Path(next(filter(None, values), ""))):
                if outside := [value for value in values if value and ".." in Path(value).parts]:
                    raise UserError(
                        f"The image path {outside[0]!r} of {path} leads out of the folder of the table. Move the "
                        "table to a folder above all images, or write full paths."
                    )
                absolute = [value and str(folder / value) for value in values]
                table = table.remove_columns(name).add_column(name, absolute, feature=datasets.Value("string"))
    return table


def is_image(path: Path) -> bool:
    """Whether the ending is one that Pillow reads; what is hidden is not."""
    return path.suffix.lower() in Image.registered_extensions() and not path.name.startswith(".")


def _metadata_file(folder: Path) -> str | None:
    return next((str(folder / name) for name in METADATA_NAMES if (folder / name).is_file()), None)


def _read_pairs(root: Path) -> datasets.Dataset:
    """`images/NAME.*` and `masks/NAME.png` (or another kind), in the order of their names."""
    images, masks = (
        {path.stem: path for path in sorted((root / n).iterdir()) if is_image(path)} for n in PAIRED_FOLDERS
    )
    if not images:
        raise UserError(f"{root / PAIRED_FOLDERS[0]} holds no images.")
    if missing := [path for stem, path in images.items() if stem not in masks]:
        raise UserError(
            f"{missing[0]} has no mask: expected {root / PAIRED_FOLDERS[1] / missing[0].stem}.png. Missing are "
            f"{len(missing)} of {len(images)}."
        )
    rows = {"image": [str(path.absolute()) for path in images.values()]}
    rows["mask"] = [str(masks[stem].absolute()) for stem in images]
    return datasets.Dataset.from_dict(
        rows, features=datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    )


def _read_image_folders(roots: dict[str, Path]) -> dict[str, datasets.Dataset]:
    images = {name: sorted(filter(is_image, root.rglob("*"))) for name, root in roots.items()}
    for name, root in roots.items():
        if not images[name]:
            raise UserError(
                f"{root} holds no images; expected one folder a class with images in it, metadata.csv, tables named "
                "train.csv (tsv, json, jsonl, parquet), or a folder written by save_to_disk."
            )
        if astray := [path for path in images[name] if path.parent.parent != root]:
            raise UserError(f"{astray[0]} is not directly inside a class folder of {root}; expected CLASS/IMAGE.")
    names = sorted({path.parent.name for paths in images.values() for path in paths})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return {
        name: datasets.Dataset.from_dict(
            {"image": [str(path.absolute()) for path in paths], "label": [path.parent.name for path in paths]},
            features=features,
        )
        for name, paths in images.items()
    }
