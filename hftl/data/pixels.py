"""How do the numbers of an image become 8 bits a color? Every mode of Pillow, and one range for a whole data set.

Images of 8 bits stay as they are. Those of 16 or 32 bits a pixel ("deep" here) do not say which number is white: 12
bits are often stored in 16, and integers from 0 to 255 in 32. So the range is measured once, on train, kept with the
image processor, and the same for every image that the network ever reads. This module must not know networks.
"""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import numpy as np
from PIL import Image

from hftl.data.images import decode_image, explained_decoding, open_image, read_image, read_row, strict_pillow
from hftl.errors import UserError
from hftl.records import count_cores

Range = tuple[float, float]

BYTE: Range = (0.0, 255.0)
UNIT: Range = (0.0, 1.0)
DARKEST_BYTES = 32  # a data set of which no pixel is brighter does not use 8 bits
DARKEST_UNIT = 1 / 8
RARE = 1e-4  # share of an image's pixels at either end that does not count: hot and dead ones of a sensor
MISSING = 1e30  # beyond it a number stands for "not measured", as -3.4e38 does in GeoTIFF
MOST_APART = 4  # ranges of two modes of one data set, the larger one over the smaller one
CUT_MODE = "16 bits a color"  # no mode of Pillow, which has none for it
BATCH = 64  # images that a thread looks at in one go


def read_rgb(image: Any, pixel_range: Range | None) -> Image.Image:
    """An image as a network reads it, upright and in 8 bits a color.

    Args:
        image: as `images.read_image` takes it.
        pixel_range: of the data that the network was trained on; None: they had 8 bits.

    Raises:
        UserError: it cannot be read, or its numbers are of another kind than those of train.
    """
    opened = read_image(image)
    with explained_decoding(None):  # Pillow knows modes that it cannot convert
        return to_known_rgb(opened, pixel_range)


def read_rgb_rows(images: Sequence[Any], row_ids: Iterable[int], pixel_range: Range | None) -> list[Image.Image]:
    """`read_rgb` of the images of some rows; an error names the row."""
    with strict_pillow():
        return [
            read_row(image, row_id, lambda found: read_rgb(found, pixel_range))
            for image, row_id in zip(images, row_ids, strict=True)
        ]


