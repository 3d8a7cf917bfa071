"""What does a folder hold? Tables named by split, images by class, beside a metadata table or with masks.

Must not know which columns matter or what a label means.
"""

from collections.abc import Iterable
from pathlib import Path

import datasets

from hftl.data.files import SPLIT_NAMES, is_table, read_tables
from hftl.data.paths import is_image
from hftl.data.saved import read_saved
from hftl.errors import UserError

PAIRED_FOLDERS = ("images", "masks")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "_annotations.coco.json")


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
        return read_saved(folder)
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
