"""What does an annotations file of COCO hold? `images`, `annotations` and `categories` become one row an image.

Columns: `image`, `image_id` and `objects` (`id`, `bbox`, `category`), as data sets of the Hub have them. Must not
know whether a box can be learnt: `boxes` looks at it, and names the annotation.
"""

import json
import logging
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets

from hftl.data.encoding import open_text
from hftl.data.paths import resolve_path
from hftl.errors import UserError

logger = logging.getLogger(__name__)

PARTS = ("images", "annotations", "categories")
START = 10_000  # characters in which one of the parts begins, if they are there


def parse_coco(path: Path) -> dict[str, list] | None:
    """The file's content, if it is one object with images and annotations; None for a table.

    Args:
        path: a .json, or one packed as .json.gz.
    """
    try:
        with open_text(path) as file:
            start = file.read(START)
            if not start.lstrip().startswith("{") or not any(f'"{part}"' in start for part in PARTS):
                return None
            content = json.loads(start + file.read())
    except (ValueError, OSError, EOFError, zlib.error, RecursionError):
        return None  # rows one a line, or broken: the reader of tables says what
    is_coco = all(isinstance(content.get(part), list) for part in PARTS[:2])
    return content if is_coco else None


def read_coco(path: Path, content: dict[str, list]) -> datasets.Dataset:
    """A row an image, the classes in the order of their ids; annotations of crowds are left out.

    Args:
        path: of the file. Images are looked for beside it, in `images` beside it, and, as COCO itself lies, in
            `../val2017` for `instances_val2017.json`.
        content: what `parse_coco` read.

    Raises:
        UserError: something in it does not fit together; the image or annotation is named by its id.
    """
    try:
        images = _by_id(path, "images", content["images"])
        names = {key: str(entry["name"]) for key, entry in _categories(path, content).items()}
        objects = _collect(path, content["annotations"], images, list(names))
        files = _find_files(path, images)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not whole: {error} is missing, or of another kind. Expected images > id, file_name; "
            "annotations > id, image_id, category_id, bbox; categories > id, name."
        ) from error
    return datasets.Dataset.from_dict(
        {"image": files, "image_id": list(images), "objects": [objects[key] for key in images]},
        features=_features(list(names.values())),
    )


def _features(names: list[str]) -> datasets.Features:
    objects = {
        "id": datasets.List(datasets.Value("int64")),
        "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
        "category": datasets.List(datasets.ClassLabel(names=names)),
    }
    return datasets.Features(image=datasets.Image(), image_id=datasets.Value("int64"), objects=objects)


def _by_id(path: Path, part: str, entries: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    keys = [entry["id"] for entry in entries]
    if not keys:
        raise UserError(f"{path} has no {part}. Check the file.")
    if strange := [key for key in keys if type(key) is not int or key.bit_length() > 63]:
        raise UserError(f"{path}: the id {strange[0]!r} in {part} is no integer of 64 bits. Number them.")
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise UserError(f"{path}: the id {twice[0]} stands {keys.count(twice[0])} times in {part}. Make it unique.")
    return dict(zip(keys, entries, strict=True))


def _categories(path: Path, content: dict[str, list]) -> dict[int, dict[str, Any]]:
    found = dict(sorted(_by_id(path, "categories", content.get("categories") or []).items()))
    names = Counter(entry["name"] for entry in found.values())
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(f"{path}: {names[twice[0]]} categories are called {twice[0]!r}. Give each its own name.")
    return found


def _collect(
    path: Path, annotations: list[dict[str, Any]], images: dict[int, Any], categories: list[int]
) -> dict[int, dict[str, list]]:
    """The objects of each image, their classes as places in `categories`."""
    found: dict[int, dict[str, list]] = defaultdict(lambda: {"id": [], "bbox": [], "category": []})
    places = {key: place for place, key in enumerate(categories)}
    _by_id(path, "annotations", annotations)
    crowds = [entry for entry in annotations if entry.get("iscrowd")]
    if crowds:
        logger.warning("%s: %d annotations of crowds are left out, such as %s.", path, len(crowds), crowds[0]["id"])
    for entry in annotations:
        if entry["image_id"] not in images:
            raise UserError(f"{path}: annotation {entry['id']} is of image {entry['image_id']}, which is not there.")
        if entry["category_id"] not in places:
            raise UserError(
                f"{path}: annotation {entry['id']} has the category {entry['category_id']}, which has no name; known "
                f"are {', '.join(map(str, categories[:20]))}. Add it to categories."
            )
        if not entry.get("iscrowd"):
            _check_box(path, entry)
            objects = found[entry["image_id"]]
            objects["id"].append(entry["id"])
            objects["bbox"].append(entry["bbox"])
            objects["category"].append(places[entry["category_id"]])
    return found


def _check_box(path: Path, entry: dict[str, Any]) -> None:
    if not isinstance(box := entry["bbox"], list) or any(type(value) not in (int, float) for value in box):
        raise UserError(f"{path}: annotation {entry['id']} has the bbox {box!r}; expected [x, y, width, height].")


def _find_files(path: Path, images: dict[int, dict[str, Any]]) -> list[str]:
    folder = path.absolute().parent
    folders = [folder, folder / "images", folder.parent / path.name.split(".")[0].split("_")[-1]]
    found = []
    for key, entry in images.items():
        name = entry["file_name"]
        try:
            places = [resolve_path(name, place) for place in folders]
        except UserError as error:
            raise UserError(f"{path}: image {key}: {error}") from error
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            looked = ", ".join(map(str, dict.fromkeys(folders)))
            raise UserError(f"{path}: the file of image {key}, {name}, is in none of {looked}. Put it there.")
        found.append(str(file))
    return found
