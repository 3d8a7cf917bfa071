"""Where the classification head is, what it reads, and how it is fitted on frozen features.

A linear head fitted by regularised logistic regression (ridge for regression) is the whole of mode `probe`, and a
better start than random weights for the other modes: see docs/head-init.md for what was measured.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hftl.errors import UserError
from hftl.models.linear import linear_by_onednn
from hftl.models.load import body_prefix

logger = logging.getLogger(__name__)

# Inverse L2 strengths tried, on standardised features: the span that matters from 100 to 100,000 rows.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Scale of an identity in front of a tanh: small enough that tanh(x) = x to 1e-4 for features up to 2.
LINEAR_SCALE = 0.01
OPTIONS = {"maxiter": 1000, "maxls": 50, "gtol": 1e-4, "ftol": 64 * np.finfo(float).eps}  # of L-BFGS
Linear = tuple[np.ndarray, np.ndarray]  # weight [C, D] and bias [C], on standardised features
UNSEEN_LOGIT = -10.0  # bias of a class without a training row: e^-10 of the others


@dataclass(frozen=True)
class LinearHead:
    """Weight [C, D] and bias [C] of a head on raw (not standardised) features.

    `strength` is the inverse L2 strength chosen, `validation_loss` what it was chosen by.
    """

    weight: np.ndarray
    bias: np.ndarray
    strength: float
    validation_loss: float


def find_head(network: nn.Module) -> str:
    """Name of the last linear layer, which turns features [.., D] into logits [.., num_labels].

    Raises:
        UserError: the head ends in something else, such as a convolution.
    """
    prefix = body_prefix(network)
    linear = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == network.config.num_labels
    ]
    outside = [name for name in linear if not f"{name}.".startswith(prefix)]
    if not outside:
        raise UserError(
            f"{type(network).__name__} has no linear last layer, so its head cannot be fitted on frozen features. "
            "Use --head_init random (and another mode than probe)."
        )
    return outside[-1]


def head_modules(network: nn.Module, new_parameters: Iterable[str], *, has_new_head: bool = True) -> list[str]:
    """The modules that every mode trains and saves: all outside the pretrained body, and new ones inside it.

    Where the head belongs to the checkpoint (`has_new_head` False), as in a language model, new ones alone, without
    those that hold a weight of the body: a copy of an embedding would be trained and saved with the module.
    """
    prefix = body_prefix(network)
    new = {name.rsplit(".", 1)[0] for name in new_parameters if "." in name}
    if not has_new_head:
        tied = tuple(network.all_tied_weights_keys)
        return sorted(module for module in new if not any(name.startswith(f"{module}.") for name in tied))
    outside = [
        name
        for name, module in network.named_children()
        if f"{name}." != prefix and any(True for _ in module.parameters())
    ]
    inside = {name for name in new if f"{name}.".startswith(prefix)}
    return outside + sorted(inside)


@torch.inference_mode()
def compute_features(
    network: nn.Module, batches: Iterable[dict[str, torch.Tensor]], device: torch.device
) -> np.ndarray:
    """What the last linear layer reads, float32 [N, D], in the order of `batches`.

    The layer is swapped for the identity, so that pooling, last-token selection and the like are the network's own.
    """
    name = find_head(network)
    parent_name, _, leaf = name.rpartition(".")
    parent = network.get_submodule(parent_name)
    layer = getattr(parent, leaf)
    setattr(parent, leaf, nn.Identity())
    was_training = network.training
    network.eval()
    try:
        with _tensor_cores(device), linear_by_onednn(device):
            outputs = (
                network(**{key: value.to(device) for key, value in batch.items() if key != "labels"}).logits
                for batch in batches
            )
            features = [logits.float().cpu() for logits in outputs]
    finally:
        setattr(parent, leaf, layer)
        network.train(was_training)
    return torch.cat(features).numpy()


@contextmanager
def _tensor_cores(device: torch.device) -> Iterator[None]:
    """Products of float32 in TF32, with 10 bits of fraction, on a GPU; the setting is that of torch 2.9 and later."""
    settings = torch.backends.cuda.matmul
    before = getattr(settings, "fp32_precision", None)
    if device.type != "cuda" or before is None:
        yield
        return
    settings.fp32_precision = "tf32"
    try:
        yield
    finally:
        settings.fp32_precision = before


def set_head(network: nn.Module, head: LinearHead) -> None:
    """Copy a fitted head into the network's last linear layer."""
    layer = network.get_submodule(find_head(network))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(head.bias))
        elif np.abs(head.bias).max() > 0:
            raise AssertionError("a head without a bias was fitted with one")


def find_pooling_layer(network: nn.Module) -> nn.Linear | None:
    """The square layer before a tanh through which BERT- and RoBERTa-like heads read the first token."""
    for name, module in network.named_modules():
        is_square = isinstance(module, nn.Linear) and module.in_features == module.out_features
        if is_square and name.endswith(("pooler.dense", "classifier.dense")):
            return module
    return None


@torch.no_grad()
def make_linear(layer: nn.Linear) -> None:
    """Turn `tanh(layer(x))` into a multiple of x, so that a linear head reads the body's own features."""
    nn.init.eye_(layer.weight)
    layer.weight.mul_(LINEAR_SCALE)
    if layer.bias is not None:
        layer.bias.zero_()


def has_bias(network: nn.Module) -> bool:
    """Whether the last linear layer has a bias to be fitted."""
    return network.get_submodule(find_head(network)).bias is not None


