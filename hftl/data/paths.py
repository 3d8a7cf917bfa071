"""Where do the paths lead that data name? To files below the folder of the table, or where a full path says.

One resolver for every path in data: of images and masks in tables, lists, parquet and annotations of COCO. Nothing is
opened here. Files that the user names, and links in a folder that the user names, lead anywhere.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.compute as pc

from hftl.data.arrays import read_array
from hftl.data.images import is_image, read_row
from hftl.errors import UserError

IMAGE_PATH_NAMES = ("image", "img", "image_path", "image_file", "file_name", "filename", "file_path", "path", "file")
MASK_NAMES = ("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentation_mask")
NUMBERS = ("int", "uint", "float", "bool")  # how the names of their types begin
_ADDRESS = re.compile(r"(data:|[a-z][a-z0-9+.-]+:/)", re.IGNORECASE)
_WINDOWS = re.compile(r"([A-Za-z]:[\\/]|\\\\)")


def resolve_path(name: str, folder: Path) -> Path:
    """The file that a path in data means.

    Args:
        name: relative to `folder`, with slashes or the backslashes of Windows; or a full path.
        folder: of the table.

    Raises:
        UserError: it leads out of the folder by `..`, or is an address or a full path of another system.
    """
    if _ADDRESS.match(name):
        raise UserError(
            f"The image path {name[:200]!r} is an address, and nothing is fetched from addresses in data. Write the "
            "path of a file."
        )
    if os.name != "nt" and _WINDOWS.match(name):
        raise UserError(
            f"The image path {name[:200]!r} is a full path of Windows, which is not on this machine. Write paths "
            "relative to the table."
        )
    if ".." in re.split(r"[\\/]", name):
        raise UserError(
            f"The image path {name[:200]!r} leads out of the folder of its table. Move the table to a folder above "
            "all images, or write full paths."
        )
    path = folder / name
    if os.name != "nt" and "\\" in name and not os.path.lexists(path):  # in a name of POSIX it may be a letter
        path = folder / name.replace("\\", "/").lstrip("/")
    return path


def check_regular(path: Path) -> None:
    """Raises UserError for a pipe, a socket or a device, which may have no end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is a pipe or a device and no regular file. Write the data to a file and name that.")


def resolve_images(table: datasets.Dataset, folder: Path, image_column: str | None) -> datasets.Dataset:
    """Makes paths of images full, in columns that hold images or look as if they held paths of images.

    What cannot be resolved stays as it is, because nobody may ask for that column; `to_images` refuses it.
    """
    for name, feature in table.features.items():
        if is_text(feature):
            if name == image_column or name in (*IMAGE_PATH_NAMES, *MASK_NAMES) and _look_like_images(table, name):
                full = [value and _try_to_resolve(value, folder) for value in table[name][:]]
                table = _replace(table, name, full, datasets.Value("string"))
        elif any(path and not os.path.isabs(path) for path in _find_stored_paths(table, name, feature)):
            images = table.cast_column(name, datasets.Image(decode=False))[name][:]
            full = [image and _with_full_path(image, folder) for image in images]
            table = _replace(table, name, full, datasets.Image())
    return table


def _replace(table: datasets.Dataset, name: str, values: list, feature: Any) -> datasets.Dataset:
    """Other values in a column; where it is the only one, nothing would be left to add it to."""
    column = datasets.Dataset.from_dict({name: values}, features=datasets.Features({name: feature}))
    rest = table.remove_columns(name)
    return datasets.concatenate_datasets([rest, column], axis=1) if rest.column_names else column


def _look_like_images(table: datasets.Dataset, name: str) -> bool:
    """Whether the first path of a column of paths, or every entry of a column of masks, ends like an image."""
    values = [value for value in table[name][:] if value]
    if name in IMAGE_PATH_NAMES:
        return is_image(Path(values[0])) if values else False
    return bool(values) and all(is_image(Path(value)) for value in values)


def _try_to_resolve(name: str, folder: Path) -> str:
    try:
        return str(resolve_path(name, folder))
    except UserError:
        return name


def _with_full_path(image: dict[str, Any], folder: Path) -> dict[str, Any]:
    is_file = image["bytes"] is None and image["path"]
    return {**image, "path": _try_to_resolve(image["path"], folder)} if is_file else image


