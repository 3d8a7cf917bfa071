"""In which order rows are seen: seeded by (seed, epoch) alone, so that a restart sees the same rows.

The stock length-grouped sampler draws from the global random state, which a resumed run has not restored yet when
the order is made, and it permutes predictions too.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch

MAX_MEGABATCHES = 50  # batches sorted together at most, as in fairseq and transformers


class EpochSampler(torch.utils.data.Sampler[int]):
    """A permutation of the rows for each epoch; with `lengths`, rows of similar length share a batch.

    Args:
        num_rows: N.
        seed: the data seed.
        batch_size: rows of one optimizer step over all processes, so that the steps hold the same rows however they
            are divided.
        lengths: tokens a row, or None for plain shuffling.
    """

    def __init__(self, num_rows: int, seed: int, batch_size: int, lengths: Sequence[int] | None = None) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.batch_size = batch_size
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(self.num_rows)
        if self.lengths is not None:
            order = self._group(order, generator)
        return iter(order.tolist())

    def _group(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Sort within pools of many batches, then shuffle the batches; a short last batch stays last."""
        num_batches = self.num_rows // self.batch_size
        pool = self.batch_size * min(max(num_batches // 4, 1), MAX_MEGABATCHES)
        pools = [order[start : start + pool] for start in range(0, self.num_rows, pool)]
        order = np.concatenate([rows[np.argsort(-self.lengths[rows], kind="stable")] for rows in pools])
        cut = num_batches * self.batch_size
        batches = order[:cut].reshape(-1, self.batch_size)
        return np.concatenate([batches[generator.permutation(num_batches)].reshape(-1), order[cut:]])


class EpochDataset(torch.utils.data.Dataset):
    """Rows with an `augmentation_seed` that depends on (seed, epoch, row) alone.

    Augmentation is then the same for any number of workers and after a restart.
    """

    def __init__(self, rows: datasets.Dataset, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        rows = self.rows.__getitems__(indices)
        return [
            row | {"augmentation_seed": (self.seed, self.epoch, index)}
            for row, index in zip(rows, indices, strict=True)
        ]


def sort_by_length(rows: datasets.Dataset) -> tuple[datasets.Dataset, np.ndarray]:
    """Rows from long to short, for evaluation with little padding, and where each of them came from.

    Returns:
        The sorted rows and `order` with `sorted[i] = rows[order[i]]`; images keep their order.
    """
    if "length" not in rows.column_names:
        return rows, np.arange(len(rows))
    order = np.argsort(-np.asarray(rows["length"]), kind="stable")
    return rows.select(order), order
