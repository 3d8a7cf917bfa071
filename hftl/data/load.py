"""Where do the rows come from? `load_splits` gives the raw train, validation and test splits of any source.

A source is a local path if that exists, else `bundled:NAME`, else a Hub id. No code from the Hub is ever run.
This module must not choose columns or look at labels; `compute_fingerprint` reads the canonical columns.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from hftl import assets
from hftl.data import files, folders, paths
from hftl.data.columns import are_whole
from hftl.data.images import read_bytes
from hftl.errors import UserError, quote_names, shorten

if TYPE_CHECKING:
    from hftl.config import DataArguments

logger = logging.getLogger(__name__)

# What is learnt of texts alone: "1.50" is an answer there, and not the number 1.5.
TEXTS_ALONE = ("-lm", "seq2seq", "question-answering", "token-classification")
CANONICAL = ("text", "text_pair", "prompt", "completion", "messages", "image", "label")
_HELP = {
    "not found": "Check the spelling; a private data set also needs `hf auth login`; a local path must exist.",
    "gated": "Ask for access on its page and log in with `hf auth login`.",
    "offline": "This machine does not reach the Hub (or HF_HUB_OFFLINE is set); load it once with a network, "
    "or give local files with --train_file.",
    "script": "Data sets that are Python scripts are not run; try `--dataset_revision refs/convert/parquet`, "
    "or download its files and give them with --train_file.",
    "other": "Name its configuration with --dataset_config, or its version with --dataset_revision.",
}


def load_splits(args: "DataArguments") -> datasets.DatasetDict:
    """Loads the raw splits: train, and validation and test where there are any.

    Args:
        args: `dataset` or `train_file` says where train is; `validation_file` and `test_file` replace those splits.

    Raises:
        UserError: no source or two, a source that cannot be read, an empty split, or splits that do not fit together.
    """
    if (args.dataset is None) == (args.train_file is None):
        found = "neither" if args.dataset is None else "both"
        raise UserError(f"Give exactly one of --dataset and --train_file; found {found}.")
    own = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    are_texts = getattr(args, "task", "").endswith(TEXTS_ALONE)
    options = {"text_columns": None if are_texts else args.text_columns or (), "image_column": args.image_column}
    splits = _rename_splits(_read_dataset(args, options)) if args.dataset else {}
    splits.update(files.read_tables({split: path for split, path in own.items() if path}, **options))
    for split, rows in splits.items():
        if len(rows) == 0:
            raise UserError(f"The {split} split has no rows; give one that has.")
    return _unify_columns(splits)


def compute_fingerprint(dataset: datasets.Dataset) -> str:
    """Computes 16 hex digits that stand for the content of the canonical columns, in order, but for `row_id`.

    It does not depend on paths, on caches or on how the rows were loaded: an image counts by the bytes of its file.
    """
    digest = hashlib.sha256()
    others = sorted(set(dataset.column_names) - {*CANONICAL, "row_id", "group"})
    names = [name for name in CANONICAL if name in dataset.column_names] + others
    features = dataset.features  # a copy, made at each access
    images = [name for name in names if isinstance(features[name], datasets.Image)]
    rows = dataset.with_format(None).select_columns(names)
    for name in images:
        rows = rows.cast_column(name, datasets.Image(decode=False))
    for row in rows:
        for name in images:
            row[name] = hashlib.sha256(_image_bytes(row[name])).hexdigest()
        digest.update(json.dumps([row[name] for name in names]).encode())
    return digest.hexdigest()[:16]


def _image_bytes(image: dict | None) -> bytes:
    if image is None:
        return b""
    return image["bytes"] if image["bytes"] is not None else read_bytes(image["path"])


def _read_dataset(args: "DataArguments", options: dict) -> dict[str, datasets.Dataset]:
    name, path = args.dataset, Path(args.dataset).expanduser()
    paths.check_regular(path)
    if path.is_dir():
        return folders.read_folder(path, **options)
    if path.is_file():
        return files.read_tables({"train": str(path)}, **options)
    if assets.is_bundled(name):
        return files.read_tables({split: str(file) for split, file in assets.resolve_dataset(name).items()}, **options)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or files.is_table(path):
        raise UserError(f"There is no file or folder {name} (working folder: {Path.cwd()}).")
    return _load_hub(args)


def _load_hub(args: "DataArguments") -> dict[str, datasets.Dataset]:
    try:
        splits = dict(datasets.load_dataset(args.dataset, args.dataset_config, revision=args.dataset_revision))
    # ValueError: an unknown configuration. RuntimeError: a loading script. OSError: everything about the network.
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"Cannot load the data set {args.dataset!r}: {error} {_HELP[_failure(error)]}") from error
    for rows in splits.values():
        paths.keep_inside(rows, paths.hub_homes(), args.dataset)
    return splits


def _failure(error: Exception) -> str:
    """Which entry of `_HELP` fits; the library tells gated, missing and script apart by its message alone."""
    if "gated" in str(error):
        return "gated"
    if isinstance(error, ConnectionError):
        return "offline"
    if "scripts are no longer supported" in str(error):
        return "script"
    return "not found" if isinstance(error, FileNotFoundError) else "other"


def _rename_splits(raw: dict[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """Gives splits their usual names; a source with one split has a train split, whatever its name."""
    if len(raw) == 1:
        return {"train": next(iter(raw.values()))}
    splits = {name: raw[name] for name in ("train", "validation", "test") if name in raw}
    for name, rows in raw.items():
        usual = files.SPLIT_NAMES.get(name.lower())
        if name not in splits and (usual is None or usual in splits):
            logger.warning("The split %r is ignored; used are train, validation and test.", name)
        else:
            splits[usual] = rows
    if "train" not in splits:
        raise UserError(f"There is no train split; found {', '.join(raw)}. Give one with --train_file.")
    return splits


def _unify_columns(splits: dict[str, datasets.Dataset]) -> datasets.DatasetDict:
    """Gives all splits the columns and types of train; numbers yield to wider numbers and to texts.

    What train has not is left out, and what another split has not is empty there, which is an error where it is used.
    """
    train = splits["train"]
    splits = {split: _fit_columns(rows, train, split) for split, rows in splits.items()}
    _check_classes(splits)
    types = {split: rows.features for split, rows in splits.items()}  # a property that goes through all columns
    shared = {name: _unify_types(name, splits, types) for name in train.column_names}
    unified = {}
    for split, rows in splits.items():
        try:
            target = datasets.Features({name: shared[name] for name in rows.column_names})
            unified[split] = rows if types[split] == target else rows.cast(target)
        except (ValueError, TypeError, NotImplementedError) as error:  # pyarrow's errors are these
            raise UserError(
                f"The columns of {split} do not fit the types of train ({shorten(str(shared), 600)}): {error}."
            ) from error
    return datasets.DatasetDict(unified)


def find_empty(splits: datasets.DatasetDict) -> dict[str, list[str]]:
    """Columns that hold nothing in a split but something in train, as those do that its file does not have."""
    tables = {split: rows.with_format("arrow")[:] for split, rows in splits.items()}
    empty = {split: {n for n in table.column_names if _is_empty(table.column(n))} for split, table in tables.items()}
    names = [name for name in splits["train"].column_names if name not in empty["train"]]
    found = {split: [name for name in names if name in empty[split]] for split in splits}
    return {split: names for split, names in found.items() if names}


def _is_empty(column: pa.ChunkedArray) -> bool:
    """Whether there are missing values and empty lists alone."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return not pc.any(pc.greater(pc.list_value_length(column), 0)).as_py()
    return column.null_count == len(column)


