"""What does each row add to a score? For the metrics that are means over rows, so that their spread is known.

Must not know: models, intervals, where the columns come from.
"""

from collections.abc import Callable

import numpy as np


def _true_probability(table: dict[str, np.ndarray]) -> np.ndarray:
    probabilities = table["probabilities"].astype(float)
    chosen = probabilities[np.arange(len(probabilities)), table["label"]]
    return np.clip(chosen, np.finfo(np.float32).tiny, 1)


def linearize(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Values [N] whose mean is the ratio sum(total) / sum(count) and whose spread is that of the ratio over new rows.

    The first-order expansion of a ratio of sums (Cochran 1977, Sampling Techniques, section 6.4).
    """
    ratio = total.sum() / count.sum()
    return ratio + (total - ratio * count) * len(count) / count.sum()


def _spread_f1(table: dict[str, np.ndarray]) -> np.ndarray:
    label, prediction = table["label"].astype(float), table["prediction"].astype(float)  # [N, C]
    return linearize(2 * (label * prediction).sum(1), (label + prediction).sum(1))


def _spread_perplexity(table: dict[str, np.ndarray]) -> np.ndarray:
    loss = linearize(table["negative_log_likelihood"], table["num_tokens"])
    return np.exp(loss.mean()) * (1 + loss - loss.mean())


# The part of each row of metrics that are means over rows, [N] from the columns of predictions.parquet.
ROW_SCORES: dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]] = {
    "accuracy": lambda table: (table["label"] == table["prediction"]).astype(float),
    "log_loss": lambda table: -np.log(_true_probability(table)),
    "f1_micro": _spread_f1,
    "mse": lambda table: (table["label"].astype(float) - table["prediction"]) ** 2,
    "mae": lambda table: np.abs(table["label"].astype(float) - table["prediction"]),
    "token_loss": lambda table: linearize(table["negative_log_likelihood"], table["num_tokens"]),
    "bits_per_byte": lambda table: linearize(table["negative_log_likelihood"], np.log(2) * table["num_bytes"]),
    "token_accuracy": lambda table: linearize(table["num_correct"], table["num_tokens"]),
    "perplexity": _spread_perplexity,
}
