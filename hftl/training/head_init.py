"""Where the head of a run starts: at random, or from a linear fit on the frozen body's features.

The features of a split are computed once and kept in the cache under the weights, the rows and the preprocessing.
"""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import xxhash

from hftl.assets import cache_dir
from hftl.config import Arguments
from hftl.cost.flops import count_flops, count_units
from hftl.data.sampling import sort_by_length
from hftl.errors import UserError
from hftl.models.head import (
    LINEAR_SCALE,
    LinearHead,
    compute_features,
    find_head,
    find_pooling_layer,
    fit_head,
    has_bias,
    make_linear,
    set_head,
)
from hftl.models.quantization import is_quantized
from hftl.training_data import build_batches

logger = logging.getLogger(__name__)

COUNTED_ROWS = 8  # enough for the FLOPs of a token


def initialize_head(
    network: torch.nn.Module,
    args: Arguments,
    wanted: str,
    rows: dict[str, datasets.Dataset],
    collator: Callable,
    *,
    is_final: bool = False,
) -> dict[str, Any]:
    """Fit the head on frozen features when that is asked for.

    Args:
        network: loaded, not yet frozen or wrapped; changed in place.
        args: of the run.
        wanted: `probe`, `random`, `pretrained`, or `auto-probe`: like `probe`, but random for a network
            without a linear head.
        rows: prepared splits.
        collator: rows -> batch.
        is_final: nothing is trained afterwards. Then the pooling layer in front of the head may be passed by as well,
            if the validation loss is lower without it: it may be a leftover of pretraining, or random.

    Returns:
        What was done, for the run record.
    """
    if wanted in ("random", "pretrained"):
        return {"init": wanted}
    try:
        find_head(network)
    except UserError as error:
        if wanted == "probe":
            raise
        logger.warning("The head starts at random: %s", error)
        return {"init": "random"}
    if not is_quantized(network):  # which is where it belongs already, and cannot be moved in 8 bits
        network.to(args.training.device)
    pooling = find_pooling_layer(network) if is_final else None
    if pooling is not None:
        for split in ("train", "validation"):
            read_both_poolings(network, pooling, rows[split], args, collator, split)
    head = _fit(network, args, rows, collator)
    record = {
        "init": "probe",
        "strength": head.strength,
        "flops": count_feature_flops(network, rows["train"], args, collator),
    }
    if pooling is not None:
        original = {name: tensor.clone() for name, tensor in pooling.state_dict().items()}
        make_linear(pooling)
        linear = _fit(network, args, rows, collator)
        if linear.validation_loss < head.validation_loss:
            head, record = linear, record | {"strength": linear.strength, "pooling": "linear"}
        else:
            pooling.load_state_dict(original)
    set_head(network, head)
    return record


def _fit(
    network: torch.nn.Module, args: Arguments, rows: dict[str, datasets.Dataset], collator: Callable
) -> LinearHead:
    data = {
        split: (load_features(network, rows[split], args, collator, split), np.asarray(rows[split]["labels"]))
        for split in ("train", "validation")
    }
    config = network.config
    return fit_head(
        data["train"], data["validation"], config.problem_type, config.num_labels, with_bias=has_bias(network)
    )


def load_features(
    network: torch.nn.Module, rows: datasets.Dataset, args: Arguments, collator: Callable, split: str
) -> np.ndarray:
    """Features float32 [N, D] of the rows, in their order, from the cache or by one pass over the body."""
    path = _find_place(network, rows, args)
    if path.is_file():
        return np.load(path, allow_pickle=False)
    features = _restore(*_read_sorted(network, rows, args, collator, split))
    _keep(features, path, args)
    return features


def read_both_poolings(
    network: torch.nn.Module,
    pooling: torch.nn.Linear,
    rows: datasets.Dataset,
    args: Arguments,
    collator: Callable,
    split: str,
) -> None:
    """Put into the cache, by one pass, what `load_features` finds with the pooling layer as it is and made linear.

    Args:
        pooling: from `find_pooling_layer`: what follows it is a tanh.
    """
    original = {name: tensor.clone() for name, tensor in pooling.state_dict().items()}
    own = _find_place(network, rows, args)
    make_linear(pooling)
    linear = _find_place(network, rows, args)
    pooling.load_state_dict(original)
    if own.is_file() and linear.is_file():
        return
    seen: list[torch.Tensor] = []
    hook = pooling.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].float().cpu()))
    try:
        features, order = _read_sorted(network, rows, args, collator, split)
    finally:
        hook.remove()
    read = torch.cat(seen)
    if read.shape != features.shape:  # the layer reads more than one vector a row
        return
    _keep(_restore(features, order), own, args)
    _keep(_restore(torch.tanh(LINEAR_SCALE * read).numpy(), order), linear, args)


def _find_place(network: torch.nn.Module, rows: datasets.Dataset, args: Arguments) -> Path:
    key = hashlib.sha256(f"{_hash_body(network)} {rows._fingerprint} {args.model.dtype}".encode()).hexdigest()[:24]
    return Path(cache_dir()) / "features" / f"{key}.npy"


def _read_sorted(
    network: torch.nn.Module, rows: datasets.Dataset, args: Arguments, collator: Callable, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Features from long to short rows, and which row each is of."""
    ordered, order = sort_by_length(rows)
    batches = build_batches(ordered, args.training.per_device_eval_batch_size, collator, f"Features of {split}")
    return compute_features(network, batches, args.training.device), order


def _restore(ordered: np.ndarray, order: np.ndarray) -> np.ndarray:
    features = np.empty_like(ordered)
    features[order] = ordered
    return features


def _keep(features: np.ndarray, path: Path, args: Arguments) -> None:
    if not args.training.should_save:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, features, allow_pickle=False)
    temporary.replace(path)


def count_feature_flops(network: torch.nn.Module, rows: datasets.Dataset, args: Arguments, collator: Callable) -> int:
    """FLOPs of one pass of the rows through the body, whether it was made now or its result was in the cache."""
    batch = collator(rows.__getitems__(list(range(min(len(rows), COUNTED_ROWS)))))
    flops = count_flops(lambda: compute_features(network, [batch], args.training.device))
    units = sum(rows["length"]) if "length" in rows.column_names else len(rows)
    return round(flops / count_units(batch) * units)


def _hash_body(network: torch.nn.Module) -> str:
    """A hash of what the features depend on: the configuration, and every weight and buffer but the last layer's."""
    head, digest = find_head(network), xxhash.xxh3_128(network.config.to_json_string().encode())
    for name, tensor in network.state_dict().items():
        if not name.startswith(f"{head}."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
