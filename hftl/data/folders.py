"""What does a folder hold? Tables named by split, images by class, beside a metadata table or with masks.

Links in a folder that the user named are followed. What is hidden, or what systems and programs leave behind, never
counts; of everything else that is left out the number and a name are said. Must not know which columns matter.
"""

import logging
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import datasets

from hftl.data.files import SPLIT_NAMES, is_table, read_tables
from hftl.data.images import is_image
from hftl.data.paths import IMAGE_PATH_NAMES, find_paths, resolve_images
from hftl.data.saved import is_saved, read_saved
from hftl.errors import UserError, printable

logger = logging.getLogger(__name__)

PAIRED_FOLDERS = ("images", "masks")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "_annotations.coco.json")
# What macOS, Windows, Synology, QNAP, file systems and Python leave in folders, besides names that start with a dot.
LITTER = {"__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "system volume information"}
LITTER |= {"lost+found", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
MAX_LINKS = 3  # to folders inside each other, as of a split, a class and a part of it; more would multiply

EXPECTED = (
    "expected one folder a class with images in it, metadata.csv, tables named train.csv (tsv, json, jsonl, parquet), "
    "or a folder written by save_to_disk"
)


def read_folder(
    folder: Path, *, text_columns: Iterable[str] | None = (), image_column: str | None = None
) -> dict[str, datasets.Dataset]:
    """Reads a `save_to_disk` folder, a folder of tables named by split (train.csv, ...), or a folder of images.

    Images lie in one folder a class, with or without folders named by split above them, or beside a metadata table
    with a `file_name` column, or in `images` with a mask of the same name in `masks`.

    Raises:
        UserError: the folder holds none of these, or a class without an image.
    """
    if is_saved(folder):
        return read_saved(folder)
    if tables := _find_tables(folder):
        return read_tables(tables, text_columns=text_columns, image_column=image_column)
    roots = _find_roots(folder)
    metadata = {name: _metadata_file(root) for name, root in roots.items()}
    if (table := _metadata_file(folder)) and not all(metadata.values()):
        return _split_by_folder(_read_metadata(table, text_columns, image_column), folder, image_column)
    if any(metadata.values()):
        if missing := [str(roots[name]) for name, path in metadata.items() if path is None]:
            raise UserError(f"Other splits have a metadata table but {missing[0]} has none; add one to it.")
        splits = {name: _read_metadata(path, text_columns, image_column) for name, path in metadata.items()}
        if list(roots.values()) == [folder]:
            return _split_by_folder(splits["train"], folder, image_column)
        for name, rows in splits.items():
            _say_unnamed(roots[name], rows, image_column)
        return splits
    if all((root / name).is_dir() for root in roots.values() for name in PAIRED_FOLDERS):
        return {name: _read_pairs(root) for name, root in roots.items()}
    return _read_classes(roots)


def find_images(folder: Path) -> list[Path]:
    """Every image below a folder; says what else there is."""
    files = list_files(folder)
    images = list(filter(is_image, files))
    _say_skipped(folder, files)
    return images


def list_files(folder: Path) -> list[Path]:
    """Every visible file below a folder, in order, through links; a folder inside of itself is passed over."""
    found: list[Path] = []
    waiting = [(folder, (folder.resolve(),), 0)]
    while waiting:
        place, above, links = waiting.pop()
        for path in _list_visible(place):
            if not path.is_dir():
                _check_name(path)
                found.append(path)
                continue
            is_link = path.is_symlink()
            real = path.resolve() if is_link else above[-1] / path.name
            if real in above or links + is_link > MAX_LINKS:
                logger.warning("%s is passed over: the link leads back, or through more than %d.", path, MAX_LINKS)
            else:
                waiting.append((path, (*above, real), links + is_link))
    return sorted(found)


def _check_name(path: Path) -> None:
    """Raises UserError for an image whose path is no text, as in an archive of Windows that was unpacked elsewhere."""
    try:
        if is_image(path):
            str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"The name {str(path)!a} is not UTF-8, as after unpacking an archive of another system. Rename it, for "
            "example with `convmv -r --notest -f cp437 -t utf8 FOLDER`, or unpack again with `unzip -O cp437`."
        ) from error


def _list_visible(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"Cannot read the folder {folder}: {error.strerror}.") from error
    return [path for path in entries if not path.name.startswith(".") and path.name.lower() not in LITTER]


def _list_folders(folder: Path) -> list[Path]:
    return [path for path in _list_visible(folder) if path.is_dir()]


def _find_tables(folder: Path) -> dict[str, str]:
    tables: dict[str, str] = {}
    for path in _list_visible(folder):
        name = path.name.split(".")[0]
        if name.lower() in SPLIT_NAMES and is_table(path) and not path.is_dir():
            if name in tables:
                raise UserError(f"{folder} has two tables of one split, {tables[name]} and {path}. Take one away.")
            tables[name] = str(path)
    return tables


def _find_roots(folder: Path) -> dict[str, Path]:
    """Split -> folder. Where other folders lie beside, only if train is made of folders: a class may be called so."""
    children = _list_folders(folder)
    named = {child.name: child for child in children if child.name.lower() in SPLIT_NAMES}
    others = [child for child in children if child.name not in named]
    if not named or others and not any(SPLIT_NAMES[n.lower()] == "train" and _has_parts(named[n]) for n in named):
        return {"train": folder}
    if others:
        logger.warning(
            "%s: left out are the folders %s; the splits are %s.", folder, _name_some(others), ", ".join(named)
        )
    return named


def _has_parts(folder: Path) -> bool:
    return _metadata_file(folder) is not None or bool(
        _list_folders(folder) and not any(map(is_image, _list_visible(folder)))
    )


def _metadata_file(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA_NAMES if (folder / name).exists()), None)


