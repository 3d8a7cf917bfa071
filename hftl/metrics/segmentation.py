"""How well does a map of classes fit the true one? All from counts of pixels of each class in each image.

Counts are summed over the images first, so that a large image counts as much as it has pixels, and a class is scored
once. Must not know: logits, models, sizes of images.
"""

import numpy as np

from hftl.metrics.base import PIXEL_COUNTS, SEGMENTATION, InMemoryMetric


def compute_iou(intersection: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, [C], from counts [N, C]; nan where a class neither is nor is foreseen."""
    both, either = np.sum(intersection, 0), np.sum(predicted, 0) + np.sum(actual, 0) - np.sum(intersection, 0)
    return _divide(both, either)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


class MeanIoU(InMemoryMetric):
    """Mean over the classes of intersection over union (Jaccard); classes that occur nowhere do not count."""

    inputs = {SEGMENTATION: PIXEL_COUNTS}

    def _compute(self, intersection, predicted, actual):
        return {"mean_iou": float(np.nanmean(compute_iou(*map(np.asarray, (intersection, predicted, actual)))))}


class PixelAccuracy(InMemoryMetric):
    """Share of the pixels whose class is right."""

    inputs = {SEGMENTATION: PIXEL_COUNTS}

    def _compute(self, intersection, predicted, actual):
        return {"pixel_accuracy": float(np.sum(intersection) / np.sum(actual))}


class MeanClassAccuracy(InMemoryMetric):
    """Mean over the classes of the share of their pixels that is found."""

    inputs = {SEGMENTATION: PIXEL_COUNTS}

    def _compute(self, intersection, predicted, actual):
        return {"mean_class_accuracy": float(np.nanmean(_divide(np.sum(intersection, 0), np.sum(actual, 0))))}


class PerClassIoU(InMemoryMetric):
    """Intersection over union, accuracy and true pixels of each class; None for a class that occurs nowhere."""

    inputs = {SEGMENTATION: PIXEL_COUNTS}
    greater_is_better = None

    def _compute(self, intersection, predicted, actual):
        intersection, predicted, actual = map(np.asarray, (intersection, predicted, actual))
        iou, found = compute_iou(intersection, predicted, actual), _divide(intersection.sum(0), actual.sum(0))
        names = self.label_names or [str(index) for index in range(len(iou))]
        table = {
            name: {"iou": float(iou[k]), "accuracy": float(found[k]), "num_pixels": int(actual[:, k].sum())}
            for k, name in enumerate(names)
        }
        return {"per_class_iou": table}
