"""Which column is the image and which the mask of its classes, and can every pixel of a mask be learnt?

After `read_masks` all data look alike: `row_id`, `image`, `mask`, both `datasets.Image`. A mask holds the number of a
class in each pixel, and 255 where nothing is to be learnt. Must not know networks or sizes that they read.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from PIL import Image

from hftl.data.columns import choose_named
from hftl.data.images import ImageFault, find_turned_size, read_image, strict_pillow
from hftl.data.paths import IMAGE_PATH_NAMES, MASK_NAMES, to_images
from hftl.errors import UserError
from hftl.records import count_cores

logger = logging.getLogger(__name__)

IGNORED_PIXEL = 255  # in a mask file: nothing is known of this pixel
MASK_MODES = ("L", "P", "1", "I", "I;16")  # of Pillow: one number a pixel
BATCH = 64  # rows that a thread looks at in one go


@dataclass(frozen=True)
class _Fault:
    row_id: int
    text: str


def read_masks(splits: datasets.DatasetDict, args: Any) -> datasets.DatasetDict:
    """Keeps the image and its mask under their canonical names, and adds `row_id`."""
    names = {
        choose_image(splits["train"].features, args): "image",
        choose_mask(splits["train"].features, args): "mask",
    }
    return datasets.DatasetDict({split: _standardize(rows, names, args) for split, rows in splits.items()})


def _standardize(rows: datasets.Dataset, names: dict[str, str], args: Any) -> datasets.Dataset:
    rows = rows.with_format(None).select_columns(list(names))
    rows = rows.add_column("row_id", np.arange(len(rows), dtype=np.int64))
    for name in names:
        rows = to_images(rows, name, args)
    rows = rows.rename_columns(names)
    return rows.select_columns(["row_id", "image", "mask"])


def choose_mask(features: datasets.Features, args: Any) -> str:
    """The column of the masks."""
    found = [name for name in features if name.lower() in MASK_NAMES]
    return choose_named("mask", found, args.label_column, features, "--label_column")


def choose_image(features: datasets.Features, args: Any) -> str:
    """The column of the images; it is there without a mask as well."""
    taken = {args.label_column, *(name for name in features if name.lower() in MASK_NAMES)}
    found = [n for n, feature in features.items() if isinstance(feature, datasets.Image) and n not in taken]
    found = found or [name for name in features if name.lower() in IMAGE_PATH_NAMES and name not in taken]
    return choose_named("image", found, args.image_column, features, "--image_column")


def name_classes(splits: datasets.DatasetDict, args: Any) -> tuple[tuple[str, ...], datasets.DatasetDict]:
    """The names of the classes: those given, else the numbers up to the largest one of train; and the good rows.

    Raises:
        UserError: a mask cannot be used, or holds a number that no class has; the row is named. With
            `--on_bad_rows skip` such rows are dropped instead.
    """
    given = args.class_names
    if given is not None and len(set(given)) < max(2, len(given)):
        raise UserError(f"--class_names has {', '.join(given)}; give two or more names, each once.")
    splits, limit = datasets.DatasetDict(splits), len(given) if given is not None else None
    if limit is None:
        splits["train"], seen = check_masks(splits["train"], "train", IGNORED_PIXEL, args)
        limit = 1 + max(seen, default=0)
    for split in splits:
        splits[split], _ = check_masks(splits[split], split, limit, args)
    return tuple(given) if given is not None else tuple(map(str, range(max(limit, 2)))), splits


def check_masks(rows: datasets.Dataset, split: str, num_classes: int, args: Any) -> tuple[datasets.Dataset, set[int]]:
    """Looks at every mask of a split.

    Returns:
        The rows, without bad ones where `--on_bad_rows skip` says so, and the classes that occur.

    Raises:
        UserError: a mask is missing, of another size than its image, not one number a pixel, or holds a number from
            `num_classes` on that is not 255.
    """
    raw = rows.cast_column("image", datasets.Image(decode=False)).cast_column("mask", datasets.Image(decode=False))
    batches = (raw[start : start + BATCH] for start in range(0, len(raw), BATCH))
    with strict_pillow(), ThreadPoolExecutor(count_cores()) as pool:
        looks = pool.map(lambda batch: list(_look(batch, num_classes, args.reduce_labels)), batches)
        found = [item for items in looks for item in items]
    faults = [item for item in found if isinstance(item, _Fault)]
    seen = set().union(*(item for item in found if not isinstance(item, _Fault)))
    if faults and args.on_bad_rows == "error":
        raise UserError(f"{split}, row_id {faults[0].row_id}: {faults[0].text}")
    if not seen:
        raise UserError(f"No pixel of any mask of {split} has a class: all are {IGNORED_PIXEL}.")
    if faults:
        first = faults[0]
        logger.warning(
            "Dropped: %d rows of %s, the first of them row_id %d: %s", len(faults), split, first.row_id, first.text
        )
        rows = rows.select([index for index, item in enumerate(found) if not isinstance(item, _Fault)])
    return rows, seen


def _look(batch: dict[str, list], num_classes: int, is_reduced: bool) -> Iterator[set[int] | _Fault]:
    for row_id, image, mask in zip(batch["row_id"], batch["image"], batch["mask"], strict=True):
        text = _find_fault(image, mask)
        if text is None:
            numbers = set(np.unique(to_classes(read_image(mask), is_reduced=is_reduced)).tolist()) - {IGNORED_PIXEL}
            if max(numbers, default=0) < num_classes:
                yield numbers
                continue
            text = (
                f"{_name(mask)} has the class {max(numbers)}, but the classes are 0 to {num_classes - 1}. Correct it, "
                f"name all classes with --class_names, or write {IGNORED_PIXEL} where nothing is known."
            )
        yield _Fault(row_id, text)


def _find_fault(image: dict | None, mask: dict | None) -> str | None:
    if mask is None:
        return "it has no mask. Add it, or remove the row."
    try:
        opened = read_image(mask)
    except ImageFault as fault:
        return f"{_name(mask)} cannot be read: {fault}. Repair it, or remove the row."
    mode, found = opened.mode, opened.size
    if mode not in MASK_MODES:
        return (
            f"{_name(mask)} is an image of mode {mode}; expected one number a pixel (mode L or P). Turn colours into "
            "class numbers."
        )
    size = upright_size(image)
    if size is not None and size != found:
        return (
            f"{_name(mask)} is {found[0]} x {found[1]} pixels, its image {size[0]} x {size[1]}. Give both the same "
            "size."
        )
    return None


def upright_size(image: dict | None) -> tuple[int, int] | None:
    """Width and height of the upright image; None for one that cannot be read, which the audit says."""
    try:
        return find_turned_size(image)
    except ImageFault:
        return None


def _name(mask: dict) -> str:
    return f"the mask {mask['path']}" if mask["path"] else "its mask"


def to_classes(mask: Image.Image, *, is_reduced: bool) -> np.ndarray:
    """The number of each pixel, int32 [H, W].

    Args:
        mask: of one of `MASK_MODES`.
        is_reduced: 0 becomes 255, and every other number one less, as in ADE20K, where 0 stands for what is no class.
    """
    numbers = np.asarray(mask).astype(np.int32)
    if not is_reduced:
        return numbers
    return np.where((numbers == 0) | (numbers == IGNORED_PIXEL), IGNORED_PIXEL, numbers - 1)
