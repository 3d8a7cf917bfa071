"""In which order rows are seen: seeded by (seed, epoch) alone, so that a restart sees the same rows.

The stock length-grouped sampler draws from the global random state, which a resumed run has not restored yet when
the order is made, and it permutes predictions too. Accelerate's division of batches among processes repeats the first
rows of an epoch at its end; ours divides each optimizer step, so that it holds the same rows for any number of them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch

# Optimizer steps sorted together at most, as in fairseq and transformers. Pools of a quarter of a small data set, as
# transformers makes them, left 28 % padding on 1,000 glosses; one pool leaves 10 % at the same accuracy.
POOL_STEPS = 50


class EpochSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """Pairs (epoch, row): a permutation of the rows for each epoch.

    Args:
        num_rows: N.
        seed: the data seed.
        step_size: rows of one optimizer step over all processes.
        get_epoch: the epoch that begins. Asked for instead of told: accelerate 1.15 hands `set_epoch` on neither to a
            sampler under several processes and skipped batches, nor to a data set beside such a sampler.
        lengths: tokens a row, so that rows of similar length share a step; None for plain shuffling.
        is_shuffled: False keeps the order of the data.
    """

    def __init__(
        self,
        num_rows: int,
        seed: int,
        *,
        step_size: int,
        get_epoch: Callable[[], int],
        lengths: Sequence[int] | None = None,
        is_shuffled: bool = True,
    ) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.step_size = step_size
        self.get_epoch = get_epoch
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.is_shuffled = is_shuffled

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.get_epoch()
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(self.num_rows) if self.is_shuffled else np.arange(self.num_rows)
        if self.is_shuffled and self.lengths is not None:
            order = self._group(order, generator)
        return iter([(epoch, row) for row in order.tolist()])

    def _group(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Sort within pools of many steps, then shuffle the steps; a last step that is not full is left as drawn."""
        num_steps, pool = self.num_rows // self.step_size, self.step_size * POOL_STEPS
        full, rest = np.split(order, [num_steps * self.step_size])
        pools = [full[start : start + pool] for start in range(0, len(full), pool)]
        steps = [rows[np.argsort(-self.lengths[rows], kind="stable")].reshape(-1, self.step_size) for rows in pools]
        return np.concatenate([*np.concatenate(steps)[generator.permutation(num_steps)], rest]) if steps else rest


class StepBatchSampler(torch.utils.data.Sampler[list]):
    """Batches of whole optimizer steps: micro-step by micro-step, and in it one batch for each process.

    Their number is a multiple of that of the processes and no batch is empty, so that accelerate deals them out as
    they are. A last step with fewer rows is divided as evenly, not filled up; only where it has less than one row for
    each batch are its rows repeated.

    Args:
        sampler: of the epoch's rows.
        batch_size: rows of one micro-batch of one process.
        accumulation_steps: micro-steps of an optimizer step.
        num_processes: that share the rows.
        drop_last: leave a last step out that is not full.
    """

    def __init__(
        self,
        sampler: torch.utils.data.Sampler,
        batch_size: int,
        *,
        accumulation_steps: int,
        num_processes: int,
        drop_last: bool = False,
    ) -> None:
        # No attribute `batch_size`: accelerate would take batches of another length for the end of the data.
        self.sampler = sampler
        self.micro_step_size = batch_size * num_processes
        self.step_size = self.micro_step_size * accumulation_steps
        self.num_processes = num_processes
        self.drop_last = drop_last

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.step_size)
        micro_steps = full * self._num_micro_steps(self.step_size)
        return self.num_processes * (micro_steps + (0 if self.drop_last else self._num_micro_steps(rest)))

    def __iter__(self) -> Iterator[list]:
        rows = list(self.sampler)
        for number, start in enumerate(range(0, len(rows), self.step_size)):
            step = rows[start : start + self.step_size]
            if len(step) == self.step_size or not self.drop_last:
                yield from self._divide(step, number)

    def _num_micro_steps(self, num_rows: int) -> int:
        return -(-num_rows // self.micro_step_size)

    def _divide(self, step: list, number: int) -> Iterator[list]:
        """Deal the rows, which may be sorted by length, out in turn: each process gets as much work as the others."""
        parts = self._num_micro_steps(len(step))
        needed = parts * self.num_processes
        rows = (step * needed)[: max(len(step), needed)]
        for part in range(parts):
            micro_step = rows[len(rows) * part // parts : len(rows) * (part + 1) // parts]
            for process in range(self.num_processes):
                yield micro_step[(process + number) % self.num_processes :: self.num_processes]


class SeededRows(torch.utils.data.Dataset):
    """Rows with an `augmentation_seed` that depends on (seed, epoch, row) alone.

    Augmentation is then the same for any number of workers and processes, and after a restart.
    """

    def __init__(self, rows: datasets.Dataset, seed: int) -> None:
        self.rows = rows
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """Rows for the pairs (epoch, row) of one batch."""
        rows = self.rows.__getitems__([row for _, row in indices])
        return [
            content | {"augmentation_seed": (self.seed, *index)} for content, index in zip(rows, indices, strict=True)
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
