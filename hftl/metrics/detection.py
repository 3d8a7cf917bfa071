"""How well do boxes with scores fit the true ones? Average precision as COCO defines it, and F1 image by image.

COCO's evaluation without areas and crowds: each box foreseen takes, the most probable first, the free true box of
its class that it overlaps most; precision is read at 101 values of recall, and the mean over the classes that occur is
taken. Must not know: logits, models, sizes of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hftl.errors import UserError
from hftl.metrics.spread import linearize

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of intersection over union
RECALLS = np.linspace(0, 1, 101)
F1_SCORE = 0.5  # boxes less probable than this do not count in F1
BOX_COUNTS = ("num_matched", "num_predicted", "num_actual")


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image: `corners` [N, 4] (left, top, right, bottom), `classes` [N] and, where foreseen, `scores`."""

    corners: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None


def compute_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union, corners [N, 4] and [M, 4] -> [N, M]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = np.prod((high - low).clip(min=0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def match_boxes(iou: np.ndarray, threshold: float) -> np.ndarray:
    """Which foreseen boxes, the most probable first, find a free true one; [N, M] -> bool [N]."""
    is_free, is_match = np.ones(iou.shape[1], bool), np.zeros(len(iou), bool)
    for index, overlaps in enumerate(iou):
        candidates = np.where(is_free, overlaps, -1.0)
        if len(candidates) and candidates.max() >= threshold - 1e-10:
            is_free[candidates.argmax()] = False
            is_match[index] = True
    return is_match


def compute_box_report(found: Sequence[Boxes], true: Sequence[Boxes], label_names: Sequence[str]) -> dict[str, Any]:
    """Every score, and the table of the classes.

    Args:
        found: the boxes foreseen in each image.
        true: the boxes that are there.
        label_names: by class number.

    Returns:
        `map` over `THRESHOLDS`, `map_50`, `map_75`, `f1_50` of all boxes with a score of `F1_SCORE`, and
        `per_class_ap`: average precision and true boxes of each class, nan for a class that does not occur.

    Raises:
        UserError: there is no true box.
    """
    if not sum(len(boxes.classes) for boxes in true):
        raise UserError("No boxes to compute metrics on: no image has one. Check the split.")
    precision = np.array([_class_precision(found, true, k) for k in range(len(label_names))])  # [C, T]
    counts = np.array([int(sum((boxes.classes == k).sum() for boxes in true)) for k in range(len(label_names))])
    table = {
        name: {"ap": float(precision[k].mean()), "ap_50": float(precision[k, 0]), "num_boxes": int(counts[k])}
        for k, name in enumerate(label_names)
    }
    mean = precision[counts > 0].mean(0)
    return {
        "map": float(mean.mean()),
        "map_50": float(mean[0]),
        "map_75": float(mean[5]),
        "f1_50": float(spread_f1(count_matches(found, true)).mean()),
        "per_class_ap": table,
    }


def _class_precision(found: Sequence[Boxes], true: Sequence[Boxes], label: int) -> np.ndarray:
    """Average precision of one class at each threshold, [T]."""
    scores, matches = [np.zeros(0)], [np.zeros((len(THRESHOLDS), 0), bool)]
    num_true = 0
    for guess, fact in zip(found, true, strict=True):
        chosen = np.flatnonzero(guess.classes == label)
        chosen = chosen[np.argsort(-guess.scores[chosen], kind="stable")]
        facts = fact.corners[fact.classes == label]
        num_true += len(facts)
        iou = compute_iou(guess.corners[chosen], facts)
        scores.append(guess.scores[chosen])
        matches.append(np.array([match_boxes(iou, threshold) for threshold in THRESHOLDS]))
    if not num_true:
        return np.full(len(THRESHOLDS), np.nan)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return np.array([_average(row, num_true) for row in np.concatenate(matches, axis=1)[:, order]])


def _average(is_match: np.ndarray, num_true: int) -> float:
    """Mean precision at `RECALLS`, of matches from the most probable box to the least."""
    if not len(is_match):
        return 0.0
    hits = np.cumsum(is_match)
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    places = np.searchsorted(hits / num_true, RECALLS, side="left")
    return float(np.append(precision, 0.0)[places].mean())


def count_matches(found: Sequence[Boxes], true: Sequence[Boxes]) -> dict[str, np.ndarray]:
    """The columns of `BOX_COUNTS`, [N]: boxes of the right class at IoU .5, foreseen and true ones of each image."""
    rows = [_count_image(guess, fact) for guess, fact in zip(found, true, strict=True)]
    return dict(zip(BOX_COUNTS, np.array(rows, np.int64).reshape(-1, 3).T, strict=True))


def _count_image(guess: Boxes, fact: Boxes) -> tuple[int, int, int]:
    kept = np.flatnonzero(guess.scores >= F1_SCORE)
    kept = kept[np.argsort(-guess.scores[kept], kind="stable")]
    iou = compute_iou(guess.corners[kept], fact.corners)
    iou = np.where(guess.classes[kept][:, None] == fact.classes[None], iou, 0.0)
    return int(match_boxes(iou, 0.5).sum()), len(kept), len(fact.classes)


def spread_f1(counts: dict[str, np.ndarray]) -> np.ndarray:
    """[N] values whose mean is the F1 of all boxes."""
    return linearize(2.0 * counts["num_matched"], counts["num_predicted"] + counts["num_actual"])