def _fit_columns(rows: datasets.Dataset, train: datasets.Dataset, split: str) -> datasets.Dataset:
    wanted, found, num_rows = train.features, rows.features, len(rows)
    missing = [name for name in wanted if name not in found]
    surplus = [name for name in found if name not in wanted]
    if surplus:
        logger.info("Left out of %s, because train has no such columns: %s.", split, quote_names(surplus))
        rows = rows.remove_columns(surplus)
    if missing:
        logger.info("Empty in %s, which has no such columns: %s.", split, quote_names(missing))
        features = datasets.Features({name: wanted[name] for name in missing})
        empty = datasets.Dataset.from_dict({name: [None] * num_rows for name in missing}, features=features)
        rows = datasets.concatenate_datasets([rows, empty], axis=1) if rows.column_names else empty
    return rows


def _check_classes(splits: dict[str, datasets.Dataset]) -> None:
    """Classes inside of objects are numbers, which the cast to train's names would leave as they are."""
    types = {split: rows.features for split, rows in splits.items()}
    for column, feature in types["train"].items():
        known = _nested_classes(feature)
        for split, features in types.items():
            found = _nested_classes(features[column])
            if found and found != known:  # what has no names of its own is cast to those of train
                raise UserError(
                    f"The classes of {column} differ: train has {known}; {split} has {found}. Give all splits "
                    "the same ones, in the same order."
                )


def _nested_classes(feature: object, *, is_inside: bool = False) -> list[list[str]]:
    """The names of each ClassLabel below the top, where `datasets` compares none."""
    if isinstance(feature, datasets.ClassLabel):
        return [feature.names] if is_inside else []
    if isinstance(feature, datasets.List):
        return _nested_classes(feature.feature, is_inside=True)
    members = feature.values() if isinstance(feature, dict) else ()
    return [names for member in members for names in _nested_classes(member, is_inside=True)]


def _unify_types(name: str, splits: dict[str, datasets.Dataset], types: dict[str, datasets.Features]) -> object:
    """As `_widest`, but integers stay integers where the decimals of other splits have no fraction."""
    features = [types[split][name] for split in splits]
    found = _widest(features)
    if found != datasets.Value("float64") or not all(isinstance(feature, datasets.Value) for feature in features):
        return found
    if not any("int" in feature.dtype for feature in features):
        return found
    decimals = [rows.data.column(name) for split, rows in splits.items() if "float" in types[split][name].dtype]
    return datasets.Value("int64") if all(map(are_whole, decimals)) else found


def _widest(features: list) -> object:
    """The type that holds them all: strings over decimals over integers; for any other pair that of train."""
    dtypes = [feature.dtype for feature in features if isinstance(feature, datasets.Value)]
    if len(dtypes) < len(features) or len(set(dtypes)) == 1 and dtypes[0] not in ("null", "large_string"):
        return features[0]
    if any(dtype in ("string", "large_string", "null") for dtype in dtypes):
        return datasets.Value("string")
    return datasets.Value("float64") if any("float" in dtype for dtype in dtypes) else features[0]
