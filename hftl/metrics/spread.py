"""How does a score vary over new rows? Values, one a row, with the mean of the score and with its spread.

A mean over rows spreads as its parts do. Any other smooth function of the rows spreads as its influence values do: the
change of the score when one row weighs a little more (Efron 1982, The Jackknife, the Bootstrap and Other Resampling
Plans, chapter 6). `score + influence` has the score as its mean, so that one interval serves every metric.
Must not know: models, intervals, where the columns come from.
"""

import numpy as np

TINY = np.finfo(np.float32).tiny


def linearize(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Values [N] whose mean is the ratio sum(total) / sum(count) and whose spread is that of the ratio over new rows.

    The first-order expansion of a ratio of sums (Cochran 1977, Sampling Techniques, section 6.4).
    """
    ratio = total.sum() / count.sum()
    return ratio + (total - ratio * count) * len(count) / count.sum()


def spread_log_loss(label: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """-ln of the probability of the true class, [N] from labels [N] and probabilities [N, C]."""
    chosen = probabilities.astype(float)[np.arange(len(probabilities)), label]
    return -np.log(np.clip(chosen, TINY, 1))


def count_outcomes(
    label: np.ndarray, prediction: np.ndarray, num_labels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, predictions and true labels of each row and class, float64 [N, C] each.

    Args:
        label, prediction: class numbers [N], or multi-hot [N, C].
        num_labels: C.
    """
    if label.ndim == 1:
        label, prediction = np.eye(num_labels)[label], np.eye(num_labels)[prediction]
    label, prediction = label.astype(float), prediction.astype(float)
    return label * prediction, prediction, label


def spread_f1_micro(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """F1 of all decisions pooled, of multi-hot rows [N, C]; 0 where nothing is true and nothing predicted."""
    hits, predicted, true = count_outcomes(label, prediction, label.shape[1])
    count = (predicted + true).sum(1)
    return linearize(2 * hits.sum(1), count) if count.any() else np.zeros(len(label))


def _spread_f1_by_class(outcomes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """F1 of each class, [N, C]; 0 for a class without a true row."""
    hits, predicted, true = outcomes
    columns = np.zeros(hits.shape)
    for k in np.flatnonzero(true.sum(0)):
        columns[:, k] = linearize(2 * hits[:, k], predicted[:, k] + true[:, k])
    return columns


def spread_f1_macro(label: np.ndarray, prediction: np.ndarray, num_labels: int) -> np.ndarray:
    """Mean over all classes of their F1."""
    return _spread_f1_by_class(count_outcomes(label, prediction, num_labels)).mean(1)


def spread_f1_weighted(label: np.ndarray, prediction: np.ndarray, num_labels: int) -> np.ndarray:
    """Mean of the classes' F1, each weighted by its share of the rows, which varies over new rows as well."""
    outcomes = count_outcomes(label, prediction, num_labels)
    by_class, true = _spread_f1_by_class(outcomes), outcomes[2]
    share, f1 = true.mean(0), by_class.mean(0)  # [C]
    return by_class @ share + (true - share) @ f1


def spread_balanced_accuracy(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Mean recall of the classes that occur."""
    columns = [linearize((hit := label == k) * (prediction == k), hit.astype(float)) for k in np.unique(label)]
    return np.mean(columns, axis=0)


def spread_calibration_error(label: np.ndarray, probabilities: np.ndarray, upper_edges: np.ndarray) -> np.ndarray:
    """Mean over rows of (accuracy - confidence) with the sign that their bin of confidence has.

    The sign of a bin is taken as given, so the spread is right where the gap of a bin is not about 0; there the score
    is biased upward anyway.
    """
    confidence, gap = _read_confidence(label, probabilities)
    bins = np.digitize(confidence, upper_edges, right=True)
    return np.sign(np.bincount(bins, weights=gap, minlength=len(upper_edges) + 1))[bins] * gap


def _read_confidence(label: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Top probability of each row, [N], and whether it is right minus that, [N]."""
    probabilities = probabilities.astype(float)
    confidence = probabilities.max(axis=1)
    return confidence, (probabilities.argmax(axis=1) == label) - confidence


def spread_average_precision(label: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Mean over the labels with a positive row of their average precision, of multi-hot rows [N, C]."""
    present = np.flatnonzero(label.any(0))
    if not len(present):
        return np.full(len(label), np.nan)
    return np.mean([_spread_precision(label[:, k].astype(float), probabilities[:, k]) for k in present], axis=0)


def _spread_precision(is_true: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Average precision of one label: the mean over its true rows of the precision among rows scored as high, [N].

    With weights w: AP = sum_i w_i y_i A_i / B_i / sum_i w_i y_i, where A_i sums w y over the rows scored at least as
    high as row i, and B_i sums w. Row k adds y_k / B_i - A_i / B_i^2 to the precision of every row i scored no higher.
    """
    values, place = np.unique(-score, return_inverse=True)  # the most probable first
    true_at = np.bincount(place, weights=is_true, minlength=len(values))
    a, b = np.cumsum(true_at), np.cumsum(np.bincount(place, minlength=len(values)))
    precision = a / b
    average = float((true_at * precision).sum() / a[-1])
    after = [np.cumsum((true_at * part)[::-1])[::-1] for part in (1 / b, a / b**2)]  # over rows scored no higher
    influence = is_true * (precision[place] - average) + is_true * after[0][place] - after[1][place]
    return average + influence * len(score) / a[-1]


def spread_perplexity(negative_log_likelihood: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
    """exp of the mean loss of a token."""
    loss = linearize(negative_log_likelihood, num_tokens)
    return np.exp(loss.mean()) * (1 + loss - loss.mean())


def spread_pearson(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Linear correlation; that of a constant is undefined, and counts as 0: nothing is explained."""
    if np.ptp(label) == 0 or np.ptp(prediction) == 0:
        return np.zeros(len(label))
    x, y = _standardize(label), _standardize(prediction)
    r = float((x * y).mean())
    return r + x * y - r * (x**2 + y**2) / 2


def spread_spearman(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Correlation of ranks (ties get their mean rank); a new row also moves the ranks of the others."""
    if np.ptp(label) == 0 or np.ptp(prediction) == 0:
        return np.zeros(len(label))
    ranks = _rank(label), _rank(prediction)
    x, y = map(_standardize, ranks)
    r = float((x * y).mean())
    moved = _move_ranks(label, y - r * x) / ranks[0].std() + _move_ranks(prediction, x - r * y) / ranks[1].std()
    return spread_pearson(*ranks) + moved


def _standardize(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def _rank(values: np.ndarray) -> np.ndarray:
    """Share of the rows below, ties counted half, [N] in (0, 1)."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return ((np.cumsum(count) - count / 2) / len(values))[place]


def _move_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over rows i of `weights_i` times what row k adds to the rank of i, [N].

    That is 1 where `values_k` lies below `values_i` and 1/2 where they are equal, less the rank that i has anyway.
    """
    _, place = np.unique(values, return_inverse=True)
    total = np.bincount(place, weights=weights)
    above = total.sum() - np.cumsum(total)
    return (above + total / 2)[place] / len(values) - float((_rank(values) * weights).mean())


def spread_r2(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Share of the variance of the labels that is explained; nan where they have none."""
    squares, variance = (label - prediction) ** 2, float(label.var())
    if variance == 0:
        return np.full(len(label), np.nan)
    unexplained = squares.mean() / variance
    return 1 - unexplained - (squares - unexplained * (label - label.mean()) ** 2) / variance
