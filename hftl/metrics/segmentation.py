"""How well does a map of classes fit the true one? All from counts of pixels of each class in each image.

Counts are summed over the images first, so that a large image counts as much as it has pixels, and a class is scored
once. Must not know: logits, models, sizes of images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hftl.errors import UserError
from hftl.metrics.spread import linearize

# Columns [N, C]: pixels of each class in each image that are foreseen and there, foreseen, there. Pixels of which
# nothing is known are not counted.
PIXEL_COUNTS = ("intersection", "predicted", "actual")
Counts = Mapping[str, np.ndarray]


def compute_pixel_report(counts: Counts, label_names: Sequence[str]) -> dict[str, Any]:
    """Every score, and the table of the classes.

    Args:
        counts: the columns of `PIXEL_COUNTS`.
        label_names: the C class names.

    Returns:
        `mean_iou`: mean over the classes of intersection over union (Jaccard), without classes that occur nowhere;
        `pixel_accuracy`: share of the pixels whose class is right; `mean_class_accuracy`: mean over the classes of the
        share of their pixels that is found; `per_class_iou`: of each class intersection over union, accuracy and true
        pixels, nan for what is undefined.

    Raises:
        UserError: no pixel has a class.
    """
    intersection, predicted, actual = (np.sum(counts[name], axis=0, dtype=np.int64) for name in PIXEL_COUNTS)
    if not actual.sum():
        raise UserError("No pixels to compute metrics on: no mask has a class. Check the split.")
    iou, found = _divide(intersection, predicted + actual - intersection), _divide(intersection, actual)
    table = {
        name: {"iou": float(iou[k]), "accuracy": float(found[k]), "num_pixels": int(actual[k])}
        for k, name in enumerate(label_names)
    }
    return {
        "mean_iou": float(np.nanmean(iou)),
        "pixel_accuracy": float(intersection.sum() / actual.sum()),
        "mean_class_accuracy": float(np.nanmean(found)),
        "per_class_iou": table,
    }


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def spread_mean_iou(counts: Counts) -> np.ndarray:
    """[N] values whose mean is the mean IoU: a mean over classes of ratios, each of them linearized."""
    intersection = counts["intersection"].astype(float)
    union = counts["predicted"] + counts["actual"] - intersection
    return np.mean([linearize(intersection[:, k], union[:, k]) for k in np.flatnonzero(union.sum(0))], axis=0)


def spread_pixel_accuracy(counts: Counts) -> np.ndarray:
    """[N] values whose mean is the pixel accuracy."""
    return linearize(counts["intersection"].sum(1), counts["actual"].sum(1))


def spread_mean_class_accuracy(counts: Counts) -> np.ndarray:
    """[N] values whose mean is the mean class accuracy."""
    intersection, actual = counts["intersection"].astype(float), counts["actual"].astype(float)
    return np.mean([linearize(intersection[:, k], actual[:, k]) for k in np.flatnonzero(actual.sum(0))], axis=0)