def _read_metadata(path: Path, text_columns: Iterable[str] | None, image_column: str | None) -> datasets.Dataset:
    rows = read_tables({"train": str(path)}, text_columns=text_columns, image_column=image_column)["train"]
    return resolve_images(rows, path.absolute().parent, image_column or _choose_image(rows, None))


def _choose_image(rows: datasets.Dataset, image_column: str | None) -> str | None:
    return image_column or next((name for name in IMAGE_PATH_NAMES if name in rows.column_names), None)


def _split_by_folder(rows: datasets.Dataset, folder: Path, image_column: str | None) -> dict[str, datasets.Dataset]:
    """Rows of a metadata table above folders that are named by split, divided as their images are."""
    _say_unnamed(folder, rows, image_column)
    names = {path.name for path in _list_folders(folder) if path.name.lower() in SPLIT_NAMES}
    above = folder.absolute()
    paths = [Path(path) if path else above for path in _named_paths(rows, image_column)]
    first = [path.relative_to(above).parts[:1] if path.is_relative_to(above) else () for path in paths]
    found = {part[0]: [] for part in first if part and part[0] in names}
    if len({SPLIT_NAMES[name.lower()] for name in found}) < 2:
        return {"train": rows}
    for index, part in enumerate(first):
        if not part or part[0] not in found:
            raise UserError(
                f"The metadata of {folder} name images in {', '.join(found)}, but row {index} names "
                f"{str(paths[index])!r}, which is of no split. Move it into the folder of one, or remove the row."
            )
        found[part[0]].append(index)
    return {name: rows.select(indices) for name, indices in found.items()}


def _named_paths(rows: datasets.Dataset, image_column: str | None) -> list[str | None]:
    column = _choose_image(rows, image_column)
    return find_paths(rows, column, rows.features[column]) if column in rows.column_names else []


def _say_unnamed(folder: Path, rows: datasets.Dataset, image_column: str | None) -> None:
    """Images that no row of the metadata names are not used, which may surprise."""
    named = {
        str(path) for column, feature in rows.features.items() for path in find_paths(rows, column, feature) if path
    }
    unnamed = [path for path in list_files(folder) if is_image(path) and str(path.absolute()) not in named]
    if unnamed:
        logger.warning(
            "%s: images left out, because its metadata do not name them: %d, %s.",
            folder,
            len(unnamed),
            _name_some(unnamed),
        )


