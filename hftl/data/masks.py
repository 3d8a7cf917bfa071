"""Which column is the image and which the mask of its classes, and can every pixel of a mask be learnt?

After `read_masks` all data look alike: `row_id`, `image`, `mask`, both `datasets.Image`. A mask holds the number of a
class in each pixel, or what `mask_numbers` makes one, and 255 where nothing is to be learnt. Must not know networks or
sizes that they read.
"""

import logging
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from PIL import Image

from hftl.data.columns import choose_named
from hftl.data.images import ImageFault, find_turned_size, load_bytes, open_image, read_image, strict_pillow
from hftl.data.label_columns import name_label_column
from hftl.data.mask_numbers import (
    COLOR_MODES,
    IGNORED_PIXEL,
    Coding,
    Tally,
    check_numbers,
    check_palettes,
    read_coding,
    read_numbers,
    read_palette,
    suggest,
    to_classes,
)
from hftl.data.paths import IMAGE_PATH_NAMES, MASK_NAMES, to_images
from hftl.errors import UserError
from hftl.run_record import count_cores

logger = logging.getLogger(__name__)

# Of Pillow: the numbers that come out are not those that went in.
BLURRED_FORMATS = ("JPEG", "MPO", "JPEG2000", "AVIF")
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
    return choose_named("mask", found, name_label_column(args), features, "--label_column")


def choose_image(features: datasets.Features, args: Any) -> str:
    """The column of the images; it is there without a mask as well."""
    taken = {name_label_column(args), *(name for name in features if name.lower() in MASK_NAMES)}
    found = [n for n, feature in features.items() if isinstance(feature, datasets.Image) and n not in taken]
    found = found or [name for name in features if name.lower() in IMAGE_PATH_NAMES and name not in taken]
    return choose_named("image", found, args.image_column, features, "--image_column")


def name_classes(splits: datasets.DatasetDict, args: Any) -> tuple[tuple[str, ...], datasets.DatasetDict]:
    """The names of the classes: those given, else the numbers up to the largest one of train; and the good rows.

    Raises:
        UserError: a mask cannot be used, or holds a number that no class has; the row is named. With
            `--on_bad_rows skip` such rows are dropped instead. Or the numbers of train are not those of classes.
    """
    coding = coding_of(args)
    splits, names = datasets.DatasetDict(splits), coding.names
    splits["train"], tally = check_masks(splits["train"], "train", coding, args)
    check_numbers(tally, coding)
    if names is None:
        largest = max(set(tally.counts) - {IGNORED_PIXEL})
        names = tuple(map(str, range(largest + 1 - coding.is_reduced)))
    for split in set(splits) - {"train"}:
        splits[split], more = check_masks(splits[split], split, coding, args, len(names))
        tally.add(more)
    check_palettes(tally, coding)
    return names, splits


def coding_of(args: Any) -> Coding:
    """How the masks of a run name classes."""
    return read_coding(args.class_names, is_reduced=args.reduce_labels)


def check_masks(
    rows: datasets.Dataset, split: str, coding: Coding, args: Any, num_classes: int | None = None
) -> tuple[datasets.Dataset, Tally]:
    """Looks at every mask of a split.

    Args:
        rows: in canonical columns.
        split: its name.
        coding: how masks name classes.
        args: the `DataArguments`.
        num_classes: None: as many as the coding names, or as there are numbers.

    Returns:
        The rows, without bad ones where `--on_bad_rows skip` says so, and the numbers that occur.

    Raises:
        UserError: a mask is missing, of another size than its image, without a number for each pixel, or holds one
            that is neither that of a class nor 255.
    """
    raw = rows.cast_column("image", datasets.Image(decode=False)).cast_column("mask", datasets.Image(decode=False))
    batches = (raw[start : start + BATCH] for start in range(0, len(raw), BATCH))
    allowed = _list_numbers(coding, num_classes)
    with strict_pillow(), ThreadPoolExecutor(count_cores()) as pool:
        looks = pool.map(lambda batch: list(_look(batch, coding, allowed)), batches)
        found = [item for items in looks for item in items]
    faults, tally = [item for item in found if isinstance(item, _Fault)], Tally({})
    for item in found:
        if isinstance(item, Tally):
            tally.add(item)
    check_palettes(tally, coding)
    if faults and args.on_bad_rows == "error":
        raise UserError(f"{split}, row_id {faults[0].row_id}: {faults[0].text}")
    if not set(tally.counts) & set(allowed):
        raise UserError(f"No pixel of any mask of {split} has a class: all are {IGNORED_PIXEL}.")
    if faults:
        first = faults[0]
        logger.warning(
            "Dropped: %d rows of %s, the first of them row_id %d: %s", len(faults), split, first.row_id, first.text
        )
        rows = rows.select([index for index, item in enumerate(found) if not isinstance(item, _Fault)])
    return rows, tally


