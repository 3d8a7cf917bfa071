"""Which column holds the boxes of an image and their classes, and can every box be learnt?

After `read_boxes` all data look alike: `row_id`, `image`, `boxes` (x, y, width, height in pixels of the upright image)
and `classes` (numbers). Must not know networks or sizes that they read.
"""

import logging
from itertools import chain, repeat
from typing import Any

import datasets
import numpy as np

from hftl.data.columns import choose_named
from hftl.data.label_columns import name_label_column
from hftl.data.masks import upright_size
from hftl.data.paths import IMAGE_PATH_NAMES, to_images
from hftl.errors import UserError

logger = logging.getLogger(__name__)

MAX_BOXES = 100  # of an image, as COCO counts them
OBJECT_NAMES = ("objects", "annotations")
IMAGE_ID = "image_id"
CLASS_NAMES = ("category", "categories", "label", "labels", "category_id")
TOLERANCE = 1.0  # pixels that a box may reach over the border, which rounding explains
LAYOUT = "{bbox: [[x, y, width, height], ...], category: [...]}"


def choose_objects(features: datasets.Features, args: Any) -> str:
    """The column of the boxes."""
    found = [name for name in features if name.lower() in OBJECT_NAMES]
    return choose_named("boxes", found, name_label_column(args), features, "--label_column")