def fit_head(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    problem_type: str,
    num_labels: int,
    *,
    with_bias: bool = True,
) -> LinearHead:
    """Fit a linear head; the L2 strength is the one with the lowest validation loss.

    Args:
        train: features [N, D] and labels ([N] class numbers, [N, C] multi-hot, or [N] values).
        validation: the same, for choosing the strength. Never the test set.
        problem_type: as in the model configuration.
        num_labels: C.
        with_bias: fit an intercept.

    Raises:
        UserError: a feature is NaN or infinite.
    """
    features, labels = train
    if not (np.isfinite(features).all() and np.isfinite(validation[0]).all()):
        raise UserError("The frozen features are not finite: the checkpoint's weights may be damaged.")
    mean = features.mean(0, dtype=np.float64) if with_bias else np.zeros(features.shape[1])
    spread = features.std(0, dtype=np.float64)
    spread[spread < 1e-6] = 1.0
    fit, loss = _SOLVERS[problem_type]
    best, best_loss = None, np.inf
    scaled, held_out = (features - mean) / spread, (validation[0] - mean) / spread
    for strength, (weight, bias) in zip(STRENGTHS, fit(scaled, labels, num_labels, with_bias), strict=True):
        value = loss(held_out @ weight.T + bias, validation[1])
        if best is not None and value >= best_loss:
            break  # from strong to weak regularisation the loss falls, then rises
        best, best_loss = (weight, bias, strength), value
    weight, bias, strength = best
    weight = weight / spread
    bias = bias - weight @ mean
    logger.info("head fitted on %d rows: strength %g, validation loss %.4f", len(features), strength, best_loss)
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32), strength, best_loss)


def _fit_classes(x: np.ndarray, y: np.ndarray, num_labels: int, with_bias: bool) -> Iterator[Linear]:
    """Multinomial logistic regression; classes that are not in `y` get `UNSEEN_LOGIT`."""
    present, targets = np.unique(y, return_inverse=True)
    fits = _minimize_cross_entropy(x, targets, len(present), with_bias=with_bias)
    for rows, intercepts in fits:
        weight = np.zeros((num_labels, x.shape[1]))
        bias = np.full(num_labels, UNSEEN_LOGIT if with_bias else 0.0)
        weight[present], bias[present] = rows, intercepts
        yield weight, bias


def _minimize_cross_entropy(
    x: np.ndarray, targets: np.ndarray, num_classes: int, *, with_bias: bool
) -> Iterator[Linear]:
    """The objective of scikit-learn's LogisticRegression, each strength from where the one before ended.

    Ten times as fast as scikit-learn 1.9 from zero: 1,000 rows of 384 features and 45 classes take 0.5 s instead of 6
    on two cores. Two classes share what it gives to one, which has half of their penalty.
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    features, rows = torch.from_numpy(x), torch.from_numpy(targets)
    (num_rows, width), share = x.shape, 2.0 if num_classes == 2 else 1.0
    size = num_classes * width
    start = np.zeros(size + num_classes)
    picked = torch.arange(num_rows), rows
    for strength in STRENGTHS:
        penalty = share / (strength * num_rows)

        def evaluate(flat: np.ndarray, penalty: float = penalty) -> tuple[float, np.ndarray]:
            weight, bias = torch.from_numpy(flat[:size]).view(num_classes, width), torch.from_numpy(flat[size:])
            logs = torch.addmm(bias, features, weight.T).log_softmax(1)  # [N, C]
            loss = -logs[picked].mean() + 0.5 * penalty * weight.square().sum()
            residual = logs.exp_()
            residual[picked] -= 1
            slope = residual.T @ features / num_rows + penalty * weight
            intercept = residual.mean(0) * with_bias
            return loss.item(), torch.cat([slope.ravel(), intercept]).numpy()

        with threadpool_limits(1, user_api="blas"):  # of scipy: its short vectors wait for threads on a busy machine
            start = minimize(evaluate, start, jac=True, method="L-BFGS-B", options=OPTIONS).x
        yield start[:size].reshape(num_classes, width), start[size:]


def _fit_columns(x: np.ndarray, y: np.ndarray, num_labels: int, with_bias: bool) -> Iterator[Linear]:
    for strength in STRENGTHS:
        yield _fit_each_column(x, y, strength, num_labels, with_bias)


def _fit_each_column(x: np.ndarray, y: np.ndarray, strength: float, num_labels: int, with_bias: bool) -> Linear:
    from sklearn.linear_model import LogisticRegression

    weight, bias = np.zeros((num_labels, x.shape[1])), np.zeros(num_labels)
    for column in range(num_labels):
        rate = (y[:, column].sum() + 1) / (len(y) + 2)
        if 0 < y[:, column].sum() < len(y):
            model = LogisticRegression(C=strength, fit_intercept=with_bias, max_iter=1000, tol=1e-3).fit(
                x, y[:, column]
            )
            weight[column], bias[column] = model.coef_[0], model.intercept_[0] if with_bias else 0.0
        elif with_bias:  # only one value seen: the smoothed prior
            bias[column] = np.log(rate / (1 - rate))
    return weight, bias


def _fit_values(x: np.ndarray, y: np.ndarray, num_labels: int, with_bias: bool) -> Iterator[Linear]:
    from sklearn.linear_model import Ridge

    for strength in STRENGTHS:
        model = Ridge(alpha=1 / strength, fit_intercept=with_bias).fit(x, y)
        yield model.coef_.reshape(1, -1), np.atleast_1d(model.intercept_).astype(np.float64)


def _log_loss(logits: np.ndarray, y: np.ndarray) -> float:
    logits = logits - logits.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]))


def _binary_loss(logits: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, logits) - y * logits))


def _squared_error(values: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean((values[:, 0] - y) ** 2))


_SOLVERS = {
    "single_label_classification": (_fit_classes, _log_loss),
    "multi_label_classification": (_fit_columns, _binary_loss),
    "regression": (_fit_values, _squared_error),
}