def to_images(rows: datasets.Dataset, name: str, args: Any) -> datasets.Dataset:
    """The column as `datasets.Image`, if no path in it leads where it must not.

    Args:
        rows: with their types as they were loaded.
        name: of the column.
        args: which say where the rows are from.

    Raises:
        UserError: the column holds no images, or a path that is not resolved.
    """
    feature = rows.features[name]
    if is_text(feature) and _is_remote(args):
        raise UserError(
            f"The column {name!r} of {args.dataset} holds texts and no images, and files of this machine are not read "
            "for a data set of the Hub. Name a column of images with --image_column."
        )
    if _holds_numbers(feature):
        return _draw_arrays(rows, name)
    try:
        rows = rows.cast_column(name, datasets.Image(decode=True))
    except (pa.ArrowException, TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"The column {name!r} holds {feature}, which are no images; name another column.") from error
    for row_id, path in enumerate(_find_stored_paths(rows, name, rows.features[name])):
        if path and not os.path.isabs(path):
            resolve_path(path, Path())  # says what is wrong, if it leads out
            raise UserError(
                f"The column {name!r} holds {path[:200]!r} in row_id {row_id}, which does not look like the path of "
                "an image. Write names with their endings, or name the column with --image_column."
            )
    return rows


def _holds_numbers(feature: object) -> bool:
    """Whether the entries of a column are nested lists of numbers."""
    if isinstance(feature, (datasets.Array2D, datasets.Array3D)):
        return True
    if not isinstance(feature, (datasets.List, datasets.LargeList)):
        return False
    inner = feature.feature
    return _holds_numbers(inner) or isinstance(inner, datasets.Value) and inner.dtype.startswith(NUMBERS)


def _draw_arrays(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    """Arrays in a column as stored images."""

    def encode(values: Any) -> dict[str, Any]:
        return datasets.Image().encode_example(read_array(values))

    column = rows.with_format(None).select_columns(name)
    images = [None if row[name] is None else read_row(row[name], index, encode) for index, row in enumerate(column)]
    return _replace(rows, name, images, datasets.Image()).select_columns(rows.column_names)


def _is_remote(args: Any) -> bool:
    return args.dataset is not None and not Path(args.dataset).expanduser().exists()


def keep_inside(table: datasets.Dataset, homes: Iterable[Path], source: str) -> None:
    """Raises UserError if a stored image is a file that lies in none of the folders which belong to the data set."""
    homes = [home.resolve() for home in homes]
    for name, feature in table.features.items():
        for path in filter(None, _find_stored_paths(table, name, feature)):
            real = Path(path).resolve() if os.path.isabs(path) else None
            if real is None or not any(real.is_relative_to(home) for home in homes):
                raise UserError(
                    f"The column {name!r} of {source} names the file {path[:200]!r}, which is no part of the data "
                    "set. Save it with its images: `save_to_disk` and `push_to_hub` put them inside."
                )


def hub_homes() -> list[Path]:
    """Where files of data sets of the Hub lie on this machine."""
    caches = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH)
    return [*map(Path, caches), Path(huggingface_hub.constants.HF_HUB_CACHE)]


def find_paths(table: datasets.Dataset, name: str, feature: object) -> list[str | None]:
    """The paths in a column of images, or in a column of texts; `feature` is its type."""
    return table[name][:] if is_text(feature) else _find_stored_paths(table, name, feature)


def is_text(feature: object) -> bool:
    """Whether a column holds texts."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _find_stored_paths(table: datasets.Dataset, name: str, feature: object) -> list[str | None]:
    """The path of each image that is a file of its own, None for one that is stored; empty where all are stored.

    Args:
        table: rows.
        name: of a column.
        feature: its type, given because `table.features` copies the types of all columns.
    """
    is_struct = isinstance(feature, dict) and {"path"} <= set(feature) <= {"path", "bytes"}
    if not isinstance(feature, datasets.Image) and not (is_struct and is_text(feature["path"])):
        return []
    column = table.with_format("arrow").select_columns(name)[:][name]
    paths = pc.struct_field(column, "path")
    if is_struct and "bytes" not in feature:
        return paths.to_pylist()
    missing = pc.and_(pc.is_null(pc.struct_field(column, "bytes")), pc.is_valid(paths))
    if not pc.any(missing).as_py():
        return []
    return pc.if_else(missing, paths, pa.scalar(None, paths.type)).to_pylist()
