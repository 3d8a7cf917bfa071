"""Where an adapter starts that is initialised from data: the rows that it reads, and what that costs."""

from collections.abc import Callable, Iterator

import datasets
import numpy as np
import torch

from hftl.config import Arguments
from hftl.cost.flops import count_flops
from hftl.data.sampling import sort_by_length
from hftl.models.adapters import adapter_of
from hftl.models.quantization import is_quantized
from hftl.training_data import build_batches

NUM_ROWS = 512  # of train, at most: a pass over them costs as much as five training steps of 32 rows


def initialize_adapter(network: torch.nn.Module, args: Arguments, rows: datasets.Dataset, collator: Callable) -> int:
    """Let an adapter that starts from data see some of it; most need none.

    Args:
        network: adapted; changed in place.
        args: of the run.
        rows: prepared training rows; which of them are read depends on the seed.
        collator: rows -> batch.

    Returns:
        The floating-point operations of it.
    """
    adapter = adapter_of(args.model)
    if adapter is None or adapter.initialize is None:
        return 0
    if not is_quantized(network):
        network.to(args.training.device)
    drawn = np.random.default_rng(args.training.seed).permutation(len(rows))[:NUM_ROWS]
    chosen, _ = sort_by_length(rows.select(np.sort(drawn)))

    def read() -> Iterator[dict[str, torch.Tensor]]:
        size = args.training.per_device_eval_batch_size
        for batch in build_batches(chosen, size, collator, f"Start of {adapter.title}"):
            yield {name: tensor.to(args.training.device) for name, tensor in batch.items() if name != "labels"}

    return count_flops(lambda: adapter.initialize(network, read))