def _read_pairs(root: Path) -> datasets.Dataset:
    """`images/NAME.*` and `masks/NAME.png` (or another kind), in the order of their names, also in folders inside."""
    images, masks = (_list_by_stem(root / name) for name in PAIRED_FOLDERS)
    if not images:
        raise UserError(f"{root / PAIRED_FOLDERS[0]} holds no images.")
    if missing := [path for stem, path in images.items() if stem not in masks]:
        raise UserError(
            f"{missing[0]} has no mask: expected {root / PAIRED_FOLDERS[1] / missing[0].stem}.png. Missing are "
            f"{len(missing)} of {len(images)}."
        )
    if unused := [path for stem, path in masks.items() if stem not in images]:
        logger.warning(
            "%s: masks left out, because they have no image: %d, %s.", root, len(unused), _name_some(unused)
        )
    rows = {"image": [str(path.absolute()) for path in images.values()]}
    rows["mask"] = [str(masks[stem].absolute()) for stem in images]
    return datasets.Dataset.from_dict(
        rows, features=datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    )


def _list_by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in find_images(folder):
        stem = str(path.relative_to(folder).with_suffix(""))
        if stem in found:
            raise UserError(f"{found[stem]} and {path} have one name. Take one away, or give it another name.")
        found[stem] = path
    return found


def _read_classes(roots: dict[str, Path]) -> dict[str, datasets.Dataset]:
    images = {name: _list_classified(root, SPLIT_NAMES[name.lower()]) for name, root in roots.items()}
    names = sorted({path.parent.name for paths in images.values() for path in paths})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return {
        name: datasets.Dataset.from_dict(
            {"image": [str(path.absolute()) for path in paths], "label": [path.parent.name for path in paths]},
            features=features,
        )
        for name, paths in images.items()
    }


def _list_classified(root: Path, split: str) -> list[Path]:
    """The images of a split, each in the folder of its class."""
    files = list_files(root)
    images = list(filter(is_image, files))
    if not images:
        raise UserError(f"{root} holds no images{_count_kinds(files)}; {EXPECTED}.")
    if astray := [path for path in images if path.parent.parent != root]:
        raise UserError(
            f"{astray[0]} is not directly inside a class folder of {root}; expected CLASS/IMAGE. "
            + _advise(astray, root)
        )
    inside: dict[str, list[Path]] = {}
    for path in files:
        inside.setdefault(path.relative_to(root).parts[0], []).append(path)
    for folder in _list_folders(root):
        others = inside.get(folder.name, [])
        if any(map(is_image, others)):
            continue
        if others or split == "train":
            raise UserError(
                f"The class folder {folder} holds no image{_count_kinds(others)}. Convert what it holds to .png or "
                ".jpg, or take the folder away."
            )
        logger.warning("%s is empty: its split has no rows of that class.", folder)
    _say_skipped(root, files)
    return images


def _advise(astray: list[Path], root: Path) -> str:
    """What to do about images that lie too high or too deep."""
    above = sorted({path.parent.parent for path in astray if path.parent != root})
    if not above:
        return "Move it into the folder of its class, or write metadata.csv with the columns file_name and label."
    if len(above) == 1:
        return f"If the classes are the folders of {above[0]}, name that: --dataset {shlex.quote(str(above[0]))}"
    names = ", ".join(str(path.relative_to(root)) for path in above[:3]) + (", ..." if len(above) > 3 else "")
    return f"If the classes are the folders of one of {names}, name that; splits are called train, validation, test."


def _say_skipped(folder: Path, files: list[Path]) -> None:
    skipped = [path for path in files if not is_image(path)]
    if skipped:
        logger.warning(
            "%s: skipped %d of %d files, which are not read as images (%s): %s.",
            folder, len(skipped), len(files), _list_kinds(skipped), _name_some(skipped),
        )  # fmt: skip


def _count_kinds(files: list[Path]) -> str:
    return f", but {len(files)} other files ({_list_kinds(files)})" if files else ""


def _list_kinds(files: list[Path]) -> str:
    kinds = Counter(path.suffix[:20] or "no ending" for path in files).most_common(5)
    return ", ".join(f"{count} x {kind}" for kind, count in kinds)


def _name_some(paths: list[Path]) -> str:
    return printable(", ".join(str(path)[-200:] for path in paths[:3])) + (", ..." if len(paths) > 3 else "")
