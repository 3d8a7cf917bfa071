"""Which picture is an array of numbers? Gray [H, W] of any depth, or colors [H, W, 3] or [H, W, 4] of 8 bits.

`datasets` and Pillow cut larger numbers to their lower 8 bits; here nothing is cut. Must not know columns or files.
"""

from typing import Any

import numpy as np
from PIL import Image

from hftl.errors import UserError

EXPECTED = "expected [height, width] of any numbers, or [height, width, 3] or [height, width, 4] of uint8"


def read_array(values: Any) -> Image.Image:
    """The picture that an array, or nested lists, are.

    Raises:
        UserError: it has another shape, or colors that are not 8 bits.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"lists of unequal lengths; {EXPECTED}") from error
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_color = array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype.kind not in "buif" or not array.size or not (is_color or array.ndim == 2):
        is_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        advice = ". Put the channels last: array.transpose(1, 2, 0)" if is_first else ""
        raise UserError(f"an array of {array.dtype} {list(array.shape)}; {EXPECTED}{advice}")
    return Image.fromarray(_to_colors(array) if is_color else _to_gray(array))


def _to_colors(array: np.ndarray) -> np.ndarray:
    low, high = array.min(), array.max()
    is_byte = 0 <= low <= high <= 255 and (array.dtype.kind != "f" or high > 1 and (array == array.round()).all())
    if not is_byte:
        raise UserError(
            f"an array of {array.dtype} {list(array.shape)} from {low:.6g} to {high:.6g}; colors are uint8 from 0 to "
            "255. Scale it, as by (255 * array).astype('uint8') if it goes from 0 to 1"
        )
    return array.astype(np.uint8) * (255 if array.dtype.kind == "b" else 1)


def _to_gray(array: np.ndarray) -> np.ndarray:
    """In a type that Pillow has: those of 8 and 16 bits without a sign stay, as do truth values."""
    if array.dtype in (np.bool_, np.uint8, np.uint16):
        return array
    if array.dtype.kind == "f" or array.max() >= 2**31 or array.min() < -(2**31):
        return array.astype(np.float32)
    return array.astype(np.int32)
