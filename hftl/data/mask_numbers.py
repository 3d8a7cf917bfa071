"""Which class does a pixel of a mask have? Numbers or colors of the file become 0, 1, 2, ..., and 255 for unknown.

Without further words a number is the class. `--class_names NAME=NUMBER ...` says which number, and NAME=#rrggbb which
color, each class has. This module must not know files, rows or networks.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from hftl.errors import UserError

logger = logging.getLogger(__name__)

IGNORED_PIXEL = 255  # nothing is known of this pixel, unless a class has this number
MASK_MODES = ("L", "P", "1", "I", "I;16", "I;16B")  # of Pillow: one number a pixel
COLOR_MODES = ("RGB", "RGBA", "LA")
MOST_THIN = 16  # classes that are lines or dots and next to nothing of an image
CODED_NAME = re.compile(r"(.+)=(\d{1,5}|#[0-9a-fA-F]{6})")


@dataclass(frozen=True)
class Coding:
    """How masks name classes.

    Attributes:
        names: of the classes; None: they are the numbers that occur.
        values: the number of each class in the files; None: 0, 1, 2, ...
        is_color: the values are colors, as 0xrrggbb.
        is_reduced: 0 is no class, and class k has the number k + 1, as in ADE20K.
    """

    names: tuple[str, ...] | None = None
    values: tuple[int, ...] | None = None
    is_color: bool = False
    is_reduced: bool = False

    def number_of(self, index: int) -> int:
        """What stands in the files for a class."""
        return self.values[index] if self.values is not None else index + self.is_reduced


def read_coding(class_names: list[str] | None, *, is_reduced: bool) -> Coding:
    """What `--class_names` and `--reduce_labels` say.

    Raises:
        UserError: fewer than two names, or one of them twice, or numbers for some of them only.
    """
    if class_names is None:
        return Coding(is_reduced=is_reduced)
    parts = [CODED_NAME.fullmatch(name) for name in class_names]
    names = tuple(part[1] if all(parts) else name for part, name in zip(parts, class_names, strict=True))
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"--class_names has {', '.join(class_names)}; give two or more names, each once.")
    if len(names) > IGNORED_PIXEL:
        raise UserError(f"--class_names has {len(names)} names; a mask can hold {IGNORED_PIXEL} classes at most.")
    if not any(parts):
        return Coding(names, is_reduced=is_reduced)
    texts = [part[2] for part in parts if part]
    is_color = texts[0].startswith("#")
    texts = [text.removeprefix("#") for text in texts if text.startswith("#") == is_color]
    values = tuple(int(text, 16 if is_color else 10) for text in texts)
    if len(set(values)) < len(names):
        raise UserError(
            f"--class_names has {', '.join(class_names)}; give every class a number of its own (NAME=0 NAME=255), or "
            "every class a color (NAME=#000000 NAME=#ff0000), or none of them."
        )
    if is_reduced:
        raise UserError("--class_names says which number each class has, so --reduce_labels has to go.")
    return Coding(names, values, is_color)


def read_numbers(mask: Image.Image, coding: Coding) -> np.ndarray | None:
    """The number of each pixel, or its color as 0xrrggbb, int32 [H, W]; None: it has no number.

    A mask in gray that was saved in color has a number, and transparency counts only where there is some.
    """
    if mask.mode in MASK_MODES and not coding.is_color:
        return np.asarray(mask).astype(np.int32)
    if mask.mode not in (*MASK_MODES, *COLOR_MODES) or (mask.mode in ("RGBA", "LA") and not _is_opaque(mask)):
        return None
    red, green, blue = np.asarray(mask.convert("RGB")).astype(np.int32).transpose(2, 0, 1)
    if coding.is_color:
        return red << 16 | green << 8 | blue
    return red if (red == green).all() and (red == blue).all() else None


def _is_opaque(mask: Image.Image) -> bool:
    return mask.getchannel("A").getextrema()[0] == 255


def to_classes(mask: Image.Image, coding: Coding) -> np.ndarray:
    """The class of each pixel, int32 [H, W]; of a JPEG, which blurs numbers, that with the nearest one.

    Args:
        mask: one that `read_numbers` can read and whose numbers are those of classes.
        coding: of the data set.
    """
    numbers = read_numbers(mask, coding)
    if coding.is_reduced:
        return np.where((numbers == 0) | (numbers == IGNORED_PIXEL), IGNORED_PIXEL, numbers - 1)
    if coding.values is None:
        return numbers
    classes = dict(zip(coding.values, range(len(coding.values)), strict=True))
    if not coding.is_color:
        classes.setdefault(IGNORED_PIXEL, IGNORED_PIXEL)
    known = np.array(sorted(classes), np.int32)
    borders = (known[1:] + known[:-1]) // 2 + 1  # the first number that is nearer to the next one
    return np.array([classes[value] for value in known.tolist()], np.int32)[np.searchsorted(borders, numbers, "right")]


def suggest(numbers: list[int], names: tuple[str, ...] | None = None) -> str:
    """`--class_names` with these numbers, and with these names if there are as many."""
    if names is None or len(names) != len(numbers):
        names = ("background", "object") if len(numbers) == 2 else ("NAME",) * len(numbers)
    words = [f"{name}={number}" for name, number in zip(names, numbers, strict=True)]
    return "--class_names " + " ".join(words if len(words) <= 6 else [*words[:5], "..."])


@dataclass
class Tally:
    """How often numbers occur in masks: number -> pixels of it, pixels of the masks that have it, and those of its
    pixels whose neighbor to the right, and below, has it too. And number -> the colors that palettes give it.
    """

    counts: dict[int, np.ndarray]
    colors: dict[int, set[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Tally":
        """Of one mask, [H, W]."""
        found, place = None, numbers
        if numbers.min() < 0 or numbers.max() >= 2**16:  # colors; all else is counted without sorting
            found, place = np.unique(numbers, return_inverse=True)
            place = place.reshape(numbers.shape)
        right, below = place[:, 1:][place[:, 1:] == place[:, :-1]], place[1:][place[1:] == place[:-1]]
        counts = np.bincount(place.ravel())
        around = np.full(len(counts), numbers.size)
        columns = [counts, around, *(np.bincount(part, minlength=len(counts)) for part in (right, below))]
        present = np.flatnonzero(counts)
        names = present if found is None else found
        return cls(dict(zip(names.tolist(), np.stack(columns, axis=1)[present], strict=True)))

    def add(self, other: "Tally") -> None:
        """Count other masks too."""
        for number, counts in other.counts.items():
            self.counts[number] = self.counts.get(number, 0) + counts
        for number, colors in other.colors.items():
            self.colors[number] = self.colors.get(number, set()) | colors

    def find_scattered(self) -> list[int]:
        """Numbers that hardly occur: under 1 % of the masks that have them, and in lines or dots, no areas.

        That is what is left at edges by JPEG, by smooth resizing and by drawing without sharp edges.
        """
        return sorted(
            number
            for number, (pixels, around, right, below) in self.counts.items()
            if pixels < 0.01 * around and min(right, below) < 0.5 * pixels
        )


def read_palette(mask: Image.Image, numbers: Iterable[int]) -> dict[int, set[int]]:
    """The color of each number that stands for a class, as 0xrrggbb; none for a mask without a palette."""
    entries = (mask.getpalette("RGB") or []) if mask.mode == "P" else []
    return {
        number: {entries[3 * number] << 16 | entries[3 * number + 1] << 8 | entries[3 * number + 2]}
        for number in numbers
        if 3 * number + 2 < len(entries) and number != IGNORED_PIXEL
    }


def check_palettes(tally: Tally, coding: Coding) -> None:
    """Is a number the same class in every mask? Programs that save few colors number them anew in each file.

    Raises:
        UserError: a number has several colors, and `--class_names` does not say that numbers count, or colors.
    """
    unclear = next((number for number, colors in sorted(tally.colors.items()) if len(colors) > 1), None)
    if unclear is None or coding.values is not None:
        return
    colors = sorted(set().union(*tally.colors.values()))
    first, second = sorted(tally.colors[unclear])[:2]
    words = " ".join(f"NAME=#{color:06x}" for color in colors[:4]) + (" ..." if len(colors) > 4 else "")
    raise UserError(
        f"The palettes of the masks differ: the number {unclear} is #{first:06x} in one and #{second:06x} in another. "
        f"Say which color each class has: --class_names {words}; or, if numbers count all the same, "
        f"which number: {suggest(sorted(tally.colors), coding.names)}."
    )


def check_numbers(tally: Tally, coding: Coding) -> None:
    """Are these the numbers of classes? Of the masks of train.

    Raises:
        UserError: a class has no pixel, 255 may be a class, numbers are far apart or hardly occur.
    """
    numbers = sorted(set(tally.counts) - {IGNORED_PIXEL})
    if coding.names is not None:
        _check_named(tally, coding)
        return
    if coding.is_reduced:
        numbers = [number for number in numbers if number]
    every, has_unknown = sorted(tally.counts), IGNORED_PIXEL in tally.counts
    missing = sorted(set(range(int(coding.is_reduced), numbers[-1])) - set(numbers))
    scattered = sorted(set(tally.find_scattered()) & set(numbers))
    if scattered and (missing or 2 * len(scattered) > max(len(numbers), MOST_THIN)):
        raise UserError(
            f"The masks of train hold {len(every)} numbers, and {len(scattered)} of them hardly occur "
            f"({_show(scattered)}), as after smooth resizing or in a JPEG. Save masks that hold the numbers of "
            f"classes alone, or, if all are classes, say so: {suggest(every)}."
        )
    if len(missing) > 3 * len(numbers) or (len(numbers) == 2 and len(missing) > 1) or len(every) == 2 > len(numbers):
        unknown = f" {IGNORED_PIXEL} stands for unknown pixels unless a class has it." if has_unknown else ""
        raise UserError(
            f"The masks of train hold the numbers {_show(every)}; classes are numbered 0, 1, 2, ...{unknown} Say "
            f"which number each class has: {suggest(every)}."
        )
    if len(numbers) == 1:
        raise UserError(
            f"All pixels of the masks of train that count have the number {numbers[0]}, and with one class there is "
            "nothing to learn. Look whether the masks were saved as they should be."
        )
    if missing:
        logger.warning("No pixel of train has the number %s. Name the classes with --class_names.", _show(missing))


def _check_named(tally: Tally, coding: Coding) -> None:
    """Raises: UserError: a named class has no pixel."""
    missing = [k for k in range(len(coding.names)) if coding.number_of(k) not in tally.counts]
    if not missing:
        return
    name, number = coding.names[missing[0]], coding.number_of(missing[0])
    shown = f"#{number:06x}" if coding.is_color else str(number)
    every = sorted(tally.counts)
    texts = [f"#{value:06x}" if coding.is_color else str(value) for value in every]
    advice = f" If these are all classes: {suggest(every, coding.names)}." if coding.values is None else ""
    raise UserError(
        f"No pixel of train has the class {name} ({shown}): its masks hold {', '.join(texts[:8])}"
        f"{', ...' if len(texts) > 8 else ''}.{advice} Leave classes out that have no pixels, and give each other one "
        "its number: --class_names NAME=NUMBER ..."
    )


def _show(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
