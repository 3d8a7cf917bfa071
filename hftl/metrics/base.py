"""What a metric of hftl is: a formula, the columns that it takes, and in which direction a model improves.

scikit-learn and scipy.stats are imported by the formulas when the first score is computed: a training starts before.
Must not know: any formula, any other metric, where the predictions come from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Features, List, Value

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
LANGUAGE = "language_modeling"  # not a problem type of transformers: there are no labels

# The columns a metric can ask for, one row an example. "predictions" are what `compute_predictions` returns.
CLASSES = Features(predictions=Value("int64"), references=Value("int64"))
CLASS_PROBABILITIES = Features(probabilities=List(Value("float64")), references=Value("int64"))
MULTI_HOT = Features(predictions=List(Value("int64")), references=List(Value("int64")))
MULTI_HOT_PROBABILITIES = Features(probabilities=List(Value("float64")), references=List(Value("int64")))
VALUES = Features(predictions=Value("float64"), references=Value("float64"))
# Sums over the predicted tokens of each row; the bytes are those of their text.
TOKEN_SUMS = Features(
    negative_log_likelihood=Value("float64"),
    num_tokens=Value("int64"),
    num_correct=Value("int64"),
    num_bytes=Value("int64"),
)


Spread = Callable[[dict[str, np.ndarray]], np.ndarray]
"""From the columns of `predictions.parquet` to values [N] whose mean is a score and whose spread is that of the score
over new rows; see `hftl.metrics.spread`."""

SHARE, POSITIVE, CORRELATION = (0.0, 1.0), (0.0, math.inf), (-1.0, 1.0)
"""Ranges of scores."""


@dataclass(frozen=True)
class Score:
    """All that is known of one number by which models are compared, whatever computes it.

    Attributes:
        greater_is_better: the direction in which a model improves.
        by_row: how it varies over new rows. None: it has no interval in a comparison.
        is_written: it is of texts that the model writes, so that it is not known while training.
        bounds: the lowest and the highest value that it can have.
    """

    greater_is_better: bool = True
    by_row: Spread | None = None
    is_written: bool = False
    bounds: tuple[float, float] = SHARE


class Metric:
    """Base class of every metric: a subclass sets the class attributes and writes `compute`.

    Args:
        label_names: the name of every class, in the order of the model's outputs. With none, the metrics that count
            over classes count over those that occur in the predictions or references.
    """

    inputs: ClassVar[dict[str, Features]]
    """Problem type -> the columns that `compute` takes; the metric is reported for these problem types.

    Rows of lists come first: `evaluate` takes the first that fits, and older numpy takes an array of one for a number.
    """

    greater_is_better: ClassVar[bool | None] = True
    """The direction in which a model improves; None for a table, which is part of the report and never compared."""

    by_row: ClassVar[Spread | None] = None
    """How the score varies over new rows."""

    bounds: ClassVar[tuple[float, float]] = SHARE
    """The lowest and the highest value of the score."""

    def __init__(self, label_names: Sequence[str] = ()):
        self.label_names = list(label_names)

    @property
    def labels(self) -> list[int] | None:
        """Every class index, also of classes that do not occur; None when the names are not known."""
        return list(range(len(self.label_names))) or None

    def compute(self, **columns: Any) -> dict[str, Any]:
        """`{its name in METRICS: value}` of the columns named in `inputs`, as arrays or lists."""
        raise NotImplementedError