def choose_picture(features: datasets.Features, args: Any) -> str:
    """The column of the images; masks beside it are left alone."""
    found = [name for name in features if name.lower() in IMAGE_PATH_NAMES]
    found = found or [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    return choose_named("image", found, args.image_column, features, "--image_column")


def read_boxes(splits: datasets.DatasetDict, args: Any) -> tuple[tuple[str, ...], datasets.DatasetDict]:
    """The names of the classes, and the splits in canonical columns without bad rows.

    Raises:
        UserError: the column holds no boxes, or a box cannot be used; the row is named. With `--on_bad_rows skip` such
            rows are dropped instead.
    """
    features = splits["train"].features
    column = choose_objects(features, args)
    key = _class_field(column, features[column])
    names = _declared_names(features[column], key)
    if names is None:
        names = tuple(sorted({str(name) for row in splits["train"][column] for name in _fields(row, key)[1]}))
    if not names:
        raise UserError(f"No row of train has a box in {column}. Check the file.")
    return names, datasets.DatasetDict({split: read_rows(rows, split, names, args) for split, rows in splits.items()})


def read_rows(rows: datasets.Dataset, split: str, names: tuple[str, ...], args: Any) -> datasets.Dataset:
    """One split in canonical columns, its classes as places in `names`."""
    image, column = choose_picture(rows.features, args), choose_objects(rows.features, args)
    key = _class_field(column, rows.features[column])
    declared = _declared_names(rows.features[column], key)
    rows = to_images(rows.with_format(None), image, args).cast_column(image, datasets.Image(decode=False))
    boxes, classes, good = [], [], []
    wanted = [name for name in (image, column, IMAGE_ID) if name in rows.column_names]
    for row_id, row in enumerate(rows.select_columns(wanted)):
        found, labels = _fields(row[column], key)
        labels = [_name_class(label, declared) for label in labels]
        fault = _find_fault(found, labels, _name_boxes(row[column], found), upright_size(row[image]), names)
        place = f"row_id {row_id}" + (f" (image {row[IMAGE_ID]})" if IMAGE_ID in row else "")
        if fault and args.on_bad_rows == "error":
            raise UserError(f"{split}, {place}: {fault}")
        if fault:
            logger.warning("Dropped: %s of %s: %s", place, split, fault)
        else:
            good.append(row_id)
        boxes.append([] if fault else found)
        classes.append([] if fault else [names.index(label) for label in labels])
    return _standardize(rows.select_columns([image]), boxes, classes).select(good)


def _standardize(images: datasets.Dataset, boxes: list, classes: list) -> datasets.Dataset:
    columns = {
        "row_id": (np.arange(len(images)).tolist(), datasets.Value("int64")),
        "boxes": (boxes, datasets.List(datasets.List(datasets.Value("float32")))),
        "classes": (classes, datasets.List(datasets.Value("int64"))),
    }
    added = datasets.Dataset.from_dict(
        {name: values for name, (values, _) in columns.items()},
        features=datasets.Features({name: feature for name, (_, feature) in columns.items()}),
    )
    images = images.rename_columns(dict.fromkeys(images.column_names, "image"))
    images = images.cast_column("image", datasets.Image(decode=True))
    return datasets.concatenate_datasets([added, images.flatten_indices()], axis=1).select_columns(
        ["row_id", "image", "boxes", "classes"]
    )


def _name_class(label: Any, declared: tuple[str, ...] | None) -> str:
    is_number = declared is not None and isinstance(label, int) and 0 <= label < len(declared)
    return declared[label] if is_number else str(label)


def _members(feature: Any) -> dict[str, Any]:
    inner = feature.feature if isinstance(feature, datasets.List) else feature
    return dict(inner) if isinstance(inner, dict) else {}


def _class_field(column: str, feature: Any) -> str:
    members = _members(feature)
    key = next((name for name in CLASS_NAMES if name in members), None)
    if "bbox" not in members or key is None:
        raise UserError(
            f"The column {column} holds {feature}, which are no boxes; expected {LAYOUT} or a list of such objects. "
            "Name the column of the boxes with --label_column, or choose the --task of these labels."
        )
    return key


def _declared_names(feature: Any, key: str) -> tuple[str, ...] | None:
    member = _members(feature)[key]
    member = member.feature if isinstance(member, datasets.List) else member
    return tuple(member.names) if isinstance(member, datasets.ClassLabel) else None


def _fields(objects: Any, key: str) -> tuple[list, list]:
    """Boxes and classes of one row, in either layout."""
    if objects is None:
        return [], []
    if isinstance(objects, dict):
        return objects["bbox"] or [], objects[key] or []
    return [item["bbox"] for item in objects], [item[key] for item in objects]


def _name_boxes(objects: Any, boxes: list) -> list[str]:
    """What messages call each box: itself, and its id where it has one."""
    ids = objects.get("id") if isinstance(objects, dict) else [item.get("id") for item in objects or ()]
    keys = chain(ids or (), repeat(None))
    return [str(box) if key is None else f"{box} (annotation {key})" for key, box in zip(keys, boxes, strict=False)]


def _find_fault(
    boxes: list, labels: list, box_names: list[str], size: tuple[int, int] | None, names: tuple[str, ...]
) -> str | None:
    if len(boxes) != len(labels):
        return f"it has {len(boxes)} boxes and {len(labels)} classes; give a class for each box."
    if len(boxes) > MAX_BOXES:
        return f"it has {len(boxes)} boxes; at most {MAX_BOXES} are learnt. Cut the image into parts."
    for box, label, name in zip(boxes, labels, box_names, strict=True):
        if label not in names:
            return f"its box {name} has the class {label!r}, which train does not have: {', '.join(names)}."
        if box is None or len(box) != 4 or not np.isfinite(np.asarray(box, float)).all():
            return f"its box {name} is not [x, y, width, height] in pixels. Correct it."
        if box[2] <= 0 or box[3] <= 0:
            return f"its box {name} has no area; expected [x, y, width, height] in pixels. Correct or remove it."
        if size is not None and _reaches_out(box, size):
            return (
                f"its box {name} reaches out of the image of {size[0]} x {size[1]} pixels; expected [x, y, width, "
                "height], not corners. Correct it."
            )
    return None


def _reaches_out(box: list[float], size: tuple[int, int]) -> bool:
    ends = (box[0] + box[2], box[1] + box[3])
    return min(box[:2]) < -TOLERANCE or any(end > side + TOLERANCE for end, side in zip(ends, size, strict=True))