def to_rgb(image: Image.Image, pixel_range: Range | None = None) -> Image.Image:
    """Any mode of Pillow -> RGB; transparency is laid on white, and deep images are scaled.

    Args:
        image: upright.
        pixel_range: the numbers of deep images that become black and white; None: those of this image alone.
    """
    if is_deep(image):
        values = read_values(image)
        return Image.fromarray(scale_values(values, pixel_range or choose_range(*measure_span(values)))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def to_known_rgb(image: Image.Image, pixel_range: Range | None) -> Image.Image:
    """What `to_rgb` makes of an image for a network that was trained on this range; None: on 8 bits alone.

    Raises:
        UserError: the numbers of a deep image are of another kind than those of train, or leave open what they are.
    """
    if is_deep(image):
        span = measure_span(read_values(image))
        if pixel_range is None:
            pixel_range = guess_range(image.mode, span)
        else:
            _check_span(image.mode, span, pixel_range)
    return to_rgb(image, pixel_range)


def is_deep(image: Image.Image) -> bool:
    """Whether a pixel is one number of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def read_values(image: Image.Image) -> np.ndarray:
    """The numbers of a deep image, float64 [H, W]."""
    return np.asarray(image).astype(np.float64)


def scale_values(values: np.ndarray, pixel_range: Range) -> np.ndarray:
    """Numbers -> uint8; what is not measured becomes black."""
    low, high = pixel_range
    values = np.where(np.abs(values) < MISSING, values, low)  # a comparison with NaN is false
    return np.rint((values - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)


def measure_span(values: np.ndarray) -> Range:
    """The smallest and the largest number of a deep image, without rare ones; zeros where nothing is measured."""
    known = values[np.abs(values) < MISSING]
    if not known.size:
        return 0.0, 0.0
    low, high = np.quantile(known, (RARE, 1 - RARE), method="nearest")
    return float(low), float(high)


def measure_range(rows: datasets.Dataset) -> Range | None:
    """The range of the deep images among the rows of a split; None: there are none.

    Raises:
        UserError: an image cannot be read, or deep images of two modes do not fit one range.
    """
    images = rows.select_columns(["row_id", "image"]).cast_column("image", datasets.Image(decode=False))
    batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    spans: dict[str, list[Range]] = {}
    with strict_pillow(), ThreadPoolExecutor(count_cores()) as pool:
        for found in pool.map(_measure_images, batches):
            for mode, span in found:
                spans.setdefault(mode, []).append(span)
    _check_colors(spans.pop(CUT_MODE, []))
    ranges = {mode: choose_range(*_join(found)) for mode, found in spans.items()}
    _check_modes(ranges)
    return choose_range(*_join(span for found in spans.values() for span in found)) if ranges else None


def _measure_images(rows: dict[str, list]) -> list[tuple[str, Range]]:
    pairs = zip(rows["image"], rows["row_id"], strict=True)
    found = [read_row(image, row_id, _measure_image) for image, row_id in pairs]
    return [item for item in found if item is not None]


def _measure_image(image: dict[str, Any]) -> tuple[str, Range] | None:
    """Mode and span if it is deep; of all others, but for those of 16 bits a color, the header alone is read."""
    opened = open_image(image)
    if is_deep(opened):  # I;16B and I;16L are I;16 as well
        return opened.mode[:4], measure_span(read_values(decode_image(opened, image["path"])))
    if _is_cut(opened):
        return CUT_MODE, measure_span(np.asarray(decode_image(opened, image["path"]).convert("RGB")))
    return None


def _is_cut(image: Image.Image) -> bool:
    """Whether the file has 16 bits a color; Pillow reads the upper 8 of them."""
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in image.tile)


def _check_colors(spans: list[Range]) -> None:
    if spans and (brightest := _join(spans)[1]) < DARKEST_BYTES:
        raise UserError(
            "Images of train have 16 bits a color, of which 8 are read, and no pixel is brighter than "
            f"{brightest:.0f} of 255: fewer bits are stored in 16. Scale them to 8 bits a color."
        )


def _join(spans: Iterable[Range]) -> Range:
    lows, highs = zip(*spans, strict=True)
    return min(lows), max(highs)


def _check_modes(ranges: dict[str, Range]) -> None:
    by_width = sorted(ranges, key=lambda mode: ranges[mode][1] - ranges[mode][0])
    widths = [ranges[mode][1] - ranges[mode][0] for mode in by_width]
    if widths and widths[-1] > MOST_APART * widths[0]:
        texts = [f"{_show(ranges[mode])} in mode {mode}" for mode in (by_width[0], by_width[-1])]
        raise UserError(
            f"The pixels of train go {' and '.join(texts)} of Pillow, so that no scale fits both. Save all images in "
            "one depth, such as 8 bits."
        )


def choose_range(low: float, high: float) -> Range:
    """The range of data whose numbers go from `low` to `high`: rounded, so that it seldom depends on a few rows.

    0 to 1 and 0 to 255 are taken for what they usually mean. Else it starts at 0 and ends at a power of two (for
    integers one less), or, where the numbers lie far from 0 or are negative, covers them in eighths of their width.
    """
    if low >= 0 and DARKEST_UNIT < high <= 1:
        return UNIT
    if low >= 0 and DARKEST_BYTES <= high <= 255:
        return BYTE
    if low == high:
        return (low, low + 1) if low else UNIT
    if 0 <= low <= high / 2:
        top = 2.0 ** math.ceil(math.log2(high))
        return 0.0, top - 1 if top > 255 and high <= top - 1 else top
    unit = 2.0 ** (math.ceil(math.log2(high - low)) - 3)
    return math.floor(low / unit) * unit, math.ceil(high / unit) * unit


def guess_range(mode: str, span: Range) -> Range:
    """The range of one deep image of which nothing is known.

    Raises:
        UserError: its numbers are neither those of 0 to 1, nor of 8 bits, nor use the whole of 16 bits.
    """
    low, high = span
    if low >= 0 and mode == "F" and high <= 1:
        return UNIT
    if low >= 0 and high <= 255:
        return BYTE
    if low >= 0 and mode != "F" and 2**15 <= high < 2**16:
        return 0.0, 65535.0
    raise UserError(
        f"an image of mode {mode} whose pixels go {_show(span)}, and the network was trained on images of 8 bits; "
        "which number is white? Save it in 8 bits"
    )


def _check_span(mode: str, span: Range, pixel_range: Range) -> None:
    """Refuse numbers of another kind than those of train, which would all be black or all be white."""
    low, high = pixel_range
    width = high - low
    is_above = span[1] > high and span[0] + span[1] > 2 * (high + width)  # the middle is beyond twice the range
    is_below = span[0] < low and span[0] + span[1] < 2 * (low - width)
    is_unit = mode == "F" and 0 <= span[0] < 0.5 < span[1] <= 1 and high >= 255
    if is_above or is_below or is_unit:
        raise UserError(
            f"an image of mode {mode} whose pixels go {_show(span)}, and those of train go {_show(pixel_range)}; "
            "save it as those of train"
        )


def _show(span: Range) -> str:
    return f"from {span[0]:.6g} to {span[1]:.6g}"


# The range is kept with the image processor, whose files go wherever the network goes.


def keep_range(processor: Any, pixel_range: Range | None) -> None:
    """Let a processor carry the range of the data that its network was trained on."""
    vars(processor).pop("pixel_range", None)
    if pixel_range is not None:
        processor.pixel_range = list(pixel_range)


def kept_range(processor: Any) -> Range | None:
    """The range that a processor carries; None: its network knows images of 8 bits alone.

    Raises:
        UserError: its file holds something else there.
    """
    found = vars(processor).get("pixel_range")
    if found is None:
        return None
    try:
        low, high = (float(value) for value in found)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(
            f"pixel_range in preprocessor_config.json is {found!r}; expected two numbers, those of black and white."
        )
    return low, high
