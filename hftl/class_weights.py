"""What does each class count in the loss? The same, or so much more as it is rarer (`--class_weights balanced`).

The weights have a mean of 1 over the labels of train, and the loss is still divided by the number of labels. So the
gradient of a label does not depend on which others are in its batch, and any accumulation gives the same; torch's own
weighted mean divides by the weights of the batch.
"""

from typing import Any

import datasets
import numpy as np
import torch

from hftl.data.labels import LabelInfo
from hftl.errors import UserError
from hftl.tasks.base import Task

BALANCED = "balanced"


def weigh_classes(wanted: str, task: Task, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
    """Give the task its weights, and say them for the run record.

    Args:
        wanted: `--class_weights`.
        task: whose loss is weighted; changed in place.
        rows: prepared rows of train.
        info: of the labels.

    Raises:
        UserError: the labels are no classes of which each has one.
    """
    if wanted != BALANCED:
        return {}
    counts = task.count_classes(rows, info)
    if counts is None:
        raise UserError(
            f"--class_weights {BALANCED} is for labels of which each is one class; these are {info.problem_type}."
        )
    weights = balance(counts)
    task.class_weights = torch.tensor(weights, dtype=torch.float32)
    return {"class_weights": dict(zip(info.names, np.round(weights, 6).tolist(), strict=True))}


def balance(counts: np.ndarray) -> np.ndarray:
    """Weights [C] with which every class that is there counts the same in sum; 1 for a class that is not."""
    present = counts > 0
    return np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 1.0)