def _list_numbers(coding: Coding, num_classes: int | None) -> Collection[int]:
    """The numbers of classes in the files."""
    if coding.values is not None:
        return set(coding.values)
    if num_classes is None:
        num_classes = len(coding.names) if coding.names is not None else IGNORED_PIXEL - coding.is_reduced
    return range(int(coding.is_reduced), num_classes + coding.is_reduced)


def _look(batch: dict[str, list], coding: Coding, allowed: Collection[int]) -> Iterator[Tally | _Fault]:
    for row_id, image, mask in zip(batch["row_id"], batch["image"], batch["mask"], strict=True):
        found = _read(image, mask, coding)
        if not isinstance(found, str):
            strange = [number for number in found.counts if not _is_known(number, coding, allowed)]
            if not strange:
                yield found
                continue
            found = f"{_name(mask)} has {_describe_strange(max(strange), coding, allowed)}"
        yield _Fault(row_id, found)


def _is_known(number: int, coding: Coding, allowed: Collection[int]) -> bool:
    is_unknown = (number == IGNORED_PIXEL and not coding.is_color) or (number == 0 and coding.is_reduced)
    return number in allowed or is_unknown


def _describe_strange(number: int, coding: Coding, allowed: Collection[int]) -> str:
    if coding.is_color:
        return f"the color #{number:06x}, which no class of --class_names has. Correct it, or name its class."
    classes = ", ".join(map(str, sorted(allowed))) if coding.values else f"{allowed[0]} to {allowed[-1]}"
    more = "" if coding.values else ", also by number (--class_names NAME=NUMBER ...)"
    return (
        f"the class {number}, but the classes are {classes}. Correct it, name all classes with --class_names{more}, "
        f"or write {IGNORED_PIXEL} where nothing is known."
    )


def _read(image: dict | None, mask: dict | None, coding: Coding) -> Tally | str:
    """The numbers of a mask, or what is wrong with it."""
    if mask is None:
        return "it has no mask. Add it, or remove the row."
    try:
        opened = open_image(mask)
        is_blurred, upright = _is_blurred(mask, opened), read_image(opened)
    except ImageFault as fault:
        return f"{_name(mask)} cannot be read: {fault}. Repair it, or remove the row."
    numbers = read_numbers(upright, coding)
    if is_blurred and (coding.values is None or coding.is_color or numbers is None):
        return (
            f"{_name(mask)} is a {opened.format}, which changes numbers at edges. Save masks as PNG, or say which "
            f"number each class has, and each pixel counts for the nearest: {suggest([0, 255], coding.names)}."
        )
    if numbers is None:
        return f"{_name(mask)} {_describe_colors(upright)}"
    size = upright_size(image)
    if size is not None and size != upright.size:
        found = upright.size
        return (
            f"{_name(mask)} is {found[0]} x {found[1]} pixels, its image {size[0]} x {size[1]}. Give both the same "
            "size."
        )
    if is_blurred:
        numbers = np.array((*coding.values, IGNORED_PIXEL))[to_classes(upright, coding).clip(max=len(coding.values))]
    tally = Tally.of(numbers)
    tally.colors = {} if coding.is_color else read_palette(upright, tally.counts)
    return tally


def _is_blurred(mask: dict, opened: Image.Image) -> bool:
    """Whether its format changes numbers; WebP has a part of another name where it does not."""
    return opened.format in BLURRED_FORMATS or opened.format == "WEBP" and b"VP8L" not in load_bytes(mask)


def _describe_colors(mask: Image.Image) -> str:
    """Why a mask has no numbers, and with which flag it would."""
    if mask.mode not in COLOR_MODES or (mask.mode != "RGB" and mask.getchannel("A").getextrema()[0] < 255):
        return (
            f"is an image of mode {mask.mode}; expected one number a pixel (mode L or P), or a color, and no "
            "transparency. Save it so."
        )
    colors = np.unique(np.asarray(mask.convert("RGB")).reshape(-1, 3), axis=0).tolist()
    words = " ".join("NAME=#{:02x}{:02x}{:02x}".format(*color) for color in colors[:4])
    return (
        f"has {len(colors)} colors and no class numbers. Say which color each class has: --class_names {words}"
        f"{' ...' if len(colors) > 4 else ''}."
    )


def upright_size(image: dict | None) -> tuple[int, int] | None:
    """Width and height of the upright image; None for one that cannot be read, which the audit says."""
    try:
        return find_turned_size(image)
    except ImageFault:
        return None


def _name(mask: dict) -> str:
    return f"the mask {mask['path']}" if mask["path"] else "its mask"
