"""What does each class count in the loss? The same, or so much more as it is rarer (`--class_weights balanced`), or
what the user says (`--class_weights '{"spam": 5, "ham": 1}'`).

The weights have a mean of 1 over the labels of train, and the loss is still divided by the number of labels. So the
gradient of a label does not depend on which others are in its batch, and any accumulation gives the same; torch's own
weighted mean divides by the weights of the batch.
"""

import json
import math
from typing import Any

import datasets
import numpy as np
import torch

from hftl.data.labels import LabelInfo
from hftl.errors import UserError, unknown_name
from hftl.tasks.base import Task

NONE, BALANCED = "none", "balanced"


def weigh_classes(wanted: str, task: Task, rows: datasets.Dataset, info: LabelInfo) -> dict[str, Any]:
    """Give the task its weights, and say them for the run record.

    Args:
        wanted: `--class_weights`.
        task: whose loss is weighted; changed in place.
        rows: prepared rows of train.
        info: of the labels.

    Raises:
        UserError: the labels are no classes of which each has one, or the weights are not one for each of them.
    """
    if wanted == NONE:
        return {}
    counts = task.count_classes(rows, info)
    if counts is None:
        raise UserError(
            f"--class_weights {wanted} is for labels of which each is one class; these are {info.problem_type}."
        )
    weights = balance(counts) if wanted == BALANCED else scale(parse_weights(wanted, info.names), counts)
    task.class_weights = torch.tensor(weights, dtype=torch.float32)
    return {"class_weights": dict(zip(info.names, np.round(weights, 6).tolist(), strict=True))}


def parse_weights(text: str, names: tuple[str, ...]) -> np.ndarray:
    """The number of each class [C], from a JSON object.

    Raises:
        UserError: it is none, names another class, leaves one out, or holds something other than numbers above 0.
    """
    try:
        given = json.loads(text)
    except json.JSONDecodeError:
        given = None
    if not isinstance(given, dict):
        example = json.dumps(dict.fromkeys(names[:2], 1))
        raise UserError(f"--class_weights is {text!r}; give none, balanced, or a number for each label: {example}.")
    for name in given:
        if name not in names:
            raise unknown_name("label in --class_weights:", name, names)
    if missing := [name for name in names if name not in given]:
        raise UserError(f"--class_weights says nothing about {', '.join(missing)}; give every label a number.")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"--class_weights: {name} is {value!r}; give a number above 0.")
    return np.array([given[name] for name in names], dtype=np.float64)


def scale(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weights [C] in the same proportions with a mean of 1 over the labels."""
    return weights * counts.sum() / (weights * counts).sum()


def balance(counts: np.ndarray) -> np.ndarray:
    """Weights [C] with which every class that is there counts the same in sum; 1 for a class that is not."""
    present = counts > 0
    return np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 1.0)
